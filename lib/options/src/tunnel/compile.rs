//! From the API's tunnels to what encodes and decodes packets, and every check that needs nothing but the spec.

use super::{Network, parse_mac, remote_address};
use crate::{
    MAX_MERGE_WINDOW_US, SpecError, TunnelIo, compile_edits, validate_interfaces,
    validate_scheduling,
};
use fluxcap_headers::tunnel::{
    DecapSpec, Direction, EncapSpec, ErspanFields, ErspanType, Field, GueVariant, InvalidTunnel,
    TunnelKind, UdpPayload,
};
use fluxcap_proto::v1::{
    self, ErspanDirection, InnerProtocol, MtuPolicy, TunnelReceive, TunnelSend, TunnelSpec,
};
use std::net::{IpAddr, Ipv4Addr};

/// Most rings that are merged.
const MAX_RINGS: usize = 16;
/// Most identifiers that have a ring.
const MAX_MAP: usize = 4096;
/// Most networks of senders.
const MAX_FROM: usize = 256;
/// Largest buffer of a socket: the kernel counts in an `int`, and twice.
const MAX_BUFFER: u64 = 1 << 30;

/// Checks the spec of a tunnel, but for the names of its rings.
///
/// # Errors
/// The first field that cannot be used.
pub fn validate_tunnel(spec: &TunnelSpec) -> Result<(), SpecError> {
    if spec.kind() == v1::TunnelKind::Unspecified {
        return Err(SpecError::new("kind", "say which: gre, gretap, vxlan..."));
    }
    let local = local_address(spec)?;
    if !spec.device.is_empty() {
        validate_interfaces([spec.device.as_str()], 1)
            .map_err(|error| SpecError::new("device", error.problem))?;
    }
    compile_edits(&spec.edits.clone().unwrap_or_default())?;
    validate_scheduling(&spec.scheduling.clone().unwrap_or_default())?;
    match (&spec.send, &spec.receive) {
        (Some(send), None) => validate_send(spec, send, local),
        (None, Some(receive)) => validate_receive(spec, receive),
        _ => Err(SpecError::new(
            "send",
            "a tunnel either sends or receives: set one of send and receive",
        )),
    }
}

/// How the frames of a tunnel that sends are encapsulated between these two addresses.
///
/// # Errors
/// What its format cannot do.
pub fn encap_spec(
    spec: &TunnelSpec,
    source: IpAddr,
    destination: IpAddr,
) -> Result<EncapSpec, SpecError> {
    let send = spec.send.clone().unwrap_or_default();
    let keeps_whole = !matches!(
        send.mtu_policy(),
        MtuPolicy::Unspecified | MtuPolicy::Fragment
    );
    let encap = EncapSpec {
        id: send.id,
        ttl: match (send.ttl_inherit, send.ttl) {
            (true, _) => Field::Inherit,
            (false, 0) => Field::Fixed(64),
            (false, ttl) => Field::Fixed(narrow("send.ttl", ttl, 255)?),
        },
        tos: match send.tos_inherit {
            true => Field::Inherit,
            false => Field::Fixed(narrow("send.tos", send.tos, 255)?),
        },
        dont_fragment: send.df.unwrap_or(keeps_whole && destination.is_ipv4()),
        checksum: spec.checksum,
        sequence: spec.sequence,
        destination_port: given_port("port", spec.port)?,
        source_port: given_port("send.source_port", send.source_port)?,
        udp_checksum: send.udp_checksum,
        erspan: ErspanFields {
            index: send.erspan_index,
            direction: match send.erspan_direction() {
                ErspanDirection::Unspecified => None,
                ErspanDirection::Ingress => Some(Direction::Ingress),
                ErspanDirection::Egress => Some(Direction::Egress),
            },
            hardware_id: narrow("send.erspan_hwid", send.erspan_hwid, 63)?,
        },
        metadata: send.metadata,
        ..EncapSpec::new(kind_to_send(spec, &send)?, source, destination)
    };
    encap.check().map_err(refused)?;
    Ok(encap)
}

/// How the packets of a tunnel that receives are decapsulated.
///
/// # Errors
/// What its format cannot do.
pub fn decap_spec(spec: &TunnelSpec) -> Result<DecapSpec, SpecError> {
    let decap = DecapSpec {
        require_checksum: spec.checksum,
        require_sequence: spec.sequence,
        ..DecapSpec::new(kind_to_receive(spec)?)
    };
    decap.check().map_err(refused)?;
    Ok(decap)
}

