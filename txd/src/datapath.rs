//! The data path of a transmit: frames from the rings -> edits -> one burst to the interface -> an outcome for each frame.
//! Nothing here logs, locks or allocates. The frames are private copies that the ring has vouched for already.

use crate::feed::Feed;
use crate::merge::{MAX_LANES, Pick};
use crate::output::Output;
use crate::stats::TransmitLive;
use fluxcap_headers::{Edited, Edits, WireFrame};
use fluxcap_ring::Outcome;
use fluxcap_socket::{Fate, Outgoing, SendReport};

/// Frames sent at a time.
pub(crate) const BURST: usize = 64;

const OUTCOMES: usize = Outcome::ALL.len();

/// What a burst came to, for each feed.
struct Tally {
    outcomes: [[u16; OUTCOMES]; MAX_LANES],
    sent_bytes: u64,
}

impl Tally {
    fn add(&mut self, feed: usize, outcome: Outcome) {
        if let Some(outcomes) = self.outcomes.get_mut(feed) {
            outcomes[outcome.index()] += 1;
        }
    }
}

/// Edits and sends the picked frames, in order, and settles what became of each.
/// Returns false when the interface refused to go on; the frames left were settled as its state says.
pub(crate) fn send(
    picks: &[Pick],
    feeds: &mut [Feed],
    edits: &mut Edits,
    truncate: bool,
    output: &mut Output,
    report: &mut SendReport,
    live: &TransmitLive,
) -> bool {
    let mut tally = Tally {
        outcomes: [[0; OUTCOMES]; MAX_LANES],
        sent_bytes: 0,
    };
    let mut frames = [WireFrame::new(&[], 0); BURST];
    let mut owners = [0_usize; BURST];
    let mut count = 0;
    for pick in picks.iter().take(BURST) {
        match edit(pick, feeds, edits, truncate, output, &mut tally) {
            Ok(frame) => {
                (frames[count], owners[count]) = (frame, pick.feed);
                count += 1;
            }
            Err(outcome) => tally.add(pick.feed, outcome),
        }
    }
    let mut outgoing = [Outgoing::default(); BURST];
    for (outgoing, frame) in outgoing.iter_mut().zip(&frames[..count]) {
        (outgoing.pieces, outgoing.outputs) = (frame.pieces(), 1);
    }
    let alive = match output.ready() {
        Ok(backend) => {
            backend.send(&outgoing[..count], std::slice::from_mut(report));
            (0..count).for_each(|at| tally.add(owners[at], outcome(report.fate(at))));
            tally.sent_bytes = report.sent_bytes;
            !report.interrupted()
        }
        Err(unsendable) => {
            owners[..count]
                .iter()
                .for_each(|owner| tally.add(*owner, unsendable));
            true
        }
    };
    settle(picks, feeds, &tally, live);
    alive
}

/// One frame, edited; or how it ended before it could be sent.
fn edit<'f>(
    pick: &Pick,
    feeds: &'f [Feed],
    edits: &mut Edits,
    truncate: bool,
    output: &Output,
    tally: &mut Tally,
) -> Result<WireFrame<'f>, Outcome> {
    let frame = feeds
        .get(pick.feed)
        .and_then(|feed| feed.frame(pick.frame))
        .ok_or(Outcome::Other)?;
    let mut frame = match edits.apply(WireFrame::new(frame.data, frame.meta.wire_len)) {
        Edited::Keep(frame) => frame,
        Edited::Filtered => return Err(Outcome::Filtered),
        Edited::SampledOut => return Err(Outcome::SampledOut),
        Edited::Malformed => return Err(Outcome::Malformed),
    };
    let longest = output.longest(is_8021q(&frame));
    if frame.len() > longest {
        if !truncate {
            return Err(Outcome::Oversize);
        }
        frame.slice(u32::try_from(longest).unwrap_or(u32::MAX));
        tally.add(pick.feed, Outcome::Truncated);
    }
    Ok(frame)
}

/// Whether the outer tag is one for which the kernel allows four bytes more; it does so for this TPID only.
fn is_8021q(frame: &WireFrame<'_>) -> bool {
    frame.outer_tag().is_some_and(|tag| tag.tpid == 0x8100)
}

fn outcome(fate: Fate) -> Outcome {
    match fate {
        Fate::Sent => Outcome::Sent,
        Fate::NoBuffer => Outcome::Enobufs,
        Fate::Oversize => Outcome::Oversize,
        Fate::Malformed => Outcome::Malformed,
        Fate::LinkDown => Outcome::LinkDown,
        Fate::NoInterface => Outcome::NoInterface,
        Fate::Unreachable | Fate::Other => Outcome::Refused,
    }
}

/// Adds the burst's figures to the books of each ring and to the live ones.
fn settle(picks: &[Pick], feeds: &mut [Feed], tally: &Tally, live: &TransmitLive) {
    live.sent_bytes.add(tally.sent_bytes);
    for (at, (feed, outcomes)) in feeds.iter_mut().zip(&tally.outcomes).enumerate() {
        let picked = picks.iter().filter(|pick| pick.feed == at).count();
        if picked == 0 {
            continue;
        }
        feed.finish(picked);
        for (outcome, n) in Outcome::ALL.iter().zip(outcomes).filter(|(_, n)| **n != 0) {
            feed.settle(*outcome, u64::from(*n));
            live.add_outcome(*outcome, u64::from(*n));
        }
    }
}
