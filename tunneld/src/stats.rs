//! What a tunnel tells of itself while it runs: totals that its thread adds to once per burst, and details that it rewrites
//! when something changed and a few times a second.

use fluxcap_datapath::{FeedLive, OutcomeLive};
use fluxcap_headers::tunnel::Reject;
use fluxcap_proto::v1;
use fluxcap_ring::{DropReason, Outcome};
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
pub(crate) struct Drops([Counter; Cause::COUNT]);

/// Why a packet that was received is in no ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The format forbids it.
    Reject(Reject),
    /// Its sender is none of those listened to.
    Sender,
    /// No ring is named for its identifier.
    UnknownId,
    /// A later one of its stream came before it, and the tunnel wants them in order.
    OutOfOrder,
    /// Its ring, or the edits before that, does not take it.
    Ring(DropReason),
}

/// The causes in the order of [`Cause::index`]: those of the format, those of the tunnel, those of a ring.
const TUNNEL: [(Cause, &str); 3] = [
    (Cause::Sender, "src_denied"),
    (Cause::UnknownId, "unknown_id"),
    (Cause::OutOfOrder, "out_of_order"),
];

impl Cause {
    /// How many there are.
    pub(crate) const COUNT: usize = Reject::ALL.len() + TUNNEL.len() + DropReason::ALL.len();

    /// Its place in an array of counters.
    pub(crate) fn index(self) -> usize {
        let tunnel = Reject::ALL.len();
        match self {
            Cause::Reject(reject) => reject.index(),
            Cause::Sender => tunnel,
            Cause::UnknownId => tunnel + 1,
            Cause::OutOfOrder => tunnel + 2,
            Cause::Ring(reason) => tunnel + TUNNEL.len() + reason.index(),
        }
    }

    /// The words for them in the API, in the order of [`Cause::index`].
    fn names() -> impl Iterator<Item = &'static str> {
        let format = Reject::ALL.iter().map(|reject| reject.as_str());
        let tunnel = TUNNEL.iter().map(|(_, name)| *name);
        let ring = DropReason::ALL.iter().map(|reason| reason.as_str());
        format.chain(tunnel).chain(ring)
    }
}

impl Drops {
    /// Adds what one burst came to, by [`Cause::index`].
    pub(crate) fn add(&self, counts: &[u32; Cause::COUNT]) {
        for (counter, &n) in self.0.iter().zip(counts) {
            if n != 0 {
                counter.add(n.into());
            }
        }
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
        nonzero(Cause::names().zip(self.drops.0.iter().map(Counter::get)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_place_and_a_name_of_its_own() {
        let format = Reject::ALL.iter().map(|reject| Cause::Reject(*reject));
        let ring = DropReason::ALL.iter().map(|reason| Cause::Ring(*reason));
        let causes = format.chain(TUNNEL.map(|(cause, _)| cause)).chain(ring);
        assert!(causes.map(Cause::index).eq(0..Cause::COUNT));
        let mut names: Vec<_> = Cause::names().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::COUNT);
    }
}
