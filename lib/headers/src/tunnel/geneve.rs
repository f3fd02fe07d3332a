//! Geneve (RFC 8926), in UDP to port 6081.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---+-----------+-+-+-----------+-------------------------------+
//! |Ver|  opt len  |O|C|   rsvd    |         protocol type         |
//! +---+-----------+-+-+-----------+---------------+---------------+
//! |                     VNI                       |   reserved    |
//! +-----------------------------------------------+---------------+
//! |          option class         |     type      |R|R|R| length  |  each option
//! +-------------------------------+---------------+-+-+-+---------+
//! |                 option data, length x 4 bytes                 |
//! +---------------------------------------------------------------+
//! ```
//!
//! Lengths count in 4 bytes. O: a control message. C: there is an option of which type bit 0x80 is set, which a
//! receiver must understand or drop the packet. None is understood here.
//!
//! Two options of our own, in the class range for experiments (RFC 8926, section 7.2), neither of them critical:
//!
//! | class | type | data |
//! |---|---|---|
//! | 0xfffc | 0x01 | length of the frame on the wire in bytes, 32 bits |
//! | 0xfffc | 0x02 | time of capture in nanoseconds since 1970, 64 bits |

use super::decap::Reject;

pub(super) const GENEVE_LEN: usize = 8;
/// Our option "length on the wire", its header included.
pub(super) const WIRE_LEN_OPTION: usize = 8;
/// Our option "time of capture", its header included.
pub(super) const TIME_OPTION: usize = 12;

const CLASS: u16 = 0xfffc;
const TYPE_WIRE_LEN: u8 = 1;
const TYPE_TIME: u8 = 2;
const OPTION_HEADER: usize = 4;
/// In the second byte of the header.
const CONTROL: u8 = 0x80;
const CRITICAL: u8 = 0x40;
/// In the type of an option.
const OPTION_CRITICAL: u8 = 0x80;

/// A data packet whose header and options are whole, and that has no critical option.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geneve<'a> {
    pub(super) protocol: u16,
    /// 24 bits.
    pub(super) vni: u32,
    /// Our own option.
    pub(super) wire_len: Option<u32>,
    /// Our own option, in nanoseconds.
    pub(super) time: Option<u64>,
    pub(super) payload: &'a [u8],
}

impl<'a> Geneve<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Result<Geneve<'a>, Reject> {
        let (header, rest) = packet
            .split_first_chunk::<GENEVE_LEN>()
            .ok_or(Reject::Short)?;
        let [lengths, flags, p0, p1, v0, v1, v2, _] = *header;
        if lengths >> 6 != 0 {
            return Err(Reject::Version);
        }
        let (options, payload) = rest
            .split_at_checked(usize::from(lengths & 0x3f) * 4)
            .ok_or(Reject::Short)?;
        if flags & CONTROL != 0 {
            return Err(Reject::Control);
        }
        let mut geneve = Geneve {
            protocol: u16::from_be_bytes([p0, p1]),
            vni: u32::from_be_bytes([0, v0, v1, v2]),
            wire_len: None,
            time: None,
            payload,
        };
        geneve.read(options)?;
        if flags & CRITICAL != 0 {
            return Err(Reject::CriticalOption);
        }
        Ok(geneve)
    }

    /// Walks the options: each must end within them. Every round takes at least 4 of at most 252 bytes.
    fn read(&mut self, mut options: &[u8]) -> Result<(), Reject> {
        while !options.is_empty() {
            let (&[c0, c1, kind, length], rest) = options
                .split_first_chunk::<OPTION_HEADER>()
                .ok_or(Reject::OptionLength)?;
            let (data, rest) = rest
                .split_at_checked(usize::from(length & 0x1f) * 4)
                .ok_or(Reject::OptionLength)?;
            if kind & OPTION_CRITICAL != 0 {
                return Err(Reject::CriticalOption);
            }
            match (u16::from_be_bytes([c0, c1]), kind) {
                (CLASS, TYPE_WIRE_LEN) => {
                    self.wire_len = data.try_into().ok().map(u32::from_be_bytes);
                }
                (CLASS, TYPE_TIME) => self.time = data.try_into().ok().map(u64::from_be_bytes),
                _ => {}
            }
            options = rest;
        }
        Ok(())
    }
}

/// Appends a header without options.
pub(super) fn push(header: &mut Vec<u8>, protocol: u16, vni: u32) {
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(&protocol.to_be_bytes());
    header.extend_from_slice(&(vni << 8).to_be_bytes());
}

/// Appends our options to a packet in which only the header, which begins at `start`, stands so far.
#[inline]
pub(super) fn push_options(
    packet: &mut Vec<u8>,
    start: usize,
    wire_len: u32,
    timestamp_ns: Option<u64>,
) {
    let before = packet.len();
    push_option(packet, TYPE_WIRE_LEN, &wire_len.to_be_bytes());
    if let Some(time) = timestamp_ns {
        push_option(packet, TYPE_TIME, &time.to_be_bytes());
    }
    let words = (packet.len() - before) / 4;
    if let Some(lengths) = packet.get_mut(start) {
        *lengths = u8::try_from(words).unwrap_or_default();
    }
}

#[inline]
fn push_option(packet: &mut Vec<u8>, kind: u8, data: &[u8]) {
    let [c0, c1] = CLASS.to_be_bytes();
    let length = u8::try_from(data.len() / 4).unwrap_or_default();
    packet.extend_from_slice(&[c0, c1, kind, length]);
    packet.extend_from_slice(data);
}
