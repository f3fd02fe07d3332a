//! The little of IP that hashes and checksums need: addresses, protocol, where layer 4 begins and ends.

/// An IP packet, or the part of it that was captured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpPacket<'a> {
    /// 4 or 16 bytes.
    pub(crate) source: &'a [u8],
    /// As long as `source`.
    pub(crate) destination: &'a [u8],
    /// Upper-layer protocol, behind all extension headers that could be followed.
    pub(crate) protocol: u8,
    /// Part of a fragmented packet, the first part included.
    pub(crate) fragment: bool,
    /// A part other than the first: what stands at `upper` is no header.
    pub(crate) later: bool,
    /// What all parts of a fragmented packet have in common beside their addresses; of IPv6 0 unless it is one.
    pub(crate) identification: u32,
    /// Where the upper layer begins, from the beginning of the IP header.
    pub(crate) upper: usize,
    /// Where the packet ends by its own account; `None` when it does not say (jumbograms).
    pub(crate) end: Option<usize>,
}

/// Extension headers that are followed; a packet with more is taken as it stands there. The programs of mirrord follow as many.
const MAX_EXTENSIONS: usize = 8;

impl<'a> IpPacket<'a> {
    /// Parses `bytes`, which begin with the EtherType. `None`: not IP, or no complete IP header.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<IpPacket<'a>> {
        let (ether_type, packet) = bytes.split_first_chunk()?;
        match u16::from_be_bytes(*ether_type) {
            0x0800 => parse_v4(packet),
            0x86dd => parse_v6(packet),
            _ => None,
        }
    }
}

/// RFC 791, section 3.1.
fn parse_v4(packet: &[u8]) -> Option<IpPacket<'_>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let upper = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || upper < 20 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // More-fragments flag or an offset; the don't-fragment flag does not count.
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Some(IpPacket {
        source: &packet[12..16],
        destination: &packet[16..20],
        protocol: header[9],
        fragment: fragment & 0x3fff != 0,
        later: fragment & 0x1fff != 0,
        identification: u16::from_be_bytes([header[4], header[5]]).into(),
        upper,
        end: (total != 0).then_some(total),
    })
}

/// RFC 8200, sections 3 and 4.
fn parse_v6(packet: &[u8]) -> Option<IpPacket<'_>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut parsed = IpPacket {
        source: &packet[8..24],
        destination: &packet[24..40],
        protocol: header[6],
        fragment: false,
        later: false,
        identification: 0,
        upper: 40,
        end: (payload != 0).then_some(40 + payload),
    };
    for _ in 0..MAX_EXTENSIONS {
        let Some(&[next, length, offset_high, offset_low]) =
            packet.get(parsed.upper..parsed.upper + 4)
        else {
            break;
        };
        parsed.upper += match parsed.protocol {
            // Hop-by-hop options, routing, destination options, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(length) + 1) * 8,
            // Authentication header (RFC 4302): counts in 4 bytes, less two.
            51 => (usize::from(length) + 2) * 4,
            44 => {
                // An atomic fragment (RFC 6946) is a whole packet.
                let fragment = u16::from_be_bytes([offset_high, offset_low]);
                parsed.fragment |= fragment & 0xfff9 != 0;
                parsed.later = fragment & 0xfff8 != 0;
                let identification = packet.get(parsed.upper + 4..parsed.upper + 8);
                let identification = identification.and_then(|bytes| bytes.try_into().ok());
                parsed.identification = identification.map_or(0, u32::from_be_bytes);
                8
            }
            _ => break,
        };
        parsed.protocol = next;
        if parsed.later {
            break;
        }
    }
    Some(parsed)
}
