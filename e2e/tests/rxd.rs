//! Capture: tags, directions, giants, and interfaces that come and go.

use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Daemon, Generator, Lab, LabOptions, Netns, Veth, need_root, wait_until};
use serde_json::Value;
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);

/// A tap, a ring and an output, all in order.
fn tap_to_output(capture: &[&str]) -> Lab {
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "32m"]);
    lab.ctl(&[&["rx", "add", "tap0", "cisco"], capture].concat());
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    lab
}

fn capture(lab: &Lab) -> Value {
    lab.json(&["rx", "show", "cisco-tap0"])["status"].clone()
}

fn wait_reason(lab: &Lab, wanted: &str) {
    wait_until(SOON, wanted, || {
        capture(lab)["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(wanted))
    });
}

#[test]
fn vlan_tags_come_out_byte_for_byte() {
    need_root!();
    let lab = tap_to_output(&[]);
    let cases: Vec<Vec<(u16, u16)>> = vec![
        vec![],
        vec![(0x8100, 0)],      // priority tag
        vec![(0x8100, 0xa00a)], // PCP 5
        vec![(0x8100, 0x1001)], // DEI
        vec![(0x8100, 0xffff)], // all bits
        vec![(0x88a8, 0x0064)],
        vec![(0x88a8, 0xf00a)],
        vec![(0x9100, 0x2005)],
        vec![(0x88a8, 0x0064), (0x8100, 0x6007)],
        vec![(0x8100, 0x0001), (0x8100, 0x0002)],
        vec![(0x9100, 0x0001), (0x9100, 0x0002)],
        vec![(0x88a8, 0x0001), (0x88a8, 0x0002), (0x8100, 0xe003)],
    ];
    let frames: Vec<Vec<u8>> = cases
        .iter()
        .flat_map(|tags| {
            [64, 100, 1514].map(|size| {
                Headers {
                    tags: tags.clone(),
                    ..Headers::default()
                }
                .counted_frame(size)
            })
        })
        .collect();
    let sink = lab.outputs[0].sink_keeping(frames.len() + 10);
    lab.taps[0].send_frames(&frames);
    sink.wait_frames(frames.len() as u64, SOON);
    let kept = sink.stop().kept;
    assert_eq!(kept.len(), frames.len());
    for (sent, got) in frames.iter().zip(&kept) {
        assert_eq!(sent, got);
    }
    lab.audit();
}

#[test]
fn own_outgoing_frames_are_captured_only_when_asked_for() {
    need_root!();
    let lab = Lab::new(1, 0);
    for direction in ["in", "out", "both"] {
        lab.ctl(&["ring", "create", direction, "--size", "4m"]);
        lab.ctl(&["rx", "add", "tap0", direction, "--direction", direction]);
    }
    lab.wait_running();
    lab.taps[0].send(&Generator::new(1).count(300));
    Generator::new(2).count(200).send(&lab.host, "tap0");
    let published =
        |ring: &str| lab.json(&["ring", "show", ring])["status"]["published_frames"].as_u64();
    for (ring, frames) in [("in", 300), ("out", 200), ("both", 500)] {
        wait_until(SOON, ring, || published(ring) == Some(frames));
    }
    let dropped =
        lab.json(&["ring", "show", "out"])["status"]["dropped_frames"]["direction"].as_u64();
    assert_eq!(dropped, Some(300));
    lab.audit();
}

#[test]
fn a_capture_survives_link_down_and_up() {
    need_root!();
    let lab = tap_to_output(&[]);
    let sink = lab.outputs[0].sink();
    let mut sent = 0;
    for round in 1..=3 {
        Veth::down(&lab.host, "tap0");
        wait_reason(&lab, "is down");
        Veth::up(&lab.host, "tap0");
        wait_until(SOON, "the capture runs again", || {
            capture(&lab)["state"] == "running"
        });
        lab.taps[0].send(&Generator::new(round).count(500));
        sent += 500;
        sink.wait_frames(sent, SOON);
    }
    let report = sink.stop();
    (1..=3).for_each(|round| assert_eq!(report.stream(round).received, 500));
    lab.audit();
}

/// The target is 500 ms from the new interface to the first frame.
#[test]
fn a_deleted_interface_is_captured_again_soon_after_it_comes_back() {
    need_root!();
    let lab = tap_to_output(&[]);
    let sink = lab.outputs[0].sink();
    for round in 1..=3_u16 {
        let sending = lab.taps[0].start(&Generator::new(round).rate(5_000).endless());
        sink.wait_frames(sink.frames() + 500, SOON);
        sending.stop();
        lab.taps[0].unplug(&lab.host);
        wait_reason(&lab, "does not exist");
        lab.taps[0].plug(&lab.host);
        let sending = lab.taps[0].start(&Generator::new(100 + round).rate(5_000).endless());
        let seen = sink.frames();
        let resumed = wait_until(SOON, "frames again", || sink.frames() > seen);
        println!("capture resumed {resumed:?} after the interface came back");
        assert!(resumed < Duration::from_millis(500), "{resumed:?}");
        sending.stop();
    }
    sink.wait_quiet(QUIET);
    sink.stop()
        .streams
        .values()
        .for_each(fluxcap_e2e::StreamReport::assert_sound);
    assert_eq!(capture(&lab)["interfaces"][0]["attached"], 4);
    lab.audit();
}

#[test]
fn a_capture_follows_a_rename_and_waits_for_a_moved_interface() {
    need_root!();
    let lab = tap_to_output(&[]);
    let sink = lab.outputs[0].sink();
    Veth::rename(&lab.host, "tap0", "tap9");
    wait_until(SOON, "the name is followed", || {
        capture(&lab)["interfaces"][0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("tap9"))
    });
    wait_until(SOON, "still running", || {
        capture(&lab)["state"] == "running"
    });
    lab.taps[0].send(&Generator::new(1).count(300));
    sink.wait_frames(300, SOON);
    Veth::rename(&lab.host, "tap9", "tap0");
    let elsewhere = Netns::new();
    Veth::move_to(&lab.host, "tap0", &elsewhere);
    wait_reason(&lab, "does not exist");
    Veth::move_to(&elsewhere, "tap0", &lab.host);
    Veth::up(&lab.host, "tap0");
    wait_until(SOON, "the capture runs again", || {
        capture(&lab)["state"] == "running"
    });
    lab.taps[0].send(&Generator::new(2).count(300));
    sink.wait_frames(600, SOON);
    lab.audit();
}

#[test]
fn what_the_kernel_drops_is_counted_exactly_and_put_into_the_ring() {
    need_root!();
    let lab = tap_to_output(&["--buffer", "512K", "--block-size", "128K"]);
    let sink = lab.outputs[0].sink();
    lab.rxd.pause();
    let sent = lab.taps[0].send(&Generator::new(1).size(1000).rate(50_000).count(5_000));
    lab.rxd.resume();
    sink.wait_quiet(QUIET);
    let dropped = || capture(&lab)["kernel_dropped_frames"].as_u64().unwrap_or(0);
    wait_until(SOON, "the drops are counted", || dropped() > 0);
    // One more frame after the drops were read: LOSS stands before it.
    lab.taps[0].send(&Generator::new(2).count(1));
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(1).assert_sound();
    assert!(dropped() > 1_000, "{}", dropped());
    assert_eq!(report.stream(1).received + dropped(), sent.on_wire());
    let ring = &lab.json(&["ring", "show", "cisco"])["status"];
    assert_eq!(ring["kernel_dropped_frames"].as_u64(), Some(dropped()));
    let file = lab.dirs.run().join("loss.pcapng");
    let path = file.to_str().expect("text");
    lab.ctl(&[
        "capture",
        "cisco",
        "-w",
        path,
        "--from",
        "oldest",
        "-c",
        &(report.stream(1).received + 1).to_string(),
    ]);
    let told = drop_counts(&file);
    assert_eq!(
        told,
        dropped(),
        "frames told as lost inside of the capture file"
    );
    lab.audit();
}

/// Sum of the drop counts that stand at the frames of a pcapng file.
fn drop_counts(file: &std::path::Path) -> u64 {
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::{Block, PcapNgReader};
    let mut reader = PcapNgReader::new(std::fs::File::open(file).expect("open")).expect("pcapng");
    let mut sum = 0;
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("sound block") {
            sum += packet
                .options
                .iter()
                .map(|option| match option {
                    EnhancedPacketOption::DropCount(n) => *n,
                    _ => 0,
                })
                .sum::<u64>();
        }
    }
    sum
}

