//! Inner frames: many kinds and sizes, each with addresses that say to which case it belongs.

use std::ops::Range;

use crate::cases::Carries;

/// Last but one byte of the Ethernet destination of all frames; the last one is the number of the case.
const DESTINATION: [u8; 5] = [2, 0, 0, 0, 0xcc];
const SOURCE: [u8; 5] = [2, 0, 0, 0, 0xdd];
/// What IPv4 addresses begin with; the third byte is the number of the case. RFC 2544.
const NET4: [u8; 2] = [198, 18];
/// What IPv6 addresses begin with; the next two bytes are the number of the case. RFC 3849.
const NET6: [u8; 4] = [0x20, 0x01, 0x0d, 0xb8];
/// What a receiver of IP packets puts in front: to and from.
const SYNTHESIZED: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// Around the smallest frame, around powers of two, and around what fits an MTU of 1500 with and without each outer header.
const SIZES: [usize; 28] = [
    60, 61, 62, 63, 64, 65, 90, 127, 128, 255, 512, 1000, 1400, 1424, 1446, 1447, 1450, 1472, 1476,
    1490, 1500, 1514, 1518, 2000, 3001, 4096, 7999, 8000,
];

/// What a frame is. Each kind is at least as long as the shortest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Udp4,
    Tcp4,
    Udp6,
    /// UDP behind one tag.
    Tagged,
    /// UDP behind two tags of different types.
    DoubleTagged,
    Arp,
    /// No IP.
    Foreign,
    /// A short UDP packet, and bytes behind it that only fill the frame.
    Padded,
}

const KINDS: [Kind; 7] = [
    Kind::Udp4,
    Kind::Udp6,
    Kind::Tagged,
    Kind::Tcp4,
    Kind::DoubleTagged,
    Kind::Arp,
    Kind::Foreign,
];

/// A frame, and what has to be seen of it at the other end.
#[derive(Clone, Debug)]
pub(crate) struct Inner {
    /// The whole frame.
    pub(crate) frame: Vec<u8>,
    /// Where its IP packet is, if it has one.
    ip: Option<Range<usize>>,
}

impl Inner {
    /// The IP packet in the frame.
    fn packet(&self) -> Option<&[u8]> {
        self.ip.clone().map(|place| &self.frame[place])
    }

    /// What comes out at the far end of a tunnel that carries this.
    pub(crate) fn carried(&self, carries: Carries) -> Option<&[u8]> {
        match carries {
            Carries::Ethernet => Some(&self.frame),
            Carries::Ip | Carries::Ipv4 | Carries::Ipv6 => self.packet(),
        }
    }

    /// What a receiver puts into its ring.
    pub(crate) fn received(&self, carries: Carries) -> Option<Vec<u8>> {
        let packet = self.packet();
        match carries {
            Carries::Ethernet => Some(self.frame.clone()),
            Carries::Ip | Carries::Ipv4 | Carries::Ipv6 => packet.map(|packet| {
                let ether_type = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
                [&SYNTHESIZED, &ether_type[..], packet].concat()
            }),
        }
    }

    /// Whether it is nothing but an Ethernet header and an IP packet.
    pub(crate) fn is_plain(&self) -> bool {
        self.ip == Some(ETHERNET..self.frame.len())
    }
}

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The frames of a case. Those that a tunnel for IP cannot carry are among them, those of the other IP version are not.
pub(crate) fn frames(case: u8, carries: Carries) -> Vec<Inner> {
    let kinds = |skip| SIZES.into_iter().zip(KINDS.into_iter().cycle().skip(skip));
    let all = kinds(0).chain(kinds(3)).chain([(60, Kind::Padded)]);
    let fitting = all.filter(|(_, kind)| match carries {
        Carries::Ethernet | Carries::Ip => true,
        Carries::Ipv4 => *kind != Kind::Udp6,
        Carries::Ipv6 => matches!(kind, Kind::Udp6 | Kind::Arp | Kind::Foreign),
    });
    let numbered = (0..).zip(fitting);
    numbered
        .map(|(number, (size, kind))| frame(case, number, size, kind))
        .collect()
}

/// The number of the case to which a frame, or an IP packet, belongs; 0 for none.
pub(crate) fn case_of(bytes: &[u8]) -> u8 {
    let at = match bytes {
        [2, 0, 0, 0, 0xcc, ..] => 5,
        [0x45, ..] if bytes.get(12..14) == Some(&NET4) => 14,
        [0x60, ..] if bytes.get(8..12) == Some(&NET6) => 13,
        _ => return 0,
    };
    bytes.get(at).copied().unwrap_or(0)
}

fn frame(case: u8, number: u16, size: usize, kind: Kind) -> Inner {
    let mut frame = [&DESTINATION[..], &[case], &SOURCE, &[case]].concat();
    frame.extend(match kind {
        Kind::Tagged => &[0x81, 0x00, 0x60, 0x07][..],
        Kind::DoubleTagged => &[0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0xb0, 0x0a],
        _ => &[],
    });
    frame.extend(match kind {
        Kind::Udp6 => IPV6,
        Kind::Arp => [0x08, 0x06],
        Kind::Foreign => [0x88, 0xb5],
        _ => IPV4,
    });
    let begin = frame.len();
    // The shortest frame has no room for UDP in IPv6.
    let size = if kind == Kind::Udp6 {
        size.max(begin + 48)
    } else {
        size
    };
    let end = if kind == Kind::Padded {
        begin + 28
    } else {
        size
    };
    match kind {
        Kind::Arp => frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0xdd, case]),
        Kind::Foreign => frame.extend(number.to_be_bytes()),
        Kind::Udp6 => frame.extend(ipv6(case, end - begin, number)),
        Kind::Tcp4 => frame.extend(ipv4(case, end - begin, number, 6)),
        _ => frame.extend(ipv4(case, end - begin, number, 17)),
    }
    frame.extend((frame.len()..size).map(|at| filler(number, at)));
    Inner {
        frame,
        ip: (!matches!(kind, Kind::Arp | Kind::Foreign)).then_some(begin..end),
    }
}

/// Bytes that differ from frame to frame and from place to place.
fn filler(number: u16, at: usize) -> u8 {
    let mixed = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ u64::from(number) << 17);
    mixed.to_be_bytes()[1]
}

/// Headers of an IPv4 packet of `len` bytes, up to and with those of UDP or TCP. Each packet is a flow of its own, so that nothing on the
/// way merges two of them.
fn ipv4(case: u8, len: usize, number: u16, protocol: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(length(len));
    packet.extend(number.to_be_bytes());
    packet.extend([0, 0, 64, protocol, 0, 0]);
    for host in [1, 2] {
        packet.extend(NET4);
        packet.extend([case, host]);
    }
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16));
    packet[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
    packet.extend(transport(len - 20, number, protocol));
    packet
}

fn ipv6(case: u8, len: usize, number: u16) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(len - 40));
    packet.extend([17, 64]);
    for host in [1, 2] {
        packet.extend(NET6);
        packet.extend([0, case, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    packet.extend(transport(len - 40, number, 17));
    packet
}

fn transport(len: usize, number: u16, protocol: u8) -> Vec<u8> {
    let mut header = [(20_000 + number).to_be_bytes(), [0x1f, 0x90]].concat();
    if protocol == 6 {
        header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        header.extend(length(len));
        header.extend([0, 0]);
    }
    header
}

fn length(len: usize) -> [u8; 2] {
    u16::try_from(len)
        .expect("frames are shorter than 64 KiB")
        .to_be_bytes()
}
