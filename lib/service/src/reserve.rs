//! What the control side keeps for itself, so that it answers when the workers have taken all descriptors there are.
//!
//! A few descriptors are held from the start on. Who needs one for a moment (to take a connection, to save the state)
//! lets some of them go; they are taken again as soon as there is room.

use crate::lock;
use anyhow::{Context, bail};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use std::{
    error::Error,
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// Descriptors that are held.
const RESERVE: usize = 24;
/// Without so many a daemon could not answer: its own files and sockets, the reserve, and some for the work.
const LEAST_DESCRIPTORS: u64 = 64;

/// What the system may have none of for a while.
const LACKS: [Errno; 5] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOBUFS,
    Errno::NOMEM,
    Errno::AGAIN,
];

static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Raises the soft limit on descriptors to the hard one, and takes the reserve. An error is for whoever started the daemon.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    // No limit is none too few.
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if most < LEAST_DESCRIPTORS {
        bail!(
            "the limit on open files is {most}, and a daemon needs at least {LEAST_DESCRIPTORS}; raise it: ulimit -n, or LimitNOFILE= of the unit"
        );
    }
    WANTED.store(RESERVE, Relaxed);
    fill();
    if lock(&HELD).len() < RESERVE {
        bail!(
            "the limit on open files is {most}, and most of them are open already; raise it: ulimit -n, or LimitNOFILE= of the unit"
        );
    }
    Ok(())
}

/// Takes what is missing in the reserve, as far as there is room.
pub(crate) fn fill() {
    let mut held = lock(&HELD);
    while held.len() < WANTED.load(Relaxed) {
        match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(descriptor) => held.push(descriptor),
            Err(_) => return,
        }
    }
}

/// Lets so many of the reserve go; false when there was none.
pub(crate) fn release(count: usize) -> bool {
    let mut held = lock(&HELD);
    let left = held.len().saturating_sub(count);
    let some = left < held.len();
    held.truncate(left);
    some
}

/// Does something that needs `count` descriptors for the time that it takes.
pub(crate) fn lend<T>(count: usize, work: impl FnOnce() -> T) -> T {
    release(count);
    let done = work();
    fill();
    done
}

/// Fills the reserve when it goes: held beside a descriptor that may have come from there.
#[derive(Debug)]
pub(crate) struct Refill;

impl Drop for Refill {
    fn drop(&mut self) {
        fill();
    }
}

/// Whether there is room for so many more threads, before anything is built on them.
pub(crate) fn try_threads(count: usize) -> anyhow::Result<()> {
    let hold = Mutex::new(());
    let held = lock(&hold);
    thread::scope(|scope| {
        let mut started = Ok(());
        for _ in 0..count {
            // Each waits until all of them are there.
            let spawned = thread::Builder::new().spawn_scoped(scope, || drop(lock(&hold)));
            if let Err(error) = spawned {
                started = Err(error);
                break;
            }
        }
        drop(held);
        started
    })
    .context(
        "cannot start the control threads; raise the limit: ulimit -u, or TasksMax= of the unit",
    )
}

/// Whether an error says that the system has no more of something just now (descriptors, memory, threads): the same may
/// succeed later, so it is no reason to give up.
pub fn is_lack(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let code = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .or_else(|| Some(error.downcast_ref::<Errno>()?.raw_os_error()));
        if code.is_some_and(|code| LACKS.iter().any(|lack| lack.raw_os_error() == code)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The same for a reason that is text already: that of a worker. The system's errors say their number at the end.
pub(crate) fn tells_of_lack(reason: &str) -> bool {
    LACKS
        .iter()
        .any(|lack| reason.contains(&format!("(os error {})", lack.raw_os_error())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacks_are_told_from_other_errors_in_chains_and_in_text() {
        let emfile = io::Error::from_raw_os_error(24);
        assert!(tells_of_lack(&format!("cannot open a socket: {emfile}")));
        assert!(!tells_of_lack(&io::Error::from_raw_os_error(2).to_string()));
        let wrapped = crate::Error::Io {
            operation: "open",
            path: "/x".into(),
            source: emfile,
        };
        assert!(is_lack(&wrapped));
        assert!(is_lack(&Errno::AGAIN) && !is_lack(&Errno::PERM));
    }

    #[test]
    fn threads_that_can_be_had_are_given_back() {
        try_threads(4).expect("room");
        try_threads(4).expect("room again");
    }
}
