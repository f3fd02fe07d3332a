//! The far end of an output: an eBPF program that judges and drops what arrives, `bpf/sink.bpf.c`.
//!
//! It costs little, so that it is not what is measured, and looks at every frame: order, duplicates, a sum over the fields, and latency.

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Btf, Ebpf, EbpfLoader};

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
    /// It has a native XDP program: frames that were never socket buffers stay so.
    Xdp,
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
            Peer::Gro => "gro",
            Peer::Plain => "plain",
        }
    }
}

/// The program at one interface. It goes away on drop.
pub struct Sink {
    state: Array<MapData, State>,
    _ebpf: Ebpf,
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
            Peer::Gro | Peer::Plain => attach_tc(&mut ebpf, device),
        });
        attached.with_context(|| format!("cannot attach the sink's program to {device}"))?;
        Ok(Sink { state, _ebpf: ebpf })
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
