//! A tunnel on a daemon's command line.

use super::TunnelKindArg;
use crate::work::split_list;
use crate::{UsageError, default_name};
use clap::ValueEnum;
use std::str::FromStr;

/// What `tunneld --send RING[,RING...]:KIND:REMOTE` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWork {
    /// At least one ring, not yet checked.
    pub rings: Vec<String>,
    /// The format.
    pub kind: TunnelKindArg,
    /// The far end without brackets, not yet checked.
    pub remote: String,
}

/// What `tunneld --recv KIND[:RING]` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveWork {
    /// The format.
    pub kind: TunnelKindArg,
    /// The ring, not yet checked; none when a map names them.
    pub ring: Option<String>,
}

/// An address without the brackets that it may have around it.
#[must_use]
pub fn bare_address(text: &str) -> &str {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(text)
}

impl SendWork {
    /// From the parts of a command line; rings have commas between, and an address may have brackets around.
    ///
    /// # Errors
    /// When a ring or the far end is empty.
    pub fn new(rings: &str, kind: TunnelKindArg, remote: &str) -> Result<SendWork, UsageError> {
        let remote = bare_address(remote).to_owned();
        match split_list(rings) {
            Some(rings) if !remote.is_empty() => Ok(SendWork {
                rings,
                kind,
                remote,
            }),
            _ => Err(UsageError::Work {
                text: format!("{rings} {remote}"),
                problem: SEND_FORM,
            }),
        }
    }

    /// The name that the tunnel gets when none is given: `cisco-gretap-192-0-2-9`.
    #[must_use]
    pub fn default_name(&self) -> String {
        let rings = self.rings.iter().map(String::as_str);
        let kind = super::tunnel_kind_word(self.kind.into());
        default_name(rings.chain([kind, &self.remote]))
    }
}

impl FromStr for SendWork {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = |problem| UsageError::Work {
            text: text.to_owned(),
            problem,
        };
        // Rings may have a colon (shm:cisco), and so have the addresses of IPv6.
        let mut end = 0;
        loop {
            let ring = &text[end..];
            let prefix = if ring.starts_with("shm:") { 4 } else { 0 };
            let len = ring[prefix..].find([',', ':']);
            end += prefix + len.ok_or_else(|| bad(SEND_FORM))?;
            if text[end..].starts_with(':') {
                break;
            }
            end += 1;
        }
        let (kind, remote) = text[end + 1..]
            .split_once(':')
            .ok_or_else(|| bad(SEND_FORM))?;
        let kind = kind_of(kind).ok_or_else(|| bad(KINDS))?;
        SendWork::new(&text[..end], kind, remote).map_err(|_| bad(SEND_FORM))
    }
}

impl ReceiveWork {
    /// The name that the tunnel gets when none is given: `cisco-gretap`; `ring` stands in for one that is not there.
    #[must_use]
    pub fn default_name(&self, ring: &str) -> String {
        let kind = super::tunnel_kind_word(self.kind.into());
        default_name([self.ring.as_deref().unwrap_or(ring), kind])
    }
}

impl FromStr for ReceiveWork {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = |problem| UsageError::Work {
            text: text.to_owned(),
            problem,
        };
        let (kind, ring) = match text.split_once(':') {
            Some((_, "")) => return Err(bad("write KIND:RING, for instance gretap:cisco")),
            Some((kind, ring)) => (kind, Some(ring.to_owned())),
            None => (text, None),
        };
        let kind = kind_of(kind).ok_or_else(|| bad(KINDS))?;
        Ok(ReceiveWork { kind, ring })
    }
}

const SEND_FORM: &str = "write RING[,RING...]:KIND:REMOTE, for instance cisco:gretap:192.0.2.9";

const KINDS: &str =
    "the kinds are gre, gretap, nvgre, erspan, vxlan, geneve, gue, fou, ipip and tzsp";

fn kind_of(word: &str) -> Option<TunnelKindArg> {
    TunnelKindArg::from_str(word, false).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_of_rings_and_addresses_are_theirs() {
        for (text, rings, remote) in [
            ("cisco:gretap:192.0.2.9", &["cisco"][..], "192.0.2.9"),
            ("shm:a,b:gretap:host", &["shm:a", "b"], "host"),
            ("a,shm:b:gretap:2001:db8::9", &["a", "shm:b"], "2001:db8::9"),
            ("gre:gretap:[2001:db8::9]", &["gre"], "2001:db8::9"),
            ("shm:gre:gretap:vxlan", &["shm:gre"], "vxlan"),
        ] {
            let work: SendWork = text.parse().unwrap();
            assert_eq!(work.rings, rings, "{text}");
            assert_eq!(
                (work.kind, work.remote.as_str()),
                (TunnelKindArg::Gretap, remote)
            );
        }
    }

    #[test]
    fn incomplete_work_is_refused_with_the_form() {
        for text in [
            "",
            "cisco",
            "cisco:gretap",
            "cisco:gretap:",
            ":gretap:h",
            "a,:gretap:h",
        ] {
            let error = text.parse::<SendWork>().map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.contains("cisco:gretap")), "{text}");
        }
        let error = "cisco:l2tp:h"
            .parse::<SendWork>()
            .map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("erspan")));
        for text in ["", "l2tp:a", "gretap:"] {
            assert!(text.parse::<ReceiveWork>().is_err(), "{text}");
        }
    }

    #[test]
    fn received_kinds_may_come_without_a_ring() {
        let work: ReceiveWork = "vxlan".parse().unwrap();
        assert_eq!(work.ring, None);
        assert_eq!(work.default_name("edge"), "edge-vxlan");
        let work: ReceiveWork = "ip6gretap:shm:cisco".parse().unwrap();
        assert_eq!(
            (work.kind, work.ring.as_deref()),
            (TunnelKindArg::Gretap, Some("shm:cisco"))
        );
        assert_eq!(work.default_name(""), "shm-cisco-gretap");
    }

    #[test]
    fn default_names_hold_rings_kind_and_far_end() {
        let name = |text: &str| text.parse::<SendWork>().unwrap().default_name();
        assert_eq!(name("a,b:sit:2001:db8::9"), "a-b-ipip-2001-db8--9");
        assert_eq!(name("cisco:gretap:192.0.2.9"), "cisco-gretap-192-0-2-9");
    }
}
