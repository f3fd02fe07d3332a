//! The data path of a transmit: frames from the rings -> edits -> one burst to the interfaces -> an outcome for each frame and
//! interface. Nothing here logs or locks, and nothing is allocated once the buffers have grown to hold a burst. The frames are private
//! copies that the ring has vouched for already.

use crate::stats::TransmitLive;
use fluxcap_datapath::{Feed, MAX_LANES, Outcomes, Outputs, Pick, outcome_of, recycle};
use fluxcap_headers::{Edited, Edits, WireFrame};
use fluxcap_ring::Outcome;
use fluxcap_socket::{MAX_OUTPUTS, Outgoing};

/// What a burst came to.
#[derive(Default)]
struct Tally {
    /// For each feed.
    feeds: [Outcomes; MAX_LANES],
    /// For each output.
    outputs: [Outcomes; MAX_OUTPUTS],
}

impl Tally {
    /// A frame that ended before it came to an output.
    fn add(&mut self, feed: usize, outcome: Outcome) {
        if let Some(outcomes) = self.feeds.get_mut(feed) {
            outcomes.add(outcome);
        }
    }

    fn add_at(&mut self, output: usize, feed: usize, outcome: Outcome) {
        self.add(feed, outcome);
        self.outputs[output].add(outcome);
    }
}

/// Memory for bursts, used over and over.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    edited: Vec<Entry<'static>>,
    outgoing: Vec<Outgoing<'static>>,
}

/// A frame as it will be on the wire.
#[derive(Debug)]
struct Entry<'f> {
    frame: WireFrame<'f>,
    feed: usize,
    outputs: u16,
}

/// Edits and sends the picked frames, in order, and settles what became of each.
/// Returns false when an interface turned out to be down or gone.
pub(crate) fn send(
    picks: &[Pick],
    feeds: &mut [Feed],
    edits: &mut Edits,
    truncate: bool,
    outputs: &mut Outputs,
    buffers: &mut Buffers,
    live: &TransmitLive,
) -> bool {
    let mut tally = Tally::default();
    let mut edited: Vec<Entry<'_>> = std::mem::take(&mut buffers.edited);
    for pick in picks {
        match edit(pick, feeds, edits) {
            Ok(frame) => address(frame, pick.feed, truncate, outputs, &mut edited, &mut tally),
            Err(outcome) => tally.add(pick.feed, outcome),
        }
    }
    let mut outgoing: Vec<Outgoing<'_>> = std::mem::take(&mut buffers.outgoing);
    outgoing.extend(edited.iter().map(|entry| Outgoing {
        pieces: entry.frame.pieces(),
        outputs: entry.outputs,
    }));
    let alive = outgoing.is_empty() || outputs.send(&mut outgoing);
    if !outgoing.is_empty() {
        count(&edited, outputs, &mut tally, live);
    }
    buffers.outgoing = recycle(outgoing);
    buffers.edited = recycle(edited);
    settle(picks, feeds, &tally, outputs, live);
    alive
}

/// One frame, edited; or how it ended.
fn edit<'f>(pick: &Pick, feeds: &'f [Feed], edits: &mut Edits) -> Result<WireFrame<'f>, Outcome> {
    let frame = feeds
        .get(pick.feed)
        .and_then(|feed| feed.frame(pick.frame))
        .ok_or(Outcome::Other)?;
    match edits.apply(WireFrame::new(frame.data, frame.meta.wire_len)) {
        Edited::Keep(frame) => Ok(frame),
        Edited::Filtered => Err(Outcome::Filtered),
        Edited::SampledOut => Err(Outcome::SampledOut),
        Edited::Malformed => Err(Outcome::Malformed),
    }
}

/// Enters a frame for all outputs that take it; one that is too long for some of them, cut for each of these.
fn address<'f>(
    frame: WireFrame<'f>,
    feed: usize,
    truncate: bool,
    outputs: &Outputs,
    edited: &mut Vec<Entry<'f>>,
    tally: &mut Tally,
) {
    let tagged = is_8021q(&frame);
    let mut whole = 0;
    for (place, output) in outputs.list().iter().enumerate() {
        let longest = output.longest(tagged);
        if place > 0 {
            tally.add(feed, Outcome::Copied);
        }
        if let Some(outcome) = output.closed() {
            tally.add_at(place, feed, outcome);
        } else if frame.len() <= longest {
            whole |= 1 << place;
        } else if truncate {
            tally.add_at(place, feed, Outcome::Truncated);
            let mut frame = frame;
            frame.slice(u32::try_from(longest).unwrap_or(u32::MAX));
            edited.push(Entry {
                frame,
                feed,
                outputs: 1 << place,
            });
        } else {
            tally.add_at(place, feed, Outcome::Oversize);
        }
    }
    if whole != 0 {
        edited.push(Entry {
            frame,
            feed,
            outputs: whole,
        });
    }
}

/// Whether the outer tag is one for which the kernel allows four bytes more; it does so for this TPID only.
fn is_8021q(frame: &WireFrame<'_>) -> bool {
    frame.outer_tag().is_some_and(|tag| tag.tpid == 0x8100)
}

/// Counts what became of the frames that were sent.
fn count(edited: &[Entry<'_>], outputs: &Outputs, tally: &mut Tally, live: &TransmitLive) {
    for (place, output) in outputs.list().iter().enumerate() {
        let Some(report) = outputs.reports().get(place) else {
            continue;
        };
        let mut sent = 0;
        for (at, entry) in edited.iter().enumerate() {
            if entry.outputs & (1 << place) != 0 {
                tally.add_at(place, entry.feed, outcome_of(report.fate(at)));
                sent += 1;
            }
        }
        if sent > 0 {
            output.live.sent_bytes.add(report.sent_bytes);
            live.total.sent_bytes.add(report.sent_bytes);
        }
    }
}

/// Adds the burst's figures to the books of each ring and to the live ones.
fn settle(
    picks: &[Pick],
    feeds: &mut [Feed],
    tally: &Tally,
    outputs: &Outputs,
    live: &TransmitLive,
) {
    for (at, (feed, outcomes)) in feeds.iter_mut().zip(&tally.feeds).enumerate() {
        let picked = picks.iter().filter(|pick| pick.feed == at).count();
        if picked == 0 {
            continue;
        }
        feed.finish(picked);
        // Copies first: killed in between, more may be missing than was counted as delivered, never less.
        let copied = outcomes.get(Outcome::Copied);
        if copied != 0 {
            feed.settle(Outcome::Copied, copied);
        }
        for (outcome, n) in outcomes.iter() {
            if outcome != Outcome::Copied {
                feed.settle(outcome, n);
            }
            live.total.add(outcome, n);
        }
    }
    for (output, outcomes) in outputs.list().iter().zip(&tally.outputs) {
        let outcomes = outcomes.iter();
        outcomes.for_each(|(outcome, n)| output.live.add(outcome, n));
    }
}
