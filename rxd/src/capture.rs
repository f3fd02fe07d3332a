//! A capture as a worker: gets its ring and its interfaces, runs the data path, waits for what is missing and resumes.

use crate::input::{BLOCK_BYTES, BUFFER_BYTES, Input};
use crate::stats::CaptureLive;
use fluxcap_options::{
    CaptureIo, SpecError, compile_edits, validate_interfaces, validate_scheduling,
    validate_threads, vlan_tag,
};
use fluxcap_proto::v1::{self, CaptureSpec};
use fluxcap_ring::{Producer, RingDir, RingName};
use fluxcap_service::{Job, Refusal, State, Worker, format_size};
use fluxcap_socket::{LinkEvent, LinkWatch, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Most interfaces of one capture: the ring's table of sources has as many places.
const MAX_INTERFACES: usize = 32;
/// Longest sleep. The kernel's counters are read at least as often.
const TICK: Duration = Duration::from_millis(500);
/// Time between two updates of what is shown of the interfaces, when nothing special happens.
const SHOW: Duration = Duration::from_millis(200);
/// Time between two attempts to attach an interface.
const LOOK: Duration = Duration::from_secs(1);
/// Sleep between two looks for a ring that is missing.
const RING_RETRY: Duration = Duration::from_millis(50);
/// How long a capture that ends takes in what the kernel still holds.
const DRAIN: Duration = Duration::from_millis(1000);

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
        validate_taps(spec)?;
        let ring =
            RingName::parse(&spec.ring).map_err(|e| Refusal::invalid("ring", e.to_string()))?;
        if let Some((other, _)) = others.iter().find(|(_, other)| other.ring == spec.ring) {
            return Err(Refusal::Precondition(format!(
                "capture \"{other}\" feeds ring {ring} already, and a ring has one producer; \
                 give one capture several interfaces (eth1,eth2), or each its own ring"
            )));
        }
        compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(refused)?;
        CaptureIo::from_spec(&spec.io).map_err(refused)?;
        validate_threads(spec.threads).map_err(refused)?;
        validate_scheduling(&spec.scheduling.clone().unwrap_or_default()).map_err(refused)?;
        validate_buffer(spec)
    }

    fn run(&self, worker: &Worker<CaptureSpec, CaptureLive>) {
        match Capture::new(self, worker) {
            Ok(mut capture) => capture.run(),
            Err(reason) => worker.set_state(State::Failed, reason),
        }
    }
}

fn refused(error: SpecError) -> Refusal {
    Refusal::invalid(error.field, error.problem)
}

fn validate_taps(spec: &CaptureSpec) -> Result<(), Refusal> {
    let names = spec.interfaces.iter().map(|i| i.name.as_str());
    validate_interfaces(names, MAX_INTERFACES).map_err(refused)?;
    for interface in &spec.interfaces {
        if let Some(tag) = &interface.vlan_push {
            vlan_tag("interfaces.vlan_push", tag).map_err(refused)?;
            if spec
                .edits
                .as_ref()
                .is_some_and(|e| e.vlan_replace.is_some())
            {
                return Err(Refusal::invalid(
                    "interfaces.vlan_push",
                    "cannot be combined with edits.vlan_replace",
                ));
            }
        }
    }
    Ok(())
}

fn validate_buffer(spec: &CaptureSpec) -> Result<(), Refusal> {
    let block = if spec.block_bytes == 0 {
        BLOCK_BYTES
    } else {
        spec.block_bytes
    };
    let buffer = if spec.buffer_bytes == 0 {
        BUFFER_BYTES
    } else {
        spec.buffer_bytes
    };
    if !block.is_power_of_two() || !(128 << 10..=1 << 30).contains(&block) {
        return Err(Refusal::invalid(
            "block_bytes",
            "must be a power of two from 128K to 1G",
        ));
    }
    if buffer < 2 * u64::from(block) || buffer > 4 << 30 {
        let least = format_size(2 * u64::from(block));
        return Err(Refusal::invalid(
            "buffer_bytes",
            format!("must be from two blocks ({least}) to 4 GiB"),
        ));
    }
    if !spec.block_retire_us.is_multiple_of(1000) || spec.block_retire_us > 1_000_000 {
        return Err(Refusal::invalid(
            "block_retire_us",
            "must be whole milliseconds, at most 1 s",
        ));
    }
    Ok(())
}

/// A running capture.
struct Capture<'w> {
    job: &'w CaptureJob,
    worker: &'w Worker<CaptureSpec, CaptureLive>,
    generation: u64,
    spec: CaptureSpec,
    ring: Option<Producer>,
    inputs: Vec<Input>,
    links: LinkWatch,
    /// When the kernel's counters were read last.
    counted: Instant,
    /// Frames came since then.
    dirty: bool,
    /// When all interfaces were looked at last.
    looked: Instant,
    /// When the states were shown last; `None` when they have changed since.
    shown: Option<Instant>,
}

