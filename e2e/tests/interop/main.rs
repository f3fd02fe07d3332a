//! tunneld, mirrord and a stock Linux kernel understand each other: every kind of tunnel, both directions, IPv4 and IPv6 outside, frames of 60 to
//! 8000 bytes, whole and in fragments.

mod cases;
mod frames;
mod guest;
mod mirrors;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cases::{Carries, Case, cases};
use fluxcap_e2e::kernel_peer::{KernelPeer, MTU, SIDE};
use fluxcap_e2e::mirror::Bpffs;
use fluxcap_e2e::{
    Daemon, Dirs, Fluxctl, Netns, RingReader, RingWriter, Sink, SinkOptions, need_root,
    send_frames, wait_until,
};
use frames::{Inner, case_of, frames};
use serde_json::Value;

/// How long the frames of a case may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// MTU of the wire in the second half.
const SMALL_MTU: u32 = 1500;
/// Frames of this length fit the small MTU in every tunnel.
const FITS: usize = 1400;

/// A host with tunneld and the guest at the other end of its wire.
struct Lab {
    // In the order in which they have to go away.
    peer: KernelPeer,
    _daemons: [Daemon; 3],
    _bpffs: Bpffs,
    fluxctl: Fluxctl,
    dirs: Dirs,
    host: Netns,
    /// By number.
    cases: BTreeMap<u8, Case>,
    /// What did not go as it should.
    faults: Vec<String>,
}

#[test]
fn a_stock_kernel_and_tunneld_understand_each_other() {
    need_root!();
    let begun = Instant::now();
    let host = Netns::new();
    let Some(peer) = KernelPeer::start(&host) else {
        return;
    };
    println!("Linux {} booted after {:?}", peer.kernel, begun.elapsed());
    let mut lab = Lab::new(host, peer);
    let mut senders = lab.senders();
    let mut receivers = lab.receivers();
    for mtu in [MTU, SMALL_MTU] {
        lab.set_mtu(mtu);
        lab.kernel_decapsulates(mtu, "auto", &mut senders);
        lab.kernel_encapsulates(mtu, &mut receivers);
        lab.mirrors_encapsulate(mtu);
    }
    for io in ["sendmmsg", "ip"] {
        lab.set_io(io);
        lab.kernel_decapsulates(SMALL_MTU, io, &mut senders);
    }
    lab.books();
    println!("took {:?}", begun.elapsed());
    assert!(lab.faults.is_empty(), "{}", lab.faults.join("\n"));
}

impl Lab {
    fn new(host: Netns, peer: KernelPeer) -> Lab {
        let cases: BTreeMap<u8, Case> = (1..).zip(cases()).collect();
        guest::set_up(&host, &peer, &cases);
        mirrors::set_up(&host);
        let (dirs, bpffs) = (Dirs::new(), Bpffs::new());
        let pins = bpffs.path().to_string_lossy().into_owned();
        let start = |name, args: &[&str]| Daemon::start(name, &host, &dirs, args);
        Lab {
            peer,
            _daemons: [
                start("ringd", &[]),
                start("tunneld", &[]),
                start("mirrord", &["--bpffs", &pins]),
            ],
            _bpffs: bpffs,
            fluxctl: Fluxctl::new(&dirs),
            dirs,
            host,
            cases,
            faults: Vec::new(),
        }
    }

    /// A ring and a tunnel to the guest for each case.
    fn senders(&self) -> BTreeMap<u8, RingWriter> {
        let sender = |(&number, case): (&u8, &Case)| {
            let ring = format!("s{number}");
            self.ring(&ring);
            let (kind, options) = words(case.send);
            let (ours, theirs) = guest::ends(case.outer, number);
            let command = [
                "tunnel", "send", &ring, kind, &theirs, "--local", &ours, "--name", &ring,
            ];
            self.fluxctl.run(&[&command[..], &options].concat());
            (number, RingWriter::open(&self.dirs, &ring))
        };
        self.cases.iter().map(sender).collect()
    }

