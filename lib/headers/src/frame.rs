//! A frame as it was on the wire, without copying it.

use crate::vlan::{TAG_LEN, VlanTag, inline_tags, is_tpid};

/// Bytes of the two MAC addresses, which stand before every tag.
const MACS_LEN: usize = 12;
/// [`TAG_LEN`] as a difference of lengths on the wire.
const TAG_WIRE_LEN: u32 = 4;
/// Most tags that a frame can hold apart from its bytes, and that are looked through.
pub(crate) const MAX_TAGS: usize = 4;

/// A frame in three pieces: MAC addresses, tags held apart, the rest.
///
/// The kernel takes the outermost VLAN tag out of a received frame; [`WireFrame::restore_tag`] puts it
/// back between the pieces. Tags that still stand in the bytes are left where they are.
///
/// ```text
///  bytes  [ dst | src ]               [ EtherType or inline tags | payload ]
///         '-- macs --'   tags apart   '------------ rest -----------------'
/// ```
///
/// A frame may be captured in part: [`WireFrame::len`] counts the bytes at hand,
/// [`WireFrame::wire_len`] those that were on the wire.
#[derive(Debug, Clone, Copy)]
pub struct WireFrame<'a> {
    /// The bytes that `macs` and `rest` are of, as long as the one follows the other in them; else none.
    bytes: &'a [u8],
    /// At most 12 bytes; fewer only in a runt, and then `rest` is empty and no tag is held.
    macs: &'a [u8],
    tags: [u8; MAX_TAGS * TAG_LEN],
    /// Bytes in use of `tags`. A slice can cut within a tag.
    tag_bytes: usize,
    rest: &'a [u8],
    wire_len: u32,
}

impl<'a> WireFrame<'a> {
    /// A frame of which `bytes` were captured (destination MAC first).
    ///
    /// `wire_len` is the final length on the wire without the frame check sequence, a tag restored
    /// later included. A `wire_len` below the bytes at hand counts as their number.
    #[inline]
    pub fn new(bytes: &'a [u8], wire_len: u32) -> WireFrame<'a> {
        let (macs, rest) = bytes.split_at(bytes.len().min(MACS_LEN));
        WireFrame {
            bytes,
            macs,
            tags: [0; MAX_TAGS * TAG_LEN],
            tag_bytes: 0,
            rest,
            wire_len,
        }
    }

    /// Puts back the outermost tag. Does not change the wire length, which already counts it.
    ///
    /// Returns false, and changes nothing, for a frame without room: shorter than its MAC
    /// addresses, or with four tags held apart already.
    #[inline]
    pub fn restore_tag(&mut self, tag: VlanTag) -> bool {
        if self.macs.len() < MACS_LEN || self.tag_bytes > (MAX_TAGS - 1) * TAG_LEN {
            return false;
        }
        self.tags.copy_within(0..self.tag_bytes, TAG_LEN);
        self.tags[..TAG_LEN].copy_from_slice(&tag.to_bytes());
        self.tag_bytes += TAG_LEN;
        true
    }

    /// The captured bytes in wire order. Empty pieces are possible; a frame that is in one piece in memory comes as the first.
    #[inline]
    pub fn pieces(&self) -> [&[u8]; 3] {
        if self.tag_bytes == 0
            && let Some(whole) = self.bytes.get(..self.macs.len() + self.rest.len())
        {
            return [whole, &[], &[]];
        }
        [self.macs, &self.tags[..self.tag_bytes], self.rest]
    }

    /// Captured bytes, tags held apart included.
    #[inline]
    pub fn len(&self) -> usize {
        self.macs.len() + self.tag_bytes + self.rest.len()
    }

    /// Whether not one byte was captured.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on the wire, without the frame check sequence; never less than [`WireFrame::len`].
    #[inline]
    pub fn wire_len(&self) -> u32 {
        self.wire_len
            .max(u32::try_from(self.len()).unwrap_or(u32::MAX))
    }

    /// VLAN tags at the front, held apart or inline: 0 to 4.
    #[inline]
    pub fn vlan_count(&self) -> u8 {
        let held = self.tag_bytes / TAG_LEN;
        let count = held + inline_tags(self.rest, MAX_TAGS - held);
        u8::try_from(count).unwrap_or(u8::MAX)
    }

    /// The outermost VLAN tag, when the frame has one that was captured whole.
    pub fn outer_tag(&self) -> Option<VlanTag> {
        let bytes: &[u8] = if self.tag_bytes > 0 {
            &self.tags[..self.tag_bytes]
        } else {
            self.rest
        };
        let tag = VlanTag::from_bytes(*bytes.first_chunk()?);
        (self.tag_bytes > 0 || is_tpid(tag.tpid)).then_some(tag)
    }

    /// A tag by its place, the outermost one first, if it was captured whole.
    pub(crate) fn tag(&self, place: usize) -> Option<VlanTag> {
        let held = self.tag_bytes / TAG_LEN;
        let bytes = match place.checked_sub(held) {
            None => self.tags.get(place * TAG_LEN..)?,
            Some(inline) if inline < inline_tags(self.rest, MAX_TAGS) => {
                self.rest.get(inline * TAG_LEN..)?
            }
            Some(_) => return None,
        };
        Some(VlanTag::from_bytes(*bytes.first_chunk()?))
    }

    /// The MAC addresses, destination first: 12 bytes, fewer in a runt.
    #[inline]
    pub(crate) fn macs(&self) -> &'a [u8] {
        self.macs
    }

