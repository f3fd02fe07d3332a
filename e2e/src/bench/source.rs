//! The near end of an input: sends frames at a rate, up to several million a second.

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use fluxcap_socket::{Live, Outgoing, SendReport, Transmitter as _};
use rustix::thread::{ClockId, Timespec, clock_nanosleep_absolute};
use rustix::time::clock_gettime;

use crate::bench::frame::{HEADER, Mix, Pool, Stamp};
use crate::bench::system::must_succeed;
use crate::generator::index_of;
use crate::netns::{Netns, enter};

/// Frames in one call, at most.
const BURST: u64 = 1024;
/// Time between two bursts, at least: the bench must not itself be the load.
const TICK_NS: u64 = 200_000;
/// A source that falls further behind does not catch up: a machine that stood still must not answer with a flood.
const LONGEST_LAG_NS: u64 = 3_000_000;
/// SCHED_FIFO: taps do not wait for the host that they lead to.
const PRIORITY: &str = "10";
/// A source that has sent for so long without a pause makes one of a twentieth of it. The interrupts of a network card leave that much of a
/// CPU, too, and whoever is on it can go.
const BREATH_NS: u64 = 2_000_000;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The run that the frames carry.
    pub run: u16,
    /// Lengths of the frames.
    pub mix: Mix,
    /// Frames per second.
    pub rate: f64,
    /// How long.
    pub duration: Duration,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Frames offered: the stream's numbers are 0 to this.
    pub frames: u64,
    /// Those of them for which the input had no room.
    pub refused: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

/// A thread that sends to one interface.
#[derive(Debug)]
pub struct Source {
    loads: Option<Sender<Load>>,
    sent: Receiver<Result<Sent>>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Makes a source of stream `stream` at interface `device` of `netns`, whose other end must have GRO on.
    ///
    /// # Errors
    /// When the kernel has no live frames.
    pub fn new(netns: &Netns, device: &str, stream: u16) -> Result<Source> {
        let (loads, orders) = channel();
        let (reports, sent) = channel();
        let (path, device) = (netns.path(), device.to_owned());
        let thread = thread::Builder::new().name(format!("source-{stream}"));
        let thread = thread.spawn(move || {
            enter(&path);
            match Sending::open(&device, stream) {
                Ok(sending) => serve(sending, &orders, &reports),
                Err(error) => drop(reports.send(Err(error))),
            }
        })?;
        let source = Source {
            loads: Some(loads),
            sent,
            thread: Some(thread),
        };
        source.join()?;
        Ok(source)
    }

    /// Begins to send.
    ///
    /// # Errors
    /// When the source has ended.
    pub fn start(&self, load: Load) -> Result<()> {
        let loads = self.loads.as_ref().context("the source was stopped")?;
        loads
            .send(load)
            .map_err(|_| anyhow!("the source has ended"))
    }

    /// Waits until everything is out.
    ///
    /// # Errors
    /// When nothing of it reached the interface.
    pub fn join(&self) -> Result<Sent> {
        self.sent.recv().context("the source has ended")?
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.loads = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut sending: Sending, loads: &Receiver<Load>, reports: &Sender<Result<Sent>>) {
    // The first report says that the source is ready.
    let mut report = Ok(Sent::default());
    while reports.send(report).is_ok() {
        let Ok(load) = loads.recv() else { return };
        report = sending.send(load);
    }
}

/// The sending side, inside its thread.
struct Sending {
    live: Live,
    stream: u16,
    pool: Arc<Pool>,
    headers: Vec<[u8; HEADER]>,
    reports: [SendReport; 1],
}

impl Sending {
    fn open(device: &str, stream: u16) -> Result<Sending> {
        let mut live = Live::new()?;
        live.set_interfaces(&[index_of(device)])?;
        become_source()?;
        Ok(Sending {
            live,
            stream,
            pool: Arc::new(Pool::new()),
            headers: Vec::new(),
            reports: [SendReport::default()],
        })
    }

