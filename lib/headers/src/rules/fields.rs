//! The fields of a frame that rules speak of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::has_ports;
use crate::ip::IpPacket;
use crate::{VlanTag, WireFrame};

/// What is there of them. A frame that was cut before a field does not have it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fields {
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
    /// `None`: not IP.
    pub(super) protocol: Option<u8>,
    /// Source and destination.
    pub(super) ports: Option<[u16; 2]>,
    pub(super) tcp_flags: Option<u8>,
    /// A fragment other than the first, which is the one with ports and flags.
    pub(super) later: bool,
    /// VLAN identifiers of the outer two tags.
    pub(super) vids: [Option<u16>; 2],
}

impl Fields {
    pub(super) fn of(frame: &WireFrame<'_>) -> Fields {
        let vids = [0, 1].map(|place| frame.tag(place).map(VlanTag::vid));
        let (bytes, _) = frame.untagged();
        let Some(ip) = IpPacket::parse(bytes) else {
            return Fields {
                vids,
                ..Fields::default()
            };
        };
        // Behind the EtherType.
        let upper = match bytes.get(2 + ip.upper..) {
            Some(upper) if has_ports(ip.protocol) && !ip.later => upper,
            _ => &[],
        };
        let ports = upper
            .first_chunk()
            .map(|&[a, b, c, d]| [[a, b], [c, d]].map(u16::from_be_bytes));
        Fields {
            source: address(ip.source),
            destination: address(ip.destination),
            protocol: Some(ip.protocol),
            ports,
            tcp_flags: upper.get(13).copied().filter(|_| ip.protocol == 6),
            later: ip.later,
            vids,
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk().map(|v4| Ipv4Addr::from(*v4).into()),
        _ => bytes
            .first_chunk::<16>()
            .map(|v6| Ipv6Addr::from(*v6).into()),
    }
}
