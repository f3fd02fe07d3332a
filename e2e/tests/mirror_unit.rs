//! Mirrors as they are installed: mirrord runs as a user that is nobody, with the capabilities that its unit grants. The kernel's verifier then refuses
//! much that it takes from root, so every combination of what a mirror can be told is loaded, and of each target and option one copies.

use std::time::Duration;

use fluxcap_e2e::mirror::{COLLECTOR, MirrorLab, assert_closes, to_collector, to_device, to_ring};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Fluxctl, Generator, Netns, Sink, Veth, need_root, published, wait_until};
use fluxcap_proto::v1::mirror_service_client::MirrorServiceClient;
use fluxcap_proto::v1::{
    CreateMirrorRequest, Direction, Hook, InnerProtocol, MirrorDevice, MirrorFuse, MirrorRate,
    MirrorRule, MirrorSpec, MtuPolicy, PortRange, RuleAction, Sample, SampleMode, TunnelKind,
    VlanTag,
};

const SOON: Duration = Duration::from_secs(10);
/// Frames for each mirror that copies.
const FRAMES: u64 = 20;

/// A way to change a spec, and what it is called.
type Change = (&'static str, fn(&mut MirrorSpec));

/// Every kind of target.
fn targets() -> Vec<(String, MirrorSpec)> {
    let several = |count: usize| {
        let mut spec = to_device("eth0", "mon0");
        spec.devices.extend((1..count).map(|n| MirrorDevice {
            name: format!("absent{n}"),
            vlan_push: None,
        }));
        spec
    };
    let mut targets = vec![
        ("ring".to_owned(), to_ring("eth0", "r")),
        ("one device".to_owned(), several(1)),
        ("16 devices".to_owned(), several(16)),
    ];
    let kinds = [
        (TunnelKind::Gue, InnerProtocol::Unspecified, None),
        (TunnelKind::Gue, InnerProtocol::Gretap, None),
        (TunnelKind::Vxlan, InnerProtocol::Unspecified, Some(77)),
        (TunnelKind::Geneve, InnerProtocol::Unspecified, Some(7)),
        (TunnelKind::Gretap, InnerProtocol::Unspecified, None),
        (TunnelKind::Gretap, InnerProtocol::Unspecified, Some(5)),
    ];
    for remote in COLLECTOR {
        for (kind, inner, id) in kinds {
            let mut spec = to_collector(remote);
            let overlay = spec.overlay.as_mut().expect("an overlay");
            (overlay.kind, overlay.inner, overlay.id) = (kind.into(), inner.into(), id);
            if kind == TunnelKind::Gretap {
                overlay.port = 0;
            }
            targets.push((format!("{kind:?} {inner:?} {id:?} to {remote}"), spec));
        }
    }
    targets
}

/// Whatever else a mirror can be told.
fn changes() -> Vec<Change> {
    let all: Change = ("everything at once", |spec| {
        for (_, change) in changes()
            .iter()
            .filter(|(name, _)| *name != "everything at once")
        {
            change(spec);
        }
    });
    vec![
        ("nothing", |_| {}),
        ("a rule", |spec| spec.rules.push(rule(17))),
        ("rules with every condition", |spec| {
            let mut exclude = rule(6);
            exclude.action = RuleAction::Exclude.into();
            exclude.sources = vec!["198.51.100.0/24".to_owned(), "2001:db8:1::/48".to_owned()];
            exclude.destinations = exclude.sources.clone();
            exclude.source_ports = vec![PortRange { first: 5, last: 9 }];
            exclude.destination_ports = vec![PortRange { first: 5, last: 5 }];
            exclude.vlans = vec![7];
            exclude.direction = Direction::Out.into();
            spec.rules.extend([exclude, rule(17)]);
        }),
        ("a filter", |spec| "udp".clone_into(&mut spec.filter)),
        ("a sample", |spec| {
            spec.sample = Some(sample(SampleMode::Random))
        }),
        ("a sample of flows", |spec| {
            spec.sample = Some(sample(SampleMode::Flow))
        }),
        ("a snap length", |spec| spec.snaplen = 80),
        ("a rate of frames", |spec| {
            spec.rate = Some(rate(1_000_000, 0))
        }),
        ("a rate of bits", |spec| {
            spec.rate = Some(rate(0, 10_000_000_000))
        }),
        ("a fuse", |spec| {
            spec.fuse = Some(MirrorFuse {
                errors_per_second: 1_000_000,
                frames_per_second: 1_000_000,
                bits_per_second: 10_000_000_000,
            });
        }),
        ("an end", |spec| spec.lifetime_ms = 3_600_000),
        ("oversize dropped, a port", |spec| {
            if let Some(overlay) = &mut spec.overlay {
                overlay.mtu_policy = MtuPolicy::Drop.into();
                if overlay.kind() != TunnelKind::Gretap {
                    overlay.source_port = 5555;
                }
            }
        }),
        all,
    ]
}

fn rule(protocol: u32) -> MirrorRule {
    MirrorRule {
        protocols: vec![protocol],
        ..MirrorRule::default()
    }
}

fn sample(mode: SampleMode) -> Sample {
    Sample {
        one_in: 2,
        mode: mode.into(),
        ..Sample::default()
    }
}

fn rate(frames_per_second: u64, bits_per_second: u64) -> MirrorRate {
    MirrorRate {
        frames_per_second,
        bits_per_second,
        ..MirrorRate::default()
    }
}

/// Has the kernel look at the programs of a spec, and keeps nothing.
fn load(lab: &MirrorLab, what: &str, spec: MirrorSpec) {
    let request = CreateMirrorRequest {
        name: "m".to_owned(),
        spec: Some(spec),
        validate_only: true,
    };
    let answer = lab.mirrord.rpc(async |channel| {
        MirrorServiceClient::new(channel)
            .create_mirror(request)
            .await
    });
    if let Err(refused) = answer.expect("mirrord answers") {
        panic!("{what}: {}", refused.message());
    }
}

#[test]
fn every_combination_loads_and_copies_with_what_the_unit_grants() {
    need_root!();
    let lab = MirrorLab::as_units();
    lab.add_collector();
    let fluxctl = Fluxctl::new(&lab.dirs);
    fluxctl.run(&["ring", "create", "r", "--size", "4m"]);
    let (targets, changes) = (targets(), changes());
    for (target, spec) in &targets {
        for (n, (option, change)) in changes.iter().enumerate() {
            let mut spec = spec.clone();
            // Each direction in turn; with rules that name one, both.
            let directions = [Direction::Both, Direction::In, Direction::Out];
            spec.direction = directions[n % directions.len()].into();
            change(&mut spec);
            load(&lab, &format!("{target}, {option}"), spec);
        }
    }
    // One of each that copies: every target, and every option once.
    for n in 0..targets.len().max(changes.len()) {
        let (target, spec) = &targets[n % targets.len()];
        let (option, change) = changes[n % changes.len()];
        let mut spec = spec.clone();
        spec.direction = Direction::In.into();
        change(&mut spec);
        // The other devices of a mirror to 16 do not exist.
        let all_exist = spec.devices.len() <= 1;
        copies(&lab, &format!("{target}, {option}"), spec, all_exist);
    }
}

/// Makes a mirror and sends frames past it: some of them, or all, arrive where they were to.
fn copies(lab: &MirrorLab, what: &str, spec: MirrorSpec, all_exist: bool) {
    // There is one flow, which is in the sample or not.
    let least = match spec.sample.map(|sample| sample.mode()) {
        None => FRAMES,
        Some(SampleMode::Flow) => 0,
        Some(_) => 1,
    };
    let to_ring = !spec.ring.is_empty();
    let arrived = || match to_ring {
        true => published(&lab.dirs, "r"),
        false => Veth::counters(&lab.monitor, "wire").rx_frames,
    };
    if let Err(refused) = lab.create("m", spec) {
        panic!("{what}: {}", refused.message());
    }
    if all_exist {
        lab.wait_state("m", fluxcap_proto::v1::State::Running);
    }
    let before = arrived();
    let headers = Headers {
        udp: Some((1000, 2000)),
        ..Headers::default()
    };
    lab.produce(
        &Generator::new(1)
            .size(200)
            .headers(headers)
            .rate(20_000)
            .count(FRAMES),
    );
    let status = lab.wait_status("m", what, |status| {
        status.seen_frames >= FRAMES && status.mirrored_frames >= least
    });
    assert_closes(&status);
    // A neighbour may have been asked for, too.
    wait_until(SOON, what, || {
        arrived() >= before + status.mirrored_frames.min(FRAMES)
    });
    lab.delete("m");
}

/// Replication in the driver, too.
#[test]
fn xdp_loads_and_replicates_with_what_the_unit_grants() {
    need_root!();
    let lab = MirrorLab::as_units();
    let fluxctl = Fluxctl::new(&lab.dirs);
    fluxctl.run(&["ring", "create", "r", "--size", "4m"]);
    let outside = Netns::new();
    Veth::pair((&lab.host, "tap0"), (&outside, "wire"), 1500);
    Veth::gro(&lab.monitor, "wire", true);
    let tag = VlanTag {
        vid: 7,
        ..VlanTag::default()
    };
    for devices in [1, 2, 16] {
        for (n, (option, change)) in changes().iter().enumerate() {
            let mut spec = MirrorSpec {
                hook: Hook::Xdp.into(),
                ..to_device("tap0", "mon0")
            };
            spec.devices.extend((1..devices).map(|n| MirrorDevice {
                name: format!("absent{n}"),
                vlan_push: Some(tag),
            }));
            change(&mut spec);
            // What it does not have.
            spec.filter.clear();
            for rule in &mut spec.rules {
                rule.direction = Direction::Unspecified.into();
            }
            if n % 2 == 1 {
                "r".clone_into(&mut spec.ring);
            }
            load(&lab, &format!("xdp, {devices} devices, {option}"), spec);
        }
    }
    let spec = MirrorSpec {
        hook: Hook::Xdp.into(),
        ring: "r".to_owned(),
        ..to_device("tap0", "mon0")
    };
    lab.mirror("x", spec);
    let sink = Sink::start(&lab.monitor, "wire");
    let sent = Generator::new(1)
        .rate(20_000)
        .count(FRAMES)
        .send(&outside, "wire");
    sink.wait_frames(sent.frames, SOON);
    sink.stop().assert_exactly(1, &sent);
    wait_until(SOON, "the ring has them, too", || {
        published(&lab.dirs, "r") >= sent.frames
    });
}
