//! A transmit as a worker: gets its rings and its interface, runs the data path, waits for what is missing and resumes.

use crate::datapath::{self, BURST, Buffers};
use crate::feed::Feed;
use crate::merge::{MAX_LANES, Now, Pick, pick};
use crate::output::Output;
use crate::outputs::Outputs;
use crate::stats::{Details, TransmitLive};
use fluxcap_headers::Edits;
use fluxcap_options::{
    SpecError, TransmitIo, compile_edits, validate_interfaces, validate_scheduling,
};
use fluxcap_proto::v1::{self, TransmitSpec, start::At};
use fluxcap_ring::{Consumer, Observer, RingDir, RingName, Start, wait_any};
use fluxcap_service::{Job, Refusal, State, Worker, realtime_ns};
use fluxcap_socket::{Affinity, MAX_OUTPUTS, place_thread};
use std::time::{Duration, Instant};

/// How long a frame is held back for an earlier one from another ring, unless the spec says otherwise.
const MERGE_WINDOW: Duration = Duration::from_millis(2);
/// Longest merge window that makes sense: a ring at full rate must hold it.
const MAX_MERGE_WINDOW_US: u32 = 10_000_000;
/// Time between two looks at the link while frames go out: not every loss of the link shows in a send.
const LOOK_BUSY: Duration = Duration::from_millis(20);
/// The same while there is nothing to send.
const LOOK_IDLE: Duration = Duration::from_millis(100);
/// Time between two updates of what is shown, when nothing special happens.
const SHOW: Duration = Duration::from_millis(200);
/// Longest sleep on the doorbell of a ring, which is not to be relied on for longer.
const NAP: Duration = Duration::from_millis(10);
/// With low latency: how long to look for frames before a sleep, which costs as much and more on each side.
const SPIN: Duration = Duration::from_micros(50);
/// CPUs from which on somebody can be spared for that.
const SPIN_CPUS: usize = 4;
/// How long a transmit that ends still sends what the rings hold.
const DRAIN: Duration = Duration::from_millis(500);

/// The work of txd.
#[derive(Debug)]
pub(crate) struct TransmitJob {
    /// Where the rings are.
    pub(crate) rings: RingDir,
}

impl Job for TransmitJob {
    const KIND: &'static str = "transmit";
    type Spec = TransmitSpec;
    type Live = TransmitLive;

    fn validate(
        &self,
        _name: &str,
        spec: &TransmitSpec,
        _others: &[(String, TransmitSpec)],
    ) -> Result<(), Refusal> {
        if spec.rings.is_empty() || spec.rings.len() > MAX_LANES {
            return Err(Refusal::invalid(
                "rings",
                format!("name 1 to {MAX_LANES} rings"),
            ));
        }
        for (index, ring) in spec.rings.iter().enumerate() {
            RingName::parse(ring).map_err(|e| Refusal::invalid("rings", e.to_string()))?;
            if spec.rings[..index].contains(ring) {
                return Err(Refusal::invalid("rings", format!("{ring} is named twice")));
            }
        }
        let refused = |error: SpecError| Refusal::invalid(error.field, error.problem);
        let interfaces = spec.interfaces.iter().map(String::as_str);
        validate_interfaces(interfaces, MAX_OUTPUTS).map_err(refused)?;
        TransmitIo::from_spec(&spec.io).map_err(refused)?;
        validate_scheduling(&spec.scheduling.clone().unwrap_or_default()).map_err(refused)?;
        if spec.merge_window_us > MAX_MERGE_WINDOW_US {
            return Err(Refusal::invalid("merge_window_us", "must be at most 10 s"));
        }
        compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(refused)?;
        self.refuse_loop(spec)
    }

    fn run(&self, worker: &Worker<TransmitSpec, TransmitLive>) {
        match Transmit::new(self, worker) {
            Ok(mut transmit) => transmit.run(),
            Err(reason) => worker.set_state(State::Failed, reason),
        }
    }
}

impl TransmitJob {
    /// A frame that is sent to the interface from which its ring is filled could come back and be sent again, for ever.
    fn refuse_loop(&self, spec: &TransmitSpec) -> Result<(), Refusal> {
        if spec.allow_loop {
            return Ok(());
        }
        for ring in &spec.rings {
            // A ring that is not there yet has no sources; what it gets later is not checked again.
            let observed =
                RingName::parse(ring).and_then(|name| Observer::open(&self.rings, &name));
            let Ok(observer) = observed else { continue };
            let Ok(stats) = observer.stats() else {
                continue;
            };
            let feeds = |interface: &&String| {
                stats
                    .sources
                    .iter()
                    .any(|source| source.name == **interface)
            };
            if let Some(interface) = spec.interfaces.iter().find(feeds) {
                return Err(Refusal::Precondition(format!(
                    "interface {interface} feeds ring {ring}, so what is sent there could come back in; \
                     use another interface, or --allow-loop if it cannot"
                )));
            }
        }
        Ok(())
    }
}