fn validate_send(
    spec: &TunnelSpec,
    send: &TunnelSend,
    local: Option<IpAddr>,
) -> Result<(), SpecError> {
    if send.rings.is_empty() || send.rings.len() > MAX_RINGS {
        return Err(SpecError::new(
            "send.rings",
            format!("name 1 to {MAX_RINGS} rings"),
        ));
    }
    let remote = remote_address(&send.remote).map_err(|problem| {
        let remote = send.remote.escape_debug();
        SpecError::new("send.remote", format!("\"{remote}\" {problem}"))
    })?;
    TunnelIo::from_spec(&send.io).map_err(|error| SpecError::new("send.io", error.problem))?;
    if send.merge_window_us > MAX_MERGE_WINDOW_US {
        return Err(SpecError::new(
            "send.merge_window_us",
            "must be at most 10 s",
        ));
    }
    let fragments = matches!(
        send.mtu_policy(),
        MtuPolicy::Unspecified | MtuPolicy::Fragment
    );
    if fragments && send.df == Some(true) {
        return Err(SpecError::new(
            "send.df",
            "a packet that must not be fragmented needs the MTU policy truncate or drop",
        ));
    }
    // The addresses that are not known yet are some of the right family; what they are is no matter here.
    let (source, destination) = match (local, remote) {
        (Some(local), Some(remote)) => (local, remote),
        (Some(known), None) | (None, Some(known)) => (known, known),
        (None, None) => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
    };
    encap_spec(spec, source, destination).map(|_| ())
}

fn validate_receive(spec: &TunnelSpec, receive: &TunnelReceive) -> Result<(), SpecError> {
    let kind = decap_spec(spec)?.kind;
    if receive.map.is_empty() && receive.default_ring.is_empty() {
        return Err(SpecError::new(
            "receive.map",
            "name at least one ring, here or in default_ring",
        ));
    }
    if receive.map.len() > MAX_MAP {
        return Err(SpecError::new(
            "receive.map",
            format!("at most {MAX_MAP} identifiers can have a ring"),
        ));
    }
    let mut ids: Vec<Option<u32>> = receive.map.iter().map(|mapping| mapping.id).collect();
    ids.sort_unstable();
    for pair in ids.windows(2) {
        if pair[0] == pair[1] {
            let id = pair[0].map_or_else(|| "no identifier".to_owned(), |id| id.to_string());
            let problem = format!("{id} has two rings");
            return Err(SpecError::new("receive.map", problem));
        }
    }
    if let Some(id) = ids.last().copied().flatten() {
        let problem = match kind.max_id() {
            Some(max) if id <= max => None,
            Some(max) => Some(format!("{id} is out of range: use 0 to {max}")),
            None => Some("this kind has no identifier: leave it out".to_owned()),
        };
        if let Some(problem) = problem {
            return Err(SpecError::new("receive.map", problem));
        }
    }
    if receive.zero_udp6_checksum && !kind.is_udp() {
        let problem = format!("{} is not in UDP: leave it out", kind.as_str());
        return Err(SpecError::new("receive.zero_udp6_checksum", problem));
    }
    if receive.from.len() > MAX_FROM {
        let problem = format!("at most {MAX_FROM} networks can be named");
        return Err(SpecError::new("receive.from", problem));
    }
    for from in &receive.from {
        from.parse::<Network>()
            .map_err(|error| SpecError::new("receive.from", error))?;
    }
    for (field, mac) in [
        ("receive.mac_destination", &receive.mac_destination),
        ("receive.mac_source", &receive.mac_source),
    ] {
        if !mac.is_empty() && parse_mac(mac).is_none() {
            let problem = format!("\"{}\" is no Ethernet address", mac.escape_debug());
            return Err(SpecError::new(field, problem));
        }
    }
    if receive.buffer_bytes > MAX_BUFFER {
        return Err(SpecError::new(
            "receive.buffer_bytes",
            "must be at most 1 GiB",
        ));
    }
    Ok(())
}

fn local_address(spec: &TunnelSpec) -> Result<Option<IpAddr>, SpecError> {
    if spec.local.is_empty() {
        return Ok(None);
    }
    let local: Option<IpAddr> = spec.local.parse().ok();
    match local.filter(|it| !it.is_unspecified() && !it.is_multicast()) {
        Some(local) => Ok(Some(local)),
        None => Err(SpecError::new(
            "local",
            format!(
                "\"{}\" is no address that a host can have",
                spec.local.escape_debug()
            ),
        )),
    }
}

/// The format with what a sender chooses.
fn kind_to_send(spec: &TunnelSpec, send: &TunnelSend) -> Result<TunnelKind, SpecError> {
    let erspan = match send.erspan_version.unwrap_or(1) {
        0 => ErspanType::I,
        1 => ErspanType::II,
        2 => ErspanType::III,
        _ => {
            let problem = "is 0, 1 or 2 for types I, II and III";
            return Err(SpecError::new("send.erspan_version", problem));
        }
    };
    let variant = match send.gue_variant {
        0 => GueVariant::Zero,
        1 => GueVariant::One,
        _ => return Err(SpecError::new("send.gue_variant", "is 0 or 1")),
    };
    let kind = kind(spec, erspan, variant)?;
    let only = |given: bool, field, whose: &str| match given {
        true => Err(SpecError::new(field, format!("only {whose} has it"))),
        false => Ok(()),
    };
    let is_erspan = matches!(kind, TunnelKind::Erspan(_));
    only(
        send.erspan_version.is_some() && !is_erspan,
        "send.erspan_version",
        "erspan",
    )?;
    let is_gue = matches!(kind, TunnelKind::Gue { .. });
    only(send.gue_variant != 0 && !is_gue, "send.gue_variant", "gue")?;
    Ok(kind)
}

