//! Which way frames take to an interface: the fastest one that is safe and that the interface really delivers.

use crate::output::Output;
use fluxcap_options::TransmitIo;
use fluxcap_service::is_lack;
use fluxcap_socket::{
    Error, FarEnd, Link, LinkWatch, Live, Origin, Sendmmsg, Tc, Transmitter, Xsk,
};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// The largest MTU with which all frames are short enough for live frames (3408 bytes), header and a tag included.
const LIVE_MTU: u32 = 3390;
/// After this time an interface that took no live frames is tried again; after twice as long each further time.
const RETRY_LIVE: Duration = Duration::from_secs(5);
/// How often that time is doubled: to five minutes.
const RETRY_DOUBLINGS: u32 = 6;

/// After this time what could not be opened for want of a thread, a descriptor or memory is tried again.
const RETRY_LACK: Duration = Duration::from_secs(2);

/// A way of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// BPF live frames.
    Live,
    /// Clones by a BPF program for tc.
    Tc,
    /// AF_XDP sockets.
    AfXdp,
    /// Packet sockets.
    Sendmmsg,
}

impl Io {
    /// All of them, in the order of their places in [`Backends`].
    const ALL: [Io; 4] = [Io::Live, Io::Tc, Io::AfXdp, Io::Sendmmsg];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Io::Live => "live",
            Io::Tc => "tc",
            Io::AfXdp => "af_xdp",
            Io::Sendmmsg => "sendmmsg",
        }
    }
}

/// The transmitters. Opening one with a BPF program takes a tenth of a second, so that is done beside the data path.
#[derive(Debug)]
pub(crate) struct Backends {
    slots: [Slot; Io::ALL.len()],
    /// Those that are being opened come here.
    opening: Option<Receiver<Opened>>,
    /// Those that the system had no room for, and when they are tried again.
    lacking: Vec<Io>,
    again: Instant,
    origin: Origin,
}

type Opened = (Io, Result<Box<dyn Transmitter>, Error>);

#[derive(Debug, Default)]
struct Slot {
    open: Option<Box<dyn Transmitter>>,
    /// Why it cannot be opened.
    problem: Option<String>,
    /// The interface at each place.
    places: Vec<u32>,
}

/// Why a way of sending cannot be had.
enum Unfit {
    /// It is being opened, or will be: which of the two.
    NotYet(&'static str),
    /// It cannot be opened, or does not serve the interface.
    Never(String),
}

impl Backends {
    /// Opens what may be wanted: what was asked for by name at once, what `auto` may choose in the background, because
    /// packet sockets serve meanwhile.
    pub(crate) fn new(wanted: TransmitIo, qdisc_bypass: bool) -> Backends {
        let mut backends = Backends {
            slots: Default::default(),
            opening: None,
            lacking: Vec::new(),
            again: Instant::now(),
            origin: Origin::UNKNOWN,
        };
        if matches!(wanted, TransmitIo::Auto | TransmitIo::Sendmmsg) {
            backends.take((Io::Sendmmsg, Ok(Box::new(Sendmmsg::new(qdisc_bypass)))));
        }
        match wanted {
            TransmitIo::Auto => backends.open_beside(vec![Io::Live, Io::Tc]),
            TransmitIo::Live => backends.take((Io::Live, open(Io::Live))),
            TransmitIo::Tc => backends.take((Io::Tc, open(Io::Tc))),
            TransmitIo::AfXdp => backends.take((Io::AfXdp, open(Io::AfXdp))),
            TransmitIo::Sendmmsg => {}
        }
        backends
    }

    /// Opens them on a thread of its own, which is in the same network namespace.
    fn open_beside(&mut self, ios: Vec<Io>) {
        let (sender, receiver) = channel();
        let wanted = ios.clone();
        let open_all = move || {
            for io in wanted {
                // Nobody waits any more when the sender has ended.
                let _ = sender.send((io, open(io)));
            }
        };
        match std::thread::Builder::new()
            .name("open-io".to_owned())
            .spawn(open_all)
        {
            Ok(_) => self.opening = Some(receiver),
            Err(error) => {
                tracing::debug!(%error, "cannot start a thread to load BPF programs, trying again");
                ios.into_iter().for_each(|io| self.lack(io));
            }
        }
    }

    /// Notes one that cannot be had now.
    fn lack(&mut self, io: Io) {
        self.lacking.push(io);
        self.again = Instant::now() + RETRY_LACK;
    }

