//! The order of the wire: what comes by several interfaces, or sockets, stands in the ring as it was sent. Judged by the numbers
//! that one sender has given to its frames, in the order in which the kernel got them.

use fluxcap_e2e::payload::{Headers, Identity, Verdict, read, stamp};
use fluxcap_e2e::{Generator, Lab, Netns, RingReader, Sent, Veth, need_root, wait_until};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// A capture of `taps` interfaces into the ring `all`.
fn aggregating(taps: usize, options: &[&str]) -> Lab {
    let lab = Lab::new(taps, 1);
    lab.ctl(&["ring", "create", "all", "--size", "128m"]);
    let interfaces: Vec<_> = lab.taps.iter().map(|tap| tap.name.as_str()).collect();
    let interfaces = interfaces.join(",");
    let add = [
        "rx",
        "add",
        &interfaces,
        "all",
        "--name",
        "c",
        "--buffer",
        "64M",
    ];
    lab.ctl(&[&add, options].concat());
    lab.wait_running();
    lab
}

/// Datagrams of some flows, whole ones and fragments; where their identity stands.
fn flows() -> (Vec<Vec<u8>>, usize) {
    let headers = |port| Headers {
        udp: Some((port, 2000)),
        ..Headers::default()
    };
    let at = headers(0).len();
    let frames = (0..8_u16).map(|kind| {
        let mut frame = headers(1000 + kind / 2).frame(100);
        if kind % 2 == 1 {
            frame[20] = 0x20; // more fragments
        }
        frame
    });
    (frames.collect(), at)
}

/// Sends over the first `wires` taps, by one sender.
fn send(lab: &Lab, wires: usize, rate: u32, count: u64) -> Sent {
    let wires: Vec<_> = lab.taps[..wires]
        .iter()
        .map(|tap| (&tap.outside, tap.wire()))
        .collect();
    let (frames, at) = flows();
    Generator::new(1)
        .rate(rate)
        .count(count)
        .send_over(&wires, frames, at)
}

/// How many frames stand in the ring behind one that was sent later, of `expected`, and by how much at most in nanoseconds.
fn behind(lab: &Lab, expected: u64) -> (u64, u64) {
    let expected = usize::try_from(expected).expect("few");
    let frames = RingReader::open(&lab.dirs, "all").take(expected, SOON);
    assert_eq!(frames.len(), expected);
    let (mut latest, mut late, mut most) = ((0, 0), 0, 0);
    for (_, frame) in &frames {
        let Verdict::Good(identity) = read(frame) else {
            panic!("a frame of the generator");
        };
        let now = (identity.seq, identity.sent_ns);
        if now.0 < latest.0 {
            (late, most) = (late + 1, most.max(latest.1 - now.1));
        }
        latest = latest.max(now);
    }
    (late, most)
}

fn status(lab: &Lab) -> serde_json::Value {
    lab.json(&["rx", "show", "c"])["status"].clone()
}

fn number(lab: &Lab, name: &str) -> u64 {
    status(lab)[name].as_u64().unwrap_or(0)
}

/// What was sent is in the ring, in order; what is not was dropped by the kernel.
fn assert_order(lab: &Lab, sent: &Sent, what: &str) {
    let all = || number(lab, "published_frames") + number(lab, "kernel_dropped_frames");
    wait_until(SOON, "all frames are there", || all() == sent.on_wire());
    assert_none_behind(lab, sent, what);
}

fn assert_none_behind(lab: &Lab, sent: &Sent, what: &str) {
    let published = number(lab, "published_frames");
    let (late, most) = behind(lab, published);
    let counted = number(lab, "late_frames");
    println!(
        "{what}: {published} frames at {:.0}/s, {late} behind a later one by up to {} us, {counted} counted",
        sent.rate(),
        most / 1000
    );
    assert_eq!((late, counted), (0, 0), "{what}");
    lab.audit();
}

#[test]
fn frames_of_two_interfaces_come_in_the_order_of_the_wire_at_any_rate() {
    need_root!();
    for (rate, count) in [(500, 400), (10_000, 8_000), (200_000, 100_000)] {
        let lab = aggregating(2, &[]);
        let sent = send(&lab, 2, rate, count);
        assert_order(&lab, &sent, "two interfaces");
    }
}

