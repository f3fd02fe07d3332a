//! The path of a tunnel's packets: found, kept up and followed.
//!
//! ```text
//!   name -> Remote -> address -> Hop (route, interface, MTU) -> Contact (neighbour)
//!                                  |                               |
//!            closed: why nothing goes out                 Link: Ethernet frames by the fastest way
//!            Notices: ICMP pauses it, or lowers the MTU   Ip:   the kernel's stack does the rest
//! ```
//!
//! The kernel is asked for all of this, and knows of changes first. It has to be told in turn that a neighbour is in use, or it
//! forgets: now and then a burst goes by its stack, and it verifies the neighbour. It is given one frame only for a neighbour
//! that it does not know, since it keeps few packets until there is an answer, and drops the others without a word.

mod notices;

use crate::job::ADVICE;
use fluxcap_datapath::{Closed, Contact, Device, Edge, Hop, LoopGuard, Outputs, Remote};
use fluxcap_options::{TransmitIo, TunnelIo};
use fluxcap_proto::v1;
use fluxcap_ring::{Outcome, ReaderOutput};
use fluxcap_socket::{Error, LinkWatch, NeighbourState, Origin, Outgoing, RawIp, SendReport};
use notices::Notices;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Length of an Ethernet header, which is in front of packets that go by the link.
pub(crate) const LINK_HEADER: usize = 14;
/// Time between two looks at route and neighbour when nothing tells of a change.
const UPKEEP: Duration = Duration::from_millis(500);
/// Time between two looks for loops that others may have made.
const LOOK_FOR_LOOPS: Duration = Duration::from_secs(5);
/// The same while nothing is sent because of one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long frames wait in their rings for a neighbour that was not asked for before.
const HOLD: Duration = Duration::from_secs(1);
/// Time between two frames that have the kernel ask for a neighbour that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// When the kernel asks for no neighbour after so many frames, it needs none.
const FRUITLESS: u32 = 3;

/// What a tunnel wants of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The far end, by address or name.
    pub(crate) host: String,
    /// Source address of packets; none: the one of the route.
    pub(crate) local: Option<IpAddr>,
    /// Interface that they leave by; empty: the one of the route.
    pub(crate) device: String,
    /// The way of sending that was asked for.
    pub(crate) io: TunnelIo,
    /// IP protocols of the packets, and the UDP port that they go to: what routers say about others is not about them.
    pub(crate) protocols: &'static [u8],
    /// See `protocols`.
    pub(crate) port: Option<u16>,
}

/// The way that packets take at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Behind an Ethernet header, out of the interface.
    Link,
    /// Through the kernel's stack.
    Ip,
    /// The same, for the packets of one frame, so that the kernel asks for a neighbour. What becomes of them
    /// [`Path::verdict`] tells.
    Probe,
    /// None, but soon there may be one: frames wait.
    Hold,
    /// None. Frames end like this.
    Closed(Outcome),
}

/// The path of the packets of one tunnel.
#[derive(Debug)]
pub(crate) struct Path {
    wanted: Wanted,
    remote: Remote,
    links: LinkWatch,
    hop: Result<Hop, Closed>,
    /// The device that packets are to leave by, if one was named.
    device: Device,
    contact: Contact,
    asked: Asked,
    verdict: Option<Outcome>,
    notices: Notices,
    outputs: Option<Outputs>,
    raw: Result<RawIp, Closed>,
    report: SendReport,
    /// Whether the last packets went by the link.
    by_link: bool,
    /// Why nothing can be sent whatever the neighbour does.
    closed: Option<Closed>,
    /// A send has failed in a way that a change of the path explains.
    alarmed: bool,
    /// Nothing waits any more.
    hurried: bool,
    looked: Instant,
    /// What keeps packets from going round, and what it says of the present way out.
    guard: Option<LoopGuard>,
    looped: Option<Closed>,
    guarded: Instant,
}

/// The search for a neighbour.
#[derive(Debug, Default)]
struct Asked {
    /// When a frame was sent for it.
    since: Option<Instant>,
    /// What became of this frame is not known yet.
    pending: bool,
    /// An earlier one came to nothing.
    silent: bool,
    /// Frames after which the kernel did not ask.
    fruitless: u32,
}

