//! What a tunnel tells of itself while it runs: totals that its thread adds to once per burst, and details that it rewrites
//! when something changed and a few times a second.

#![allow(dead_code, reason = "the two data paths, which fill this, come next")]

use fluxcap_datapath::{FeedLive, OutcomeLive};
use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use fluxcap_service::Counter;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters and details of one tunnel since its thread began; those of the other direction stay at zero.
#[derive(Debug, Default)]
pub(crate) struct TunnelLive {
    /// From rings into the tunnel.
    pub(crate) send: SendLive,
    /// From the tunnel into rings.
    pub(crate) receive: ReceiveLive,
    details: Mutex<Details>,
}

/// Totals of a sending tunnel.
#[derive(Debug, Default)]
pub(crate) struct SendLive {
    /// What came out of the rings.
    pub(crate) rings: FeedLive,
    /// What became of it; the bytes are those of outer packets from their IP header on.
    pub(crate) frames: OutcomeLive,
    /// Outer packets that went as fragments.
    pub(crate) fragmented: Counter,
    /// These fragments.
    pub(crate) fragments: Counter,
}

/// Totals of a receiving tunnel.
#[derive(Debug, Default)]
pub(crate) struct ReceiveLive {
    /// Packets that the sockets gave.
    pub(crate) packets: Counter,
    /// Their bytes behind the outer IP or UDP header.
    pub(crate) bytes: Counter,
    /// Frames that are in a ring.
    pub(crate) published: Counter,
    /// Frames shorter than on the wire.
    pub(crate) truncated: Counter,
    /// Packets that are in no ring.
    pub(crate) drops: Drops,
}

/// Counts by reason.
#[derive(Debug, Default)]
pub(crate) struct Drops([Counter; Cause::ALL.len()]);

/// Why a packet that was received is in no ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its sender is none of those listened to.
    Sender,
    /// No ring is there for its identifier.
    UnknownId,
    /// The filter does not want it.
    Filtered,
    /// The sample does not want it.
    Sampled,
    /// The ring cannot take it.
    Ring,
}

impl Cause {
    /// All causes.
    pub(crate) const ALL: [Cause; 5] = [
        Cause::Sender,
        Cause::UnknownId,
        Cause::Filtered,
        Cause::Sampled,
        Cause::Ring,
    ];

    /// The word for it in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Cause::Sender => "sender",
            Cause::UnknownId => "unknown_id",
            Cause::Filtered => "filtered",
            Cause::Sampled => "sampled",
            Cause::Ring => "ring",
        }
    }
}

impl Drops {
    /// Adds `n` packets dropped because of `cause`.
    pub(crate) fn add(&self, cause: Cause, n: u64) {
        self.0[cause as usize].add(n);
    }

    fn get(&self, cause: Cause) -> u64 {
        self.0[cause as usize].get()
    }
}

/// What is shown besides totals: the message of the direction, whose totals are filled in here.
#[derive(Debug, Default, Clone)]
pub(crate) enum Details {
    /// Nothing yet.
    #[default]
    None,
    /// Rings, path.
    Send(v1::TunnelSendStatus),
    /// Sockets, rings, senders.
    Receive(v1::TunnelReceiveStatus),
}

impl SendLive {
    fn fill(&self, status: v1::TunnelSendStatus) -> v1::TunnelSendStatus {
        v1::TunnelSendStatus {
            delivered_frames: self.rings.delivered.get(),
            lapped_frames: self.rings.lapped.get(),
            sent_frames: self.frames.get(Outcome::Sent),
            sent_bytes: self.frames.sent_bytes.get(),
            truncated_frames: self.frames.get(Outcome::Truncated),
            fragmented_frames: self.fragmented.get(),
            fragments: self.fragments.get(),
            ..status
        }
    }
}

impl ReceiveLive {
    fn drops(&self) -> BTreeMap<String, u64> {
        nonzero(Cause::ALL.iter().map(|d| (d.as_str(), self.drops.get(*d))))
    }

    fn fill(&self, status: v1::TunnelReceiveStatus) -> v1::TunnelReceiveStatus {
        v1::TunnelReceiveStatus {
            received_packets: self.packets.get(),
            received_bytes: self.bytes.get(),
            published_frames: self.published.get(),
            truncated_frames: self.truncated.get(),
            ..status
        }
    }
}

impl TunnelLive {
    /// Replaces what is shown.
    pub(crate) fn set_details(&self, details: Details) {
        *self.details() = details;
    }

    /// The status message without state and reason, which the registry knows.
    pub(crate) fn to_status(&self) -> v1::TunnelStatus {
        // The details are copied first: what they say was received is never more than the totals.
        let details = self.details().clone();
        match details {
            Details::None => v1::TunnelStatus::default(),
            Details::Send(status) => v1::TunnelStatus {
                dropped_frames: self.send.frames.drops(),
                send: Some(self.send.fill(status)),
                ..Default::default()
            },
            Details::Receive(status) => v1::TunnelStatus {
                dropped_frames: self.receive.drops(),
                receive: Some(self.receive.fill(status)),
                ..Default::default()
            },
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nonzero<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    counts
        .filter(|(_, n)| *n != 0)
        .map(|(name, n)| (name.to_owned(), n))
        .collect()
}