    fn send(&mut self, load: Load) -> Result<Sent> {
        paced(load.rate, load.duration, |first, count, now| {
            self.burst(load, first, count, now)
        })
    }

    /// Sends frames `first` to `first + count`; returns how many found no room.
    fn burst(&mut self, load: Load, first: u64, count: u64, now: u64) -> Result<u64> {
        let numbers = first..first + count;
        self.headers.clear();
        self.headers.extend(numbers.clone().map(|seq| {
            let stamp = Stamp {
                run: load.run,
                stream: self.stream,
                seq,
                sent_ns: now,
            };
            stamp.header(load.mix.length(seq))
        }));
        let frames: Vec<Outgoing<'_>> = self
            .headers
            .iter()
            .zip(numbers)
            .map(|(header, seq)| Outgoing {
                pieces: [header, self.pool.filler(seq, load.mix.length(seq)), &[]],
                outputs: 1,
            })
            .collect();
        self.live.send(&frames, &mut self.reports);
        let [report] = &self.reports;
        if report.refused() > report.enobufs {
            return Err(anyhow!("the input takes no frames: {report:?}"));
        }
        Ok(report.refused())
    }
}

/// Calls `burst` with the number of its first frame, how many there are, and the time; it returns how many found no room. Bursts are of the same size
/// and at equal distances: what a frame costs here must not depend on what becomes of it.
pub(crate) fn paced(
    rate: f64,
    duration: Duration,
    mut burst: impl FnMut(u64, u64, u64) -> Result<u64>,
) -> Result<Sent> {
    let mut sent = Sent::default();
    let pace = Pace::of(rate);
    let begin = now_ns();
    let end = begin + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2);
    let (mut due, mut rested) = (begin, begin);
    loop {
        let now = now_ns();
        if now >= end {
            break;
        }
        if now >= rested + BREATH_NS {
            sleep_until((now + BREATH_NS / 20).min(end));
            rested = now_ns();
            continue;
        }
        if now < due {
            sleep_until(due.min(end));
            rested = now_ns();
            continue;
        }
        sent.refused += burst(sent.frames, pace.burst, now)?;
        sent.frames += pace.burst;
        due = (due + pace.gap_ns).max(now.saturating_sub(LONGEST_LAG_NS));
    }
    sent.elapsed = Duration::from_nanos(now_ns() - begin);
    Ok(sent)
}

/// Gives the calling thread the priority and the timers of a source.
pub(crate) fn become_source() -> Result<()> {
    let own = rustix::thread::gettid().to_string();
    must_succeed(Command::new("chrt").args(["--fifo", "--pid", PRIORITY, &own]))?;
    rustix::thread::set_current_timer_slack(std::num::NonZero::new(1))?;
    Ok(())
}

/// Bursts for a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    burst: u64,
    gap_ns: u64,
}

impl Pace {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "frames and times of less than a second"
    )]
    fn of(rate: f64) -> Pace {
        let rate = rate.max(1.0);
        let burst = (rate * TICK_NS as f64 / 1e9).ceil().min(BURST as f64);
        Pace {
            burst: burst as u64,
            gap_ns: (burst * 1e9 / rate) as u64,
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of `bpf_ktime_get_ns`.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn sleep_until(at_ns: u64) {
    let at = Timespec {
        tv_sec: i64::try_from(at_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(at_ns % 1_000_000_000).unwrap_or(0),
    };
    // Interrupted or not, the caller looks at the clock.
    let _ = clock_nanosleep_absolute(ClockId::Monotonic, &at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_rates_are_single_frames_and_high_ones_are_bursts() {
        let pace = |rate| (Pace::of(rate).burst, Pace::of(rate).gap_ns);
        assert_eq!(pace(1_000.0), (1, 1_000_000));
        assert_eq!(pace(100_000.0), (20, 200_000));
        assert_eq!(pace(1_000_000.0), (200, 200_000));
        assert_eq!(pace(10_240_000.0), (1024, 100_000));
    }
}
