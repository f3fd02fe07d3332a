//! The send side of a tunnel: gets its rings and its path, runs the data path, waits for what is missing and resumes.

use crate::encap_path::{self, Buffers, Packer};
use crate::job::{TunnelJob, TunnelWorker, reader};
use crate::path::{Path, Wanted, Way};
use crate::stats::Details;
use fluxcap_datapath::{BURST, DRAIN, Feed, Intake, LOOK_BUSY, LOOK_IDLE, Pick, Placement, SHOW};
use fluxcap_headers::Edits;
use fluxcap_headers::tunnel::{Encap, EncapSpec, Fragmenter};
use fluxcap_options::{TunnelIo, compile_edits, encap_spec};
use fluxcap_proto::v1::{self, MtuPolicy, TunnelSend, TunnelSpec};
use fluxcap_ring::Outcome;
use fluxcap_service::State;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time between two looks at the path while a neighbour is awaited.
const LOOK_SOON: Duration = Duration::from_millis(1);
/// Longest frame of an Ethernet link with the usual MTU, without frame check sequence: what a path should take whole.
const FULL_FRAME: usize = 1514;
/// The length of the Ethernet header in it.
const ETHERNET_HEADER: usize = 14;

/// Runs until the worker is told to stop.
pub(crate) fn run(job: &TunnelJob, worker: &TunnelWorker) {
    match Sender::new(job, worker) {
        Ok(mut sender) => sender.run(),
        Err(reason) => worker.set_state(State::Failed, reason),
    }
}

/// A tunnel that sends.
struct Sender<'w> {
    job: &'w TunnelJob,
    worker: &'w TunnelWorker,
    generation: u64,
    spec: TunnelSpec,
    intake: Intake,
    packer: Packer,
    path: Path,
    buffers: Buffers,
    placement: Placement,
    /// The ring of the frame that has the kernel ask for a neighbour: what became of it is not known yet.
    unknown: Option<usize>,
    looked: Instant,
    shown: Instant,
}

