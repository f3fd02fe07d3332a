//! The consumer's half of the protocol.
//!
//! ```text
//! c = commit.load(Acquire)            SYNC B: commit before data
//! copy [pos, ..c) to private memory
//! fence Acquire                       SYNC A: data before the second look at reserve
//! reserve.load - pos <= capacity?     else: lapped, the copy is worthless
//! only now parse the copy
//! ```
//! Nothing is looked at before that check: what is nonsense before it may be an ordinary lap.
//! Nothing of shared memory is trusted after it either.

use std::sync::atomic::Ordering;

use super::record::{Head, Kind, META};
use super::words::{Fence, Word, Words};
use super::writer::ledger_at;
use super::{Geometry, NO_RECORD};

/// What came of copying a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// There is nothing new.
    Idle,
    /// So many words were copied and are intact.
    Span(usize),
    /// The producer has overwritten the position: resync.
    Lapped,
    /// The positions are impossible: resync, and a strike.
    Broken(&'static str),
}

/// What lies at a place in a copied span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A record of so many words; for DATA the sequence number fits.
    Record(Head, usize),
    /// The record continues beyond the span and needs so many words.
    Partial(usize),
    /// This is no record: resync, and a strike.
    Broken(&'static str),
}

/// Why frames between two delivered ones are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    None,
    Lap,
    Corruption,
}

/// State of one consumer.
#[derive(Debug)]
pub struct Reader {
    geometry: Geometry,
    pos: u64,
    next_seq: u64,
    /// `commit` when the last span was copied.
    commit: u64,
    gap: Gap,
    /// Position at which `next_seq` was expected when the gap opened.
    gap_from: u64,
    /// Frames lost to laps, exact once the next frame has been seen.
    lapped: u64,
    /// Frames lost to corruption.
    corrupt: u64,
}

impl Reader {
    /// Starts at `pos`, where the record with the frame `next_seq`, or one shortly before it, begins.
    pub fn new(geometry: Geometry, pos: u64, next_seq: u64) -> Self {
        Self {
            geometry,
            pos,
            next_seq,
            commit: pos,
            gap: Gap::None,
            gap_from: pos,
            lapped: 0,
            corrupt: 0,
        }
    }

    /// The sizes of the ring.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Position of the next record.
    pub fn pos(&self) -> u64 {
        self.pos
    }

    /// Sequence number of the next frame.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Frames lost to laps so far.
    pub fn lapped(&self) -> u64 {
        self.lapped
    }

    /// Frames lost to corruption so far.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Takes over the counts of an earlier life.
    pub fn restore(&mut self, lapped: u64, corrupt: u64) {
        self.lapped = lapped;
        self.corrupt = corrupt;
    }

    /// Whether there is something to read. Does not copy.
    pub fn ready<W: Words>(&self, words: &W) -> bool {
        words.load(Word::Commit, Ordering::Acquire) != self.pos
    }

    /// Copies what is published at the present position, at most `into`.
    pub fn copy<W: Words>(&mut self, words: &W, into: &mut [u64]) -> Copied {
        let commit = words.load(Word::Commit, Ordering::Acquire); // SYNC B
        self.commit = commit;
        let ahead = commit.wrapping_sub(self.pos);
        if ahead == 0 {
            return Copied::Idle;
        }
        if ahead > u64::MAX / 2 || !ahead.is_multiple_of(16) {
            return Copied::Broken("the commit position went back or is not aligned");
        }
        if ahead > self.geometry.capacity {
            return Copied::Lapped;
        }
        let span = into
            .len()
            .min(usize::try_from(ahead / 8).unwrap_or(usize::MAX))
            & !1;
        let Some(into) = into.get_mut(..span) else {
            return Copied::Idle;
        };
        words.read(self.geometry.offset(self.pos), into);
        if self.intact(words, self.pos) {
            Copied::Span(span)
        } else {
            Copied::Lapped
        }
    }

    /// Whether bytes copied before from `pos` on were not being overwritten.
    fn intact<W: Words>(&self, words: &W, pos: u64) -> bool {
        words.fence(Fence::DataBeforeReserve); // SYNC A
        let reserve = words.load(Word::Reserve, Ordering::Relaxed);
        reserve.wrapping_sub(pos) <= self.geometry.capacity
    }

    /// Reads the record at word `at` of a copied span, checks all of it and moves behind it.
    #[inline]
    pub fn next(&mut self, span: &[u64], at: usize) -> Parsed {
        let Some(words) = span.get(at..).filter(|w| w.len() >= 2) else {
            return Parsed::Partial(2);
        };
        if words.first() != Some(&self.pos) {
            return Parsed::Broken("a record does not carry its own position");
        }
        let Some(head) = Head::decode(words) else {
            return Parsed::Broken("a record has an unknown type");
        };
        let total = head.total();
        if total > self.geometry.max_record {
            return Parsed::Broken("a record is too long");
        }
        if total > self.commit.wrapping_sub(self.pos) {
            return Parsed::Broken("a record runs beyond what is published");
        }
        if head.kind != Kind::Pad && total < META {
            return Parsed::Broken("a record has no room for its metadata");
        }
        // Cannot be cut off: at most max_record.
        let length = usize::try_from(total / 8).unwrap_or(usize::MAX);
        if length > words.len() && head.kind != Kind::Pad {
            return Parsed::Partial(length);
        }
        if head.kind == Kind::Data && !self.admit(&head) {
            return Parsed::Broken("a sequence number is out of order");
        }
        self.pos = self.pos.wrapping_add(total);
        // Of a PAD nothing but the head was needed.
        Parsed::Record(head, length.min(words.len()))
    }

