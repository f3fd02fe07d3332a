//! What is known about a frame besides its bytes.

use crate::protocol::{Head, Kind};

/// The way a frame went past the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// It was received.
    #[default]
    In,
    /// It was sent by this host.
    Out,
}

/// Marks of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No mark.
    pub const NONE: Self = Self(0);
    /// The record holds less than was on the wire.
    pub const TRUNCATED: Self = Self(1);
    /// Its checksum is known to be wrong.
    pub const CHECKSUM_BAD: Self = Self(2);
    /// It is several packets joined by segmentation offload.
    pub const GSO: Self = Self(4);

    /// Whether all marks of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The marks as they lie in memory.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Marks from memory; unknown ones are kept.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Metadata of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// When it was seen, nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Its length on the wire in bytes, without frame check sequence.
    pub wire_len: u32,
    /// Where it was seen: index into the ring's source table.
    pub source: u16,
    /// The way it went.
    pub direction: Direction,
    /// VLAN tags in front.
    pub vlan_count: u8,
    /// Symmetric hash of its flow.
    pub flow_hash: u32,
    /// Identifier of the tunnel that it came through: GRE key, virtual network (VXLAN, Geneve, NVGRE), or ERSPAN session; 0 when
    /// there was none.
    pub id: u32,
    /// Marks.
    pub flags: Flags,
}

impl Meta {
    /// The head of the DATA record of a frame of `frame_len` bytes.
    #[inline]
    pub(crate) fn head(&self, frame_len: u32) -> Head {
        Head {
            kind: Kind::Data,
            len: frame_len.saturating_add(32),
            flags: self.flags.bits(),
            seq: 0,
            time_ns: self.timestamp_ns,
            wire_len: self.wire_len,
            source: self.source,
            direction: u8::from(self.direction == Direction::Out),
            vlan_count: self.vlan_count,
            flow_hash: self.flow_hash,
            id: self.id,
        }
    }

    pub(crate) fn from_head(head: &Head) -> Self {
        Self {
            timestamp_ns: head.time_ns,
            wire_len: head.wire_len,
            source: head.source,
            direction: if head.direction == 0 {
                Direction::In
            } else {
                Direction::Out
            },
            vlan_count: head.vlan_count,
            flow_hash: head.flow_hash,
            id: head.id,
            flags: Flags::from_bits(head.flags),
        }
    }
}
