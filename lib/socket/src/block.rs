//! Blocks of a TPACKET_V3 ring and the frames in them (`linux/if_packet.h`, packet_mmap in the kernel docs).
//!
//! ```text
//!  block  [ descriptor, 48 B | frame | frame | ... | unused ]
//!  frame  [ tpacket3_hdr, 48 B | sockaddr_ll, 20 B | pad | bytes from tp_mac on, tp_snaplen of them ]
//!         '---------------- tp_next_offset, 0 in the last one ----------------------------------->
//! ```
//!
//! The kernel hands a block over by setting the user bit in its status word and does not touch it again
//! before it gets the block back. Everything behind the status word is therefore a plain slice here, and
//! walking it is safe code that checks each length.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of `tpacket_block_desc`, the status word among them.
pub(crate) const DESCRIPTOR_LEN: usize = size_of::<libc::tpacket_block_desc>();
/// Where the status word stands in a block: behind `version` and `offset_to_priv`.
pub(crate) const STATUS_OFFSET: usize = 8;
/// The words behind the status word: num_pkts, offset_to_first_pkt, blk_len.
pub(crate) const COUNTS_OFFSET: usize = 12;

const HEADER_LEN: usize = size_of::<libc::tpacket3_hdr>();
/// `sll_pkttype` of the sockaddr_ll that follows each header.
const PACKET_TYPE_OFFSET: usize = HEADER_LEN + std::mem::offset_of!(libc::sockaddr_ll, sll_pkttype);
/// `TP_STATUS_GSO_TCP`, Linux 5.17; not in the libc crate.
const TP_STATUS_GSO_TCP: u32 = 1 << 8;
/// `TP_STATUS_TS_SOFTWARE`, which the libc crate has as a signed number.
const TP_STATUS_TS_SOFTWARE: u32 = 1 << 29;

/// A block of frames that the kernel has handed over. Dropping it gives it back.
#[derive(Debug)]
pub struct Block<'a> {
    pub(crate) status: &'a AtomicU32,
    /// Everything behind the status word.
    pub(crate) bytes: &'a mut [u8],
    /// The capture's number of the block to look at next, advanced when this one is given back.
    pub(crate) next: &'a mut usize,
    pub(crate) blocks: usize,
    /// Where `bytes` begins in the block.
    pub(crate) start: usize,
    /// Where the frames go on that were not taken one by one before; `None`: with the first.
    pub(crate) cursor: &'a mut Option<Cursor>,
}

impl Block<'_> {
    /// Frames in the block, as the kernel says. [`Block::packets`] gives fewer if the block is damaged.
    #[inline]
    pub fn len(&self) -> usize {
        self.cursor().left
    }

    #[inline]
    fn cursor(&self) -> Cursor {
        self.cursor
            .unwrap_or_else(|| Cursor::first(self.bytes, self.start))
    }

    /// Whether the kernel handed over a block without frames.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the kernel has dropped frames since the statistics were last read.
    #[inline]
    pub fn losing(&self) -> bool {
        self.status.load(Ordering::Relaxed) & libc::TP_STATUS_LOSING != 0
    }

    /// The frames, in the order of arrival.
    #[inline]
    pub fn packets(&mut self) -> Packets<'_> {
        let Cursor { at, left } = self.cursor();
        let rest = self.bytes.get_mut(at..).unwrap_or_default();
        Packets {
            rest,
            left,
            damaged: false,
        }
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        *self.next = (*self.next + 1) % self.blocks.max(1);
        *self.cursor = None;
        // SYNC POINT: block hand-over, ours to the kernel's. Release: our reads and writes of the frames
        // come before the kernel's next ones (packet_mmap.rst, "AF_PACKET TPACKET_V3 example").
        self.status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// What is known of a frame before it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// As in [`Packet`].
    pub timestamp_ns: u64,
    /// Bytes that were captured.
    pub len: usize,
}

/// Where the frames of a block go on, for who takes them one at a time. Offsets are those of the bytes behind the status word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Of the next frame's header.
    pub(crate) at: usize,
    /// Frames from there on.
    pub(crate) left: usize,
}

impl Cursor {
    /// Before the first frame of a block; `bytes` begin at `start` of it.
    #[inline]
    pub(crate) fn first(bytes: &[u8], start: usize) -> Cursor {
        let count = |at| word(bytes, COUNTS_OFFSET + at - start);
        let first = count(4).unwrap_or(u32::MAX) as usize;
        Cursor {
            at: first.checked_sub(start).unwrap_or(usize::MAX),
            left: count(0).map_or(0, |n| n as usize),
        }
    }

    /// What is known of the next frame. `None`: there is none, or it does not lie in the block.
    #[inline]
    pub(crate) fn head(self, bytes: &[u8]) -> Option<FrameHead> {
        let header: &[u8; HEADER_LEN] = bytes.get(self.at..)?.first_chunk()?;
        let field = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        (self.left > 0).then(|| FrameHead {
            timestamp_ns: timestamp(
                field(std::mem::offset_of!(libc::tpacket3_hdr, tp_sec)),
                field(std::mem::offset_of!(libc::tpacket3_hdr, tp_nsec)),
            ),
            len: field(std::mem::offset_of!(libc::tpacket3_hdr, tp_snaplen)) as usize,
        })
    }

