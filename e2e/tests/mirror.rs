//! Mirrors: production traffic comes to no harm, whatever becomes of the copies; and every copy is counted.

use std::time::Duration;

use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_device, to_ring};
use fluxcap_e2e::{Fluxctl, Generator, Netns, RingReader, Veth, need_root, wait_until};
use fluxcap_proto::v1::{Attach, Direction, MirrorRate, MirrorSpec, MirrorStatus, State};

const SOON: Duration = Duration::from_secs(5);

/// The ways to attach, and the directions with the interface that production passes in them.
fn ways() -> Vec<(Attach, Direction, &'static str)> {
    let mut ways = Vec::new();
    for attach in [Attach::Tcx, Attach::Clsact] {
        ways.push((attach, Direction::In, "eth0"));
        ways.push((attach, Direction::Out, "eth1"));
    }
    ways
}

fn spec(of: MirrorSpec, attach: Attach, direction: Direction) -> MirrorSpec {
    MirrorSpec {
        attach: attach.into(),
        direction: direction.into(),
        ..of
    }
}

#[test]
fn copies_reach_a_device_once_each() {
    need_root!();
    let lab = MirrorLab::new();
    for (attach, direction, interface) in ways() {
        lab.mirror("m", spec(to_device(interface, "mon0"), attach, direction));
        let copies = lab.copies();
        let sent = lab.produce(&Generator::new(1).count(2_000));
        copies.wait_frames(sent.frames, SOON);
        copies.stop().assert_exactly(1, &sent);
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(status.mirrored_frames, sent.frames, "{status:#?}");
        lab.delete("m");
        assert_eq!(lab.bpffs.names(""), ["tunnels"]);
    }
}

#[test]
fn copies_reach_a_ring_once_each() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "web", "--size", "16m"]);
    for (attach, direction, interface) in ways() {
        lab.mirror("m", spec(to_ring(interface, "web"), attach, direction));
        let before = fluxcap_e2e::published(&lab.dirs, "web");
        let sent = lab.produce(&Generator::new(1).count(2_000));
        let status = lab.wait_status("m", "all frames are in the ring", |status| {
            status.published_frames == sent.frames
        });
        assert_closes(&status);
        let after = fluxcap_e2e::published(&lab.dirs, "web");
        assert_eq!(after - before, sent.frames);
        let [output] = &status.outputs[..] else {
            panic!("one output, not {:#?}", status.outputs);
        };
        assert_eq!((output.frames, output.failed_frames), (sent.frames, 0));
        lab.delete("m");
    }
    let mut reader = RingReader::open(&lab.dirs, "web");
    assert_eq!(reader.take(8_000, SOON).len(), 8_000);
}

/// What production traffic is made of.
const PRODUCTION: u64 = 10_000;

fn production() -> Generator {
    Generator::new(1).count(PRODUCTION).rate(20_000)
}

fn dropped(status: &MirrorStatus, reason: &str) -> u64 {
    status.dropped_frames.get(reason).copied().unwrap_or(0)
}

/// A mirror to mon0, which `harm` is done to; production must not notice. Returns what the mirror says in the end.
fn survive(lab: &MirrorLab, spec: MirrorSpec, harm: impl FnOnce(&MirrorLab)) -> MirrorStatus {
    lab.mirror("m", spec);
    harm(lab);
    lab.produce(&production());
    let status = lab.status("m");
    assert_eq!(status.seen_frames, PRODUCTION, "{status:#?}");
    assert_closes(&status);
    lab.delete("m");
    status
}

fn wait_reason(lab: &MirrorLab, wanted: &str) {
    lab.wait_status("m", wanted, |status| status.reason.contains(wanted));
}

