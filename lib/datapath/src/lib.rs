//! What data paths have in common. Those that send rings: where frames come from, which go first, and by which way they reach an
//! interface.
//!
//! ```text
//!   Intake            the rings of a sender, each a Feed: found by name, followed to its next epoch; merged by time
//!     .fetch()        copies of the next frames, vouched for by the ring
//!     .pick()         which of them go out now
//!     .finish()       they are dealt with; .settle() says under which outcome
//!     .wait()         looks for more, then sleeps on the doorbells
//!   Outputs           interfaces by name, lost and found again, and for each the best way of `fluxcap-socket` that it takes
//!     .send()         one burst, a report for each interface
//!   Device            which device stands behind a name
//!   Outcomes          what a burst came to; OutcomeLive adds it up for those who look on
//!   Graph             whether frames would go round; LoopGuard and SourceGuard ask it, and note what it is made of
//!   Remote, Hop       the far end of a tunnel, and where packets to it leave the host
//!   ring_advice()     what to do about a ring that cannot be had
//!   Placement         CPUs, priority and patience of the thread
//! ```
//!
//! What lies between, a sender has for itself: txd edits and copies frames to all of its interfaces, tunneld puts them into
//! packets. The loop is theirs too.
//!
//! Invariants:
//! * A frame that was fetched is settled under one outcome, by the caller; what is still at hand when a sender ends is for it to send.
//! * At each interface frames leave in the order given, also across a change of the way.
//! * Nothing here allocates, locks or logs for each frame.
//!
//! Deliberately absent: frames' contents, specs of workers, gRPC.

mod advice;
mod choice;
mod device;
mod feed;
mod guard;
mod hop;
mod intake;
mod loops;
mod merge;
mod outcome;
mod output;
mod outputs;
mod placement;
mod recycle;
mod remote;

pub use advice::ring_advice;
pub use choice::Io;
pub use device::Device;
pub use feed::{Feed, FeedLive};
pub use guard::{LoopGuard, SourceGuard};
pub use hop::{Closed, Contact, Hop};
pub use intake::{Intake, validate_rings};
pub use loops::{Edge, Graph, Loop};
pub use merge::{MAX_LANES, Pick};
pub use outcome::{OutcomeLive, Outcomes, outcome_of};
pub use output::Output;
pub use outputs::Outputs;
pub use placement::Placement;
pub use recycle::recycle;
pub use remote::Remote;

use std::time::Duration;

/// Frames sent at a time.
pub const BURST: usize = 512;
/// Time between two looks at the interfaces while frames go out: not every loss of a link shows in a send.
pub const LOOK_BUSY: Duration = Duration::from_millis(20);
/// The same while there is nothing to send.
pub const LOOK_IDLE: Duration = Duration::from_millis(100);
/// Time between two updates of what is shown, when nothing special happens.
pub const SHOW: Duration = Duration::from_millis(200);
/// How long a sender that ends still sends what the rings hold.
pub const DRAIN: Duration = Duration::from_millis(500);
