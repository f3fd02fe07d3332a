//! One record: header, metadata, bytes.
//!
//! ```text
//!  0        8      12   13    14   16       24        32        36     38  39  40        44   48
//!  +--------+------+----+-----+----+--------+---------+---------+------+---+---+---------+----+---
//!  | pos    | len  |type|flags| 0  | seq    | time ns | wire_len|source|dir|vln|flow hash| id | frame
//!  +--------+------+----+-----+----+--------+---------+---------+------+---+---+---------+----+---
//!  |<------- header, 16 bytes ---->|<-------------- metadata, 32 bytes ------------------>|
//! ```
//! `pos` is the record's own position: one compare finds lap, tear, garbage and a wrong epoch.
//! `len` counts what follows the header. Every record begins on a multiple of 16.

/// Bytes of header and metadata of a DATA record.
pub const META: u64 = 48;

/// Bytes that a frame of `frame_len` bytes occupies in the ring.
#[inline]
pub fn record_size(frame_len: usize) -> usize {
    (frame_len.saturating_add(48 + 15)) & !15
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A frame.
    Data,
    /// Nothing: what a killed producer had reserved.
    Pad,
    /// The number of frames that the kernel dropped at this place.
    Loss,
}

/// The first six words of a record, apart from its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the record holds.
    pub kind: Kind,
    /// Bytes after the header.
    pub len: u32,
    /// Flags of the frame.
    pub flags: u8,
    /// Sequence number of a frame; number of frames lost in a LOSS record.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Length of the frame on the wire in bytes.
    pub wire_len: u32,
    /// Index into the source table.
    pub source: u16,
    /// 0 in, 1 out.
    pub direction: u8,
    /// VLAN tags in front.
    pub vlan_count: u8,
    /// Symmetric hash of the flow.
    pub flow_hash: u32,
    /// Identifier of the tunnel that it came through.
    pub id: u32,
}

impl Head {
    /// A record without content that covers `total` bytes.
    pub fn pad(total: u32) -> Self {
        Self {
            kind: Kind::Pad,
            len: total - 16,
            ..Self::EMPTY
        }
    }

    /// All zero.
    pub const EMPTY: Self = Self {
        kind: Kind::Data,
        len: 0,
        flags: 0,
        seq: 0,
        time_ns: 0,
        wire_len: 0,
        source: 0,
        direction: 0,
        vlan_count: 0,
        flow_hash: 0,
        id: 0,
    };

    /// Bytes that the record occupies.
    #[inline]
    pub fn total(&self) -> u64 {
        (u64::from(self.len) + 16 + 15) & !15
    }

    /// The words as they lie in memory. A PAD has only the first two.
    #[inline]
    pub fn encode(&self, pos: u64) -> [u64; 6] {
        let kind = match self.kind {
            Kind::Data => 1u64,
            Kind::Pad => 2,
            Kind::Loss => 3,
        };
        [
            pos,
            u64::from(self.len) | kind << 32 | u64::from(self.flags) << 40,
            self.seq,
            self.time_ns,
            u64::from(self.wire_len)
                | u64::from(self.source) << 32
                | u64::from(self.direction) << 48
                | u64::from(self.vlan_count) << 56,
            u64::from(self.flow_hash) | u64::from(self.id) << 32,
        ]
    }

    /// Reads a private copy of a record. Only the type is checked here.
    /// `words` may be shorter than six: what is missing reads as zero.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each cast picks the bits of one field"
    )]
    pub fn decode(words: &[u64]) -> Option<Self> {
        let word = |i: usize| words.get(i).copied().unwrap_or(0);
        let kind = match (word(1) >> 32) as u8 {
            1 => Kind::Data,
            2 => Kind::Pad,
            3 => Kind::Loss,
            _ => return None,
        };
        Some(Self {
            kind,
            len: word(1) as u32,
            flags: (word(1) >> 40) as u8,
            seq: word(2),
            time_ns: word(3),
            wire_len: word(4) as u32,
            source: (word(4) >> 32) as u16,
            direction: (word(4) >> 48) as u8,
            vlan_count: (word(4) >> 56) as u8,
            flow_hash: word(5) as u32,
            id: (word(5) >> 32) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_survives_a_round_trip() {
        let head = Head {
            kind: Kind::Data,
            len: 0xffff_fffe,
            flags: 7,
            seq: u64::MAX - 1,
            time_ns: 3,
            wire_len: 0x1234_5678,
            source: 0xfffe,
            direction: 1,
            vlan_count: 4,
            flow_hash: 0xdead_beef,
            id: 0x8765_4321,
        };
        assert_eq!(Head::decode(&head.encode(16)), Some(head));
        assert_eq!(head.encode(16)[0], 16);
    }

    #[test]
    fn sizes_are_multiples_of_sixteen() {
        assert_eq!(record_size(0), 48);
        assert_eq!(record_size(1), 64);
        assert_eq!(record_size(64), 112);
        assert_eq!(record_size(65), 128);
    }
}
