//! Inner frames and outer packets, made beforehand: what a frame costs here must not be part of what is measured.

use std::net::Ipv4Addr;

/// Flows that frames belong to, one after the other.
pub const FLOWS: u16 = 64;

/// Bytes of Ethernet header.
pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// The formats that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ethernet in GRE, without key.
    Gretap,
    /// VXLAN.
    Vxlan,
    /// IP in GUE, as a link of type ipip with `encap gue` has it.
    Gue,
}

/// VNI of VXLAN packets.
const VNI: u32 = 42;

impl Kind {
    /// As fluxctl and reports call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gretap => "gretap",
            Kind::Vxlan => "vxlan",
            Kind::Gue => "gue",
        }
    }

    /// Options that fluxctl needs besides.
    #[must_use]
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Kind::Vxlan => &["--vni", "42"],
            Kind::Gretap | Kind::Gue => &[],
        }
    }

    /// Length of the outer packet, from its IP header on, of a frame of this length.
    #[must_use]
    pub fn outer_len(self, frame: usize) -> usize {
        match self {
            Kind::Gretap => IPV4 + 4 + frame,
            Kind::Vxlan => IPV4 + UDP + 8 + frame,
            Kind::Gue => IPV4 + UDP + 4 + frame - ETHERNET,
        }
    }

    /// The outer packet of a frame of flow `flow`.
    #[must_use]
    pub fn packet(self, ends: Ends, flow: u16, frame: &[u8]) -> Vec<u8> {
        let len = self.outer_len(frame.len());
        let protocol = if self == Kind::Gretap { 47 } else { 17 };
        let mut packet = ipv4(ends, len, protocol);
        let udp = |port| udp(49_152 + flow, port, len - IPV4);
        match self {
            Kind::Gretap => packet.extend([0, 0, 0x65, 0x58]),
            Kind::Vxlan => {
                packet.extend(udp(4789));
                packet.extend(0x0800_0000_u32.to_be_bytes());
                packet.extend((VNI << 8).to_be_bytes());
            }
            Kind::Gue => {
                packet.extend(udp(6080));
                packet.extend([0, 4, 0, 0]);
            }
        }
        let begin = if self == Kind::Gue { ETHERNET } else { 0 };
        packet.extend(&frame[begin..]);
        packet
    }
}

/// Source and destination.
pub type Ends = (Ipv4Addr, Ipv4Addr);

/// A frame of each flow: UDP in IPv4, `len` bytes.
#[must_use]
pub fn frames(len: usize) -> Vec<Vec<u8>> {
    let ends = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2));
    let frame = |flow| {
        let mut frame = ethernet([2, 0, 0, 0, 0, 2]);
        frame.extend(ipv4(ends, len - ETHERNET, 17));
        frame.extend(udp(10_000 + flow, 9, len - ETHERNET - IPV4));
        frame.resize(len, 0x5a);
        frame
    };
    (0..FLOWS).map(frame).collect()
}

/// An Ethernet header in front of IPv4.
#[must_use]
pub fn ethernet(destination: [u8; 6]) -> Vec<u8> {
    [&destination[..], &[2, 0, 0, 0, 0, 1], &[8, 0]].concat()
}

fn ipv4((source, destination): Ends, len: usize, protocol: u8) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(short(len));
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let words = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16));
    header[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
    header
}

fn udp(source: u16, destination: u16, len: usize) -> Vec<u8> {
    let fields = [
        source.to_be_bytes(),
        destination.to_be_bytes(),
        short(len),
        [0, 0],
    ];
    fields.concat()
}

fn short(len: usize) -> [u8; 2] {
    u16::try_from(len)
        .expect("packets are shorter than 64 KiB")
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_long_as_they_say_and_end_with_the_frame() {
        let ends = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        for len in [60, 508, 1400] {
            let frames = frames(len);
            assert!(frames.iter().all(|frame| frame.len() == len));
            for kind in [Kind::Gretap, Kind::Vxlan, Kind::Gue] {
                let packet = kind.packet(ends, 1, &frames[1]);
                assert_eq!(packet.len(), kind.outer_len(len));
                assert_eq!(packet[2..4], short(packet.len()));
                assert!(packet.ends_with(&frames[1][ETHERNET..]));
            }
        }
    }
}
