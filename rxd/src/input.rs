//! One interface of a capture: found by name, followed while nobody else has the name, lost and found again.

use crate::datapath::{Change, Path, Wanted};
use crate::lane::Lane;
use crate::loops;
use crate::missed::{Missed, Since, accounted, counter, passed};
use crate::open::{NotOpened, Opened, Opener, Plan};
use crate::ring::SharedRing;
use crate::stats::{CaptureLive, InterfaceCounts};
use crate::succession::Seen;
use crate::takers::{self, Taken};
use crate::tap::{Backlog, Tap};
use fluxcap_datapath::{Device, SourceGuard};
use fluxcap_headers::Edits;
use fluxcap_options::{SpecError, compile_edits};
use fluxcap_proto::v1;
use fluxcap_service::State;
use fluxcap_socket::{Error, Link, LinkWatch, Receiver, SockFilter, offloads};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time in which a link that was refused is not tried again because of news of it.
const REFUSED: Duration = Duration::from_millis(900);

/// How long sockets that give their place to others, or take it, are read: longer than a block may be gathered.
const PATIENCE: Duration = Duration::from_millis(1200);

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
    /// The interface as it was when it was seen first, after another one had gone.
    sighted: Option<Link>,
    /// The interface that it is attached to, or will be.
    link: Option<Link>,
    device: Device,
    /// Its sockets, as long as no thread has them.
    opened: Vec<Receiver>,
    /// The sockets that there are were opened by another plan: others are to take their place.
    renewing: bool,
    /// These, as long as no thread has them.
    successors: Vec<Receiver>,
    /// Why there are none.
    hindrance: String,
    refused: Option<Refused>,
    /// The capture that it is part of.
    capture: String,
    /// Held while its frames are taken from all others.
    taken: Option<Taken>,
    /// What the operator should know about the interface; often nothing.
    remark: String,
    /// Whether the kernel applies the filter.
    filters_in_kernel: bool,
    counts: Arc<InterfaceCounts>,
    status: v1::CaptureInterfaceStatus,
}

/// Looks at an interface's counters until no frame comes in between.
const LOOKS: usize = 20;

/// An attempt to attach to a link that failed.
#[derive(Debug)]
struct Refused {
    at: Instant,
    ifindex: u32,
    up: bool,
}

impl Refused {
    fn of(link: &Link) -> Refused {
        Refused {
            at: Instant::now(),
            ifindex: link.index,
            up: link.up,
        }
    }
}

