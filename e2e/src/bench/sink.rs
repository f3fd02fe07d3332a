//! The far end of an output: an eBPF program that judges and drops what arrives, `bpf/sink.bpf.c`.
//!
//! It costs little, so that it is not what is measured, and looks at every frame: order, duplicates, a sum over the fields, and latency.

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Btf, Ebpf, EbpfLoader};

use fluxcap_socket::{BpfLink, LinkWatch, PassAll};

use crate::bench::histogram::{BUCKETS, Histogram};
use crate::netns::Netns;

/// Streams that are told apart.
pub const STREAMS: usize = 4;

/// `struct state`, word by word: run, pass, sample, stale, foreign, corrupt; four words for each stream; the histogram.
const WORDS: usize = 6 + 4 * STREAMS + BUCKETS;
type State = [u64; WORDS];

/// How the far end takes frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Its sensor is a native XDP program: frames that were never socket buffers stay so.
    Xdp,
    /// What `fluxctl output prepare` makes of it: a native XDP program that passes everything on, and no GRO. A socket buffer is made of each
    /// frame, for a sensor like tcpdump.
    Prepared,
    /// GRO is on: it can take redirected frames, and makes a socket buffer of each.
    Gro,
    /// Neither: it only takes socket buffers.
    Plain,
}

impl Peer {
    /// As it is written in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Peer::Xdp => "xdp",
            Peer::Prepared => "prepared",
            Peer::Gro => "gro",
            Peer::Plain => "plain",
        }
    }
}

/// The program at one interface. It goes away on drop.
pub struct Sink {
    state: Array<MapData, State>,
    _ebpf: Ebpf,
    _prepared: Option<BpfLink>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

/// What is to be done with the frames of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders {
    /// The run; frames of others are not counted.
    pub run: u16,
    /// Hand frames on to the stack, where a capture sees them.
    pub pass: bool,
    /// Take the latency of one frame in this many, a power of two.
    pub sample: u64,
}

/// What arrived in a run.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Different frames, of all streams.
    pub received: u64,
    /// Frames that had arrived before.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames with other fields or of another length than they were sent.
    pub corrupt: u64,
    /// Frames that the bench did not send.
    pub foreign: u64,
    /// From the source's clock to the arrival.
    pub latency: Histogram,
}

impl Sink {
    /// Attaches the program to interface `device` of `netns`.
    ///
    /// # Errors
    /// When the kernel refuses (root, kernel 6.6).
    pub fn attach(netns: &Netns, device: &str, peer: Peer) -> Result<Sink> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));
        let btf = Btf::from_sys_fs().ok();
        let mut ebpf = EbpfLoader::new().btf(btf.as_ref()).load(object)?;
        let state = match ebpf.take_map("state") {
            Some(map @ Map::Array(_)) => Array::try_from(map)?,
            _ => return Err(anyhow!("the sink's program has no counters")),
        };
        let attached = netns.run(|| match peer {
            Peer::Xdp => attach_xdp(&mut ebpf, device),
            Peer::Gro | Peer::Plain | Peer::Prepared => attach_tc(&mut ebpf, device),
        });
        attached.with_context(|| format!("cannot attach the sink's program to {device}"))?;
        let prepared = (peer == Peer::Prepared).then(|| netns.run(|| prepare(device)));
        Ok(Sink {
            state,
            _ebpf: ebpf,
            _prepared: prepared.transpose()?,
        })
    }

    /// Sets all counters to 0. Nothing may be arriving.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arm(&mut self, orders: Orders) -> Result<()> {
        let mut state = [0; WORDS];
        state[0] = orders.run.into();
        state[1] = orders.pass.into();
        state[2] = orders.sample.max(1) - 1;
        self.state.set(0, state, 0).context("reset the sink")
    }

    /// What has arrived since the sink was armed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arrived(&self) -> Result<Arrived> {
        let state = self.state.get(&0, 0).context("read the sink")?;
        let (head, rest) = state.split_at(6);
        let (streams, latency) = rest.split_at(4 * STREAMS);
        let sum = |at: usize| streams.chunks(4).map(|stream| stream[at]).sum();
        Ok(Arrived {
            received: sum(1),
            duplicates: sum(2),
            reordered: sum(3),
            corrupt: head[5],
            foreign: head[4],
            latency: Histogram::new(latency),
        })
    }
}