/// The format with the most that a receiver takes.
fn kind_to_receive(spec: &TunnelSpec) -> Result<TunnelKind, SpecError> {
    let kind = kind(spec, ErspanType::II, GueVariant::Zero)?;
    match kind {
        TunnelKind::Gue { variant, .. } => Ok(TunnelKind::Gue {
            payload: UdpPayload::Gretap,
            variant,
        }),
        kind => Ok(kind),
    }
}

fn kind(
    spec: &TunnelSpec,
    erspan: ErspanType,
    variant: GueVariant,
) -> Result<TunnelKind, SpecError> {
    let payload = match spec.inner() {
        InnerProtocol::Unspecified | InnerProtocol::Ip => UdpPayload::Ip,
        InnerProtocol::Gre => UdpPayload::Gre,
        InnerProtocol::Gretap => UdpPayload::Gretap,
    };
    let kind = match spec.kind() {
        v1::TunnelKind::Unspecified => return Err(SpecError::new("kind", "is missing")),
        v1::TunnelKind::Gre => TunnelKind::Gre,
        v1::TunnelKind::Gretap => TunnelKind::Gretap,
        v1::TunnelKind::Nvgre => TunnelKind::Nvgre,
        v1::TunnelKind::Erspan => TunnelKind::Erspan(erspan),
        v1::TunnelKind::Vxlan => TunnelKind::Vxlan,
        v1::TunnelKind::Geneve => TunnelKind::Geneve,
        v1::TunnelKind::Gue => TunnelKind::Gue { payload, variant },
        v1::TunnelKind::Fou => TunnelKind::Fou { payload },
        v1::TunnelKind::Ipip => TunnelKind::Ipip,
        v1::TunnelKind::Tzsp => TunnelKind::Tzsp,
    };
    let chooses = matches!(kind, TunnelKind::Gue { .. } | TunnelKind::Fou { .. });
    if spec.inner() != InnerProtocol::Unspecified && !chooses {
        return Err(SpecError::new("inner", "only gue and fou have it"));
    }
    // The decoder's check does not know the port, which matters to the socket.
    let port = given_port("port", spec.port)?;
    if spec.receive.is_some() {
        match (kind.is_udp(), port.or(kind.default_port())) {
            (true, None) => {
                return Err(SpecError::new(
                    "port",
                    "fou needs a port; it has none of its own",
                ));
            }
            (false, _) if port.is_some() => {
                return Err(SpecError::new(
                    "port",
                    format!("{} is not in UDP: leave it out", kind.as_str()),
                ));
            }
            _ => {}
        }
    }
    Ok(kind)
}

fn narrow(field: &'static str, value: u32, max: u8) -> Result<u8, SpecError> {
    match u8::try_from(value) {
        Ok(value) if value <= max => Ok(value),
        _ => Err(SpecError::new(field, format!("must be at most {max}"))),
    }
}

/// A UDP port; 0 stands for none.
fn given_port(field: &'static str, port: u32) -> Result<Option<u16>, SpecError> {
    match u16::try_from(port) {
        Ok(port) => Ok(Some(port).filter(|port| *port != 0)),
        Err(_) => Err(SpecError::new(field, "a port is at most 65535")),
    }
}

/// The field that a format's refusal is about.
fn refused(error: InvalidTunnel) -> SpecError {
    let field = match error {
        InvalidTunnel::Families => "local",
        InvalidTunnel::Id { .. } | InvalidTunnel::NoId(_) | InvalidTunnel::IdMissing(..) => {
            "send.id"
        }
        InvalidTunnel::Ttl => "send.ttl",
        InvalidTunnel::PortMissing(_) | InvalidTunnel::PortZero => "port",
        InvalidTunnel::Index(_) => "send.erspan_index",
        InvalidTunnel::HardwareId(_) => "send.erspan_hwid",
        InvalidTunnel::Variant => "send.gue_variant",
        InvalidTunnel::NotForKind(_, "csum") => "checksum",
        InvalidTunnel::NotForKind(_, "seq") => "sequence",
        InvalidTunnel::NotForKind(_, "dport") => "port",
        InvalidTunnel::NotForKind(_, "sport") => "send.source_port",
        InvalidTunnel::NotForKind(_, "udp-csum") => "send.udp_checksum",
        InvalidTunnel::NotForKind(_, "metadata") => "send.metadata",
        InvalidTunnel::NotForKind(_, "index") => "send.erspan_index",
        InvalidTunnel::NotForKind(_, "direction") => "send.erspan_direction",
        InvalidTunnel::NotForKind(_, "hwid") => "send.erspan_hwid",
        InvalidTunnel::NotForKind(_, _) => "send.df",
        _ => "kind",
    };
    SpecError::new(field, error)
}

#[cfg(test)]
mod tests;
