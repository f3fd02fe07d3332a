//! Measures what the plan says.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::bench::bed::Bed;
use crate::bench::checker::Checker;
use crate::bench::frame::Mix;
use crate::bench::machine::{cpu_of, memory_of, others};
use crate::bench::plan::{Cell, Effort, FIXED_RATE, LATENCY_RATES, Measure, Part};
use crate::bench::results::{Case, Sample, figure};
use crate::bench::search::{Found, Length, Search, search};
use crate::bench::sink::Dropper;
use crate::bench::system::{Running, System};
use crate::bench::trial::{self, Outcome, Trial};
use crate::bench::{stress, trial::run};

/// Where the first search of a system begins.
const FIRST: f64 = 250_000.0;
/// A system that could not be started so often is left out from then on.
const FAILED_STARTS: usize = 2;
/// Short trials of a search.
const TRIALS: usize = 10;
/// The same when something is known of another size or another kind of far end.
const TRIALS_FROM_HINT: usize = 7;
/// The same when the rate is known from the round before.
const TRIALS_AGAIN: usize = 3;
/// Overload is so many times the highest rate without loss.
pub(crate) const OVERLOAD: f64 = 2.0;
/// A soak is at this share of the highest rate without loss.
pub(crate) const SOAK_SHARE: f64 = 0.8;
/// Shares of the frames for which a latency is told.
const SHARES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];

/// Measures cells one after the other.
#[derive(Debug)]
pub struct Runner {
    effort: Effort,
    /// The rate that was last found for a system at a size: where to begin.
    hints: BTreeMap<(System, &'static str), f64>,
    last_size: &'static str,
    /// How often a system could not be started.
    failed_starts: BTreeMap<System, usize>,
    /// Everything so far.
    pub samples: Vec<Sample>,
}

/// Where a system has its turn.
#[derive(Clone, Copy)]
struct Place<'a> {
    cell: &'a Cell,
    mix: Mix,
    round: usize,
}

/// One turn of a system.
struct Turn<'a> {
    effort: Effort,
    bed: &'a mut Bed,
    mix: Mix,
    system: System,
    hint: Option<f64>,
    trials: usize,
    figures: BTreeMap<String, f64>,
    notes: Vec<String>,
    /// Trials that wait for the same without a system: the figure, the trial, what came of it.
    unpaid: Vec<(&'static str, Trial, Outcome)>,
    /// What the fixed rate costs without a system: the same for all.
    fixed_baseline: &'a mut Option<Outcome>,
    found: Option<Found>,
    started: bool,
    /// Tells what a frame costs from the wire on, too: for systems that spare the socket buffer.
    from_wire: bool,
}

