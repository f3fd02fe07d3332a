//! Overlays of mirrors: what the relay program sends, this kernel's own tunnel devices take apart; and whatever becomes of the way to the
//! collector, production traffic comes to no harm and every copy is counted.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use fluxcap_e2e::mirror::{COLLECTOR, MirrorLab, OURS, assert_closes, to_collector, to_device};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{
    Generator, Netns, Sink, SinkOptions, Veth, checksum_is_right, need_root, send_frames,
};
use fluxcap_proto::v1::{
    Direction, MirrorDevice, MirrorSpec, MirrorStatus, MtuPolicy, State, TunnelKind,
};

const SOON: Duration = Duration::from_secs(5);
fn lab() -> MirrorLab {
    let lab = MirrorLab::new();
    lab.add_collector();
    lab
}

fn dropped(status: &MirrorStatus, reason: &str) -> u64 {
    status.dropped_frames.get(reason).copied().unwrap_or(0)
}

/// Sends production traffic, all of which arrives, and returns how many frames.
fn produce(lab: &MirrorLab, count: u64) -> u64 {
    lab.produce(&Generator::new(1).rate(20_000).count(count))
        .frames
}

fn collect(lab: &MirrorLab, device: &str) -> Sink {
    let options = SinkOptions {
        keep: usize::MAX,
        buffer_bytes: 32 << 20,
    };
    Sink::with(&lab.monitor, device, options)
}

#[test]
fn a_vxlan_device_of_this_kernel_gets_every_frame_as_it_was() {
    need_root!();
    let lab = lab();
    for (remote, device) in COLLECTOR.iter().zip(["vx4", "vx6"]) {
        lab.mirror("m", to_collector(remote));
        for tags in [vec![], vec![(0x8100, 7)], vec![(0x88a8, 9), (0x8100, 4094)]] {
            // With one tag not IP, else UDP.
            let headers = Headers {
                tags: tags.clone(),
                udp: (tags.len() != 1).then_some((1000, 2000)),
                ..Headers::default()
            };
            let before = lab.status("m");
            let sink = collect(&lab, device);
            let sent = lab.produce(
                &Generator::new(1)
                    .size(200)
                    .rate(20_000)
                    .count(2_000)
                    .headers(headers),
            );
            sink.wait_frames(sent.frames, SOON);
            let report = sink.stop();
            report.assert_exactly(1, &sent);
            assert_eq!(report.tags.keys().collect::<Vec<_>>(), [&tags], "{device}");
            let status = lab.status("m");
            assert_closes(&status);
            assert_eq!(status.mirrored_frames - before.mirrored_frames, sent.frames);
            assert_eq!(
                status.outputs[0].frames, status.mirrored_frames,
                "{status:#?}"
            );
        }
        lab.delete("m");
        assert_eq!(lab.bpffs.names(""), ["tunnels"]);
        assert!(
            !lab.host.ip(&["link"]).contains("fxm"),
            "the helper is gone"
        );
    }
}

#[test]
fn frames_of_other_protocols_are_carried_too() {
    need_root!();
    let lab = lab();
    let mut frames = Vec::new();
    for (ether_type, length) in [
        (0x0806_u16, 60),
        (0x88cc, 200),
        (0x88b5, 1400),
        (0x0026, 60),
    ] {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(ether_type.to_be_bytes());
        frame.resize(length, 0x42);
        frames.push(frame);
    }
    for (remote, device) in COLLECTOR.iter().zip(["vx4", "vx6"]) {
        lab.mirror("m", to_collector(remote));
        let sink = collect(&lab, device);
        send_frames(&lab.left, "wire", &frames);
        sink.wait_frames(frames.len() as u64, SOON);
        assert!(sink.stop().kept == frames, "{device}");
        lab.delete("m");
    }
}

/// Whatever the direction, and whatever becomes of the way to the collector.
#[test]
fn production_is_safe_when_the_way_to_the_collector_is_congested_or_down() {
    need_root!();
    let lab = lab();
    let tbf = ["rate", "8kbit", "burst", "1600", "limit", "1600"];
    for (direction, interface) in [(Direction::In, "eth0"), (Direction::Out, "eth1")] {
        for remote in COLLECTOR {
            let spec = MirrorSpec {
                interface: interface.to_owned(),
                direction: direction.into(),
                ..to_collector(remote)
            };
            lab.mirror("m", spec);
            let add = ["qdisc", "add", "dev", "mon0", "root", "tbf"];
            lab.tc(&[&add[..], &tbf].concat());
            produce(&lab, 10_000);
            lab.tc(&["qdisc", "del", "dev", "mon0", "root"]);
            let congested = lab.status("m");
            assert_closes(&congested);
            println!(
                "{interface} to {remote}: {} of {} copies handed over, {:?}",
                congested.mirrored_frames, congested.seen_frames, congested.dropped_frames
            );
            // The bridge sends frames of its own, too.
            assert!(congested.seen_frames >= 10_000, "{congested:#?}");
            // Noticed by nobody but the kernel, and then by mirrord.
            Veth::down(&lab.host, "mon0");
            produce(&lab, 10_000);
            let down = lab.status("m");
            assert_closes(&down);
            assert!(down.seen_frames >= 20_000, "{down:#?}");
            Veth::up(&lab.host, "mon0");
            // An address of IPv6 goes with the link.
            lab.host
                .ip(&["addr", "replace", OURS[1], "dev", "mon0", "nodad"]);
            lab.wait_state("m", State::Running);
            lab.delete("m");
        }
    }
}

