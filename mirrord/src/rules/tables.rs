//! Rules as tables of classes, for bpf/rules.h: from each value of a field to the set of rules whose condition holds for it.

use super::Error;
use fluxcap_headers::rules::{Action, Direction, MAX_RULES, Network, Rule, RuleSet, has_ports};
use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

const WORDS: usize = MAX_RULES / 64;
/// Ports of one entry of their map.
pub(super) const PORT_PAGE: usize = 256;
const PORTS: usize = 65_536;

/// Entries of `rule_tables`, by what they are found by.
const PROTOCOLS: usize = 257;
const FLAGS: usize = 256;
const VLANS: usize = 4097;
const SMALL: usize = PROTOCOLS + FLAGS + VLANS;

/// Places in `rule_settings`.
mod place {
    pub(super) const WORDS: usize = 0;
    pub(super) const DEFAULT: usize = 1;
    pub(super) const USED: usize = 2;
    pub(super) const SOURCE: usize = 3;
    pub(super) const DESTINATION: usize = 4;
    pub(super) const SPORT: usize = 5;
    pub(super) const DPORT: usize = 8;
    pub(super) const FLAGS: usize = 11;
    pub(super) const FLAGS_LATER: usize = 12;
    pub(super) const DIRECTION: usize = 13;
    pub(super) const ACCEPT: usize = 15;
    pub(super) const ALL: usize = 16;
    pub(super) const COUNT: usize = 17;
}

/// Bits of `USED`, by condition.
mod used {
    pub(super) const SOURCE: u32 = 1;
    pub(super) const DESTINATION: u32 = 2;
    pub(super) const SPORT: u32 = 4;
    pub(super) const DPORT: u32 = 8;
    pub(super) const PROTOCOL: u32 = 16;
    pub(super) const FLAGS: u32 = 32;
    pub(super) const VLAN: u32 = 64;
    pub(super) const DIRECTION: u32 = 128;
}

/// Rules, by bit.
pub(super) type Set = [u64; WORDS];
/// The class of each port; empty when no rule asks for one.
pub(super) type Ports = Vec<u16>;

/// Classes of addresses, for longest-prefix matching: that of a network has the rules of all wider ones around it too.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    pub(super) v4: Vec<(Network, u16)>,
    pub(super) v6: Vec<(Network, u16)>,
}

/// What programs need to decide by a set of rules.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(super) settings: [u32; place::COUNT],
    /// The sets of rules, by class; each once.
    pub(super) classes: Vec<Set>,
    pub(super) sources: Networks,
    pub(super) destinations: Networks,
    pub(super) sport: Ports,
    pub(super) dport: Ports,
    /// Protocols, TCP flags, VLANs.
    pub(super) small: Box<[u16; SMALL]>,
}

impl Tables {
    /// Whether anything is looked for in `small`.
    pub(super) fn uses_small(&self) -> bool {
        self.settings[place::USED] & (used::PROTOCOL | used::FLAGS | used::VLAN) != 0
    }

    /// Makes the tables.
    ///
    /// # Errors
    /// [`Error::TooManyClasses`].
    pub(crate) fn new(set: &RuleSet) -> Result<Tables, Error> {
        let mut builder = Builder {
            rules: set.rules(),
            classes: Classes::default(),
            settings: [0; place::COUNT],
        };
        let [sources, destinations] = builder.addresses()?;
        let [sport, dport] = builder.ports()?;
        let small = builder.small()?;
        builder.directions()?;
        let accepts = builder.those(|rule| rule.action == Action::Accept);
        let accepts = builder.classes.number(&accepts)?;
        let mut settings = builder.settings;
        settings[place::ACCEPT] = accepts.into();
        let all = builder.those(|_| true);
        settings[place::ALL] = builder.classes.number(&all)?.into();
        settings[place::WORDS] = u32::try_from(set.rules().len().div_ceil(64)).unwrap_or(u32::MAX);
        settings[place::DEFAULT] = set.accepts_others().into();
        Ok(Tables {
            settings,
            classes: builder.classes.sets,
            sources,
            destinations,
            sport,
            dport,
            small,
        })
    }
}

