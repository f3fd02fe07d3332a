//! The IP packet within a frame.

use super::decap::Link;
use super::encap::Skip;
use super::kind::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::outer::{IPV4_LEN, IPV6_LEN};
use crate::frame::MAX_TAGS;
use crate::vlan::{TAG_LEN, inline_tags};

/// An Ethernet header without tags.
pub(super) const ETHERNET_LEN: usize = 14;
/// Bytes of the two MAC addresses.
pub(super) const MACS_LEN: usize = 12;

/// An IP packet, or what was captured of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct InnerIp<'a> {
    pub(super) v6: bool,
    /// From the first byte of the header; without padding that follows the packet. At least a header without options.
    pub(super) packet: &'a [u8],
    /// Its length by its own account, if it says: not below that of a header.
    pub(super) claimed: Option<usize>,
}

impl<'a> InnerIp<'a> {
    /// Finds the packet in bytes that begin with an EtherType.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<InnerIp<'a>, Skip> {
        let (ether_type, packet) = bytes.split_first_chunk().ok_or(Skip::Malformed)?;
        let (v6, claimed) = match u16::from_be_bytes(*ether_type) {
            ETHERTYPE_IPV4 => (false, claimed_v4(packet)),
            ETHERTYPE_IPV6 => (true, claimed_v6(packet)),
            _ => return Err(Skip::NotIp),
        };
        let claimed = claimed.ok_or(Skip::Malformed)?;
        let end = claimed.unwrap_or(packet.len()).min(packet.len());
        Ok(InnerIp {
            v6,
            packet: &packet[..end],
            claimed,
        })
    }

    /// DSCP and ECN.
    pub(super) fn tos(&self) -> u8 {
        match *self.packet {
            [a, b, ..] if self.v6 => a << 4 | b >> 4,
            [_, tos, ..] => tos,
            _ => 0,
        }
    }

    /// Time to live or hop limit.
    pub(super) fn ttl(&self) -> u8 {
        let at = if self.v6 { 7 } else { 8 };
        self.packet.get(at).copied().unwrap_or_default()
    }
}

/// The total length of an IPv4 packet; within: none when it is 0, as in a packet that its host left to the network
/// card to cut up. None: not a complete header, or one that contradicts itself.
fn claimed_v4(packet: &[u8]) -> Option<Option<usize>> {
    let header: &[u8; IPV4_LEN] = packet.first_chunk()?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let fits = total == 0 || total >= header_len;
    (header[0] >> 4 == 4 && header_len >= IPV4_LEN && fits).then_some((total != 0).then_some(total))
}

/// The same for IPv6, where a payload length of 0 means a jumbogram.
fn claimed_v6(packet: &[u8]) -> Option<Option<usize>> {
    let header: &[u8; IPV6_LEN] = packet.first_chunk()?;
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (header[0] >> 4 == 6).then_some((payload != 0).then_some(IPV6_LEN + payload))
}

/// The length that a frame or packet has by the account of the IP header in it; Ethernet header and tags included,
/// padding not. None: no IP, no complete header, or it does not say.
pub fn claimed_len(link: Link, payload: &[u8]) -> Option<u32> {
    let claimed = match link {
        Link::Ipv4 => claimed_v4(payload)??,
        Link::Ipv6 => claimed_v6(payload)??,
        Link::Ethernet => {
            let behind_macs = payload.get(MACS_LEN..)?;
            let tags = inline_tags(behind_macs, MAX_TAGS) * TAG_LEN;
            let ip = InnerIp::parse(&behind_macs[tags..]).ok()?;
            ETHERNET_LEN + tags + ip.claimed?
        }
    };
    u32::try_from(claimed).ok()
}
