//! Checksums that a local sender left to the network card.

use crate::ip::IpPacket;
use crate::vlan::{TAG_LEN, inline_tags};

/// Fills in the TCP or UDP checksum of a frame that was captured before any network card computed it
/// (`TP_STATUS_CSUMNOTREADY`), so that analysers and tunnels get a valid one.
///
/// `l2_offset` is where the Ethernet header begins in `frame`, as a rule 0; VLAN tags are looked through.
/// Returns false, and changes nothing, when the checksum cannot be computed: not TCP or UDP over IPv4 or
/// IPv6, a fragment, or a frame that was not captured to the end of its packet.
pub fn complete_checksum(frame: &mut [u8], l2_offset: usize) -> bool {
    fill_in(frame, l2_offset).is_some()
}

/// Whether the TCP or UDP checksum of a frame is what a local sender leaves there for the network card to go on with: the sum of the
/// pseudo-header. A finished checksum is the same once in 65,536 frames, and [`complete_checksum`] makes it again what it was.
pub fn has_partial_checksum(frame: &[u8]) -> bool {
    let found = locate(frame, 0);
    found.is_some_and(|(ip, upper, at, _)| {
        let stored = upper.get(at..).and_then(|bytes| bytes.first_chunk());
        stored.is_some_and(|bytes| u16::from_be_bytes(*bytes) == fold(pseudo_header(&ip, upper)))
    })
}

fn fill_in(frame: &mut [u8], l2_offset: usize) -> Option<()> {
    let (ip, upper, at, position) = locate(frame, l2_offset)?;
    let value = checksum(&ip, upper, at);
    frame
        .get_mut(position..position + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// The IP header, the segment, where the checksum is in that, and where in the frame.
fn locate(frame: &[u8], l2_offset: usize) -> Option<(IpPacket<'_>, &[u8], usize, usize)> {
    let behind_macs = frame.get(l2_offset.checked_add(12)?..)?;
    let tags = inline_tags(behind_macs, crate::frame::MAX_TAGS) * TAG_LEN;
    let network = &behind_macs[tags..];
    let ip = IpPacket::parse(network)?;
    let packet = network.get(2..)?;
    let upper = packet.get(ip.upper..ip.end.unwrap_or(packet.len()))?;
    let (at, minimum) = match ip.protocol {
        6 if !ip.fragment => (16, 20),
        17 if !ip.fragment => (6, 8),
        _ => return None,
    };
    if upper.len() < minimum {
        return None;
    }
    let position = l2_offset + 12 + tags + 2 + ip.upper + at;
    Some((ip, upper, at, position))
}

/// Addresses, protocol and length, not folded.
fn pseudo_header(ip: &IpPacket<'_>, upper: &[u8]) -> u64 {
    let length = u64::try_from(upper.len()).unwrap_or(u64::MAX);
    sum_words(ip.source)
        + sum_words(ip.destination)
        + u64::from(ip.protocol)
        + (length & 0xffff)
        + (length >> 16)
}

/// The Internet checksum (RFC 1071) of pseudo-header and segment, its own field counted as zero.
fn checksum(ip: &IpPacket<'_>, upper: &[u8], at: usize) -> u16 {
    let sum = pseudo_header(ip, upper) + sum_words(&upper[..at]) + sum_words(&upper[at + 2..]);
    if ip.protocol == 17 {
        nonzero_checksum(sum)
    } else {
        !fold(sum)
    }
}

/// The sum of big-endian 16-bit words, folded once; a last odd byte counts as the high half of one.
///
/// Adds words of 32 bits in the order of the machine, which compilers turn into vector instructions, and swaps the
/// result (RFC 1071, section 2).
#[inline]
pub(crate) fn sum_words(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    let sum = words
        .map(|word| u64::from(word.first_chunk().map_or(0, |w| u32::from_ne_bytes(*w))))
        .sum::<u64>()
        + u64::from(u32::from_ne_bytes(last));
    u64::from(u16::from_be(fold(sum)))
}

/// The one's complement sum in 16 bits. 0 only when everything was 0.
#[inline]
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The checksum to send for a sum over everything but its own field, where zero means "none" (RFC 768, RFC 8200
/// section 8.1): never zero.
#[inline]
pub(crate) fn nonzero_checksum(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        value => value,
    }
}

#[cfg(test)]
mod tests;
