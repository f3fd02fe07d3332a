//! What a transmit tells of itself while it runs: totals that its thread adds to once per burst, and details that it rewrites
//! when something changed and a few times a second.

use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use fluxcap_service::Counter;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters and details of one transmit since its thread began. Each ring's reader slot holds the ones that outlive the daemon.
#[derive(Debug, Default)]
pub(crate) struct TransmitLive {
    /// Frames taken out of the rings.
    pub(crate) delivered: Counter,
    /// Bytes that left at the interface.
    pub(crate) sent_bytes: Counter,
    /// Frames overwritten in a ring before this transmit came to them.
    pub(crate) lapped: Counter,
    outcomes: [Counter; Outcome::ALL.len()],
    details: Mutex<Details>,
}

/// What is shown besides counters.
#[derive(Debug, Default, Clone)]
pub(crate) struct Details {
    /// The interface, without counters.
    pub(crate) output: v1::TransmitInterfaceStatus,
    /// The rings.
    pub(crate) rings: Vec<v1::TransmitRingStatus>,
}

impl TransmitLive {
    /// Adds `n` frames that ended as `outcome`.
    pub(crate) fn add_outcome(&self, outcome: Outcome, n: u64) {
        self.outcomes[outcome.index()].add(n);
    }

    /// Replaces what is shown.
    pub(crate) fn set_details(&self, details: Details) {
        *self.details() = details;
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()].get()
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> v1::TransmitStatus {
        let is_drop = |o: Outcome| o.is_terminal() && o != Outcome::Sent;
        let dropped_frames: BTreeMap<String, u64> = Outcome::ALL
            .iter()
            .zip(&self.outcomes)
            .filter(|(o, n)| is_drop(**o) && n.get() != 0)
            .map(|(outcome, n)| (outcome.as_str().to_owned(), n.get()))
            .collect();
        let details = self.details().clone();
        let output = v1::TransmitInterfaceStatus {
            sent_frames: self.outcome(Outcome::Sent),
            sent_bytes: self.sent_bytes.get(),
            dropped_frames: dropped_frames.clone(),
            ..details.output
        };
        v1::TransmitStatus {
            delivered_frames: self.delivered.get(),
            sent_frames: self.outcome(Outcome::Sent),
            sent_bytes: self.sent_bytes.get(),
            lapped_frames: self.lapped.get(),
            truncated_frames: self.outcome(Outcome::Truncated),
            dropped_frames,
            rings: details.rings,
            interfaces: vec![output],
            ..Default::default()
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