/// Sets that were met, each with a number.
#[derive(Default)]
struct Classes {
    sets: Vec<Set>,
    numbers: HashMap<Set, u16>,
}

impl Classes {
    fn number(&mut self, set: &Set) -> Result<u16, Error> {
        if let Some(number) = self.numbers.get(set) {
            return Ok(*number);
        }
        let number = u16::try_from(self.sets.len()).map_err(|_| Error::TooManyClasses)?;
        self.sets.push(*set);
        self.numbers.insert(*set, number);
        Ok(number)
    }
}

struct Builder<'r> {
    rules: &'r [Rule],
    classes: Classes,
    settings: [u32; place::COUNT],
}

impl<'r> Builder<'r> {
    /// The rules for which something holds.
    fn those(&self, holds: impl Fn(&Rule) -> bool) -> Set {
        let mut set = [0; WORDS];
        for (index, rule) in self.rules.iter().enumerate() {
            if holds(rule) {
                add(&mut set, index);
            }
        }
        set
    }

    /// Notes which rules have no condition of a kind, and whether any has one.
    fn without(&mut self, bit: u32, is_empty: impl Fn(&Rule) -> bool) -> Set {
        if !self.rules.iter().all(&is_empty) {
            self.settings[place::USED] |= bit;
        }
        self.those(is_empty)
    }

    /// Sets the class of what is in no table.
    fn special(&mut self, place: usize, set: &Set) -> Result<(), Error> {
        self.settings[place] = self.classes.number(set)?.into();
        Ok(())
    }

    fn addresses(&mut self) -> Result<[Networks; 2], Error> {
        let source = self.networks(used::SOURCE, place::SOURCE, |rule| &rule.sources)?;
        let destination = self.networks(used::DESTINATION, place::DESTINATION, |rule| {
            &rule.destinations
        })?;
        Ok([source, destination])
    }

    fn networks(
        &mut self,
        bit: u32,
        place: usize,
        condition: impl Fn(&'r Rule) -> &'r Vec<Network>,
    ) -> Result<Networks, Error> {
        let mut own: HashMap<Network, Set> = HashMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            for network in condition(rule) {
                add(own.entry(*network).or_insert([0; WORDS]), index);
            }
        }
        let mut without = [0; WORDS];
        for (index, rule) in self.rules.iter().enumerate() {
            if condition(rule).is_empty() {
                add(&mut without, index);
            }
        }
        if !own.is_empty() {
            self.settings[place::USED] |= bit;
        }
        self.special(place, &without)?;
        // Wider networks stand before those within them.
        let mut own: Vec<(Network, Set)> = own.into_iter().collect();
        own.sort_by_key(|(network, _)| (network.address(), network.prefix()));
        let mut around: Vec<(Network, Set)> = Vec::new();
        let mut networks = Networks::default();
        for (network, mut set) in own {
            around.retain(|(wider, _)| holds(wider, &network));
            let inherited = around.last().map_or(&without, |(_, set)| set);
            unite(&mut set, inherited);
            let class = self.classes.number(&set)?;
            match network.address() {
                IpAddr::V4(_) => networks.v4.push((network, class)),
                IpAddr::V6(_) => networks.v6.push((network, class)),
            }
            around.push((network, set));
        }
        Ok(networks)
    }

    fn ports(&mut self) -> Result<[Ports; 2], Error> {
        let sport = self.port(used::SPORT, place::SPORT, |rule| &rule.source_ports)?;
        let dport = self.port(used::DPORT, place::DPORT, |rule| &rule.destination_ports)?;
        Ok([sport, dport])
    }

