//! `fluxctl capture`: frames straight from a ring, into a pcapng file or a pipe, or as text.
//!
//! ```text
//!   ring --Consumer::poll--> batch --filter--> Sink --> pcapng (capture/pcapng.rs)
//!    ^                                              '-> a line each (capture/summary.rs)
//!    '-- goes on from epoch to epoch when it is replaced
//! ```
//!
//! The reader is registered in the ring as `capture-PID` and takes its leave at the end, however that comes.

mod pcapng;
mod sink;
mod summary;

use crate::complete;
use crate::connect::Globals;
use crate::exit::{Code, Failure};
use crate::observe;
use crate::output::{count, note};
use crate::signals::{self, Stop};
use clap::Args;
use clap_complete::ArgValueCandidates;
use fluxcap_headers::{Filter, WireFrame, filter_doubt};
use fluxcap_options::{FilterArgs, compile_filter, parse_start};
use fluxcap_proto::v1::{self, start::At};
use fluxcap_ring::{Batch, Consumer, Direction, Outcome, Poll, RingDir, RingName, Start};
use fluxcap_service::parse_duration;
use sink::Sink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Frames are handed on at least this often.
const FLUSH: Duration = Duration::from_millis(100);

/// `fluxctl capture`
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// Ring to read
    #[arg(add = ArgValueCandidates::new(complete::rings))]
    ring: RingName,

    /// Write pcapng to this file, or to standard output (-) [default: one line of text for each frame]
    #[arg(long, short, value_name = "FILE|-")]
    write: Option<PathBuf>,

    /// End after this many frames
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    #[command(flatten)]
    filter: FilterArgs,

    /// Where to begin: newest, oldest, seq:N or time:RFC3339
    #[arg(long, value_name = "START", default_value = "newest", value_parser = parse_start)]
    from: v1::Start,

    /// Keep at most this many bytes of each frame; 0 keeps all
    #[arg(long, short, value_name = "BYTES", default_value_t = 0)]
    snaplen: u32,
}

/// Runs the command.
pub(crate) fn run(globals: &Globals, args: &Capture) -> Result<(), Failure> {
    let filter = compile(args)?;
    // Before the reader registers, so that it never ends without taking its leave.
    let stop = signals::stop();
    let expression = filter.as_ref().map(Filter::expression).unwrap_or_default();
    let reader = Reader::open(globals.rings(), &args.ring, start(args.from))?;
    let mut sink = Sink::open(args.write.as_deref(), globals.output, expression)?;
    let mut capture = Run {
        args,
        filter,
        reader,
        totals: Totals::default(),
        flushed: Instant::now(),
    };
    let mut result = sink.begin(&capture.reader.consumer, &args.ring);
    if result.is_ok() {
        result = capture.copy(&mut sink, &stop);
    }
    // The statistics at the end are worth writing also when the ring has failed; not when the output has.
    if result
        .as_ref()
        .map_or_else(|failure| failure.code != Code::ClosedPipe, |()| true)
    {
        result = result.and(sink.finish(&args.ring));
    }
    let totals = capture.totals;
    capture.reader.consumer.detach();
    result?;
    totals.report();
    Ok(())
}

fn compile(args: &Capture) -> Result<Option<Filter>, Failure> {
    let expression = args.filter.expression().unwrap_or_default();
    if let Some(doubt) = filter_doubt(&expression) {
        note(&format!("the filter: {doubt}"));
    }
    compile_filter("--filter", &expression, args.filter.vlan())
        .map_err(|error| Failure::new(Code::Usage, error.to_string()))
}

fn start(start: v1::Start) -> Start {
    match start.at {
        None | Some(At::Newest(_)) => Start::Newest,
        Some(At::Oldest(_)) => Start::Oldest,
        Some(At::Seq(seq)) => Start::Seq(seq),
        Some(At::TimeNs(ns)) => Start::Time(ns),
    }
}

/// What the capture came to.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    written: u64,
    filtered: u64,
    lapped: u64,
    kernel_drops: u64,
}

impl Totals {
    fn report(&self) {
        note(&format!(
            "{} frames captured, {} did not match, {} lost in the ring (lapped), {} dropped by the kernel",
            count(self.written),
            count(self.filtered),
            count(self.lapped),
            count(self.kernel_drops)
        ));
    }
}

/// The place in the ring.
struct Reader {
    dir: RingDir,
    consumer: Consumer,
    batch: Batch,
}

impl Reader {
    fn open(dir: RingDir, name: &RingName, start: Start) -> Result<Reader, Failure> {
        let label = format!("capture-{}", std::process::id());
        let consumer = Consumer::open(&dir, name, &label, start, false)
            .map_err(|error| observe::failure(&dir, &error))?;
        Ok(Reader {
            dir,
            consumer,
            batch: Batch::new(1 << 20, 4096),
        })
    }