impl<'w> Sender<'w> {
    fn new(job: &'w TunnelJob, worker: &'w TunnelWorker) -> Result<Sender<'w>, String> {
        let (generation, spec) = worker.current();
        let (now, send) = (Instant::now(), sending(&spec));
        let random = RandomState::new().hash_one(worker.name());
        let mut sender = Sender {
            job,
            worker,
            generation,
            intake: Intake::new(
                &send.rings,
                &reader(worker.name()),
                send.start,
                send.merge_window_us,
            ),
            packer: Packer {
                edits: edits(&spec)?,
                encap: None,
                fragmenter: Fragmenter::new(u32::try_from(random >> 32).unwrap_or_default()),
                policy: send.mtu_policy(),
            },
            path: path(&spec)?,
            buffers: Buffers::default(),
            placement: Placement::new(spec.latency(), spec.scheduling.as_ref()),
            unknown: None,
            looked: now,
            shown: now,
            spec: TunnelSpec::clone(&spec),
        };
        sender.intake.open(&job.rings, &worker.live().send.rings);
        sender.guard();
        sender.follow_ends()?;
        Ok(sender)
    }

    /// Sends until told to stop.
    fn run(&mut self) {
        self.turn();
        self.show();
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation
                && let Err(reason) = self.take_spec()
            {
                return self.worker.set_state(State::Failed, reason);
            }
            let sent = self.turn();
            if sent > 0 {
                self.placement.relieve();
                self.placement.gather(sent);
            } else {
                self.intake.wait(self.placement.spin(), || self.is_idle());
            }
            if self.looked.elapsed() >= self.pace(sent > 0)
                && let Err(reason) = self.look()
            {
                return self.worker.set_state(State::Failed, reason);
            }
        }
        self.finish();
    }

    /// One turn of the data path: fetch, merge, send. How many frames were dealt with.
    fn turn(&mut self) -> usize {
        let live = &self.worker.live().send;
        if self.intake.open(&self.job.rings, &live.rings) {
            // Its sources may be what packets leave by.
            self.path.look_for_loops(true);
        }
        self.intake.fetch(&self.job.rings, &live.rings);
        self.send()
    }

    /// Sends what is due of the frames at hand, as far as the path takes it. How many were dealt with.
    fn send(&mut self) -> usize {
        let way = self.path.way();
        let most = match way {
            Way::Hold => 0,
            Way::Probe => 1,
            Way::Link | Way::Ip | Way::Closed(_) => BURST,
        };
        let mut picks = [Pick::default(); BURST];
        let count = self.intake.pick(&mut picks[..most]);
        if count == 0 {
            return 0;
        }
        let unknown = encap_path::send(
            &picks[..count],
            self.intake.feeds_mut(),
            &mut self.packer,
            &mut self.path,
            way,
            &mut self.buffers,
            &self.worker.live().send,
        );
        self.unknown = unknown.or(self.unknown);
        count
    }

    /// Whether there is nothing to look after but frames to come.
    fn is_idle(&self) -> bool {
        !self.worker.stop_requested()
            && self.worker.generation() == self.generation
            && self.looked.elapsed() < self.pace(false)
    }

    /// Time from one look at the path to the next.
    fn pace(&self, busy: bool) -> Duration {
        match busy {
            _ if self.path.is_impatient() => LOOK_SOON,
            true => LOOK_BUSY,
            false => LOOK_IDLE,
        }
    }

    /// Follows the path and shows how things are.
    fn look(&mut self) -> Result<(), String> {
        self.looked = Instant::now();
        let changed = self.path.look() | self.intake.take_changed();
        self.note_outputs();
        self.take_verdict();
        if changed {
            self.follow_ends()?;
        }
        if changed || self.shown.elapsed() >= SHOW {
            self.show();
        }
        Ok(())
    }

    /// Takes care that nothing goes round, from now on.
    fn guard(&mut self) {
        let guard = self.job.guard(self.worker.name(), &sending(&self.spec));
        self.path.set_guard(guard);
        self.note_outputs();
    }

    /// Tells others where packets leave, and looks whether one of them has just begun what would bring them back.
    fn note_outputs(&mut self) {
        if self.intake.note_outputs(&self.path.notes()) && self.path.look_for_loops(true) {
            self.intake.note_outputs(&self.path.notes());
        }
    }

    /// Settles the frame of which it was not known what becomes of it.
    fn take_verdict(&mut self) {
        if let Some(outcome) = self.path.verdict()
            && let Some(feed) = self.unknown.take()
        {
            self.settle(feed, outcome);
        }
    }

    fn settle(&mut self, feed: usize, outcome: Outcome) {
        if let Some(feed) = self.intake.feeds_mut().get_mut(feed) {
            feed.settle(outcome, 1);
        }
        self.worker.live().send.frames.add(outcome, 1);
    }

    /// Has the encoder put the addresses into packets that they have now. Numbers that count go on.
    fn follow_ends(&mut self) -> Result<(), String> {
        let Some((source, destination)) = self.path.ends() else {
            return Ok(());
        };
        let wanted = encapsulation(&self.spec, source, destination, self.packer.encap.as_ref())?;
        match &mut self.packer.encap {
            Some(encap) if *encap.spec() == wanted => Ok(()),
            Some(encap) => encap.update(&wanted).map_err(|e| e.to_string()),
            None => {
                self.packer.encap = Some(Encap::new(&wanted).map_err(|e| e.to_string())?);
                Ok(())
            }
        }
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let rings = self.intake.feeds_mut().iter_mut();
        let rings: Vec<_> = rings.map(Feed::status).collect();
        let path = self.path_status();
        let reasons = self.path.reason().into_iter();
        let of_rings = rings.iter().map(|ring| ring.reason.clone());
        let mut reasons: Vec<String> = reasons
            .chain(of_rings)
            .filter(|reason| !reason.is_empty())
            .collect();
        let state = if reasons.is_empty() {
            State::Running
        } else {
            State::Waiting
        };
        let remarks = [path.warning.as_str(), self.placement.remark()];
        let remarks = remarks.into_iter().filter(|remark| !remark.is_empty());
        reasons.extend(remarks.map(str::to_owned));
        self.worker.set_state(state, reasons.join("; "));
        self.worker
            .live()
            .set_details(Details::Send(v1::TunnelSendStatus {
                rings,
                path: Some(path),
                icmp_events: self.path.icmp_events(),
                ..Default::default()
            }));
    }

    /// The path with what the format makes of its MTU.
    fn path_status(&self) -> v1::TunnelPath {
        let status = self.path.status();
        let (Some(encap), mtu @ 1..) = (&self.packer.encap, self.path.mtu()) else {
            return status;
        };
        let room = mtu.saturating_sub(encap.overhead());
        let full = full_length(&self.spec);
        let needed = encap.packet_len(full);
        let missing = needed.saturating_sub(mtu);
        let what = match encap.kind().carries_ip() {
            true => "IP packets",
            false => "frames",
        };
        let fate = match self.packer.policy {
            MtuPolicy::Unspecified | MtuPolicy::Fragment => "are sent in fragments",
            MtuPolicy::Truncate => "are cut",
            MtuPolicy::Drop => "are dropped",
        };
        let narrow = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        v1::TunnelPath {
            frame_mtu: narrow(room),
            missing_bytes: narrow(missing),
            warning: match missing {
                0 => status.warning.clone(),
                _ => format!(
                    "{what} longer than {room} bytes {fate}: the path takes {mtu} bytes, {missing} fewer than {needed}"
                ),
            },
            ..status
        }
    }

    /// A changed spec: taken over between two bursts; rings and path go on where they are the same.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        let (old, new) = (sending(&self.spec), sending(&spec));
        self.packer.edits = edits(&spec)?;
        self.packer.policy = new.mtu_policy();
        if (spec.latency, &spec.scheduling) != (self.spec.latency, &self.spec.scheduling) {
            self.placement
                .apply(spec.latency(), spec.scheduling.as_ref());
        }
        if new.rings != old.rings {
            self.send_rest();
            self.path.hurry(false);
            self.intake.set_rings(
                &self.job.rings,
                &new.rings,
                &reader(self.worker.name()),
                new.start,
            );
        }
        self.intake.set_merge_window(new.merge_window_us);
        let path = wanted(&spec)?;
        if path != *self.path.wanted() {
            self.path.hurry(true);
            self.take_verdict();
            self.path.settle_down();
            self.path = Path::new(path).map_err(watch_failed)?;
        }
        self.spec = TunnelSpec::clone(&spec);
        self.guard();
        self.follow_ends()?;
        self.show();
        Ok(())
    }

    /// Sends the frames at hand, whether or not an earlier one may come: they are out of their rings and must be accounted for.
    fn send_rest(&mut self) {
        self.path.hurry(true);
        self.take_verdict();
        self.intake.hurry();
        while self.send() > 0 {}
    }

    /// The end: sends what the rings still hold, bounded in time. Deleted, it gives its places in the rings back; otherwise
    /// they stay, so that the next tunneld goes on from there.
    fn finish(&mut self) {
        let end = Instant::now() + DRAIN;
        while Instant::now() < end && self.turn() > 0 {}
        self.send_rest();
        if self.worker.deleting() {
            self.intake.detach(&self.job.rings);
        }
    }
}

