//! ERSPAN types I, II and III (draft-foschiano-erspan-03), in GRE.
//!
//! ```text
//!  type II, GRE protocol 0x88be with a sequence number
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-----------------------+-----+---+-+-------------------+
//! | Ver=1 |         VLAN          | COS |En |T|    session        |
//! +-------+---------------+-------+-----+---+-+-------------------+
//! |      reserved         |              index                    |
//! +-----------------------+---------------------------------------+
//!
//!  type III, GRE protocol 0x22eb with a sequence number
//! +-------+-----------------------+-----+---+-+-------------------+
//! | Ver=2 |         VLAN          | COS |BSO|T|    session        |
//! +-------+-----------------------+-----+---+-+-------------------+
//! |                          timestamp                            |
//! +-------------------------------+-+---------+-----------+-+---+-+
//! |             SGT               |P|   FT    |   Hw ID   |D|Gra|O|
//! +-------------------------------+-+---------+-----------+-+---+-+
//! |                 platform sub-header, 8 bytes                  |  if O
//! +---------------------------------------------------------------+
//! ```
//!
//! Type I has no header of its own: GRE protocol 0x88be without a sequence number. Only that bit tells I from II.
//! En: 0 no tag, 1 ISL, 2 the 802.1Q tag was taken out, 3 the tag is in the frame. T: the frame was cut.

use super::decap::{Granularity, Reject};
use super::spec::Direction;
use crate::VlanTag;

/// GRE protocol of types I and II.
pub(super) const PROTOCOL_II: u16 = 0x88be;
/// GRE protocol of type III.
pub(super) const PROTOCOL_III: u16 = 0x22eb;
pub(super) const LEN_II: usize = 8;
pub(super) const LEN_III: usize = 12;
/// The optional end of a type III header.
const SUBHEADER_LEN: usize = 8;

/// "Truncated" in the first word.
const TRUNCATED: u32 = 1 << 10;
/// En = 3: the VLAN tag is in the frame.
const TAG_IN_FRAME: u32 = 3 << 11;
/// Type III, P: an Ethernet frame.
const ETHERNET: u16 = 1 << 15;

/// An ERSPAN header of type II or III that is there in full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Erspan<'a> {
    first: u32,
    /// Type III only.
    third: Option<Third>,
    payload: &'a [u8],
}

/// What type III adds.
#[derive(Debug, Clone, Copy)]
struct Third {
    timestamp: u32,
    flags: u16,
}

impl<'a> Erspan<'a> {
    pub(super) fn parse_ii(packet: &'a [u8]) -> Result<Erspan<'a>, Reject> {
        let first = first_word(packet, 1)?;
        let payload = packet.get(LEN_II..).ok_or(Reject::Short)?;
        Ok(Erspan {
            first,
            third: None,
            payload,
        })
    }

    pub(super) fn parse_iii(packet: &'a [u8]) -> Result<Erspan<'a>, Reject> {
        let first = first_word(packet, 2)?;
        let (header, rest) = packet.split_first_chunk::<LEN_III>().ok_or(Reject::Short)?;
        let [.., t0, t1, t2, t3, _, _, f0, f1] = *header;
        let flags = u16::from_be_bytes([f0, f1]);
        let payload = match flags & 1 {
            0 => Some(rest),
            _ => rest.get(SUBHEADER_LEN..),
        };
        Ok(Erspan {
            first,
            third: Some(Third {
                timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
                flags,
            }),
            payload: payload.ok_or(Reject::Short)?,
        })
    }

    pub(super) fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// 10 bits.
    pub(super) fn session(&self) -> u32 {
        self.first & 0x3ff
    }

    pub(super) fn truncated(&self) -> bool {
        self.first & TRUNCATED != 0
    }

    /// The tag that the switch took out of the frame.
    pub(super) fn removed_tag(&self) -> Option<VlanTag> {
        if self.third.is_some() || self.first >> 11 & 3 != 2 {
            return None;
        }
        let [_, _, cos, _] = self.first.to_be_bytes();
        let vid = u16::try_from(self.first >> 16 & 0xfff).ok()?;
        Some(VlanTag {
            tpid: 0x8100,
            tci: u16::from(cos >> 5) << 13 | vid,
        })
    }

    pub(super) fn timestamp(&self) -> Option<(u32, Granularity)> {
        let third = self.third?;
        let granularity = match third.flags >> 1 & 3 {
            0 => Granularity::HundredMicroseconds,
            1 => Granularity::HundredNanoseconds,
            2 => Granularity::Ieee1588,
            _ => Granularity::UserDefined,
        };
        Some((third.timestamp, granularity))
    }

    pub(super) fn direction(&self) -> Option<Direction> {
        self.third.map(|third| match third.flags >> 3 & 1 {
            0 => Direction::Ingress,
            _ => Direction::Egress,
        })
    }

    /// Whether the payload is an IP packet without Ethernet header (frame type 2).
    pub(super) fn carries_ip(&self) -> bool {
        self.third
            .is_some_and(|third| third.flags >> 10 & 0x1f == 2)
    }
}

fn first_word(packet: &[u8], version: u32) -> Result<u32, Reject> {
    let word = u32::from_be_bytes(*packet.first_chunk().ok_or(Reject::Short)?);
    if word >> 28 == version {
        Ok(word)
    } else {
        Err(Reject::Version)
    }
}

/// Appends a type II header; [`mark`] completes it.
pub(super) fn push_ii(header: &mut Vec<u8>, session: u32, index: u32) {
    header.extend_from_slice(&(1 << 28 | session & 0x3ff).to_be_bytes());
    header.extend_from_slice(&(index & 0xf_ffff).to_be_bytes());
}

/// Appends a type III header; [`mark`] and [`stamp`] complete it.
pub(super) fn push_iii(header: &mut Vec<u8>, session: u32, hardware_id: u8) {
    header.extend_from_slice(&(2 << 28 | session & 0x3ff).to_be_bytes());
    header.extend_from_slice(&[0; 6]);
    let flags = ETHERNET | u16::from(hardware_id & 0x3f) << 4;
    header.extend_from_slice(&flags.to_be_bytes());
}

/// Sets what the header says of the frame's outer tag and of its end.
#[inline]
pub(super) fn mark(header: &mut [u8], tag: Option<VlanTag>, truncated: bool, type_ii: bool) {
    let Some(word) = header.first_chunk_mut::<4>() else {
        return;
    };
    let mut value = u32::from_be_bytes(*word);
    if let Some(tag) = tag {
        value |= u32::from(tag.vid()) << 16 | u32::from(tag.pcp()) << 13;
        value |= if type_ii { TAG_IN_FRAME } else { 0 };
    }
    value |= if truncated { TRUNCATED } else { 0 };
    *word = value.to_be_bytes();
}

/// Sets timestamp and direction of a type III header.
#[inline]
pub(super) fn stamp(header: &mut [u8], timestamp_ns: u64, direction: Direction) {
    let Some(header) = header.first_chunk_mut::<LEN_III>() else {
        return;
    };
    // The lower 32 bits of a count of 100 microseconds (Gra = 0), as Linux sends it.
    let [.., a, b, c, d] = (timestamp_ns / 100_000).to_be_bytes();
    [header[4], header[5], header[6], header[7]] = [a, b, c, d];
    if direction == Direction::Egress {
        header[11] |= 1 << 3;
    }
}
