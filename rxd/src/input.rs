//! One interface of a capture: found by name, followed by its index, lost and found again.

use crate::datapath::{Path, Wanted};
use crate::lane::Lane;
use crate::open::{Opened, Opener, Plan};
use crate::ring::SharedRing;
use crate::stats::{CaptureLive, InterfaceCounts};
use crate::tap::Tap;
use fluxcap_headers::Edits;
use fluxcap_options::{SpecError, compile_edits};
use fluxcap_proto::v1;
use fluxcap_ring::SourceCounters;
use fluxcap_service::State;
use fluxcap_socket::{Error, Link, LinkWatch, Receiver, SockFilter, offloads};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time in which a link that was refused is not tried again because of news of it.
const REFUSED: Duration = Duration::from_millis(900);

/// An interface that a capture wants, attached or not. What is read of it, and by whom, is in the [`Tap`]s of the threads.
#[derive(Debug)]
pub(crate) struct Input {
    /// Name in the spec.
    name: String,
    /// Place in the spec.
    number: usize,
    plan: Plan,
    wanted: Wanted,
    edits: Edits,
    /// Index in the ring's table.
    source: u16,
    /// It is being opened.
    opening: bool,
    /// The interface that it is attached to, or will be.
    link: Option<Link>,
    /// Its sockets, as long as no thread has them.
    opened: Vec<Receiver>,
    refused: Option<Refused>,
    /// What the operator should know about the interface; often nothing.
    remark: String,
    /// Whether the kernel applies the filter.
    filters_in_kernel: bool,
    counts: Arc<InterfaceCounts>,
    status: v1::CaptureInterfaceStatus,
}

/// An attempt to attach to a link that failed.
#[derive(Debug)]
struct Refused {
    at: Instant,
    ifindex: u32,
    up: bool,
}

impl Input {
    /// The interface at `number` of the spec, not attached yet.
    ///
    /// # Errors
    /// When the filter or a tag of the spec cannot be used.
    pub(crate) fn new(spec: &v1::CaptureSpec, number: usize) -> Result<Input, SpecError> {
        let name = spec.interfaces.get(number).map(|i| i.name.clone());
        let name = name.unwrap_or_default();
        let mut input = Input {
            number,
            plan: Plan::new(spec),
            wanted: wanted(spec),
            edits: Edits::default(),
            source: 0,
            opening: false,
            link: None,
            opened: Vec::new(),
            refused: None,
            remark: String::new(),
            filters_in_kernel: false,
            counts: Arc::default(),
            status: v1::CaptureInterfaceStatus {
                name: name.clone(),
                ..Default::default()
            },
            name,
        };
        input.set_state(State::Waiting, "not attached yet");
        input.set_edits(spec, &mut [])?;
        Ok(input)
    }

    /// Takes over filter, sampling and changes from the spec; attached sockets get the new filter at once, and lose no
    /// frame by it.
    pub(crate) fn set_edits(
        &mut self,
        spec: &v1::CaptureSpec,
        lanes: &mut [Lane],
    ) -> Result<(), SpecError> {
        let mut edits = spec.edits.clone().unwrap_or_default();
        if let Some(tag) = spec.interfaces.get(self.number).and_then(|i| i.vlan_push) {
            edits.vlan_push = Some(tag);
        }
        self.edits = compile_edits(&edits)?;
        self.plan.options.filter = self.kernel_filter();
        let number = self.number;
        for tap in lanes.iter_mut().flat_map(|lane| lane.of(number)) {
            tap.path.edits = self.edits.clone();
            self.set_filter(tap.socket());
        }
        Ok(())
    }

    fn set_filter(&mut self, socket: &Receiver) {
        self.filters_in_kernel = match socket.set_filter(self.plan.options.filter.as_deref()) {
            Ok(there) => there,
            Err(error) => {
                tracing::warn!(interface = %self.name, %error, "the kernel does not take the filter, it runs in rxd alone");
                false
            }
        };
    }

    /// The filter as a program for the socket. rxd applies the filter once more to what gets through: some frames carry tags
    /// that the kernel's program cannot look behind.
    fn kernel_filter(&self) -> Option<Vec<SockFilter>> {
        let program = self.edits.filter.as_ref()?.kernel_program()?;
        Some(
            program
                .iter()
                .map(|i| SockFilter {
                    code: i.code,
                    jt: i.jt,
                    jf: i.jf,
                    k: i.k,
                })
                .collect(),
        )
    }

