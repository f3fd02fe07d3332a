//! A transmit as a worker: gets its rings and its interface, runs the data path, waits for what is missing and resumes.

use crate::datapath::{self, Buffers};
use crate::stats::{Details, TransmitLive};
use fluxcap_datapath::{
    BURST, DRAIN, Edge, Feed, Graph, Intake, LOOK_BUSY, LOOK_IDLE, LoopGuard, Output, Outputs,
    Pick, Placement, SHOW, validate_rings,
};
use fluxcap_headers::Edits;
use fluxcap_options::{
    MAX_MERGE_WINDOW_US, SpecError, TransmitIo, compile_edits, validate_interfaces,
    validate_scheduling,
};
use fluxcap_proto::v1::{self, TransmitSpec};
use fluxcap_ring::RingDir;
use fluxcap_service::{Job, Refusal, State, Worker, causes};
use fluxcap_socket::MAX_OUTPUTS;
use std::time::Instant;

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
        validate_rings("rings", &spec.rings)?;
        let refused = |error: SpecError| Refusal::invalid(error.field, error.problem);
        let interfaces = spec.interfaces.iter().map(String::as_str);
        validate_interfaces(interfaces, MAX_OUTPUTS).map_err(refused)?;
        TransmitIo::from_spec(&spec.io).map_err(refused)?;
        validate_scheduling(&spec.scheduling.clone().unwrap_or_default()).map_err(refused)?;
        if spec.merge_window_us > MAX_MERGE_WINDOW_US {
            return Err(Refusal::invalid("merge_window_us", "must be at most 10 s"));
        }
        compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(refused)?;
        Ok(())
    }

    /// A frame that is sent to an interface from which its ring is filled could come back and be sent again, for ever.
    fn admit(&self, name: &str, spec: &TransmitSpec) -> Result<(), Refusal> {
        if spec.allow_loop {
            return Ok(());
        }
        let Ok(graph) = Graph::read(&self.rings) else {
            return Ok(());
        };
        let outputs: Vec<Edge> = spec
            .interfaces
            .iter()
            .map(|it| Edge::output(it, 0))
            .collect();
        match graph.loop_by_outputs(&reader(name), &spec.rings, &outputs) {
            None => Ok(()),
            Some(looped) => Err(Refusal::Precondition(format!(
                "{looped}; use another interface, or --allow-loop if it cannot"
            ))),
        }
    }

    fn run(&self, worker: &Worker<TransmitSpec, TransmitLive>) {
        match Transmit::new(self, worker) {
            Ok(mut transmit) => transmit.run(),
            Err(reason) => worker.set_state(State::Failed, reason),
        }
    }
}

/// A running transmit.
struct Transmit<'w> {
    job: &'w TransmitJob,
    worker: &'w Worker<TransmitSpec, TransmitLive>,
    generation: u64,
    spec: TransmitSpec,
    edits: Edits,
    intake: Intake,
    outputs: Outputs,
    buffers: Buffers,
    placement: Placement,
    looked: Instant,
    shown: Instant,
}

