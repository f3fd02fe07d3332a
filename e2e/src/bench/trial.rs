//! One trial: so many frames a second for so long, and what became of them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::bed::Bed;
use crate::bench::frame::Mix;
use crate::bench::histogram::Histogram;
use crate::bench::machine;
use crate::bench::sink::{Arrived, Orders};
use crate::bench::source::{Load, Sent};

/// Time between two looks at the sinks while frames are on their way.
const LOOK: Duration = Duration::from_millis(1);
/// When nothing has arrived for so long beyond what the system holds back, what is missing is lost.
const QUIET: Duration = Duration::from_millis(150);
/// When the last frames come out after this share of the trial, the rate was more than the system can do, and its buffers hid that.
const LATE: u32 = 10;
/// Latencies taken in a second, about.
const SAMPLES: f64 = 50_000.0;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Lengths of the frames.
    pub mix: Mix,
    /// Frames per second, all inputs together.
    pub rate: f64,
    /// How long to send.
    pub duration: Duration,
    /// How long the system holds the last frames back even when it has nothing else to do.
    pub held_back: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Frames offered, all inputs together.
    pub frames: u64,
    /// Of these, frames for which the input had no room.
    pub refused: u64,
    /// How long sending took.
    pub elapsed: Duration,
    /// From the end of sending to the last arrival, less the time for which the system always holds frames back.
    pub drain: Duration,
    /// Frames that arrived at each output.
    pub received: Vec<u64>,
    /// Those of them that had arrived when sending ended, at the output with the fewest.
    pub in_time: u64,
    /// Frames that had arrived before, at all outputs.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames with wrong fields or length.
    pub corrupt: u64,
    /// Frames that the bench did not send.
    pub foreign: u64,
    /// From source to sink, of all outputs.
    pub latency: Histogram,
    /// CPU time of the whole machine, until the last arrival.
    pub busy: Duration,
}

impl Outcome {
    /// Frames per second that were offered.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn offered_rate(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Frames per second that the output with the fewest got, until the last of them.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn delivered_rate(&self) -> f64 {
        let time = self.elapsed + self.drain;
        let fewest = self.received.iter().min().copied().unwrap_or(0);
        fewest as f64 / time.as_secs_f64().max(1e-9)
    }

    /// The same while frames were being sent, without what buffers held at the end.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn rate_while_sending(&self) -> f64 {
        self.in_time as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Frames that did not arrive, at all outputs.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let missing = |received: &u64| self.frames.saturating_sub(*received);
        self.received.iter().map(missing).sum()
    }

    /// Frames that arrived twice, late or damaged.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.duplicates + self.reordered + self.corrupt
    }

    /// Whether all frames arrived, and in time.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.lost() == 0 && self.frames > 0 && self.drain <= self.elapsed / LATE
    }

    /// CPU time for a frame, in nanoseconds, beyond what the same load costs without a system.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub fn cpu_ns(&self, baseline: &Outcome) -> f64 {
        let each =
            |outcome: &Outcome| outcome.busy.as_secs_f64() * 1e9 / (outcome.frames as f64).max(1.0);
        each(self) - each(baseline)
    }
}

/// Makes the trial.
///
/// # Errors
/// When sources or sinks fail; a system that fails loses frames.
pub fn run(bed: &mut Bed, trial: Trial) -> Result<Outcome> {
    let run = bed.next_run();
    judge(bed, trial, run, false)
}

/// The same as run `run`, and the sinks pass frames on to the stack.
///
/// # Errors
/// As [`run`].
pub fn run_passing(bed: &mut Bed, trial: Trial, run: u16) -> Result<Outcome> {
    judge(bed, trial, run, true)
}

fn judge(bed: &mut Bed, trial: Trial, run: u16, pass: bool) -> Result<Outcome> {
    let sample = sample(trial.rate);
    for sink in &mut bed.sinks {
        sink.arm(Orders { run, pass, sample })?;
    }
    let busy = machine::busy()?;
    let sent = send(bed, run, trial)?;
    let arrived = look(bed)?;
    let in_time = arrived
        .iter()
        .map(|arrived| arrived.received)
        .min()
        .unwrap_or(0);
    let (arrived, drain) = drain(bed, arrived, &sent, trial.held_back)?;
    let busy = machine::busy()?.saturating_sub(busy);
    Ok(Outcome {
        in_time,
        ..outcome(&sent, arrived, drain, busy)
    })
}

/// The same without anything that could arrive: what sources, inputs and the machine itself cost.
///
/// # Errors
/// When sources fail.
pub fn run_baseline(bed: &mut Bed, trial: Trial) -> Result<Outcome> {
    let run = bed.next_run();
    let busy = machine::busy()?;
    let sent = send(bed, run, trial)?;
    let busy = machine::busy()?.saturating_sub(busy);
    Ok(outcome(&sent, Vec::new(), Duration::ZERO, busy))
}

