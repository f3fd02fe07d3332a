//! A consumer's private copy of some frames.

use crate::frame::Meta;
use crate::protocol::Head;

/// Frames that the producer or the kernel lost at a place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The source that lost them.
    pub source: u16,
    /// How many.
    pub count: u64,
    /// When that was noticed, nanoseconds since 1970.
    pub timestamp_ns: u64,
}

/// One frame of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its number in the ring, from 1 on without a gap.
    pub seq: u64,
    /// What is known about it.
    pub meta: Meta,
    /// Its bytes, as they were on the wire.
    pub data: &'a [u8],
}

/// Memory for the frames of one [`poll`](crate::Consumer::poll); made once, used over and over.
#[derive(Debug)]
pub struct Batch {
    /// A span of the ring.
    pub(crate) arena: Vec<u64>,
    /// Where in the arena DATA records begin, in words.
    pub(crate) starts: Vec<u32>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) lapped: u64,
    max_frames: usize,
}

impl Batch {
    /// Room for `max_frames` frames of together `bytes` bytes, record overhead included. A single
    /// record that is longer than that makes the room grow.
    pub fn new(bytes: usize, max_frames: usize) -> Self {
        let words = bytes.clamp(4096, 1 << 30).next_multiple_of(16) / 8;
        let max_frames = max_frames.clamp(1, 1 << 20);
        Self {
            arena: vec![0; words],
            starts: Vec::with_capacity(max_frames),
            losses: Vec::with_capacity(16),
            lapped: 0,
            max_frames,
        }
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The most frames that one poll puts in here.
    pub fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// Frame `index`, none beyond the last.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Frame<'_>> {
        let start = *self.starts.get(index)? as usize;
        let record = self.arena.get(start..)?;
        let head = Head::decode(record)?;
        let length = (head.len as usize).checked_sub(32)?;
        let data = bytes(record.get(6..)?).get(..length)?;
        Some(Frame {
            seq: head.seq,
            meta: Meta::from_head(&head),
            data,
        })
    }

    /// The frames in the order of the ring.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Frame<'_>> + Clone {
        // Every start was parsed by `poll`, so the default is never used.
        let empty = Frame {
            seq: 0,
            meta: Meta::default(),
            data: &[],
        };
        (0..self.len()).map(move |index| self.get(index).unwrap_or(empty))
    }

    /// Losses that the producer noted between these frames.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Frames that this consumer was too slow for, since the batch before.
    pub fn lapped(&self) -> u64 {
        self.lapped
    }

    pub(crate) fn clear(&mut self) {
        self.starts.clear();
        self.losses.clear();
        self.lapped = 0;
    }
}

/// The words as bytes, in memory order.
#[inline]
fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: any u64 is eight valid bytes; length and lifetime are those of the slice.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
