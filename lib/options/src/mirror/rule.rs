//! Rules of a mirror as text.
//!
//! ```text
//! RULE      = [accept | exclude] CONDITION...
//! CONDITION = src NET[,NET...] | dst NET[,NET...]      addresses and networks, IPv4 and IPv6
//!           | sport PORT[,PORT...] | dport PORT[,...]   ports and ranges: 80,443,8000-8100
//!           | proto PROTO[,PROTO...]                    names and numbers: tcp,udp,47
//!           | vlan VID[,VID...] | untagged              0 to 4094; vlan 5,untagged
//!           | flags FLAG[,FLAG...][/FLAG[,...]]         TCP flags that are set, among those behind the slash
//!           | dir ingress|egress|both
//! ```
//!
//! A condition that is left out, or `any`, holds for every frame. Lists may have a space behind the comma.

use super::protocol::{protocol_name, protocol_number};
use crate::{Network, UsageError};
use fluxcap_proto::v1::{Direction, MirrorRule, PortRange, RuleAction};
use std::fs;
use std::str::FromStr;

/// Bits of the TCP header's octet 13, lowest first (RFC 9293 section 3.1).
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
/// Any.
const ANY: &str = "any";
const KEYS: &str = "src, dst, sport, dport, proto, vlan, untagged, flags and dir";

/// `--rule`: one rule; `None` for the empty text, which clears all.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleArg(
    /// The rule.
    pub Option<MirrorRule>,
);

/// `--rules-file`: the rules of a file, one on each line. What is behind a `#` is a comment.
#[derive(Debug, Clone, PartialEq)]
pub struct RulesFileArg(
    /// The rules, in their order.
    pub Vec<MirrorRule>,
);

impl FromStr for RuleArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text.trim() {
            "" => Ok(RuleArg(None)),
            text => parse_rule(text).map(|rule| RuleArg(Some(rule))),
        }
    }
}

impl FromStr for RulesFileArg {
    type Err = UsageError;

    fn from_str(path: &str) -> Result<Self, UsageError> {
        let text = fs::read_to_string(path).map_err(|error| UsageError::Value {
            option: "--rules-file",
            text: path.to_owned(),
            problem: error.to_string(),
        })?;
        parse_rules(&text).map(RulesFileArg)
    }
}

/// The rules of a text with one on each line.
///
/// # Errors
/// The first line that is no rule, by its number.
pub fn parse_rules(text: &str) -> Result<Vec<MirrorRule>, UsageError> {
    let lines = text.lines().enumerate().map(|(index, line)| {
        let code = line.split('#').next().unwrap_or_default().trim();
        (index + 1, code)
    });
    lines
        .filter(|(_, code)| !code.is_empty())
        .map(|(number, code)| {
            parse(code).map_err(|problem| UsageError::Rule {
                text: code.to_owned(),
                problem: format!("line {number}: {problem}"),
            })
        })
        .collect()
}

/// One rule.
///
/// # Errors
/// What cannot be read, and what would do.
pub fn parse_rule(text: &str) -> Result<MirrorRule, UsageError> {
    parse(text).map_err(|problem| UsageError::Rule {
        text: text.to_owned(),
        problem,
    })
}

fn parse(text: &str) -> Result<MirrorRule, String> {
    let words = words(text);
    let mut words = words.iter().map(String::as_str).peekable();
    let mut rule = MirrorRule {
        action: RuleAction::Accept.into(),
        ..Default::default()
    };
    match words.peek() {
        Some(&"accept") => drop(words.next()),
        Some(&"exclude") => {
            rule.action = RuleAction::Exclude.into();
            words.next();
        }
        Some(_) => {}
        None => return Err(format!("write accept or exclude, and any of {KEYS}")),
    }
    let mut seen = Vec::new();
    while let Some(key) = words.next() {
        if seen.contains(&key) {
            return Err(format!(
                "{key} is there twice; write all its values with commas between"
            ));
        }
        seen.push(key);
        if key == "untagged" {
            rule.untagged = true;
            continue;
        }
        let value = words.next();
        apply(&mut rule, key, value).map_err(|problem| format!("{key}: {problem}"))?;
    }
    Ok(rule)
}

