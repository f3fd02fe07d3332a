//! Mirrors when daemons are killed, interfaces come and go, and others meddle.

use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_device, to_ring};
use fluxcap_e2e::{Fluxctl, Generator, Sink, Veth, need_root, wait_until};
use fluxcap_proto::v1::{
    Attach, Direction, Hook, MirrorDevice, MirrorFuse, MirrorRate, MirrorRule, MirrorSpec,
    MirrorStatus, PortRange, Sample, SampleMode, State,
};
use fluxcap_socket::{BpfLink, TcHook, TrafficControl};

const SOON: Duration = Duration::from_secs(5);

fn spec(of: MirrorSpec, attach: Attach, direction: Direction) -> MirrorSpec {
    MirrorSpec {
        attach: attach.into(),
        direction: direction.into(),
        ..of
    }
}

/// Programs at an interface: links of TCX, and filters of traffic control, by way.
fn programs(lab: &MirrorLab, interface: &str) -> [usize; 2] {
    lab.host.run(|| {
        let ifindex = fluxcap_socket::LinkWatch::open()
            .and_then(|mut links| links.find(interface))
            .expect("ask for an interface")
            .expect("it is there")
            .index;
        let mut tc = TrafficControl::open().expect("a socket");
        let mut count = |attach, hook| {
            let links = SchedClassifier::query_tcx(interface, attach).map_or(0, |(_, p)| p.len());
            links + tc.filters(ifindex, hook).expect("filters").len()
        };
        [
            count(TcAttachType::Ingress, TcHook::Ingress),
            count(TcAttachType::Egress, TcHook::Egress),
        ]
    })
}

#[test]
fn fifty_kills_lose_no_production_and_double_no_copy() {
    need_root!();
    for (attach, direction, interface) in [
        (Attach::Tcx, Direction::In, "eth0"),
        (Attach::Clsact, Direction::Out, "eth1"),
    ] {
        let mut lab = MirrorLab::new();
        lab.mirror("m", spec(to_device(interface, "mon0"), attach, direction));
        let (production, copies) = (Sink::start(&lab.right, "wire"), lab.copies());
        let traffic = Generator::new(1)
            .rate(5_000)
            .endless()
            .start(&lab.left, "wire");
        for round in 0..25_u64 {
            // At any moment of its start, and later.
            lab.mirrord.relaunch();
            let moment = Instant::now() + Duration::from_millis(round * 37 % 120);
            wait_until(SOON, "the moment comes", || Instant::now() >= moment);
            if round % 5 == 4 {
                lab.mirrord.restart();
                lab.wait_state("m", State::Running);
                let wanted = if direction == Direction::In {
                    [1, 0]
                } else {
                    [0, 1]
                };
                assert_eq!(programs(&lab, interface), wanted);
            }
        }
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        let sent = traffic.stop();
        let status = lab.assert_all_copied("m", production, copies, &sent);
        assert_eq!(status.attachments[0].reattached, 0);
    }
}

#[test]
fn kills_of_a_mirror_into_a_ring_double_nothing_and_count_what_was_in_flight() {
    need_root!();
    let mut lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "web", "--size", "64m"]);
    lab.mirror(
        "m",
        spec(to_ring("eth0", "web"), Attach::Tcx, Direction::In),
    );
    let production = Sink::start(&lab.right, "wire");
    let traffic = Generator::new(1)
        .rate(5_000)
        .endless()
        .start(&lab.left, "wire");
    for round in 0..10_u64 {
        lab.mirrord.restart();
        let moment = Instant::now() + Duration::from_millis(round * 37 % 120);
        wait_until(SOON, "the moment comes", || Instant::now() >= moment);
    }
    lab.wait_state("m", State::Running);
    let sent = traffic.stop();
    production.wait_frames(sent.frames, SOON);
    production.stop().assert_exactly(1, &sent);
    let status = lab.wait_status("m", "everything is in the ring", |status| {
        status.published_frames == status.mirrored_frames
    });
    assert_eq!(status.seen_frames, sent.frames);
    assert_closes(&status);
    let published = fluxcap_e2e::published(&lab.dirs, "web");
    let killed = status.dropped_frames.get("killed").copied().unwrap_or(0);
    assert!(
        published <= sent.frames && published + killed >= sent.frames,
        "{published} {killed} of {}",
        sent.frames
    );
}

/// Waits until the mirror has been attached again, and checks that it took no longer than two seconds.
#[track_caller]
fn wait_reattached(lab: &MirrorLab, times: u64, since: Instant) -> MirrorStatus {
    let status = lab.wait_status("m", "attached again", |status| {
        status.state() == State::Running && status.attachments.iter().all(|a| a.reattached == times)
    });
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    status
}

#[track_caller]
fn copies_flow(lab: &MirrorLab) {
    let copies = lab.copies();
    let sent = lab.produce(&Generator::new(1).count(500));
    copies.wait_frames(sent.frames, SOON);
    copies.stop().assert_exactly(1, &sent);
}

