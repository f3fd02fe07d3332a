//! The ring of a capture, whose threads write to it in turn.

use fluxcap_ring::{Mode, Producer};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest wait for the consumers of a ring in wait mode before stop is looked for.
const WAIT: Duration = Duration::from_millis(10);
/// Pause in which another thread gets the ring, in wait mode.
const GAP: Duration = Duration::from_micros(100);

/// A ring, to be locked for a burst at a time. A capture with one thread has it for itself: its lock is always free.
#[derive(Debug)]
pub(crate) struct SharedRing {
    producer: Mutex<Producer>,
    /// There are other threads.
    shared: AtomicBool,
}

/// A thread's turn.
pub(crate) type Turn<'r> = MutexGuard<'r, Producer>;

impl SharedRing {
    pub(crate) fn new(producer: Producer, threads: usize) -> SharedRing {
        SharedRing {
            producer: Mutex::new(producer),
            shared: AtomicBool::new(threads > 1),
        }
    }

    /// Whether it is the ring of that name.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.lock().info().name.as_str() == name
    }

    /// Takes note of how many threads there are now.
    pub(crate) fn set_threads(&self, threads: usize) {
        self.shared.store(threads > 1, Relaxed);
    }

    fn is_shared(&self) -> bool {
        self.shared.load(Relaxed)
    }

    /// Waits for this thread's turn.
    #[inline]
    pub(crate) fn lock(&self) -> Turn<'_> {
        // A thread that panicked has left no burst half done: what is not committed does not exist.
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the others have their turn, between two bursts.
    #[inline]
    pub(crate) fn pass<'r>(&'r self, turn: Turn<'r>) -> Turn<'r> {
        if !self.is_shared() {
            return turn;
        }
        drop(turn);
        self.lock()
    }

    /// Waits until a burst of that many bytes can be reserved: for the consumers of a ring in wait mode, not at all for others. With
    /// the turn, whether there is room: not when told to `stop` meanwhile.
    ///
    /// # Errors
    /// When the ring cannot be used any more.
    #[inline]
    pub(crate) fn wait_room<'r>(
        &'r self,
        mut turn: Turn<'r>,
        bytes: usize,
        stop: &impl Fn() -> bool,
    ) -> Result<(Turn<'r>, bool), fluxcap_ring::Error> {
        while turn.info().mode == Mode::Wait && turn.reserve(bytes)?.is_none() {
            if stop() {
                return Ok((turn, false));
            }
            turn.wait_space(WAIT)?;
            if self.is_shared() {
                drop(turn);
                std::thread::sleep(GAP);
                turn = self.lock();
            }
        }
        Ok((turn, true))
    }

    /// Ends in order.
    pub(crate) fn close(self) {
        let producer = self.producer.into_inner();
        producer.unwrap_or_else(PoisonError::into_inner).close();
    }
}
