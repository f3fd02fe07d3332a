//! A host that sends a ring into a tunnel, and the far end of its wire.

use fluxcap_e2e::payload::{self, Headers, Identity, Verdict, stamp};
use fluxcap_e2e::{
    Daemon, Dirs, Fluxctl, Netns, Report, RingWriter, Sink, SinkOptions, Veth, wait_until,
};
use fluxcap_headers::tunnel::{Decap, DecapSpec, TunnelKind};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const QUIET: Duration = Duration::from_millis(100);
/// Addresses of the near and of the far end, of both versions.
pub(crate) const NEAR: [&str; 2] = ["10.0.0.1", "fd00::1"];
pub(crate) const FAR: [&str; 2] = ["10.0.0.2", "fd00::2"];
/// Name of the interface at both ends.
pub(crate) const WIRE: &str = "wire";
/// Frames that a sink keeps.
const KEEP: usize = 200_000;
/// UDP flows among the frames.
const FLOWS: u64 = 50;

/// Two hosts; tunneld and ringd run at the near one, and a ring named `ring` is there.
pub(crate) struct Bed {
    pub(crate) tunneld: Daemon,
    _ringd: Daemon,
    pub(crate) fluxctl: Fluxctl,
    pub(crate) dirs: Dirs,
    pub(crate) near: Netns,
    pub(crate) far: Netns,
    writer: Option<RingWriter>,
    /// Number of the next frame.
    next: u64,
}

impl Bed {
    /// Both hosts on one wire with this MTU.
    pub(crate) fn new(mtu: u32) -> Bed {
        let [near, far] = [Netns::new(), Netns::new()];
        Bed::plug(&near, &far, mtu);
        Bed::with(near, far, &[])
    }

    /// Daemons on hosts that are connected already. `hosts` is a file for tunneld to see as /etc/hosts.
    pub(crate) fn with(near: Netns, far: Netns, hosts: &[&str]) -> Bed {
        let dirs = Dirs::new();
        let ringd = Daemon::start("ringd", &near, &dirs, &[]);
        let tunneld = match hosts {
            [file] => Daemon::start_with_hosts("tunneld", &near, &dirs, &[], file.as_ref()),
            _ => Daemon::start("tunneld", &near, &dirs, &[]),
        };
        let fluxctl = Fluxctl::new(&dirs);
        fluxctl.run(&["ring", "create", "ring", "--size", "16m"]);
        Bed {
            tunneld,
            _ringd: ringd,
            writer: Some(RingWriter::open(&dirs, "ring")),
            fluxctl,
            dirs,
            near,
            far,
            next: 0,
        }
    }

    /// A wire between two hosts, with addresses of both versions.
    pub(crate) fn plug(near: &Netns, far: &Netns, mtu: u32) {
        ipv6(near);
        ipv6(far);
        Veth::pair((near, WIRE), (far, WIRE), mtu);
        Bed::name(near, WIRE, NEAR);
        Bed::name(far, WIRE, FAR);
        // Where live frames can be taken, they are.
        Veth::gro(far, WIRE, true);
    }

    /// Gives an interface addresses of both versions.
    pub(crate) fn name(host: &Netns, interface: &str, addresses: [&str; 2]) {
        for (address, prefix) in addresses.iter().zip([24, 64]) {
            host.ip(&[
                "addr",
                "add",
                &format!("{address}/{prefix}"),
                "dev",
                interface,
            ]);
        }
    }

    /// Starts the tunnel `out` with these words of `fluxctl tunnel send ring`, and waits until it reads the ring.
    #[track_caller]
    pub(crate) fn tunnel(&self, words: &str) {
        let command = ["tunnel", "send", "ring", "--name", "out"];
        let words: Vec<&str> = command.into_iter().chain(words.split(' ')).collect();
        self.fluxctl.run(&words);
        self.wait("the tunnel reads the ring", |status| {
            status["send"]["rings"][0]["state"] == "running"
        });
    }