    /// What follows all tags, beginning with the EtherType, and the number of inline tags before it.
    #[inline]
    pub(crate) fn untagged(&self) -> (&'a [u8], usize) {
        let count = inline_tags(self.rest, MAX_TAGS);
        (&self.rest[count * TAG_LEN..], count)
    }

    /// Whether the bytes behind the MAC addresses begin with a TPID: a tag that the kernel left in.
    #[inline]
    pub(crate) fn has_inline_tpid(&self) -> bool {
        matches!(self.rest, [a, b, ..] if is_tpid(u16::from_be_bytes([*a, *b])))
    }

    /// Bytes of the tags that are held apart.
    #[inline]
    pub(crate) fn held_bytes(&self) -> usize {
        self.tag_bytes
    }

    /// Removes the outermost tag, if there is one. `None`: too short to tell or to cut.
    pub(crate) fn pop_tag(&mut self) -> Option<()> {
        if self.macs.len() < MACS_LEN {
            return None;
        }
        let wire_len = self.wire_len();
        if self.tag_bytes >= TAG_LEN {
            self.tags.copy_within(TAG_LEN..self.tag_bytes, 0);
            self.tag_bytes -= TAG_LEN;
        } else {
            let &[a, b] = self.rest.first_chunk()?;
            if !is_tpid(u16::from_be_bytes([a, b])) {
                return Some(());
            }
            self.rest = self.rest.get(TAG_LEN..)?;
            self.bytes = &[];
        }
        // A popped tag was among the bytes that `wire_len` counts at least.
        self.wire_len = wire_len.saturating_sub(TAG_WIRE_LEN);
        Some(())
    }

    /// Adds a tag in front of all others. `None`: too short, or no room.
    pub(crate) fn push_tag(&mut self, tag: VlanTag) -> Option<()> {
        let wire_len = self.wire_len();
        self.restore_tag(tag).then_some(())?;
        self.wire_len = wire_len.saturating_add(TAG_WIRE_LEN);
        Some(())
    }

    /// Removes the last `bytes` that were on the wire; a frame that is not longer stays whole.
    pub(crate) fn trim(&mut self, bytes: u32) {
        let wire_len = self.wire_len();
        if wire_len > bytes {
            self.slice(wire_len - bytes);
            self.wire_len = wire_len - bytes;
        }
    }

    /// Keeps at most the first `bytes`. The wire length stays.
    pub fn slice(&mut self, bytes: u32) {
        self.wire_len = self.wire_len();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.macs = &self.macs[..self.macs.len().min(left)];
        left -= self.macs.len();
        self.tag_bytes = self.tag_bytes.min(left);
        left -= self.tag_bytes;
        self.rest = &self.rest[..self.rest.len().min(left)];
    }
}

#[cfg(test)]
mod tests;
