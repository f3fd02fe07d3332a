//! What a mirror tells of itself. Its counters are in the kernel and are read when somebody asks.

use fluxcap_proto::v1::MirrorStatus;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads the counters into a status. Called on threads of the control side.
pub(crate) type ReadCounters = dyn Fn(&mut MirrorStatus) + Send + Sync;

/// Status of one mirror: details that its thread rewrites when something changed, and a way to the counters.
#[derive(Default)]
pub(crate) struct MirrorLive(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    details: MirrorStatus,
    counters: Option<Arc<ReadCounters>>,
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
