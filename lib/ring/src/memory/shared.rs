//! The two mapped files of a ring as the memory of the protocol.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

use super::mapping::Mapping;
use crate::layout::{data, readers};
use crate::protocol::{Fence, Slept, Word, Words};
use crate::slots;

/// Both files of one ring.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) data: Mapping,
    pub(crate) readers: Mapping,
}

impl Shared {
    /// Which file holds the word, and where.
    #[inline]
    fn locate(&self, word: Word) -> (&Mapping, u64) {
        match word {
            Word::Reserve => (&self.data, data::RESERVE),
            Word::Commit => (&self.data, data::COMMIT),
            Word::Ledger(index) => (&self.data, data::LEDGER + 8 * index as u64),
            Word::Sync(block) => (&self.data, data::SYNC + 8 * block),
            Word::Wake => (&self.data, data::WAKE),
            Word::Waiting => (&self.readers, readers::WAITING),
            Word::SpaceWake => (&self.readers, readers::SPACE_WAKE),
            Word::Turn(slot) => (&self.readers, slots::turn_at(slot)),
            Word::Account { slot, index } => {
                (&self.readers, slots::accounts_at(slot) + 8 * index as u64)
            }
            Word::SpaceWaiting => (&self.readers, readers::SPACE_WAITING),
        }
    }

    /// Whether the memory of either file was taken away.
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.data.poisoned() || self.readers.poisoned()
    }

    /// The futex behind a word.
    pub(crate) fn futex(&self, word: Word) -> &std::sync::atomic::AtomicU32 {
        let (map, at) = self.locate(word);
        map.low_half(at)
    }
}

impl Words for Shared {
    #[inline]
    fn load(&self, word: Word, order: Ordering) -> u64 {
        let (map, at) = self.locate(word);
        map.word(at).load(order)
    }

    #[inline]
    fn store(&self, word: Word, value: u64, order: Ordering) {
        let (map, at) = self.locate(word);
        map.word(at).store(value, order);
    }

    #[inline]
    fn swap(&self, word: Word, value: u64, order: Ordering) -> u64 {
        let (map, at) = self.locate(word);
        map.word(at).swap(value, order)
    }

    #[inline]
    fn add(&self, word: Word, value: u64, order: Ordering) {
        let (map, at) = self.locate(word);
        map.word(at).fetch_add(value, order);
    }

    #[inline]
    fn fence(&self, at: Fence) {
        fence(at.ordering());
    }

    #[inline]
    fn write(&self, offset: u64, head: &[u64], pieces: &[&[u8]]) {
        self.data.write_record(offset, head, pieces);
    }

    #[inline]
    fn read(&self, offset: u64, into: &mut [u64]) {
        self.data.read_words(offset, into);
    }

    fn sleep(&self, word: Word, expected: u32, timeout: Duration) -> Slept {
        let timeout = futex::Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match futex::wait(
            self.futex(word),
            futex::Flags::empty(),
            expected,
            Some(&timeout),
        ) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Slept::Woken,
            Err(Errno::TIMEDOUT) => Slept::TimedOut,
            Err(_) => Slept::Unreachable,
        }
    }

    fn wake(&self, word: Word) {
        // Cannot fail in a way that matters: sleepers have a time-out.
        let _ = futex::wake(self.futex(word), futex::Flags::empty(), i32::MAX as u32);
    }
}
