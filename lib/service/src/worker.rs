//! What a worker thread and the control side share.

use crate::{lock, reserve::tells_of_lack};
use fluxcap_proto::v1;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{read, write},
};
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// Lines that one worker may log for its changes of state in one second.
const STATE_LINES_PER_SECOND: u32 = 10;

/// Time after which a worker that could not begin is tried again; how often it is doubled, to a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const RETRY_DOUBLINGS: u32 = 6;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being set up.
    Starting,
    /// Moves frames, or would if there were any.
    Running,
    /// Something that it needs is missing; it resumes by itself.
    Waiting,
    /// Could not do what its spec says; it is tried again now and then, and when the spec changes.
    Failed,
    /// Did what it was to do, until its spec changes.
    Ended,
}

impl State {
    /// Whether the thread has returned on purpose: a changed spec, or the same one again, gives the worker another.
    pub fn is_over(self) -> bool {
        matches!(self, State::Failed | State::Ended)
    }

    /// Its name in messages and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Waiting => "waiting",
            State::Failed => "failed",
            State::Ended => "ended",
        }
    }
}

impl From<State> for v1::State {
    fn from(state: State) -> v1::State {
        match state {
            State::Starting => v1::State::Starting,
            State::Running => v1::State::Running,
            State::Waiting => v1::State::Waiting,
            State::Failed => v1::State::Failed,
            State::Ended => v1::State::Ended,
        }
    }
}

/// One worker: its spec, its state, and the counters and details (`L`) that it shares.
///
/// The worker's own thread asks [`stop_requested`](Worker::stop_requested) and [`generation`](Worker::generation) in
/// each turn of its loop (at least once a second, or the watchdog takes it for hung) and polls
/// [`wake_fd`](Worker::wake_fd) together with its sockets.
pub struct Worker<S, L> {
    kind: &'static str,
    name: String,
    live: L,
    stop: AtomicBool,
    deleting: AtomicBool,
    generation: AtomicU64,
    /// Counts turns of the worker's loop; written by the worker only.
    beat: AtomicU64,
    spec: Mutex<SpecCell<S>>,
    state: Mutex<StateCell>,
    /// Eventfd: readable while there is a request to stop or a spec that the worker has not read.
    /// It is made before the thread is.
    wake: OnceLock<OwnedFd>,
    thread_alive: Mutex<bool>,
    thread_ended: Condvar,
    /// The beat that the watchdog saw last, and since when it has not changed.
    seen_beat: Mutex<(u64, Instant)>,
    /// How often it was tried again since it ran last, and when it was last.
    attempts: Mutex<(u32, Instant)>,
}

struct SpecCell<S> {
    spec: Arc<S>,
    thread: Option<ThreadId>,
}

struct StateCell {
    state: State,
    reason: String,
    window: Instant,
    lines: u32,
    suppressed: u32,
}

impl<S, L: Default> Worker<S, L> {
    /// A worker without a thread. Daemons get theirs from a `Registry`; this is for tests of what runs in one.
    pub fn new(kind: &'static str, name: &str, spec: S) -> io::Result<Worker<S, L>> {
        let worker = Worker::idle(kind, name, spec);
        worker.make_wake()?;
        Ok(worker)
    }

    /// A worker that cannot be run yet: it has no descriptor, and is there whatever the system lacks.
    pub(crate) fn idle(kind: &'static str, name: &str, spec: S) -> Worker<S, L> {
        let now = Instant::now();
        Worker {
            kind,
            name: name.to_owned(),
            live: L::default(),
            stop: AtomicBool::new(false),
            deleting: AtomicBool::new(false),
            generation: AtomicU64::new(1),
            beat: AtomicU64::new(0),
            spec: Mutex::new(SpecCell {
                spec: Arc::new(spec),
                thread: None,
            }),
            state: Mutex::new(StateCell {
                state: State::Starting,
                reason: String::new(),
                window: now,
                lines: 0,
                suppressed: 0,
            }),
            wake: OnceLock::new(),
            thread_alive: Mutex::new(false),
            thread_ended: Condvar::new(),
            seen_beat: Mutex::new((0, now)),
            attempts: Mutex::new((0, now)),
        }
    }
}

impl<S, L> Worker<S, L> {
    /// Its name, unique in the daemon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True when the thread must return soon (within a second or so). Also tells the watchdog that the thread lives.
    pub fn stop_requested(&self) -> bool {
        // One writer, so a load and a store are enough; nothing else is ordered by it.
        self.beat
            .store(self.beat.load(Relaxed).wrapping_add(1), Relaxed);
        self.stop.load(Relaxed)
    }

    /// True when the worker is stopped for good and not because the daemon ends.
    pub fn deleting(&self) -> bool {
        self.deleting.load(Relaxed)
    }

    /// Changes when the spec was updated. Read it before [`spec`](Worker::spec), or take both by
    /// [`current`](Worker::current).
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// The spec as of now. On the worker's own thread this also takes the update off [`wake_fd`](Worker::wake_fd).
    pub fn spec(&self) -> Arc<S> {
        self.current().1
    }

    /// The spec and the generation that it belongs to; otherwise as [`spec`](Worker::spec).
    pub fn current(&self) -> (u64, Arc<S>) {
        let cell = lock(&self.spec);
        if cell.thread == Some(thread::current().id()) {
            self.drain_wake();
        }
        (self.generation.load(Relaxed), Arc::clone(&cell.spec))
    }

    /// What the worker shares with the control side.
    pub fn live(&self) -> &L {
        &self.live
    }

