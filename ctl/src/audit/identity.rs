//! The accounting identity, stage by stage.

use crate::output::count;
use fluxcap_proto::v1::{Mirror, MirrorStatus, Tunnel, TunnelReceiveStatus};
use fluxcap_ring::{Outcome, ReaderStats, RingStats, SourceStats};
use serde::Serialize;
use std::time::Duration;

/// Frames that may be between two counters of a running process: a burst or a batch.
const IN_HAND: u64 = 65_536;
/// Frames that may lie in the kernel's buffer of one interface: 1 GiB of the shortest.
const IN_KERNEL: u64 = 1 << 24;

/// Whether frames can be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing has moved for a while.
    Still,
    /// Traffic flows.
    Moving,
}

/// What is said of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Every frame is accounted for.
    Ok,
    /// Not zero, but no more than can be on the way.
    InFlight,
    /// Not zero, and the note says why that is no riddle.
    Explained,
    /// No sum, but something to know.
    Info,
    /// Who could tell does not answer.
    Unknown,
    /// Frames are missing, or too many.
    Failed,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::InFlight => "in flight",
            Verdict::Explained => "explained",
            Verdict::Info => "info",
            Verdict::Unknown => "unknown",
            Verdict::Failed => "FAILED",
        }
    }
}

/// One stage: `residual = upstream - downstream - drops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) stage: &'static str,
    pub(super) ring: String,
    /// The interface or the reader, or "all sources".
    pub(super) object: String,
    pub(super) upstream: u64,
    pub(super) downstream: u64,
    pub(super) drops: u64,
    /// Saturated.
    pub(super) residual: i64,
    /// The largest residual that can be in flight now.
    pub(super) bound: u64,
    pub(super) verdict: Verdict,
    pub(super) note: String,
}

impl Line {
    /// A part of the account that nobody tells.
    pub(super) fn unknown(
        stage: &'static str,
        ring: String,
        object: impl Into<String>,
        note: String,
    ) -> Line {
        Line {
            stage,
            ring,
            object: object.into(),
            upstream: 0,
            downstream: 0,
            drops: 0,
            residual: 0,
            bound: 0,
            verdict: Verdict::Unknown,
            note,
        }
    }
}

/// What one stage is judged by.
struct Sum {
    stage: &'static str,
    object: String,
    /// From the second look.
    upstream: u64,
    /// From the first look.
    downstream: u64,
    drops: u64,
    /// The largest residual while traffic flows.
    bound: u64,
    /// A reason for a residual that is no defect; empty when there is none.
    excuse: String,
}

impl Sum {
    fn of_reader(label: &str) -> Sum {
        Sum {
            stage: "I4 reader",
            object: label.to_owned(),
            upstream: 0,
            downstream: 0,
            drops: 0,
            bound: 0,
            excuse: String::new(),
        }
    }

    fn add(&mut self, other: &Sum) {
        self.upstream = self.upstream.saturating_add(other.upstream);
        self.downstream = self.downstream.saturating_add(other.downstream);
        self.drops = self.drops.saturating_add(other.drops);
    }

    /// Adds the places that a reader has in earlier epochs. Where it has gone on from one (`left`), it must have passed all of that.
    fn add_past(&mut self, label: &str, past: &[RingStats], mut left: bool) {
        for ring in past.iter().rev() {
            let Some(place) = ring.readers.iter().find(|place| place.label == label) else {
                continue;
            };
            let mut sum = passed(place, place, ring);
            if left {
                let end = ring.last_seq.saturating_add(1);
                sum.upstream = end.wrapping_sub(place.attach_seq);
            }
            left |= place.next_seq > 1;
            self.add(&sum);
        }
    }

    fn line(self, ring: &str, moment: Moment) -> Line {
        let residual =
            i128::from(self.upstream) - i128::from(self.downstream) - i128::from(self.drops);
        let limit = if residual < 0 { i64::MIN } else { i64::MAX };
        let residual = i64::try_from(residual).unwrap_or(limit);
        let bound = if moment == Moment::Moving {
            self.bound
        } else {
            0
        };
        let verdict = match residual {
            0 => Verdict::Ok,
            _ if residual > 0 && residual.unsigned_abs() <= bound => Verdict::InFlight,
            _ if !self.excuse.is_empty() && residual.unsigned_abs() <= self.bound => {
                Verdict::Explained
            }
            _ => Verdict::Failed,
        };
        Line {
            stage: self.stage,
            ring: ring.to_owned(),
            object: self.object,
            upstream: self.upstream,
            downstream: self.downstream,
            drops: self.drops,
            residual,
            bound,
            verdict,
            note: if verdict == Verdict::Explained {
                self.excuse
            } else {
                String::new()
            },
        }
    }
}