    /// Takes over what has been opened meanwhile, and tries again what there was no room for. True when there is something new.
    pub(crate) fn collect(&mut self) -> bool {
        let mut news = false;
        if !self.lacking.is_empty() && self.opening.is_none() && Instant::now() >= self.again {
            let lacking = std::mem::take(&mut self.lacking);
            self.open_beside(lacking);
        }
        while let Some(opening) = &self.opening {
            match opening.try_recv() {
                Ok(opened) => self.take(opened),
                Err(TryRecvError::Disconnected) => self.opening = None,
                Err(TryRecvError::Empty) => return news,
            }
            news = true;
        }
        news
    }

    fn take(&mut self, (io, opened): Opened) {
        let slot = &mut self.slots[io as usize];
        match opened {
            Ok(mut open) => {
                open.set_origin(self.origin);
                slot.open = Some(open);
            }
            Err(error) if is_lack(&error) => self.lack(io),
            Err(error) => slot.problem = Some(explain(&error)),
        }
    }

    /// Has frames tell from now on which ring they are from.
    pub(crate) fn set_origin(&mut self, origin: Origin) {
        if self.origin != origin {
            self.origin = origin;
            let open = self.slots.iter_mut().filter_map(|slot| slot.open.as_mut());
            open.for_each(|open| open.set_origin(origin));
        }
    }

    /// The transmitters that serve an interface.
    pub(crate) fn in_use(&mut self) -> impl Iterator<Item = &mut Box<dyn Transmitter>> {
        let used = |slot: &&mut Slot| slot.places.iter().any(|ifindex| *ifindex != 0);
        let used = self.slots.iter_mut().filter(used);
        used.filter_map(|slot| slot.open.as_mut())
    }

    /// One of them, if it is open.
    pub(crate) fn get(&mut self, io: Io) -> Option<&mut Box<dyn Transmitter>> {
        self.slots[io as usize].open.as_mut()
    }

    /// Has an interface served by this way of sending at a place of the list.
    fn assign(&mut self, io: Io, place: usize, ifindex: u32) -> Result<(), Unfit> {
        let slot = &mut self.slots[io as usize];
        let Some(open) = &mut slot.open else {
            return Err(match &slot.problem {
                Some(problem) => Unfit::Never(problem.clone()),
                None if self.lacking.contains(&io) => {
                    Unfit::NotYet("waiting for a thread or for open files")
                }
                None if self.opening.is_some() => Unfit::NotYet("being prepared"),
                None => Unfit::Never("is not open".to_owned()),
            });
        };
        let mut places = slot.places.clone();
        places.resize(places.len().max(place + 1), 0);
        places[place] = ifindex;
        open.set_interfaces(&places)
            .map_err(|error| Unfit::Never(explain(&error)))?;
        slot.places = places;
        Ok(())
    }

    /// Lets no way of sending serve a place.
    pub(crate) fn release(&mut self, place: usize) {
        for slot in &mut self.slots {
            let Some(ifindex) = slot.places.get_mut(place).filter(|index| **index != 0) else {
                continue;
            };
            *ifindex = 0;
            if let Some(open) = &mut slot.open
                && let Err(error) = open.set_interfaces(&slot.places)
            {
                // Another interface that it serves is gone, and will be found missing.
                tracing::debug!(io = open.name(), %error, "cannot let go of an interface");
            }
        }
    }
}

fn open(io: Io) -> Result<Box<dyn Transmitter>, Error> {
    Ok(match io {
        Io::Live => Box::new(Live::new()?),
        Io::Tc => Box::new(Tc::new()?),
        Io::AfXdp => Box::new(Xsk::new()),
        Io::Sendmmsg => Box::new(Sendmmsg::new(false)),
    })
}

/// An error with its causes; a missing capability is cause enough.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    if matches!(error, Error::Permission { .. }) {
        return text;
    }
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The ways to try for an interface, the best first, and what is to be said of each that is left out.
fn candidates(wanted: TransmitIo, link: &Link, deaf: Option<&str>) -> (Vec<Io>, Vec<String>) {
    match wanted {
        TransmitIo::Live => (vec![Io::Live], Vec::new()),
        TransmitIo::Tc => (vec![Io::Tc], Vec::new()),
        TransmitIo::Sendmmsg => (vec![Io::Sendmmsg], Vec::new()),
        TransmitIo::AfXdp => (vec![Io::AfXdp], Vec::new()),
        TransmitIo::Auto => {
            let why_not = if link.kind != "veth" {
                "live: on request only, but for veth".to_owned()
            } else if link.mtu > LIVE_MTU {
                format!("live: on request only beyond an MTU of {LIVE_MTU}")
            } else if let Some(advice) = deaf {
                format!("live: the other end takes no such frames before it is prepared: {advice}")
            } else {
                return (vec![Io::Live, Io::Tc, Io::Sendmmsg], Vec::new());
            };
            (vec![Io::Tc, Io::Sendmmsg], vec![why_not])
        }
    }
}

