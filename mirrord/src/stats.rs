//! What a mirror tells of itself. Its counters are in the kernel and are read when somebody asks.

use fluxcap_proto::v1::MirrorStatus;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reads the counters into a status. Called on threads of the control side.
pub(crate) type ReadCounters = dyn Fn(&mut MirrorStatus) + Send + Sync;

/// Status of one mirror: details that its thread rewrites when something changed, and a way to the counters.
#[derive(Default)]
pub(crate) struct MirrorLive {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    details: MirrorStatus,
    counters: Option<Arc<ReadCounters>>,
    /// Generation of the spec that the thread has acted on last.
    done: u64,
}

impl MirrorLive {
    /// Replaces what is shown besides state, reason and counters.
    pub(crate) fn set_details(&self, details: MirrorStatus) {
        self.lock().details = details;
    }

    /// Says how counters are read from now on.
    pub(crate) fn set_counters(&self, read: Arc<ReadCounters>) {
        self.lock().counters = Some(read);
    }

    /// Says that this generation of the spec is in place, or is known to be not: state and reason are about it.
    pub(crate) fn set_done(&self, generation: u64) {
        let mut inner = self.lock();
        if inner.done < generation {
            inner.done = generation;
            self.changed.notify_all();
        }
    }

    /// Whether this generation of the spec was acted on.
    pub(crate) fn is_done(&self, generation: u64) -> bool {
        self.lock().done >= generation
    }

    /// Waits until that is so, `longest` at most.
    pub(crate) fn wait_done(&self, generation: u64, longest: Duration) {
        let waits = |inner: &mut Inner| inner.done < generation;
        // In vain or not: whoever asks for the status then sees it.
        let _ = self.changed.wait_timeout_while(self.lock(), longest, waits);
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> MirrorStatus {
        let (mut status, counters) = {
            let inner = self.lock();
            (inner.details.clone(), inner.counters.clone())
        };
        if let Some(read) = counters {
            read(&mut status);
        }
        status
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MirrorLive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorLive").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_spec_goes_on_when_it_was_acted_on() {
        let live = MirrorLive::default();
        live.wait_done(1, Duration::ZERO);
        assert!(!live.is_done(1));
        std::thread::scope(|scope| {
            scope.spawn(|| live.set_done(3));
            live.wait_done(2, Duration::from_secs(60));
        });
        live.set_done(1);
        assert!(live.is_done(3) && !live.is_done(4));
    }

    #[test]
    fn counters_are_read_when_the_status_is() {
        let live = MirrorLive::default();
        assert_eq!(live.to_status(), MirrorStatus::default());
        live.set_details(MirrorStatus {
            filter_at: "kernel".to_owned(),
            ..Default::default()
        });
        live.set_counters(Arc::new(|status| status.seen_frames += 3));
        for _ in 0..2 {
            let status = live.to_status();
            assert_eq!(
                (status.seen_frames, status.filter_at.as_str()),
                (3, "kernel")
            );
        }
    }
}
