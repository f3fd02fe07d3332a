//! The memory protocol by itself: no files, no mappings, no system calls.
//!
//! Everything here works on [`Words`], a small view of memory. The same code runs over the mapped
//! files in production, over [`HeapWords`] in property tests and over model-checked atomics
//! in `tests/loom.rs`. It is public for these tests; programs use [`Producer`](crate::Producer) and
//! [`Consumer`](crate::Consumer).

mod account;
mod doorbell;
mod heap;
mod reader;
mod record;
mod words;
mod writer;

pub use account::Account;
pub(crate) use doorbell::LONG_NAP;
pub use doorbell::{Bell, DATA_BELL, SPACE_BELL};
pub use heap::HeapWords;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use heap::pack;
pub use reader::{Copied, Parsed, Reader};
pub use record::{Head, Kind, META, record_size};
pub use words::{Fence, Slept, Word, Words};
pub use writer::{Ledger, Writer, ledger_at};

/// Entry of the sync index that names no record: no record begins at an odd position.
pub const NO_RECORD: u64 = 1;

/// The sizes of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Position of the first record ever.
    pub base: u64,
    /// Bytes of the data area, a multiple of 16.
    pub capacity: u64,
    /// Longest record in bytes, header included, a multiple of 16.
    pub max_record: u64,
    /// Longest burst in bytes, a multiple of 16, at most a quarter of the capacity.
    pub max_burst: u64,
    /// One entry of the sync index covers 2^sync_shift bytes.
    pub sync_shift: u32,
}

impl Geometry {
    /// Where in the data area position `pos` lies, in bytes.
    pub fn offset(&self, pos: u64) -> u64 {
        pos.wrapping_sub(self.base) % self.capacity
    }

    /// Number of entries of the sync index.
    pub fn blocks(&self) -> u64 {
        self.capacity.div_ceil(1 << self.sync_shift)
    }
}