/// Words with spaces between; those around a comma are one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if last.ends_with(',') || word.starts_with(',') => last.push_str(word),
            _ => words.push(word.to_owned()),
        }
    }
    words
}

fn apply(rule: &mut MirrorRule, key: &str, value: Option<&str>) -> Result<(), String> {
    let value = match (value, key) {
        (_, "accept" | "exclude") => return Err("goes first".to_owned()),
        (Some(value), _) => value,
        (None, "src" | "dst" | "sport" | "dport" | "proto" | "vlan" | "flags" | "dir") => {
            return Err("its value is missing".to_owned());
        }
        (None, _) => "",
    };
    match key {
        "src" => rule.sources = networks(value)?,
        "dst" => rule.destinations = networks(value)?,
        "sport" => rule.source_ports = ports(value)?,
        "dport" => rule.destination_ports = ports(value)?,
        "proto" => rule.protocols = protocols(value)?,
        "vlan" => vlans(rule, value)?,
        "flags" => (rule.tcp_flags, rule.tcp_flags_mask) = flags(value)?,
        "dir" => rule.direction = direction(value)?.into(),
        "port" => {
            return Err(
                "a rule asks for the port of one end: dport 53 or sport 53, or for either of both in two rules; or use --filter 'port 53'"
                    .to_owned(),
            );
        }
        "host" | "net" => {
            return Err(format!(
                "a rule asks for one end: src {value} or dst {value}, or for either of both in two rules; or use --filter '{key} {value}'"
            ));
        }
        _ => {
            return Err(format!(
                "is no condition; there are {KEYS}; pcap-filter(7) goes to --filter"
            ));
        }
    }
    Ok(())
}

/// Networks and addresses; empty for any.
pub(super) fn networks(list: &str) -> Result<Vec<String>, String> {
    each(list, |part| {
        let network: Network = part.parse().map_err(|_| {
            format!(
                "'{part}' is no address or network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
            )
        })?;
        Ok(network.to_string())
    })
}

/// Ports and ranges of them; empty for any.
pub(super) fn ports(list: &str) -> Result<Vec<PortRange>, String> {
    each(list, |part| {
        let bad = || format!("'{part}' is no port or range; write 0 to 65535, or 8000-8100");
        let port = |text: &str| digits::<u16>(text).map(u32::from).ok_or_else(bad);
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(part)?, port(part)?),
        };
        if first > last {
            return Err(format!(
                "'{part}': a range goes from the lower port to the higher one"
            ));
        }
        Ok(PortRange { first, last })
    })
}

/// IP protocols by name or number; empty for any.
pub(super) fn protocols(list: &str) -> Result<Vec<u32>, String> {
    each(list, |part| {
        let number = digits::<u8>(part).or_else(|| protocol_number(part));
        number
            .map(u32::from)
            .ok_or_else(|| format!("'{part}' is no protocol; write a name such as tcp, udp, icmp, icmp6 or gre, or 0 to 255"))
    })
}

fn vlans(rule: &mut MirrorRule, list: &str) -> Result<(), String> {
    let ids = each(list, |part| {
        if part == "untagged" {
            return Ok(None);
        }
        let id = digits::<u32>(part).filter(|id| *id <= 4094);
        id.map(Some)
            .ok_or_else(|| format!("'{part}' is no VLAN; write 0 to 4094, or untagged"))
    })?;
    rule.untagged |= ids.contains(&None);
    rule.vlans = ids.into_iter().flatten().collect();
    Ok(())
}

