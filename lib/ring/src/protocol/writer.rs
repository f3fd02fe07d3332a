//! The producer's half of the protocol.
//!
//! ```text
//! reserve.store(max(old, c + bytes))
//! fence Release                       SYNC A: reserve before data
//! write records, index entries, ledger
//! commit.store(c', Release)           SYNC B: data before commit
//! ring the bell                       SYNC C, D
//! ```
//! The locals of the writer are authoritative; shared words are read back only at takeover.

use std::sync::atomic::Ordering;

use super::record::{Head, Kind};
use super::words::{Fence, Word, Words};
use super::{Geometry, NO_RECORD};

/// What was published up to a position. Shared memory has two of them, written in turn before
/// `commit` moves, so that at every instant exactly one belongs to the value of `commit`: position and sequence
/// number stay together although they are two words and the producer may be killed between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Value of `commit` that the other fields belong to.
    pub pos: u64,
    /// Sequence number of the last frame, 0 before the first.
    pub seq: u64,
    /// Captured bytes of all frames.
    pub bytes: u64,
    /// Timestamp of the last frame in nanoseconds.
    pub time_ns: u64,
}

impl Ledger {
    fn read<W: Words>(words: &W, index: usize) -> Self {
        let at = |field: usize| words.load(Word::Ledger(index * 4 + field), Ordering::Relaxed);
        Self {
            pos: at(0),
            seq: at(1),
            bytes: at(2),
            time_ns: at(3),
        }
    }

    /// Stores this as entry `index`, 0 or 1.
    pub fn write<W: Words>(&self, words: &W, index: usize) {
        let fields = [self.pos, self.seq, self.bytes, self.time_ns];
        for (field, value) in fields.into_iter().enumerate() {
            words.store(Word::Ledger(index * 4 + field), value, Ordering::Relaxed);
        }
    }
}

/// `commit` and the ledger entry that belongs to it, read while a producer may be at work.
///
/// `None` when they never agree: the ring is damaged (or its producer publishes faster than
/// this can read, which [`Words::PATIENCE`] rules out).
pub fn ledger_at<W: Words>(words: &W) -> Option<Ledger> {
    for _ in 0..W::PATIENCE {
        let commit = words.load(Word::Commit, Ordering::Acquire); // SYNC B
        let entries = [Ledger::read(words, 0), Ledger::read(words, 1)];
        // An entry is written again only after `commit` has moved on. SYNC A orders that.
        words.fence(Fence::DataBeforeReserve);
        if words.load(Word::Commit, Ordering::Relaxed) == commit
            && let Some(entry) = entries.into_iter().find(|e| e.pos == commit)
        {
            return Some(entry);
        }
        std::hint::spin_loop();
    }
    None
}

/// State of the one producer.
#[derive(Debug)]
pub struct Writer {
    geometry: Geometry,
    /// Shared value of `reserve`.
    reserve: u64,
    /// End of the present burst's reservation.
    limit: u64,
    /// What is published.
    done: Ledger,
    /// What the burst has grown to; equals `done` outside a burst.
    next: Ledger,
    /// Where `next.pos` lies in the data area.
    offset: u64,
    /// Which ledger entry belongs to `done`.
    turn: usize,
    /// Block of the last record that began, none when it is not known.
    block: Option<u64>,
}

impl Writer {
    /// Makes fresh memory an empty ring, before anybody else sees it.
    pub fn format<W: Words>(words: &W, geometry: &Geometry) {
        let base = geometry.base;
        words.store(Word::Reserve, base, Ordering::Relaxed);
        words.store(Word::Commit, base, Ordering::Relaxed);
        Ledger {
            pos: base,
            ..Ledger::default()
        }
        .write(words, 0);
        Ledger {
            pos: base | NO_RECORD,
            ..Ledger::default()
        }
        .write(words, 1);
        for block in 0..geometry.blocks() {
            words.store(Word::Sync(block), NO_RECORD, Ordering::Relaxed);
        }
    }