/// All stages of a ring from two looks at it, `a` before `b`, and from a look before `b` at the `past`: the epochs that readers have not
/// passed yet, oldest first. `silent` says which daemons do not answer: what they have in hand is not counted yet.
pub(super) fn lines(
    a: &RingStats,
    b: &RingStats,
    past: &[RingStats],
    moment: Moment,
    silent: impl Fn(&str) -> bool,
) -> Vec<Line> {
    // A ring that was replaced in between is a new account.
    let a = if a.info.epoch == b.info.epoch { a } else { b };
    let wire = b.sources.iter().filter_map(|source| wire(source, b));
    let wire: Vec<Line> = wire.collect();
    let mut sums: Vec<Sum> = b.sources.iter().filter_map(kernel).collect();
    if !b.sources.is_empty() {
        let gone = producer_gone(b, &silent);
        sums.push(producer(a, b, gone.clone()));
        sums.push(published(a, b, gone));
    }
    for reader in &b.readers {
        let earlier = a
            .readers
            .iter()
            .find(|other| same_reader(other, reader))
            .unwrap_or(reader);
        let mut sum = passed(earlier, reader, b);
        sum.add_past(&reader.label, past, reader.next_seq > 1);
        sums.push(sum);
        let mut sum = outcomes(earlier, reader, &silent);
        for place in places(past, &reader.label) {
            sum.add(&outcomes(place, place, &silent));
        }
        sums.push(sum);
    }
    for reader in only_in_the_past(b, past) {
        let mut sum = Sum::of_reader(&reader.label);
        sum.add_past(&reader.label, past, false);
        sums.push(sum);
    }
    let ring = b.info.name.to_string();
    let order = (!b.sources.is_empty()).then(|| order(b));
    let sums = sums.into_iter().map(|sum| sum.line(&ring, moment));
    wire.into_iter().chain(sums).chain(order).collect()
}

/// I0: frames that passed an interface = taken in by the kernel for its capture + missed, while nobody captured. What was missed is found out by the
/// interface's own counters; where those do not tell, it is not known.
fn wire(source: &SourceStats, ring: &RingStats) -> Option<Line> {
    let missed = source.missed;
    if !is_socket(source) && missed == 0 && source.unwatched_ns == 0 {
        return None;
    }
    let sum = Sum {
        stage: "I0 wire",
        object: source.name.clone(),
        upstream: source.kernel_frames.saturating_add(missed),
        downstream: source.kernel_frames,
        drops: missed,
        bound: 0,
        excuse: String::new(),
    };
    let mut line = sum.line(ring.info.name.as_str(), Moment::Still);
    line.note = match (missed, source.unwatched_ns) {
        (0, 0) => String::new(),
        (missed, 0) => format!("{} frames passed while nobody captured", count(missed)),
        (_, ns) => {
            line.verdict = Verdict::Unknown;
            let seconds = Duration::from_nanos(ns).as_secs_f64();
            format!("not watched for {seconds:.2} s, and no counter tells what passed")
        }
    };
    Some(line)
}

/// A source that is no socket has no counters of the kernel.
fn is_socket(source: &SourceStats) -> bool {
    source.kernel_frames > 0 || source.kernel_drops > 0
}

/// Whether the frames stand in the ring in the order of their times. Nothing is lost when they do not.
fn order(ring: &RingStats) -> Line {
    let (published, late) = (ring.published_frames, ring.late_frames);
    let (verdict, note) = match late {
        0 => (Verdict::Ok, "in the order of their times".to_owned()),
        late => (
            Verdict::Info,
            format!("{} frames stand behind later ones", count(late)),
        ),
    };
    Line {
        stage: "order",
        ring: ring.info.name.to_string(),
        object: "all sources".to_owned(),
        upstream: published,
        downstream: published,
        drops: 0,
        residual: 0,
        bound: 0,
        verdict,
        note,
    }
}