impl Path {
    /// Looks for the path in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When interfaces cannot be watched.
    pub(crate) fn new(wanted: Wanted) -> Result<Path, Error> {
        let mut path = Path {
            remote: Remote::new(&wanted.host, wanted.local.map(|local| local.is_ipv6())),
            links: LinkWatch::open()?,
            hop: Err(Closed::new(Outcome::NoRoute, "")),
            device: Device::default(),
            contact: Contact::Unknown,
            asked: Asked::default(),
            verdict: None,
            notices: Notices::default(),
            outputs: None,
            raw: Err(Closed::new(Outcome::NoRoute, "")),
            report: SendReport::default(),
            by_link: false,
            closed: None,
            alarmed: true,
            hurried: false,
            looked: Instant::now(),
            guard: None,
            looped: None,
            guarded: Instant::now(),
            wanted,
        };
        path.look();
        Ok(path)
    }

    /// What it was made for.
    pub(crate) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Outer source and destination, while they are known.
    pub(crate) fn ends(&self) -> Option<(IpAddr, IpAddr)> {
        let hop = self.hop.as_ref().ok()?;
        Some((hop.source, hop.destination))
    }

    /// Longest IP packet that arrives whole, as far as is known; 0 while nothing is.
    pub(crate) fn mtu(&self) -> usize {
        let hop = self.hop.as_ref().map_or(0, |hop| hop.mtu);
        let told = self.notices.mtu().unwrap_or(u32::MAX);
        usize::try_from(hop.min(told)).unwrap_or(usize::MAX)
    }

    /// The Ethernet header for packets; zeros while it is not known.
    pub(crate) fn link_header(&self, ether_type: u16) -> [u8; LINK_HEADER] {
        let mut header = [0; LINK_HEADER];
        if let (Contact::Known { mac, .. }, Ok(hop)) = (self.contact, &self.hop) {
            header[..6].copy_from_slice(&mac);
            header[6..12].copy_from_slice(&hop.link.mac);
        }
        header[12..].copy_from_slice(&ether_type.to_be_bytes());
        header
    }

    /// The way that packets take now.
    pub(crate) fn way(&self) -> Way {
        if let Some(closed) = &self.closed {
            return Way::Closed(closed.outcome);
        }
        let way = match self.contact {
            Contact::Direct => Way::Ip,
            // The kernel verifies a neighbour that it has not heard of for long when its stack sends something there.
            Contact::Known {
                state: NeighbourState::Stale,
                ..
            } => Way::Ip,
            Contact::Known { .. } => self.by_link_or_ip(),
            Contact::Unknown | Contact::Asking | Contact::Silent => self.asked.way(self.contact),
        };
        match way {
            Way::Hold | Way::Probe if self.hurried => Way::Closed(Outcome::Unreachable),
            way => way,
        }
    }

    fn by_link_or_ip(&self) -> Way {
        let Some(output) = self.output() else {
            return Way::Ip;
        };
        match output.closed() {
            None => Way::Link,
            Some(_) if self.wanted.io == TunnelIo::Auto => Way::Ip,
            Some(outcome) => Way::Closed(outcome),
        }
    }

    /// The interface as an output, when it is the one of the route.
    fn output(&self) -> Option<&fluxcap_datapath::Output> {
        let hop = self.hop.as_ref().ok().filter(|hop| hop.ethernet)?;
        let output = self.outputs.as_ref()?.list().first()?;
        let same = output
            .link()
            .is_some_and(|link| link.index == hop.link.index);
        (output.name() == hop.link.name && same).then_some(output)
    }