#[test]
fn one_that_is_silent_and_one_that_flaps_change_nothing() {
    need_root!();
    let lab = aggregating(4, &[]);
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        // Down for a moment again and again: frames for it are lost meanwhile, on the wire.
        scope.spawn(|| {
            while !done.load(Relaxed) {
                Veth::down(&lab.host, "tap2");
                std::thread::sleep(Duration::from_millis(30));
                Veth::up(&lab.host, "tap2");
                std::thread::sleep(Duration::from_millis(70));
            }
        });
        let sent = send(&lab, 3, 10_000, 15_000);
        done.store(true, Relaxed);
        sent
    });
    // What came while the interface flapped nobody can tell to the frame; of the others all did.
    for (at, name) in ["tap0", "tap1"].iter().enumerate() {
        let came = Veth::counters(&lab.host, name).rx_frames;
        assert!(came > 0);
        wait_until(SOON, "all frames are there", || {
            let shown = &status(&lab)["interfaces"][at];
            let number = |name: &str| shown[name].as_u64().unwrap_or(0);
            number("received_frames") + number("kernel_dropped_frames") == came
        });
    }
    assert_none_behind(&lab, &sent, "four interfaces");
}

/// The members of a fanout group, among which whole datagrams and fragments of a flow are divided.
#[test]
fn flows_and_their_fragments_come_in_the_order_of_the_wire_by_several_sockets() {
    need_root!();
    let lab = aggregating(1, &["--threads", "4"]);
    let sent = send(&lab, 1, 20_000, 20_000);
    assert_order(&lab, &sent, "four sockets");
}

/// The kernel gives AF_XDP no times: what is read together has one, and each interface's own frames are in order.
#[test]
fn queues_of_af_xdp_are_merged_by_the_time_of_the_read() {
    need_root!();
    let lab = aggregating(2, &["--io", "af_xdp"]);
    let sent = send(&lab, 2, 20_000, 20_000);
    wait_until(SOON, "all frames are there", || {
        number(&lab, "published_frames") + number(&lab, "kernel_dropped_frames") == sent.on_wire()
    });
    assert_eq!(number(&lab, "late_frames"), 0);
    let published = usize::try_from(number(&lab, "published_frames")).expect("few");
    let frames = RingReader::open(&lab.dirs, "all").take(published, SOON);
    assert!(frames.is_sorted_by_key(|(meta, _)| meta.timestamp_ns));
    for source in 0..2 {
        let own = frames.iter().filter(|(meta, _)| meta.source == source);
        let numbers = own.map(|(_, frame)| match read(frame) {
            Verdict::Good(identity) => identity.seq,
            other => panic!("{other:?}"),
        });
        assert!(numbers.is_sorted(), "interface {source}");
    }
    lab.audit();
}

/// The books and the order, while specs, threads and rings change.
#[test]
fn order_stays_through_changes() {
    need_root!();
    let lab = aggregating(2, &["--threads", "2"]);
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| {
            for window in ["5ms", "1s", "2ms", "50ms"].iter().cycle() {
                if done.load(Relaxed) {
                    break;
                }
                lab.ctl(&["rx", "set", "c", "--merge-window", window]);
                lab.ctl(&["rx", "set", "c", "--snaplen", "2000"]);
            }
        });
        let sent = send(&lab, 2, 5_000, 5_000);
        done.store(true, Relaxed);
        sent
    });
    assert_order(&lab, &sent, "changes");
    // From merged to threads of their own, and back.
    for window in ["0", "2ms"] {
        lab.ctl(&["rx", "set", "c", "--merge-window", window]);
        send(&lab, 2, 5_000, 1_000);
    }
    wait_until(SOON, "all frames are there", || {
        number(&lab, "published_frames") + number(&lab, "kernel_dropped_frames") == 7_000
    });
    lab.audit();
}

/// What is not held back comes as it is read, and is counted; and a file of it agrees with the figures.
#[test]
fn without_a_window_frames_come_late_and_are_counted() {
    need_root!();
    let lab = aggregating(2, &["--merge-window", "0"]);
    let sent = send(&lab, 2, 10_000, 10_000);
    wait_until(SOON, "all frames are there", || {
        number(&lab, "published_frames") + number(&lab, "kernel_dropped_frames") == sent.on_wire()
    });
    let published = number(&lab, "published_frames");
    let (late, _) = behind(&lab, published);
    let counted = number(&lab, "late_frames");
    println!("{late} of {published} behind a later one, {counted} counted");
    assert!(late > 0 && counted > 0);
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("c.pcapng");
    let path = file.to_str().expect("a plain name");
    let count = published.to_string();
    lab.ctl(&[
        "capture", "all", "-w", path, "--from", "oldest", "-c", &count,
    ]);
    let told = reordered(path);
    assert!(told > 0, "reordercap finds {told}");
    let audit = lab.fluxctl.run(&["audit"]).stdout;
    assert!(audit.contains("behind later ones"), "{audit}");
}

