//! More than the system can do, and for longer than usual.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use fluxcap_proto::v1::GetDaemonRequest;
use fluxcap_proto::v1::daemon_service_client::DaemonServiceClient;

use crate::bench::bed::Bed;
use crate::bench::run::memory;
use crate::bench::source::Load;
use crate::bench::system::{Books, Fluxcap};
use crate::bench::trial::{self, Outcome, Trial};
use crate::daemon::Daemon;

/// Time between two questions by gRPC.
const ASK: Duration = Duration::from_millis(50);
/// How long the books may take to close after overload.
const BOOKS: Duration = Duration::from_secs(5);
/// Daemons show what they have counted at least so often.
const SHOWN: Duration = Duration::from_millis(700);
/// How long it is overloaded before SIGTERM.
const BEFORE_TERM: Duration = Duration::from_millis(200);
/// Overload while the daemons end.
const WHILE_TERM: Duration = Duration::from_millis(1500);
/// Time between two looks at memory.
const SAMPLE: Duration = Duration::from_secs(2);

/// What happened under overload.
#[derive(Debug)]
pub struct Overloaded {
    /// The trial.
    pub outcome: Outcome,
    /// Frames per second that came out of the output with the fewest while sources were sending.
    pub delivered: f64,
    /// What the daemons say became of the frames.
    pub books: Books,
    /// Frames of which the daemons say something else than sources and sinks.
    pub unaccounted: u64,
    /// Slowest answer of any daemon.
    pub slowest_answer: Duration,
    /// What does not add up afterwards.
    pub audit: Option<String>,
    /// Slowest end of any daemon after SIGTERM, under overload.
    pub slowest_end: Duration,
}

/// Overloads, asks all the while, looks at the books, and ends the daemons under overload.
///
/// # Errors
/// Those of the trial.
pub fn overload(bed: &mut Bed, fluxcap: &mut Fluxcap, trial: Trial) -> Result<Overloaded> {
    let over = AtomicBool::new(false);
    let before = still(fluxcap);
    let daemons = [&fluxcap.ringd, &fluxcap.rxd, &fluxcap.txd];
    let (outcome, slowest_answer) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&daemons, &over));
        let outcome = trial::run(bed, trial);
        over.store(true, Ordering::Relaxed);
        (outcome, asking.join().unwrap_or(Duration::MAX))
    });
    let outcome = outcome?;
    let audit = fluxcap.audit(BOOKS).err().map(|error| format!("{error:#}"));
    let (books, unaccounted) = settle(fluxcap, &before, &outcome);
    let slowest_end = end_under(bed, fluxcap, trial)?;
    Ok(Overloaded {
        delivered: outcome.rate_while_sending(),
        books,
        unaccounted,
        outcome,
        slowest_answer,
        audit,
        slowest_end,
    })
}

/// The books when nothing has been added for longer than the daemons keep figures to themselves.
fn still(fluxcap: &Fluxcap) -> Books {
    let begin = Instant::now();
    let mut books = fluxcap.books();
    let mut since = begin;
    while since.elapsed() < SHOWN && begin.elapsed() < BOOKS {
        thread::sleep(ASK);
        let now = fluxcap.books();
        if now != books {
            (books, since) = (now, Instant::now());
        }
    }
    books
}

/// Compares what the daemons have counted with what sources and sinks have, until it is the same or has not been for long.
fn settle(fluxcap: &Fluxcap, before: &Books, outcome: &Outcome) -> (Books, u64) {
    let begin = Instant::now();
    let (offered, received) = (
        outcome.frames - outcome.refused,
        outcome.received.iter().sum(),
    );
    loop {
        let books = fluxcap.books().since(before);
        let unaccounted = offered.abs_diff(books.taken) + books.sent.abs_diff(received);
        if unaccounted == 0 || begin.elapsed() > BOOKS {
            return (books, unaccounted);
        }
        thread::sleep(ASK);
    }
}

/// Asks all daemons again and again; returns the slowest answer.
fn ask(daemons: &[&Daemon; 3], over: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        for daemon in daemons {
            let begin = Instant::now();
            let answer = daemon.rpc(async |channel| {
                DaemonServiceClient::new(channel)
                    .get_daemon(GetDaemonRequest {})
                    .await
            });
            slowest = slowest.max(match answer {
                Some(Ok(_)) => begin.elapsed(),
                _ => Duration::MAX,
            });
        }
        thread::sleep(ASK);
    }
    slowest
}

/// Ends all daemons while frames pour in; returns how long the slowest took.
fn end_under(bed: &mut Bed, fluxcap: &mut Fluxcap, trial: Trial) -> Result<Duration> {
    let run = bed.next_run();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let share = trial.rate / bed.sources.len() as f64;
    for source in &bed.sources {
        source.start(Load {
            run,
            mix: trial.mix,
            rate: share,
            duration: WHILE_TERM,
        })?;
    }
    thread::sleep(BEFORE_TERM);
    let ends =
        [&mut fluxcap.txd, &mut fluxcap.rxd, &mut fluxcap.ringd].map(|daemon| daemon.stop().1);
    for source in &bed.sources {
        source.join()?;
    }
    Ok(ends.into_iter().max().unwrap_or_default())
}

/// What happened in a soak.
#[derive(Debug)]
pub struct Soaked {
    /// The trial.
    pub outcome: Outcome,
    /// Memory of all processes, at equal distances.
    pub memory: Vec<f64>,
}

/// One long trial, with looks at the memory of `pids`.
///
/// # Errors
/// Those of the trial.
pub fn soak(bed: &mut Bed, pids: &[u32], trial: Trial) -> Result<Soaked> {
    let over = AtomicBool::new(false);
    let (outcome, memory) = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                seen.push(memory(pids));
                thread::park_timeout(SAMPLE);
            }
            seen
        });
        let outcome = trial::run(bed, trial);
        over.store(true, Ordering::Relaxed);
        watching.thread().unpark();
        (outcome, watching.join().unwrap_or_default())
    });
    Ok(Soaked {
        outcome: outcome?,
        memory,
    })
}