#[test]
fn without_a_way_copies_are_counted_and_production_passes() {
    need_root!();
    let lab = lab();
    lab.mirror("m", to_collector(COLLECTOR[0]));
    let mut lost = 0;
    for round in 0..2 {
        Veth::down(&lab.host, "mon0");
        // With the link its route is gone, or is of no use.
        lab.wait_status("m", "the link is down", |s| {
            s.reason.contains("no route") || s.reason.contains("mon0 is down")
        });
        lost += produce(&lab, 10_000);
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(dropped(&status, "no_route"), lost, "{status:#?}");
        if round == 0 {
            Veth::up(&lab.host, "mon0");
        } else {
            Veth::delete(&lab.host, "mon0");
            let status =
                lab.wait_status("m", "the link is gone", |s| s.reason.contains("no route"));
            assert_eq!(status.state(), State::Waiting);
            lost += produce(&lab, 10_000);
            Veth::pair((&lab.host, "mon0"), (&lab.monitor, "wire"), 1500);
            lab.host.ip(&["addr", "add", OURS[0], "dev", "mon0"]);
            lab.monitor
                .ip(&["addr", "add", "192.0.2.2/24", "dev", "wire"]);
        }
        lab.wait_state("m", State::Running);
        let sink = collect(&lab, "vx4");
        let sent = lab.produce(&Generator::new(1).rate(20_000).count(1_000));
        sink.wait_frames(sent.frames, SOON);
        sink.stop().assert_exactly(1, &sent);
    }
    assert_closes(&lab.status("m"));
}

#[test]
fn a_next_host_that_does_not_answer_costs_production_nothing() {
    need_root!();
    let lab = lab();
    lab.mirror("m", to_collector("192.0.2.77"));
    produce(&lab, 100);
    let status = lab.wait_status("m", "nobody answers", |s| {
        s.reason.contains("nobody answers for 192.0.2.77")
    });
    assert_eq!(status.state(), State::Waiting);
    let before = dropped(&status, "unreachable");
    produce(&lab, 10_000);
    let status = lab.status("m");
    assert_closes(&status);
    let asked = 10_000 - (dropped(&status, "unreachable") - before);
    assert!(
        (1..=3).contains(&asked),
        "one copy in a second asks: {asked}"
    );
    // Somebody takes the address, and is found by the frames that ask.
    lab.monitor
        .ip(&["addr", "add", "192.0.2.77/24", "dev", "wire"]);
    let sending = Generator::new(1)
        .rate(1_000)
        .endless()
        .start(&lab.left, "wire");
    lab.wait_state("m", State::Running);
    sending.stop();
}

#[test]
fn frames_beyond_the_mtu_are_cut_or_dropped_as_asked() {
    need_root!();
    let lab = lab();
    for (policy, carried) in [(MtuPolicy::Truncate, true), (MtuPolicy::Drop, false)] {
        let mut spec = to_collector(COLLECTOR[0]);
        spec.overlay.as_mut().expect("an overlay").mtu_policy = policy.into();
        lab.mirror("m", spec);
        let sink = collect(&lab, "vx4");
        let sent = lab.produce(&Generator::new(1).size(1514).rate(20_000).count(1_000));
        if carried {
            sink.wait_frames(sent.frames, SOON);
        }
        let kept = sink.stop().kept;
        let status = lab.status("m");
        assert_closes(&status);
        if carried {
            // 1500 - 20 - 8 - 8
            assert!(
                kept.iter().all(|frame| frame.len() == 1464),
                "{}",
                kept[0].len()
            );
            assert_eq!(status.truncated_frames, sent.frames);
        } else {
            assert!(kept.is_empty());
            assert_eq!(dropped(&status, "oversize"), sent.frames, "{status:#?}");
        }
        lab.delete("m");
    }
}

