//! A counter that one thread writes and others look at.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A `u64` with a single writer. Relaxed throughout: readers want a recent figure, and nothing is ordered by it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`, wrapping. Only the one thread that owns the counter may call it: two would lose additions.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// The figure now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