/// What a choice depends on: the interface, and whether its MTU is fit for live frames.
pub(crate) fn fitness(link: &Link) -> (u32, bool) {
    (link.index, link.mtu <= LIVE_MTU)
}

/// What is remembered of an output from one choice to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// When it turned out that the interface takes no live frames; none while it may.
    bounced: Option<Instant>,
    /// How often that happened in a row.
    times: u32,
}

impl Memory {
    /// Takes note that the interface took no live frames. True when that is news.
    pub(crate) fn bounce(&mut self) -> bool {
        self.bounced = Some(Instant::now());
        self.times += 1;
        self.times == 1
    }

    /// Whether it is time to try again, with the next frames that would go so: until then nobody knows more than before.
    pub(crate) fn retry_is_due(&self) -> bool {
        let doublings = self.times.saturating_sub(1).min(RETRY_DOUBLINGS);
        let delay = RETRY_LIVE * (1 << doublings);
        self.bounced.is_some_and(|at| at.elapsed() >= delay)
    }

    /// Whether the interface took no live frames in the last attempt.
    pub(crate) fn is_bounced(&self) -> bool {
        self.bounced.is_some()
    }

    /// To be tried again now.
    pub(crate) fn retry(&mut self) {
        self.bounced = None;
    }
}

/// How the other end of an interface takes frames; `None` when the kernel does not tell, or it is no veth.
pub(crate) fn far_end(link: &Link) -> Option<FarEnd> {
    FarEnd::of(link).unwrap_or_else(|error| {
        // It is gone, and will be found missing.
        tracing::debug!(interface = %link.name, %error, "cannot tell how the other end takes frames");
        None
    })
}

/// What to run at the other end of a veth so that it takes live frames as they are. That end may be where nobody can look from here.
fn advice(link: &Link, links: &mut LinkWatch) -> String {
    if link.kind != "veth" {
        return String::new();
    }
    let here = (!link.linked_elsewhere).then(|| links.find_index(link.linked));
    match here {
        Some(Ok(Some(end))) => format!("fluxctl output prepare {}", end.name),
        _ => format!(
            "in the sensor's network namespace, fluxctl output prepare IFACE (the interface with index {} there)",
            link.linked
        ),
    }
}

/// Chooses the way to an output that has a link, and opens it. What was there before is let go.
pub(crate) fn choose(
    output: &mut Output,
    place: usize,
    wanted: TransmitIo,
    memory: Memory,
    backends: &mut Backends,
    links: &mut LinkWatch,
) {
    backends.release(place);
    (output.io, output.io_reason, output.problem) = Default::default();
    (output.provisional, output.refused, output.far_end) = Default::default();
    output.advice.clear();
    output.chosen_for = output.link.as_ref().map(fitness);
    let Some(link) = &output.link else { return };
    if let Some(looped) = &output.looped {
        output.problem = looped.clone();
        return;
    }
    if !link.ethernet {
        output.problem = format!("interface {} is not an Ethernet interface", link.name);
        return;
    }
    output.far_end = far_end(link);
    output.advice = advice(link, links);
    let deaf = memory.is_bounced() || output.far_end == Some(FarEnd::Plain);
    let deaf = deaf.then_some(output.advice.as_str());
    let (candidates, mut remarks) = candidates(wanted, link, deaf);
    for io in candidates {
        match backends.assign(io, place, link.index) {
            Ok(()) => {
                let mode = backends.get(io).map_or("", |backend| backend.mode());
                let merits = [merit(io), mode]
                    .into_iter()
                    .filter(|merit| !merit.is_empty());
                remarks.splice(0..0, merits.map(str::to_owned));
                output.io_reason = remarks.join("; ");
                output.io = Some(io);
                tracing::info!(interface = %link.name, ifindex = link.index, io = io.as_str(), why = %output.io_reason, "transmitting");
                return;
            }
            Err(Unfit::NotYet(why)) => {
                output.provisional = true;
                remarks.push(format!("{}: {why}", io.as_str()));
            }
            Err(Unfit::Never(problem)) => remarks.push(format!("{}: {problem}", io.as_str())),
        }
    }
    output.problem = format!("cannot transmit on {}: {}", link.name, remarks.join("; "));
}

/// What speaks for it.
fn merit(io: Io) -> &'static str {
    match io {
        Io::Live => "the fastest way to a veth; bursts of less than 16 frames go by sendmmsg",
        Io::Tc => "the fastest way that works with every driver",
        Io::AfXdp => "a socket on queue 0 of the interface",
        Io::Sendmmsg => "works on every interface",
    }
}
