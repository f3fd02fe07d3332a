//! A judge of checksums that shares no code with those who make them.

/// Whether the checksum of a whole TCP or UDP packet behind an Ethernet header is right (RFC 1071, RFC 8200 section 8.1). `None`: it is no such
/// packet, a fragment, or cut. That a sender of UDP may leave the checksum out is not taken for an excuse.
#[must_use]
pub fn checksum_is_right(frame: &[u8]) -> Option<bool> {
    let packet = frame.get(14..)?;
    let half = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    let (protocol, addresses, header, length) = match frame.get(12..14)? {
        [0x08, 0x00] if half(6)? & 0x3fff == 0 => {
            let header = usize::from(packet[0] & 15) * 4;
            (
                *packet.get(9)?,
                packet.get(12..20)?,
                header,
                usize::from(half(2)?),
            )
        }
        [0x86, 0xdd] => (
            *packet.get(6)?,
            packet.get(8..40)?,
            40,
            40 + usize::from(half(4)?),
        ),
        _ => return None,
    };
    let segment = packet.get(header..length)?;
    let field = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    let made = segment.get(field..field + 2)? != [0, 0];
    let length = u32::try_from(segment.len()).ok()?;
    let sum = words(addresses) + words(segment) + u32::from(protocol) + length;
    Some(made && fold(fold(sum)) == 0xffff)
}

fn words(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    let words = pairs.map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)));
    words.fold(0, |sum, word| fold(sum + word))
}

fn fold(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DNS query, as tcpdump calls right.
    fn query() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 31, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([
            192, 0, 2, 1, 192, 0, 2, 2, 0xc0, 0, 0, 53, 0, 11, 0xf7, 0x3b,
        ]);
        frame.extend(*b"abc");
        frame
    }

    #[test]
    fn right_and_wrong_are_told_apart() {
        let mut frame = query();
        assert_eq!(checksum_is_right(&frame), Some(true));
        frame[42] ^= 1;
        assert_eq!(checksum_is_right(&frame), Some(false));
        let mut unmade = query();
        unmade[40..42].fill(0);
        assert_eq!(checksum_is_right(&unmade), Some(false));
    }

    #[test]
    fn what_cannot_be_judged_is_not() {
        let whole = query();
        for length in 0..whole.len() {
            assert_eq!(checksum_is_right(&whole[..length]), None);
        }
        let mut fragment = query();
        fragment[20] = 0x20;
        assert_eq!(checksum_is_right(&fragment), None);
    }
}
