//! Mirrors with rules that change, bounds, fuses, samples and an end.

use std::time::{Duration, Instant};

use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_device, to_ring};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Fluxctl, Generator, RingReader, Sink, Veth, need_root, wait_until};
use fluxcap_proto::v1::{
    Attach, Direction, MirrorDevice, MirrorFuse, MirrorRate, MirrorRule, MirrorSpec, MirrorStatus,
    PortRange, RuleAction, Sample, SampleMode, State,
};

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(300);

/// A mirror of what eth0 receives to mon0.
fn received() -> MirrorSpec {
    MirrorSpec {
        direction: Direction::In.into(),
        ..to_device("eth0", "mon0")
    }
}

fn dropped(status: &MirrorStatus, reason: &str) -> u64 {
    status.dropped_frames.get(reason).copied().unwrap_or(0)
}

/// Frames of UDP over IPv4.
fn udp(stream: u16, source: u16, destination: u16) -> Generator {
    Generator::new(stream).size(100).headers(Headers {
        udp: Some((source, destination)),
        ..Headers::default()
    })
}

fn rule(action: RuleAction, port: u32) -> MirrorRule {
    MirrorRule {
        action: action.into(),
        destination_ports: vec![PortRange {
            first: port,
            last: port,
        }],
        ..MirrorRule::default()
    }
}

#[test]
fn rules_are_swapped_under_traffic_without_a_frame_lost_or_doubled() {
    need_root!();
    for attach in [Attach::Tcx, Attach::Clsact] {
        let lab = MirrorLab::new();
        let spec = MirrorSpec {
            attach: attach.into(),
            ..received()
        };
        lab.mirror("m", spec.clone());
        let (production, copies) = (Sink::start(&lab.right, "wire"), lab.copies());
        let traffic = udp(1, 1000, 53)
            .rate(5_000)
            .endless()
            .start(&lab.left, "wire");
        for round in 0..20 {
            // Each selects all of it.
            let rules = match round % 3 {
                0 => vec![rule(RuleAction::Accept, 53)],
                1 => vec![rule(RuleAction::Exclude, 54), MirrorRule::default()],
                _ => vec![],
            };
            let before = lab.status("m").attachments[0].program_id;
            let changed = MirrorSpec {
                rules,
                ..spec.clone()
            };
            let changed = lab.update("m", changed, &["rules"]).expect("new rules");
            // The answer comes when they decide.
            let status = changed.status.expect("a status");
            assert_eq!(status.state(), State::Running);
            assert_ne!(status.attachments[0].program_id, before);
            let seen = lab.status("m").seen_frames;
            lab.wait_status("m", "traffic flows", |s| s.seen_frames > seen + 50);
        }
        let sent = traffic.stop();
        lab.assert_all_copied("m", production, copies, &sent);
    }
}

#[test]
fn rules_select_and_are_counted() {
    need_root!();
    let lab = MirrorLab::new();
    let spec = MirrorSpec {
        rules: vec![
            rule(RuleAction::Exclude, 54),
            MirrorRule {
                protocols: vec![17],
                ..MirrorRule::default()
            },
        ],
        ..received()
    };
    lab.mirror("m", spec);
    let copies = lab.copies();
    let wanted = udp(1, 1000, 53).send(&lab.left, "wire");
    udp(2, 1000, 54).count(300).send(&lab.left, "wire");
    Generator::new(3).count(200).send(&lab.left, "wire");
    let status = lab.wait_status("m", "all are seen", |s| {
        s.seen_frames == wanted.frames + 500
    });
    assert_eq!(status.rule_frames, [300, wanted.frames]);
    assert_eq!(status.not_selected_frames, 500);
    assert_closes(&status);
    copies.wait_quiet(QUIET);
    copies.stop().assert_exactly(1, &wanted);
}

