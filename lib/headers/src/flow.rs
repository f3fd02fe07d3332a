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
    // The upper half is the better mixed one.
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
    both_ways(source, destination, u64::from(protocol))
}

fn mac_hash(macs: &[u8]) -> u64 {
    let (destination, source) = macs.split_at(macs.len().min(6));
    both_ways(endpoint(source, 0), endpoint(destination, 0), 0x6d61_6300)
}

/// A sum does not know which side came first; the product tells {a, b} from {c, d} of the same sum.
#[inline]
fn both_ways(a: u64, b: u64, salt: u64) -> u64 {
    mix(a.wrapping_add(b) ^ mix((a | 1).wrapping_mul(b | 1)).wrapping_add(salt))
}

#[inline]
fn endpoint(address: &[u8], port: u16) -> u64 {
    let mut hash = mix(0x666c_7578 ^ u64::from(port));
    for part in address.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash = mix(hash ^ u64::from_be_bytes(word));
    }
    hash
}

#[cfg(test)]
mod tests;
