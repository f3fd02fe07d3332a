//! VLAN tags as text.

use crate::UsageError;
use fluxcap_proto::v1::VlanTag;
use std::str::FromStr;

/// Tag protocol identifiers that fluxcap writes and recognises: 802.1Q, 802.1ad, and the older QinQ one.
const TPIDS: [u32; 3] = [0x8100, 0x88a8, 0x9100];

/// A VLAN tag, or the wish to have none: `VID`, `TPID:VID[:PCP[:DEI]]`, or the empty text.
#[derive(Debug, Clone, PartialEq)]
pub struct TagArg(
    /// The tag; `None` clears the one that was set.
    pub Option<VlanTag>,
);

impl FromStr for TagArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        if text.is_empty() {
            return Ok(TagArg(None));
        }
        let bad = |problem| UsageError::Tag {
            text: text.to_owned(),
            problem,
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (tpid, vid, pcp, dei) = match parts[..] {
            [vid] => ("8100", vid, "0", "0"),
            [tpid, vid] => (tpid, vid, "0", "0"),
            [tpid, vid, pcp] => (tpid, vid, pcp, "0"),
            [tpid, vid, pcp, dei] => (tpid, vid, pcp, dei),
            _ => return Err(bad("too many parts")),
        };
        let digits = tpid.strip_prefix("0x").unwrap_or(tpid);
        let tpid = u32::from_str_radix(digits, 16)
            .ok()
            .filter(|tpid| TPIDS.contains(tpid))
            .ok_or_else(|| bad("the TPID is 8100, 88a8 or 9100"))?;
        let number = |part: &str, max: u32, problem| {
            part.parse()
                .ok()
                .filter(|value| *value <= max)
                .ok_or_else(|| bad(problem))
        };
        Ok(TagArg(Some(VlanTag {
            vid: number(vid, 4094, "the VID is 0 to 4094")?,
            pcp: number(pcp, 7, "the PCP is 0 to 7")?,
            dei: number(dei, 1, "the DEI is 0 or 1")? == 1,
            tpid,
        })))
    }
}

/// A tag to push: on every frame (`TAG`) or on those of one interface (`IFACE=TAG`).
#[derive(Debug, Clone, PartialEq)]
pub struct VlanPushArg {
    /// The interface; `None` means all of them.
    pub interface: Option<String>,
    /// The tag; `None` clears the one that was set.
    pub tag: Option<VlanTag>,
}

impl FromStr for VlanPushArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let (interface, tag) = match text.split_once('=') {
            Some(("", _)) => {
                return Err(UsageError::Tag {
                    text: text.to_owned(),
                    problem: "no interface before '='",
                });
            }
            Some((interface, tag)) => (Some(interface.to_owned()), tag),
            None => (None, text),
        };
        Ok(VlanPushArg {
            interface,
            tag: tag.parse::<TagArg>()?.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Result<Option<VlanTag>, UsageError> {
        text.parse::<TagArg>().map(|tag| tag.0)
    }

    #[test]
    fn a_lone_number_is_a_vid() {
        assert_eq!(
            tag("100"),
            Ok(Some(VlanTag {
                vid: 100,
                pcp: 0,
                dei: false,
                tpid: 0x8100
            }))
        );
        assert_eq!(
            tag("0"),
            Ok(Some(VlanTag {
                vid: 0,
                pcp: 0,
                dei: false,
                tpid: 0x8100
            }))
        );
    }

    #[test]
    fn every_part_of_a_tag_can_be_given() {
        assert_eq!(
            tag("88a8:4094:7:1"),
            Ok(Some(VlanTag {
                vid: 4094,
                pcp: 7,
                dei: true,
                tpid: 0x88a8
            }))
        );
        assert_eq!(
            tag("0x9100:5:3"),
            Ok(Some(VlanTag {
                vid: 5,
                pcp: 3,
                dei: false,
                tpid: 0x9100
            }))
        );
    }

    #[test]
    fn an_empty_tag_clears() {
        assert_eq!(tag(""), Ok(None));
        assert_eq!(
            "eth1=".parse(),
            Ok(VlanPushArg {
                interface: Some("eth1".into()),
                tag: None
            })
        );
    }

    #[test]
    fn out_of_range_tags_are_refused_with_the_range() {
        for (text, says) in [
            ("4095", "0 to 4094"),
            ("-1", "0 to 4094"),
            ("100:5", "TPID"),
            ("8100:1:8", "PCP"),
            ("8100:1:0:2", "DEI"),
            ("8100:1:0:1:1", "too many"),
            ("=5", "no interface"),
        ] {
            let error = text
                .parse::<VlanPushArg>()
                .map_err(|error| error.to_string());
            assert!(
                error.clone().is_err_and(|error| error.contains(says)),
                "{text}: {error:?}"
            );
        }
    }
}