/// A running transmit.
struct Transmit<'w> {
    job: &'w TransmitJob,
    worker: &'w Worker<TransmitSpec, TransmitLive>,
    generation: u64,
    spec: TransmitSpec,
    edits: Edits,
    window: Duration,
    feeds: Vec<Feed>,
    outputs: Outputs,
    buffers: Buffers,
    /// How long to look for frames before a sleep.
    spin: Duration,
    /// The CPUs that this thread could use before it was given some.
    any: Option<Affinity>,
    /// What of the scheduling that was asked for cannot be had; often nothing.
    remark: String,
    looked: Instant,
    shown: Instant,
}

impl<'w> Transmit<'w> {
    fn new(
        job: &'w TransmitJob,
        worker: &'w Worker<TransmitSpec, TransmitLive>,
    ) -> Result<Transmit<'w>, String> {
        let (generation, spec) = worker.current();
        let (now, mut any) = (Instant::now(), None);
        Ok(Transmit {
            job,
            worker,
            generation,
            edits: edits(&spec)?,
            window: window(&spec),
            feeds: feeds(&spec, worker.name()),
            outputs: Outputs::new(&spec).map_err(|e| format!("cannot watch interfaces: {e}"))?,
            spec: TransmitSpec::clone(&spec),
            buffers: Buffers::default(),
            spin: spin(&spec),
            remark: schedule(&spec, &mut any),
            any,
            looked: now,
            shown: now,
        })
    }

    /// Transmits until told to stop.
    fn run(&mut self) {
        self.turn();
        self.show();
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation
                && let Err(reason) = self.take_spec()
            {
                return self.worker.set_state(State::Failed, reason);
            }
            let busy = self.turn();
            if !busy && !self.spin() {
                self.sleep();
            }
            if self.looked.elapsed() >= if busy { LOOK_BUSY } else { LOOK_IDLE } {
                self.look();
            }
        }
        self.finish();
    }

    /// One turn of the data path: fetch, merge, send. False when there was nothing to send.
    fn turn(&mut self) -> bool {
        for feed in &mut self.feeds {
            feed.fetch(&self.job.rings, self.worker.live());
        }
        self.send()
    }

    /// Sends what is due of the frames at hand. False when there was nothing.
    fn send(&mut self) -> bool {
        let live = self.worker.live();
        let mut picks = [Pick::default(); BURST];
        let now = Now {
            realtime_ns: realtime_ns(),
            monotonic: Instant::now(),
        };
        let count = pick(&self.feeds, self.window, now, &mut picks);
        if count == 0 {
            return false;
        }
        let truncate = self.spec.oversize() == v1::OversizePolicy::Truncate;
        let picks = &picks[..count];
        if !datapath::send(
            picks,
            &mut self.feeds,
            &mut self.edits,
            truncate,
            &mut self.outputs,
            &mut self.buffers,
            live,
        ) {
            self.look();
        }
        true
    }

    /// Looks for frames for a while: a sleep and the call that ends it take longer than what can be expected to come soon.
    fn spin(&self) -> bool {
        if self.spin.is_zero() {
            return false;
        }
        let end = Instant::now() + self.spin;
        loop {
            let mut rings = self.feeds.iter().filter_map(Feed::ring);
            if rings.any(Consumer::is_ready) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until a ring rings, or a frame that is held back is due, or it is time to look around.
    fn sleep(&self) {
        let held_back = self.feeds.iter().any(Feed::has_frames);
        let timeout = if held_back {
            self.window.min(Duration::from_millis(1))
        } else {
            NAP
        };
        // A ring whose frames are held back has more of them, perhaps; only the others can end the wait.
        let empty = self.feeds.iter().filter(|feed| !feed.has_frames());
        let mut open = empty.filter_map(Feed::ring);
        let Some(first) = open.next() else {
            return std::thread::sleep(timeout);
        };
        let mut rings = [first; MAX_LANES];
        let count = 1 + rings[1..]
            .iter_mut()
            .zip(open)
            .map(|(slot, ring)| *slot = ring)
            .count();
        // Nothing to do but to look at the rings is not worth a turn.
        let quiet = count == self.feeds.len();
        loop {
            match wait_any(&rings[..count], timeout) {
                Ok(false) if quiet && self.may_sleep_on() => {}
                Ok(_) => return,
                // The ring is broken: the next look at it says so.
                Err(_) => return std::thread::sleep(timeout),
            }
        }
    }

    /// Whether there is nothing to look after but frames to come.
    fn may_sleep_on(&self) -> bool {
        let mut rings = self.feeds.iter().filter_map(Feed::ring);
        !self.worker.stop_requested()
            && self.worker.generation() == self.generation
            && self.looked.elapsed() < LOOK_IDLE
            && !rings.any(|ring| ring.retired().is_some())
    }

    /// Follows the link and shows how things are.
    fn look(&mut self) {
        self.looked = Instant::now();
        let mut changed = self.outputs.follow();
        for feed in &mut self.feeds {
            changed |= feed.take_changed();
        }
        if changed || self.shown.elapsed() >= SHOW {
            self.show();
        }
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let rings: Vec<_> = self.feeds.iter_mut().map(Feed::status).collect();
        let outputs = self.outputs.list().iter();
        let mut reasons: Vec<String> = outputs.filter_map(Output::reason).collect();
        reasons.extend(
            rings
                .iter()
                .map(|ring| ring.reason.clone())
                .filter(|reason| !reason.is_empty()),
        );
        let state = if reasons.is_empty() {
            State::Running
        } else {
            State::Waiting
        };
        reasons.extend(Some(self.remark.clone()).filter(|remark| !remark.is_empty()));
        self.worker.set_state(state, reasons.join("; "));
        let outputs = self.outputs.list().iter();
        let interfaces = outputs
            .map(|output| (output.status(), output.live.clone()))
            .collect();
        self.worker
            .live()
            .set_details(Details { interfaces, rings });
    }

    /// A changed spec: what can be taken over on the fly is; other rings or another interface begin anew.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        self.send_rest();
        self.edits = edits(&spec)?;
        self.window = window(&spec);
        if (spec.latency, &spec.scheduling) != (self.spec.latency, &self.spec.scheduling) {
            (self.spin, self.remark) = (spin(&spec), schedule(&spec, &mut self.any));
        }
        if spec.rings != self.spec.rings {
            let mut old = std::mem::take(&mut self.feeds);
            for feed in feeds(&spec, self.worker.name()) {
                let known = old.iter().position(|old| old.name() == feed.name());
                self.feeds
                    .push(known.map_or(feed, |at| old.swap_remove(at)));
            }
            old.iter_mut().for_each(Feed::detach);
        }
        let way =
            |spec: &TransmitSpec| (spec.interfaces.clone(), spec.io.clone(), spec.qdisc_bypass);
        if way(&spec) != way(&self.spec) {
            self.outputs =
                Outputs::new(&spec).map_err(|e| format!("cannot watch interfaces: {e}"))?;
        }
        self.spec = TransmitSpec::clone(&spec);
        self.show();
        Ok(())
    }

    /// Sends the frames at hand, whether or not an earlier one may come: they are out of their rings and must be accounted for.
    fn send_rest(&mut self) {
        self.window = Duration::ZERO;
        while self.send() {}
    }

    /// The end: sends what the rings still hold, bounded in time. Deleted, it gives its places in the rings back; otherwise
    /// they stay, so that the next txd goes on from there.
    fn finish(&mut self) {
        let end = Instant::now() + DRAIN;
        while Instant::now() < end && self.turn() {}
        self.send_rest();
        if self.worker.deleting() {
            self.feeds.iter_mut().for_each(Feed::detach);
        }
    }
}

