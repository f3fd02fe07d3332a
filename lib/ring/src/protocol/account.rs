//! Where a consumer is and what it has counted, kept consistent in shared memory.
//!
//! Position and counters change together: a consumer writes the account that is not in use and then moves
//! `turn` (SYNC S), so that one killed anywhere leaves numbers that add up, and whoever looks on gets all
//! of them from the same instant.

use std::sync::atomic::Ordering;

use super::words::{Fence, Word, Words};

/// What a consumer notes after each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Position of the next record.
    pub pos: u64,
    /// Number of the next frame.
    pub next_seq: u64,
    /// Frames given out.
    pub delivered: u64,
    /// Bytes of these frames.
    pub delivered_bytes: u64,
    /// Frames lost to laps.
    pub lapped: u64,
    /// Frames lost to corruption.
    pub corrupt: u64,
    /// Frames passed over on request.
    pub skipped: u64,
    /// The epoch whose books were added to these last, 0 when they begin here.
    pub came_from: u64,
}

/// Words of one account.
const FIELDS: usize = 8;

impl Account {
    fn word(slot: usize, turn: u64, field: usize) -> Word {
        let entry = if turn & 1 == 0 { 0 } else { 8 };
        Word::Account {
            slot,
            index: entry + field,
        }
    }

    /// A consistent account of `slot`, also while its owner works. `None` when somebody scribbles:
    /// the owner writes once in a poll.
    pub fn load<W: Words>(words: &W, slot: usize) -> Option<Self> {
        for _ in 0..W::PATIENCE {
            // SYNC S, and SYNC E: what lies behind `pos` has been copied.
            let turn = words.load(Word::Turn(slot), Ordering::Acquire);
            let mut copy = [0; FIELDS];
            for (field, value) in copy.iter_mut().enumerate() {
                *value = words.load(Self::word(slot, turn, field), Ordering::Relaxed);
            }
            words.fence(Fence::AccountBeforeTurn); // SYNC S
            if words.load(Word::Turn(slot), Ordering::Relaxed) == turn {
                return Some(Self::from_fields(copy));
            }
        }
        None
    }

    /// Replaces the account of `slot`; only its owner may.
    pub fn store<W: Words>(&self, words: &W, slot: usize) {
        let last = words.load(Word::Turn(slot), Ordering::Relaxed);
        let turn = last.wrapping_add(1);
        // The turn stored last time is visible before the other account is overwritten.
        words.fence(Fence::TurnBeforeAccount); // SYNC S
        for (field, value) in self.fields().into_iter().enumerate() {
            words.store(Self::word(slot, turn, field), value, Ordering::Relaxed);
        }
        words.store(Word::Turn(slot), turn, Ordering::Release); // SYNC S, SYNC E
    }

    fn fields(&self) -> [u64; FIELDS] {
        [
            self.pos,
            self.next_seq,
            self.delivered,
            self.delivered_bytes,
            self.lapped,
            self.corrupt,
            self.skipped,
            self.came_from,
        ]
    }

    fn from_fields(fields: [u64; FIELDS]) -> Self {
        Self {
            pos: fields[0],
            next_seq: fields[1],
            delivered: fields[2],
            delivered_bytes: fields[3],
            lapped: fields[4],
            corrupt: fields[5],
            skipped: fields[6],
            came_from: fields[7],
        }
    }
}