    /// Takes the next frame. `None`: there is none, or impossible lengths make it and those behind it unreadable; then it stays
    /// where it is.
    #[inline]
    pub(crate) fn take<'b>(&mut self, bytes: &'b mut [u8]) -> Option<Packet<'b>> {
        let end = bytes.len();
        let rest = bytes.get_mut(self.at..)?;
        if self.left == 0 {
            return None;
        }
        let (packet, rest) = split_packet(rest, self.left == 1)?;
        (self.at, self.left) = (end - rest.len(), self.left - 1);
        Some(packet)
    }
}

#[inline]
fn timestamp(seconds: u32, nanoseconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds)
}

/// Walks the frames of a block.
#[derive(Debug)]
pub struct Packets<'a> {
    /// From the header of the next frame to the end of the block.
    rest: &'a mut [u8],
    left: usize,
    damaged: bool,
}

impl Packets<'_> {
    /// Whether an impossible length ended the walk early; the frames behind it are lost.
    pub fn damaged(&self) -> bool {
        self.damaged
    }

    /// Frames that the walk has not reached: after the end, those that damage made unreadable.
    pub fn left(&self) -> usize {
        self.left
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Packet<'a>;

    #[inline]
    fn next(&mut self) -> Option<Packet<'a>> {
        if self.left == 0 || self.damaged {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let Some((packet, rest)) = split_packet(rest, self.left == 1) else {
            self.damaged = true;
            return None;
        };
        self.left -= 1;
        self.rest = rest;
        Some(packet)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

/// A captured frame, where the kernel wrote it.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The bytes, from the destination MAC address on, without the tag in `vlan`.
    pub data: &'a mut [u8],
    /// Length on the wire, without that tag and without the frame check sequence.
    pub wire_len: u32,
    /// When the frame was received: nanoseconds since 1970, by the system clock.
    pub timestamp_ns: u64,
    /// TPID and TCI of the outermost tag, which the kernel took out of `data`.
    pub vlan: Option<(u16, u16)>,
    /// Sent by this host through this interface.
    pub outgoing: bool,
    /// From a local sender that left the layer 4 checksum to the network card.
    pub checksum_partial: bool,
    /// A super-frame of a TCP segmentation offload, which was or will be several frames on a wire
    /// (only told by Linux 5.17 and later).
    pub gso: bool,
    /// Frames before this one were dropped and the statistics not read since.
    pub losing: bool,
    /// The time is one that the kernel noted in the frame itself, the same for every socket.
    pub stamped: bool,
}

impl Packet<'_> {
    /// Whether the socket's filter has kept a single byte of it, as a sign that it refuses the frame.
    #[inline]
    pub fn is_refused(&self) -> bool {
        self.data.len() == 1 && self.wire_len > 1
    }
}

/// Takes the first frame off `rest`. `None`: the lengths in its header do not fit.
#[inline]
fn split_packet(rest: &mut [u8], last: bool) -> Option<(Packet<'_>, &mut [u8])> {
    let header: &[u8; HEADER_LEN] = rest.first_chunk()?;
    let field = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let next = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_next_offset)) as usize;
    let seconds = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_sec));
    let nanoseconds = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_nsec));
    let captured = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_snaplen)) as usize;
    let wire_len = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_len));
    let status = field(std::mem::offset_of!(libc::tpacket3_hdr, tp_status));
    let mac = usize::from(half(std::mem::offset_of!(libc::tpacket3_hdr, tp_mac)));
    let tci = field(VLAN_TCI_OFFSET);
    let tpid = half(VLAN_TPID_OFFSET);
    let packet_type = *rest.get(PACKET_TYPE_OFFSET)?;

    // Each frame gets its own part of the block, so that no two can overlap, whatever the header says.
    let (own, rest) = match next {
        0 if last => (rest, Default::default()),
        _ => rest.split_at_mut_checked(next)?,
    };
    if mac <= PACKET_TYPE_OFFSET {
        return None;
    }
    let data = own.get_mut(mac..)?.get_mut(..captured)?;
    let packet = Packet {
        data,
        wire_len,
        timestamp_ns: timestamp(seconds, nanoseconds),
        vlan: vlan(status, tci, tpid),
        outgoing: packet_type == libc::PACKET_OUTGOING,
        checksum_partial: status & libc::TP_STATUS_CSUMNOTREADY != 0,
        gso: status & TP_STATUS_GSO_TCP != 0,
        losing: status & libc::TP_STATUS_LOSING != 0,
        stamped: status & TP_STATUS_TS_SOFTWARE != 0,
    };
    Some((packet, rest))
}

const VARIANT_OFFSET: usize = std::mem::offset_of!(libc::tpacket3_hdr, hv1);
const VLAN_TCI_OFFSET: usize =
    VARIANT_OFFSET + std::mem::offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci);
const VLAN_TPID_OFFSET: usize =
    VARIANT_OFFSET + std::mem::offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tpid);

/// The tag in the metadata: valid by its flag, also when it is 0; 0x8100 unless a TPID is given.
#[inline]
fn vlan(status: u32, tci: u32, tpid: u16) -> Option<(u16, u16)> {
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        tpid
    } else {
        0x8100
    };
    // The kernel widens its 16 bits to this field.
    Some((tpid, u16::try_from(tci & 0xffff).unwrap_or_default()))
}

/// A native 32-bit word at `at`.
#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u32::from_ne_bytes(*chunk))
}

const _: () = assert!(DESCRIPTOR_LEN == 48 && HEADER_LEN == 48);

#[cfg(test)]
mod tests;
