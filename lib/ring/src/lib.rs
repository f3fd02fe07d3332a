//! A ring of captured frames in shared memory: one producer, up to 64 consumers, no lock.
#![expect(
    unsafe_code,
    reason = "shared memory: mappings, copies and locks need system calls"
)]

mod batch;
mod budget;
mod consumer;
mod create;
mod error;
mod files;
mod frame;
mod layout;
mod memory;
mod name;
mod observe;
mod producer;
pub mod protocol;
mod reasons;
mod slots;
mod sources;
mod start;

pub use batch::{Batch, Frame, Loss};
pub use consumer::{Consumer, Poll, wait_any};
pub use create::{CreateOptions, create, delete, footprint};
pub use error::Error;
pub use files::{Retired, RingInfo};
pub use frame::{Direction, Flags, Meta};
pub use layout::{LABEL_MAX, Mode, SLOTS, SOURCES};
pub use name::{Backing, RingDir, RingName};
pub use observe::{Observer, ProducerInfo, ReaderStats, RingState, RingStats};
pub use producer::{Burst, Producer};
pub use protocol::record_size;
pub use reasons::{DropReason, Outcome};
pub use sources::{SourceCounters, SourceStats};
pub use start::Start;
