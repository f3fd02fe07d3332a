//! One number for both directions of a flow.

use crate::WireFrame;
use crate::ip::IpPacket;
use crate::sampler::mix;

/// A hash of the flow that a frame belongs to; the same for both directions, on every host and in every
/// run, with and without VLAN tags.
///
/// IPv4 and IPv6: addresses, protocol, and the ports of TCP, UDP, UDP-Lite, DCCP and SCTP. Fragments:
/// addresses only, so that all parts of a packet agree. Other frames: the pair of MAC addresses.
#[inline]
pub fn flow_hash(frame: &WireFrame<'_>) -> u32 {
    let (bytes, _) = frame.untagged();
    let hash = match IpPacket::parse(bytes) {
        Some(ip) => ip_hash(&ip, bytes.get(2 + ip.upper..).unwrap_or_default()),
        None => mac_hash(frame.macs()),
    };
    high(hash)
}

/// A part of a fragmented packet, as somebody sees it who has to find the flow of all parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// The same for all parts of a packet, and most likely for no other packet.
    pub(crate) packet: u64,
    /// [`flow_hash`] of the packet if it were whole; only the first part has the ports for it.
    pub(crate) flow: Option<u32>,
}

/// What a frame tells as a fragment; `None` when it is none.
#[inline]
pub(crate) fn fragment(frame: &WireFrame<'_>) -> Option<Fragment> {
    let (bytes, _) = frame.untagged();
    let mut ip = IpPacket::parse(bytes).filter(|ip| ip.fragment)?;
    let ends = endpoint(ip.source, 0) ^ mix(endpoint(ip.destination, 0));
    let packet = mix(ends ^ u64::from(ip.identification));
    let flow = (!ip.later).then(|| {
        ip.fragment = false;
        high(ip_hash(&ip, bytes.get(2 + ip.upper..).unwrap_or_default()))
    });
    Some(Fragment { packet, flow })
}

/// The upper half is the better mixed one.
#[inline]
fn high(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or_default()
}

fn ip_hash(ip: &IpPacket<'_>, upper: &[u8]) -> u64 {
    let has_ports = matches!(ip.protocol, 6 | 17 | 33 | 132 | 136);
    let (ports, protocol) = match upper.first_chunk() {
        _ if ip.fragment => ([0; 4], 0),
        Some(ports) if has_ports => (*ports, ip.protocol),
        _ => ([0; 4], ip.protocol),
    };
    let [a, b, c, d] = ports;
    let source = endpoint(ip.source, u16::from_be_bytes([a, b]));
    let destination = endpoint(ip.destination, u16::from_be_bytes([c, d]));
    both_ways(source, destination, u64::from(protocol) << 56)
}

fn mac_hash(macs: &[u8]) -> u64 {
    let (destination, source) = macs.split_at(macs.len().min(6));
    both_ways(mac(source), mac(destination), 0)
}

/// The smaller end first, so that it does not matter which one sent.
#[inline]
fn both_ways(a: u64, b: u64, salt: u64) -> u64 {
    mix(mix(a.min(b) ^ salt) ^ a.max(b))
}

/// Address and port of one end: for IPv4 as they are, 48 bits; for IPv6 folded.
#[inline]
fn endpoint(address: &[u8], port: u16) -> u64 {
    if let Some(v6) = address.first_chunk::<16>() {
        let value = u128::from_be_bytes(*v6);
        let [high, low] = [value >> 64, value & u128::from(u64::MAX)];
        let half = |half| u64::try_from(half).unwrap_or_default();
        mix(half(high) ^ u64::from(port)) ^ half(low)
    } else {
        let v4 = address
            .first_chunk()
            .map_or(0, |v4| u32::from_be_bytes(*v4));
        u64::from(v4) << 16 | u64::from(port)
    }
}

/// An address of six bytes; 0 for one that was cut.
#[inline]
fn mac(bytes: &[u8]) -> u64 {
    let [a, b, c, d, e, f] = bytes.first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests;
