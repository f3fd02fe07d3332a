//! Every check of a mirror's spec that needs nothing but the spec.

use crate::{
    Network, SpecError, compile_filter, remote_address, tunnel_kind_word, validate_interfaces,
    validate_scheduling, vlan_tag,
};
use fluxcap_headers::Filter;
use fluxcap_proto::v1::{
    Attach, Direction, Hook, InnerProtocol, MirrorOverlay, MirrorRule, MirrorSpec, MtuPolicy,
    PortRange, TunnelKind,
};
use std::net::IpAddr;

/// Most rules of a mirror.
pub const MAX_RULES: usize = 1024;
/// Most interfaces that a mirror sends copies out of.
pub const MAX_DEVICES: usize = 16;
/// Longest burst of a rate, in milliseconds.
pub(super) const MAX_BURST_MS: u32 = 10_000;
/// Longest life of a mirror, in milliseconds: ten years.
pub(super) const MAX_LIFETIME_MS: u64 = 10 * 366 * 24 * 3_600_000;
/// By these bits frames are known that were sent from rings (`fluxcap_socket::Origin`).
const SENT_MARKS: u32 = 0x3000_0000;
/// Sizes of a BPF ring buffer: a page at least (`ringbuf_map_alloc` in `kernel/bpf/ringbuf.c`).
const BUFFER_BYTES: std::ops::RangeInclusive<u32> = 4096..=1 << 30;
/// What identifies a network of VXLAN or Geneve has so many bits.
const VNI_BITS: u32 = 24;

/// Checks the spec of a mirror, but for the name of its ring.
///
/// # Errors
/// The first field that cannot be used.
pub fn validate_mirror(spec: &MirrorSpec) -> Result<(), SpecError> {
    interface("interface", &spec.interface)?;
    validate_target(spec)?;
    validate_devices(spec)?;
    if let Some(overlay) = &spec.overlay {
        validate_overlay(overlay)?;
        if overlay.tunnel_device == spec.interface {
            return refuse("overlay.tunnel_device", "is the mirror's own interface");
        }
    }
    validate_rules(&spec.rules)?;
    mirror_filter(spec)?;
    validate_bounds(spec)?;
    validate_programs(spec)?;
    validate_scheduling(&spec.scheduling.clone().unwrap_or_default())
}

fn validate_target(spec: &MirrorSpec) -> Result<(), SpecError> {
    let overlay = spec.overlay.is_some();
    let (ring, devices) = (!spec.ring.is_empty(), !spec.devices.is_empty());
    if spec.hook() == Hook::Xdp {
        return match (devices, overlay) {
            (_, true) => refuse("overlay", "hook xdp replicates to interfaces: use devices"),
            (false, _) => refuse("devices", "name the interfaces that hook xdp replicates to"),
            (true, false) => Ok(()),
        };
    }
    match [ring, devices, overlay]
        .into_iter()
        .filter(|it| *it)
        .count()
    {
        1 => Ok(()),
        0 => refuse("ring", "say where copies go: set ring, devices or overlay"),
        _ => refuse(
            if devices { "devices" } else { "overlay" },
            "a mirror has one kind of target; make another mirror for the other",
        ),
    }
}

fn validate_devices(spec: &MirrorSpec) -> Result<(), SpecError> {
    if spec.devices.is_empty() {
        return Ok(());
    }
    let names = spec.devices.iter().map(|device| device.name.as_str());
    validate_interfaces(names.clone(), MAX_DEVICES)
        .map_err(|error| SpecError::new("devices", error.problem))?;
    if names.clone().any(|name| name == spec.interface) {
        let problem = format!("{} is the mirror's own interface", spec.interface);
        return refuse("devices", problem);
    }
    for device in &spec.devices {
        match (&device.vlan_push, spec.hook()) {
            (None, _) => {}
            (Some(tag), Hook::Xdp) => drop(vlan_tag("devices", tag)?),
            (Some(_), _) => return refuse("devices", "tags are pushed with hook xdp only"),
        }
    }
    Ok(())
}

fn validate_overlay(overlay: &MirrorOverlay) -> Result<(), SpecError> {
    let kind = overlay.kind();
    let word = tunnel_kind_word(kind);
    match (kind, overlay.inner()) {
        (TunnelKind::Gue, InnerProtocol::Gre) => {
            return refuse(
                "overlay.inner",
                "use ip, or gretap to keep the Ethernet header",
            );
        }
        (TunnelKind::Gue, _) => {}
        (TunnelKind::Vxlan | TunnelKind::Geneve | TunnelKind::Gretap, inner) => {
            if !matches!(inner, InnerProtocol::Unspecified | InnerProtocol::Gretap) {
                let problem = format!("{word} always carries Ethernet frames; leave it out");
                return refuse("overlay.inner", problem);
            }
        }
        (TunnelKind::Unspecified, _) => {
            return refuse("overlay.kind", "say which: gue, vxlan, geneve or gretap");
        }
        _ => {
            return refuse(
                "overlay.kind",
                format!("{word} is none of gue, vxlan, geneve and gretap"),
            );
        }
    }
    validate_id(overlay, word)?;
    validate_ports(overlay, word)?;
    if overlay.ttl > 255 {
        return refuse("overlay.ttl", "must be 1 to 255, or 0 for 64");
    }
    if overlay.tos > 255 {
        return refuse("overlay.tos", "must be 0 to 255");
    }
    if overlay.mtu_policy() == MtuPolicy::Fragment {
        return refuse(
            "overlay.mtu_policy",
            "mirrors do not fragment: use truncate or drop",
        );
    }
    let remote = validate_ends(overlay)?;
    validate_tunnel_device(overlay, remote)
}