    /// A ring and a tunnel from the guest for each case.
    fn receivers(&self) -> BTreeMap<u8, RingReader> {
        let receiver = |(&number, case): (&u8, &Case)| {
            let ring = format!("r{number}");
            self.ring(&ring);
            let (kind, options) = words(case.receive);
            let (ours, _) = guest::ends(case.outer, number);
            let command = [
                "tunnel", "recv", kind, &ring, "--local", &ours, "--name", &ring,
            ];
            self.fluxctl.run(&[&command[..], &options].concat());
            (number, RingReader::open(&self.dirs, &ring))
        };
        self.cases.iter().map(receiver).collect()
    }

    fn ring(&self, name: &str) {
        self.fluxctl.run(&["ring", "create", name, "--size", "2m"]);
    }

    /// Sets the MTU of the wire; returns when all tunnels have noticed.
    fn set_mtu(&self, mtu: u32) {
        self.peer.set_mtu(&self.host, mtu);
        self.wait_paths(&format!("an MTU of {mtu}"), |path| path["mtu"] == mtu);
    }

    /// Sets the way in which tunneld hands packets to the kernel; returns when all tunnels use it.
    fn set_io(&self, io: &str) {
        for number in self.cases.keys() {
            self.fluxctl
                .run(&["tunnel", "set", &format!("s{number}"), "--io", io]);
        }
        self.wait_paths(io, |path| path["io"] == io);
    }

    fn wait_paths(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        for number in self.cases.keys() {
            let name = format!("s{number}");
            wait_until(PATIENCE, &format!("{name} runs with {what}"), || {
                let status = &self.fluxctl.json(&["tunnel", "show", &name])["status"];
                status["state"] == "running" && holds(&status["send"]["path"])
            });
        }
    }

    /// tunneld sends, the guest decapsulates: what comes out of its devices is what was in the rings.
    fn kernel_decapsulates(&mut self, mtu: u32, io: &str, senders: &mut BTreeMap<u8, RingWriter>) {
        let options = SinkOptions {
            keep: usize::MAX,
            buffer_bytes: 16 << 20,
        };
        let side = Sink::with(&self.host, SIDE, options);
        let mut wanted = BTreeMap::new();
        for (&number, sender) in senders {
            let carries = self.cases[&number].carries;
            let inner = frames(number, carries);
            let seen = side.frames();
            sender.publish(inner.iter().map(|inner| &*inner.frame));
            let carried = inner.iter().filter_map(|inner| inner.carried(carries));
            let carried: Vec<Vec<u8>> = carried.map(<[u8]>::to_vec).collect();
            let begun = Instant::now();
            while side.frames() < seen + carried.len() as u64 && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            wanted.insert(number, carried);
        }
        side.wait_quiet(Duration::from_millis(100));
        let mut arrived: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
        for frame in side.stop().kept {
            arrived.entry(case_of(&frame)).or_default().push(frame);
        }
        for (number, wanted) in wanted {
            let arrived = arrived.remove(&number).unwrap_or_default();
            self.judge(
                &format!("by {io} to the kernel"),
                mtu,
                number,
                &wanted,
                &arrived,
            );
        }
        for (_, frames) in arrived {
            self.faults.push(format!(
                "{} frames came out that nobody sent, such as {:02x?}",
                frames.len(),
                frames[0]
            ));
        }
    }

