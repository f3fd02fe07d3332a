//! Whether a ring's name still stands for what is mapped.
//!
//! Whoever may write the ring directory can remove the files of a ring, or put others in their place, without telling anybody.
//! Producers and consumers therefore compare, a few times a second, device and inode of both names with what they have
//! mapped, and treat a ring that has lost its name as one that was retired.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use crate::files::Pair;

/// Nanoseconds between two looks.
const INTERVAL: u64 = 500_000_000;

/// Which file: device and inode.
type Identity = (u64, u64);

/// Looks at the names of a ring's files from time to time.
#[derive(Debug)]
pub(crate) struct NameWatch {
    pair: Pair,
    data: Identity,
    readers: Identity,
    /// When to look next.
    due: Cell<u64>,
    displaced: Cell<bool>,
}

impl NameWatch {
    pub(crate) fn new(pair: Pair, data: &File, readers: &File) -> io::Result<Self> {
        let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino()));
        Ok(Self {
            pair,
            data: identity(data)?,
            readers: identity(readers)?,
            due: Cell::new(now_ns().saturating_add(INTERVAL)),
            displaced: Cell::new(false),
        })
    }

    /// Whether the names stand for other files, or for none. Costs a look at a coarse clock, and twice a second two system calls.
    #[inline]
    pub(crate) fn displaced(&self) -> bool {
        if self.displaced.get() {
            return true;
        }
        let now = now_ns();
        now >= self.due.get() && self.look(now)
    }

    #[cold]
    fn look(&self, now: u64) -> bool {
        self.due.set(now.saturating_add(INTERVAL));
        let other = |path: &Path, known: Identity| match std::fs::symlink_metadata(path) {
            Ok(found) => (found.dev(), found.ino()) != known,
            // What cannot be looked at may well be there.
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        let displaced =
            other(&self.pair.data, self.data) || other(&self.pair.readers, self.readers);
        self.displaced.set(displaced);
        displaced
    }
}

/// Nanoseconds of a clock that nobody sets, to about 4 ms.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
