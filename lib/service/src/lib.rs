//! What every fluxcap daemon shares.
//!
//! ```text
//!  main()  ServiceArgs --> Daemon::start        log, panic hook, one instance, directories
//!                               |
//!          Registry<J: Job> ----+                named workers, one OS thread each, specs kept in a StateFile
//!             resource_service! |                the gRPC service over them, by what `Resource` says of the job
//!                               |
//!          Daemon::serve(routes, names, jobs)    gRPC on <run-dir>/<daemon>.sock, health, reflection,
//!                                                DaemonService, systemd, ordered shutdown
//! ```
//!
//! A daemon brings a [`Job`] (what one of its workers does) that is a [`Resource`] of the API; everything else is here. The control
//! side runs on its own tokio runtime of two threads; workers are plain threads that learn of a new spec or of the end
//! by two relaxed loads and an eventfd, so nothing that a client does makes a worker wait.
//!
//! Invariants:
//! * This crate knows neither packets nor rings.
//! * At most one instance of a daemon lives in a run directory; a lock held by the kernel says so, not a file's existence.
//! * A spec that was accepted is either on disk or shown as "not saved" in the notices of `DaemonService`.
//! * A worker for which the system lacks a thread or descriptors waits and is tried again, and the control side keeps some of both for
//!   itself: it answers whatever the workers have taken.
//! * What was answered as failed because the client waited no longer is not done ([`still_wanted`]).
//! * The end of a daemon is in order: workers, then the server. No open stream holds it up.

mod args;
mod authority;
mod counter;
mod daemon;
mod error;
mod instance;
mod jobs;
mod logging;
mod mask;
mod notices;
mod request;
mod reserve;
mod resource;
mod server;
mod state;
mod systemd;
mod units;
mod watch;
mod worker;

pub use args::{LogFormat, ServiceArgs, from_env, socket_path};
pub use counter::Counter;
pub use daemon::{Daemon, MAX_MESSAGE_BYTES, blocking, main, still_wanted};
pub use error::{Error, Refusal, causes};
pub use jobs::{Counts, Job, Jobs, MAX_NAME, Registry};
pub use mask::apply_mask;
pub use notices::Notices;
pub use request::{checked, page};
pub use reserve::is_lack;
pub use resource::{Api, Resource, WorkerOf};
pub use state::StateFile;
pub use units::{format_size, parse_duration, parse_size};
pub use watch::{WatchStream, Watches, interval_stream};
pub use worker::{State, Worker};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data is valid at every step, so that a holder that panicked has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CLOCK_REALTIME in nanoseconds since 1970; 0 for a clock before that.
pub fn realtime_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX))
}
