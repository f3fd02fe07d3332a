//! What one thread of a capture does, and the threads of a capture together.
//!
//! The worker's own thread has the first lane and deals with links, rings and specs besides. The other threads, if any, run
//! while there is nothing to be done to the sockets: [`Crew`] starts them, and they end when it is dropped. A socket is
//! therefore never touched by two threads, and only the ring has a lock.

use crate::ring::SharedRing;
use crate::stats::CaptureLive;
use crate::tap::{Backlog, Tap};
use fluxcap_socket::{Affinity, Ready, Starvation, poll};
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
/// Most descriptors that are polled besides those of the interfaces.
const MAX_OTHERS: usize = 4;

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
        }
    }

    pub(crate) fn add(&mut self, tap: Tap) {
        self.taps.push(tap);
    }

    /// The taps of an input.
    pub(crate) fn of(&mut self, input: usize) -> impl Iterator<Item = &mut Tap> {
        self.taps.iter_mut().filter(move |tap| tap.input == input)
    }

    /// Takes the taps of an input out.
    pub(crate) fn take(&mut self, input: usize) -> Vec<Tap> {
        self.taps.extract_if(.., |tap| tap.input == input).collect()
    }

    /// Sleeps until a frame is there, one of `others` has something to say, or the time is over; what `others` say.
    ///
    /// # Errors
    /// What poll says, after a pause: an error that stays must not make a loop of it.
    pub(crate) fn sleep(
        &self,
        others: &[BorrowedFd<'_>],
        schedule: &Schedule,
        timeout: Duration,
    ) -> Ready {
        if !schedule.spin.is_zero() {
            let end = Instant::now() + schedule.spin;
            while Instant::now() < end {
                if self.taps.iter().any(|tap| tap.socket().is_ready()) {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        let Some(first) = others.first() else {
            return Ready::default();
        };
        let mut fds = [*first; MAX_INTERFACES + MAX_OTHERS];
        let sockets = self.taps.iter().map(Tap::fd);
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
        stop: impl Fn() -> bool,
    ) -> Result<(), fluxcap_ring::Error> {
        self.few = true;
        for tap in &mut self.taps {
            let pumped = tap.pump(ring, live, &stop)?;
            self.dirty |= pumped.frames > 0;
            self.few &= pumped.frames < FEW;
            if pumped.losing {
                tap.count(&mut ring.lock(), live, Backlog::ComesHere);
            }
        }
        // Once a tick, and once more when traffic has ended, so that the books close.
        if self.dirty && self.counted.elapsed() >= TICK {
            self.count(ring, live, Backlog::ComesHere);
            (self.counted, self.dirty) = (Instant::now(), false);
        }
        Ok(())
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
            if let Err(error) = lane.turn(ring, live, || self.stop.load(Relaxed)) {
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
