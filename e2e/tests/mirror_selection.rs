//! What mirrors select, on real interfaces: by rules and by pcap-filter, over changes, and while mirrord is dead.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failed test may panic, and its numbers are small"
)]

#[path = "../../mirrord/tests/matrix/frames.rs"]
#[expect(dead_code, reason = "tags held apart are made by the kernel here")]
mod frames;
#[path = "../../mirrord/tests/matrix/random.rs"]
mod random;

use std::time::Duration;

use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_device};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Generator, need_root, send_frames};
use fluxcap_headers::rules::{self, Action, Network, Rule, RuleSet};
use fluxcap_headers::{Filter, FilterVlan, WireFrame};
use fluxcap_proto::v1::{
    Direction, FilterVlan as Vlan, MirrorRule, MirrorSpec, PortRange, RuleAction,
};

const SOON: Duration = Duration::from_secs(5);

/// Frames that the kernel lets as far as traffic control: it drops those that end within a tag. With three tags at most: four are
/// looked through: what has one more looks different when one of them was taken out.
fn wire_frames(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = random::Random::new(seed);
    let frames = std::iter::repeat_with(|| {
        let mut bytes = frames::frame(&mut random).bytes;
        // Nobody's, so that nobody answers.
        bytes[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        bytes
    });
    frames
        .filter(|it| it.len() >= 24 && WireFrame::new(it, 0).vlan_count() < 4)
        .take(count)
        .collect()
}

/// A rule as the API has it, and as the measure has it.
fn both_forms() -> (Vec<MirrorRule>, RuleSet) {
    let (exclude, accept) = (RuleAction::Exclude.into(), RuleAction::Accept.into());
    let api = vec![
        MirrorRule {
            action: exclude,
            sources: vec!["10.0.0.0/31".into(), "2001:db8::/32".into()],
            protocols: vec![17],
            ..MirrorRule::default()
        },
        MirrorRule {
            action: accept,
            destination_ports: vec![PortRange {
                first: 53,
                last: 443,
            }],
            ..MirrorRule::default()
        },
        MirrorRule {
            action: accept,
            vlans: vec![5, 6],
            untagged: true,
            protocols: vec![1, 132],
            ..MirrorRule::default()
        },
        MirrorRule {
            action: accept,
            tcp_flags: 2,
            tcp_flags_mask: 0x12,
            direction: Direction::In.into(),
            ..MirrorRule::default()
        },
    ];
    let network = |text: &str, prefix| Network::new(text.parse().unwrap(), prefix).unwrap();
    let plain = vec![
        Rule {
            action: Action::Exclude,
            sources: vec![network("10.0.0.0", 31), network("2001:db8::", 32)],
            protocols: vec![17],
            ..Rule::default()
        },
        Rule {
            destination_ports: vec![53..=443],
            ..Rule::default()
        },
        Rule {
            vlans: vec![5, 6],
            untagged: true,
            protocols: vec![1, 132],
            ..Rule::default()
        },
        Rule {
            tcp_flags: 2,
            tcp_flags_mask: 0x12,
            direction: Some(rules::Direction::In),
            ..Rule::default()
        },
    ];
    (api, RuleSet::new(plain).unwrap())
}

#[test]
fn rules_and_filters_select_on_the_way_in_and_out_what_they_say() {
    need_root!();
    let lab = MirrorLab::new();
    let frames = wire_frames(1, 3000);
    let wires: Vec<_> = frames.iter().map(|it| WireFrame::new(it, 0)).collect();
    let (api, plain) = both_forms();
    let ways = [
        (
            "eth0",
            Direction::In,
            rules::Direction::In,
            (&lab.left, "wire"),
        ),
        (
            "eth1",
            Direction::Out,
            rules::Direction::Out,
            (&lab.host, "eth1"),
        ),
    ];
    let filters = [
        ("", Vlan::Any, FilterVlan::Any),
        ("ip or port 80", Vlan::Any, FilterVlan::Any),
        ("ether[12:4] & 1 = 0", Vlan::Exact, FilterVlan::Exact),
        ("vlan 5 or not vlan", Vlan::Any, FilterVlan::Any),
    ];
    for (interface, direction, way, (from, device)) in ways {
        for (expression, vlan, view) in filters {
            let filter = Filter::compile(expression, view).unwrap();
            let spec = MirrorSpec {
                direction: direction.into(),
                rules: api.clone(),
                filter: expression.to_owned(),
                filter_vlan: vlan.into(),
                ..to_device(interface, "mon0")
            };
            let decisions: Vec<_> = wires.iter().map(|it| plain.decide(it, way)).collect();
            let selected = wires.iter().zip(&decisions);
            let selected = selected.filter(|(wire, it)| it.accepted && filter.matches(wire));
            let selected = selected.count() as u64;
            lab.mirror("m", spec);
            let before = lab.status("m");
            send_frames(from, device, &frames);
            let status = lab.wait_status("m", "all frames were seen", |status| {
                status.seen_frames == frames.len() as u64
            });
            assert_closes(&status);
            let say = format!("{expression} {direction:?}: {before:#?} {status:#?}");
            assert_eq!(status.mirrored_frames, selected, "{say}");
            for rule in 0..api.len() {
                let decided = decisions.iter().filter(|it| it.rule == Some(rule)).count();
                assert_eq!(status.rule_frames[rule], decided as u64, "{rule} {say}");
            }
            assert!(selected > 100 && selected < 2900, "{say}");
            lab.delete("m");
        }
    }
}

#[test]
fn changing_rules_and_filter_under_traffic_loses_and_doubles_nothing() {
    need_root!();
    let lab = MirrorLab::new();
    let udp = MirrorRule {
        protocols: vec![17],
        ..MirrorRule::default()
    };
    let mut not_tcp = MirrorRule {
        protocols: vec![6],
        ..MirrorRule::default()
    };
    not_tcp.set_action(RuleAction::Exclude);
    // Each of them selects all of the generator's frames.
    let variants = [
        (vec![udp.clone()], ""),
        (vec![not_tcp.clone()], "udp"),
        (vec![not_tcp, udp], "ip and not tcp"),
        (vec![], "not arp"),
    ];
    let spec = |variant: usize| {
        let (rules, filter) = variants[variant % variants.len()].clone();
        MirrorSpec {
            direction: Direction::In.into(),
            rules,
            filter: filter.to_owned(),
            ..to_device("eth0", "mon0")
        }
    };
    lab.mirror("m", spec(0));
    let copies = lab.copies();
    let headers = Headers {
        udp: Some((1000, 2000)),
        ..Headers::default()
    };
    let sending = Generator::new(1)
        .headers(headers)
        .size(100)
        .rate(20_000)
        .count(60_000)
        .start(&lab.left, "wire");
    let mut changes = 0;
    while sending.frames() < 60_000 {
        changes += 1;
        lab.update("m", spec(changes), &["rules", "filter"])
            .unwrap();
    }
    let sent = sending.join();
    assert_eq!(
        sent.frames,
        sent.on_wire(),
        "the test's own wire lost frames"
    );
    copies.wait_frames(sent.frames, SOON);
    copies.stop().assert_exactly(1, &sent);
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(status.mirrored_frames, sent.frames, "{status:#?}");
    println!("{changes} changes");
    // Each answer waits until its programs are in place.
    assert!(changes > 5, "{changes}");
}

#[test]
fn a_filter_goes_on_while_mirrord_is_dead() {
    need_root!();
    let mut lab = MirrorLab::new();
    let spec = MirrorSpec {
        direction: Direction::In.into(),
        filter: "tcp".to_owned(),
        ..to_device("eth0", "mon0")
    };
    lab.mirror("m", spec);
    lab.mirrord.kill();
    let frames = wire_frames(2, 1000);
    send_frames(&lab.left, "wire", &frames);
    lab.mirrord.restart();
    let status = lab.wait_status("m", "all frames were seen", |status| {
        status.seen_frames == frames.len() as u64
    });
    assert_closes(&status);
    let filter = Filter::compile("tcp", FilterVlan::Any).unwrap();
    let matching = frames
        .iter()
        .filter(|it| filter.matches(&WireFrame::new(it, 0)));
    assert_eq!(
        status.mirrored_frames,
        matching.count() as u64,
        "{status:#?}"
    );
    assert_eq!(status.filter_at, "kernel");
}