/// An XDP program that drops every frame, as long as this value exists.
pub struct Dropper {
    _ebpf: Ebpf,
}

impl std::fmt::Debug for Dropper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dropper").finish_non_exhaustive()
    }
}

impl Dropper {
    /// Attaches it to interface `device` of `netns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(netns: &Netns, device: &str) -> Result<Dropper> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));
        let mut ebpf = EbpfLoader::new().btf(None).load(object)?;
        let program: &mut Xdp = ebpf
            .program_mut("drop_xdp")
            .context("no program")?
            .try_into()?;
        program.load()?;
        netns.run(|| program.attach(device, XdpMode::Driver).map(drop))?;
        Ok(Dropper { _ebpf: ebpf })
    }
}

/// The program that `fluxctl output prepare` attaches.
pub(crate) fn prepare(device: &str) -> Result<BpfLink> {
    let link = LinkWatch::open()?.find(device)?;
    let link = link.with_context(|| format!("there is no interface {device}"))?;
    let attached = PassAll::load()?.attach(link.index);
    attached.with_context(|| format!("cannot prepare {device}"))
}

fn attach_xdp(ebpf: &mut Ebpf, device: &str) -> Result<()> {
    let program: &mut Xdp = ebpf
        .program_mut("sink_xdp")
        .context("no program")?
        .try_into()?;
    program.load()?;
    program.attach(device, XdpMode::Driver)?;
    Ok(())
}

fn attach_tc(ebpf: &mut Ebpf, device: &str) -> Result<()> {
    let program: &mut SchedClassifier = ebpf
        .program_mut("sink_tc")
        .context("no program")?
        .try_into()?;
    program.load()?;
    program.attach(device, TcAttachType::Ingress)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::frame::{Pool, Stamp};
    use crate::generator::send_frames;
    use crate::link::Veth;

    fn frame(run: u16, seq: u64) -> Vec<u8> {
        let stamp = Stamp {
            run,
            stream: 1,
            seq,
            sent_ns: crate::bench::source::now_ns(),
        };
        let mut frame = stamp.header(100).to_vec();
        frame.extend(Pool::new().filler(seq, 100));
        frame
    }

    /// What a sink makes of these frames, when it has seen one of another stream after them.
    fn judged(peer: Peer, frames: &[Vec<u8>]) -> Arrived {
        let (near, far) = (Netns::new(), Netns::new());
        Veth::pair((&near, "wire"), (&far, "wire"), 1500);
        Veth::gro(&far, "wire", peer == Peer::Gro);
        let mut sink = Sink::attach(&far, "wire", peer).expect("attach");
        sink.arm(Orders {
            run: 7,
            ..Orders::default()
        })
        .expect("arm");
        send_frames(&near, "wire", frames);
        let counted = |arrived: &Arrived| {
            arrived.received + arrived.duplicates + arrived.corrupt + arrived.foreign
        };
        crate::wait_for(std::time::Duration::from_secs(5), "all are judged", || {
            let arrived = sink.arrived().expect("read");
            (counted(&arrived) == frames.len() as u64).then_some(arrived)
        })
    }

    #[test]
    fn every_kind_of_harm_is_counted_at_every_kind_of_peer() {
        crate::need_root!();
        let mut corrupt = frame(7, 5);
        corrupt[30] ^= 1;
        let mut frames: Vec<_> = [0, 1, 1, 3, 2, 4].map(|seq| frame(7, seq)).to_vec();
        frames.extend([corrupt, frame(7, 6)[..99].to_vec(), vec![0; 60]]);
        for peer in [Peer::Xdp, Peer::Prepared, Peer::Gro, Peer::Plain] {
            let arrived = judged(peer, &frames);
            let counts = [
                arrived.received,
                arrived.duplicates,
                arrived.reordered,
                arrived.corrupt,
                arrived.foreign,
            ];
            assert_eq!(counts, [5, 1, 1, 2, 1], "{peer:?}");
            let latency = arrived.latency.percentile(1.0).expect("latencies");
            assert!(latency < std::time::Duration::from_secs(5), "{latency:?}");
            assert_eq!(arrived.latency.len(), 6);
        }
    }
}
