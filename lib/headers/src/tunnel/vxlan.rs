//! VXLAN (RFC 7348), in UDP to port 4789.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-----------------------------------------------+
//! |R|R|R|R|I|R|R|R|                  reserved                     |
//! +-+-+-+-+-+-+-+-+-------------------------------+---------------+
//! |                     VNI                       |   reserved    |
//! +-----------------------------------------------+---------------+
//! ```
//!
//! A receiver ignores reserved bits. One of them, 0x04, is the P flag of VXLAN-GPE, whose payload need not be an
//! Ethernet frame: that format is refused.

use super::decap::Reject;

pub(super) const VXLAN_LEN: usize = 8;
/// The VNI is valid.
const VALID: u8 = 0x08;
/// VXLAN-GPE: a next-protocol field is there.
const NEXT_PROTOCOL: u8 = 0x04;

/// VNI and frame of a VXLAN packet.
pub(super) fn parse(packet: &[u8]) -> Result<(u32, &[u8]), Reject> {
    let (header, frame) = packet
        .split_first_chunk::<VXLAN_LEN>()
        .ok_or(Reject::Short)?;
    let [flags, _, _, _, a, b, c, _] = *header;
    if flags & (VALID | NEXT_PROTOCOL) != VALID {
        return Err(Reject::Flags);
    }
    Ok((u32::from_be_bytes([0, a, b, c]), frame))
}

/// Appends a header.
pub(super) fn push(header: &mut Vec<u8>, vni: u32) {
    header.extend_from_slice(&[VALID, 0, 0, 0]);
    header.extend_from_slice(&(vni << 8).to_be_bytes());
}
