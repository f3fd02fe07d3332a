//! What tells the tunnels between two hosts apart: key, VNI, session.

use crate::UsageError;
use clap::Args;
use fluxcap_proto::v1::{InnerProtocol, TunnelKind, TunnelMapping, TunnelSpec};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::tunnel_kind_word;

/// The identifier of a tunnel. No key and key 0 are two things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdArg {
    /// `none`: packets without one.
    None,
    /// `any`: all packets; to receive only.
    Any,
    /// This number.
    Number(u32),
}

/// The identifier under the name that it has in each kind.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct IdArgs {
    /// GRE key, a number or a dotted quad; any or none to receive all packets or those without; none differs from 0
    #[arg(long, value_name = "K", value_parser = parse_key, conflicts_with_all = ["vni", "session"])]
    pub key: Option<IdArg>,

    /// Network of VXLAN and Geneve, virtual subnet of NVGRE, 0 to 16777215; any to receive all
    #[arg(long, visible_alias = "id", value_name = "N", value_parser = parse_vni, conflicts_with = "session")]
    pub vni: Option<IdArg>,

    /// ERSPAN session, 0 to 1023; any to receive all, none for those of type I; --key does as well
    #[arg(long, value_name = "N", value_parser = parse_session)]
    pub session: Option<IdArg>,
}

/// `--map ID=RING`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapArg {
    /// `None` for packets without an identifier.
    pub id: Option<u32>,
    /// The ring, not yet checked.
    pub ring: String,
}

/// `--map-remove ID`: an identifier, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapIdArg(
    /// `None` for packets without an identifier.
    pub Option<u32>,
);

impl FromStr for MapIdArg {
    type Err = UsageError;

    /// What stands behind the identifier in `ID=RING` is not looked at.
    fn from_str(text: &str) -> Result<Self, UsageError> {
        let id = text.split_once('=').map_or(text, |(id, _)| id);
        match id {
            "none" => Ok(MapIdArg(None)),
            id => number(id).map(|id| MapIdArg(Some(id))).ok_or_else(|| UsageError::Range {
                option: "--map-remove",
                text: format!("'{text}'"),
                problem: "write an identifier that is in the map, for instance 9001, 192.0.2.1 or none",
            }),
        }
    }
}

impl fmt::Display for MapIdArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "{id}"),
            None => f.write_str("none"),
        }
    }
}

impl IdArgs {
    /// What was given for a tunnel like `spec`, whose direction, kind and inner protocol are known.
    ///
    /// # Errors
    /// When the option is not the one for this kind.
    pub fn given(&self, spec: &TunnelSpec) -> Result<Option<IdArg>, UsageError> {
        let given = [
            ("--key", self.key),
            ("--vni", self.vni),
            ("--session", self.session),
        ];
        let Some((option, id)) = given.into_iter().find_map(|(o, id)| Some((o, id?))) else {
            return Ok(None);
        };
        let problem = match options(spec) {
            fitting if fitting.contains(&option) => return Ok(Some(id)),
            [first, ..] => format!("use {first}"),
            [] => match spec.kind() {
                TunnelKind::Gue | TunnelKind::Fou => {
                    "there is no key around IP; give --inner gre or --inner gretap for one"
                        .to_owned()
                }
                _ => "it has no identifier".to_owned(),
            },
        };
        Err(UsageError::Unsuited {
            option: option.to_owned(),
            what: format!("a tunnel of kind {}", tunnel_kind_word(spec.kind())),
            problem,
        })
    }
}

/// The options for the identifier of a tunnel, the usual one first.
fn options(spec: &TunnelSpec) -> &'static [&'static str] {
    match spec.kind() {
        TunnelKind::Gre | TunnelKind::Gretap => &["--key"],
        TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => &["--vni"],
        TunnelKind::Erspan => &["--session", "--key"],
        // What is in GUE its header says, and may be GRE.
        TunnelKind::Gue if spec.receive.is_some() => &["--key"],
        TunnelKind::Gue | TunnelKind::Fou => match spec.inner() {
            InnerProtocol::Gre | InnerProtocol::Gretap => &["--key"],
            InnerProtocol::Unspecified | InnerProtocol::Ip => &[],
        },
        TunnelKind::Unspecified | TunnelKind::Ipip | TunnelKind::Tzsp => &[],
    }
}

impl MapArg {
    /// The same as a message.
    #[must_use]
    pub fn to_message(&self) -> TunnelMapping {
        TunnelMapping {
            id: self.id,
            ring: self.ring.clone(),
        }
    }
}

impl FromStr for MapArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = || UsageError::Range {
            option: "--map",
            text: format!("'{text}'"),
            problem: "write ID=RING, for instance 9001=edge, 192.0.2.1=edge or none=rest",
        };
        let (id, ring) = text.split_once('=').ok_or_else(bad)?;
        let id = match id {
            "none" => None,
            id => Some(number(id).ok_or_else(bad)?),
        };
        if ring.is_empty() {
            return Err(bad());
        }
        Ok(MapArg {
            id,
            ring: ring.to_owned(),
        })
    }
}

/// A number in decimal or hexadecimal, or a dotted quad, as ip-link(8) takes a key.
fn number(text: &str) -> Option<u32> {
    if let Ok(quad) = text.parse::<Ipv4Addr>() {
        return Some(quad.to_bits());
    }
    plain_number(text)
}

fn plain_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(digits, radix).ok().filter(|_| plain)
}