    /// Sends packets by `way`, which [`Path::way`] has just said, and tells what became of each. By the link they begin with an Ethernet
    /// header, else with an IP header.
    pub(crate) fn send(&mut self, way: Way, packets: &mut [Outgoing<'_>]) -> &SendReport {
        let by_link = way == Way::Link;
        if by_link != self.by_link {
            self.settle_down();
            self.by_link = by_link;
        }
        if by_link && let Some(outputs) = &mut self.outputs {
            outputs.send(packets);
        } else if let Ok(raw) = &mut self.raw {
            raw.send(packets, &mut self.report);
        }
        let report = match &self.outputs {
            Some(outputs) if by_link => &outputs.reports()[0],
            _ => &self.report,
        };
        self.alarmed |= report.interrupted() || report.oversize + report.no_route > 0;
        if let (Way::Ip, Contact::Known { state, .. }) = (way, &mut self.contact) {
            *state = NeighbourState::Verifying;
        }
        if way == Way::Probe {
            self.asked.pending = report.sent > 0;
            self.asked.since = Some(Instant::now());
        }
        report
    }

    /// Waits until the last packets have left, before others take another way.
    pub(crate) fn settle_down(&mut self) {
        match (&mut self.outputs, &self.raw) {
            (Some(outputs), _) if self.by_link => outputs.settle_down(),
            (_, Ok(raw)) if !self.by_link => raw.settle_down(),
            _ => {}
        }
    }

    /// What became of the frame of the last [`Way::Probe`], once that is known.
    pub(crate) fn verdict(&mut self) -> Option<Outcome> {
        self.verdict.take()
    }

    /// Has nothing wait any more, and takes the frame that has the kernel ask for sent: the tunnel ends, or lets go of a ring.
    pub(crate) fn hurry(&mut self, hurried: bool) {
        self.hurried = hurried;
        if hurried {
            self.give_verdict(Outcome::Sent);
        }
    }

    /// Whether a neighbour is awaited, so that the next look should come soon.
    pub(crate) fn is_impatient(&self) -> bool {
        self.alarmed || self.asked.pending
    }

    /// Follows the path. True when something changed.
    pub(crate) fn look(&mut self) -> bool {
        let failing = self.reason().is_some();
        let mut changed = self.outputs.as_mut().is_some_and(Outputs::follow);
        changed |= self.notices.drain();
        changed |= self.remote.follow(failing);
        let watched = self.links.drain(|_| changed = true);
        changed |= watched.is_err() | std::mem::take(&mut self.alarmed);
        if changed || self.looked.elapsed() >= UPKEEP {
            changed |= self.find();
        } else if self.asked.pending {
            changed |= self.meet();
        }
        changed
    }

    /// Asks for the whole path. True when it is another one.
    fn find(&mut self) -> bool {
        self.looked = Instant::now();
        let wanted = &self.wanted;
        let hop = match self.remote.address() {
            Some(address) => {
                // By the name that the device has now.
                let device = match wanted.device.as_str() {
                    "" => None,
                    name => self.device.look(name, &mut self.links).ok().flatten(),
                };
                let device = device.map_or(wanted.device.clone(), |device| device.name);
                Hop::find(&mut self.links, address, wanted.local, &device)
            }
            None => Err(Closed::new(Outcome::NoRoute, self.remote.problem())),
        };
        let old = std::mem::replace(&mut self.hop, hop);
        let same = match (&old, &self.hop) {
            (Ok(old), Ok(new)) => old.is_like(new),
            (old, new) => old.as_ref().err() == new.as_ref().err(),
        };
        if !same {
            self.adopt(old.ok().as_ref());
        }
        let looped = self.look_for_loops(!same);
        let met = self.meet();
        let closed = self.judge();
        let changed = closed != self.closed;
        self.closed = closed;
        !same || met || changed || looped
    }

    /// Sends nothing from now on that would go round.
    pub(crate) fn set_guard(&mut self, guard: LoopGuard) {
        if let Some(outputs) = &mut self.outputs {
            outputs.set_origin(origin(&guard));
        }
        self.guard = Some(guard);
        self.look_for_loops(true);
        self.closed = self.judge();
    }

    /// Looks whether packets would go round: `now`, or when it is time again. True when that has changed.
    pub(crate) fn look_for_loops(&mut self, now: bool) -> bool {
        let pause = match self.looped {
            None => LOOK_FOR_LOOPS,
            Some(_) => LOOK_AGAIN,
        };
        let Some(guard) = self.guard.as_ref() else {
            return false;
        };
        if !now && self.guarded.elapsed() < pause {
            return false;
        }
        self.guarded = Instant::now();
        let link = self.hop.as_ref().ok().map(|hop| &hop.link);
        let looped = link.and_then(|link| guard.look(Edge::output(&link.name, link.index)));
        let looped = looped.map(|it| Closed::new(Outcome::LoopGuard, format!("{it}; {ADVICE}")));
        if looped == self.looped {
            return false;
        }
        self.looped = looped;
        self.closed = self.judge();
        true
    }

    /// What the rings are to note: the interface that packets leave by.
    pub(crate) fn notes(&self) -> Vec<ReaderOutput> {
        match (&self.guard, &self.hop) {
            (Some(guard), Ok(hop)) if self.looped.is_none() => {
                vec![guard.note(&hop.link.name, hop.link.index)]
            }
            _ => Vec::new(),
        }
    }

    /// Makes ready for another way.
    fn adopt(&mut self, old: Option<&Hop>) {
        self.give_verdict(Outcome::Sent);
        self.asked = Asked::default();
        let Ok(hop) = &self.hop else { return };
        tracing::info!(
            destination = %hop.destination, source = %hop.source, next_hop = %hop.next, device = %hop.link.name, mtu = hop.mtu,
            "path of a tunnel"
        );
        if old.is_none_or(|old| {
            (old.destination, old.link.index) != (hop.destination, hop.link.index)
        }) {
            let device = Some(hop.link.index).filter(|_| !self.wanted.device.is_empty());
            self.raw = RawIp::open(hop.destination, self.wanted.local, device)
                .map_err(|error| Closed::new(Outcome::Refused, error.to_string()));
        }
        if old.is_none_or(|old| old.destination != hop.destination) {
            let Wanted {
                protocols, port, ..
            } = self.wanted;
            if let Err(error) = self.notices.watch(hop.destination, protocols, port) {
                tracing::warn!(%error, "cannot hear what routers say about the packets of a tunnel");
            }
        }
        self.open_output();
    }

    /// Has the interface opened as an output, when packets are to go by it.
    fn open_output(&mut self) {
        let (Ok(hop), Some(io)) = (&self.hop, link_io(self.wanted.io)) else {
            return;
        };
        if !hop.ethernet {
            return;
        }
        match &mut self.outputs {
            Some(outputs) => {
                let name = outputs.list().first().map_or("", |output| output.name());
                if name != hop.link.name {
                    outputs.set_interface(0, &hop.link.name);
                }
            }
            None => match Outputs::new(std::slice::from_ref(&hop.link.name), io, false) {
                Ok(mut outputs) => {
                    outputs.set_origin(self.guard.as_ref().map(origin).unwrap_or_default());
                    self.outputs = Some(outputs);
                }
                Err(error) => tracing::warn!(%error, "cannot watch interfaces"),
            },
        }
    }

    /// Asks for the neighbour. True when what is known of it has changed.
    fn meet(&mut self) -> bool {
        let Ok(hop) = &self.hop else { return false };
        let mut contact = hop.contact();
        if contact == Contact::Unknown && self.asked.pending {
            self.asked.fruitless += 1;
        }
        if contact == Contact::Unknown && self.asked.fruitless >= FRUITLESS {
            contact = Contact::Direct;
        }
        match contact {
            Contact::Known { .. } => {
                self.give_verdict(Outcome::Sent);
                self.asked = Asked::default();
            }
            Contact::Direct | Contact::Unknown => self.give_verdict(Outcome::Sent),
            Contact::Silent => {
                self.asked.silent = true;
                self.give_verdict(Outcome::Unreachable);
            }
            Contact::Asking => {}
        }
        std::mem::replace(&mut self.contact, contact) != contact
    }

    fn give_verdict(&mut self, outcome: Outcome) {
        if std::mem::take(&mut self.asked.pending) {
            self.verdict = Some(outcome);
        }
    }

    /// Why nothing can be sent, whatever the neighbour does.
    fn judge(&self) -> Option<Closed> {
        let hop = match &self.hop {
            Ok(hop) => hop,
            Err(closed) => return Some(closed.clone()),
        };
        if let Err(closed) = &self.raw {
            return Some(closed.clone());
        }
        if let Some(closed) = &self.looped {
            return Some(closed.clone());
        }
        if let Some(router) = self.notices.lost_by() {
            let reason = format!("{router} says that there is no way to {}", hop.destination);
            return Some(Closed::new(Outcome::Unreachable, reason));
        }
        let by_name = !matches!(self.wanted.io, TunnelIo::Auto | TunnelIo::Ip);
        if by_name && !hop.ethernet {
            let io = self.wanted.io.as_str();
            let device = &hop.link.name;
            let reason =
                format!("{io} sends Ethernet frames, which {device} does not take: use --io auto");
            return Some(Closed::new(Outcome::NoInterface, reason));
        }
        None
    }

    /// Why nothing gets out; none when something does, or will in a moment.
    pub(crate) fn reason(&self) -> Option<String> {
        if let Some(closed) = &self.closed {
            return Some(closed.reason.clone());
        }
        let hop = self.hop.as_ref().ok()?;
        match self.contact {
            Contact::Direct => None,
            Contact::Known { .. } => match self.way() {
                Way::Closed(_) => self.output()?.reason(),
                _ => None,
            },
            _ => self.asked.is_in_vain().then(|| {
                let (next, device) = (hop.next, &hop.link.name);
                format!("nobody answers for {next} on {device}")
            }),
        }
    }

    /// What is shown of it. What depends on the format of the tunnel is left for the caller.
    pub(crate) fn status(&self) -> v1::TunnelPath {
        let text = |known: Option<String>| known.unwrap_or_default();
        let Ok(hop) = &self.hop else {
            return v1::TunnelPath {
                remote: text(self.remote.address().map(|address| address.to_string())),
                ..Default::default()
            };
        };
        let mac = match self.contact {
            Contact::Known { mac, .. } => mac.map(|byte| format!("{byte:02x}")).join(":"),
            _ => String::new(),
        };
        let (io, io_reason) = self.io();
        v1::TunnelPath {
            remote: hop.destination.to_string(),
            local: hop.source.to_string(),
            device: hop.link.name.clone(),
            ifindex: hop.link.index,
            next_hop: hop.next.to_string(),
            next_hop_mac: mac,
            neighbour: self.contact.as_str().to_owned(),
            mtu: u32::try_from(self.mtu()).unwrap_or(u32::MAX),
            io,
            io_reason,
            device_changes: self.device.changes(),
            warning: self.device.remark().to_owned(),
            ..Default::default()
        }
    }

    /// The way of sending in use, and why it is that.
    fn io(&self) -> (String, String) {
        // Until the next hop is known a frame goes by the stack; that is soon over.
        let output = self.output().filter(|_| self.contact != Contact::Direct);
        if let Some(output) = output {
            let status = output.status();
            return (status.io, status.io_reason);
        }
        let why = match self.wanted.io {
            TunnelIo::Ip => "asked for",
            _ => "no Ethernet address is needed there",
        };
        ("ip".to_owned(), why.to_owned())
    }

    /// How many messages of routers and the far end there were of each kind.
    pub(crate) fn icmp_events(&self) -> std::collections::BTreeMap<String, u64> {
        self.notices.counts()
    }
}

/// What packets tell of their rings. Those from several do not: they are known by their headers when they come back.
fn origin(guard: &LoopGuard) -> Origin {
    match guard.origin() {
        Origin::SEVERAL => Origin::UNKNOWN,
        one => one,
    }
}

impl Asked {
    fn way(&self, contact: Contact) -> Way {
        let asking = self.pending || contact == Contact::Asking;
        match self.since.map(|since| since.elapsed()) {
            None => Way::Probe,
            Some(waited) if asking && !self.silent && waited < HOLD => Way::Hold,
            Some(waited) if !asking && waited >= ASK_AGAIN => Way::Probe,
            Some(_) if !asking && !self.silent => Way::Probe,
            Some(_) => Way::Closed(Outcome::Unreachable),
        }
    }

    /// Whether nobody has answered for long.
    fn is_in_vain(&self) -> bool {
        self.silent || self.since.is_some_and(|since| since.elapsed() >= HOLD)
    }
}

/// The way of sending by the link that was asked for; none: not by the link.
fn link_io(io: TunnelIo) -> Option<TransmitIo> {
    match io {
        TunnelIo::Auto => Some(TransmitIo::Auto),
        TunnelIo::Live => Some(TransmitIo::Live),
        TunnelIo::Tc => Some(TransmitIo::Tc),
        TunnelIo::AfXdp => Some(TransmitIo::AfXdp),
        TunnelIo::Sendmmsg => Some(TransmitIo::Sendmmsg),
        TunnelIo::Ip => None,
    }
}