    /// Continues where the last producer ended, however it ended. The caller has proof that
    /// it is dead: it holds the producer's lock.
    ///
    /// What the dead producer had reserved and not published becomes PAD records: `reserve` never
    /// goes back, so a slow reader of the old lap still notices that its bytes are being overwritten.
    ///
    /// # Errors
    /// What is wrong with the words, when they cannot have been left by a producer.
    pub fn take_over<W: Words>(words: &W, geometry: Geometry) -> Result<Self, &'static str> {
        let commit = words.load(Word::Commit, Ordering::Acquire);
        let reserve = words.load(Word::Reserve, Ordering::Acquire);
        let hole = reserve.wrapping_sub(commit);
        if hole > geometry.max_burst || !hole.is_multiple_of(16) {
            return Err("the reservation of the last producer is impossible");
        }
        if !commit.wrapping_sub(geometry.base).is_multiple_of(16) {
            return Err("the commit position is impossible");
        }
        let entries = [Ledger::read(words, 0), Ledger::read(words, 1)];
        let turn = entries.iter().position(|e| e.pos == commit);
        let turn = turn.ok_or("no ledger entry belongs to the commit position")?;
        let done = entries[turn];
        let mut writer = Self {
            geometry,
            reserve,
            limit: commit,
            done,
            next: done,
            offset: geometry.offset(commit),
            turn,
            block: None,
        };
        writer.fill(words, hole);
        Ok(writer)
    }

    /// Publishes PAD records over the next `hole` bytes, which are reserved already.
    fn fill<W: Words>(&mut self, words: &W, hole: u64) {
        if hole == 0 {
            return;
        }
        self.begin(words, hole);
        let mut left = hole;
        while left > 0 {
            let total = left.min(self.geometry.max_record);
            let head = Head::pad(u32::try_from(total).unwrap_or(16));
            self.put(words, &head, &[]);
            left -= head.total();
        }
        self.publish(words);
    }

    /// The sizes of the ring.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What is published.
    pub fn published(&self) -> Ledger {
        self.done
    }

    /// Where `reserve` will be after a reservation of `bytes`: that must not be more than
    /// a capacity ahead of a reader that must not be lapped.
    pub fn reserve_after(&self, bytes: u64) -> u64 {
        let wanted = self.done.pos.wrapping_add(bytes);
        // Compared by distance: positions may pass 2^64.
        if wanted.wrapping_sub(self.done.pos) > self.reserve.wrapping_sub(self.done.pos) {
            wanted
        } else {
            self.reserve
        }
    }

    /// Begins a burst of at most `bytes`, a multiple of 16 that is at most `max_burst`.
    pub fn begin<W: Words>(&mut self, words: &W, bytes: u64) {
        self.reserve = self.reserve_after(bytes);
        words.store(Word::Reserve, self.reserve, Ordering::Relaxed);
        words.fence(Fence::ReserveBeforeData); // SYNC A
        self.limit = self.done.pos.wrapping_add(bytes);
    }

    /// Bytes left in the burst.
    pub fn room(&self) -> u64 {
        self.limit.wrapping_sub(self.next.pos)
    }

    /// Adds a record to the burst: DATA gets the next sequence number. False, and nothing is
    /// written, when it does not fit into the reservation or into a record.
    #[inline]
    pub fn push<W: Words>(&mut self, words: &W, mut head: Head, pieces: &[&[u8]]) -> bool {
        let total = head.total();
        if total > self.room() || total > self.geometry.max_record {
            return false;
        }
        if head.kind == Kind::Data {
            self.next.seq = self.next.seq.wrapping_add(1);
            self.next.bytes = self
                .next
                .bytes
                .wrapping_add(u64::from(head.len).saturating_sub(32));
            self.next.time_ns = head.time_ns;
            head.seq = self.next.seq;
        }
        self.put(words, &head, pieces);
        true
    }

    #[inline]
    fn put<W: Words>(&mut self, words: &W, head: &Head, pieces: &[&[u8]]) {
        let total = head.total();
        let encoded = head.encode(self.next.pos);
        let used = if head.kind == Kind::Pad {
            2
        } else {
            encoded.len()
        };
        words.write(self.offset, encoded.get(..used).unwrap_or_default(), pieces);
        self.index(words, total);
        self.next.pos = self.next.pos.wrapping_add(total);
        self.offset += total;
        if self.offset >= self.geometry.capacity {
            self.offset -= self.geometry.capacity;
        }
    }

    /// Keeps the sync index true for a record of `total` bytes at `next.pos`: its own block
    /// names it when it is the first there; no block that it runs into names a record yet. The latter wipes
    /// out what an abandoned burst or a killed producer has left.
    #[inline]
    fn index<W: Words>(&mut self, words: &W, total: u64) {
        let block = self.offset >> self.geometry.sync_shift;
        if self.block != Some(block) {
            words.store(Word::Sync(block), self.next.pos, Ordering::Relaxed);
            self.block = Some(block);
        }
        let last = self.offset + total - 1;
        if last >> self.geometry.sync_shift != block || last >= self.geometry.capacity {
            self.wipe(words, total);
        }
    }

    #[cold]
    fn wipe<W: Words>(&mut self, words: &W, total: u64) {
        let Geometry {
            capacity,
            sync_shift,
            ..
        } = self.geometry;
        let first = self.offset >> sync_shift;
        let last = ((self.offset + total - 1) % capacity) >> sync_shift;
        let blocks = self.geometry.blocks();
        let mut block = first;
        while block != last {
            block = (block + 1) % blocks;
            words.store(Word::Sync(block), NO_RECORD, Ordering::Relaxed);
        }
    }

    /// Publishes the burst. The caller rings the bell.
    pub fn publish<W: Words>(&mut self, words: &W) {
        self.limit = self.next.pos;
        if self.next.pos == self.done.pos {
            return;
        }
        self.turn ^= 1;
        self.next.write(words, self.turn);
        words.store(Word::Commit, self.next.pos, Ordering::Release); // SYNC B
        self.done = self.next;
    }

    /// Forgets the burst: nothing of it is published.
    pub fn abandon(&mut self) {
        if self.next != self.done {
            self.next = self.done;
            self.offset = self.geometry.offset(self.done.pos);
            self.block = None;
        }
        self.limit = self.done.pos;
    }
}