/// Value and mask of TCP flags.
fn flags(text: &str) -> Result<(u32, u32), String> {
    if text == ANY {
        return Ok((0, 0));
    }
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (flag_bits(value)?, flag_bits(mask)?),
        None => match flag_bits(text)? {
            // No flag at all.
            0 => (0, 0xff),
            bits => (bits, bits),
        },
    };
    match (value & !mask, mask) {
        (_, 0) => Err("no flag to look at behind the slash".to_owned()),
        (0, _) => Ok((value, mask)),
        (stray, _) => Err(format!(
            "{} is not among the flags behind the slash, so that no frame could match",
            flag_names(stray)
        )),
    }
}

fn flag_bits(list: &str) -> Result<u32, String> {
    if list == "none" {
        return Ok(0);
    }
    if let Some(hex) = list.strip_prefix("0x")
        && let Ok(bits) = u8::from_str_radix(hex, 16)
    {
        return Ok(bits.into());
    }
    let bits = each(list, |part| {
        let bit = FLAGS.iter().position(|flag| *flag == part);
        bit.map(|bit| 1_u32 << bit)
            .ok_or_else(|| format!("'{part}' is no flag; there are {}", FLAGS.join(", ")))
    })?;
    Ok(bits.into_iter().fold(0, |all, bit| all | bit))
}

fn direction(word: &str) -> Result<Direction, String> {
    match word {
        "in" | "ingress" => Ok(Direction::In),
        "out" | "egress" => Ok(Direction::Out),
        "both" | ANY => Ok(Direction::Unspecified),
        _ => Err(format!("'{word}' is none of ingress, egress and both")),
    }
}

/// The parts of a list with commas between, each once; empty for `any`.
fn each<T: PartialEq>(
    list: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut all = Vec::new();
    if list == ANY {
        return Ok(all);
    }
    for part in list.split(',') {
        if part.is_empty() {
            return Err("a value is missing at a comma".to_owned());
        }
        let value = read(part)?;
        if !all.contains(&value) {
            all.push(value);
        }
    }
    Ok(all)
}

/// A number that is nothing but digits: `parse` would take a sign too.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A rule as the text that gives it.
#[must_use]
pub fn rule_text(rule: &MirrorRule) -> String {
    let mut text = match rule.action() {
        RuleAction::Exclude => "exclude",
        RuleAction::Accept | RuleAction::Unspecified => "accept",
    }
    .to_owned();
    let mut add = |key: &str, values: &[String]| {
        if !values.is_empty() {
            text = format!("{text} {key} {}", values.join(","));
        }
    };
    let range = |range: &PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    };
    let ranges = |ranges: &[PortRange]| ranges.iter().map(range).collect::<Vec<_>>();
    add("src", &rule.sources);
    add("sport", &ranges(&rule.source_ports));
    add("dst", &rule.destinations);
    add("dport", &ranges(&rule.destination_ports));
    let protocols = rule.protocols.iter().map(|number| protocol_name(*number));
    add("proto", &protocols.collect::<Vec<_>>());
    let untagged = rule.untagged.then(|| "untagged".to_owned());
    let vlans = rule.vlans.iter().map(u32::to_string).chain(untagged);
    add("vlan", &vlans.collect::<Vec<_>>());
    if rule.tcp_flags_mask != 0 {
        add("flags", &[flags_text(rule.tcp_flags, rule.tcp_flags_mask)]);
    }
    match rule.direction() {
        Direction::In => add("dir", &["ingress".to_owned()]),
        Direction::Out => add("dir", &["egress".to_owned()]),
        Direction::Both | Direction::Unspecified => {}
    }
    text
}

fn flags_text(value: u32, mask: u32) -> String {
    match (value, mask) {
        (0, 0xff) => "none".to_owned(),
        _ if value == mask => flag_names(value),
        _ => format!("{}/{}", flag_names(value), flag_names(mask)),
    }
}

fn flag_names(bits: u32) -> String {
    let set = FLAGS
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits & (1 << bit) != 0);
    match bits {
        0 => "none".to_owned(),
        _ => set.map(|(_, flag)| *flag).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests;