/// I1: frames that the kernel took in = received + kernel drops. The producer takes all three at the same time.
fn kernel(source: &SourceStats) -> Option<Sum> {
    is_socket(source).then(|| Sum {
        stage: "I1 kernel",
        object: source.name.clone(),
        upstream: source.kernel_frames,
        downstream: source.received_at_read,
        drops: source.kernel_drops,
        bound: IN_KERNEL,
        excuse: match source.uncertain {
            0 => String::new(),
            times => format!(
                "a producer was killed {times} times: its last kernel counters are not known"
            ),
        },
    })
}

/// I2: received = published + drops by reason.
fn producer(a: &RingStats, b: &RingStats, gone: String) -> Sum {
    Sum {
        stage: match holder(b) {
            Some("tunneld") => "I2 tunneld",
            Some("mirrord") => "I2 mirrord",
            _ => "I2 rxd",
        },
        object: "all sources".to_owned(),
        upstream: received(b),
        downstream: published_by_sources(a),
        drops: total(a.drops.iter().map(|(_, frames)| *frames)),
        bound: IN_HAND.saturating_add(moved(a, b)),
        excuse: gone,
    }
}

/// I3: published by the sources = sequence numbers given out.
fn published(a: &RingStats, b: &RingStats, gone: String) -> Sum {
    Sum {
        stage: "I3 ring",
        object: "all sources".to_owned(),
        upstream: published_by_sources(b),
        downstream: a.published_frames,
        drops: 0,
        bound: IN_HAND.saturating_add(moved(a, b)),
        excuse: gone,
    }
}

/// The places of a reader in earlier epochs.
fn places<'a>(past: &'a [RingStats], label: &'a str) -> impl Iterator<Item = &'a ReaderStats> {
    let readers = past.iter().flat_map(|ring| &ring.readers);
    readers.filter(move |place| place.label == label)
}

/// Readers that have a place in an earlier epoch and none in the ring of today, each once.
fn only_in_the_past<'a>(ring: &RingStats, past: &'a [RingStats]) -> Vec<&'a ReaderStats> {
    let mut found: Vec<&ReaderStats> = Vec::new();
    for place in past.iter().flat_map(|ring| &ring.readers) {
        let same = |other: &ReaderStats| other.label == place.label;
        if !ring.readers.iter().any(same) && !found.iter().any(|it| same(it)) {
            found.push(place);
        }
    }
    found
}

/// I4: frames passed by a reader = delivered + lapped + corrupt + skipped. Over all epochs: where it began lies before the first
/// frame of this one, and wraps, when there were others.
fn passed(earlier: &ReaderStats, reader: &ReaderStats, ring: &RingStats) -> Sum {
    // A reader ahead of the ring was given frames that were never published: so many too many.
    let end = reader.next_seq.min(ring.last_seq.saturating_add(1));
    Sum {
        upstream: end.wrapping_sub(reader.attach_seq),
        downstream: earlier.delivered,
        drops: total([earlier.lapped, earlier.corrupt, earlier.skipped]),
        bound: reader.next_seq.saturating_sub(earlier.next_seq),
        ..Sum::of_reader(&reader.label)
    }
}

/// I5: delivered, and copied for further interfaces = sent or written + drops by outcome. I7 is the same of a tunnel.
fn outcomes(earlier: &ReaderStats, reader: &ReaderStats, silent: &impl Fn(&str) -> bool) -> Sum {
    let arrived = |outcome: &Outcome| matches!(outcome, Outcome::Sent | Outcome::Written);
    let terminal = || {
        earlier
            .outcomes
            .iter()
            .filter(|(outcome, _)| outcome.is_terminal())
    };
    Sum {
        stage: match first_word(&reader.label) {
            "tunneld" => "I7 encap",
            _ => "I5 output",
        },
        object: reader.label.clone(),
        upstream: to_be_settled(reader),
        downstream: total(
            terminal()
                .filter(|(outcome, _)| arrived(outcome))
                .map(|(_, frames)| *frames),
        ),
        drops: total(
            terminal()
                .filter(|(outcome, _)| !arrived(outcome))
                .map(|(_, frames)| *frames),
        ),
        bound: IN_HAND.saturating_add(to_be_settled(reader).saturating_sub(to_be_settled(earlier))),
        excuse: match (reader.live, silent(first_word(&reader.label))) {
            (true, false) => String::new(),
            (true, true) => {
                "the reader does not answer; what it has in hand is counted when it goes on"
                    .to_owned()
            }
            (false, _) => {
                "the reader is gone; what it had in hand is counted when it resumes".to_owned()
            }
        },
    }
}

