//! Addresses as text: far ends, senders, Ethernet.

use crate::UsageError;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest host name, RFC 1035 section 2.3.4.
const MAX_HOST: usize = 253;

/// A network or a single address: `192.0.2.0/24`, `2001:db8::/32`, `192.0.2.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// At most 32 for IPv4, 128 for IPv6.
    prefix: u8,
}

impl Network {
    /// As it was written; the bits behind the prefix need not be 0.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits in which its addresses agree: 0 to 32 for IPv4, to 128 for IPv6.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address is part of it. An IPv4 address that comes mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differing = ours.to_bits() ^ theirs.to_bits();
                differing.leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differing = ours.to_bits() ^ theirs.to_bits();
                differing.leading_zeros() >= self.prefix.into()
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = || UsageError::Range {
            option: "--from",
            text: format!("'{text}'"),
            problem: "write an address or a network, for instance 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32",
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            // `parse` would take a sign too.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(bad)?,
            Some(_) => return Err(bad()),
        };
        Ok(Network { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.prefix) {
            (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128) => write!(f, "{}", self.address),
            (address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

/// The far end of a tunnel: an address, or `None` for the name of a host.
///
/// # Errors
/// What is wrong with text that is neither, or with an address that no single host has.
pub fn remote_address(text: &str) -> Result<Option<IpAddr>, &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match address {
            _ if address.is_unspecified() => Err("is no address of a host"),
            _ if address.is_multicast() => {
                Err("is a multicast address; a tunnel has one far end, name it")
            }
            IpAddr::V4(v4) if v4.is_broadcast() => {
                Err("is the broadcast address; a tunnel has one far end, name it")
            }
            _ => Ok(Some(address)),
        };
    }
    if text.contains('%') {
        return Err("has a zone; leave it out and name the interface by --dev");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A name whose last part is a number would be an address that somebody mistyped.
    let name = text.strip_suffix('.').unwrap_or(text);
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let labels = || name.split('.');
    if name.len() > MAX_HOST || !labels().all(label) || labels().next_back().is_none_or(numeric) {
        return Err("is neither an address nor the name of a host");
    }
    Ok(None)
}

/// An Ethernet address from text such as `02:00:00:00:00:01`; dashes do as well.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let digits = parts
            .next()
            .filter(|part| (1..=2).contains(&part.len()) && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn contains(network_text: &str, address: &str) -> bool {
        network(network_text).contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_what_begins_as_it_does() {
        for (text, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.130/25", "192.0.2.128", "192.0.2.127"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::", "0.0.0.0"),
        ] {
            assert!(contains(text, inside), "{text} {inside}");
            assert!(!contains(text, outside), "{text} {outside}");
        }
    }

    #[test]
    fn an_ipv4_sender_on_an_ipv6_socket_is_an_ipv4_sender() {
        assert!(contains("192.0.2.0/24", "::ffff:192.0.2.1"));
        assert!(!contains("::/0", "::ffff:192.0.2.1"));
    }

    #[test]
    fn networks_are_shown_as_they_are_written() {
        for text in ["192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "::1"] {
            assert_eq!(network(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_examples() {
        for text in [
            "",
            "host",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/+8",
            "::/129",
            "192.0.2.0/255.255.255.0",
        ] {
            let error = text.parse::<Network>().map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.contains("192.0.2.0/24")), "{text}");
        }
    }

    #[test]
    fn a_far_end_is_an_address_or_the_name_of_a_host() {
        for (text, address) in [
            ("192.0.2.9", true),
            ("2001:db8::9", true),
            ("collector", false),
            ("ids-1.example.net.", false),
            ("_x.example", false),
            ("9.example", false),
        ] {
            let found = remote_address(text).map(|a| a.is_some());
            assert_eq!(found, Ok(address), "{text}");
        }
        for text in [
            "",
            ".",
            "a..b",
            "-a",
            "a b",
            "192.0.2.256",
            "192.0.2",
            "0.0.0.0",
            "::",
            "239.1.1.1",
            "ff02::1",
            "255.255.255.255",
            "fe80::1%eth0",
            "a/24",
            &"a.".repeat(127),
            &"a".repeat(64),
        ] {
            let fits = text.len() == 254;
            assert_eq!(remote_address(text).is_err(), !fits, "{text}");
        }
    }

    #[test]
    fn ethernet_addresses_have_six_bytes() {
        assert_eq!(
            parse_mac("02:0:AB:cd:00:ff"),
            Some([2, 0, 0xab, 0xcd, 0, 0xff])
        );
        assert_eq!(parse_mac("02-00-00-00-00-01"), Some([2, 0, 0, 0, 0, 1]));
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:001",
            "+2:00:00:00:00:01",
            "020000000001",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