impl Input {
    /// The interface at `number` of the spec, not attached yet.
    ///
    /// # Errors
    /// When the filter or a tag of the spec cannot be used.
    pub(crate) fn new(
        spec: &v1::CaptureSpec,
        number: usize,
        capture: &str,
        guard: SourceGuard,
    ) -> Result<Input, SpecError> {
        let name = spec.interfaces.get(number).map(|i| i.name.clone());
        let name = name.unwrap_or_default();
        let mut input = Input {
            number,
            plan: Plan::new(spec, guard),
            wanted: wanted(spec),
            edits: Edits::default(),
            source: 0,
            opening: false,
            sighted: None,
            link: None,
            device: Device::default(),
            opened: Vec::new(),
            renewing: false,
            successors: Vec::new(),
            hindrance: String::new(),
            refused: None,
            capture: capture.to_owned(),
            taken: None,
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

    /// Takes over a spec in which this interface stays. The sockets that there are go on until others, if they have to be, can take their
    /// place. What was being opened is of no use any more.
    ///
    /// # Errors
    /// When the filter or a tag of the spec cannot be used.
    pub(crate) fn renew(
        &mut self,
        spec: &v1::CaptureSpec,
        lanes: &mut [Lane],
    ) -> Result<(), SpecError> {
        let plan = Plan::new(spec, loops::renewed(&self.plan.guard, spec));
        self.renewing |= self.is_attached() && !plan.is_like(&self.plan);
        (self.plan, self.wanted) = (plan, wanted(spec));
        (self.opening, self.refused) = (false, None);
        self.successors.clear();
        self.hindrance.clear();
        self.set_edits(spec, lanes)
    }

    /// Gives it another place in the spec.
    pub(crate) fn renumber(&mut self, number: usize, lanes: &mut [Lane]) {
        for tap in lanes.iter_mut().flat_map(|lane| lane.of(self.number)) {
            tap.input = number;
        }
        self.number = number;
    }

    /// Whether its sockets have to be closed before others can take their place.
    pub(crate) fn must_let_go(&self, spec: &v1::CaptureSpec) -> bool {
        let plan = Plan::new(spec, loops::renewed(&self.plan.guard, spec));
        let excludes = plan.excludes(&self.plan) && !plan.is_like(&self.plan);
        excludes && self.is_attached() && self.status.io == "af_xdp"
    }

    /// Whether other sockets are wanted, and nobody is opening them.
    pub(crate) fn wants_successors(&self) -> bool {
        let tried = self.refused.as_ref();
        self.renewing
            && self.is_attached()
            && !self.opening
            && self.successors.is_empty()
            && tried.is_none_or(|refused| refused.at.elapsed() >= REFUSED)
    }

    /// Begins to open other sockets. Those that there are remember their frames meanwhile.
    pub(crate) fn open_successors(&mut self, opener: &Opener, lanes: &mut [Lane]) {
        let Some(link) = self.link.clone() else {
            return;
        };
        if let Some(harm) = self.plan.harm(&link) {
            return self.cannot_renew(&link, &harm);
        }
        // Before the first frame that both can have.
        let taps = lanes.iter_mut().flat_map(|lane| lane.of(self.number));
        taps.for_each(Tap::remember);
        match opener.start(self.number, &self.plan.of_successor(), &link) {
            Ok(()) => self.opening = true,
            Err(error) => self.cannot_renew(&link, &format!("cannot start a thread: {error}")),
        }
    }

    /// The sockets that there are go on as they are.
    fn cannot_renew(&mut self, link: &Link, why: &str) {
        self.refused = Some(Refused::of(link));
        self.hindrance = format!("goes on as before, because it cannot be opened anew: {why}");
        tracing::warn!(interface = %self.name, why, "cannot be opened anew");
        self.show_link();
    }

    /// Takes the sockets that are to take the place of others, or why there are none.
    fn take_successors(&mut self, link: &Link, result: Result<Opened, NotOpened>) {
        match result {
            Ok(opened) => {
                let first = opened.receivers.first();
                self.status.io = first.map_or("", |socket| socket.name()).to_owned();
                self.status.io_reason = opened.reason;
                for socket in &opened.receivers {
                    self.set_filter(socket);
                }
                self.hindrance.clear();
                self.successors = opened.receivers;
            }
            Err(NotOpened::Loop(reason)) => self.cannot_renew(link, &reason),
            Err(NotOpened::Error(error)) => self.cannot_renew(link, &error.to_string()),
        }
    }

    /// Whether sockets are there to take the place of others.
    pub(crate) fn has_successors(&self) -> bool {
        !self.successors.is_empty()
    }

    /// Has them do so: what both have is published once. The old ones are closed when what this returns is dropped. All
    /// threads stand still meanwhile, for the time that the kernel takes to hand over a block.
    pub(crate) fn succeed(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
        live: &CaptureLive,
    ) -> Vec<Tap> {
        // What is held back of others is older than what this one's sockets still have.
        lanes.iter_mut().for_each(|lane| lane.flush(ring, live));
        let mut old: Vec<Tap> = lanes
            .iter_mut()
            .flat_map(|lane| lane.take(self.number))
            .collect();
        old.iter().for_each(Tap::take_no_more);
        let end = Instant::now() + PATIENCE;
        for tap in &mut old {
            tap.come_to_an_end(ring, live, end);
        }
        let mut seen = Seen::new(old.iter_mut().filter_map(Tap::memory));
        self.opened = std::mem::take(&mut self.successors);
        self.attach(ring, lanes, live);
        for tap in lanes.iter_mut().flat_map(|lane| lane.of(self.number)) {
            seen = tap.begin(seen, ring, live, Instant::now() + PATIENCE);
        }
        self.renewing = false;
        self.count_missed(ring, lanes, live, Since::Always);
        tracing::info!(interface = %self.name, io = %self.status.io, "opened anew");
        old
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
        let wanted = self.plan.options.filter.as_deref();
        let guarded = loops::guarded(&self.plan.guard, wanted);
        self.filters_in_kernel = match socket.set_filter(guarded.as_deref()) {
            Ok(there) => there && wanted.is_some(),
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
    pub(crate) fn status(&mut self) -> v1::CaptureInterfaceStatus {
        self.show_link();
        let mut status = self.status.clone();
        self.counts.show(&mut status);
        status.device_changes = self.device.changes();
        status
    }

    /// Takes note of a link as it is now; whether it is to be opened.
    pub(crate) fn see(&mut self, link: &Link) -> bool {
        let named = self.is_named(link);
        match &mut self.link {
            Some(attached) if attached.index == link.index => {
                *attached = link.clone();
                self.show_link();
                false
            }
            None if !named => false,
            None => {
                // One that was not there before: what it has counted until now is nobody's.
                if self.status.attached > 0
                    && self
                        .sighted
                        .as_ref()
                        .is_none_or(|it| it.index != link.index)
                {
                    self.sighted = Some(link.clone());
                }
                !self.opening && !self.was_refused(link)
            }
            Some(_) => false,
        }
    }

    /// Whether this is the interface of that name in the spec.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.name == name
    }

    /// Whether the wanted name is that of another link than the one that it is attached to.
    pub(crate) fn is_replaced_by(&self, link: &Link) -> bool {
        let attached = self.link.as_ref();
        attached.is_some_and(|it| Device::is_replaced(&self.name, it.index, link))
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
        if let Some(harm) = self.plan.harm(link) {
            return self.refuse(link, harm);
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
        self.refused = Some(Refused::of(link));
        self.set_state(State::Waiting, reason);
    }

    /// What came of it, for [`Input::attach`].
    pub(crate) fn take(
        &mut self,
        link: &Link,
        result: Result<Opened, NotOpened>,
        ring: &SharedRing,
    ) {
        self.opening = false;
        if self.is_attached() {
            return self.take_successors(link, result);
        }
        let opened = match result {
            Ok(opened) => opened,
            Err(NotOpened::Loop(reason)) => return self.refuse(link, reason),
            Err(NotOpened::Error(Error::LinkDown { .. })) => {
                return self.refuse(link, is_down(&link.name));
            }
            Err(NotOpened::Error(error)) => {
                let reason = format!("cannot capture on {}: {error}", self.name);
                return self.refuse(link, reason);
            }
        };
        // As it is now that the socket is open: that took its time, and frames went by.
        let now = LinkWatch::open().and_then(|mut links| self.device.look(&self.name, &mut links));
        let Some(now) = now.ok().flatten().filter(|now| now.index == link.index) else {
            return self.set_absent();
        };
        if let Err(error) = self.register(ring, &mut []) {
            return self.refuse(link, error.to_string());
        }
        // Now that others can see it: one of them may have begun at the same time.
        self.note_place(&now, ring);
        if let Some(reason) = loops::look(&self.plan.guard, now.index) {
            ring.lock().source(self.source).set_place(None);
            return self.refuse(link, reason);
        }
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
    pub(crate) fn attach(&mut self, ring: &SharedRing, lanes: &mut [Lane], live: &CaptureLive) {
        if !self.is_opened() {
            return;
        }
        let threads = lanes.len().max(1);
        for (part, socket) in self.opened.drain(..).enumerate() {
            let path = Path {
                source: self.source,
                wanted: self.wanted,
                edits: self.edits.clone(),
                change: Change::None,
            };
            let tap = Tap::new(self.number, socket, path, Arc::clone(&self.counts));
            // Interfaces that have fewer parts than there are threads do not all burden the first ones.
            if let Some(lane) = lanes.get_mut((self.number + part) % threads) {
                lane.add(tap);
            }
        }
        self.status.attached += 1;
        let index = self.link.as_ref().map_or(0, |link| link.index);
        let takes = self.status.io == "af_xdp";
        self.taken = None;
        self.taken = takes.then(|| Taken::by(&self.capture, index));
        self.show_link();
        if !self.renewing {
            let since = ring.lock().source(self.source).watched_until();
            self.count_missed(ring, lanes, live, Since::Time(since));
        }
    }

    /// Enters the interface into the ring's table of sources; again for each ring.
    pub(crate) fn register(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
    ) -> Result<(), fluxcap_ring::Error> {
        self.source = ring.lock().register_source(&self.name)?;
        if let Some(link) = &self.link {
            self.note_place(link, ring);
        }
        for tap in lanes.iter_mut().flat_map(|lane| lane.of(self.number)) {
            tap.path.source = self.source;
        }
        Ok(())
    }

    /// Tells others which interface fills the ring.
    fn note_place(&self, link: &Link, ring: &SharedRing) {
        let place = self.plan.guard.place(link.index);
        ring.lock().source(self.source).set_place(Some(place));
    }

    /// Notes in the books of a ring, to which this one has just gone over, that it is watched from now on.
    pub(crate) fn begin_watch(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
        live: &CaptureLive,
    ) {
        self.count_missed(ring, lanes, live, Since::Always);
    }

    /// Frames that passed the interface while nobody captured, from the interface's own counters. All threads stand still.
    fn count_missed(
        &mut self,
        ring: &SharedRing,
        lanes: &mut [Lane],
        live: &CaptureLive,
        watched: Since,
    ) {
        let (source, mut now) = (ring.lock().source(self.source), None);
        let index = self.link.as_ref().map_or(0, |link| link.index);
        let Ok(mut links) = LinkWatch::open() else {
            return;
        };
        let mut count = || -> u64 {
            let taps = lanes.iter_mut().flat_map(|lane| lane.of(self.number));
            taps.map(|tap| {
                tap.count(&mut ring.lock(), live, Backlog::ComesHere);
                tap.waiting()
            })
            .sum()
        };
        // Both at the same instant: again, as long as a frame comes in between.
        let mut waiting = count();
        for _ in 0..LOOKS {
            let before = waiting;
            now = links.find_index(index).ok().flatten();
            waiting = count();
            if waiting == before {
                break;
            }
        }
        let Some(now) = now else { return };
        let missed = Missed {
            counter: counter(&now, self.wanted),
            passed: passed(&now, self.wanted),
            known: accounted(&source).wrapping_add(waiting),
            waiting,
            watched,
            sighted: self
                .sighted
                .take()
                .filter(|link| link.index == now.index)
                .map(|link| passed(&link, self.wanted)),
        };
        missed.enter(&source);
        self.status.missed_frames = source.missed();
        self.status.unwatched_ns = source.unwatched_ns();
    }

    fn show_link(&mut self) {
        let Some(link) = &self.link else { return };
        let remark = if !self.hindrance.is_empty() {
            self.hindrance.clone()
        } else if link.is_called(&self.name) {
            match self.device.remark() {
                "" => self.remark.clone(),
                changed => changed.to_owned(),
            }
        } else {
            format!("{} is renamed to {}", self.name, link.name)
        };
        let (state, reason) = match (link.up, link.carrier) {
            (false, _) => (State::Waiting, is_down(&link.name)),
            (true, false) => (
                State::Waiting,
                format!("interface {} has no carrier", link.name),
            ),
            (true, true) => match self.starved_by(link.index) {
                Some(taker) => (
                    State::Waiting,
                    format!(
                        "capture \"{taker}\" takes all frames of {} by af_xdp",
                        link.name
                    ),
                ),
                None => (State::Running, remark),
            },
        };
        self.status.ifindex = link.index;
        self.set_state(state, reason);
    }

    /// The capture that takes all frames that this one is to have, but for those that the host sends.
    fn starved_by(&self, ifindex: u32) -> Option<String> {
        let gets_others = self.wanted == Wanted::Out || self.taken.is_some();
        takers::taker(ifindex).filter(|_| !gets_others)
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
        self.attach(ring, lanes, live);
        // What is held back of others is older than what this one's sockets still have.
        lanes.iter_mut().for_each(|lane| lane.flush(ring, live));
        let mut taps: Vec<Tap> = lanes
            .iter_mut()
            .flat_map(|lane| lane.take(self.number))
            .collect();
        taps.iter_mut().for_each(|tap| tap.detach(ring, live));
        self.let_go();
        self.set_absent();
        taps
    }

    fn let_go(&mut self) {
        self.link = None;
        self.taken = None;
        self.renewing = false;
        self.successors.clear();
        self.hindrance.clear();
    }

    /// Closes the sockets while there is no ring.
    pub(crate) fn close(&mut self, lanes: &mut [Lane], live: &CaptureLive) {
        if self.link.is_none() {
            return;
        }
        self.let_go();
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

fn wanted(spec: &v1::CaptureSpec) -> Wanted {
    match spec.direction() {
        v1::Direction::Unspecified | v1::Direction::In => Wanted::In,
        v1::Direction::Out => Wanted::Out,
        v1::Direction::Both => Wanted::Both,
    }
}
