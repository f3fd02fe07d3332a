//! A ring of captured frames in shared memory: one producer, up to 64 consumers that each see every
//! frame, no lock, no system call per frame.
//!
//! ```text
//!                base + n * capacity
//!                        |
//!   older lap  . . . . . v   what consumers read           being written
//!  +---------------------+-------------------------------+=================+- - - - - -
//!  | overwritten already | rec | rec | rec | PAD |  rec  | rec | rec |     |  oldest lap
//!  +---------------------+-------------------------------+=================+- - - - - -
//!                        ^           ^                   ^                 ^
//!                 commit-capacity    consumer            commit            reserve
//! ```
//! Positions are absolute u64 byte counts that only grow; `(pos - base) mod capacity` is the place in
//! the data area, which is mapped twice back to back so that no record is ever cut in two.
//!
//! **Writing.** The producer moves `reserve`, then writes records, then moves `commit`: once for a
//! whole burst. It never waits for anybody (in [`Mode::Overwrite`]). Every record carries its own position.
//!
//! **Reading.** A consumer loads `commit`, copies a span into private memory, and looks at `reserve`
//! *after* the copy: if that has come more than a capacity ahead, the copy may be torn and is thrown away (a
//! lap). Only then the copy is parsed. A lapped consumer goes on in the middle of the ring, found by the sync
//! index; sequence numbers without gaps tell exactly how many frames it lost.
//!
//! **A producer that is killed** leaves `reserve` ahead of `commit`. Its successor, whose file lock
//! proves the death, covers that hole with PAD records: `reserve` never goes back, so a slow reader of
//! the old lap still notices. Which frames were published is told by a ledger of two entries
//! of which exactly one belongs to the present `commit`.
//!
//! **Sleeping** is a futex with a flag that saves the system call when nobody sleeps, and always with a
//! time-out of at most 10 ms, 25 ms once nothing has come for long: whoever may write the words can delay, not stop.
//!
//! **Who is alive** is told by locks on single bytes of the readers file, which the kernel frees: never
//! by time, never by process id. **Retirement** (deletion, replacement by a new epoch) is a state word in the data
//! file, which consumers cannot write; the event in the readers file is a hint that hurries sleepers up.
//!
//! **Epochs.** A ring is replaced by a new one of that name. The places of registered consumers are carried over to its beginning, and
//! the old ring is kept under a hidden name until they have passed, so that their books go on: see `epochs.rs`.
//! Whether a name still stands for what is mapped is looked at a few times a second, so whoever removes files behind
//! everybody's back is noticed, too.
//!
//! # Synchronisation
//!
//! | label | first | then |
//! |---|---|---|
//! | A | `reserve.store`, fence Release, write | copy, fence Acquire, `reserve.load` |
//! | B | write, `commit.store(Release)` | `commit.load(Acquire)`, copy |
//! | C | publish, fence SeqCst, `waiting.load` | `waiting.store`, fence SeqCst, look for work |
//! | D | `wake.add(Release)` | `wake.load(Acquire)` |
//! | E | copy, `turn.store(Release)` | `turn.load(Acquire)`, overwrite (`wait` rings) |
//! | S | `turn.store`, fence Release, write account | copy account, fence Acquire, `turn.load` |
//! | R | `successor.store`, `state.store(Release)` | `state.load(Acquire)`, `successor.load` |
//! | N | source name, `count.store(Release)` | `count.load(Acquire)`, name |
//! | P | outputs of a reader, `count.store(Release)` | `count.load(Acquire)`, outputs |
//!
//! A to E and S are checked by loom in `tests/loom.rs`, with faults planted in each.
//!
//! # Trust
//!
//! Participants may be buggy, dead or hostile. Every shared value is copied once, checked, then used, in
//! release builds too; the work of one poll is bounded; no reference into the ring leaves this crate. A hostile
//! producer can forge the content of its own ring and stop it, no more. A hostile consumer can
//! delay others by 10 ms (25 ms after a long silence), falsify its own statistics, and hold up a `wait` ring.
//!
//! # What it does not do
//!
//! Several producers on one ring; waiting without a time-out; giving memory back while the ring
//! lives; surviving a reboot.
#![expect(
    unsafe_code,
    reason = "shared memory: mappings, copies and locks need system calls"
)]

mod batch;
mod budget;
mod consumer;
mod create;
mod draft;
mod epochs;
mod error;
mod files;
mod frame;
mod layout;
mod memory;
mod name;
mod name_watch;
mod observe;
mod places;
mod producer;
pub mod protocol;
mod reasons;
mod slots;
mod sources;
mod start;

pub use batch::{Batch, Frame, Loss};
pub use consumer::{Consumer, Poll, wait_any};
pub use create::{CreateOptions, Creation, create, delete, footprint};
pub use draft::{Announcement, is_being_made};
pub use epochs::{CutOff, Kept, kept, kept_of, tidy};
pub use error::Error;
pub use files::{Retired, RingInfo};
pub use frame::{Direction, Flags, Meta};
pub use layout::{LABEL_MAX, Mode, SLOTS, SOURCES};
pub use name::{Backing, RingDir, RingName};
pub use observe::{GoneReaders, Observer, ProducerInfo, ReaderStats, RingState, RingStats};
pub use places::{OUTPUTS, Place, ReaderOutput};
pub use producer::{Burst, Producer};
pub use protocol::record_size;
pub use reasons::{DropReason, Outcome};
pub use sources::{SourceCounters, SourceStats};
pub use start::Start;
