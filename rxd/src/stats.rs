//! What a capture tells of itself while it runs: totals that its threads add to once per burst, having locked the ring, and
//! the state of each interface, which is rewritten when something changed and at most a few times a second.

use fluxcap_proto::v1;
use fluxcap_ring::DropReason;
use fluxcap_service::Counter;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters and states of one capture since its thread began. The ring's header holds the ones that outlive the daemon.
#[derive(Debug, Default)]
pub(crate) struct CaptureLive {
    /// Frames read from the kernel.
    pub(crate) received: Counter,
    /// Bytes of those frames as they were on the wire.
    pub(crate) received_bytes: Counter,
    /// Frames put into the ring.
    pub(crate) published: Counter,
    /// Frames that stand in the ring behind a later one.
    pub(crate) late: Counter,
    /// Frames that the kernel dropped because its buffer was full.
    pub(crate) kernel_dropped: Counter,
    /// Frames shorter in the ring than on the wire, other than by request.
    pub(crate) truncated: Counter,
    drops: [Counter; DropReason::ALL.len()],
    details: Mutex<Details>,
}

/// Counters of one interface, to which each thread that reads it adds.
#[derive(Debug, Default)]
pub(crate) struct InterfaceCounts {
    received: AtomicU64,
    kernel: AtomicU64,
    dropped: AtomicU64,
    freezes: AtomicU64,
}

impl InterfaceCounts {
    /// Adds frames read from the kernel.
    pub(crate) fn add_received(&self, frames: u64) {
        self.received.fetch_add(frames, Relaxed);
    }

    /// Adds what the kernel counted.
    pub(crate) fn add_kernel(&self, frames: u64, dropped: u64, freezes: u64) {
        self.kernel.fetch_add(frames, Relaxed);
        self.dropped.fetch_add(dropped, Relaxed);
        self.freezes.fetch_add(freezes, Relaxed);
    }

    /// Takes frames out of the counts that were read twice.
    pub(crate) fn take_back(&self, frames: u64) {
        self.received.fetch_sub(frames, Relaxed);
        self.kernel.fetch_sub(frames, Relaxed);
    }

    /// Enters the counters into a status.
    pub(crate) fn show(&self, status: &mut v1::CaptureInterfaceStatus) {
        status.received_frames = self.received.load(Relaxed);
        status.kernel_frames = self.kernel.load(Relaxed);
        status.kernel_dropped_frames = self.dropped.load(Relaxed);
        status.kernel_freezes = self.freezes.load(Relaxed);
    }
}

#[derive(Debug, Default)]
struct Details {
    interfaces: Vec<v1::CaptureInterfaceStatus>,
    filter_at: &'static str,
}

impl CaptureLive {
    /// Adds `n` frames that were not published for `reason`.
    pub(crate) fn add_drop(&self, reason: DropReason, n: u64) {
        self.drops[reason.index()].add(n);
    }

    /// Replaces what is shown of the interfaces, and of where the filter runs: `kernel`, `rxd`, or nothing.
    pub(crate) fn set_details(
        &self,
        interfaces: Vec<v1::CaptureInterfaceStatus>,
        filter_at: &'static str,
    ) {
        *self.details() = Details {
            interfaces,
            filter_at,
        };
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> v1::CaptureStatus {
        let drops = DropReason::ALL
            .iter()
            .zip(&self.drops)
            .filter(|(_, n)| n.get() != 0);
        let details = self.details();
        v1::CaptureStatus {
            interfaces: details.interfaces.clone(),
            received_frames: self.received.get(),
            received_bytes: self.received_bytes.get(),
            published_frames: self.published.get(),
            late_frames: self.late.get(),
            kernel_dropped_frames: self.kernel_dropped.get(),
            truncated_frames: self.truncated.get(),
            dropped_frames: drops
                .map(|(reason, n)| (reason.as_str().to_owned(), n.get()))
                .collect(),
            filter_at: details.filter_at.to_owned(),
            ..Default::default()
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
