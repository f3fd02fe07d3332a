//! What one thread of a capture does, and the threads of a capture together.
//!
//! The worker's own thread has the first lane and deals with links, rings and specs besides. The other threads, if any, run
//! while there is nothing to be done to the sockets: [`Crew`] starts them, and they end when it is dropped. A socket is
//! therefore never touched by two threads, and only the ring has a lock.

use crate::datapath::Pumped;
use crate::merge;
use crate::order::{Order, Rest};
use crate::ring::SharedRing;
use crate::stats::CaptureLive;
use crate::tap::{Backlog, Tap};
use fluxcap_ring::Mode;
use fluxcap_socket::{Affinity, MAX_POLL, Ready, Starvation, poll};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

/// Longest sleep. The kernel's counters are read at least as often.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// AF_XDP hands over each frame as it comes. As long as few come at a time, so much longer for more of them costs less than a turn for each.
const GATHER: Duration = Duration::from_micros(200);
/// From so many frames in a turn on there is no need to.
const FEW: u64 = 128;
/// Most interfaces of one capture: the ring's table of sources has as many places.
pub(crate) const MAX_INTERFACES: usize = 32;
/// Turns in which everything that is at hand goes into the ring, at most.
const FLUSH_TURNS: usize = 64;

/// The sockets of one thread.
#[derive(Debug)]
pub(crate) struct Lane {
    taps: Vec<Tap>,
    /// When the kernel's counters were read last.
    counted: Instant,
    /// Frames came since then.
    dirty: bool,
    /// The last turn found few frames at each interface.
    few: bool,
    /// The next frames of the sockets, when they are merged.
    order: Order,
    /// A socket may have an error to tell, which keeps poll from sleeping.
    failed: bool,
}

/// Where and how a thread runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schedule {
    pub(crate) cpus: Vec<u32>,
    pub(crate) priority: u32,
    /// How long it looks for frames before it sleeps.
    pub(crate) spin: Duration,
    /// Frames are to be passed on at once.
    pub(crate) hurry: bool,
    /// How long a frame waits for an earlier one of another socket.
    pub(crate) window: Duration,
    /// The CPUs that are allowed; `None` as long as nothing was ever wanted, so that a thread is as the system makes it.
    pub(crate) any: Option<Affinity>,
}

impl Schedule {
    /// Places the calling thread; what was not possible.
    pub(crate) fn apply(&self, thread: usize) -> Option<String> {
        let any = self.any.as_ref()?;
        fluxcap_socket::place_thread(thread, &self.cpus, any, self.priority)
            .err()
            .map(|error| error.to_string())
    }
}

impl Lane {
    pub(crate) fn new() -> Lane {
        Lane {
            taps: Vec::new(),
            counted: Instant::now(),
            dirty: false,
            few: true,
            order: Order::default(),
            failed: false,
        }
    }

    pub(crate) fn add(&mut self, tap: Tap) {
        self.order.clear();
        self.taps.push(tap);
    }

    /// The taps of an input.
    pub(crate) fn of(&mut self, input: usize) -> impl Iterator<Item = &mut Tap> {
        self.taps.iter_mut().filter(move |tap| tap.input == input)
    }

    /// Takes the taps of an input out.
    pub(crate) fn take(&mut self, input: usize) -> Vec<Tap> {
        self.order.clear();
        self.taps.extract_if(.., |tap| tap.input == input).collect()
    }

    /// Takes all taps out.
    pub(crate) fn take_all(&mut self) -> Vec<Tap> {
        self.order.clear();
        std::mem::take(&mut self.taps)
    }

    /// The sockets of which no frame is at hand.
    fn awaited(&self) -> impl Iterator<Item = &Tap> {
        let taps = self.taps.iter().enumerate();
        taps.filter(|(at, _)| !self.order.has(*at))
            .map(|(_, tap)| tap)
    }