fn parse_id(
    text: &str,
    parsed: Option<u32>,
    option: &'static str,
    problem: &'static str,
) -> Result<IdArg, UsageError> {
    match text {
        "any" => Ok(IdArg::Any),
        "none" => Ok(IdArg::None),
        text => parsed.map(IdArg::Number).ok_or_else(|| UsageError::Range {
            option,
            text: format!("'{text}'"),
            problem,
        }),
    }
}

fn parse_key(text: &str) -> Result<IdArg, UsageError> {
    parse_id(
        text,
        number(text),
        "--key",
        "a key is 0 to 4294967295 or a dotted quad, any or none",
    )
}

fn parse_vni(text: &str) -> Result<IdArg, UsageError> {
    parse_id(
        text,
        plain_number(text).filter(|vni| *vni <= 0xff_ffff),
        "--vni",
        "it has 24 bits: 0 to 16777215, any or none",
    )
}

fn parse_session(text: &str) -> Result<IdArg, UsageError> {
    parse_id(
        text,
        plain_number(text).filter(|session| *session <= 0x3ff),
        "--session",
        "it has 10 bits: 0 to 1023, any or none",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use fluxcap_proto::v1::TunnelReceive;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        ids: IdArgs,
    }

    fn parse(args: &[&str]) -> Result<IdArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.ids)
            .map_err(|error| error.to_string())
    }

    fn given(kind: TunnelKind, inner: InnerProtocol, args: &[&str]) -> Result<IdArg, String> {
        let spec = TunnelSpec {
            kind: kind.into(),
            inner: inner.into(),
            ..Default::default()
        };
        let id = parse(args).unwrap().given(&spec);
        id.map(|id| id.unwrap()).map_err(|error| error.to_string())
    }

    const NO_INNER: InnerProtocol = InnerProtocol::Unspecified;

    #[test]
    fn a_key_is_a_number_or_a_dotted_quad() {
        for (text, key) in [
            ("0", 0),
            ("4294967295", u32::MAX),
            ("0xff", 255),
            ("192.0.2.1", 0xc000_0201),
        ] {
            let id = given(TunnelKind::Gretap, NO_INNER, &["--key", text]);
            assert_eq!(id, Ok(IdArg::Number(key)), "{text}");
        }
        for text in ["4294967296", "-1", "+1", "1.2.3", "0x", "", "x"] {
            let error = parse(&[&format!("--key={text}")]);
            assert!(error.is_err_and(|e| e.contains("dotted quad")), "{text}");
        }
    }

    #[test]
    fn no_key_is_not_key_zero() {
        let id = |text| given(TunnelKind::Gre, NO_INNER, &["--key", text]).unwrap();
        assert_eq!(
            [id("none"), id("any"), id("0")],
            [IdArg::None, IdArg::Any, IdArg::Number(0)]
        );
    }

    #[test]
    fn what_does_not_fit_into_the_field_is_refused_with_what_does() {
        assert!(parse(&["--vni", "16777215"]).is_ok() && parse(&["--session", "1023"]).is_ok());
        assert!(parse(&["--vni", "16777216"]).is_err_and(|e| e.contains("0 to 16777215")));
        assert!(parse(&["--session", "1024"]).is_err_and(|e| e.contains("0 to 1023")));
        assert!(parse(&["--session", "0.0.0.1"]).is_err());
        assert!(parse(&["--key", "1", "--vni", "1"]).is_err());
    }

    #[test]
    fn each_kind_has_its_own_name_for_it() {
        for (kind, inner, option) in [
            (TunnelKind::Gre, NO_INNER, "--key"),
            (TunnelKind::Nvgre, NO_INNER, "--vni"),
            (TunnelKind::Vxlan, NO_INNER, "--id"),
            (TunnelKind::Erspan, NO_INNER, "--session"),
            (TunnelKind::Erspan, NO_INNER, "--key"),
            (TunnelKind::Gue, InnerProtocol::Gretap, "--key"),
            (TunnelKind::Fou, InnerProtocol::Gre, "--key"),
        ] {
            assert_eq!(given(kind, inner, &[option, "5"]), Ok(IdArg::Number(5)));
        }
        for (kind, inner, option, says) in [
            (TunnelKind::Vxlan, NO_INNER, "--key", "use --vni"),
            (TunnelKind::Gretap, NO_INNER, "--vni", "use --key"),
            (TunnelKind::Erspan, NO_INNER, "--vni", "use --session"),
            (TunnelKind::Ipip, NO_INNER, "--key", "no identifier"),
            (TunnelKind::Gue, InnerProtocol::Ip, "--key", "--inner"),
        ] {
            let error = given(kind, inner, &[option, "5"]);
            let found = error.clone().is_err_and(|e| e.contains(says));
            assert!(found, "{kind:?} {option}: {error:?}");
        }
    }

    #[test]
    fn gue_is_received_by_key_whatever_it_carries() {
        let spec = TunnelSpec {
            kind: TunnelKind::Gue.into(),
            receive: Some(TunnelReceive::default()),
            ..Default::default()
        };
        let id = parse(&["--key", "7"]).unwrap().given(&spec);
        assert_eq!(id, Ok(Some(IdArg::Number(7))));
    }

    #[test]
    fn a_mapping_has_an_identifier_and_a_ring() {
        let map = |text: &str| text.parse::<MapArg>().map(|m| (m.id, m.ring));
        assert_eq!(map("9001=edge"), Ok((Some(9001), "edge".into())));
        assert_eq!(map("none=shm:a"), Ok((None, "shm:a".into())));
        assert_eq!(map("0.0.1.0=a"), Ok((Some(256), "a".into())));
        for text in ["", "1", "=a", "1=", "x=a", "any=a"] {
            assert!(
                map(text).is_err_and(|e| e.to_string().contains("9001=edge")),
                "{text}"
            );
        }
    }
}