/// All sources at once, each its share of the rate.
fn send(bed: &Bed, run: u16, trial: Trial) -> Result<Vec<Sent>> {
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let share = trial.rate / bed.sources.len() as f64;
    for source in &bed.sources {
        source.start(Load {
            run,
            mix: trial.mix,
            rate: share,
            duration: trial.duration,
        })?;
    }
    bed.sources
        .iter()
        .map(super::source::Source::join)
        .collect()
}

/// Waits until everything has arrived or nothing more does; returns what has, and how long the last of it took.
fn drain(
    bed: &Bed,
    mut arrived: Vec<Arrived>,
    sent: &[Sent],
    held_back: Duration,
) -> Result<(Vec<Arrived>, Duration)> {
    let wanted: u64 = sent.iter().map(|sent| sent.frames).sum();
    let total =
        |arrived: &[Arrived]| -> u64 { arrived.iter().map(|arrived| arrived.received).sum() };
    let (begin, mut last, mut count) = (Instant::now(), Duration::ZERO, total(&arrived));
    loop {
        let complete = arrived.iter().all(|arrived| arrived.received >= wanted);
        if complete || begin.elapsed() - last > held_back + QUIET {
            return Ok((arrived, last.saturating_sub(held_back)));
        }
        thread::sleep(LOOK);
        arrived = look(bed)?;
        let now = total(&arrived);
        if now != count {
            (count, last) = (now, begin.elapsed());
        }
    }
}

/// What has arrived at each output.
fn look(bed: &Bed) -> Result<Vec<Arrived>> {
    bed.sinks.iter().map(super::sink::Sink::arrived).collect()
}

fn outcome(sent: &[Sent], arrived: Vec<Arrived>, drain: Duration, busy: Duration) -> Outcome {
    let sum = |count: fn(&Arrived) -> u64| arrived.iter().map(count).sum();
    let mut latency = Histogram::new(&[]);
    for arrived in &arrived {
        latency.merge(&arrived.latency);
    }
    Outcome {
        frames: sent.iter().map(|sent| sent.frames).sum(),
        refused: sent.iter().map(|sent| sent.refused).sum(),
        elapsed: sent
            .iter()
            .map(|sent| sent.elapsed)
            .max()
            .unwrap_or_default(),
        drain,
        received: arrived.iter().map(|arrived| arrived.received).collect(),
        in_time: 0,
        duplicates: sum(|arrived| arrived.duplicates),
        reordered: sum(|arrived| arrived.reordered),
        corrupt: sum(|arrived| arrived.corrupt),
        foreign: sum(|arrived| arrived.foreign),
        latency,
        busy,
    }
}

/// Of how many frames the latency of one is taken: reading the clock for each of millions would be what is measured.
fn sample(rate: f64) -> u64 {
    let mut each = 1;
    #[expect(clippy::cast_precision_loss, reason = "a power of two")]
    while rate / each as f64 > SAMPLES * 2.0 {
        each *= 2;
    }
    each
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An outcome of a second with these frames, of which `received` arrived at the one output.
    pub(crate) fn second(frames: u64, received: u64) -> Outcome {
        let sent = Sent {
            frames,
            refused: 0,
            elapsed: Duration::from_secs(1),
        };
        let arrived = Arrived {
            received,
            duplicates: 0,
            reordered: 0,
            corrupt: 0,
            foreign: 0,
            latency: Histogram::new(&[]),
        };
        outcome(
            &[sent],
            vec![arrived],
            Duration::ZERO,
            Duration::from_millis(100),
        )
    }

    #[test]
    fn loss_and_lateness_are_not_lossless() {
        assert!(second(1000, 1000).is_lossless());
        assert!(!second(1000, 999).is_lossless());
        assert!(!second(0, 0).is_lossless());
        let mut late = second(1000, 1000);
        late.drain = Duration::from_secs(1);
        assert!(!late.is_lossless());
        assert!(late.delivered_rate() < 600.0);
    }

    #[test]
    fn cpu_is_what_goes_beyond_the_baseline() {
        let mut with = second(1_000, 1_000);
        with.busy = Duration::from_millis(3);
        let mut without = second(500, 0);
        without.busy = Duration::from_millis(1);
        assert!((with.cpu_ns(&without) - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn few_latencies_are_taken_at_high_rates() {
        assert_eq!(
            [sample(1e3), sample(1e5), sample(1.1e5), sample(1e6)],
            [1, 1, 2, 16]
        );
    }
}