    /// Deletes the tunnel.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.fluxctl.run(&["tunnel", "delete", "out"]);
    }

    /// Changes the tunnel.
    #[track_caller]
    pub(crate) fn set(&self, words: &str) {
        let words: Vec<&str> = ["tunnel", "set", "out"]
            .into_iter()
            .chain(words.split(' '))
            .collect();
        self.fluxctl.run(&words);
    }

    /// The tunnel's status.
    pub(crate) fn status(&self) -> Value {
        self.fluxctl.json(&["tunnel", "show", "out"])["status"].take()
    }

    /// Waits until the status is like that.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut status = Value::Null;
        let mut waited = || {
            status = self.status();
            holds(&status)
        };
        let end = std::time::Instant::now() + SOON;
        while !waited() {
            let late = std::time::Instant::now() > end;
            assert!(!late, "{what}: not within {SOON:?}: {:#}", self.status());
        }
        status
    }

    /// Waits until every frame that was published has ended somehow.
    #[track_caller]
    pub(crate) fn wait_done(&self, published: u64) -> Value {
        self.wait("every frame is accounted for", |status| {
            sent(status) + dropped(status) == published
        })
    }

    /// Publishes frames of this size, in bursts.
    #[track_caller]
    pub(crate) fn publish(&mut self, count: u64, size: usize) {
        let writer = self
            .writer
            .as_mut()
            .expect("the ring is not written to by a stream");
        let all: Vec<_> = (self.next..self.next + count)
            .map(|seq| frame(seq, size))
            .collect();
        for burst in all.chunks(100) {
            writer.publish(burst.iter().map(|frame| &**frame));
        }
        self.next += count;
    }

    /// Publishes frames of this size, some thousands a second, until [`Stream::stop`].
    #[track_caller]
    pub(crate) fn stream(&mut self, size: usize) -> Stream {
        let mut writer = self.writer.take().expect("one stream at a time");
        let (next, stop) = (
            Arc::new(AtomicU64::new(self.next)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, asked) = (Arc::clone(&next), Arc::clone(&stop));
        let publish = move || {
            for burst in (1..).map(|turn| 5 + turn % 40) {
                if asked.load(Relaxed) {
                    break;
                }
                let first = count.load(Relaxed);
                let frames: Vec<_> = (first..first + burst).map(|seq| frame(seq, size)).collect();
                writer.publish(frames.iter().map(|frame| &**frame));
                count.store(first + burst, Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            writer
        };
        Stream {
            next,
            stop,
            thread: Some(std::thread::spawn(publish)),
        }
    }

    /// Ends a stream; how many frames were published in all.
    #[track_caller]
    pub(crate) fn stop(&mut self, mut stream: Stream) -> u64 {
        stream.stop.store(true, Relaxed);
        let thread = stream.thread.take().expect("a stream is stopped once");
        self.writer = Some(thread.join().expect("the stream ended well"));
        self.next = stream.next.load(Relaxed);
        self.next
    }

    /// Captures what arrives at the far end.
    pub(crate) fn sink(&self) -> Sink {
        sink(&self.far, WIRE)
    }
}

/// Captures what arrives at an interface, and keeps it.
pub(crate) fn sink(host: &Netns, interface: &str) -> Sink {
    let options = SinkOptions {
        keep: KEEP,
        ..SinkOptions::default()
    };
    Sink::with(host, interface, options)
}

/// Lets a host speak IPv6, without checking first whether somebody else has its addresses.
pub(crate) fn ipv6(host: &Netns) {
    for (key, value) in [
        ("all/disable_ipv6", "0"),
        ("default/disable_ipv6", "0"),
        ("default/accept_dad", "0"),
    ] {
        host.sysctl(&format!("net/ipv6/conf/{key}"), value);
    }
}

/// Frames in the background.
pub(crate) struct Stream {
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<RingWriter>>,
}

impl Stream {
    /// Waits until so many more were published.
    #[track_caller]
    pub(crate) fn go_on(&self, frames: u64) {
        let until = self.next.load(Relaxed) + frames;
        wait_until(SOON, "more frames are published", || {
            self.next.load(Relaxed) >= until
        });
    }
}

/// The frame with this number: UDP in IPv4, of one of some flows.
pub(crate) fn frame(seq: u64, size: usize) -> Vec<u8> {
    let port = 10_000 + u16::try_from(seq % FLOWS).expect("few flows");
    let headers = Headers {
        udp: Some((port, 9)),
        ..Headers::default()
    };
    let mut frame = headers.frame(size);
    let identity = Identity {
        stream: 1,
        seq,
        sent_ns: 0,
    };
    stamp(&mut frame, headers.len(), identity);
    frame
}

/// Frames that were sent, by the tunnel's status.
pub(crate) fn sent(status: &Value) -> u64 {
    status["send"]["sent_frames"].as_u64().unwrap_or(0)
}

/// Frames that were dropped, by the tunnel's status.
pub(crate) fn dropped(status: &Value) -> u64 {
    let reasons = status["dropped_frames"].as_object();
    reasons.map_or(0, |reasons| {
        reasons.values().filter_map(Value::as_u64).sum()
    })
}

/// Frames that were dropped for one reason.
pub(crate) fn dropped_as(status: &Value, reason: &str) -> u64 {
    status["dropped_frames"][reason].as_u64().unwrap_or(0)
}

/// An outer packet that arrived, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Number of the frame in it; none when it is not whole.
    pub(crate) seq: Option<u64>,
    /// Ethernet address that it was sent to.
    pub(crate) mac: [u8; 6],
    /// Length of the outer IP packet.
    pub(crate) length: usize,
    /// Time to live or hop limit.
    pub(crate) ttl: u8,
    /// Key, VNI, session.
    pub(crate) id: Option<u32>,
    /// The inner frame, or IP packet.
    pub(crate) inner: Vec<u8>,
}

/// The outer packets of a tunnel among what arrived, in order.
pub(crate) fn arrivals(report: &Report, kind: TunnelKind) -> Vec<Arrival> {
    assert_eq!(report.kernel_drops, 0, "the sink was too slow");
    let decap = Decap::new(DecapSpec::new(kind)).expect("a kind that can be received");
    let packets = report.kept.iter();
    packets
        .filter_map(|packet| arrival(packet, kind, &decap))
        .collect()
}

fn arrival(packet: &[u8], kind: TunnelKind, decap: &Decap) -> Option<Arrival> {
    let mac = *packet.first_chunk()?;
    let ip = packet.get(14..)?;
    let (protocol, ttl, header, length) = match u16::from_be_bytes([packet[12], packet[13]]) {
        0x0800 => (
            ip[9],
            ip[8],
            20,
            usize::from(u16::from_be_bytes([ip[2], ip[3]])),
        ),
        0x86dd => (
            ip[6],
            ip[7],
            40,
            40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])),
        ),
        _ => return None,
    };
    if !kind.ip_protocols().contains(&protocol) {
        return None;
    }
    let header = header + if kind.is_udp() { 8 } else { 0 };
    let decoded = decap.decode(ip.get(header..length)?).ok()?;
    let inner = decoded.payload.to_vec();
    let seq = match payload::read(&ethernet(&inner, kind)) {
        Verdict::Good(identity) => Some(identity.seq),
        _ => None,
    };
    Some(Arrival {
        seq,
        mac,
        length,
        ttl,
        id: decoded.id,
        inner,
    })
}

/// The frame again, for kinds that carry IP only.
fn ethernet(inner: &[u8], kind: TunnelKind) -> Vec<u8> {
    if kind.carries_ip() {
        [&[0; 12][..], &[8, 0], inner].concat()
    } else {
        inner.to_vec()
    }
}

/// Checks that frames 0 to `count` arrived, each once and in order.
#[track_caller]
pub(crate) fn assert_each_once(what: &str, arrivals: &[Arrival], count: u64) {
    let numbers = || arrivals.iter().map(|arrival| arrival.seq);
    if numbers().eq((0..count).map(Some)) {
        return;
    }
    let wrong = numbers().zip(0..).find(|(seq, at)| *seq != Some(*at));
    panic!(
        "{what}: {} of {count} arrived; the first that is wrong, and its place: {wrong:?}",
        arrivals.len()
    );
}

/// Checks that nothing arrived twice, and what arrived is in order; how many did.
#[track_caller]
pub(crate) fn assert_ascending(what: &str, arrivals: &[Arrival]) -> u64 {
    let numbers: Vec<u64> = arrivals.iter().filter_map(|arrival| arrival.seq).collect();
    let wrong = numbers.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!(wrong, None, "{what}: twice, or out of order");
    numbers.len() as u64
}