#[test]
fn the_rate_of_copies_is_bounded_exactly() {
    need_root!();
    let lab = MirrorLab::new();
    // 100 bytes a frame: 800 bits.
    for (frames_per_second, bits_per_second) in [(1_000, 0), (0, 800_000), (2_000, 800_000)] {
        let rate = MirrorRate {
            frames_per_second,
            bits_per_second,
            burst_ms: 100,
        };
        let spec = MirrorSpec {
            rate: Some(rate),
            ..received()
        };
        lab.mirror("m", spec);
        let begun = Instant::now();
        let sent = lab.produce(&Generator::new(1).size(100).count(5_000).rate(10_000));
        let took = begun.elapsed().as_secs_f64();
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(
            status.mirrored_frames + status.rate_limited_frames,
            sent.frames
        );
        // The burst at once, and 1,000 a second from then on.
        let least = 100.0 + 1_000.0 * (sent.elapsed.as_secs_f64() - 0.02);
        let most = 101.0 + 1_000.0 * took;
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let mirrored = status.mirrored_frames as f64;
        assert!(
            mirrored >= least && mirrored <= most,
            "{least} {mirrored} {most}"
        );
        lab.delete("m");
    }
}

#[test]
fn a_fuse_blows_says_so_and_is_mended_by_a_change() {
    need_root!();
    let lab = MirrorLab::new();
    let with = |fuse| MirrorSpec {
        fuse: Some(fuse),
        ..received()
    };
    let none = MirrorFuse::default();
    let cases = [
        (
            MirrorFuse {
                frames_per_second: 500,
                ..none
            },
            "frames_per_second",
        ),
        (
            MirrorFuse {
                bits_per_second: 400_000,
                ..none
            },
            "bits_per_second",
        ),
        (
            MirrorFuse {
                errors_per_second: 100,
                ..none
            },
            "errors_per_second",
        ),
    ];
    for (fuse, name) in cases {
        lab.mirror("m", with(fuse));
        let harmed = name == "errors_per_second";
        if harmed {
            Veth::down(&lab.host, "mon0");
        }
        let sent = lab.produce(&Generator::new(1).size(100).count(3_000).rate(20_000));
        let status = lab.wait_status("m", "the fuse", |s| s.fuse.contains(name));
        assert!(
            lab.wait_status("m", "the reason", |s| s.reason.contains("fuse"))
                .state()
                == State::Waiting
        );
        assert_closes(&status);
        assert!(
            dropped(&status, "fuse") >= sent.frames - 1_200,
            "{status:#?}"
        );
        if harmed {
            // One more than the limit blew it.
            assert_eq!(dropped(&status, "link_down"), 101);
            Veth::up(&lab.host, "mon0");
        }
        let off = lab.produce(&Generator::new(1).count(100));
        assert_eq!(
            dropped(&lab.status("m"), "fuse") - dropped(&status, "fuse"),
            off.frames
        );
        let mended = with(MirrorFuse {
            frames_per_second: 1_000_000,
            ..none
        });
        lab.update("m", mended, &["fuse"]).expect("another fuse");
        lab.wait_state("m", State::Running);
        let before = lab.status("m");
        let on = lab.produce(&Generator::new(1).count(100));
        let after = lab.status("m");
        assert_eq!(after.mirrored_frames - before.mirrored_frames, on.frames);
        assert_eq!(after.fuse, "");
        lab.delete("m");
    }
}

#[test]
fn a_fuse_that_has_blown_stays_so_over_a_restart() {
    need_root!();
    let mut lab = MirrorLab::new();
    let fuse = MirrorFuse {
        frames_per_second: 10,
        ..MirrorFuse::default()
    };
    lab.mirror(
        "m",
        MirrorSpec {
            fuse: Some(fuse),
            ..received()
        },
    );
    lab.produce(&Generator::new(1).count(100));
    lab.mirrord.restart();
    lab.wait_status("m", "the reason", |s| s.reason.contains("fuse"));
    let before = lab.status("m").mirrored_frames;
    lab.produce(&Generator::new(1).count(100));
    assert_eq!(lab.status("m").mirrored_frames, before);
}