#[test]
fn production_is_safe_whatever_becomes_of_the_device() {
    need_root!();
    let lab = MirrorLab::new();
    for (attach, direction, interface) in ways() {
        let spec = || spec(to_device(interface, "mon0"), attach, direction);
        let healthy = survive(&lab, spec(), |_| ());
        assert_eq!(healthy.mirrored_frames, PRODUCTION);

        let tbf = ["qdisc", "add", "dev", "mon0", "root", "tbf"];
        let tbf = [
            &tbf[..],
            &["rate", "8kbit", "burst", "1600", "limit", "1600"],
        ]
        .concat();
        let congested = survive(&lab, spec(), |lab| lab.tc(&tbf));
        lab.tc(&["qdisc", "del", "dev", "mon0", "root"]);
        assert!(dropped(&congested, "congested") > PRODUCTION * 9 / 10);

        // Noticed by nobody but the kernel, and by mirrord.
        let falling = survive(&lab, spec(), |lab| Veth::down(&lab.host, "mon0"));
        Veth::up(&lab.host, "mon0");
        assert_eq!(falling.mirrored_frames, 0, "{falling:#?}");
        let down = survive(&lab, spec(), |lab| {
            Veth::down(&lab.host, "mon0");
            wait_reason(lab, "mon0 is down");
        });
        assert_eq!(dropped(&down, "link_down"), PRODUCTION);
        Veth::up(&lab.host, "mon0");

        let deleted = survive(&lab, spec(), |lab| Veth::delete(&lab.host, "mon0"));
        Veth::pair((&lab.host, "mon0"), (&lab.monitor, "wire"), 1500);
        assert_eq!(dropped(&deleted, "no_interface"), PRODUCTION);
    }
}

#[test]
fn production_is_safe_whatever_becomes_of_the_ring() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    for (attach, direction, interface) in ways() {
        ctl.run(&["ring", "create", "web", "--size", "16m"]);
        let spec = || MirrorSpec {
            buffer_bytes: 128 << 10,
            ..spec(to_ring(interface, "web"), attach, direction)
        };
        // The reader of the buffer stands still: it fills up.
        lab.mirror("m", spec());
        lab.mirrord.pause();
        lab.produce(&production());
        lab.mirrord.resume();
        let full = lab.wait_status("m", "the buffer is read", |status| {
            status.published_frames == status.mirrored_frames
        });
        assert_closes(&full);
        assert!(dropped(&full, "buffer_full") > PRODUCTION / 2, "{full:#?}");
        assert_eq!(full.outputs[0].failed_frames, dropped(&full, "buffer_full"));
        let lost = || {
            let ring = ctl.json(&["ring", "show", "web"]);
            ring["status"]["sources"][0]["kernel_dropped_frames"].as_u64()
        };
        let wanted = dropped(&full, "buffer_full");
        wait_until(SOON, "the loss is in the ring", || lost() == Some(wanted));
        lab.delete("m");

        let deleted = survive(&lab, spec(), |lab| {
            ctl.run(&["ring", "delete", "--force", "web"]);
            wait_reason(lab, "ring web does not exist");
        });
        assert_eq!(dropped(&deleted, "ring_absent"), PRODUCTION);
        assert_eq!(deleted.outputs[0].failed_frames, PRODUCTION);
    }
}

#[test]
fn a_ring_that_comes_late_or_is_replaced_is_followed() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    lab.create("m", to_ring("eth0", "web"))
        .expect("it waits for the ring");
    wait_reason(&lab, "fluxctl ring create web");
    ctl.run(&["ring", "create", "web", "--size", "8m"]);
    lab.wait_state("m", State::Running);
    for round in 1..=3 {
        lab.produce(&Generator::new(1).count(1_000));
        lab.wait_status("m", "all frames are in the ring", |status| {
            status.published_frames == round * 1_000
        });
        ctl.run(&[
            "ring",
            "resize",
            "web",
            "--size",
            &format!("{}m", 8 + round),
        ]);
    }
}

/// Two wires within the host: p0 to p1, and q0 to q1.
fn cross_wired(lab: &MirrorLab) {
    for (a, b) in [("p0", "p1"), ("q0", "q1")] {
        Veth::pair((&lab.host, a), (&lab.host, b), 1500);
    }
}

