//! Rules of a mirror: from the spec to the maps of its programs.

mod tables;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use aya::{Ebpf, EbpfLoader};
use fluxcap_headers::rules::{Action, Direction, Network, Rule, RuleSet};
use fluxcap_proto::v1;
use std::net::IpAddr;
use std::ops::RangeInclusive;
pub(crate) use tables::Tables;
use tables::{PORT_PAGE, Ports};

/// Why rules cannot be put into programs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// They are none.
    #[error(transparent)]
    Invalid(#[from] fluxcap_headers::rules::InvalidRule),
    /// A part of one is none.
    #[error("rule {rule}: {problem}")]
    Part {
        /// Its number, from 1 on.
        rule: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Classes have numbers of 16 bits.
    #[error(
        "the rules tell more than 65,536 kinds of frames apart: use fewer rules, or fewer networks and ports"
    )]
    TooManyClasses,
    /// The kernel refuses an entry.
    #[error("cannot fill the map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel says.
        #[source]
        source: MapError,
    },
    /// The object and this crate do not belong together.
    #[error("the program has no map {0} of the right kind")]
    NoMap(&'static str),
}

/// Checks the rules of a spec.
///
/// # Errors
/// The first that cannot be used.
pub(crate) fn rule_set(rules: &[v1::MirrorRule]) -> Result<RuleSet, Error> {
    let rule = |(number, rule)| {
        convert(rule).map_err(|problem| Error::Part {
            rule: number,
            problem,
        })
    };
    let rules: Result<Vec<Rule>, Error> = (1..).zip(rules).map(rule).collect();
    Ok(RuleSet::new(rules?)?)
}

fn convert(rule: &v1::MirrorRule) -> Result<Rule, &'static str> {
    let flags = |flags| u8::try_from(flags).map_err(|_| "TCP flags are eight bits");
    Ok(Rule {
        action: match rule.action() {
            v1::RuleAction::Unspecified | v1::RuleAction::Accept => Action::Accept,
            v1::RuleAction::Exclude => Action::Exclude,
        },
        sources: each(&rule.sources, |text| network(text))?,
        destinations: each(&rule.destinations, |text| network(text))?,
        source_ports: each(&rule.source_ports, ports)?,
        destination_ports: each(&rule.destination_ports, ports)?,
        protocols: each(&rule.protocols, |it| {
            u8::try_from(*it).map_err(|_| "a protocol is 0 to 255")
        })?,
        vlans: each(&rule.vlans, |it| {
            u16::try_from(*it).map_err(|_| "a VLAN id is 0 to 4094")
        })?,
        untagged: rule.untagged,
        tcp_flags: flags(rule.tcp_flags)?,
        tcp_flags_mask: flags(rule.tcp_flags_mask)?,
        direction: match rule.direction() {
            v1::Direction::Unspecified | v1::Direction::Both => None,
            v1::Direction::In => Some(Direction::In),
            v1::Direction::Out => Some(Direction::Out),
        },
    })
}

fn each<T, U>(
    values: &[T],
    convert: impl FnMut(&T) -> Result<U, &'static str>,
) -> Result<Vec<U>, &'static str> {
    values.iter().map(convert).collect()
}

fn network(text: &str) -> Result<Network, &'static str> {
    let problem = "an address or network is written as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32";
    let parsed: fluxcap_options::Network = text.parse().map_err(|_| problem)?;
    Network::new(parsed.address(), parsed.prefix()).map_err(|_| problem)
}

fn ports(range: &v1::PortRange) -> Result<RangeInclusive<u16>, &'static str> {
    let port = |port| u16::try_from(port).map_err(|_| "ports are 0 to 65535");
    Ok(port(range.first)?..=port(range.last)?)
}

impl Tables {
    /// Makes the tables of a spec's rules.
    ///
    /// # Errors
    /// The first rule that cannot be used.
    pub(crate) fn compile(rules: &[v1::MirrorRule]) -> Result<Tables, Error> {
        Tables::new(&rule_set(rules)?)
    }

    /// Sets what has to be known before an object that includes rules.h is loaded.
    pub(crate) fn configure<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        let entries = |entries: usize| u32::try_from(entries.max(1)).unwrap_or(u32::MAX);
        loader
            .override_global("rule_settings", &self.settings, true)
            .map_max_entries("rule_classes", entries(self.classes.len()))
            .map_max_entries("rule_source4", entries(self.sources.v4.len()))
            .map_max_entries("rule_source6", entries(self.sources.v6.len()))
            .map_max_entries("rule_destination4", entries(self.destinations.v4.len()))
            .map_max_entries("rule_destination6", entries(self.destinations.v6.len()))
            .map_max_entries("rule_sport", entries(self.sport.len() / PORT_PAGE))
            .map_max_entries("rule_dport", entries(self.dport.len() / PORT_PAGE));
    }

    /// Fills the maps of an object for which the loader was configured.
    ///
    /// # Errors
    /// When the kernel refuses an entry, for want of memory for instance.
    pub(crate) fn install(&self, ebpf: &mut Ebpf) -> Result<(), Error> {
        let mut classes = array::<tables::Set>(ebpf, "rule_classes")?;
        for (index, class) in (0..).zip(&self.classes) {
            filled("rule_classes", classes.set(index, class, 0))?;
        }
        if self.uses_small() {
            let mut small = array::<u16>(ebpf, "rule_tables")?;
            for (index, class) in (0..).zip(self.small.iter()) {
                filled("rule_tables", small.set(index, class, 0))?;
            }
        }
        install_ports(ebpf, "rule_sport", &self.sport)?;
        install_ports(ebpf, "rule_dport", &self.dport)?;
        install_networks(ebpf, "rule_source4", &self.sources.v4)?;
        install_networks(ebpf, "rule_source6", &self.sources.v6)?;
        install_networks(ebpf, "rule_destination4", &self.destinations.v4)?;
        install_networks(ebpf, "rule_destination6", &self.destinations.v6)
    }
}

fn install_ports(ebpf: &mut Ebpf, name: &'static str, ports: &Ports) -> Result<(), Error> {
    let mut map = array::<[u16; PORT_PAGE]>(ebpf, name)?;
    let (pages, _) = ports.as_chunks::<PORT_PAGE>();
    for (index, page) in (0..).zip(pages) {
        filled(name, map.set(index, page, 0))?;
    }
    Ok(())
}

fn install_networks(
    ebpf: &mut Ebpf,
    name: &'static str,
    networks: &[(Network, u16)],
) -> Result<(), Error> {
    for (network, class) in networks {
        let (prefix, class) = (network.prefix().into(), u32::from(*class));
        let map = ebpf.map_mut(name).ok_or(Error::NoMap(name))?;
        let result = match network.address() {
            IpAddr::V4(v4) => LpmTrie::try_from(map)
                .and_then(|mut map| map.insert(&Key::new(prefix, v4.octets()), class, 0)),
            IpAddr::V6(v6) => LpmTrie::try_from(map)
                .and_then(|mut map| map.insert(&Key::new(prefix, v6.octets()), class, 0)),
        };
        filled(name, result)?;
    }
    Ok(())
}

fn array<'e, V: aya::Pod>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<Array<&'e mut MapData, V>, Error> {
    let map: &mut Map = ebpf.map_mut(name).ok_or(Error::NoMap(name))?;
    map.try_into().map_err(|_| Error::NoMap(name))
}

fn filled(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    result.map_err(|source| Error::Map { map, source })
}
