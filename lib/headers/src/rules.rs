//! Ordered rules on frames: the first that matches decides.
//!
//! mirrord has eBPF programs do this, by tables; here each rule is looked at for itself, slowly and plainly. It is what those programs
//! have to agree with, see the tests of mirrord.

mod fields;
mod network;

use std::ops::RangeInclusive;

use crate::WireFrame;
use fields::Fields;
pub use network::{InvalidNetwork, Network};

/// Most rules of a set.
pub const MAX_RULES: usize = 1024;

/// What a rule does with the frames that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// They are selected.
    #[default]
    Accept,
    /// They are not.
    Exclude,
}

/// The way of a frame, as seen from its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It arrived.
    In,
    /// This host sends it.
    Out,
}

/// Conditions, all of which have to hold. An empty one holds for every frame; one with several values when one of them does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// What becomes of a frame that matches.
    pub action: Action,
    /// A frame that is not IP is in no network.
    pub sources: Vec<Network>,
    /// As `sources`.
    pub destinations: Vec<Network>,
    /// Of TCP, UDP, UDP-Lite, SCTP and DCCP. Packets of a protocol without ports match only if `protocols` names it. Later fragments
    /// match rules that accept, and none that excludes.
    pub source_ports: Vec<RangeInclusive<u16>>,
    /// As `source_ports`.
    pub destination_ports: Vec<RangeInclusive<u16>>,
    /// IP protocol numbers; of IPv6 the one behind the extension headers.
    pub protocols: Vec<u8>,
    /// VLAN identifiers, 0 to 4094: one of the outer two tags has it.
    pub vlans: Vec<u16>,
    /// Frames without a tag, beside those with `vlans`.
    pub untagged: bool,
    /// TCP flags as in octet 13 of the header: those in the mask have the value. Later fragments of TCP match as for ports.
    pub tcp_flags: u8,
    /// 0: no condition.
    pub tcp_flags_mask: u8,
    /// `None`: both.
    pub direction: Option<Direction>,
}

/// Whether a protocol has ports, at the front of its header: TCP, UDP, DCCP, SCTP, UDP-Lite.
#[must_use]
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

impl Rule {
    /// Whether the frame that these fields are of matches.
    fn matches(&self, fields: &Fields, direction: Direction) -> bool {
        let ports = fields.ports.map_or([None; 2], |ports| ports.map(Some));
        one_of(&self.sources, |network| network.has(fields.source))
            && one_of(&self.destinations, |network| {
                network.has(fields.destination)
            })
            && self.matches_port(&self.source_ports, ports[0], fields)
            && self.matches_port(&self.destination_ports, ports[1], fields)
            && one_of(&self.protocols, |it| fields.protocol == Some(*it))
            && self.matches_vlan(fields)
            && self.matches_flags(fields)
            && self.direction.is_none_or(|wanted| wanted == direction)
    }

    fn matches_port(
        &self,
        wanted: &[RangeInclusive<u16>],
        port: Option<u16>,
        fields: &Fields,
    ) -> bool {
        let Some(protocol) = fields.protocol else {
            return wanted.is_empty();
        };
        if !has_ports(protocol) {
            return wanted.is_empty() || self.protocols.contains(&protocol);
        }
        one_of(wanted, |range| match port {
            Some(port) => range.contains(&port),
            None => fields.later && self.action == Action::Accept,
        })
    }

    fn matches_flags(&self, fields: &Fields) -> bool {
        self.tcp_flags_mask == 0
            || match fields.tcp_flags {
                Some(flags) => flags & self.tcp_flags_mask == self.tcp_flags,
                None => fields.protocol == Some(6) && fields.later && self.action == Action::Accept,
            }
    }

    fn matches_vlan(&self, fields: &Fields) -> bool {
        match fields.vids {
            [None, _] => self.untagged || self.vlans.is_empty(),
            vids if self.untagged => vids
                .into_iter()
                .flatten()
                .any(|vid| self.vlans.contains(&vid)),
            vids => one_of(&self.vlans, |vlan| vids.contains(&Some(*vlan))),
        }
    }
}

/// Whether one value does; with no values, everything does.
fn one_of<T>(values: &[T], does: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(does)
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is selected.
    pub accepted: bool,
    /// The rule that decided, by its place from 0 on; `None` when none matched.
    pub rule: Option<usize>,
}

/// A checked set of rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

/// Why rules cannot be used. They count from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRule {
    /// More than [`MAX_RULES`].
    #[error("{0} rules: at most {MAX_RULES} are possible")]
    TooMany(usize),
    /// A range whose first port is behind its last.
    #[error("rule {rule}: {first} to {last} is no range of ports")]
    Ports {
        /// Its number.
        rule: usize,
        /// As given.
        first: u16,
        /// As given.
        last: u16,
    },
    /// Not a VLAN identifier.
    #[error("rule {rule}: VLAN id {vlan} is out of range: use 0 to 4094")]
    Vlan {
        /// Its number.
        rule: usize,
        /// As given.
        vlan: u16,
    },
    /// No frame could ever match.
    #[error("rule {rule}: a TCP flag is not in the mask, so that no frame could match")]
    Flags {
        /// Its number.
        rule: usize,
    },
}

impl RuleSet {
    /// Checks rules, which stay in their order.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn new(rules: Vec<Rule>) -> Result<RuleSet, InvalidRule> {
        if rules.len() > MAX_RULES {
            return Err(InvalidRule::TooMany(rules.len()));
        }
        for (rule, number) in rules.iter().zip(1..) {
            check(rule, number)?;
        }
        Ok(RuleSet { rules })
    }

    /// The rules, in their order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a frame is selected that matches no rule: when there is none that accepts.
    #[must_use]
    pub fn accepts_others(&self) -> bool {
        !self.rules.iter().any(|rule| rule.action == Action::Accept)
    }

    /// What becomes of a frame.
    #[must_use]
    pub fn decide(&self, frame: &WireFrame<'_>, direction: Direction) -> Decision {
        let fields = Fields::of(frame);
        let matches = |rule: &Rule| rule.matches(&fields, direction);
        let rule = self.rules.iter().position(matches);
        Decision {
            accepted: match rule.and_then(|rule| self.rules.get(rule)) {
                Some(rule) => rule.action == Action::Accept,
                None => self.accepts_others(),
            },
            rule,
        }
    }
}

fn check(rule: &Rule, number: usize) -> Result<(), InvalidRule> {
    let mut ranges = rule.source_ports.iter().chain(&rule.destination_ports);
    if let Some(range) = ranges.find(|range| range.is_empty()) {
        return Err(InvalidRule::Ports {
            rule: number,
            first: *range.start(),
            last: *range.end(),
        });
    }
    if let Some(vlan) = rule.vlans.iter().find(|vlan| **vlan > 4094) {
        return Err(InvalidRule::Vlan {
            rule: number,
            vlan: *vlan,
        });
    }
    if rule.tcp_flags & !rule.tcp_flags_mask != 0 {
        return Err(InvalidRule::Flags { rule: number });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