    /// Readable while there is a request to stop, or an update that the worker's thread has not read by `spec`.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        match self.wake.get() {
            Some(wake) => wake.as_fd(),
            // No thread runs without one.
            None => rustix::stdio::stdin(),
        }
    }

    /// Says what the worker is doing, and why when that is not plain. Cheap when nothing changes; a change is logged.
    pub fn set_state(&self, state: State, reason: impl Into<String> + AsRef<str>) {
        let mut cell = lock(&self.state);
        if cell.state == state && cell.reason == reason.as_ref() {
            return;
        }
        let from = cell.state;
        cell.state = state;
        if state == State::Running {
            lock(&self.attempts).0 = 0;
        }
        cell.reason = reason.into();
        if cell.window.elapsed() >= Duration::from_secs(1) {
            cell.window = Instant::now();
            cell.lines = 0;
        }
        if cell.lines >= STATE_LINES_PER_SECOND {
            cell.suppressed += 1;
            return;
        }
        cell.lines += 1;
        let suppressed = std::mem::take(&mut cell.suppressed);
        self.log_state(from, state, &cell.reason, suppressed);
    }

    fn log_state(&self, from: State, state: State, reason: &str, suppressed: u32) {
        let (kind, name, from, to) = (self.kind, self.name.as_str(), from.as_str(), state.as_str());
        if state == State::Failed {
            tracing::warn!(kind, name, from, to, reason, suppressed, "state");
        } else {
            tracing::info!(kind, name, from, to, reason, suppressed, "state");
        }
    }

    /// What the worker is doing, and why; the reason may be empty.
    pub fn state(&self) -> (State, String) {
        let cell = lock(&self.state);
        (cell.state, cell.reason.clone())
    }

    /// Asks the thread to return.
    pub fn request_stop(&self) {
        self.stop.store(true, Release);
        self.ring_wake();
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Marks the worker as going away for good; false when it was marked already.
    pub(crate) fn mark_deleting(&self) -> bool {
        !self.deleting.swap(true, Release)
    }

    pub(crate) fn update(&self, spec: S) {
        let mut cell = lock(&self.spec);
        cell.spec = Arc::new(spec);
        self.generation.fetch_add(1, Release);
        self.ring_wake();
    }

    /// Runs `body` on the calling thread until it returns having seen the latest spec, or until a stop.
    pub(crate) fn run_thread(&self, body: impl Fn()) {
        loop {
            lock(&self.spec).thread = Some(thread::current().id());
            let seen = self.generation();
            body();
            if !self.stop.load(Relaxed) && !lock(&self.state).state.is_over() {
                self.set_state(State::Failed, "ended by itself; it is tried again");
            }
            self.wait_for_what_is_lacking();
            let mut alive = lock(&self.thread_alive);
            if self.stop.load(Relaxed) || self.generation() == seen {
                lock(&self.attempts).1 = Instant::now();
                *alive = false;
                self.thread_ended.notify_all();
                return;
            }
        }
    }

    /// A failure for want of descriptors or memory is a matter of time: the worker waits, and is tried again.
    fn wait_for_what_is_lacking(&self) {
        let (state, reason) = self.state();
        if state == State::Failed && tells_of_lack(&reason) && !self.stop.load(Relaxed) {
            self.set_state(State::Waiting, format!("{reason}; trying again"));
        }
    }

    /// Makes what `wake_fd` needs, unless it is there.
    pub(crate) fn make_wake(&self) -> io::Result<()> {
        if self.wake.get().is_none() {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            // Somebody else may have been faster.
            let _ = self.wake.set(made);
        }
        Ok(())
    }

    /// Whether a worker that has no thread is to be tried again now: after a second, and after twice as long each further
    /// time. One that has done what it was to do is not.
    pub(crate) fn is_due(&self) -> bool {
        let over = self.stop.load(Relaxed) || self.state().0 == State::Ended;
        if over || *lock(&self.thread_alive) {
            return false;
        }
        let (count, last) = &mut *lock(&self.attempts);
        let pause = FIRST_RETRY * (1 << (*count).min(RETRY_DOUBLINGS));
        if last.elapsed() < pause {
            return false;
        }
        (*count, *last) = (*count + 1, Instant::now());
        true
    }

    /// True when the caller must start a thread for this worker: it has none.
    pub(crate) fn claim_thread(&self) -> bool {
        !std::mem::replace(&mut *lock(&self.thread_alive), true)
    }

    /// The thread that was claimed could not be started.
    pub(crate) fn disclaim_thread(&self) {
        *lock(&self.thread_alive) = false;
    }

    /// Waits until the thread has returned; false when it still runs at `deadline`.
    pub(crate) fn wait_ended(&self, deadline: Instant) -> bool {
        let mut alive = lock(&self.thread_alive);
        while *alive {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            alive = match self.thread_ended.wait_timeout(alive, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// True when the thread lives but has not turned its loop for `limit`. Call it regularly.
    pub(crate) fn stalled(&self, limit: Duration) -> bool {
        let beat = self.beat.load(Relaxed);
        let alive = *lock(&self.thread_alive);
        let mut seen = lock(&self.seen_beat);
        if seen.0 != beat || !alive {
            *seen = (beat, Instant::now());
        }
        alive && seen.1.elapsed() > limit
    }

    fn ring_wake(&self) {
        if let Some(wake) = self.wake.get() {
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = write(wake, &1_u64.to_ne_bytes());
        }
    }

    fn drain_wake(&self) {
        if let Some(wake) = self.wake.get() {
            // Fails only when there is nothing to take.
            let _ = read(wake, &mut [0; 8]);
        }
        if self.stop.load(Acquire) {
            self.ring_wake();
        }
    }
}

impl<S, L> fmt::Debug for Worker<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
