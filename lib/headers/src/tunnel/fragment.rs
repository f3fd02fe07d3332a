//! Cutting outer packets that are longer than the path takes.
//!
//! ```text
//!  IPv6 fragment header (RFC 8200, section 4.5), behind the IPv6 header
//!  0               8               16                        29  31
//! +---------------+---------------+-------------------------+---+-+
//! |  next header  |   reserved    |  offset, 8 bytes each   | 0 |M|
//! +---------------+---------------+-------------------------+---+-+
//! |                        identification                         |
//! +---------------------------------------------------------------+
//! ```

use std::ops::Range;

use super::encap::Skip;
use super::outer::{DF, IPV4_LEN, IPV6_LEN, set_header_checksum};

/// More fragments follow (IPv4).
const MF: u16 = 0x2000;
const FRAGMENT_HEADER: u8 = 44;
const FRAGMENT_HEADER_LEN: usize = 8;
/// Offsets count in this many bytes.
const UNIT: usize = 8;

/// Cuts IP packets into fragments (RFC 791; RFC 8200, section 4.5).
///
/// Fragments of IPv4 keep the identification of the packet; those of IPv6 get one from the counter in here.
#[derive(Debug, Clone)]
pub struct Fragmenter {
    next_identification: u32,
}

/// Where fragments go.
struct Output<'a> {
    prefix: &'a [u8],
    out: &'a mut Vec<u8>,
    pieces: &'a mut Vec<Range<usize>>,
}

impl Output<'_> {
    /// Appends one piece in two parts and its place.
    fn push(&mut self, header: &[u8], payload: &[u8]) {
        let start = self.out.len();
        self.out.extend_from_slice(self.prefix);
        self.out.extend_from_slice(header);
        self.out.extend_from_slice(payload);
        self.pieces.push(start..self.out.len());
    }
}

impl Fragmenter {
    /// A fragmenter; a random first value keeps the fragments of two senders apart.
    pub fn new(first_identification: u32) -> Fragmenter {
        Fragmenter {
            next_identification: first_identification,
        }
    }

    /// Appends the fragments of `packet` to `out`, each of at most `mtu` bytes and preceded by `prefix` (a link header
    /// or nothing), and their places, prefix included, to `pieces`. A packet that fits comes as one piece.
    ///
    /// For packets of [`super::Encap`]: IP options, extension headers and fragments are not cut again.
    ///
    /// # Errors
    /// [`Skip::TooLong`] when it may not be cut (IPv4 with DF) or `mtu` has no room for 8 bytes of payload;
    /// [`Skip::Malformed`] for what is not such a packet. Then nothing is appended.
    pub fn fragment(
        &mut self,
        packet: &[u8],
        mtu: usize,
        prefix: &[u8],
        out: &mut Vec<u8>,
        pieces: &mut Vec<Range<usize>>,
    ) -> Result<(), Skip> {
        let mut output = Output {
            prefix,
            out,
            pieces,
        };
        match packet.first().ok_or(Skip::Malformed)? {
            0x45 => fragment_v4(packet, mtu, &mut output),
            first if first >> 4 == 6 => self.fragment_v6(packet, mtu, &mut output),
            _ => Err(Skip::Malformed),
        }
    }

    fn fragment_v6(
        &mut self,
        packet: &[u8],
        mtu: usize,
        output: &mut Output<'_>,
    ) -> Result<(), Skip> {
        let (header, payload) = packet
            .split_first_chunk::<IPV6_LEN>()
            .ok_or(Skip::Malformed)?;
        let next = header[6];
        // Hop-by-hop, routing, fragment, destination options.
        let extended = matches!(next, 0 | 43 | FRAGMENT_HEADER | 60);
        if extended || usize::from(u16::from_be_bytes([header[4], header[5]])) != payload.len() {
            return Err(Skip::Malformed);
        }
        if packet.len() <= mtu {
            output.push(packet, &[]);
            return Ok(());
        }
        let chunk = chunk_len(mtu, IPV6_LEN + FRAGMENT_HEADER_LEN)?;
        let mut head = [0; IPV6_LEN + FRAGMENT_HEADER_LEN];
        head[..IPV6_LEN].copy_from_slice(header);
        head[6] = FRAGMENT_HEADER;
        head[IPV6_LEN] = next;
        head[IPV6_LEN + 4..].copy_from_slice(&self.next_identification.to_be_bytes());
        self.next_identification = self.next_identification.wrapping_add(1);
        for (offset, part, more) in parts(payload, chunk) {
            let length = FRAGMENT_HEADER_LEN + part.len();
            [head[4], head[5]] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
            // The offset in units of 8 stands 3 bits from the right: in bytes, it is there already.
            let field = offset | u16::from(more);
            [head[IPV6_LEN + 2], head[IPV6_LEN + 3]] = field.to_be_bytes();
            output.push(&head, part);
        }
        Ok(())
    }
}

fn fragment_v4(packet: &[u8], mtu: usize, output: &mut Output<'_>) -> Result<(), Skip> {
    let (header, payload) = packet
        .split_first_chunk::<IPV4_LEN>()
        .ok_or(Skip::Malformed)?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total != packet.len() || flags & !DF != 0 {
        return Err(Skip::Malformed);
    }
    if packet.len() <= mtu {
        output.push(packet, &[]);
        return Ok(());
    }
    if flags & DF != 0 {
        return Err(Skip::TooLong);
    }
    let chunk = chunk_len(mtu, IPV4_LEN)?;
    let mut head = *header;
    for (offset, part, more) in parts(payload, chunk) {
        let length = IPV4_LEN + part.len();
        [head[2], head[3]] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        let field = (offset / 8) | if more { MF } else { 0 };
        [head[6], head[7]] = field.to_be_bytes();
        set_header_checksum(&mut head);
        output.push(&head, part);
    }
    Ok(())
}

/// Bytes of payload in every fragment but the last: a multiple of 8.
fn chunk_len(mtu: usize, header: usize) -> Result<usize, Skip> {
    match mtu.saturating_sub(header) / UNIT * UNIT {
        0 => Err(Skip::TooLong),
        chunk => Ok(chunk),
    }
}

/// The parts of a payload of at most 65535 bytes: offset in bytes, the part, whether more follow.
fn parts(payload: &[u8], chunk: usize) -> impl Iterator<Item = (u16, &[u8], bool)> {
    let parts = payload.chunks(chunk);
    let last = parts.len().saturating_sub(1);
    parts.enumerate().map(move |(index, part)| {
        let offset = u16::try_from(index * chunk).unwrap_or(u16::MAX);
        (offset, part, index != last)
    })
}

#[cfg(test)]
mod tests;
