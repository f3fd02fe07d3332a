//! A capture as a worker: gets its ring and its interfaces, runs the data path, waits for what is missing and resumes.

use crate::input::Input;
use crate::lane::{Crew, Lane, MAX_INTERFACES, Schedule, TICK};
use crate::loops::{self, holder};
use crate::open::{Attempt, Opener, threads, window};
use crate::ring::SharedRing;
use crate::spec::validate;
use crate::stats::CaptureLive;
use crate::tap::Backlog;
use fluxcap_datapath::ring_advice;
use fluxcap_proto::v1::{self, CaptureSpec, Latency};
use fluxcap_ring::{Producer, RingDir, RingName};
use fluxcap_service::{Job, Refusal, State, Worker, causes};
use fluxcap_socket::{Affinity, LinkEvent, LinkWatch, Starvation, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Time between two updates of what is shown of the interfaces, when nothing special happens.
const SHOW: Duration = Duration::from_millis(200);
/// Time between two attempts to attach an interface.
const LOOK: Duration = Duration::from_secs(1);
/// Sleep between two looks for a ring that is missing.
const RING_RETRY: Duration = Duration::from_millis(50);
/// How long a capture that ends takes in what the kernel still holds, at most.
const DRAIN: Duration = Duration::from_millis(500);

/// The work of rxd.
#[derive(Debug)]
pub(crate) struct CaptureJob {
    /// Where the rings are.
    pub(crate) rings: RingDir,
}

impl Job for CaptureJob {
    const KIND: &'static str = "capture";
    type Spec = CaptureSpec;
    type Live = CaptureLive;

    fn validate(
        &self,
        _name: &str,
        spec: &CaptureSpec,
        others: &[(String, CaptureSpec)],
    ) -> Result<(), Refusal> {
        validate(spec, others)
    }

    fn admit(&self, name: &str, spec: &CaptureSpec) -> Result<(), Refusal> {
        loops::admit(&self.rings, name, spec)
    }

    fn run(&self, worker: &Worker<CaptureSpec, CaptureLive>) {
        match Capture::new(self, worker) {
            Ok(mut capture) => capture.run(),
            Err(reason) => worker.set_state(State::Failed, reason),
        }
    }
}

/// A running capture.
struct Capture<'w> {
    job: &'w CaptureJob,
    worker: &'w Worker<CaptureSpec, CaptureLive>,
    generation: u64,
    spec: CaptureSpec,
    ring: Option<Arc<SharedRing>>,
    inputs: Vec<Input>,
    /// What each thread reads, this one first.
    lanes: Vec<Lane>,
    schedule: Schedule,
    /// What of the schedule was not possible.
    remark: Option<String>,
    /// Of this thread.
    starvation: Starvation,
    links: LinkWatch,
    opener: Opener,
    /// Indexes of links that are gone.
    gone: Vec<u32>,
    /// When all interfaces were looked at last.
    looked: Instant,
    /// They are to be looked at now.
    look: bool,
    /// When the states were shown last; `None` when they have changed since.
    shown: Option<Instant>,
}