    /// Checks the sequence number of a frame; after a gap, counts the missing ones.
    #[inline]
    fn admit(&mut self, head: &Head) -> bool {
        let missing = head.seq.wrapping_sub(self.next_seq);
        if missing != 0 {
            // Without a gap there is no excuse; with one, every missing frame had its bytes.
            let room = self.pos.wrapping_sub(self.gap_from) / META;
            match self.gap {
                Gap::Lap if missing <= room => self.lapped += missing,
                Gap::Corruption if missing <= room => self.corrupt += missing,
                _ => return false,
            }
        }
        self.gap = Gap::None;
        self.next_seq = head.seq.wrapping_add(1);
        true
    }

    /// After a lap: goes on in the middle of what is still there.
    pub fn resync_after_lap<W: Words>(&mut self, words: &W) {
        let commit = words.load(Word::Commit, Ordering::Acquire); // SYNC B
        let target = commit.wrapping_sub(self.geometry.capacity / 2);
        self.open_gap(Gap::Lap);
        self.resync(words, commit, target);
    }

    /// After corruption: goes on at the next record that the index knows.
    pub fn resync_after_corruption<W: Words>(&mut self, words: &W) {
        let commit = words.load(Word::Commit, Ordering::Acquire); // SYNC B
        self.open_gap(Gap::Corruption);
        self.resync(words, commit, self.pos.wrapping_add(16));
    }

    fn open_gap(&mut self, gap: Gap) {
        if self.gap == Gap::None {
            self.gap = gap;
            self.gap_from = self.pos;
        }
    }

    /// Moves to the first known record at or after `target`, else to `commit`.
    fn resync<W: Words>(&mut self, words: &W, commit: u64, target: u64) {
        if let Some((pos, _)) = self.find(words, commit, target) {
            self.pos = pos;
            return;
        }
        // No record can be found: everything up to `commit` is lost, and the ledger says how much.
        match ledger_at(words) {
            Some(ledger) => {
                let missing = ledger.seq.wrapping_add(1).wrapping_sub(self.next_seq);
                let room = ledger.pos.wrapping_sub(self.gap_from) / META;
                if missing <= room {
                    match self.gap {
                        Gap::Corruption => self.corrupt += missing,
                        Gap::Lap | Gap::None => self.lapped += missing,
                    }
                    self.next_seq = self.next_seq.wrapping_add(missing);
                    self.gap_from = ledger.pos;
                }
                self.pos = ledger.pos;
            }
            None => self.pos = commit,
        }
    }

    /// The first record that the sync index knows at or after `target` and before `commit`, with
    /// a copy of its head. Looks at as many blocks as the longest record can span, not more.
    ///
    /// `commit` must have been loaded before: entries at or beyond it may be leftovers.
    pub fn find<W: Words>(&self, words: &W, commit: u64, target: u64) -> Option<(u64, Head)> {
        let geometry = &self.geometry;
        let shift = geometry.sync_shift;
        let most = (geometry.max_record >> shift) + 3;
        let first = geometry.offset(target) >> shift;
        let blocks = geometry.blocks();
        for step in 0..most.min(blocks) {
            let entry = words.load(Word::Sync((first + step) % blocks), Ordering::Relaxed);
            // The block that the producer is in belongs half to this lap and half to the last: its
            // entry may lie a whole lap ahead.
            let ahead = entry.wrapping_sub(target);
            let near = ahead < commit.wrapping_sub(target) && ahead < (step + 1) << shift;
            if near && let Some(head) = self.probe(words, commit, entry) {
                return Some((entry, head));
            }
        }
        None
    }

    /// The head of the record at `pos`, if there is a published, intact one.
    pub fn probe<W: Words>(&self, words: &W, commit: u64, pos: u64) -> Option<Head> {
        let behind = commit.wrapping_sub(pos);
        let possible = pos != NO_RECORD
            && pos.wrapping_sub(self.geometry.base).is_multiple_of(16)
            && (16..=self.geometry.capacity).contains(&behind);
        if !possible {
            return None;
        }
        let mut copy = [0; 6];
        let length = if behind < META { 2 } else { 6 };
        words.read(self.geometry.offset(pos), copy.get_mut(..length)?);
        if !self.intact(words, pos) || copy[0] != pos {
            return None;
        }
        let head = Head::decode(&copy)?;
        let sane = head.total() <= behind.min(self.geometry.max_record)
            && (head.kind == Kind::Pad || head.total() >= META);
        sane.then_some(head)
    }
}