/// The part of the spec that is about sending.
fn sending(spec: &TunnelSpec) -> TunnelSend {
    spec.send.clone().unwrap_or_default()
}

fn edits(spec: &TunnelSpec) -> Result<Edits, String> {
    compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(|e| e.to_string())
}

/// How frames are encapsulated between these addresses. Counters begin at random: two senders must not use the same numbers.
fn encapsulation(
    spec: &TunnelSpec,
    source: IpAddr,
    destination: IpAddr,
    running: Option<&Encap>,
) -> Result<EncapSpec, String> {
    let spec = encap_spec(spec, source, destination).map_err(|e| e.to_string())?;
    let first_identification = match running {
        Some(encap) => encap.spec().first_identification,
        None => {
            let random = RandomState::new().hash_one(destination);
            u16::try_from(random >> 48).unwrap_or_default().max(1)
        }
    };
    Ok(EncapSpec {
        first_identification,
        ..spec
    })
}

/// What the tunnel wants of its path.
fn wanted(spec: &TunnelSpec) -> Result<Wanted, String> {
    let send = sending(spec);
    let local: Option<IpAddr> = spec.local.parse().ok();
    // Which packets these are does not depend on the addresses.
    let any = local.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let encap = encap_spec(spec, any, any).map_err(|e| e.to_string())?;
    let port = encap.destination_port.or(encap.kind.default_port());
    Ok(Wanted {
        host: send.remote,
        local,
        device: spec.device.clone(),
        io: TunnelIo::from_spec(&send.io).unwrap_or_default(),
        protocols: encap.kind.ip_protocols(),
        port: port.filter(|_| encap.kind.is_udp()),
    })
}

fn path(spec: &TunnelSpec) -> Result<Path, String> {
    Path::new(wanted(spec)?).map_err(watch_failed)
}

fn watch_failed(error: fluxcap_socket::Error) -> String {
    format!(
        "cannot watch interfaces: {}",
        fluxcap_service::causes(&error)
    )
}

/// The longest frame to be expected.
fn full_length(spec: &TunnelSpec) -> usize {
    let snaplen = spec.edits.as_ref().map_or(0, |edits| edits.snaplen);
    match usize::try_from(snaplen).unwrap_or(usize::MAX) {
        0 => FULL_FRAME,
        snaplen => snaplen.clamp(ETHERNET_HEADER, FULL_FRAME),
    }
}
