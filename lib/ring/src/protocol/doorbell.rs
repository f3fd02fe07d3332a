//! Sleeping until there is work, without a lock and without a lost wake-up.
//!
//! ```text
//! ringer                                    sleeper
//! publish work                              ticket = wake            (D, Acquire)
//! fence SeqCst                    SYNC C    waiting = 1
//! if waiting, swap(waiting, 0):             fence SeqCst
//!     wake += 1  (Release)        SYNC D    work there after all? then do not sleep
//!     futex wake                            futex wait while wake == ticket, <= 10 or 25 ms
//! ```
//! Every sleep has a time-out: whoever may write the words can delay a sleeper by that much
//! and no more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::words::{Fence, Slept, Word, Words};

/// Longest sleep, whatever was asked for.
const NAP: Duration = Duration::from_millis(10);
/// The same for those who know that nothing has come for long and would rather not be woken so often.
pub(crate) const LONG_NAP: Duration = Duration::from_millis(25);

/// A futex word and the flag that says whether anybody sleeps on it.
#[derive(Debug, Clone, Copy)]
pub struct Bell {
    wake: Word,
    waiting: Word,
}

/// Rung by the producer when it has published.
pub const DATA_BELL: Bell = Bell {
    wake: Word::Wake,
    waiting: Word::Waiting,
};
/// Rung by consumers of a `wait` ring when they have made space.
pub const SPACE_BELL: Bell = Bell {
    wake: Word::SpaceWake,
    waiting: Word::SpaceWaiting,
};

impl Bell {
    /// Wakes whoever sleeps. Costs a fence and a load when nobody does. Returns whether it woke.
    pub fn ring<W: Words>(self, words: &W) -> bool {
        words.fence(Fence::WorkBeforeWaiting); // SYNC C
        let anybody = words.load(self.waiting, Ordering::Relaxed) != 0
            && words.swap(self.waiting, 0, Ordering::AcqRel) != 0;
        if anybody {
            self.ring_anyway(words);
        }
        anybody
    }

    /// Wakes without looking whether anybody sleeps: for rare events such as a retirement.
    pub fn ring_anyway<W: Words>(self, words: &W) {
        words.add(self.wake, 1, Ordering::Release); // SYNC D
        words.wake(self.wake);
    }

    /// Announces a sleeper. The caller must then look for work once more before it sleeps
    /// with the ticket that this returns.
    pub fn arm<W: Words>(self, words: &W) -> u32 {
        // The ticket must be older than the last look for work: read later, a wake-up between
        // that look and the read would be slept through.
        let ticket = words.load(self.wake, Ordering::Acquire); // SYNC D
        words.store(self.waiting, 1, Ordering::Relaxed);
        words.fence(Fence::WaitingBeforeWork); // SYNC C
        low_half(ticket)
    }

    /// Sleeps until the bell is rung, at most `timeout` or 10 ms.
    pub fn sleep<W: Words>(self, words: &W, ticket: u32, timeout: Duration) -> Slept {
        words.sleep(self.wake, ticket, timeout.min(NAP))
    }
}

/// The half of a word that the futex system call compares.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
pub(crate) fn low_half(word: u64) -> u32 {
    word as u32
}