#[test]
fn a_mirror_ends_in_time_though_the_daemon_is_dead() {
    need_root!();
    let mut lab = MirrorLab::new();
    let lifetime = Duration::from_millis(1_500);
    let begun = Instant::now();
    lab.mirror(
        "m",
        MirrorSpec {
            lifetime_ms: 1_500,
            ..received()
        },
    );
    let copies = lab.copies();
    let first = lab.produce(&Generator::new(1).count(100));
    lab.mirrord.kill();
    wait_until(SOON, "its time is over", || {
        begun.elapsed() > lifetime + Duration::from_millis(100)
    });
    let second = lab.produce(&Generator::new(2).count(100));
    copies.wait_quiet(QUIET);
    copies.stop().assert_exactly(1, &first);
    lab.mirrord.restart();
    lab.wait_state("m", State::Ended);
    let status = lab.status("m");
    assert!(status.reason.contains("its time is over"));
    // That is no failure.
    let shown = Fluxctl::new(&lab.dirs).json(&["status"]);
    assert!(
        shown["daemons"]
            .as_array()
            .is_some_and(|it| { it.iter().all(|it| it["failed"] == 0 && it["waiting"] == 0) })
    );
    assert_eq!(dropped(&status, "expired"), second.frames);
    assert_closes(&status);
    assert!(!lab.bpffs.names("m").contains(&"ingress".to_owned()));
    // With the daemon alive it ends, too, and begins again when it is given more time.
    lab.update(
        "m",
        MirrorSpec {
            lifetime_ms: 60_000,
            ..received()
        },
        &["lifetime_ms"],
    )
    .expect("more time");
    lab.wait_state("m", State::Running);
    lab.update(
        "m",
        MirrorSpec {
            lifetime_ms: 200,
            ..received()
        },
        &["lifetime_ms"],
    )
    .expect("less time");
    lab.wait_state("m", State::Ended);
    assert!(!lab.bpffs.names("m").contains(&"ingress".to_owned()));
}

#[test]
fn samples_are_as_large_as_they_should_be() {
    need_root!();
    let lab = MirrorLab::new();
    let with = |mode: SampleMode| MirrorSpec {
        sample: Some(Sample {
            one_in: 10,
            kept: 0,
            mode: mode.into(),
            seed: 7,
        }),
        ..received()
    };
    lab.mirror("m", with(SampleMode::Random));
    let sent = lab.produce(&Generator::new(1).count(10_000).rate(20_000));
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(
        status.mirrored_frames + status.sampled_out_frames,
        sent.frames
    );
    // Five standard deviations.
    assert!(
        (850..=1150).contains(&status.mirrored_frames),
        "{status:#?}"
    );
    lab.delete("m");

    // All frames of a flow, in both directions, or none.
    lab.mirror("m", with(SampleMode::Flow));
    let mut flows = 0;
    for port in 1..=100_u16 {
        let before = lab.status("m").mirrored_frames;
        udp(1, 1000 + port, 53)
            .count(5)
            .full_rate()
            .send(&lab.left, "wire");
        let seen = u64::from(port) * 5;
        let after = lab.wait_status("m", "frames are seen", |s| s.seen_frames == seen);
        let copies = after.mirrored_frames - before;
        assert!(copies == 0 || copies == 5, "{copies} of 5");
        flows += copies / 5;
    }
    assert!((1..=25).contains(&flows), "{flows} of 100 flows at 1/10");
}

