//! The outer IPv4, IPv6 and UDP headers.
//!
//! ```text
//!  IPv4 (RFC 791)                                                    IPv6 (RFC 8200)
//!  0      4      8               16    19                  31        0      4             12                 31
//! +------+------+---------------+-------------------------+         +------+-------------+-------------------+
//! | 4    | IHL 5|  TOS          |  total length           |         | 6    | class       | flow label        |
//! +------+------+---------------+-----+-------------------+         +------+-------------+----+-------+------+
//! |  identification             |0 D M| fragment offset   |         | payload length          | next  | hops |
//! +-------------+---------------+-----+-------------------+         +-------------------------+-------+------+
//! |  TTL        |  protocol     |  header checksum        |         | source, 16 bytes                       |
//! +-------------+---------------+-------------------------+         +----------------------------------------+
//! |  source                                               |         | destination, 16 bytes                  |
//! +-------------------------------------------------------+         +----------------------------------------+
//! |  destination                                          |
//! +-------------------------------------------------------+         UDP (RFC 768): source port, destination port,
//!                                                                   length, checksum, 16 bits each
//! ```

use std::net::IpAddr;

use super::kind::UDP;
use crate::checksum::{fold, nonzero_checksum, sum_words};

pub(super) const IPV4_LEN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;
pub(super) const UDP_LEN: usize = 8;
/// The longest IPv4 packet.
pub(super) const IPV4_MAX: usize = 65535;
/// The longest IPv6 packet without the jumbo payload option.
pub(super) const IPV6_MAX: usize = IPV6_LEN + 65535;
/// "Don't fragment", in the 16 bits that begin with the flags.
pub(super) const DF: u16 = 0x4000;

/// The fields of an outer packet that differ from one packet to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    pub(super) tos: u8,
    pub(super) ttl: u8,
    /// IPv4 only.
    pub(super) identification: u16,
    /// IPv6 only; 20 bits are taken.
    pub(super) flow_label: u32,
}

/// Appends an IP header in which everything that [`finish_ip`] sets is zero.
pub(super) fn push_ip(
    header: &mut Vec<u8>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    df: bool,
) {
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        header.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 0]);
        header.extend_from_slice(&source.octets());
        header.extend_from_slice(&destination.octets());
    } else {
        let flags = if df { DF.to_be_bytes()[0] } else { 0 };
        header.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, flags, 0, 0, protocol, 0, 0]);
        for address in [source, destination] {
            let octets = match address {
                IpAddr::V4(v4) => v4.octets(),
                IpAddr::V6(_) => [0; 4],
            };
            header.extend_from_slice(&octets);
        }
    }
}

/// Appends a UDP header in which everything that [`finish_udp`] sets is zero.
pub(super) fn push_udp(header: &mut Vec<u8>, destination_port: u16) {
    let [high, low] = destination_port.to_be_bytes();
    header.extend_from_slice(&[0, 0, high, low, 0, 0, 0, 0]);
}

/// Sets the fields of an IP header that are known before the packet is. Does nothing to a header that is too short.
pub(super) fn start_ip(header: &mut [u8], tos: u8, ttl: u8) {
    let v6 = header.first().is_some_and(|first| first >> 4 == 6);
    match header.first_chunk_mut::<IPV4_LEN>() {
        Some(header) if v6 => {
            header[0] |= tos >> 4;
            header[1] |= tos << 4;
            header[7] = ttl;
        }
        Some(header) => {
            header[1] = tos;
            header[8] = ttl;
        }
        None => {}
    }
}

/// Completes the IP header of a whole packet: fields, length, checksum. Does nothing to a packet that is too short.
#[inline]
pub(super) fn finish_ip(packet: &mut [u8], fields: Fields) {
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        finish_v6(packet, fields);
    } else {
        finish_v4(packet, fields);
    }
}

#[inline]
fn finish_v4(packet: &mut [u8], fields: Fields) {
    let total = length_field(packet.len());
    let Some(header) = packet.first_chunk_mut::<IPV4_LEN>() else {
        return;
    };
    header[1] = fields.tos;
    [header[2], header[3]] = total;
    [header[4], header[5]] = fields.identification.to_be_bytes();
    header[8] = fields.ttl;
    set_header_checksum(header);
}

/// Computes the checksum of an IPv4 header.
#[inline]
pub(super) fn set_header_checksum(header: &mut [u8; IPV4_LEN]) {
    [header[10], header[11]] = [0, 0];
    [header[10], header[11]] = (!fold(sum_words(header))).to_be_bytes();
}

#[inline]
fn finish_v6(packet: &mut [u8], fields: Fields) {
    let payload = length_field(packet.len().saturating_sub(IPV6_LEN));
    let Some(header) = packet.first_chunk_mut::<IPV6_LEN>() else {
        return;
    };
    let first = 6 << 28 | u32::from(fields.tos) << 20 | (fields.flow_label & 0xf_ffff);
    [header[0], header[1], header[2], header[3]] = first.to_be_bytes();
    [header[4], header[5]] = payload;
    header[7] = fields.ttl;
}

/// Completes the UDP header that follows the IP header of a whole packet, `ip_len` bytes.
#[inline]
pub(super) fn finish_udp(packet: &mut [u8], ip_len: usize, source_port: u16, checksum: bool) {
    let Some((ip, segment)) = packet.split_at_mut_checked(ip_len) else {
        return;
    };
    let length = length_field(segment.len());
    let Some(header) = segment.first_chunk_mut::<UDP_LEN>() else {
        return;
    };
    [header[0], header[1]] = source_port.to_be_bytes();
    [header[4], header[5]] = length;
    [header[6], header[7]] = [0, 0];
    if checksum {
        let addresses = ip.get(if ip_len == IPV6_LEN { 8 } else { 12 }..);
        let sum = sum_words(addresses.unwrap_or_default())
            + u64::from(UDP)
            + u64::from(u16::from_be_bytes(length))
            + sum_words(segment);
        segment[6..8].copy_from_slice(&nonzero_checksum(sum).to_be_bytes());
    }
}

/// A length that was checked to fit.
#[inline]
fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
