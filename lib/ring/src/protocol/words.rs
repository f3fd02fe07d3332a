//! What the protocol needs of memory.

use std::sync::atomic::Ordering;
use std::time::Duration;

/// A shared u64 that the protocol reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// End of the space that the producer may be writing to. Never goes back.
    Reserve,
    /// End of what is published.
    Commit,
    /// Two entries of four words, see [`Ledger`](super::Ledger); the one whose position equals
    /// `Commit` is true.
    Ledger(usize),
    /// Start of the first record in a block of the data area.
    Sync(u64),
    /// Futex word of the consumers; only its low half counts.
    Wake,
    /// Not 0 when a consumer sleeps or is about to.
    Waiting,
    /// Futex word of a producer that waits for space.
    SpaceWake,
    /// Not 0 when the producer sleeps or is about to.
    SpaceWaiting,
    /// Which of its two accounts a consumer uses: even or odd.
    Turn(usize),
    /// A word of the two accounts, see [`Account`](super::Account): index 0 to 15.
    Account {
        /// The consumer's slot.
        slot: usize,
        /// The word.
        index: usize,
    },
}

/// A place where the protocol needs a fence; the other half of each pair carries the same label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// SYNC A, writer: `reserve` becomes visible before any byte of the burst.
    ReserveBeforeData,
    /// SYNC A, reader: every byte is copied before `reserve` is looked at again.
    DataBeforeReserve,
    /// SYNC S, writer: the last turn is visible before the other account is overwritten.
    TurnBeforeAccount,
    /// SYNC S, reader: the account is copied before the turn is looked at again.
    AccountBeforeTurn,
    /// SYNC C, ringer: the work is visible before it looks whether somebody waits.
    WorkBeforeWaiting,
    /// SYNC C, sleeper: `waiting` is visible before it looks for work again.
    WaitingBeforeWork,
}

impl Fence {
    /// How strong the fence must be.
    pub fn ordering(self) -> Ordering {
        match self {
            Self::ReserveBeforeData | Self::TurnBeforeAccount => Ordering::Release,
            Self::DataBeforeReserve | Self::AccountBeforeTurn => Ordering::Acquire,
            Self::WorkBeforeWaiting | Self::WaitingBeforeWork => Ordering::SeqCst,
        }
    }
}

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slept {
    /// Woken, or the word had changed already, or a signal came: look again.
    Woken,
    /// The time was up.
    TimedOut,
    /// The kernel cannot reach the word: the memory is gone.
    Unreachable,
}

/// Shared memory as the protocol sees it: some words and an area of record bytes.
///
/// Offsets and lengths are given by code that has checked them against the ring's
/// [`Geometry`](super::Geometry); implementations refuse what lies outside by doing nothing.
pub trait Words {
    /// How often a set of words that changes under the reader's hands is read again before it
    /// counts as damaged. Far more than a working writer can cause.
    const PATIENCE: u32 = 10_000;

    /// Atomic load.
    fn load(&self, word: Word, order: Ordering) -> u64;
    /// Atomic store.
    fn store(&self, word: Word, value: u64, order: Ordering);
    /// Atomic exchange; returns the old value.
    fn swap(&self, word: Word, value: u64, order: Ordering) -> u64;
    /// Atomic wrapping addition.
    fn add(&self, word: Word, value: u64, order: Ordering);
    /// Memory fence.
    fn fence(&self, fence: Fence);
    /// Writes a record at the 16-aligned `offset` of the data area: the words of `head`, then
    /// `pieces` one after another. May run past the end by wrapping around. The bytes between
    /// the end of the pieces and the next multiple of 16 are undefined.
    fn write(&self, offset: u64, head: &[u64], pieces: &[&[u8]]);
    /// Copies bytes out of the data area, from the 16-aligned `offset`, wrapping around.
    fn read(&self, offset: u64, into: &mut [u64]);
    /// Sleeps while the low half of `word` equals `expected`, at most `timeout`.
    fn sleep(&self, word: Word, expected: u32, timeout: Duration) -> Slept;
    /// Wakes everybody who sleeps on `word`.
    fn wake(&self, word: Word);
}
