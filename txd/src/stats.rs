//! What a transmit tells of itself while it runs: totals that its thread adds to once per burst, and details that it rewrites
//! when something changed and a few times a second.

use fluxcap_datapath::{FeedLive, OutcomeLive};
use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counters and details of one transmit since its thread began. Each ring's reader slot holds the ones that outlive the daemon.
#[derive(Debug, Default)]
pub(crate) struct TransmitLive {
    /// What came out of the rings.
    pub(crate) rings: FeedLive,
    /// What became of frames, at all interfaces together.
    pub(crate) total: OutcomeLive,
    details: Mutex<Details>,
}

/// What is shown besides totals.
#[derive(Debug, Default, Clone)]
pub(crate) struct Details {
    /// The interfaces: what is shown of them but for counters, and these.
    pub(crate) interfaces: Vec<(v1::TransmitInterfaceStatus, Arc<OutcomeLive>)>,
    /// The rings.
    pub(crate) rings: Vec<v1::TransmitRingStatus>,
    /// What the user should know.
    pub(crate) remarks: Vec<String>,
}

impl TransmitLive {
    /// Replaces what is shown.
    pub(crate) fn set_details(&self, details: Details) {
        *self.details() = details;
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> v1::TransmitStatus {
        let Details {
            interfaces,
            rings,
            remarks,
        } = self.details().clone();
        let interfaces = interfaces
            .into_iter()
            .map(|(status, live)| v1::TransmitInterfaceStatus {
                sent_frames: live.get(Outcome::Sent),
                sent_bytes: live.sent_bytes.get(),
                dropped_frames: live.drops(),
                ..status
            });
        v1::TransmitStatus {
            delivered_frames: self.rings.delivered.get(),
            copied_frames: self.total.get(Outcome::Copied),
            sent_frames: self.total.get(Outcome::Sent),
            sent_bytes: self.total.sent_bytes.get(),
            lapped_frames: self.rings.lapped.get(),
            truncated_frames: self.total.get(Outcome::Truncated),
            dropped_frames: self.total.drops(),
            rings,
            remarks,
            interfaces: interfaces.collect(),
            ..Default::default()
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
