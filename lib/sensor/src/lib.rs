//! The sensor's side of an output: an interface that hands frames on as they were sent, and is quiet itself.
//!
//! ```text
//!   Sensors::prepare()   XDP program that passes everything (veth), GRO, LRO and their like off, IPv6, multicast and ARP off
//!          .undo()       as it was before
//!          .show()       how it is, and what that means for a sensor
//!          .list()       all that are prepared in this network namespace
//! ```
//!
//! What was before is kept in `<run-dir>/outputs`, a file for each interface, written before anything is changed; the program is held by
//! a link that has a name in a bpffs. Both go by the network namespace and the interface's index, so that a name that comes back as
//! another interface means nothing.
//!
//! Invariants:
//!
//! * What cannot be prepared in full is left as it was, and the error says what is in the way.
//! * A program of somebody else at the interface is never touched.
//! * Everything may be done again: what is so already stays, and what was before the first time is what comes back.
//!
//! Everything happens in the network namespace of the calling thread.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

mod error;
mod memory;
mod pin;
mod prepare;
mod report;
mod settings;

pub use error::Error;
pub use prepare::Sensors;
pub use report::{Report, Setting};
