//! Where the copies of a mirror go, as text.
//!
//! ```text
//! TARGET = ring:NAME
//!        | dev:IFACE[,IFACE...]
//!        | gue:REMOTE[:PORT][,OPTION...]          REMOTE: an address, one of IPv6 in brackets when a port follows
//!        | vxlan:REMOTE[:PORT],vni=N[,OPTION...]
//!        | geneve:REMOTE[:PORT],vni=N[,OPTION...]
//!        | gretap:REMOTE[,key=N][,OPTION...]
//! OPTION = port=N | vni=N | key=N | l2 | inner=ip|gretap | local=ADDR | dev=IFACE | ttl=N | tos=N | sport=N|auto | mtu=truncate|drop
//! ```

use crate::UsageError;
use crate::work::split_list;
use fluxcap_proto::v1::{InnerProtocol, MirrorOverlay, MtuPolicy, TunnelKind};
use std::net::IpAddr;
use std::str::FromStr;

const FORM: &str = "write ring:NAME, dev:IFACE[,IFACE...], gue:REMOTE[:PORT], vxlan:REMOTE,vni=N, geneve:REMOTE,vni=N or gretap:REMOTE[,key=N]";
const OPTIONS: &str = "port, vni, key, l2, inner, local, dev, ttl, tos, sport and mtu";

/// `--to`.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetArg {
    /// A ring.
    Ring(String),
    /// Interfaces, at least one.
    Devices(Vec<String>),
    /// A collector.
    Overlay(OverlayArg),
}

/// A collector with what was said of the way there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OverlayArg {
    /// What was said.
    pub overlay: MirrorOverlay,
    /// Fields of it that options name, for an update mask.
    pub(super) given: Vec<&'static str>,
}

impl FromStr for TargetArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = |problem: String| UsageError::Target {
            text: text.to_owned(),
            problem,
        };
        let (kind, rest) = text
            .split_once(':')
            .filter(|(_, rest)| !rest.is_empty())
            .ok_or_else(|| bad(FORM.to_owned()))?;
        let kind = match kind {
            "ring" => return Ok(TargetArg::Ring(rest.to_owned())),
            "dev" => {
                let devices = split_list(rest).ok_or_else(|| bad(FORM.to_owned()))?;
                return Ok(TargetArg::Devices(devices));
            }
            "gue" => TunnelKind::Gue,
            "vxlan" => TunnelKind::Vxlan,
            "geneve" => TunnelKind::Geneve,
            "gretap" => TunnelKind::Gretap,
            _ => return Err(bad(FORM.to_owned())),
        };
        overlay(kind, rest).map(TargetArg::Overlay).map_err(bad)
    }
}

fn overlay(kind: TunnelKind, text: &str) -> Result<OverlayArg, String> {
    let mut parts = text.split(',');
    let (remote, port) = remote_and_port(parts.next().unwrap_or_default())?;
    let mut arg = OverlayArg {
        overlay: MirrorOverlay {
            kind: kind.into(),
            remote,
            port: port.unwrap_or(0),
            ..Default::default()
        },
        given: Vec::new(),
    };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let given = option(&mut arg.overlay, name, value)
            .map_err(|problem| format!("{name}: {problem}"))?;
        arg.given.push(given);
    }
    Ok(arg)
}

/// `192.0.2.9`, `192.0.2.9:7080`, `2001:db8::9`, `[2001:db8::9]:7080`.
fn remote_and_port(text: &str) -> Result<(String, Option<u32>), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or("the bracket behind the address is missing")?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("behind the bracket only :PORT can follow".to_owned()),
        }
    } else if text.parse::<IpAddr>().is_ok() {
        (text, None)
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("the address of the collector is missing".to_owned());
    }
    let port = port.map(|port| number(port, 1, 65535)).transpose()?;
    Ok((host.to_owned(), port))
}

/// Puts an option into its field, and names that.
fn option(overlay: &mut MirrorOverlay, name: &str, value: &str) -> Result<&'static str, String> {
    if value.is_empty() && name != "l2" {
        return match is_option(name) {
            true => Err(format!("write {name}=VALUE")),
            false => Err(format!("is no option of a target; there are {OPTIONS}")),
        };
    }
    match name {
        "port" | "dport" => {
            overlay.port = number(value, 1, 65535)?;
            Ok("overlay.port")
        }
        "vni" | "key" | "id" => {
            overlay.id = Some(number(value, 0, u32::MAX)?);
            Ok("overlay.id")
        }
        "l2" | "inner" => {
            overlay.inner = inner(name, value)?.into();
            Ok("overlay.inner")
        }
        "local" => {
            value.clone_into(&mut overlay.local);
            Ok("overlay.local")
        }
        "dev" => {
            value.clone_into(&mut overlay.device);
            Ok("overlay.device")
        }
        "ttl" => {
            overlay.ttl = number(value, 1, 255)?;
            Ok("overlay.ttl")
        }
        "tos" => {
            overlay.tos = number(value, 0, 255)?;
            Ok("overlay.tos")
        }
        "sport" => {
            overlay.source_port = match value {
                "auto" => 0,
                port => number(port, 1, 65535)?,
            };
            Ok("overlay.source_port")
        }
        "mtu" | "mtu-policy" => {
            overlay.mtu_policy = match value {
                "truncate" => MtuPolicy::Truncate.into(),
                "drop" => MtuPolicy::Drop.into(),
                _ => return Err(format!("'{value}' is neither truncate nor drop")),
            };
            Ok("overlay.mtu_policy")
        }
        _ => Err(format!("is no option of a target; there are {OPTIONS}")),
    }
}