#[test]
fn each_of_several_devices_gets_its_copy_and_a_bad_one_harms_no_other() {
    need_root!();
    let lab = MirrorLab::new();
    let second = fluxcap_e2e::Netns::new();
    Veth::pair((&lab.host, "mon1"), (&second, "wire"), 1500);
    let mut spec = received();
    for name in ["nothing", "mon1"] {
        spec.devices.push(MirrorDevice {
            name: name.to_owned(),
            vlan_push: None,
        });
    }
    lab.create("m", spec).expect("made, though one is missing");
    lab.wait_status("m", "attached", |s| {
        s.attachments.iter().any(|a| a.program_id != 0)
    });
    let (first, other) = (lab.copies(), Sink::start(&second, "wire"));
    let sent = lab.produce(&Generator::new(1));
    first.wait_frames(sent.frames, SOON);
    other.wait_frames(sent.frames, SOON);
    first.stop().assert_exactly(1, &sent);
    other.stop().assert_exactly(1, &sent);
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(
        (status.copied_frames, status.mirrored_frames),
        (2 * sent.frames, 2 * sent.frames)
    );
    let outputs: Vec<(u64, u64)> = status
        .outputs
        .iter()
        .map(|o| (o.frames, o.failed_frames))
        .collect();
    assert_eq!(
        outputs,
        [(sent.frames, 0), (0, sent.frames), (sent.frames, 0)]
    );
}

#[test]
fn frames_come_into_the_ring_byte_for_byte() {
    need_root!();
    let lab = MirrorLab::new();
    Fluxctl::new(&lab.dirs).run(&["ring", "create", "web", "--size", "16m"]);
    lab.mirror("m", to_ring("eth0", "web"));
    let tags = [
        vec![],
        vec![(0x8100, 0xa00a)],
        vec![(0x88a8, 0x0064), (0x8100, 0x6007)],
        vec![(0x9100, 0x0001), (0x9100, 0x0002)],
    ];
    let frames: Vec<Vec<u8>> = tags
        .iter()
        .flat_map(|tags| {
            [60, 88, 89, 216, 500, 1000, 1514].map(|size| {
                Headers {
                    tags: tags.clone(),
                    ..Headers::default()
                }
                .counted_frame(size)
            })
        })
        .collect();
    fluxcap_e2e::send_frames(&lab.left, "wire", &frames);
    // And one that the host sends.
    fluxcap_e2e::send_frames(&lab.host, "eth0", &frames[..1]);
    let mut reader = RingReader::open(&lab.dirs, "web");
    let got = reader.take(frames.len() + 1, SOON);
    assert_eq!(got.len(), frames.len() + 1);
    for (sent, (meta, bytes)) in frames.iter().zip(&got) {
        assert_eq!(sent, bytes);
        assert_eq!(meta.wire_len as usize, sent.len());
        assert_eq!(meta.direction, fluxcap_ring::Direction::In);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock");
        let age = u64::try_from(now.as_nanos()).expect("a time") - meta.timestamp_ns;
        assert!(age < 10_000_000_000, "{age} ns old");
    }
    assert_eq!(got[frames.len()].0.direction, fluxcap_ring::Direction::Out);

    // Cut, and said so.
    let program = |status: &MirrorStatus| status.attachments[0].program_id;
    let before = program(&lab.status("m"));
    let shorter = MirrorSpec {
        snaplen: 64,
        ..to_ring("eth0", "web")
    };
    let changed = lab.update("m", shorter, &["snaplen"]).expect("a length");
    assert_ne!(program(&changed.status.unwrap_or_default()), before);
    fluxcap_e2e::send_frames(&lab.left, "wire", &frames);
    let cut = reader.take(frames.len(), SOON);
    for (sent, (meta, bytes)) in frames.iter().zip(&cut) {
        assert_eq!(&sent[..sent.len().min(64)], bytes.as_slice());
        assert_eq!(meta.wire_len as usize, sent.len());
    }
    let status = lab.status("m");
    let longer = frames.iter().filter(|frame| frame.len() > 64).count();
    assert_eq!(status.truncated_frames, longer as u64);
    assert_closes(&status);
}
