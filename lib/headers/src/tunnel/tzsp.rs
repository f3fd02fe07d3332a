//! TaZmen Sniffer Protocol, in UDP to port 37008 (no RFC; as sent by MikroTik's packet sniffer).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |   version 1   |     type      |    encapsulation, 1=Ethernet  |
//! +---------------+---------------+-------------------------------+
//! |  tags: 0 padding, 1 the end; else type, length, data          |
//! +---------------------------------------------------------------+
//! ```
//!
//! Types 0 and 1 carry a frame, received or to be sent; the others are control messages.

use super::decap::Reject;

const VERSION: u8 = 1;
const TYPE_LAST_DATA: u8 = 1;
const ETHERNET: u16 = 1;
const TAG_PADDING: u8 = 0;
const TAG_END: u8 = 1;
/// Length of the frame before it was cut, 16 bits.
const TAG_ORIGINAL_LENGTH: u8 = 41;

/// The frame of a TZSP packet, and its length on the wire when a tag tells it.
pub(super) fn parse(packet: &[u8]) -> Result<(&[u8], Option<u16>), Reject> {
    let (&[version, kind, e0, e1], mut rest) =
        packet.split_first_chunk::<4>().ok_or(Reject::Short)?;
    if version != VERSION {
        return Err(Reject::Version);
    }
    if kind > TYPE_LAST_DATA {
        return Err(Reject::Control);
    }
    if u16::from_be_bytes([e0, e1]) != ETHERNET {
        return Err(Reject::Protocol);
    }
    let mut original = None;
    loop {
        let (&tag, behind) = rest.split_first().ok_or(Reject::Short)?;
        rest = match tag {
            TAG_PADDING => behind,
            TAG_END => return Ok((behind, original)),
            _ => {
                let (&length, data) = behind.split_first().ok_or(Reject::OptionLength)?;
                let (data, behind) = data
                    .split_at_checked(usize::from(length))
                    .ok_or(Reject::OptionLength)?;
                if tag == TAG_ORIGINAL_LENGTH {
                    original = data.try_into().ok().map(u16::from_be_bytes);
                }
                behind
            }
        };
    }
}
