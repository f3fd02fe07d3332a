//! What a transmit tells of itself while it runs: totals that its thread adds to once per burst, and details that it rewrites
//! when something changed and a few times a second.

use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use fluxcap_service::Counter;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counters and details of one transmit since its thread began. Each ring's reader slot holds the ones that outlive the daemon.
#[derive(Debug, Default)]
pub(crate) struct TransmitLive {
    /// Frames taken out of the rings.
    pub(crate) delivered: Counter,
    /// Frames overwritten in a ring before this transmit came to them.
    pub(crate) lapped: Counter,
    /// What became of frames, at all interfaces together.
    pub(crate) total: InterfaceLive,
    details: Mutex<Details>,
}

/// What became of the frames for one interface.
#[derive(Debug, Default)]
pub(crate) struct InterfaceLive {
    /// Bytes that left.
    pub(crate) sent_bytes: Counter,
    outcomes: [Counter; Outcome::ALL.len()],
}

/// What is shown besides totals.
#[derive(Debug, Default, Clone)]
pub(crate) struct Details {
    /// The interfaces: what is shown of them but for counters, and these.
    pub(crate) interfaces: Vec<(v1::TransmitInterfaceStatus, Arc<InterfaceLive>)>,
    /// The rings.
    pub(crate) rings: Vec<v1::TransmitRingStatus>,
}

impl InterfaceLive {
    /// Adds `n` frames that ended as `outcome`.
    pub(crate) fn add(&self, outcome: Outcome, n: u64) {
        self.outcomes[outcome.index()].add(n);
    }

    fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()].get()
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let is_drop = |o: Outcome| o.is_terminal() && o != Outcome::Sent;
        let counts = Outcome::ALL.iter().map(|o| (*o, self.get(*o)));
        counts
            .filter(|(o, n)| is_drop(*o) && *n != 0)
            .map(|(outcome, n)| (outcome.as_str().to_owned(), n))
            .collect()
    }
}

impl TransmitLive {
    /// Replaces what is shown.
    pub(crate) fn set_details(&self, details: Details) {
        *self.details() = details;
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> v1::TransmitStatus {
        let Details { interfaces, rings } = self.details().clone();
        let interfaces = interfaces
            .into_iter()
            .map(|(status, live)| v1::TransmitInterfaceStatus {
                sent_frames: live.get(Outcome::Sent),
                sent_bytes: live.sent_bytes.get(),
                dropped_frames: live.drops(),
                ..status
            });
        v1::TransmitStatus {
            delivered_frames: self.delivered.get(),
            copied_frames: self.total.get(Outcome::Copied),
            sent_frames: self.total.get(Outcome::Sent),
            sent_bytes: self.total.sent_bytes.get(),
            lapped_frames: self.lapped.get(),
            truncated_frames: self.total.get(Outcome::Truncated),
            dropped_frames: self.total.drops(),
            rings,
            interfaces: interfaces.collect(),
            ..Default::default()
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