#[test]
fn copies_to_devices_are_cut_to_the_snap_length() {
    need_root!();
    let lab = lab();
    let more = Netns::new();
    Veth::pair((&lab.host, "mon1"), (&more, "wire"), 1500);
    for snaplen in [60, 128] {
        let mut spec = MirrorSpec {
            snaplen,
            direction: Direction::In.into(),
            ..to_device("eth0", "mon0")
        };
        spec.devices.push(MirrorDevice {
            name: "mon1".to_owned(),
            vlan_push: None,
        });
        lab.mirror("m", spec);
        let sinks = [&lab.monitor, &more].map(|netns| {
            let options = SinkOptions {
                keep: usize::MAX,
                buffer_bytes: 16 << 20,
            };
            Sink::with(netns, "wire", options)
        });
        let sent = lab.produce(&Generator::new(1).size(1000).rate(20_000).count(1_000));
        for sink in sinks {
            sink.wait_frames(sent.frames, SOON);
            let kept = sink.stop().kept;
            let ours = kept.iter().filter(|frame| frame.len() == snaplen as usize);
            assert_eq!(ours.count() as u64, sent.frames, "{}", kept[0].len());
        }
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(status.mirrored_frames, 2 * sent.frames);
        assert_eq!(status.copied_frames, sent.frames);
        assert_eq!(status.truncated_frames, 2 * sent.frames);
        assert_eq!(status.outputs[1].frames, sent.frames);
        lab.delete("m");
    }
}

/// What a copy is known by when its mark was lost on the way: packets to the collector are never copied.
#[test]
fn packets_of_the_own_tunnel_are_not_copied_again() {
    need_root!();
    let lab = lab();
    lab.mirror("m", to_collector(COLLECTOR[0]));
    let to = |address: [u8; 4], port: u16| {
        let mut frame = [
            &[2; 12][..],
            &[8, 0, 0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0],
        ]
        .concat();
        frame.extend([10, 0, 0, 1]);
        frame.extend(address);
        frame.extend([0xc0, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 26, 0, 0]);
        frame.resize(60, 0);
        frame
    };
    let sink = collect(&lab, "vx4");
    let own = to([192, 0, 2, 2], 4789);
    let others = [to([192, 0, 2, 2], 4788), to([192, 0, 2, 3], 4789)];
    let frames = [&[own.clone(), own][..], &others].concat();
    send_frames(&lab.left, "wire", &frames);
    sink.wait_frames(2, SOON);
    assert!(sink.stop().kept == others);
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(dropped(&status, "loop_guard"), 2, "{status:#?}");
}

/// A mirror of the very interface that its overlay leaves by, both ways.
#[test]
fn a_mirror_of_its_own_way_out_makes_one_copy() {
    need_root!();
    let lab = lab();
    let spec = MirrorSpec {
        interface: "mon0".to_owned(),
        direction: Direction::Both.into(),
        ..to_collector(COLLECTOR[0])
    };
    // So that no ARP is copied.
    lab.host
        .command("ping")
        .args(["-c1", "-W2", COLLECTOR[0]])
        .output()
        .expect("ping");
    lab.mirror("m", spec);
    let sink = collect(&lab, "vx4");
    let sent = Generator::new(3).count(500).send(&lab.host, "mon0");
    sink.wait_frames(sent.frames, SOON);
    sink.wait_quiet(Duration::from_millis(100));
    sink.stop().stream(3).assert_complete(&sent);
    let status = lab.status("m");
    assert_closes(&status);
    assert!(dropped(&status, "loop_guard") >= sent.frames, "{status:#?}");
}

#[test]
fn a_mirror_goes_on_without_mirrord_and_is_taken_over() {
    need_root!();
    let mut lab = lab();
    lab.mirror("m", to_collector(COLLECTOR[0]));
    let helper = |lab: &MirrorLab| {
        let links = lab.host.ip(&["-o", "link"]);
        let line = links
            .lines()
            .find(|line| line.contains("fxm"))
            .map(str::to_owned);
        line.expect("a helper")
    };
    let before = helper(&lab);
    let sink = collect(&lab, "vx4");
    let sending = Generator::new(1)
        .rate(5_000)
        .endless()
        .start(&lab.left, "wire");
    for _ in 0..5 {
        lab.mirrord.kill();
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
    }
    let sent = sending.stop();
    sink.wait_frames(sent.frames, SOON);
    sink.stop().assert_exactly(1, &sent);
    assert_eq!(helper(&lab), before);
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(status.mirrored_frames, sent.frames);
}

const BYTES: usize = 4 << 20;