impl<'w> Capture<'w> {
    fn new(
        job: &'w CaptureJob,
        worker: &'w Worker<CaptureSpec, CaptureLive>,
    ) -> Result<Capture<'w>, String> {
        let (generation, spec) = worker.current();
        Ok(Capture {
            job,
            worker,
            generation,
            inputs: inputs(&spec)?,
            spec: CaptureSpec::clone(&spec),
            ring: None,
            links: LinkWatch::open().map_err(|e| format!("cannot watch interfaces: {e}"))?,
            counted: Instant::now(),
            dirty: false,
            looked: Instant::now(),
            shown: None,
        })
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
            self.show();
            if self.sleep() {
                self.follow_links();
            }
            self.pump();
            self.count();
            self.look_again();
        }
        self.finish();
    }

    /// Gets the ring, or the one that took its place.
    fn open_ring(&mut self) {
        match self.ring.as_ref().map(Producer::retired) {
            Some(None) => return,
            Some(Some(_)) => self.leave_ring(),
            None => {}
        }
        let opened = RingName::parse(&self.spec.ring).and_then(|name| {
            Producer::open(
                &self.job.rings,
                &name,
                &format!("rxd {}", self.worker.name()),
            )
        });
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
    fn enter_ring(&mut self, mut ring: Producer) {
        let live = self.worker.live();
        for input in self.inputs.iter_mut().filter(|input| input.is_attached()) {
            if let Err(error) = input.register(&mut ring) {
                tracing::error!(capture = self.worker.name(), %error, "cannot enter the interface into the ring");
                input.detach(&mut ring, live);
            }
        }
        tracing::info!(capture = self.worker.name(), ring = %self.spec.ring, epoch = ring.info().epoch, "writing to ring");
        self.ring = Some(ring);
        self.find_links();
    }

    /// The ring was retired: settles its books and lets go of it. The interfaces stay attached, their frames wait in the
    /// kernel for the next ring.
    fn leave_ring(&mut self) {
        let Some(mut ring) = self.ring.take() else {
            return;
        };
        for input in &mut self.inputs {
            input.leave(&mut ring, self.worker.live());
        }
        ring.close();
    }

    /// Lets go of interfaces and ring, because the ring is gone: frames that pass now are nobody's.
    fn release(&mut self) {
        if let Some(mut ring) = self.ring.take() {
            self.inputs
                .iter_mut()
                .for_each(|input| input.detach(&mut ring, self.worker.live()));
            ring.close();
        }
        self.inputs
            .iter_mut()
            .for_each(|input| input.close(self.worker.live()));
        self.shown = None;
    }

    /// Looks at all interfaces that there are.
    fn find_links(&mut self) {
        (self.shown, self.looked) = (None, Instant::now());
        let Some(ring) = &mut self.ring else { return };
        let links = match self.links.links() {
            Ok(links) => links,
            Err(error) => {
                return tracing::warn!(capture = self.worker.name(), %error, "cannot list interfaces");
            }
        };
        for input in &mut self.inputs {
            if !links.iter().any(|link| input.is_attached_to(link.index)) {
                input.detach(ring, self.worker.live());
            }
            links.iter().for_each(|link| input.see(link, ring));
        }
    }

    /// Takes note of links that came, went or changed.
    fn follow_links(&mut self) {
        let Some(ring) = &mut self.ring else {
            // All links are looked at once there is a ring; until then the news would only keep poll from sleeping.
            let _ = self.links.drain(|_| {});
            return;
        };
        let (inputs, live, shown) = (&mut self.inputs, self.worker.live(), &mut self.shown);
        let mut lost_events = false;
        let drained = self.links.drain(|event| {
            *shown = None;
            match event {
                LinkEvent::Changed(link) => {
                    inputs.iter_mut().for_each(|input| input.see(&link, ring))
                }
                LinkEvent::Removed { index, .. } => {
                    inputs
                        .iter_mut()
                        .filter(|i| i.is_attached_to(index))
                        .for_each(|input| input.detach(ring, live));
                }
                LinkEvent::Overrun => lost_events = true,
            }
        });
        if let Err(error) = drained {
            tracing::warn!(capture = self.worker.name(), %error, "cannot watch interfaces");
            lost_events = true;
        }
        if lost_events {
            self.find_links();
        }
    }

    /// Tries interfaces that are not attached once more: what kept them from it may be over, and news can get lost.
    fn look_again(&mut self) {
        if self.looked.elapsed() >= LOOK && !self.inputs.iter().all(Input::is_attached) {
            self.find_links();
        }
    }

    /// Reads the kernel's counters once a tick, and once more when traffic has ended, so that the books close.
    fn count(&mut self) {
        if self.counted.elapsed() < TICK || !self.dirty {
            return;
        }
        let Some(ring) = &mut self.ring else { return };
        for input in &mut self.inputs {
            input.read_statistics(ring, self.worker.live());
        }
        (self.counted, self.dirty) = (Instant::now(), false);
    }

    /// A changed spec: edits are taken over on the fly, anything else starts the capture anew.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        self.shown = None;
        let mut same_but_edits = CaptureSpec {
            edits: self.spec.edits.clone(),
            ..CaptureSpec::clone(&spec)
        };
        for (new, old) in same_but_edits
            .interfaces
            .iter_mut()
            .zip(&self.spec.interfaces)
        {
            new.vlan_push = old.vlan_push;
        }
        let only_edits = same_but_edits == self.spec;
        self.spec = CaptureSpec::clone(&spec);
        if !only_edits {
            self.release();
            self.inputs = inputs(&spec)?;
            return Ok(());
        }
        for (index, input) in self.inputs.iter_mut().enumerate() {
            input.set_edits(&spec, index).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Shows the state of the interfaces, and of the whole as that of the worst of them.
    fn show(&mut self) {
        if self.shown.is_some_and(|shown| shown.elapsed() < SHOW) {
            return;
        }
        self.shown = Some(Instant::now());
        let statuses: Vec<_> = self
            .inputs
            .iter()
            .map(|input| input.status().clone())
            .collect();
        if self.ring.is_some() {
            let running = i32::from(v1::State::from(State::Running));
            let reasons: Vec<&str> = statuses
                .iter()
                .map(|s| s.reason.as_str())
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
        // The block that the kernel is filling is handed over after the retire time-out: until then frames are still to come.
        let patience = Duration::from_micros(u64::from(self.spec.block_retire_us).max(1000)) * 2;
        let mut fds = [self.links.as_fd(); MAX_INTERFACES];
        let count = fill(&mut fds, &self.inputs);
        let _ = poll(&fds[..count], patience);
        if let Some(ring) = &mut self.ring {
            for input in &mut self.inputs {
                while Instant::now() < end
                    && input
                        .pump(ring, self.worker.live(), || true)
                        .is_ok_and(|pumped| pumped.frames > 0)
                {}
            }
        }
        self.release();
        self.show();
    }

    /// One turn of the data path for each interface.
    fn pump(&mut self) {
        let (worker, live) = (self.worker, self.worker.live());
        let Some(ring) = &mut self.ring else { return };
        for input in &mut self.inputs {
            match input.pump(ring, live, || worker.stop_requested()) {
                Ok(pumped) => {
                    self.dirty |= pumped.frames > 0;
                    if pumped.losing {
                        input.read_statistics(ring, live);
                    }
                }
                Err(error) => {
                    tracing::error!(capture = worker.name(), %error, "cannot write to the ring");
                    return self.release();
                }
            }
        }
    }

    /// Sleeps until a block is ready, a link changes, somebody wants something, or the tick is over. Whether links changed.
    fn sleep(&mut self) -> bool {
        let timeout = if self.ring.is_none() {
            RING_RETRY
        } else {
            TICK
        };
        let mut fds = [self.worker.wake_fd(); MAX_INTERFACES + 2];
        fds[1] = self.links.as_fd();
        let count = fill(&mut fds[2..], &self.inputs) + 2;
        match poll(&fds[..count], timeout) {
            Ok(ready) => ready.readable(1) || ready.failed(1),
            Err(error) => {
                tracing::error!(capture = self.worker.name(), %error, "poll");
                std::thread::sleep(RING_RETRY); // rather than spin on an error that stays
                true
            }
        }
    }
}

/// Puts the sockets to poll in front; how many there are.
fn fill<'i>(fds: &mut [BorrowedFd<'i>], inputs: &'i [Input]) -> usize {
    let sockets = inputs.iter().filter_map(Input::fd);
    fds.iter_mut()
        .zip(sockets)
        .map(|(slot, socket)| *slot = socket)
        .count()
}

fn inputs(spec: &CaptureSpec) -> Result<Vec<Input>, String> {
    (0..spec.interfaces.len())
        .map(|index| Input::new(spec, index))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())
}

fn ring_advice(name: &str, error: &fluxcap_ring::Error) -> String {
    match error {
        fluxcap_ring::Error::NotFound { .. } => {
            format!("ring {name} does not exist: fluxctl ring create {name} --size 100m")
        }
        other => other.to_string(),
    }
}
