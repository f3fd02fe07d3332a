//! Finding the place where a consumer begins.

use std::sync::atomic::Ordering;

use crate::protocol::{Geometry, Head, Kind, Ledger, Reader, Word, Words, ledger_at};

/// Where a consumer begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the next frame that is published.
    #[default]
    Newest,
    /// With the oldest frame that is still there.
    Oldest,
    /// With the first frame of the ring: those that are not there any more are counted as lapped.
    First,
    /// With the frame of that sequence number, or the oldest after it.
    Seq(u64),
    /// With the first frame at or after that time, nanoseconds since 1970. Exact when timestamps grow;
    /// a search in the index does not see frames that are out of order.
    Time(u64),
}

/// Most records that are walked over to find a place; one block of the index has far fewer.
const WALK_MAX: usize = 1 << 17;

/// A place between two records: position, and the number of the next frame there.
pub(crate) type Place = (u64, u64);

/// Finds the place. `margin` bytes of the oldest data are left alone. `None`: the ring is damaged.
pub(crate) fn locate<W: Words>(
    words: &W,
    geometry: Geometry,
    start: Start,
    margin: u64,
) -> Option<Place> {
    let ledger = ledger_at(words)?;
    let search = Search {
        words,
        reader: Reader::new(geometry, ledger.pos, 0),
        ledger,
    };
    let newest = (ledger.pos, ledger.seq.wrapping_add(1));
    Some(match start {
        Start::Newest => newest,
        Start::Oldest => search.oldest(margin),
        Start::First => (geometry.base, 1),
        Start::Seq(seq) => search.first(margin, |head| head.seq >= seq),
        Start::Time(ns) => search.first(margin, |head| head.time_ns >= ns),
    })
}

struct Search<'a, W> {
    words: &'a W,
    reader: Reader,
    ledger: Ledger,
}

impl<W: Words> Search<'_, W> {
    /// Position before which nothing is safe to read.
    fn low(&self, margin: u64) -> u64 {
        let geometry = self.reader.geometry();
        let reserve = self.words.load(Word::Reserve, Ordering::Acquire);
        if reserve.wrapping_sub(geometry.base) <= geometry.capacity {
            return geometry.base;
        }
        reserve.wrapping_sub(geometry.capacity).wrapping_add(margin)
    }

    fn newest(&self) -> Place {
        (self.ledger.pos, self.ledger.seq.wrapping_add(1))
    }

    fn oldest(&self, margin: u64) -> Place {
        let low = self.low(margin);
        if low == self.reader.geometry().base {
            return (low, 1);
        }
        self.after(low)
            .map_or_else(|| self.newest(), |(pos, head)| self.number(pos, head))
    }

    /// The first record that the index knows at or after `target`.
    fn after(&self, target: u64) -> Option<(u64, Head)> {
        self.reader.find(self.words, self.ledger.pos, target)
    }

    /// Completes a place whose record may be no frame.
    fn number(&self, pos: u64, head: Head) -> Place {
        let next = self.walk(pos, head, |_| true);
        (pos, next.map_or(self.newest().1, |(_, head)| head.seq))
    }

    /// From the record at `pos` on, the first frame that `fits`.
    fn walk(&self, pos: u64, head: Head, fits: impl Fn(&Head) -> bool) -> Option<(u64, Head)> {
        let (mut pos, mut head) = (pos, head);
        for _ in 0..WALK_MAX {
            if head.kind == Kind::Data && fits(&head) {
                return Some((pos, head));
            }
            pos = pos.wrapping_add(head.total());
            head = self.reader.probe(self.words, self.ledger.pos, pos)?;
        }
        None
    }

    /// The first frame that `fits`, where all that fit come after all that do not.
    fn first(&self, margin: u64, fits: impl Fn(&Head) -> bool) -> Place {
        let low = self.low(margin);
        let span = self.ledger.pos.wrapping_sub(low);
        let block = 1u64 << self.reader.geometry().sync_shift;
        let frame_after = |step: u64| {
            let (pos, head) = self.after(low.wrapping_add(step.wrapping_mul(block)))?;
            self.walk(pos, head, |_| true)
        };
        // Binary search: the last step whose first frame does not fit yet.
        let (mut left, mut right) = (0, span.min(self.reader.geometry().capacity) / block + 1);
        while right - left > 1 {
            let middle = left + (right - left) / 2;
            match frame_after(middle) {
                Some((_, head)) if !fits(&head) => left = middle,
                _ => right = middle,
            }
        }
        let found = frame_after(left).and_then(|(pos, head)| self.walk(pos, head, fits));
        found.map_or_else(|| self.newest(), |(pos, head)| (pos, head.seq))
    }
}