#[test]
fn giants_are_captured_whole_and_counted_at_an_output_that_is_too_small() {
    need_root!();
    let lab = Lab::new(1, 2);
    for (netns, name) in [
        (&lab.host, "tap0"),
        (&lab.taps[0].outside, "wire"),
        (&lab.host, "out1"),
        (&lab.outputs[1].outside, "wire"),
    ] {
        Veth::set_mtu(netns, name, 65_535);
    }
    lab.ctl(&["ring", "create", "big", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "big"]);
    lab.ctl(&["tx", "add", "big", "out0"]);
    lab.ctl(&[
        "tx",
        "add",
        "big",
        "out0",
        "--name",
        "cut",
        "--oversize",
        "truncate",
    ]);
    lab.ctl(&["tx", "add", "big", "out1"]);
    lab.wait_running();
    let sinks: Vec<_> = lab
        .outputs
        .iter()
        .map(|output| output.sink_keeping(100))
        .collect();
    lab.taps[0].send(&Generator::new(1).size(65_000).rate(500).count(50));
    lab.taps[0].send(&Generator::new(2).size(1_514).rate(500).count(10));
    let mut reports = sinks.into_iter().map(|sink| {
        sink.wait_quiet(QUIET);
        sink.stop()
    });
    let (small, large) = (reports.next().expect("out0"), reports.next().expect("out1"));
    assert_eq!(
        (large.stream(1).received, large.stream(2).received),
        (50, 10)
    );
    assert_eq!(
        small
            .kept
            .iter()
            .filter(|frame| frame.len() == 1514)
            .count(),
        50 + 2 * 10
    );
    assert_eq!(
        lab.json(&["tx", "show", "big-out0"])["status"]["dropped_frames"]["oversize"],
        50
    );
    assert_eq!(
        lab.json(&["tx", "show", "cut"])["status"]["truncated_frames"],
        50
    );
    lab.audit();
}