impl<'w> Transmit<'w> {
    fn new(
        job: &'w TransmitJob,
        worker: &'w Worker<TransmitSpec, TransmitLive>,
    ) -> Result<Transmit<'w>, String> {
        let (generation, spec) = worker.current();
        let now = Instant::now();
        Ok(Transmit {
            job,
            worker,
            generation,
            edits: edits(&spec)?,
            intake: Intake::new(
                &spec.rings,
                &reader(worker.name()),
                spec.start,
                spec.merge_window_us,
            ),
            outputs: outputs(&spec)?,
            spec: TransmitSpec::clone(&spec),
            buffers: Buffers::default(),
            placement: Placement::new(spec.latency(), spec.scheduling.as_ref()),
            looked: now,
            shown: now,
        })
    }

    /// Transmits until told to stop.
    fn run(&mut self) {
        self.intake.open(&self.job.rings, &self.worker.live().rings);
        self.guard();
        self.turn();
        self.show();
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation
                && let Err(reason) = self.take_spec()
            {
                return self.worker.set_state(State::Failed, reason);
            }
            let busy = self.turn();
            if busy {
                self.placement.relieve();
            } else {
                self.intake.wait(self.placement.spin(), || self.is_idle());
            }
            if self.looked.elapsed() >= if busy { LOOK_BUSY } else { LOOK_IDLE } {
                self.look();
            }
        }
        self.finish();
    }

    /// One turn of the data path: fetch, merge, send. False when there was nothing to send.
    fn turn(&mut self) -> bool {
        let live = self.worker.live();
        if self.intake.open(&self.job.rings, &live.rings) {
            // Its sources may be interfaces that are sent to.
            self.outputs.look_for_loops();
        }
        self.intake.fetch(&self.job.rings, &live.rings);
        self.send()
    }

    /// Sends what is due of the frames at hand. False when there was nothing.
    fn send(&mut self) -> bool {
        let live = self.worker.live();
        let mut picks = [Pick::default(); BURST];
        let count = self.intake.pick(&mut picks);
        if count == 0 {
            return false;
        }
        let truncate = self.spec.oversize() == v1::OversizePolicy::Truncate;
        let picks = &picks[..count];
        if !datapath::send(
            picks,
            self.intake.feeds_mut(),
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

    /// Whether there is nothing to look after but frames to come.
    fn is_idle(&self) -> bool {
        !self.worker.stop_requested()
            && self.worker.generation() == self.generation
            && self.looked.elapsed() < LOOK_IDLE
    }

    /// Takes care that nothing goes round, from now on.
    fn guard(&mut self) {
        self.outputs.set_guard(LoopGuard {
            dir: self.job.rings.clone(),
            reader: reader(self.worker.name()),
            rings: self.spec.rings.clone(),
            allowed: self.spec.allow_loop,
        });
        self.note_outputs();
    }

    /// Tells others where frames are sent, and looks whether one of them has just begun what would bring them back.
    fn note_outputs(&mut self) {
        if self.intake.note_outputs(&self.outputs.notes()) && self.outputs.look_for_loops() {
            self.intake.note_outputs(&self.outputs.notes());
        }
    }

    /// Follows the link and shows how things are.
    fn look(&mut self) {
        self.looked = Instant::now();
        let changed = self.outputs.follow() | self.intake.take_changed();
        self.note_outputs();
        if changed || self.shown.elapsed() >= SHOW {
            self.show();
        }
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let rings: Vec<_> = self
            .intake
            .feeds_mut()
            .iter_mut()
            .map(Feed::status)
            .collect();
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
        let remark = Some(self.placement.remark()).filter(|remark| !remark.is_empty());
        reasons.extend(remark.map(str::to_owned));
        reasons.extend(self.outputs.list().iter().filter_map(Output::remark));
        self.worker.set_state(state, reasons.join("; "));
        let outputs = self.outputs.list().iter();
        let interfaces = outputs
            .map(|output| (output.status(), output.live.clone()))
            .collect();
        let warnings = self.outputs.list().iter().filter_map(Output::warning);
        self.worker.live().set_details(Details {
            interfaces,
            rings,
            remarks: warnings.collect(),
        });
    }

    /// A changed spec is taken over on the fly: rings and interfaces that stay go on, others begin anew.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        self.send_rest();
        self.edits = edits(&spec)?;
        self.intake.set_merge_window(spec.merge_window_us);
        if (spec.latency, &spec.scheduling) != (self.spec.latency, &self.spec.scheduling) {
            self.placement
                .apply(spec.latency(), spec.scheduling.as_ref());
        }
        if spec.rings != self.spec.rings {
            self.intake.set_rings(
                &self.job.rings,
                &spec.rings,
                &reader(self.worker.name()),
                spec.start,
            );
        }
        if (&spec.io, spec.qdisc_bypass) != (&self.spec.io, self.spec.qdisc_bypass) {
            self.outputs = outputs(&spec)?;
        } else if spec.interfaces != self.spec.interfaces {
            self.outputs.set_interfaces(&spec.interfaces);
        }
        self.spec = TransmitSpec::clone(&spec);
        self.guard();
        self.show();
        Ok(())
    }

    /// Sends the frames at hand, whether or not an earlier one may come: they are out of their rings and must be accounted for.
    fn send_rest(&mut self) {
        self.intake.hurry();
        while self.send() {}
    }

    /// The end: sends what the rings still hold, bounded in time. Deleted, it gives its places in the rings back; otherwise
    /// they stay, so that the next txd goes on from there.
    fn finish(&mut self) {
        let end = Instant::now() + DRAIN;
        while Instant::now() < end && self.turn() {}
        self.send_rest();
        if self.worker.deleting() {
            self.intake.detach(&self.job.rings);
        }
    }
}

fn edits(spec: &TransmitSpec) -> Result<Edits, String> {
    compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(|e| e.to_string())
}

/// The name under which the rings know this transmit.
fn reader(transmit: &str) -> String {
    format!("txd {transmit}")
}

fn outputs(spec: &TransmitSpec) -> Result<Outputs, String> {
    let wanted = TransmitIo::from_spec(&spec.io).unwrap_or_default();
    Outputs::new(&spec.interfaces, wanted, spec.qdisc_bypass)
        .map_err(|error| format!("cannot watch interfaces: {}", causes(&error)))
}