fn edits(spec: &TransmitSpec) -> Result<Edits, String> {
    compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(|e| e.to_string())
}

fn window(spec: &TransmitSpec) -> Duration {
    match spec.merge_window_us {
        0 => MERGE_WINDOW,
        us => Duration::from_micros(us.into()),
    }
}

/// How long to look for frames before a sleep: as long as it says; else, for low latency, unless that would keep a CPU from others.
fn spin(spec: &TransmitSpec) -> Duration {
    let asked = spec.scheduling.as_ref().map_or(0, |s| s.spin_us);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match asked {
        0 if spec.latency() == v1::Latency::Low && cpus >= SPIN_CPUS => SPIN,
        us => Duration::from_micros(us.into()),
    }
}

/// Places the calling thread as the spec says. Returns what of it cannot be had; nothing is tried when nothing is asked for.
fn schedule(spec: &TransmitSpec, any: &mut Option<Affinity>) -> String {
    let wanted = spec.scheduling.clone().unwrap_or_default();
    if any.is_none() && wanted.cpus.is_empty() && wanted.priority == 0 {
        return String::new();
    }
    let placed = match any {
        Some(any) => Ok(*any),
        None => Affinity::of_thread(),
    };
    let placed = placed.and_then(|all| {
        *any = Some(all);
        place_thread(0, &wanted.cpus, &all, wanted.priority)
    });
    placed
        .err()
        .map_or(String::new(), |error| error.to_string())
}

fn feeds(spec: &TransmitSpec, name: &str) -> Vec<Feed> {
    let start = match spec.start.and_then(|start| start.at) {
        None | Some(At::Newest(_)) => Start::Newest,
        Some(At::Oldest(_)) => Start::Oldest,
        Some(At::Seq(seq)) => Start::Seq(seq),
        Some(At::TimeNs(time)) => Start::Time(time),
    };
    spec.rings
        .iter()
        .map(|ring| Feed::new(ring, format!("txd {name}"), start))
        .collect()
}