fn is_option(name: &str) -> bool {
    let also = ["dport", "id", "mtu-policy"];
    OPTIONS
        .split([',', ' '])
        .chain(also)
        .any(|option| option == name && option != "and")
}

fn inner(name: &str, value: &str) -> Result<InnerProtocol, String> {
    match (name, value) {
        ("l2", "") | ("inner", "gretap") => Ok(InnerProtocol::Gretap),
        ("inner", "ip") => Ok(InnerProtocol::Ip),
        ("l2", _) => Err("has no value".to_owned()),
        _ => Err(format!("'{value}' is neither ip nor gretap")),
    }
}

/// A number in decimal or, behind 0x, in hexadecimal digits.
fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    number
        .filter(|it| (least..=most).contains(it) && !text.starts_with('+'))
        .ok_or_else(|| format!("'{text}' is out of range: write {least} to {most}"))
}

/// What a mirror does on a daemon's command line: `mirrord --mirror IFACE:TARGET`.
///
/// The first colon parts interface from target: an interface's name has none.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorWork {
    /// The interface, not empty.
    pub interface: String,
    /// The target.
    pub target: TargetArg,
}

impl FromStr for MirrorWork {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text.split_once(':') {
            Some((interface, target)) if !interface.is_empty() => Ok(MirrorWork {
                interface: interface.to_owned(),
                target: target.parse()?,
            }),
            _ => Err(UsageError::Work {
                text: text.to_owned(),
                problem: "write IFACE:TARGET, for instance eth0:ring:cisco or eth0:gue:192.0.2.9:7080",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay_of(text: &str) -> OverlayArg {
        match text.parse() {
            Ok(TargetArg::Overlay(arg)) => arg,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn rings_and_interfaces_are_named_behind_a_word() {
        assert_eq!("ring:cisco".parse(), Ok(TargetArg::Ring("cisco".into())));
        assert_eq!("ring:shm:x".parse(), Ok(TargetArg::Ring("shm:x".into())));
        let devices = TargetArg::Devices(vec!["eth1".into(), "eth2.5".into()]);
        assert_eq!("dev:eth1,eth2.5".parse(), Ok(devices));
    }

    #[test]
    fn a_collector_has_an_address_and_perhaps_a_port() {
        for (text, remote, port) in [
            ("gue:192.0.2.9", "192.0.2.9", 0),
            ("gue:192.0.2.9:7080", "192.0.2.9", 7080),
            ("gue:2001:db8::9", "2001:db8::9", 0),
            ("gue:[2001:db8::9]", "2001:db8::9", 0),
            ("gue:[2001:db8::9]:7080", "2001:db8::9", 7080),
            ("gue:192.0.2.9,port=7080", "192.0.2.9", 7080),
        ] {
            let arg = overlay_of(text);
            let found = (arg.overlay.remote.as_str(), arg.overlay.port);
            assert_eq!(found, (remote, port), "{text}");
            assert_eq!(arg.overlay.kind(), TunnelKind::Gue);
        }
    }

    #[test]
    fn every_option_arrives_in_its_field() {
        let text = "vxlan:192.0.2.9,vni=0x2329,inner=gretap,local=192.0.2.1,dev=eth1,ttl=9,tos=0xb8,sport=5,mtu=drop";
        let arg = overlay_of(text);
        let expected = MirrorOverlay {
            kind: TunnelKind::Vxlan.into(),
            inner: InnerProtocol::Gretap.into(),
            remote: "192.0.2.9".into(),
            local: "192.0.2.1".into(),
            device: "eth1".into(),
            source_port: 5,
            id: Some(9001),
            ttl: 9,
            tos: 0xb8,
            mtu_policy: MtuPolicy::Drop.into(),
            ..Default::default()
        };
        assert_eq!((arg.overlay, arg.given.len()), (expected, 8));
        let l2 = overlay_of("gue:192.0.2.9,l2,sport=auto").overlay;
        assert_eq!(l2.inner(), InnerProtocol::Gretap);
        assert_eq!(overlay_of("gretap:192.0.2.9,key=0").overlay.id, Some(0));
    }

    #[test]
    fn what_is_no_target_is_refused_with_what_would_do() {
        for (text, says) in [
            ("", "ring:NAME"),
            ("eth1", "ring:NAME"),
            ("ring:", "ring:NAME"),
            ("dev:a,,b", "dev:IFACE"),
            ("erspan:192.0.2.9", "gretap:REMOTE"),
            ("gue::", "address"),
            ("gue:192.0.2.9:0", "1 to 65535"),
            ("gue:[2001:db8::9", "bracket"),
            ("gue:[2001:db8::9]7080", ":PORT"),
            ("vxlan:192.0.2.9,vni", "vni=VALUE"),
            ("vxlan:192.0.2.9,vnis=4", "port, vni"),
            ("vxlan:192.0.2.9,vni=-4", "0 to 4294967295"),
            ("gue:192.0.2.9,ttl=+4", "1 to 255"),
            ("gue:192.0.2.9,l2=1", "no value"),
            ("gue:192.0.2.9,inner=gre", "neither ip"),
            ("gue:192.0.2.9,mtu=fragment", "neither truncate"),
        ] {
            let error = text.parse::<TargetArg>().map_err(|e| e.to_string());
            assert!(
                error.as_ref().is_err_and(|e| e.contains(says)),
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn work_is_split_at_the_first_colon() {
        let work: MirrorWork = "eth0:gue:[2001:db8::9]:7080".parse().unwrap();
        assert_eq!(work.interface, "eth0");
        assert!(matches!(work.target, TargetArg::Overlay(_)));
        for text in ["eth0", ":ring:a", "eth0:ring", ""] {
            assert!(text.parse::<MirrorWork>().is_err(), "{text}");
        }
    }
}