#[test]
fn an_interface_that_is_made_again_is_mirrored_again() {
    need_root!();
    let lab = MirrorLab::new();
    for attach in [Attach::Tcx, Attach::Clsact] {
        lab.mirror("m", spec(to_device("eth0", "mon0"), attach, Direction::In));
        copies_flow(&lab);
        for times in 1..=3 {
            Veth::delete(&lab.host, "eth0");
            lab.wait_status("m", "it is missed", |s| {
                s.reason.contains("eth0 does not exist")
            });
            let since = Instant::now();
            Veth::pair((&lab.host, "eth0"), (&lab.left, "wire"), 1500);
            lab.host.ip(&["link", "set", "eth0", "master", "br0"]);
            let status = wait_reattached(&lab, times, since);
            assert!(status.attachments[0].gap_ms > 0);
            copies_flow(&lab);
        }
        assert_eq!(programs(&lab, "eth0"), [1, 0]);
        lab.delete("m");
        assert_eq!(programs(&lab, "eth0"), [0, 0]);
    }
}

#[test]
fn a_mirror_that_waits_does_nothing_else() {
    need_root!();
    let lab = MirrorLab::new();
    Veth::delete(&lab.host, "eth0");
    let wanted = spec(to_device("eth0", "mon0"), Attach::Tcx, Direction::Both);
    lab.create("m", wanted).expect("the mirror is made");
    lab.wait_status("m", "it is missed", |s| {
        s.reason.contains("eth0 does not exist")
    });
    // Several looks at whether it has come.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(lab.status("m").state(), State::Waiting);
    }
    let log = lab.mirrord.log();
    let changes: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("mirror") && line.contains("from="))
        .collect();
    assert!(changes.iter().any(|line| line.contains("waiting")), "{log}");
    assert!(
        !changes.iter().any(|line| line.contains("running")),
        "{changes:#?}"
    );
}

#[test]
fn a_link_that_somebody_detaches_is_attached_again() {
    need_root!();
    let lab = MirrorLab::new();
    lab.mirror(
        "m",
        spec(to_device("eth0", "mon0"), Attach::Tcx, Direction::Both),
    );
    copies_flow(&lab);
    for times in 1..=3 {
        let since = Instant::now();
        for pin in ["ingress", "egress"] {
            let link = BpfLink::open(&lab.bpffs.path().join("m").join(pin)).expect("the link");
            link.detach().expect("detach it");
        }
        wait_reattached(&lab, times, since);
        copies_flow(&lab);
    }
    assert_eq!(programs(&lab, "eth0"), [1, 1]);
}

