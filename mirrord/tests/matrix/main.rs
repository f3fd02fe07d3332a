//! Frames of every kind against rules and filters: the programs select exactly what the plain implementations select.
//!
//! Each frame goes through BPF_PROG_TEST_RUN. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failed test may panic, and its numbers are small"
)]

mod filters;
mod frames;
mod program;
mod random;
mod rule_sets;
#[path = "../../src/rules/mod.rs"]
mod rules;

use fluxcap_headers::rules::{Decision, Direction};
use fluxcap_headers::{flow_hash, rules::RuleSet};
use fluxcap_proto::v1::{MirrorRule, PortRange, RuleAction};
use frames::Frame;
use program::{Programs, may_load};
use random::Random;
use rules::Tables;

const DIRECTIONS: [(&str, Direction); 2] =
    [("select_in", Direction::In), ("select_out", Direction::Out)];

fn frames(seed: u64, count: usize) -> Vec<Frame> {
    let mut random = Random::new(seed);
    (0..count).map(|_| frames::frame(&mut random)).collect()
}

/// Runs every frame in both directions through programs with these rules, and compares with the plain decision. Returns those.
fn compare(rules: &[MirrorRule], frames: &[Frame]) -> Vec<Decision> {
    let set: RuleSet = rules::rule_set(rules).unwrap();
    let mut programs = Programs::load(&Tables::compile(rules).unwrap());
    let mut decisions = Vec::new();
    let mut expected = vec![0; fluxcap_headers::rules::MAX_RULES];
    for (name, direction) in DIRECTIONS {
        for frame in frames {
            let decision = set.decide(&frame.wire(), direction);
            let accepted = programs.run(name, frame) != 0;
            assert_eq!(
                accepted,
                decision.accepted,
                "{direction:?} {:?} {:02x?}, decided by {:?}",
                frame.tag,
                frame.bytes,
                decision.rule.map(|rule| &rules[rule])
            );
            if let Some(rule) = decision.rule {
                expected[rule] += 1;
            }
            decisions.push(decision);
        }
    }
    assert_eq!(programs.rule_frames(), expected, "{rules:?}");
    decisions
}

#[test]
fn programs_select_what_the_rules_say_frame_by_frame_and_rule_by_rule() {
    if !may_load() {
        return;
    }
    let frames = frames(1, 5000);
    let mut random = Random::new(2);
    let mut counts = vec![0, 1, 1, 1, 1, 63, 64, 65, 128, 300, 1023, 1024];
    counts.extend((0..40).map(|_| 1 + random.below(12)));
    let (mut accepted, mut by_rule, mut all) = (0, 0, 0);
    let (mut deciding, mut late) = (0, 0);
    for count in counts {
        let rules = rule_sets::rule_set(&mut random, count);
        let decisions = compare(&rules, &frames);
        all += decisions.len();
        accepted += decisions.iter().filter(|it| it.accepted).count();
        by_rule += decisions.iter().filter(|it| it.rule.is_some()).count();
        let mut used: Vec<_> = decisions.iter().filter_map(|it| it.rule).collect();
        used.sort_unstable();
        used.dedup();
        deciding += used.len();
        late += used.iter().filter(|rule| **rule >= 64).count();
    }
    println!(
        "{all} decisions: {by_rule} by {deciding} rules ({late} behind the 64th), {accepted} accepted"
    );
    // The comparison would be worth little if nearly all frames had the same fate.
    assert!(accepted * 10 > all && accepted * 10 < all * 9);
    assert!(by_rule * 4 > all && by_rule * 20 < all * 19);
    assert!(deciding > 400 && late > 100);
}

#[test]
fn programs_and_user_space_hash_flows_alike() {
    if !may_load() {
        return;
    }
    let mut programs = Programs::load(&Tables::compile(&[]).unwrap());
    for frame in frames(3, 5000) {
        let hash = programs.run("flow_hash", &frame).cast_unsigned();
        let expected = flow_hash(&frame.wire());
        assert_eq!(hash, expected, "{:?} {:02x?}", frame.tag, frame.bytes);
    }
}

/// One rule that excludes 5000 networks, one that accepts 5000 ports at either end.
fn thousands() -> Vec<MirrorRule> {
    let network = |n: u32| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n * 0x300);
        let prefix = [24, 25, 32, 23][n as usize % 4];
        format!("{address}/{prefix}")
    };
    let v6 = |n: u32| format!("2001:db8:{n:x}::/48");
    let mut exclude = MirrorRule {
        sources: (0..5000).map(network).chain((0..1000).map(v6)).collect(),
        ..MirrorRule::default()
    };
    exclude.set_action(RuleAction::Exclude);
    let port = |n: u32| PortRange {
        first: n * 13,
        last: n * 13 + n % 3,
    };
    let accept = MirrorRule {
        destination_ports: (0..5000).map(port).collect(),
        source_ports: (0..5000).map(port).collect(),
        ..MirrorRule::default()
    };
    vec![exclude, accept]
}

#[test]
fn thousands_of_networks_and_ports_fit_and_are_told_apart() {
    if !may_load() {
        return;
    }
    let rules = thousands();
    let mut random = Random::new(4);
    let mut frames = frames(4, 4000);
    for frame in &mut frames {
        // IPv4 without tags and options: the source is somewhere in the networks or beside them.
        if frame.bytes.get(12..15) == Some(&[8, 0, 0x45]) && frame.bytes.len() >= 34 {
            let address = 0x0a00_0000 + random.below(5100 * 0x300) as u32;
            frame.bytes[26..30].copy_from_slice(&address.to_be_bytes());
        }
    }
    let decisions = compare(&rules, &frames);
    for rule in [None, Some(0), Some(1)] {
        let count = decisions.iter().filter(|it| it.rule == rule).count();
        assert!(count > 100, "{rule:?} decided {count} frames");
    }
}