    fn port(
        &mut self,
        bit: u32,
        place: usize,
        condition: fn(&Rule) -> &Vec<RangeInclusive<u16>>,
    ) -> Result<Ports, Error> {
        let without = self.without(bit, |rule| condition(rule).is_empty());
        let with = |set: Set| {
            let mut set = set;
            unite(&mut set, &without);
            set
        };
        // In the order of the kinds PLAIN, LATER and CUT.
        let plain = self.those(|rule| rule.protocols.iter().any(|it| !has_ports(*it)));
        let later = self.those(|rule| rule.action == Action::Accept);
        self.special(place, &with(plain))?;
        self.special(place + 1, &with(later))?;
        self.special(place + 2, &without)?;
        if self.settings[place::USED] & bit == 0 {
            return Ok(Ports::new());
        }
        let mut edges = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            edges.extend(
                joined(condition(rule)).flat_map(|(first, end)| [(first, index), (end, index)]),
            );
        }
        edges.sort_unstable();
        let mut set = without;
        let mut table = Ports::with_capacity(PORTS);
        for (port, rule) in edges {
            // A rule's ranges do not touch, so that it begins and ends in turn.
            if port > table.len() {
                table.resize(port, self.classes.number(&set)?);
            }
            flip(&mut set, rule);
        }
        table.resize(PORTS, self.classes.number(&set)?);
        Ok(table)
    }

    /// The tables of what has few values.
    fn small(&mut self) -> Result<Box<[u16; SMALL]>, Error> {
        let without = self.without(used::PROTOCOL, |rule| rule.protocols.is_empty());
        let mut sets = vec![without; PROTOCOLS];
        for (index, rule) in self.rules.iter().enumerate() {
            for protocol in &rule.protocols {
                add(&mut sets[usize::from(*protocol)], index);
            }
        }
        sets.extend(self.flags()?);
        let vlans = sets.len();
        let without = self.without(used::VLAN, |rule| rule.vlans.is_empty() && !rule.untagged);
        sets.resize(vlans + VLANS, without);
        for (index, rule) in self.rules.iter().enumerate() {
            let untagged = rule.untagged.then_some(VLANS - 1);
            for vlan in rule.vlans.iter().map(|it| usize::from(*it)).chain(untagged) {
                add(&mut sets[vlans + vlan], index);
            }
        }
        let mut small = Box::new([0; SMALL]);
        for (class, set) in small.iter_mut().zip(&sets) {
            *class = self.classes.number(set)?;
        }
        Ok(small)
    }

    /// The rules for each value of the flags.
    fn flags(&mut self) -> Result<Vec<Set>, Error> {
        let without = self.without(used::FLAGS, |rule| rule.tcp_flags_mask == 0);
        self.special(place::FLAGS, &without)?;
        let later = self.those(|rule| rule.tcp_flags_mask == 0 || rule.action == Action::Accept);
        self.special(place::FLAGS_LATER, &later)?;
        let flags = 0..=u8::MAX;
        Ok(flags
            .map(|flags| self.those(|rule| flags & rule.tcp_flags_mask == rule.tcp_flags))
            .collect())
    }

    fn directions(&mut self) -> Result<(), Error> {
        self.without(used::DIRECTION, |rule| rule.direction.is_none());
        for (place, direction) in (place::DIRECTION..).zip([Direction::In, Direction::Out]) {
            let set = self.those(|rule| rule.direction.is_none_or(|it| it == direction));
            self.special(place, &set)?;
        }
        Ok(())
    }
}

/// Ranges of ports in their order, as first and end, those that touch or overlap joined.
fn joined(ranges: &[RangeInclusive<u16>]) -> impl Iterator<Item = (usize, usize)> {
    let mut sorted: Vec<(usize, usize)> = ranges
        .iter()
        .map(|range| ((*range.start()).into(), usize::from(*range.end()) + 1))
        .collect();
    sorted.sort_unstable();
    let mut joined: Vec<(usize, usize)> = Vec::new();
    for (first, end) in sorted {
        match joined.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((first, end)),
        }
    }
    joined.into_iter()
}

/// Whether a network is within a wider one of its family.
fn holds(wider: &Network, network: &Network) -> bool {
    wider.address().is_ipv4() == network.address().is_ipv4()
        && wider.prefix() <= network.prefix()
        && Network::new(network.address(), wider.prefix()).is_ok_and(|it| it == *wider)
}

fn add(set: &mut Set, rule: usize) {
    set[rule / 64] |= 1 << (rule % 64);
}

fn flip(set: &mut Set, rule: usize) {
    set[rule / 64] ^= 1 << (rule % 64);
}

fn unite(set: &mut Set, other: &Set) {
    for (word, other) in set.iter_mut().zip(other) {
        *word |= other;
    }
}