/// A conversation of which each direction comes by a tap of its own, as tcpprep and tcpreplay tell them apart.
#[test]
fn a_conversation_divided_by_direction_is_put_together_again() {
    need_root!();
    let (dir, outside) = (tempfile::tempdir().expect("a folder"), Netns::new());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (file, cache) = (path("conversation.pcap"), path("directions"));
    for (pps, count) in [(1_000, 600), (10_000, 5_000), (50_000, 25_000)] {
        conversation(&file, count);
        let args = ["--cidr=192.0.2.0/24", "-i", &file, "-o", &cache];
        assert_runs(Command::new("tcpprep").args(args));
        let lab = Lab::new(1, 0);
        for (here, there) in [("one", "client"), ("two", "server")] {
            Veth::pair((&lab.host, here), (&outside, there), 1500);
        }
        lab.ctl(&["ring", "create", "all", "--size", "64m"]);
        lab.ctl(&["rx", "add", "one,two", "all", "--name", "c"]);
        lab.wait_running();
        let rate = format!("--pps={pps}");
        // On one CPU: frames that wait at two reach the taps as these get to them.
        let args = [
            "-c",
            "0",
            "tcpreplay",
            "-q",
            "-K",
            &rate,
            "-i",
            "client",
            "-I",
            "server",
        ];
        assert_runs(
            outside
                .command("taskset")
                .args(args)
                .args(["-c", &cache, &file]),
        );
        let sent = Sent {
            frames: count,
            elapsed: Duration::from_secs(count) / pps,
            ..Sent::default()
        };
        assert_order(&lab, &sent, "a conversation");
        let out = path("c.pcapng");
        let count = count.to_string();
        lab.ctl(&[
            "capture", "all", "-w", &out, "--from", "oldest", "-c", &count,
        ]);
        assert_eq!(reordered(&out), 0);
    }
}

/// Frames of TCP between two hosts, numbered.
fn conversation(file: &str, count: u64) {
    let mut writer = PcapWriter::new(File::create(file).expect("a file")).expect("a header");
    let (client, server) = ([192, 0, 2, 1], [198, 51, 100, 1]);
    let headers = Headers {
        udp: Some((1000, 80)),
        ..Headers::default()
    };
    for seq in 0..count {
        let mut frame = headers.frame(100);
        let (from, to) = match seq % 3 {
            0 => (client, server),
            _ => (server, client),
        };
        frame[23] = 6; // TCP
        frame[26..30].copy_from_slice(&from);
        frame[30..34].copy_from_slice(&to);
        let identity = Identity {
            stream: 1,
            seq,
            sent_ns: seq,
        };
        stamp(&mut frame, headers.len(), identity);
        let packet = PcapPacket::new(Duration::from_micros(seq), 100, &frame);
        writer.write_packet(&packet).expect("a packet");
    }
}

fn assert_runs(command: &mut Command) {
    let output = command.output().expect("tcpreplay and its tools");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Frames that reordercap finds out of place.
fn reordered(path: &str) -> u64 {
    let output = Command::new("reordercap")
        .args(["-n", path, "/dev/null"])
        .output();
    let output = output.expect("reordercap, which comes with tshark");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "10000 frames, 2345 out of order"
    let figure = text
        .split([',', ' '])
        .filter_map(|word| word.parse().ok())
        .nth(1);
    figure.unwrap_or_else(|| panic!("reordercap: {output:?}"))
}

/// Frames wait for the interface that says nothing no longer than block and window, with much slack for a machine that is busy.
#[test]
fn a_silent_interface_costs_no_more_than_the_window() {
    need_root!();
    let lab = aggregating(2, &[]);
    lab.ctl(&["tx", "add", "all", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sent = send(&lab, 1, 1_000, 2_000);
    sink.wait_frames(sent.on_wire(), SOON);
    let report = sink.stop();
    let latency = report.stream(1).latency;
    let (p50, p99) = (latency.percentile(0.5), latency.percentile(0.99));
    println!("latency at 1,000/s beside a silent interface: p50 {p50:?} p99 {p99:?}");
    // Block and window are 3 ms.
    assert!(p50 < Duration::from_millis(8), "{p50:?}");
    report.stream(1).assert_sound();
}