    /// Where the filter runs: `kernel`, `rxd`, or nothing when there is none.
    pub(crate) fn filter_at(&self) -> &'static str {
        match (&self.edits.filter, self.filters_in_kernel) {
            (None, _) => "",
            (Some(_), true) => "kernel",
            (Some(_), false) => "rxd",
        }
    }

    /// Whether this input is attached to the interface with that index.
    pub(crate) fn is_attached_to(&self, ifindex: u32) -> bool {
        self.link.as_ref().is_some_and(|link| link.index == ifindex)
    }

    /// The interface that it is attached to.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Whether it is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// What is shown of this input.
    pub(crate) fn status(&self) -> v1::CaptureInterfaceStatus {
        let mut status = self.status.clone();
        self.counts.show(&mut status);
        status
    }

    /// Takes note of a link as it is now; whether it is to be opened.
    pub(crate) fn see(&mut self, link: &Link) -> bool {
        match &mut self.link {
            Some(attached) if attached.index == link.index => {
                *attached = link.clone();
                self.show_link();
                false
            }
            None => !self.opening && self.is_named(link) && !self.was_refused(link),
            Some(_) => false,
        }
    }

    /// Whether a link has the wanted name.
    pub(crate) fn is_named(&self, link: &Link) -> bool {
        link.is_called(&self.name)
    }

    /// Whether the same link was refused a moment ago. An attempt makes news of its own, which must not lead to the next one.
    fn was_refused(&self, link: &Link) -> bool {
        self.refused.as_ref().is_some_and(|refused| {
            refused.ifindex == link.index && refused.up == link.up && refused.at.elapsed() < REFUSED
        })
    }

    /// Says that there is no interface of the wanted name.
    pub(crate) fn set_absent(&mut self) {
        self.set_state(
            State::Waiting,
            format!("interface {} does not exist", self.name),
        );
    }

    /// Begins to open the interface.
    pub(crate) fn open(&mut self, link: &Link, opener: &Opener) {
        if !link.ethernet {
            let reason = format!("interface {} is not an Ethernet interface", self.name);
            return self.refuse(link, reason);
        }
        match opener.start(self.number, &self.plan, link) {
            Ok(()) => {
                self.opening = true;
                self.set_state(State::Waiting, "being opened");
            }
            Err(error) => self.refuse(link, format!("cannot start a thread: {error}")),
        }
    }

    fn refuse(&mut self, link: &Link, reason: String) {
        self.refused = Some(Refused {
            at: Instant::now(),
            ifindex: link.index,
            up: link.up,
        });
        self.set_state(State::Waiting, reason);
    }

    /// What came of it, for [`Input::attach`].
    pub(crate) fn take(&mut self, link: &Link, result: Result<Opened, Error>, ring: &SharedRing) {
        self.opening = false;
        let opened = match result {
            Ok(opened) => opened,
            Err(Error::LinkDown { .. }) => return self.refuse(link, is_down(&link.name)),
            Err(error) => {
                let reason = format!("cannot capture on {}: {error}", self.name);
                return self.refuse(link, reason);
            }
        };
        // As it is now that the socket is open: that took its time, and frames went by.
        let now = LinkWatch::open().and_then(|mut links| links.find_index(link.index));
        let Ok(Some(now)) = now else {
            return self.set_absent();
        };
        if let Err(error) = self.register(ring, &mut []) {
            return self.refuse(link, error.to_string());
        }
        self.count_missed(&now, ring);
        let first = opened.receivers.first();
        self.status.io = first.map_or("", |socket| socket.name()).to_owned();
        self.status.io_reason = opened.reason;
        for socket in &opened.receivers {
            // It may have changed meanwhile.
            self.set_filter(socket);
        }
        self.opened = opened.receivers;
        self.remark = remark(&now.name);
        tracing::info!(interface = %now.name, ifindex = now.index, io = %self.status.io, reason = %self.status.io_reason, "attached");
        self.link = Some(now);
        self.show_link();
    }

    /// The attempt to open it is of no use any more.
    pub(crate) fn forget(&mut self) {
        self.opening = false;
    }

    /// Whether it is open and has to be given to the threads.
    pub(crate) fn is_opened(&self) -> bool {
        !self.opened.is_empty()
    }

    /// Gives each thread its part of what is open.
    pub(crate) fn attach(&mut self, lanes: &mut [Lane]) {
        if !self.is_opened() {
            return;
        }
        let threads = lanes.len().max(1);
        for (part, socket) in self.opened.drain(..).enumerate() {
            let path = Path {
                source: self.source,
                wanted: self.wanted,
                edits: self.edits.clone(),
            };
            let tap = Tap::new(self.number, socket, path, Arc::clone(&self.counts));
            // Interfaces that have fewer parts than there are threads do not all burden the first ones.
            if let Some(lane) = lanes.get_mut((self.number + part) % threads) {
                lane.add(tap);
            }
        }
        self.status.attached += 1;
        self.show_link();
    }

    /// Enters the interface into the ring's table of sources; again for each ring.
    pub(crate) fn register(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
    ) -> Result<(), fluxcap_ring::Error> {
        self.source = ring.lock().register_source(&self.name)?;
        for tap in lanes.iter_mut().flat_map(|lane| lane.of(self.number)) {
            tap.path.source = self.source;
        }
        Ok(())
    }

    /// Frames that passed the interface while nobody captured: from the interface's own counter, so an estimate, and only
    /// where that counts the frames that are captured.
    fn count_missed(&self, link: &Link, ring: &SharedRing) {
        let source = ring.lock().source(self.source);
        if self.wanted == Wanted::In && self.plan.options.filter.is_none() {
            source.add_missed(missed(&source, link));
            source
                .set_interface_count(link.index, link.rx_packets.wrapping_sub(accounted(&source)));
        } else {
            source.set_interface_count(0, 0);
        }
    }

    fn show_link(&mut self) {
        let Some(link) = &self.link else { return };
        let remark = if link.is_called(&self.name) {
            self.remark.clone()
        } else {
            format!("{} is renamed to {}", self.name, link.name)
        };
        let (state, reason) = match (link.up, link.carrier) {
            (false, _) => (State::Waiting, is_down(&link.name)),
            (true, false) => (
                State::Waiting,
                format!("interface {} has no carrier", link.name),
            ),
            (true, true) => (State::Running, remark),
        };
        self.status.ifindex = link.index;
        self.set_state(state, reason);
    }

    fn set_state(&mut self, state: State, reason: impl Into<String>) {
        self.status.state = v1::State::from(state).into();
        self.status.reason = reason.into();
    }

    /// Takes what the sockets still hold, bounded in time; they are closed when what this returns is dropped, which may take a
    /// tenth of a second. The interface is gone, or not wanted any more.
    pub(crate) fn detach(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
        live: &CaptureLive,
    ) -> Vec<Tap> {
        self.attach(lanes);
        // What is held back of others is older than what this one's sockets still have.
        lanes.iter_mut().for_each(|lane| lane.flush(ring, live));
        let mut taps: Vec<Tap> = lanes
            .iter_mut()
            .flat_map(|lane| lane.take(self.number))
            .collect();
        taps.iter_mut().for_each(|tap| tap.detach(ring, live));
        self.link = None;
        self.set_absent();
        taps
    }

    /// Closes the sockets while there is no ring.
    pub(crate) fn close(&mut self, lanes: &mut [Lane], live: &CaptureLive) {
        if self.link.take().is_none() {
            return;
        }
        self.opened.clear();
        for tap in lanes.iter_mut().flat_map(|lane| lane.take(self.number)) {
            tap.close(live);
        }
        self.set_state(State::Waiting, "waits for the ring");
    }
}