#[test]
fn a_filter_or_qdisc_that_somebody_removes_is_attached_again() {
    need_root!();
    let lab = MirrorLab::new();
    lab.mirror(
        "m",
        spec(to_device("eth0", "mon0"), Attach::Clsact, Direction::Both),
    );
    copies_flow(&lab);
    let since = Instant::now();
    for way in ["ingress", "egress"] {
        lab.tc(&["filter", "del", "dev", "eth0", way, "pref", "41"]);
    }
    wait_reattached(&lab, 1, since);
    copies_flow(&lab);
    let since = Instant::now();
    lab.tc(&["qdisc", "del", "dev", "eth0", "clsact"]);
    wait_reattached(&lab, 2, since);
    copies_flow(&lab);
    assert_eq!(programs(&lab, "eth0"), [1, 1]);
    lab.delete("m");
    let qdiscs = lab
        .host
        .command("tc")
        .args(["qdisc", "show", "dev", "eth0"])
        .output();
    let qdiscs = String::from_utf8_lossy(&qdiscs.expect("run tc").stdout).into_owned();
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

#[test]
fn what_others_have_at_the_interface_stays() {
    need_root!();
    let mut lab = MirrorLab::new();
    lab.tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
    lab.tc(&[
        "filter", "add", "dev", "eth0", "ingress", "pref", "7", "protocol", "all", "u32", "match",
        "u32", "0", "0",
    ]);
    let others = programs(&lab, "eth0");
    for attach in [Attach::Clsact, Attach::Tcx] {
        lab.mirror("m", spec(to_device("eth0", "mon0"), attach, Direction::In));
        assert_eq!(programs(&lab, "eth0"), [others[0] + 1, others[1]]);
        copies_flow(&lab);
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        assert_eq!(programs(&lab, "eth0"), [others[0] + 1, others[1]]);
        lab.delete("m");
        assert_eq!(programs(&lab, "eth0"), others);
    }
    // The last of ours leaves, and the qdisc, which was there before, stays though nobody else uses it.
    lab.tc(&["filter", "del", "dev", "eth0", "ingress", "pref", "7"]);
    lab.mirror(
        "m",
        spec(to_device("eth0", "mon0"), Attach::Clsact, Direction::In),
    );
    lab.delete("m");
    lab.tc(&["qdisc", "del", "dev", "eth0", "clsact"]);
}

#[test]
fn an_ephemeral_mirror_ends_with_the_daemon_however_that_ends() {
    need_root!();
    let mut lab = MirrorLab::new();
    for killed in [false, true] {
        let spec = MirrorSpec {
            ephemeral: true,
            ..spec(to_device("eth0", "mon0"), Attach::Tcx, Direction::In)
        };
        lab.mirror("m", spec);
        assert_eq!(programs(&lab, "eth0"), [1, 0]);
        if killed {
            lab.mirrord.kill();
        } else {
            lab.mirrord.stop();
        }
        wait_until(SOON, "the program goes", || {
            programs(&lab, "eth0") == [0, 0]
        });
        lab.mirrord.relaunch();
        wait_until(SOON, "the daemon is back", || lab.mirrord.is_healthy());
        wait_until(SOON, "nothing is left", || lab.bpffs.names("m").is_empty());
        assert!(lab.try_status("m").is_none());
    }
}

#[test]
fn a_mirror_that_was_deleted_while_the_daemon_was_dead_is_swept() {
    need_root!();
    let mut lab = MirrorLab::new();
    lab.mirror("m", to_device("eth0", "mon0"));
    lab.mirror(
        "n",
        spec(to_device("eth1", "mon0"), Attach::Clsact, Direction::In),
    );
    lab.mirrord.kill();
    for entry in std::fs::read_dir(lab.dirs.state())
        .expect("the state")
        .flatten()
    {
        std::fs::remove_file(entry.path()).expect("forget what was there");
    }
    assert_eq!(programs(&lab, "eth0"), [1, 1]);
    lab.mirrord.restart();
    wait_until(SOON, "the programs go", || {
        programs(&lab, "eth0") == [0, 0] && programs(&lab, "eth1") == [0, 0]
    });
    wait_until(SOON, "the pins go", || lab.bpffs.names("") == ["tunnels"]);
}

#[test]
fn a_capability_that_is_missing_is_named() {
    need_root!();
    for (capability, name) in [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN")] {
        let lab = MirrorLab::with(&[capability, "sys_admin"]);
        let refused = lab.create("m", to_device("eth0", "mon0"));
        let text = refused.expect_err("it is refused").message().to_owned();
        assert!(text.contains(name), "{text}");
    }
    // These two are enough.
    let lab = MirrorLab::with(&["sys_admin", "net_raw", "perfmon"]);
    lab.mirror("m", to_device("eth0", "mon0"));
    copies_flow(&lab);
    lab.delete("m");
    // Whatever programs look like: the verifier is stricter with those who may not read all memory.
    for spec in of_all_kinds() {
        lab.create("m", spec).expect("the kernel takes it");
        lab.wait_status("m", "attached", |status| !status.attachments.is_empty());
        lab.delete("m");
    }
}

/// Specs that use everything between them.
fn of_all_kinds() -> Vec<MirrorSpec> {
    let many = MirrorRule {
        sources: vec!["192.0.2.0/24".into(), "2001:db8::/32".into()],
        destinations: vec!["198.51.100.0/24".into(), "2001:db8:1::/48".into()],
        source_ports: vec![PortRange {
            first: 1000,
            last: 2000,
        }],
        destination_ports: vec![PortRange {
            first: 53,
            last: 53,
        }],
        protocols: vec![6, 17],
        vlans: vec![7, 9],
        tcp_flags: 2,
        tcp_flags_mask: 18,
        direction: Direction::In.into(),
        ..MirrorRule::default()
    };
    let rate = MirrorRate {
        frames_per_second: 1000,
        bits_per_second: 1_000_000,
        burst_ms: 50,
    };
    let fuse = MirrorFuse {
        errors_per_second: 5,
        frames_per_second: 10_000,
        bits_per_second: 1_000_000_000,
    };
    let sample = Sample {
        one_in: 10,
        kept: 0,
        mode: SampleMode::Flow.into(),
        seed: 7,
    };
    let with = |of: MirrorSpec| MirrorSpec {
        rules: vec![many.clone(); 1024],
        rate: Some(rate),
        fuse: Some(fuse),
        sample: Some(sample),
        lifetime_ms: 60_000,
        ..of
    };
    let mut devices = to_device("eth0", "mon0");
    devices.devices.push(MirrorDevice {
        name: "eth1".into(),
        vlan_push: None,
    });
    let cut = MirrorSpec {
        snaplen: 64,
        ..to_ring("eth0", "web")
    };
    let xdp = MirrorSpec {
        hook: Hook::Xdp.into(),
        direction: Direction::In.into(),
        rules: vec![many.clone(); 1024],
        ..to_device("eth0", "mon0")
    };
    vec![to_ring("eth0", "web"), with(cut), with(devices), xdp]
}
