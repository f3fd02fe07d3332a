//! Generic UDP encapsulation (draft-ietf-intarea-gue-09) as Linux does it (net/ipv4/fou_core.c), to port 6080.
//!
//! ```text
//!  variant 0                                                            variant 1
//!  0                   1                   2                   3        the IP packet itself, whose version
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1      begins with the bits 0 1
//! +---+-+---------+---------------+-------------------------------+
//! |Ver|C|  hlen   | protocol/type |             flags           |P|
//! +---+-+---------+---------------+-------------------------------+
//! |R|                     private flags                           |  if P
//! +-+-----------------------------+-------------------------------+
//! |  where the checksum begins    |    where the checksum is      |  if R
//! +-------------------------------+-------------------------------+
//! |     surplus, up to hlen x 4 bytes from the end of the flags   |
//! +---------------------------------------------------------------+
//! ```
//!
//! C: a control message. R: remote checksum offload, the receiver is to compute the inner checksum. Linux knows no other flag, and a
//! packet with an unknown one is dropped.

use super::decap::{Patch, Reject};
use crate::checksum::{fold, sum_words};

pub(super) const GUE_LEN: usize = 4;
const CONTROL: u8 = 0x20;
const PRIVATE: u16 = 0x0001;
const REMOTE_CHECKSUM: u32 = 0x8000_0000;

/// What a GUE packet carries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gue<'a> {
    /// Variant 0: a payload of this IP protocol.
    Protocol {
        protocol: u8,
        payload: &'a [u8],
        patch: Option<Patch>,
    },
    /// Variant 1: an IP packet.
    Direct(&'a [u8]),
}

impl<'a> Gue<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Result<Gue<'a>, Reject> {
        match packet.first().ok_or(Reject::Short)? >> 6 {
            0 => {}
            1 => return Ok(Gue::Direct(packet)),
            _ => return Err(Reject::Version),
        }
        let (&[first, protocol, f0, f1], rest) =
            packet.split_first_chunk::<GUE_LEN>().ok_or(Reject::Short)?;
        let (extensions, payload) = rest
            .split_at_checked(usize::from(first & 0x1f) * 4)
            .ok_or(Reject::Short)?;
        if first & CONTROL != 0 {
            return Err(Reject::Control);
        }
        let patch = match u16::from_be_bytes([f0, f1]) {
            0 => None,
            PRIVATE => private(extensions, payload)?,
            _ => return Err(Reject::Flags),
        };
        Ok(Gue::Protocol {
            protocol,
            payload,
            patch,
        })
    }
}

/// The extensions that go with the flag "private".
fn private(extensions: &[u8], payload: &[u8]) -> Result<Option<Patch>, Reject> {
    let (flags, rest) = extensions.split_first_chunk().ok_or(Reject::OptionLength)?;
    match u32::from_be_bytes(*flags) {
        0 => Ok(None),
        REMOTE_CHECKSUM => {
            let &[s0, s1, o0, o1] = rest.first_chunk().ok_or(Reject::OptionLength)?;
            let start = usize::from(u16::from_be_bytes([s0, s1]));
            let at = usize::from(u16::from_be_bytes([o0, o1]));
            complete(payload, start, at)
                .ok_or(Reject::OptionLength)
                .map(Some)
        }
        _ => Err(Reject::Flags),
    }
}

/// The checksum at `at` over everything from `start` on. The field holds the sum of the pseudo header, which is thus
/// counted (include/net/checksum.h, `remcsum_adjust`).
fn complete(payload: &[u8], start: usize, at: usize) -> Option<Patch> {
    payload.get(at..)?.first_chunk::<2>()?;
    let sum = fold(sum_words(payload.get(start..)?));
    Some(Patch {
        at,
        bytes: (!sum).to_be_bytes(),
    })
}

/// Appends a header of variant 0 without extensions.
pub(super) fn push(header: &mut Vec<u8>, protocol: u8) {
    header.extend_from_slice(&[0, protocol, 0, 0]);
}