fn validate_id(overlay: &MirrorOverlay, word: &str) -> Result<(), SpecError> {
    match (overlay.kind(), overlay.id) {
        (TunnelKind::Vxlan | TunnelKind::Geneve, None) => {
            refuse("overlay.id", format!("{word} needs a network: give vni=N"))
        }
        (TunnelKind::Vxlan | TunnelKind::Geneve, Some(id)) if id >> VNI_BITS != 0 => refuse(
            "overlay.id",
            format!("{id} is out of range: a VNI is 0 to 16777215"),
        ),
        (TunnelKind::Gue, Some(_)) => refuse("overlay.id", "gue has no identifier: leave it out"),
        _ => Ok(()),
    }
}

fn validate_ports(overlay: &MirrorOverlay, word: &str) -> Result<(), SpecError> {
    for (field, port) in [
        ("overlay.port", overlay.port),
        ("overlay.source_port", overlay.source_port),
    ] {
        if port > u16::MAX.into() {
            return refuse(field, format!("{port} is out of range: use 1 to 65535"));
        }
        if port != 0 && overlay.kind() == TunnelKind::Gretap {
            return refuse(field, format!("{word} is not in UDP: leave it out"));
        }
    }
    Ok(())
}

/// Both ends and the way out; gives the far end.
fn validate_ends(overlay: &MirrorOverlay) -> Result<IpAddr, SpecError> {
    let shown = overlay.remote.escape_debug();
    let remote = match remote_address(&overlay.remote) {
        Ok(Some(remote)) => remote,
        Ok(None) => {
            let problem =
                format!("\"{shown}\" is a name; mirrors take the address of the collector");
            return refuse("overlay.remote", problem);
        }
        Err(problem) => return refuse("overlay.remote", format!("\"{shown}\" {problem}")),
    };
    if !overlay.local.is_empty() {
        let local = host_address("overlay.local", &overlay.local)?;
        same_family("overlay.local", local, remote)?;
        if local == remote {
            return refuse("overlay.local", "is the collector's address too");
        }
    }
    if !overlay.device.is_empty() {
        interface("overlay.device", &overlay.device)?;
    }
    Ok(remote)
}

fn validate_tunnel_device(overlay: &MirrorOverlay, remote: IpAddr) -> Result<(), SpecError> {
    if overlay.tunnel_device.is_empty() {
        let field = match (&*overlay.gateway, &*overlay.gateway_device) {
            ("", "") => return Ok(()),
            ("", _) => "overlay.gateway_device",
            _ => "overlay.gateway",
        };
        return refuse(
            field,
            "is for a tunnel device only; without one the kernel's routes are followed",
        );
    }
    interface("overlay.tunnel_device", &overlay.tunnel_device)?;
    if overlay.tunnel_device.len() > 15 {
        return refuse("overlay.tunnel_device", "must have at most 15 characters");
    }
    let frames = overlay.inner() == InnerProtocol::Gretap;
    if overlay.kind() != TunnelKind::Gue || frames {
        return refuse(
            "overlay.tunnel_device",
            "tunnel devices are made for gue with IP packets inside; leave it out, which needs no device",
        );
    }
    match (&*overlay.gateway, &*overlay.gateway_device) {
        ("", "") => Ok(()),
        ("", _) => refuse(
            "overlay.gateway",
            "name the router that the collector is behind",
        ),
        (_, "") => refuse(
            "overlay.gateway_device",
            "name the interface where the gateway is",
        ),
        (gateway, device) => {
            same_family(
                "overlay.gateway",
                host_address("overlay.gateway", gateway)?,
                remote,
            )?;
            interface("overlay.gateway_device", device)
        }
    }
}

fn validate_rules(rules: &[MirrorRule]) -> Result<(), SpecError> {
    if rules.len() > MAX_RULES {
        return refuse("rules", format!("at most {MAX_RULES} are possible"));
    }
    for (index, rule) in rules.iter().enumerate() {
        validate_rule(rule)
            .map_err(|problem| SpecError::new("rules", format!("rule {}: {problem}", index + 1)))?;
    }
    Ok(())
}