impl Runner {
    /// Has measured nothing yet.
    #[must_use]
    pub fn new(effort: Effort) -> Runner {
        Runner {
            effort,
            hints: BTreeMap::new(),
            last_size: "",
            failed_starts: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// Measures a cell: for each size, all systems in turn, round after round. What fails is noted, and the rest is measured.
    pub fn cell(&mut self, cell: &Cell) {
        let mut bed = match guarded(|| Bed::new(cell.shape, cell.peer)) {
            Ok(bed) => bed,
            Err(error) => return eprintln!("{} {}: {error:#}", cell.shape, cell.peer.name()),
        };
        for mix in &cell.mixes {
            for round in 0..cell.rounds {
                let mut fixed_baseline = None;
                for &system in &cell.systems {
                    if self
                        .failed_starts
                        .get(&system)
                        .is_some_and(|times| *times >= FAILED_STARTS)
                    {
                        continue;
                    }
                    let place = Place {
                        cell,
                        mix: *mix,
                        round,
                    };
                    self.turn(&mut bed, place, system, &mut fixed_baseline);
                }
            }
        }
    }

    fn turn(
        &mut self,
        bed: &mut Bed,
        Place { cell, mix, round }: Place<'_>,
        system: System,
        fixed_baseline: &mut Option<Outcome>,
    ) {
        let case = Case {
            shape: cell.shape.to_string(),
            peer: cell.peer.name().to_owned(),
            size: mix.name.to_owned(),
            system: system.to_string(),
        };
        let known = |name| self.hints.get(&(system, name)).copied();
        let again = round > 0 && known(mix.name).is_some();
        let hint = known(mix.name).or_else(|| known(self.last_size));
        let begin = Instant::now();
        let mut turn = Turn {
            effort: self.effort,
            bed,
            mix,
            system,
            hint,
            trials: match hint {
                Some(_) if again => TRIALS_AGAIN,
                Some(_) => TRIALS_FROM_HINT,
                None => TRIALS,
            },
            figures: BTreeMap::new(),
            notes: Vec::new(),
            unpaid: Vec::new(),
            fixed_baseline,
            found: None,
            started: false,
            from_wire: cell.part == Part::Mirror,
        };
        let result = guarded(|| turn.take(&cell.measures));
        if !turn.started {
            *self.failed_starts.entry(system).or_default() += 1;
        }
        if let Some(found) = &turn.found {
            self.hints.insert((system, mix.name), found.rate);
            self.last_size = mix.name;
        }
        let sample = Sample {
            case,
            round,
            figures: turn.figures,
            notes: turn.notes,
            error: result.err().map(|error| format!("{error:#}")),
        };
        eprintln!("{} {:.1} s", line(&sample), begin.elapsed().as_secs_f64());
        self.samples.push(sample);
    }
}

impl Turn<'_> {
    /// Starts the system, measures, ends it, and measures what has to be taken off.
    fn take(&mut self, measures: &[Measure]) -> Result<()> {
        let mut running = self.system.start(self.bed)?;
        self.started = true;
        let begin = (Instant::now(), others()?);
        for measure in measures {
            match measure {
                Measure::Rate => self.rate(&mut running)?,
                Measure::Fixed => self.fixed(&mut running)?,
                Measure::Latency => self.latency()?,
                Measure::Overload => self.overload(&mut running)?,
                Measure::Check => self.check(&mut running)?,
                Measure::Soak(duration) => self.soak(&mut running, *duration)?,
                Measure::Idle => self.idle(&running)?,
            }
        }
        let others = others()?.saturating_sub(begin.1);
        self.set(
            figure::OTHERS,
            others.as_secs_f64() / begin.0.elapsed().as_secs_f64(),
        );
        drop(running);
        for (figure, trial, outcome) in std::mem::take(&mut self.unpaid) {
            if figure == figure::CPU && self.from_wire {
                let dropped = self.dropped(trial)?;
                self.set(figure::CPU_WIRE, outcome.cpu_ns(&dropped));
            }
            let known = self.fixed_baseline.take_if(|_| figure == figure::CPU_FIXED);
            let baseline = match known {
                Some(baseline) => baseline,
                None => trial::run_baseline(self.bed, trial)?,
            };
            self.set(figure, outcome.cpu_ns(&baseline));
            if figure == figure::CPU_FIXED {
                *self.fixed_baseline = Some(baseline);
            }
        }
        Ok(())
    }

    /// The same load, dropped at the inputs before socket buffers are made of it.
    fn dropped(&mut self, trial: Trial) -> Result<Outcome> {
        let inputs = self.bed.shape.input_names();
        let droppers = inputs
            .iter()
            .map(|input| Dropper::attach(&self.bed.host, input));
        let _droppers: Vec<Dropper> = droppers.collect::<Result<_>>()?;
        trial::run_baseline(self.bed, trial)
    }

    fn set(&mut self, figure: &str, number: f64) {
        self.figures.insert(figure.to_owned(), number);
    }

    fn trial(&self, rate: f64, duration: Duration) -> Trial {
        Trial {
            mix: self.mix,
            rate,
            duration,
            held_back: self.system.held_back(),
        }
    }

    fn rate(&mut self, running: &mut Running) -> Result<()> {
        let plan = Search {
            first: self.hint.unwrap_or(FIRST),
            stride: if self.hint.is_some() { 1.1 } else { 1.6 },
            close: self.effort.close,
            trials: self.trials,
        };
        let (short, long) = (self.effort.short, self.effort.long);
        let found = search(plan, |rate, length| {
            let duration = if length == Length::Short { short } else { long };
            run(
                self.bed,
                Trial {
                    mix: self.mix,
                    rate,
                    duration,
                    held_back: self.system.held_back(),
                },
            )
        })?;
        let Some(found) = found else {
            self.note_losses(running, 0, 1);
            bail!("loses frames at every rate that was tried");
        };
        self.set(figure::RATE, found.proof.delivered_rate());
        self.set(
            figure::SOURCE_LIMIT,
            f64::from(u8::from(found.at_source_limit)),
        );
        if let Some(fluxcap) = running.fluxcap() {
            self.notes.extend(fluxcap.ways());
        }
        let pids = running.pids();
        if !pids.is_empty() {
            self.set(figure::MEMORY, memory(&pids));
        }
        let trial = self.trial(found.rate, long);
        self.unpaid.push((figure::CPU, trial, found.proof.clone()));
        self.found = Some(found);
        Ok(())
    }

    fn fixed(&mut self, running: &mut Running) -> Result<()> {
        let trial = self.trial(FIXED_RATE, self.effort.fixed);
        let outcome = run(self.bed, trial)?;
        self.note_losses(running, outcome.refused, outcome.lost());
        if outcome.lost() == 0 {
            self.unpaid.push((figure::CPU_FIXED, trial, outcome));
        } else {
            self.notes
                .push(format!("lost {} at {FIXED_RATE} frames/s", outcome.lost()));
        }
        Ok(())
    }

    fn latency(&mut self) -> Result<()> {
        for (rate, name) in LATENCY_RATES {
            let outcome = run(self.bed, self.trial(rate, self.effort.latency))?;
            if outcome.lost() > 0 {
                self.notes
                    .push(format!("lost {} at {name}", outcome.lost()));
            }
            for (share, label) in SHARES {
                let latency = outcome
                    .latency
                    .percentile(share)
                    .context("no frame arrived")?;
                self.set(&figure::latency(name, label), latency.as_secs_f64() * 1e9);
            }
        }
        Ok(())
    }

    fn overload(&mut self, running: &mut Running) -> Result<()> {
        let found = self
            .found
            .as_ref()
            .context("no rate without loss is known")?;
        let highest = found.proof.delivered_rate();
        let trial = self.trial(highest * OVERLOAD, self.effort.stress);
        let fluxcap = running.fluxcap().context("only fluxcap is overloaded")?;
        let report = stress::overload(self.bed, fluxcap, trial)?;
        self.set(figure::OFFERED, report.outcome.offered_rate());
        self.set(figure::DELIVERED, report.delivered);
        self.set(figure::DELIVERED_SHARE, report.delivered / highest);
        #[expect(clippy::cast_precision_loss, reason = "a count to show")]
        self.set(figure::FAULTS, report.outcome.faults() as f64);
        self.set(figure::AUDIT, f64::from(u8::from(report.audit.is_none())));
        #[expect(clippy::cast_precision_loss, reason = "a count to show")]
        self.set(figure::UNACCOUNTED, report.unaccounted as f64);
        self.notes.push(format!(
            "lost at the input {}, {}",
            report.outcome.refused,
            report.books.losses()
        ));
        if report.unaccounted > 0 {
            let received: u64 = report.outcome.received.iter().sum();
            self.notes.push(format!(
                "offered {}, taken {}; sent {}, received {received}",
                report.outcome.frames - report.outcome.refused,
                report.books.taken,
                report.books.sent
            ));
        }
        self.set(figure::ANSWER, report.slowest_answer.as_secs_f64() * 1e9);
        self.set(figure::TERM, report.slowest_end.as_secs_f64() * 1e9);
        self.notes.extend(report.audit);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts to show")]
    fn soak(&mut self, running: &mut Running, duration: Duration) -> Result<()> {
        let found = self
            .found
            .as_ref()
            .context("no rate without loss is known")?;
        let trial = self.trial(found.proof.delivered_rate() * SOAK_SHARE, duration);
        let soaked = stress::soak(self.bed, &running.pids(), trial)?;
        // By then all buffers have been touched.
        let settled = soaked.memory.len() / 10;
        let later = soaked.memory.get(settled..).unwrap_or_default();
        let most = later.iter().copied().fold(0.0, f64::max);
        self.set(figure::SOAKED, soaked.outcome.frames as f64);
        self.set(figure::SOAK_LOST, soaked.outcome.lost() as f64);
        self.set(figure::FAULTS, soaked.outcome.faults() as f64);
        self.set(
            figure::SOAK_MEMORY_FIRST,
            later.first().copied().unwrap_or(0.0),
        );
        self.set(figure::SOAK_MEMORY_MOST, most);
        self.note_losses(running, soaked.outcome.refused, soaked.outcome.lost());
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts to show")]
    fn check(&mut self, running: &mut Running) -> Result<()> {
        let trial = self.trial(FIXED_RATE / 3.0, self.effort.stress);
        let run = self.bed.next_run();
        let checker = Checker::start(self.bed, self.mix, run)?;
        let outcome = trial::run_passing(self.bed, trial, run)?;
        let (mut good, mut bad, mut missed) = (0, 0, 0);
        for checked in checker.stop()? {
            good += checked.good;
            bad += checked.bad;
            missed += checked.missed;
        }
        let wanted = outcome.frames * self.bed.shape.outputs as u64;
        if missed > 0 {
            return Err(anyhow!("the checker itself lost {missed} frames"));
        }
        self.set(figure::CHECKED, wanted as f64);
        self.set(figure::BAD, bad as f64);
        self.note_losses(running, outcome.refused, wanted - good.min(wanted));
        self.set(figure::CHECK_LOST, wanted.saturating_sub(good + bad) as f64);
        Ok(())
    }

    /// Under which names frames were lost, when some were.
    fn note_losses(&mut self, running: &mut Running, refused: u64, lost: u64) {
        if lost > 0
            && let Some(fluxcap) = running.fluxcap()
        {
            // Shown several times a second.
            thread::sleep(Duration::from_millis(500));
            let losses = fluxcap.books().losses();
            self.notes
                .push(format!("lost at the input {refused}, {losses}"));
        }
    }

    fn idle(&mut self, running: &Running) -> Result<()> {
        let pids = running.pids();
        // What starting has left to do is not idleness.
        thread::sleep(self.effort.idle / 3);
        let used = || pids.iter().map(|pid| cpu_of(*pid).unwrap_or_default());
        let (begin, before) = (Instant::now(), used().collect::<Vec<_>>());
        thread::sleep(self.effort.idle);
        let each = used()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        let most = each.max().unwrap_or_default();
        self.set(
            figure::IDLE,
            most.as_secs_f64() / begin.elapsed().as_secs_f64(),
        );
        Ok(())
    }
}

/// Memory of processes.
#[expect(clippy::cast_precision_loss, reason = "a size to show")]
pub(crate) fn memory(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| memory_of(*pid)).sum::<u64>() as f64
}

/// Runs what may panic, as all helpers of tests do, and makes an error of it.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(anyhow!(text.unwrap_or_else(|| "failed".to_owned())))
    })
}

/// A sample as a line of progress.
pub(crate) fn line(sample: &Sample) -> String {
    let case = &sample.case;
    let mut line = format!(
        "{} {:5} {:>4} {:<18} round {}:",
        case.shape,
        case.peer,
        case.size,
        case.system,
        sample.round + 1
    );
    for (name, number) in &sample.figures {
        line += &format!(" {name} {}", short(*number));
    }
    if !sample.notes.is_empty() {
        line += &format!(" ({})", sample.notes.join(", "));
    }
    if let Some(error) = &sample.error {
        line += &format!(" FAILED: {}", error.lines().next().unwrap_or_default());
    }
    line
}

/// A number with three or four digits that mean something.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 1e9 => format!("{:.2}G", number / 1e9),
        n if n >= 1e6 => format!("{:.2}M", number / 1e6),
        n if n >= 1e4 => format!("{:.0}k", number / 1e3),
        n if n >= 10.0 || n == 0.0 => format!("{number:.0}"),
        _ => format!("{number:.3}"),
    }
}