/// TCP of a sender whose offloads are on, in frames far beyond the MTU: packets of sizes that fit arrive, with right checksums.
#[test]
fn giants_of_tcp_arrive_as_packets() {
    need_root!();
    let lab = lab();
    lab.left.ip(&["addr", "add", "10.1.0.1/24", "dev", "wire"]);
    lab.right.ip(&["addr", "add", "10.1.0.2/24", "dev", "wire"]);
    for (netns, name) in [
        (&lab.left, "wire"),
        (&lab.host, "eth0"),
        (&lab.host, "eth1"),
        (&lab.right, "wire"),
    ] {
        Veth::offload(netns, name, true);
    }
    // What leaves here is cut into packets, with all checksums made.
    for name in ["tso", "gso", "tx", "tx-udp_tnl-segmentation"] {
        let arguments = ["-K", "mon0", name, "off"];
        lab.host
            .command("ethtool")
            .args(arguments)
            .output()
            .expect("run ethtool");
    }
    for (mtu, remote, device) in [
        (1500, COLLECTOR[0], "vx4"),
        (1600, COLLECTOR[0], "vx4"),
        (1600, COLLECTOR[1], "vx6"),
    ] {
        Veth::set_mtu(&lab.host, "mon0", mtu);
        Veth::set_mtu(&lab.monitor, "wire", mtu);
        lab.mirror("m", to_collector(remote));
        let sink = collect(&lab, "wire");
        transfer(&lab);
        sink.wait_quiet(Duration::from_millis(300));
        let kept = sink.stop().kept;
        let outer = if device == "vx4" {
            14 + 20 + 16
        } else {
            14 + 40 + 16
        };
        let inner: Vec<&[u8]> = kept
            .iter()
            .filter(|frame| frame.len() > outer && frame[outer - 14..].len() > 40)
            .map(|frame| &frame[outer..])
            .filter(|frame| frame.len() > 54 && frame[12..14] == [8, 0] && frame[23] == 6)
            .collect();
        // Segments that a sender made alone, and that are too long with the outer header, are cut; giants are divided.
        let (inner, cut): (Vec<&[u8]>, Vec<&[u8]>) =
            inner.into_iter().partition(|frame| is_whole(frame));
        let longest = kept.iter().map(Vec::len).max().unwrap_or(0);
        assert!(
            longest <= 14 + mtu as usize,
            "{device}, MTU {mtu}: {longest}"
        );
        let right = |frame: &&&[u8]| checksum_is_right(frame) == Some(true);
        let wrong = inner.len() - inner.iter().filter(right).count();
        let bytes: usize = inner.iter().map(|frame| payload(frame).len()).sum();
        println!(
            "{device}, MTU {mtu}: {} packets, {bytes} bytes, longest {longest}",
            inner.len()
        );
        assert_eq!(wrong, 0, "of {} packets", inner.len());
        assert!(
            inner
                .iter()
                .all(|frame| payload(frame).iter().all(|byte| *byte == 7))
        );
        let lost = cut.len() * 1448;
        assert!(
            bytes + lost >= BYTES && bytes > BYTES / 2,
            "{device}, MTU {mtu}: {bytes} bytes in {} packets",
            inner.len()
        );
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(status.truncated_frames, cut.len() as u64, "{status:#?}");
        assert!(mtu == 1500 || cut.is_empty());
        lab.delete("m");
    }
}

/// Whether all of an IPv4 packet is there.
fn is_whole(frame: &[u8]) -> bool {
    14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])) <= frame.len()
}

/// What a TCP packet carries.
fn payload(frame: &[u8]) -> &[u8] {
    let header = 14 + usize::from(frame[14] & 15) * 4;
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    &frame[header + usize::from(frame[header + 12] >> 4) * 4..end]
}

/// TCP from the left to the right: all of it arrives.
fn transfer(lab: &MirrorLab) {
    let listen = || TcpListener::bind("10.1.0.2:7000").expect("listen");
    let listener = lab.right.run(listen);
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        let (mut stream, _) = listener.accept().expect("accept");
        stream.read_to_end(&mut received).expect("read");
        received.len()
    });
    lab.left.run(|| {
        let mut stream = TcpStream::connect("10.1.0.2:7000").expect("connect");
        stream.write_all(&vec![7; BYTES]).expect("write");
    });
    assert_eq!(receiver.join().expect("the receiver"), BYTES);
}

/// This kernel has no GUE devices; where it has them, `a tunnel device` is what `ip link` makes.
#[test]
fn a_tunnel_device_that_the_kernel_cannot_make_is_refused_with_the_reason() {
    need_root!();
    let lab = lab();
    let mut spec = to_collector(COLLECTOR[0]);
    let overlay = spec.overlay.as_mut().expect("an overlay");
    (overlay.kind, overlay.id) = (TunnelKind::Gue.into(), None);
    "gue0".clone_into(&mut overlay.tunnel_device);
    let Err(refused) = lab.create("m", spec) else {
        // Then it is there, and goes with the mirror.
        lab.wait_state("m", State::Running);
        assert!(lab.host.ip(&["-d", "link", "show", "gue0"]).contains("gue"));
        lab.delete("m");
        assert!(!lab.host.ip(&["link"]).contains("gue0"));
        return;
    };
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("CONFIG_NET_FOU"), "{refused}");
}