    /// Goes on with the ring that took the place of this one, and says how many frames were lost between the two; `None` when there is none.
    fn follow(&mut self) -> Result<Option<u64>, Failure> {
        let advanced = self.consumer.advance();
        advanced.map_err(|error| observe::failure(&self.dir, &error))
    }
}

/// A capture under way.
struct Run<'a> {
    args: &'a Capture,
    filter: Option<Filter>,
    reader: Reader,
    totals: Totals,
    flushed: Instant,
}

impl Run<'_> {
    /// Copies frames until told to stop, enough of them came, or the ring is deleted.
    fn copy(&mut self, sink: &mut Sink, stop: &Stop) -> Result<(), Failure> {
        // Beyond what a clock can tell is for ever.
        let duration = self.args.duration;
        let end = duration.and_then(|duration| Instant::now().checked_add(duration));
        while !stop.is_asked_for() && !self.full() && end.is_none_or(|end| Instant::now() < end) {
            let polled = self.reader.consumer.poll(&mut self.reader.batch);
            match polled.map_err(|error| observe::failure(&self.reader.dir, &error))? {
                Poll::Frames(_) => {
                    self.batch(sink)?;
                    if self.flushed.elapsed() >= FLUSH {
                        self.flush(sink)?;
                    }
                }
                Poll::Empty => {
                    self.losses(sink)?;
                    self.flush(sink)?;
                    self.wait(end)?;
                }
                Poll::Retired => match self.reader.follow()? {
                    Some(lapped) => {
                        self.totals.lapped = self.totals.lapped.saturating_add(lapped);
                        sink.lapped(lapped);
                        sink.begin(&self.reader.consumer, &self.args.ring)?;
                    }
                    None => {
                        note(&format!("ring {} was deleted", self.args.ring));
                        return Ok(());
                    }
                },
            }
        }
        Ok(())
    }

    fn full(&self) -> bool {
        self.args
            .count
            .is_some_and(|count| self.totals.written >= count)
    }

    fn flush(&mut self, sink: &mut Sink) -> Result<(), Failure> {
        self.flushed = Instant::now();
        sink.flush()
    }

    /// Sleeps until there is something to read, but not for long: signals and a closed pipe are looked for in between.
    fn wait(&self, end: Option<Instant>) -> Result<(), Failure> {
        let longest = end.map_or(FLUSH, |end| {
            end.saturating_duration_since(Instant::now()).min(FLUSH)
        });
        let waited = self.reader.consumer.wait(longest);
        waited
            .map(|_| ())
            .map_err(|error| observe::failure(&self.reader.dir, &error))
    }

    /// What was lost before the frames of the batch.
    fn losses(&mut self, sink: &mut Sink) -> Result<(), Failure> {
        let lapped = self.reader.batch.lapped();
        self.totals.lapped = self.totals.lapped.saturating_add(lapped);
        sink.lapped(lapped);
        for loss in self.reader.batch.losses() {
            // A number out of shared memory.
            let drops = &mut self.totals.kernel_drops;
            *drops = drops.saturating_add(loss.count);
            sink.kernel_drops(&self.reader.consumer, loss.source, loss.count)?;
        }
        Ok(())
    }

    fn batch(&mut self, sink: &mut Sink) -> Result<(), Failure> {
        self.losses(sink)?;
        let (mut written, mut filtered) = (0, 0);
        for index in 0..self.reader.batch.len() {
            if self
                .args
                .count
                .is_some_and(|count| self.totals.written + written >= count)
            {
                break;
            }
            let Some(frame) = self.reader.batch.get(index) else {
                break;
            };
            let matches = match &self.filter {
                Some(filter) => filter.matches(&WireFrame::new(frame.data, frame.meta.wire_len)),
                None => true,
            };
            if matches {
                let outgoing = frame.meta.direction == Direction::Out;
                sink.frame(&self.reader.consumer, &frame, outgoing, self.args.snaplen)?;
                written += 1;
            } else {
                sink.seen(&self.reader.consumer, frame.meta.source)?;
                filtered += 1;
            }
        }
        self.totals.written += written;
        self.totals.filtered += filtered;
        let rest = self.reader.batch.len() as u64 - written - filtered;
        let consumer = &self.reader.consumer;
        consumer.add_outcome(Outcome::Written, written);
        consumer.add_outcome(Outcome::Filtered, filtered);
        // Frames behind the last one that was asked for.
        consumer.add_outcome(Outcome::Refused, rest);
        Ok(())
    }
}