fn validate_rule(rule: &MirrorRule) -> Result<(), String> {
    for network in rule.sources.iter().chain(&rule.destinations) {
        let parsed: Result<Network, _> = network.parse();
        parsed.map_err(|_| format!("\"{}\" is no address or network", network.escape_debug()))?;
    }
    let bad = |range: &&PortRange| range.first > range.last || range.last > u16::MAX.into();
    let mut ranges = rule.source_ports.iter().chain(&rule.destination_ports);
    if let Some(PortRange { first, last }) = ranges.find(bad) {
        return Err(format!("{first}-{last} are no ports: use 0 to 65535"));
    }
    if let Some(protocol) = rule.protocols.iter().find(|it| **it > 255) {
        return Err(format!("{protocol} is no protocol: use 0 to 255"));
    }
    if let Some(vlan) = rule.vlans.iter().find(|it| **it > 4094) {
        return Err(format!("{vlan} is no VLAN: use 0 to 4094"));
    }
    let (flags, mask) = (rule.tcp_flags, rule.tcp_flags_mask);
    if flags > 255 || mask > 255 {
        return Err("TCP flags are eight bits".to_owned());
    }
    if flags & !mask != 0 {
        return Err("a TCP flag is not in the mask, so that no frame could match".to_owned());
    }
    Ok(())
}

/// The pcap-filter of a spec, compiled, if there is one.
///
/// # Errors
/// What libpcap says.
pub fn mirror_filter(spec: &MirrorSpec) -> Result<Option<Filter>, SpecError> {
    compile_filter("filter", &spec.filter, spec.filter_vlan())
}

fn validate_bounds(spec: &MirrorSpec) -> Result<(), SpecError> {
    if spec.rate.is_some_and(|rate| rate.burst_ms > MAX_BURST_MS) {
        return refuse("rate.burst_ms", "must be at most 10000 (10 s)");
    }
    if spec.lifetime_ms > MAX_LIFETIME_MS {
        return refuse("lifetime_ms", "must be at most ten years");
    }
    Ok(())
}

fn validate_programs(spec: &MirrorSpec) -> Result<(), SpecError> {
    if spec.mark.count_ones() > 1 {
        return refuse("mark", "is one bit, for instance 0x40000000");
    }
    if spec.mark & SENT_MARKS != 0 {
        return refuse(
            "mark",
            "is the mark of frames that were sent from rings: take another bit than 0x10000000 and 0x20000000",
        );
    }
    if spec.allow_loop && spec.ring.is_empty() {
        return refuse("allow_loop", "is for mirrors into a ring");
    }
    if spec.buffer_bytes != 0 {
        if spec.ring.is_empty() {
            return refuse("buffer_bytes", "is for mirrors into a ring");
        }
        if !spec.buffer_bytes.is_power_of_two() || !BUFFER_BYTES.contains(&spec.buffer_bytes) {
            return refuse("buffer_bytes", "must be a power of two from 4 KiB to 1 GiB");
        }
    }
    let placed = place_among_programs(&spec.order)?;
    if spec.hook() == Hook::Xdp {
        return match (spec.direction(), spec.attach()) {
            (Direction::Out | Direction::Both, _) => {
                refuse("direction", "hook xdp sees what arrives only: use ingress")
            }
            (_, Attach::Tcx | Attach::Clsact) => refuse("attach", "is for hook tc"),
            _ if placed => refuse("order", "is for hook tc"),
            _ if !spec.filter.is_empty() => refuse("filter", "is for hook tc: use rules"),
            _ => Ok(()),
        };
    }
    if placed && spec.attach() == Attach::Clsact {
        return refuse("order", "is for attach tcx");
    }
    Ok(())
}

/// Whether `order` asks for a place other than the last.
fn place_among_programs(order: &str) -> Result<bool, SpecError> {
    match order {
        "" | "last" => return Ok(false),
        "first" => return Ok(true),
        _ => {}
    }
    let id = order
        .strip_prefix("before:")
        .or_else(|| order.strip_prefix("after:"));
    let id: Option<u32> = id.and_then(|id| id.parse().ok()).filter(|id| *id != 0);
    match id {
        Some(_) => Ok(true),
        None => refuse(
            "order",
            format!(
                "\"{}\" is none of first, last, before:ID and after:ID",
                order.escape_debug()
            ),
        ),
    }
}

fn interface(field: &'static str, name: &str) -> Result<(), SpecError> {
    validate_interfaces([name], 1).map_err(|error| SpecError::new(field, error.problem))
}

fn host_address(field: &'static str, text: &str) -> Result<IpAddr, SpecError> {
    let address: Option<IpAddr> = text.parse().ok();
    match address.filter(|it| !it.is_unspecified() && !it.is_multicast()) {
        Some(address) => Ok(address),
        None => refuse(
            field,
            format!(
                "\"{}\" is no address that a host can have",
                text.escape_debug()
            ),
        ),
    }
}

fn same_family(field: &'static str, address: IpAddr, remote: IpAddr) -> Result<(), SpecError> {
    match address.is_ipv4() == remote.is_ipv4() {
        true => Ok(()),
        false => refuse(
            field,
            format!("{address} and the collector {remote} are not of the same version of IP"),
        ),
    }
}

fn refuse<T>(field: &'static str, problem: impl ToString) -> Result<T, SpecError> {
    Err(SpecError::new(field, problem))
}

#[cfg(test)]
mod tests;