#[test]
fn a_filter_changes_without_losing_a_frame_that_both_want() {
    need_root!();
    let lab = tap_to_output(&["--filter", "udp"]);
    let sink = lab.outputs[0].sink();
    let headers = Headers {
        udp: Some((1000, 2000)),
        tags: vec![(0x8100, 5)],
        ..Headers::default()
    };
    let sending = lab.taps[0].start(
        &Generator::new(1)
            .size(100)
            .headers(headers)
            .rate(20_000)
            .count(60_000),
    );
    for round in 0.. {
        if sending.frames() >= 55_000 {
            break;
        }
        let filter = ["udp port 2000", "udp", "ip", "vlan 5 and udp"][round % 4];
        lab.ctl(&["rx", "set", "cisco-tap0", "--filter", filter]);
    }
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    lab.ctl(&["rx", "set", "cisco-tap0", "--filter", "tcp"]);
    lab.taps[0].send(&Generator::new(2).count(100));
    lab.audit();
}

#[test]
fn the_loopback_interface_gives_each_frame_once() {
    need_root!();
    let lab = Lab::new(1, 0);
    lab.host.ip(&["link", "set", "lo", "up"]);
    for (ring, options) in [("one", ""), ("many", " --threads 2")] {
        lab.ctl(&["ring", "create", ring, "--size", "4m"]);
        let add = format!("rx add lo {ring} --direction both --name {ring}{options}");
        lab.ctl(&add.split(' ').collect::<Vec<_>>());
    }
    lab.wait_running();
    let receiver = lab
        .host
        .run(|| std::net::UdpSocket::bind("127.0.0.1:0").expect("bind"));
    let sender = lab
        .host
        .run(|| std::net::UdpSocket::bind("127.0.0.1:0").expect("bind"));
    let to = receiver.local_addr().expect("address");
    for number in 0..50_u8 {
        sender.send_to(&[number; 64], to).expect("send");
        receiver.recv_from(&mut [0; 64]).expect("receive");
    }
    for ring in ["one", "many"] {
        let published = || {
            lab.json(&["ring", "show", ring])["status"]["published_frames"]
                .as_u64()
                .unwrap_or(0)
        };
        wait_until(SOON, ring, || published() >= 50);
        // The copies that were sent came before, in the same block.
        assert_eq!(published(), 50, "{ring}");
    }
    lab.audit();
}

/// With the capabilities of the unit.
#[test]
fn what_the_filter_refuses_in_the_kernel_is_counted_frame_by_frame() {
    need_root!();
    let lab = Lab::with(&LabOptions {
        outputs: 0,
        without: &["bpf", "sys_admin", "net_admin", "perfmon"],
        ..LabOptions::default()
    });
    let udp = Headers {
        udp: Some((1000, 2000)),
        ..Headers::default()
    };
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    for (ring, options, wanted) in [
        ("in", "--direction in", 300),
        ("out", "--direction out", 200),
        ("both", "--direction both", 500),
        ("many", "--direction both --threads 3", 500),
        ("exact", "--direction both --filter-vlan exact", 500),
    ] {
        lab.ctl(&["ring", "create", ring, "--size", "4m"]);
        let add = format!("rx add tap0 {ring} --name {ring} {options}");
        let filter = ["--filter", "udp dst port 2000"];
        lab.ctl(&[&add.split(' ').collect::<Vec<_>>()[..], &filter].concat());
        lab.wait_running();
        // 1,000 frames that the filter refuses and those that it wants, both ways.
        let refused = Generator::new(1).count(1_000);
        lab.taps[0].send(&refused);
        lab.taps[0].send(&Generator::new(2).headers(udp.clone()).size(80).count(300));
        refused.send(&lab.host, "tap0");
        Generator::new(3)
            .headers(udp.clone())
            .size(80)
            .count(200)
            .send(&lab.host, "tap0");
        let status = || lab.json(&["rx", "show", ring])["status"].clone();
        wait_until(SOON, ring, || {
            number(&status()["published_frames"]) == wanted
        });
        // What the kernel itself leaves out is no frame of this capture.
        let all = if ring == "in" { 1_300 } else { 2_500 };
        wait_until(SOON, ring, || number(&status()["received_frames"]) == all);
        let dropped = status()["dropped_frames"].clone();
        let reasons = ["filtered", "direction"].map(|reason| number(&dropped[reason]));
        let expected = match ring {
            "in" => [1_000, 0],
            "out" => [1_000, 1_300],
            _ => [2_000, 0],
        };
        assert_eq!(reasons, expected, "{ring}: {dropped}");
        wait_until(SOON, ring, || {
            number(&status()["interfaces"][0]["kernel_frames"]) == all
        });
        lab.audit();
        lab.ctl(&["rx", "delete", ring]);
    }
}