    /// The guest encapsulates, tunneld receives: what comes out of the rings is what the guest's devices were given.
    fn kernel_encapsulates(&mut self, mtu: u32, receivers: &mut BTreeMap<u8, RingReader>) {
        for (&number, receiver) in receivers {
            let case = self.cases[&number];
            let inner: Vec<Inner> = frames(number, case.carries)
                .into_iter()
                .filter(|inner| is_sent(inner, case, mtu))
                .collect();
            let mut wanted: Vec<Vec<u8>> = inner
                .iter()
                .filter_map(|inner| inner.received(case.carries))
                .collect();
            send_frames(
                &self.host,
                SIDE,
                &inner
                    .into_iter()
                    .map(|inner| inner.frame)
                    .collect::<Vec<_>>(),
            );
            let mut arrived = receiver.take(wanted.len(), PATIENCE);
            if case.carries == Carries::Ip {
                // IPv4 and IPv6 in IP come by two sockets: each in its own order.
                wanted.sort_by_key(|frame| is_ipv6(frame));
                arrived.sort_by_key(|(_, frame)| is_ipv6(frame));
            }
            let (metas, arrived): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
            self.judge("from the kernel", mtu, number, &wanted, &arrived);
            let name = case.name;
            for (meta, frame) in metas.iter().zip(&arrived) {
                if meta.id != case.id || meta.wire_len as usize != frame.len() {
                    self.faults.push(format!(
                        "{name}: a frame of {} bytes has {meta:?}",
                        frame.len()
                    ));
                    break;
                }
            }
        }
    }

    /// Compares what came with what should have come.
    fn judge(&mut self, way: &str, mtu: u32, number: u8, wanted: &[Vec<u8>], arrived: &[Vec<u8>]) {
        let name = self.cases[&number].name;
        if wanted == arrived {
            println!("{name}, {way}, MTU {mtu}: {} frames", wanted.len());
            return;
        }
        let missing: Vec<usize> = wanted
            .iter()
            .filter(|frame| !arrived.contains(frame))
            .map(Vec::len)
            .collect();
        let strange = arrived.iter().find(|frame| !wanted.contains(frame));
        let strange = strange.map(|frame| {
            format!(
                "{} bytes {:02x?}",
                frame.len(),
                &frame[..frame.len().min(100)]
            )
        });
        let fault = format!(
            "{name}, {way}, MTU {mtu}: {} of {} frames; missing lengths {missing:?}; not as it was sent: {strange:?}",
            arrived.len(),
            wanted.len(),
        );
        println!("{fault}");
        println!("{}", guest::complaints(&self.peer, number));
        let tunnel = format!("{}{number}", if way.starts_with("by") { 's' } else { 'r' });
        println!("{:#}", self.fluxctl.json(&["tunnel", "show", &tunnel]));
        self.faults.push(fault);
    }

    /// Everything that was sent or received is accounted for.
    fn books(&mut self) {
        let audit = || self.fluxctl.try_run(&["audit"]);
        let begun = Instant::now();
        while audit().code != 0 && begun.elapsed() < PATIENCE {}
        let audit = audit();
        if audit.code != 0 {
            self.faults.push(format!(
                "the audit does not close: {}{}",
                audit.stdout, audit.stderr
            ));
        }
        let nothing = serde_json::json!(0);
        for number in self.cases.keys() {
            let status = self
                .fluxctl
                .json(&["tunnel", "show", &format!("r{number}")]);
            let receive = &status["status"]["receive"];
            for figure in [
                "missing_packets",
                "reordered_packets",
                "truncated_frames",
                "kernel_dropped_packets",
            ] {
                if receive[figure] != nothing {
                    self.faults
                        .push(format!("r{number}: {figure} is {}", receive[figure]));
                }
            }
        }
    }
}

/// Whether the guest sends such a frame, and nothing else: its IP devices would make something odd of tags, and take padding along; and Linux
/// does not fragment over IPv6.
fn is_sent(inner: &Inner, case: Case, mtu: u32) -> bool {
    let carried = inner.carried(case.carries).is_some();
    let plain = case.carries == Carries::Ethernet || inner.is_plain();
    let fits = case.linux_fragments || mtu == MTU || inner.frame.len() <= FITS;
    carried && plain && fits
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

fn words(text: &str) -> (&str, Vec<&str>) {
    let mut words = text.split(' ');
    (words.next().unwrap_or_default(), words.collect())
}