/// Frames that were delivered and copies that were made of them: each has an outcome of its own.
fn to_be_settled(reader: &ReaderStats) -> u64 {
    let copied = |(outcome, frames): &(Outcome, u64)| match outcome {
        Outcome::Copied => *frames,
        _ => 0,
    };
    total(
        [reader.delivered]
            .into_iter()
            .chain(reader.outcomes.iter().map(copied)),
    )
}

/// I6: packets that a tunnel received = published into its rings + drops by reason. What the daemon tells of itself; each of
/// its rings is judged apart. None for one that sends.
pub(super) fn decap(a: &Tunnel, b: &Tunnel, moment: Moment) -> Option<Line> {
    let receives = |tunnel: &Tunnel| tunnel.spec.as_ref().is_some_and(|it| it.receive.is_some());
    let told = receiving(b);
    if told.is_none() && !receives(b) {
        return None;
    }
    // One that has not begun has received nothing.
    let (later, drops) = told.unwrap_or_default();
    let (earlier, dropped) = receiving(a).unwrap_or_else(|| (later.clone(), drops));
    let upstream = later.received_packets;
    let before = earlier.received_packets;
    let sum = Sum {
        stage: "I6 decap",
        object: format!("tunneld {}", b.name),
        upstream,
        downstream: earlier.published_frames,
        drops: dropped,
        bound: IN_HAND.saturating_add(upstream.saturating_sub(before)),
        excuse: String::new(),
    };
    Some(sum.line("", moment))
}

/// What a tunnel says that it received, and how much of that it dropped.
fn receiving(tunnel: &Tunnel) -> Option<(TunnelReceiveStatus, u64)> {
    let status = tunnel.status.as_ref()?;
    let drops = total(status.dropped_frames.values().copied());
    Some((status.receive.clone()?, drops))
}

/// I8: frames that a mirror saw, and further copies of them = mirrored + not selected + sampled out + rate limited + drops by
/// reason. What the programs in the kernel count.
pub(super) fn mirror(a: &Mirror, b: &Mirror, moment: Moment) -> Line {
    let object = format!("mirrord {}", b.name);
    let Some(later) = &b.status else {
        let note = "mirrord does not say what it counts".to_owned();
        return Line::unknown("I8 mirror", String::new(), object, note);
    };
    let earlier = a.status.as_ref().unwrap_or(later);
    let upstream = |it: &MirrorStatus| total([it.seen_frames, it.copied_frames]);
    let unwanted = [
        earlier.not_selected_frames,
        earlier.sampled_out_frames,
        earlier.rate_limited_frames,
    ];
    let sum = Sum {
        stage: "I8 mirror",
        object,
        upstream: upstream(later),
        downstream: earlier.mirrored_frames,
        drops: total(
            unwanted
                .into_iter()
                .chain(earlier.dropped_frames.values().copied()),
        ),
        bound: IN_HAND.saturating_add(upstream(later).saturating_sub(upstream(earlier))),
        excuse: String::new(),
    };
    sum.line("", moment)
}

/// The program that produces into a ring.
fn holder(ring: &RingStats) -> Option<&str> {
    Some(first_word(&ring.producer.as_ref()?.holder))
}

fn first_word(label: &str) -> &str {
    label.split(' ').next().unwrap_or(label)
}

fn total(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

fn received(stats: &RingStats) -> u64 {
    total(stats.sources.iter().map(|source| source.received))
}

fn published_by_sources(stats: &RingStats) -> u64 {
    total(stats.sources.iter().map(|source| source.published))
}

/// Frames that came in between two looks.
fn moved(a: &RingStats, b: &RingStats) -> u64 {
    let arrived = received(b).saturating_sub(received(a));
    arrived.max(b.published_frames.saturating_sub(a.published_frames))
}

/// Why frames may be missing at the producer, if there is a reason.
fn producer_gone(stats: &RingStats, silent: &impl Fn(&str) -> bool) -> String {
    match &stats.producer {
        Some(producer) if producer.live && silent(first_word(&producer.holder)) => {
            "the producer does not answer; what it has in hand is counted when it goes on"
        }
        Some(producer) if producer.live => "",
        _ => "the producer is gone; what it had in hand is counted when the next one takes over",
    }
    .to_owned()
}

fn same_reader(a: &ReaderStats, b: &ReaderStats) -> bool {
    (a.slot, &a.label, a.attach_seq) == (b.slot, &b.label, b.attach_seq)
}
