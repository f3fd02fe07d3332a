//! GRE: RFC 2784, with key and sequence number of RFC 2890; over IPv6 the same (RFC 7676).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-----------+-------+-------------------------------+
//! |C|0|K|S|0 0| reserved  |  Ver  |         protocol type         |
//! +-+-+-+-+-+-+-----------+-------+-------------------------------+
//! |           checksum            |           reserved            |  if C
//! +-------------------------------+-------------------------------+
//! |      key  (NVGRE, RFC 7637: VSID, 24 bits | flow, 8 bits)     |  if K
//! +---------------------------------------------------------------+
//! |                        sequence number                        |  if S
//! +---------------------------------------------------------------+
//! ```
//!
//! The checksum covers header and payload. Reserved bits 1, 4 and 5 must be zero, a receiver ignores the others.

use super::decap::Reject;
use crate::checksum::{fold, sum_words};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Bits that add a word to the header.
const WORDS: u16 = CHECKSUM | KEY | SEQUENCE;
/// RFC 2784, section 2.3: a receiver discards packets with these, unless it knows RFC 1701.
const FORBIDDEN: u16 = 0x4c00;
const VERSION: u16 = 0x0007;
/// The header without optional words.
pub(super) const GRE_LEN: usize = 4;

/// A packet whose GRE header is whole and legal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gre<'a> {
    /// From the first byte of the header; at least as long as the flags say.
    packet: &'a [u8],
    flags: u16,
    protocol: u16,
}

impl<'a> Gre<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Result<Gre<'a>, Reject> {
        let &[a, b, c, d] = packet.first_chunk().ok_or(Reject::Short)?;
        let flags = u16::from_be_bytes([a, b]);
        if flags & VERSION != 0 {
            return Err(Reject::Version);
        }
        if flags & FORBIDDEN != 0 {
            return Err(Reject::Flags);
        }
        if packet.len() < end_of(flags, WORDS) {
            return Err(Reject::Short);
        }
        let protocol = u16::from_be_bytes([c, d]);
        Ok(Gre {
            packet,
            flags,
            protocol,
        })
    }

    pub(super) fn protocol(&self) -> u16 {
        self.protocol
    }

    pub(super) fn payload(&self) -> &'a [u8] {
        let at = end_of(self.flags, WORDS);
        self.packet.get(at..).unwrap_or_default()
    }

    pub(super) fn has_checksum(&self) -> bool {
        self.flags & CHECKSUM != 0
    }

    /// Whether the checksum is right; without one it is.
    pub(super) fn checksum_holds(&self) -> bool {
        !self.has_checksum() || fold(sum_words(self.packet)) == 0xffff
    }

    pub(super) fn key(&self) -> Option<u32> {
        self.word(KEY, end_of(self.flags, CHECKSUM))
    }

    pub(super) fn sequence(&self) -> Option<u32> {
        self.word(SEQUENCE, end_of(self.flags, CHECKSUM | KEY))
    }

    fn word(&self, flag: u16, at: usize) -> Option<u32> {
        let word = self.packet.get(at..)?.first_chunk()?;
        (self.flags & flag != 0).then_some(u32::from_be_bytes(*word))
    }
}

/// The length of a header with those of `words` that `flags` names. They stand in the order of their bits.
fn end_of(flags: u16, words: u16) -> usize {
    GRE_LEN + 4 * (flags & words).count_ones() as usize
}

/// Where the fields of a GRE header are that change with each packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GreLayout {
    /// The first byte of the header.
    pub(super) start: usize,
    pub(super) checksum: Option<usize>,
    pub(super) key: Option<usize>,
    pub(super) sequence: Option<usize>,
}

/// Appends a GRE header with the checksum and the sequence number zero.
pub(super) fn push_gre(
    header: &mut Vec<u8>,
    protocol: u16,
    key: Option<u32>,
    checksum: bool,
    sequence: bool,
) -> GreLayout {
    let start = header.len();
    let flag = |present, flag| if present { flag } else { 0 };
    let flags = flag(checksum, CHECKSUM) | flag(key.is_some(), KEY) | flag(sequence, SEQUENCE);
    header.extend_from_slice(&flags.to_be_bytes());
    header.extend_from_slice(&protocol.to_be_bytes());
    let mut word = |present: bool, value: u32| {
        let at = header.len();
        present.then(|| header.extend_from_slice(&value.to_be_bytes()))?;
        Some(at)
    };
    GreLayout {
        start,
        checksum: word(checksum, 0),
        key: word(key.is_some(), key.unwrap_or_default()),
        sequence: word(sequence, 0),
    }
}