impl<'w> Capture<'w> {
    fn new(
        job: &'w CaptureJob,
        worker: &'w Worker<CaptureSpec, CaptureLive>,
    ) -> Result<Capture<'w>, String> {
        let (generation, spec) = worker.current();
        let mut capture = Capture {
            job,
            worker,
            generation,
            inputs: inputs(&spec, job, worker.name())?,
            lanes: lanes(&spec),
            spec: CaptureSpec::clone(&spec),
            schedule: Schedule::default(),
            remark: None,
            starvation: Starvation::watch(),
            ring: None,
            links: LinkWatch::open()
                .map_err(|e| format!("cannot watch interfaces: {}", causes(&e)))?,
            opener: opener()?,
            gone: Vec::new(),
            looked: Instant::now(),
            look: false,
            shown: None,
        };
        capture.take_schedule();
        Ok(capture)
    }

    /// Captures until told to stop.
    fn run(&mut self) {
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation
                && let Err(reason) = self.take_spec()
            {
                self.release();
                return self.worker.set_state(State::Failed, reason);
            }
            self.open_ring();
            self.follow_links();
            self.move_frames();
        }
        self.finish();
    }

    /// Gets the ring, or the one that took its place.
    fn open_ring(&mut self) {
        match self.ring.as_ref().map(|ring| ring.lock().retired()) {
            Some(None) => return,
            Some(Some(_)) => self.leave_ring(),
            None => {}
        }
        let opened = RingName::parse(&self.spec.ring)
            .and_then(|name| Producer::open(&self.job.rings, &name, &holder(self.worker.name())));
        match opened {
            Ok(ring) => self.enter_ring(ring),
            Err(error) => {
                self.release();
                self.worker
                    .set_state(State::Waiting, ring_advice(&self.spec.ring, &error));
            }
        }
    }

    /// Begins to write to a ring: attached interfaces are entered into its table, others are looked for.
    fn enter_ring(&mut self, ring: Producer) {
        let (live, epoch) = (self.worker.live(), ring.info().epoch);
        let ring = Arc::new(SharedRing::new(ring, threads(&self.spec)));
        for input in self.inputs.iter_mut().filter(|input| input.is_attached()) {
            match input.register(&ring, &mut self.lanes) {
                Ok(()) => input.begin_watch(&ring, &mut self.lanes, live),
                Err(error) => {
                    tracing::error!(capture = self.worker.name(), %error, "cannot enter the interface into the ring");
                    drop(input.detach(&ring, &mut self.lanes, live));
                }
            }
        }
        tracing::info!(capture = self.worker.name(), ring = %self.spec.ring, epoch, "writing to ring");
        self.ring = Some(ring);
        self.find_links();
    }

    /// The ring was retired: settles its books and lets go of it. The interfaces stay attached, their frames wait in the
    /// kernel for the next ring.
    fn leave_ring(&mut self) {
        let Some(ring) = self.ring.take() else { return };
        for lane in &mut self.lanes {
            lane.count(&ring, self.worker.live(), Backlog::GoesElsewhere);
        }
        close(ring);
    }

    /// Lets go of interfaces and ring, because the ring is gone: frames that pass now are nobody's.
    fn release(&mut self) {
        let (live, lanes) = (self.worker.live(), &mut self.lanes);
        if let Some(ring) = self.ring.take() {
            for input in &mut self.inputs {
                drop(input.detach(&ring, lanes, live));
            }
            close(ring);
        }
        self.inputs
            .iter_mut()
            .for_each(|input| input.close(lanes, live));
        self.shown = None;
    }

    /// Looks at all interfaces that there are.
    fn find_links(&mut self) {
        (self.shown, self.look, self.looked) = (None, false, Instant::now());
        if self.ring.is_none() {
            return;
        }
        let links = match self.links.links() {
            Ok(links) => links,
            Err(error) => {
                return tracing::warn!(capture = self.worker.name(), %error, "cannot list interfaces");
            }
        };
        for input in &mut self.inputs {
            match input.link() {
                Some(link)
                    if !links.iter().any(|other| other.index == link.index)
                        || links.iter().any(|other| input.is_replaced_by(other)) =>
                {
                    self.gone.push(link.index);
                }
                None if !links.iter().any(|link| input.is_named(link)) => input.set_absent(),
                _ => {}
            }
            for link in &links {
                if input.see(link) {
                    input.open(link, &self.opener);
                }
            }
        }
    }

    /// Takes note of links that came, went or changed.
    fn take_news(&mut self) {
        let (inputs, opener) = (&mut self.inputs, &self.opener);
        let has_ring = self.ring.is_some();
        let (gone, look) = (&mut self.gone, &mut self.look);
        let drained = self.links.drain(|event| match event {
            LinkEvent::Changed(link) => {
                for input in inputs.iter_mut() {
                    *look |= input.is_replaced_by(&link);
                    if input.see(&link) && has_ring {
                        input.open(&link, opener);
                    }
                }
            }
            LinkEvent::Removed { index, .. } => gone.push(index),
            LinkEvent::Overrun => *look = true,
        });
        self.shown = None;
        if let Err(error) = drained {
            tracing::warn!(capture = self.worker.name(), %error, "cannot watch interfaces");
            self.look = true;
        }
        if self.look {
            self.find_links();
        }
    }

    /// Takes what came of the attempts to open interfaces.
    fn take_opened(&mut self) {
        while let Some(Attempt {
            input,
            link,
            result,
        }) = self.opener.next()
        {
            self.shown = None;
            if let Some(input) = self.inputs.get_mut(input) {
                match &self.ring {
                    Some(ring) => input.take(&link, result, ring),
                    None => input.forget(),
                }
                // If it was for nothing, there may be another one of that name by now.
                self.look |= !input.is_attached();
            }
        }
    }

    /// Whether a link that came or went concerns the threads.
    fn is_news(&self) -> bool {
        let gone = |input: &Input| self.gone.iter().any(|index| input.is_attached_to(*index));
        self.inputs.iter().any(|input| {
            input.is_opened() || input.has_successors() || gone(input) || input.wants_successors()
        })
    }

    /// Gives the threads links that came, and takes from them those that went.
    fn follow_links(&mut self) {
        let mut taps = Vec::new();
        for input in &mut self.inputs {
            if self.ring.is_some() && input.wants_successors() {
                input.open_successors(&self.opener, &mut self.lanes);
            }
            if let Some(ring) = &self.ring {
                input.attach(ring, &mut self.lanes, self.worker.live());
            }
            if let Some(ring) = &self.ring
                && input.has_successors()
            {
                taps.extend(input.succeed(ring, &mut self.lanes, self.worker.live()));
            }
            if let Some(ring) = &self.ring
                && self.gone.iter().any(|index| input.is_attached_to(*index))
            {
                taps.extend(input.detach(ring, &mut self.lanes, self.worker.live()));
            }
        }
        self.gone.clear();
        if !taps.is_empty() {
            // There may be another one of that name by now.
            (self.shown, self.look) = (None, true);
            // That takes a tenth of a second, in which frames would come in at the others. Nobody waits for it.
            let _ = Builder::new()
                .name("close".to_owned())
                .spawn(move || drop(taps));
        }
    }

    /// Tries interfaces that are not attached once more: what kept them from it may be over, and news can get lost.
    fn look_again(&mut self) {
        let now = self.look || self.looked.elapsed() >= LOOK;
        if now && !self.inputs.iter().all(Input::is_attached) {
            self.find_links();
        }
    }

    /// A changed spec: edits and scheduling are taken over on the fly, anything else starts the capture anew.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        self.shown = None;
        let mut same = CaptureSpec {
            edits: self.spec.edits.clone(),
            scheduling: self.spec.scheduling.clone(),
            merge_window_us: self.spec.merge_window_us,
            ..CaptureSpec::clone(&spec)
        };
        for (new, old) in same.interfaces.iter_mut().zip(&self.spec.interfaces) {
            new.vlan_push = old.vlan_push;
        }
        let goes_on = same == self.spec;
        self.spec = CaptureSpec::clone(&spec);
        self.take_schedule();
        if !goes_on {
            return self.renew(&spec);
        }
        self.spread();
        for input in &mut self.inputs {
            input
                .set_edits(&spec, &mut self.lanes)
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// A spec by which sockets, interfaces or the ring are others. Interfaces that stay are read without a break.
    fn renew(&mut self, spec: &CaptureSpec) -> Result<(), String> {
        // What is being opened for the spec before is closed again.
        self.opener = opener()?;
        let mut new = inputs(spec, self.job, self.worker.name())?;
        let mut taps = Vec::new();
        for (number, slot) in new.iter_mut().enumerate() {
            let stays = |input: &Input| input.is_of(&spec.interfaces[number].name);
            let Some(at) = self.inputs.iter().position(stays) else {
                continue;
            };
            let mut input = self.inputs.swap_remove(at);
            if let Some(ring) = &self.ring
                && input.must_let_go(spec)
            {
                taps.extend(input.detach(ring, &mut self.lanes, self.worker.live()));
            }
            *slot = input;
        }
        // Those that are left are wanted no more.
        for mut input in std::mem::replace(&mut self.inputs, new) {
            match &self.ring {
                Some(ring) => {
                    taps.extend(input.detach(ring, &mut self.lanes, self.worker.live()));
                }
                None => input.close(&mut self.lanes, self.worker.live()),
            }
        }
        drop(taps);
        // By way of places that none of them has, so that no two are at the same.
        for offset in [MAX_INTERFACES, 0] {
            for (number, input) in self.inputs.iter_mut().enumerate() {
                input.renumber(offset + number, &mut self.lanes);
            }
        }
        for input in &mut self.inputs {
            input
                .renew(spec, &mut self.lanes)
                .map_err(|e| e.to_string())?;
        }
        let other = |ring: &Arc<SharedRing>| !ring.is_called(&spec.ring);
        if self.ring.as_ref().is_some_and(other) {
            self.forget_places();
            self.leave_ring();
        }
        self.spread();
        self.look = true;
        Ok(())
    }

    /// Divides the sockets anew when there are to be more or fewer threads.
    fn spread(&mut self) {
        let mut lanes = lanes(&self.spec);
        let threads = lanes.len().max(1);
        if threads == self.lanes.len() {
            return;
        }
        if let Some(ring) = &self.ring {
            let live = self.worker.live();
            self.lanes
                .iter_mut()
                .for_each(|lane| lane.flush(ring, live));
        }
        let taps = self.lanes.iter_mut().flat_map(Lane::take_all);
        for (number, tap) in taps.enumerate() {
            if let Some(lane) = lanes.get_mut(number % threads) {
                lane.add(tap);
            }
        }
        self.lanes = lanes;
        if let Some(ring) = &self.ring {
            ring.set_threads(threads);
        }
    }

    /// Takes the scheduling of the spec over, for this thread; the others ask for it when they start.
    fn take_schedule(&mut self) {
        let wanted = self.spec.scheduling.clone().unwrap_or_default();
        let places = !wanted.cpus.is_empty() || wanted.priority > 0;
        let any = self.schedule.any;
        self.schedule = Schedule {
            any: any.or_else(|| Affinity::of_thread().ok().filter(|_| places)),
            cpus: wanted.cpus,
            priority: wanted.priority,
            spin: Duration::from_micros(wanted.spin_us.into()),
            hurry: self.spec.latency() == Latency::Low,
            window: window(&self.spec),
        };
        self.remark = self.schedule.apply(0);
    }

    /// Shows the state of the interfaces, and of the whole as that of the worst of them.
    fn show(&mut self) {
        if self.shown.is_some_and(|shown| shown.elapsed() < SHOW) {
            return;
        }
        self.shown = Some(Instant::now());
        let statuses: Vec<_> = self.inputs.iter_mut().map(Input::status).collect();
        if self.ring.is_some() {
            let running = i32::from(v1::State::from(State::Running));
            let reasons: Vec<&str> = statuses
                .iter()
                .map(|s| s.reason.as_str())
                .chain(self.remark.as_deref())
                .filter(|r| !r.is_empty())
                .collect();
            let state = if statuses.iter().any(|s| s.state != running) {
                State::Waiting
            } else {
                State::Running
            };
            self.worker.set_state(state, reasons.join("; "));
        }
        self.worker
            .live()
            .set_details(statuses, self.inputs.first().map_or("", Input::filter_at));
    }

    /// The end: takes in what the kernel still holds, bounded in time, and closes the ring's books.
    fn finish(&mut self) {
        let end = Instant::now() + DRAIN;
        self.lanes.iter().for_each(Lane::take_no_more);
        // The block that the kernel is filling is handed over after the retire time-out: until then frames are still to come.
        let patience = Duration::from_micros(u64::from(self.spec.block_retire_us).max(1000)) * 2;
        let quiet = Instant::now() + patience;
        if let Some(ring) = &self.ring {
            for lane in &mut self.lanes {
                loop {
                    let left = quiet.saturating_duration_since(Instant::now());
                    lane.sleep(&[self.links.as_fd()], &self.schedule, left);
                    let live = self.worker.live();
                    let turn = lane.turn(ring, live, self.schedule.window, || true);
                    if left.is_zero() || turn.is_err() {
                        break;
                    }
                }
            }
            for lane in &mut self.lanes {
                lane.flush(ring, self.worker.live());
                lane.drain(ring, self.worker.live(), end);
            }
        }
        if self.worker.deleting() {
            self.forget_places();
        }
        self.release();
        self.show();
    }

    /// Nothing fills the ring any more: who looks for loops need not see its interfaces.
    fn forget_places(&self) {
        if let Some(ring) = &self.ring {
            ring.lock().forget_places();
        }
    }

    /// Moves frames until there is something else to do. One thread looks after each turn whether there is; several are
    /// stopped only for what concerns them all.
    fn move_frames(&mut self) {
        self.show();
        let Some(ring) = self.ring.clone() else {
            return self.wait_for_ring();
        };
        let mut lanes = std::mem::take(&mut self.lanes);
        let moved = match lanes.split_first_mut() {
            Some((own, [])) => self.turn(own, &ring, None).map(drop),
            Some((own, others)) => self.lead(own, others, &ring),
            None => Ok(()),
        };
        self.lanes = lanes;
        if let Err(error) = moved {
            tracing::error!(capture = self.worker.name(), %error, "cannot write to the ring");
            drop(ring);
            self.release();
        }
    }

    /// Runs the other threads, and takes this one's turns, until all must stand still.
    fn lead(
        &mut self,
        own: &mut Lane,
        others: &mut [Lane],
        ring: &SharedRing,
    ) -> Result<(), fluxcap_ring::Error> {
        let (worker, schedule) = (self.worker, self.schedule.clone());
        let (crew, mut reins) = match Crew::new() {
            Ok(crew) => crew,
            Err(error) => return self.cannot_start(&error),
        };
        std::thread::scope(|scope| {
            let started = crew.start(scope, &mut reins, others, ring, worker.live(), &schedule);
            let mut moved = Ok(false);
            while started.is_ok() && matches!(moved, Ok(false)) {
                self.show();
                moved = self.turn(own, ring, Some(crew.calls()));
            }
            crew.end(&mut reins, || worker.stop_requested());
            if let Err(error) = started {
                return self.cannot_start(&error);
            }
            match crew.take_error() {
                Some(error) => Err(error),
                None => moved.map(drop),
            }
        })
    }

    /// The system has no threads for us, or no descriptors: that may pass.
    fn cannot_start(&self, error: &std::io::Error) -> Result<(), fluxcap_ring::Error> {
        tracing::error!(capture = self.worker.name(), %error, "cannot start the threads of the capture");
        std::thread::sleep(RING_RETRY);
        Ok(())
    }

    /// Sleeps until a frame is there, a link changes, somebody wants something, or the tick is over; then takes a turn. Whether
    /// there is something to do for which all threads must stand still.
    fn turn(
        &mut self,
        lane: &mut Lane,
        ring: &SharedRing,
        calls: Option<BorrowedFd<'_>>,
    ) -> Result<bool, fluxcap_ring::Error> {
        self.look_again();
        let worker = self.worker;
        let wake = worker.wake_fd();
        let others = [
            wake,
            self.links.as_fd(),
            self.opener.fd(),
            calls.unwrap_or(wake),
        ];
        let ready = lane.sleep(&others, &self.schedule, TICK);
        if ready.readable(1) || ready.failed(1) {
            self.take_news();
        }
        if ready.readable(2) {
            self.take_opened();
        }
        let stop = || worker.stop_requested();
        lane.turn(ring, worker.live(), self.schedule.window, stop)?;
        self.starvation.relieve();
        Ok(worker.stop_requested()
            || worker.generation() != self.generation
            || self.is_news()
            || (calls.is_some() && ready.readable(3))
            || ring.lock().retired().is_some())
    }

    /// Sleeps until it is time to look for the ring again.
    fn wait_for_ring(&mut self) {
        let fds = [self.worker.wake_fd(), self.links.as_fd(), self.opener.fd()];
        match poll(&fds, RING_RETRY) {
            // All links are looked at once there is a ring. Until then these would only keep poll from sleeping.
            Ok(ready) if !ready.is_empty() => {
                self.take_news();
                self.take_opened();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(capture = self.worker.name(), %error, "poll");
                std::thread::sleep(RING_RETRY); // rather than spin on an error that stays
            }
        }
    }
}

/// Closes a ring; no other thread has it any more.
fn close(ring: Arc<SharedRing>) {
    if let Some(ring) = Arc::into_inner(ring) {
        ring.close();
    }
}

fn inputs(spec: &CaptureSpec, job: &CaptureJob, capture: &str) -> Result<Vec<Input>, String> {
    (spec.interfaces.iter().enumerate())
        .map(|(index, interface)| {
            let guard = loops::guard(&job.rings, capture, spec, &interface.name);
            Input::new(spec, index, capture, guard)
        })
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())
}

fn opener() -> Result<Opener, String> {
    Opener::new().map_err(|e| format!("cannot make a pipe: {}", causes(&e)))
}

fn lanes(spec: &CaptureSpec) -> Vec<Lane> {
    // Frames that are merged pass through one thread, wherever their sockets are.
    let threads = match window(spec) {
        Duration::ZERO => threads(spec),
        _ => 1,
    };
    (0..threads).map(|_| Lane::new()).collect()
}
