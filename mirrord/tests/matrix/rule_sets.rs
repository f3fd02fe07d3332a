//! Sets of rules that find something in the frames.

use crate::frames::{FLAGS, PORTS, PROTOCOLS, VIDS, v4_address, v6_address};
use crate::random::Random;
use fluxcap_proto::v1::{Direction, MirrorRule, PortRange, RuleAction};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A set of so many rules.
pub(crate) fn rule_set(random: &mut Random, count: usize) -> Vec<MirrorRule> {
    // Some sets only exclude, and select what is left.
    let excludes = random.once_in(5);
    (0..count).map(|_| rule(random, excludes, count)).collect()
}

fn rule(random: &mut Random, excludes: bool, count: usize) -> MirrorRule {
    let mut rule = MirrorRule::default();
    if excludes || random.once_in(3) {
        rule.set_action(RuleAction::Exclude);
    }
    // Of many rules each has to match little, so that the later ones decide too.
    let used = |random: &mut Random| random.once_in(3) != (count > 20);
    if used(random) {
        rule.sources = some(random, network);
    }
    if used(random) {
        rule.destinations = some(random, network);
    }
    if used(random) {
        rule.source_ports = some(random, ports);
    }
    if used(random) {
        rule.destination_ports = some(random, ports);
    }
    if used(random) {
        rule.protocols = some(random, |random| random.pick(&PROTOCOLS).into());
    }
    if random.once_in(5) {
        rule.vlans = some(random, |random| random.pick(&VIDS).min(4094).into());
    }
    rule.untagged = random.once_in(8);
    if random.once_in(8) {
        rule.tcp_flags_mask = random.pick(&[0x02, 0x12, 0xff, 0x3f, 0x01]);
        rule.tcp_flags = u32::from(random.pick(&FLAGS)) & rule.tcp_flags_mask;
    }
    if random.once_in(5) {
        rule.set_direction(random.pick(&[Direction::In, Direction::Out, Direction::Both]));
    }
    rule
}

fn some<T>(random: &mut Random, mut make: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..=random.below(4)).map(|_| make(random)).collect()
}

fn ports(random: &mut Random) -> PortRange {
    let (a, b): (u32, u32) = (random.pick(&PORTS).into(), random.pick(&PORTS).into());
    if random.once_in(2) {
        return PortRange { first: a, last: a };
    }
    PortRange {
        first: a.min(b),
        last: a.max(b),
    }
}

fn network(random: &mut Random) -> String {
    if random.once_in(2) {
        let prefix = random.pick(&[0, 1, 8, 9, 16, 24, 25, 31, 32]);
        format!("{}/{prefix}", Ipv4Addr::from(v4_address(random)))
    } else {
        let prefix = random.pick(&[0, 1, 16, 32, 48, 64, 96, 127, 128]);
        format!("{}/{prefix}", Ipv6Addr::from(v6_address(random)))
    }
}