#[test]
fn captures_come_back_after_a_restart_and_a_kill() {
    need_root!();
    let mut lab = tap_to_output(&[]);
    let sink = lab.outputs[0].sink();
    let (status, took) = lab.rxd.stop();
    assert!(
        status.success() && took < Duration::from_secs(2),
        "{status} after {took:?}"
    );
    lab.rxd.restart();
    lab.wait_running();
    lab.taps[0].send(&Generator::new(1).count(300));
    sink.wait_frames(300, SOON);
    let sending = lab.taps[0].start(&Generator::new(2).rate(20_000).count(60_000));
    sink.wait_frames(10_000, SOON);
    lab.rxd.kill();
    let killed = sending.frames();
    lab.rxd.restart();
    lab.wait_running();
    println!(
        "rxd killed at frame {killed}, capturing again at frame {}",
        sending.frames()
    );
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(2).assert_sound();
    let missing = report.stream(2).missing(&sent);
    let ring = lab.json(&["ring", "show", "cisco"])["status"].clone();
    let source = &ring["sources"][0];
    println!(
        "missing {missing}, longest silence {:?}; counted: {source}",
        report.stream(2).longest_silence
    );
    assert!(missing > 0 && missing < 40_000);
    assert_eq!(source["uncertain"], 1);
    // What had been read out of the kernel's block and not published yet died with rxd: up to a whole block under load.
    let killed = ring["dropped_frames"]["killed"].as_u64().unwrap_or(0);
    let counted = source["missed_frames"].as_u64().expect("number") + killed;
    assert!(
        counted.abs_diff(missing) <= missing / 20 + 64,
        "{counted} counted, {killed} of them killed, {missing} missing"
    );
    lab.audit();
}

#[test]
fn a_capture_on_the_command_line_needs_no_client() {
    need_root!();
    let mut lab = Lab::new(1, 1);
    lab.rxd.kill();
    lab.txd.kill();
    lab.ringd.kill();
    let _ringd = Daemon::start(
        "ringd",
        &lab.host,
        &lab.dirs,
        &["--create", "cisco:8m", "--create", "dell:8m"],
    );
    let mut rxd = Daemon::start(
        "rxd",
        &lab.host,
        &lab.dirs,
        &["--capture", "tap0:cisco", "--snaplen", "100", "--ephemeral"],
    );
    let _txd = Daemon::start(
        "txd",
        &lab.host,
        &lab.dirs,
        &["--transmit", "cisco:out0", "--ephemeral"],
    );
    lab.wait_running();
    let sink = lab.outputs[0].sink_keeping(100);
    lab.taps[0].send(&Generator::new(1).size(400).count(100));
    sink.wait_frames(100, SOON);
    assert!(sink.stop().kept.iter().all(|frame| frame.len() == 100));
    assert!(rxd.stop().0.success());
}

/// CPU time that a process has used (user and system), in clock ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    [11, 12]
        .iter()
        .map(|at| fields[*at].parse::<u64>().expect("number"))
        .sum()
}

#[test]
fn waiting_costs_next_to_nothing() {
    need_root!();
    let lab = Lab::new(2, 0);
    lab.ctl(&["rx", "add", "tap0", "missing"]);
    lab.ctl(&["ring", "create", "cisco", "--size", "4m"]);
    lab.ctl(&["rx", "add", "tap1,nothing", "cisco"]);
    // News of links that nobody reads, and a socket with a pending error, must not keep poll from sleeping.
    for _ in 0..5 {
        Veth::down(&lab.host, "tap0");
        Veth::up(&lab.host, "tap0");
        Veth::down(&lab.host, "tap1");
    }
    let (pid, begun) = (lab.rxd.pid(), std::time::Instant::now());
    let before = ticks(pid);
    wait_until(SOON, "two seconds", || {
        begun.elapsed() > Duration::from_secs(2)
    });
    let used = ticks(pid) - before;
    println!("{used} ticks of 10 ms in 2 s");
    assert!(used < 20, "{used} ticks of 10 ms in 2 s");
}