    /// Sleeps until a frame is there, one of `others` has something to say, or the time is over; what `others` say.
    ///
    /// # Errors
    /// What poll says, after a pause: an error that stays must not make a loop of it.
    pub(crate) fn sleep(
        &mut self,
        others: &[BorrowedFd<'_>],
        schedule: &Schedule,
        timeout: Duration,
    ) -> Ready {
        // Frames that are held back go when their time has come, whatever else does.
        let timeout = match self.order.rest() {
            Rest::Idle => timeout,
            Rest::Hold(time) => timeout.min(time),
            Rest::Busy => Duration::ZERO,
        };
        if !schedule.spin.is_zero() {
            let end = Instant::now() + schedule.spin.min(timeout);
            while Instant::now() < end {
                if self.awaited().any(|tap| tap.socket().is_ready()) {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        let Some(first) = others.first() else {
            return Ready::default();
        };
        let mut fds = [*first; MAX_POLL];
        let sockets = self.awaited().map(Tap::fd);
        let count = fds
            .iter_mut()
            .zip(others.iter().copied().chain(sockets))
            .map(|(slot, fd)| *slot = fd)
            .count();
        let ready = poll(&fds[..count], timeout).unwrap_or_else(|error| {
            tracing::error!(%error, "poll");
            std::thread::sleep(Duration::from_millis(50));
            Ready::default()
        });
        self.failed = ready.any_failed_from(others.len());
        if self.few && !schedule.hurry && self.taps.iter().any(Tap::has_unblocked_frames) {
            std::thread::sleep(GATHER);
        }
        ready
    }

    /// One turn of the data path for each interface.
    ///
    /// # Errors
    /// When the ring cannot be written to any more.
    pub(crate) fn turn(
        &mut self,
        ring: &SharedRing,
        live: &CaptureLive,
        window: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<(), fluxcap_ring::Error> {
        if self.taps.len() > 1 && !window.is_zero() {
            let pumped = self.turn_in_order(ring, live, Some(window), stop)?;
            self.few = pumped.frames < FEW;
            if pumped.losing {
                self.count(ring, live, Backlog::ComesHere);
            }
        } else {
            self.turn_by_turn(ring, live, stop)?;
        }
        // Once a tick, and once more when traffic has ended, so that the books close.
        if self.counted.elapsed() >= TICK {
            if self.dirty {
                self.count(ring, live, Backlog::ComesHere);
            } else if !self.taps.is_empty() {
                let ring = ring.lock();
                self.taps.iter().for_each(|tap| tap.watch(&ring));
            }
            (self.counted, self.dirty) = (Instant::now(), false);
        }
        Ok(())
    }

    /// Each interface for itself: what one socket has is in order.
    fn turn_by_turn(
        &mut self,
        ring: &SharedRing,
        live: &CaptureLive,
        stop: impl Fn() -> bool,
    ) -> Result<(), fluxcap_ring::Error> {
        self.order.clear();
        self.few = true;
        for tap in &mut self.taps {
            let pumped = tap.pump(ring, live, &stop)?;
            self.dirty |= pumped.frames > 0;
            self.few &= pumped.frames < FEW;
            if pumped.losing {
                tap.count(&mut ring.lock(), live, Backlog::ComesHere);
            }
        }
        Ok(())
    }

    /// All of them together, by time.
    fn turn_in_order(
        &mut self,
        ring: &SharedRing,
        live: &CaptureLive,
        window: Option<Duration>,
        stop: impl Fn() -> bool,
    ) -> Result<Pumped, fluxcap_ring::Error> {
        let pumped = merge::turn(&mut self.order, &mut self.taps, ring, live, window, stop)?;
        self.dirty |= pumped.frames > 0;
        if std::mem::take(&mut self.failed) {
            self.taps.iter().for_each(Tap::take_error);
        }
        Ok(pumped)
    }

    /// Has frames that are held back, and all others that are at hand, go into the ring: sockets are about to be closed. Not into one
    /// in wait mode, which may have no room for them now.
    pub(crate) fn flush(&mut self, ring: &SharedRing, live: &CaptureLive) {
        if ring.lock().info().mode == Mode::Wait {
            return;
        }
        for _ in 0..FLUSH_TURNS {
            let held_back = (0..self.taps.len()).any(|at| self.order.has(at));
            if !held_back
                || self
                    .turn_in_order(ring, live, None, || true)
                    .is_ok_and(|pumped| pumped.frames == 0)
            {
                return;
            }
        }
    }

    /// Reads the kernel's counters.
    pub(crate) fn count(&mut self, ring: &SharedRing, live: &CaptureLive, backlog: Backlog) {
        for tap in &mut self.taps {
            tap.count(&mut ring.lock(), live, backlog);
        }
    }

    /// Lets no more frames in.
    pub(crate) fn take_no_more(&self) {
        self.taps.iter().for_each(Tap::take_no_more);
    }

    /// Takes what the sockets hold, until then.
    pub(crate) fn drain(&mut self, ring: &SharedRing, live: &CaptureLive, end: Instant) {
        self.taps
            .iter_mut()
            .for_each(|tap| tap.drain(ring, live, end));
    }
}

/// What the threads of a capture have in common while they run.
#[derive(Debug)]
pub(crate) struct Crew {
    /// Frames are to be moved no more.
    halt: AtomicBool,
    /// Nobody waits for consumers any more, either.
    stop: AtomicBool,
    /// Hangs up when the threads are to end.
    halted: PipeReader,
    /// Readable when a thread has found something for the worker's own thread to do.
    calls: PipeReader,
    call: PipeWriter,
    /// Why a thread has ended by itself.
    error: Mutex<Option<fluxcap_ring::Error>>,
}

/// The end of the threads, for the worker's own: dropping it has them end.
#[derive(Debug)]
pub(crate) struct Reins {
    halt: Option<PipeWriter>,
    /// Hangs up when all threads have ended.
    ended: PipeReader,
    running: Option<PipeWriter>,
}

impl Crew {
    pub(crate) fn new() -> io::Result<(Crew, Reins)> {
        let (halted, halt) = io::pipe()?;
        let (calls, call) = io::pipe()?;
        let (ended, running) = io::pipe()?;
        let crew = Crew {
            halt: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            halted,
            calls,
            call,
            error: Mutex::new(None),
        };
        let reins = Reins {
            halt: Some(halt),
            ended,
            running: Some(running),
        };
        Ok((crew, reins))
    }

    /// Starts a thread for each of `lanes`, the second one of the capture and those after it.
    pub(crate) fn start<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        reins: &mut Reins,
        lanes: &'s mut [Lane],
        ring: &'s SharedRing,
        live: &'s CaptureLive,
        schedule: &'s Schedule,
    ) -> io::Result<()> {
        for (number, lane) in (1..).zip(lanes) {
            let running = reins.running.as_ref().map(PipeWriter::try_clone);
            let running = running.transpose()?;
            let body = move || {
                schedule.apply(number);
                self.run(lane, ring, live, schedule);
                drop(running);
            };
            Builder::new()
                .name(format!("capture {number}"))
                .spawn_scoped(scope, body)?;
        }
        Ok(())
    }

    /// What a thread other than the worker's own does.
    fn run(&self, lane: &mut Lane, ring: &SharedRing, live: &CaptureLive, schedule: &Schedule) {
        let mut starvation = Starvation::watch();
        while !self.halt.load(Relaxed) {
            lane.sleep(&[self.halted.as_fd()], schedule, TICK);
            if ring.lock().retired().is_some() {
                return self.call();
            }
            let stop = || self.stop.load(Relaxed);
            if let Err(error) = lane.turn(ring, live, schedule.window, stop) {
                let mut place = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                *place = Some(error);
                drop(place);
                return self.call();
            }
            starvation.relieve();
        }
    }

    fn call(&self) {
        // There is room for a byte of each thread.
        let _ = (&self.call).write_all(&[0]);
    }

    /// Readable when a thread has ended by itself.
    pub(crate) fn calls(&self) -> BorrowedFd<'_> {
        self.calls.as_fd()
    }

    /// The first error of a thread.
    pub(crate) fn take_error(&self) -> Option<fluxcap_ring::Error> {
        let mut place = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }

    /// Has the threads end, and waits until they have. One that waits for the consumers of a full ring goes on to do so until
    /// `stop` says that it shall not.
    pub(crate) fn end(&self, reins: &mut Reins, stop: impl Fn() -> bool) {
        self.halt.store(true, Relaxed);
        (reins.halt, reins.running) = (None, None);
        loop {
            if stop() {
                self.stop.store(true, Relaxed);
            }
            match poll(&[reins.ended.as_fd()], Duration::from_millis(10)) {
                Ok(ready) if ready.is_empty() => {}
                _ => return,
            }
        }
    }
}
