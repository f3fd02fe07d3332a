//! The protocol's memory as ordinary heap memory, for tests within one process.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::doorbell::low_half;
use super::words::{Fence, Slept, Word, Words};
use super::{Geometry, Writer};

/// A whole ring on the heap: words and data area.
#[derive(Debug)]
pub struct HeapWords {
    words: [AtomicU64; 16],
    /// Turn and accounts of slot 0, the only one there is.
    slot: [AtomicU64; 17],
    sync: Vec<AtomicU64>,
    data: Vec<AtomicU64>,
}

impl HeapWords {
    /// An empty ring.
    pub fn new(geometry: &Geometry) -> Self {
        let zeroed = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        let heap = Self {
            words: Default::default(),
            slot: Default::default(),
            sync: zeroed(geometry.blocks()),
            data: zeroed(geometry.capacity / 8),
        };
        Writer::format(&heap, geometry);
        heap
    }

    /// Flips bits of a word of the data area, as a hostile producer might.
    pub fn corrupt(&self, word: usize, mask: u64) {
        let index = word % self.data.len();
        self.data[index].fetch_xor(mask, Ordering::Relaxed);
    }

    fn word(&self, word: Word) -> Option<&AtomicU64> {
        match word {
            Word::Reserve => self.words.first(),
            Word::Commit => self.words.get(1),
            Word::Wake => self.words.get(2),
            Word::Waiting => self.words.get(3),
            Word::SpaceWake => self.words.get(4),
            Word::SpaceWaiting => self.words.get(5),
            Word::Turn(_) => self.slot.get(16),
            Word::Account { index, .. } => self.slot.get(index),
            Word::Ledger(i) => self.words.get(8 + i),
            Word::Sync(block) => self.sync.get(usize::try_from(block).ok()?),
        }
    }

    fn cell(&self, offset: u64, index: usize) -> &AtomicU64 {
        let at = (usize::try_from(offset / 8).unwrap_or(0) + index) % self.data.len();
        &self.data[at]
    }
}

impl Words for HeapWords {
    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.word(word).map_or(0, |w| w.load(order))
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        if let Some(w) = self.word(word) {
            w.store(value, order);
        }
    }

    fn swap(&self, word: Word, value: u64, order: Ordering) -> u64 {
        self.word(word).map_or(0, |w| w.swap(value, order))
    }

    fn add(&self, word: Word, value: u64, order: Ordering) {
        if let Some(w) = self.word(word) {
            w.fetch_add(value, order);
        }
    }

    fn fence(&self, at: Fence) {
        fence(at.ordering());
    }

    fn write(&self, offset: u64, head: &[u64], pieces: &[&[u8]]) {
        let mut index = 0;
        pack(head, pieces, |word| {
            self.cell(offset, index).store(word, Ordering::Relaxed);
            index += 1;
        });
    }

    fn read(&self, offset: u64, into: &mut [u64]) {
        for (index, word) in into.iter_mut().enumerate() {
            *word = self.cell(offset, index).load(Ordering::Relaxed);
        }
    }

    fn sleep(&self, word: Word, expected: u32, timeout: Duration) -> Slept {
        let end = Instant::now() + timeout;
        while low_half(self.load(word, Ordering::Relaxed)) == expected {
            if Instant::now() >= end {
                return Slept::TimedOut;
            }
            std::thread::yield_now();
        }
        Slept::Woken
    }

    fn wake(&self, _word: Word) {}
}

/// Joins pieces of any length to words: head first, the last word filled up with zeroes.
pub(crate) fn pack(head: &[u64], pieces: &[&[u8]], mut put: impl FnMut(u64)) {
    head.iter().for_each(|&word| put(word));
    let (mut partial, mut filled) = ([0u8; 8], 0);
    for &byte in pieces.iter().copied().flatten() {
        partial[filled] = byte;
        filled += 1;
        if filled == 8 {
            put(u64::from_ne_bytes(partial));
            (partial, filled) = ([0; 8], 0);
        }
    }
    if filled > 0 {
        put(u64::from_ne_bytes(partial));
    }
}