#[test]
fn mirrors_that_face_each_other_make_one_copy() {
    need_root!();
    let lab = MirrorLab::new();
    cross_wired(&lab);
    for attach in [Attach::Tcx, Attach::Clsact] {
        for (direction, there, back) in [
            (Direction::In, ("p1", "q0"), ("q1", "p0")),
            (Direction::Out, ("p0", "q0"), ("q0", "p0")),
        ] {
            lab.mirror(
                "there",
                spec(to_device(there.0, there.1), attach, direction),
            );
            lab.mirror("back", spec(to_device(back.0, back.1), attach, direction));
            Generator::new(1).count(100).send(&lab.host, "p0");
            let there = lab.wait_status("there", "100 frames", |s| s.seen_frames >= 100);
            let back = lab.wait_status("back", "100 copies", |s| s.seen_frames >= 100);
            assert_eq!((there.seen_frames, there.mirrored_frames), (100, 100));
            assert_eq!(dropped(&back, "loop_guard"), 100);
            assert_eq!((back.seen_frames, back.mirrored_frames), (100, 0));
            assert_closes(&there);
            assert_closes(&back);
            lab.delete("there");
            lab.delete("back");
        }
    }
}

#[test]
fn a_target_whose_way_leads_back_gets_one_copy() {
    need_root!();
    let lab = MirrorLab::new();
    cross_wired(&lab);
    // What leaves by p0 comes in at p1, which is mirrored.
    lab.mirror("m", to_device("p1", "p0"));
    Generator::new(1).count(100).send(&lab.host, "p0");
    let status = lab.wait_status("m", "frames and copies", |s| s.seen_frames >= 200);
    assert_eq!((status.seen_frames, status.mirrored_frames), (200, 100));
    assert_eq!(dropped(&status, "loop_guard"), 100);
    assert_closes(&status);
    lab.delete("m");
    // Through the bridge, which sends copies to everybody but where they came from.
    Veth::pair((&lab.host, "b0"), (&lab.host, "b1"), 1500);
    lab.host.ip(&["link", "set", "b1", "master", "br0"]);
    lab.mirror(
        "m",
        spec(to_device("eth1", "b0"), Attach::Tcx, Direction::Out),
    );
    Generator::new(1).count(100).send(&lab.left, "wire");
    let status = lab.wait_status("m", "frames and copies", |s| s.seen_frames >= 200);
    assert_eq!((status.seen_frames, status.mirrored_frames), (200, 100));
    assert_closes(&status);
}

#[test]
fn a_loop_through_other_namespaces_is_bounded_by_the_rate() {
    need_root!();
    let lab = MirrorLab::new();
    // The mark is lost on the way: mon0 - monitor - left - eth0.
    Veth::pair((&lab.monitor, "cable"), (&lab.left, "cable"), 1500);
    for netns in [&lab.monitor, &lab.left] {
        join(netns, &["wire", "cable"]);
    }
    let rate = MirrorRate {
        frames_per_second: 100,
        burst_ms: 100,
        ..MirrorRate::default()
    };
    let spec = MirrorSpec {
        rate: Some(rate),
        ..spec(to_device("eth0", "mon0"), Attach::Tcx, Direction::In)
    };
    lab.mirror("m", spec);
    let begun = std::time::Instant::now();
    Generator::new(1).count(1).send(&lab.left, "wire");
    let status = lab.wait_status("m", "the bucket is empty", |s| s.rate_limited_frames > 0);
    // The burst, and what has trickled in since.
    let most = 11 + u64::try_from(begun.elapsed().as_millis()).unwrap_or(0) / 10;
    assert!((2..=most).contains(&status.mirrored_frames), "{status:#?}");
    assert_closes(&status);
}

/// A bridge of all these interfaces.
fn join(netns: &Netns, interfaces: &[&str]) {
    netns.ip(&[
        "link",
        "add",
        "loop",
        "type",
        "bridge",
        "mcast_snooping",
        "0",
    ]);
    for interface in interfaces {
        netns.ip(&["link", "set", interface, "master", "loop"]);
    }
    netns.ip(&["link", "set", "loop", "up"]);
}

#[test]
fn an_interface_is_no_target_of_itself_by_whatever_name() {
    need_root!();
    let lab = MirrorLab::new();
    lab.host.ip(&[
        "link", "property", "add", "dev", "eth0", "altname", "uplink",
    ]);
    for name in ["eth0", "uplink"] {
        let refused = lab.create("m", to_device("eth0", name));
        let text = refused.expect_err("it is refused").message().to_owned();
        assert!(text.contains(name), "{text}");
    }
    assert!(lab.try_status("m").is_none());
}