fn is_down(name: &str) -> String {
    format!("interface {name} is down: ip link set {name} up")
}

/// A word on offloads that change frames before they are captured. An interface that cannot be asked is not remarked on.
fn remark(name: &str) -> String {
    let off = match offloads(name) {
        Ok(on) if on.gro && on.lro => "gro off lro off",
        Ok(on) if on.gro => "gro off",
        Ok(on) if on.lro => "lro off",
        _ => return String::new(),
    };
    format!("frames may come glued together: ethtool -K {name} {off}")
}

/// All frames of an interface that the ring's counters know of.
fn accounted(source: &SourceCounters) -> u64 {
    source
        .received()
        .wrapping_add(source.kernel_drops())
        .wrapping_add(source.missed())
}

/// Frames that the interface counted since the last attachment and the ring's counters do not know; 0 for another interface.
fn missed(source: &SourceCounters, link: &Link) -> u64 {
    let (ifindex, base) = source.interface_count();
    if ifindex != link.index {
        return 0;
    }
    let missed = link
        .rx_packets
        .wrapping_sub(accounted(source))
        .wrapping_sub(base);
    // A counter that went backwards belongs to an interface that was made anew.
    if missed > u64::MAX / 2 { 0 } else { missed }
}

fn wanted(spec: &v1::CaptureSpec) -> Wanted {
    match spec.direction() {
        v1::Direction::Unspecified | v1::Direction::In => Wanted::In,
        v1::Direction::Out => Wanted::Out,
        v1::Direction::Both => Wanted::Both,
    }
}
