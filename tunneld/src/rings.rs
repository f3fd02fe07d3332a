//! The rings that a tunnel receives into: found by name, followed to their next epoch.

use fluxcap_datapath::ring_advice;
use fluxcap_proto::v1;
use fluxcap_ring::{Error, LABEL_MAX, Producer, RingDir, RingName};
use fluxcap_service::State;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time between two looks for rings that are missing.
const RETRY: Duration = Duration::from_millis(100);
/// Longest name of a source in bytes.
const SOURCE_MAX: usize = 48;
/// Rings that a reason names.
const NAMED: usize = 3;

/// The rings of a tunnel, each once.
#[derive(Debug)]
pub(crate) struct Rings {
    dir: RingDir,
    tunnel: String,
    rings: Vec<Target>,
    looked: Instant,
}

/// A ring, there or not.
#[derive(Debug)]
pub(crate) struct Target {
    name: String,
    producer: Option<Producer>,
    sources: Sources,
    epoch: u64,
    reason: String,
    changed: bool,
    frames: u64,
    bytes: u64,
}

/// The places that the senders of a tunnel have in the source table of a ring.
#[derive(Debug, Default)]
struct Sources {
    known: HashMap<IpAddr, u16>,
    last: Option<(IpAddr, u16)>,
    /// That of all senders for which the table has no room.
    common: u16,
    full: bool,
}

impl Rings {
    /// The rings of these names, which are looked for at once.
    pub(crate) fn new(dir: &RingDir, tunnel: &str, names: &[String]) -> Rings {
        let mut rings = Rings {
            dir: dir.clone(),
            tunnel: tunnel.to_owned(),
            rings: Vec::new(),
            looked: Instant::now(),
        };
        rings.set_names(names);
        rings
    }

    /// Receives into these rings from now on. Those that were there before go on, the others are let go.
    pub(crate) fn set_names(&mut self, names: &[String]) {
        let mut old = std::mem::take(&mut self.rings);
        for name in names {
            let known = old.iter().position(|target| target.name == *name);
            let target = known.map_or_else(|| Target::new(name), |at| old.swap_remove(at));
            self.rings.push(target);
        }
        old.into_iter().for_each(Target::close);
        self.look();
    }

    /// Looks for rings that are missing when it is time to, and leaves those that are retired.
    pub(crate) fn follow(&mut self) {
        if self.looked.elapsed() >= RETRY {
            self.look();
        }
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        for target in &mut self.rings {
            target.follow(&self.dir, &self.tunnel);
            if target.producer.is_none() {
                target.open(&self.dir, &self.tunnel);
            }
        }
    }

    /// A ring to publish into, or the one that took its place. `None` when there is none.
    #[inline]
    pub(crate) fn ready(&mut self, place: usize) -> Option<&mut Target> {
        let target = self.rings.get_mut(place)?;
        target.follow(&self.dir, &self.tunnel);
        target.producer.is_some().then_some(target)
    }

    /// Why rings are missing; empty when none is.
    pub(crate) fn reason(&self) -> String {
        let missing = self.rings.iter().filter(|target| target.producer.is_none());
        let mut reasons: Vec<_> = missing.map(|target| target.reason.as_str()).collect();
        let more = reasons.len().saturating_sub(NAMED);
        reasons.truncate(NAMED);
        let mut reason = reasons.join("; ");
        if more > 0 {
            reason.push_str(&format!("; and {more} more"));
        }
        reason
    }

    /// Whether a ring has come or gone since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        let rings = self.rings.iter_mut();
        rings.fold(false, |any, target| {
            std::mem::take(&mut target.changed) | any
        })
    }

    /// What is shown of them.
    pub(crate) fn statuses(&self) -> Vec<v1::TunnelRingStatus> {
        self.rings.iter().map(Target::status).collect()
    }

    /// Lets go of all of them.
    pub(crate) fn close(&mut self) {
        self.rings.drain(..).for_each(Target::close);
    }
}

impl Target {
    fn new(name: &str) -> Target {
        Target {
            name: name.to_owned(),
            producer: None,
            sources: Sources::default(),
            epoch: 0,
            reason: String::new(),
            changed: true,
            frames: 0,
            bytes: 0,
        }
    }

    /// Leaves a ring that is retired, for its successor if it has one.
    #[inline]
    fn follow(&mut self, dir: &RingDir, tunnel: &str) {
        if self
            .producer
            .as_ref()
            .is_some_and(|ring| ring.retired().is_some())
        {
            self.leave();
            self.open(dir, tunnel);
        }
    }

    #[cold]
    fn open(&mut self, dir: &RingDir, tunnel: &str) {
        let opened = RingName::parse(&self.name)
            .and_then(|name| Producer::open(dir, &name, &label("tunneld ", tunnel, LABEL_MAX)))
            .and_then(|mut ring| {
                self.sources = Sources::new(&mut ring, tunnel)?;
                Ok(ring)
            });
        match opened {
            Ok(ring) => {
                self.epoch = ring.info().epoch;
                self.changed = true;
                self.reason.clear();
                tracing::info!(tunnel, ring = %self.name, epoch = self.epoch, "writing to ring");
                self.producer = Some(ring);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Takes note that the ring cannot be used, and lets go of it.
    #[cold]
    pub(crate) fn fail(&mut self, error: &Error) {
        self.leave();
        let reason = match error {
            Error::NoSource { sources, .. } => format!(
                "ring {} has no room for another source, all {sources} are taken: make it anew",
                self.name
            ),
            other => ring_advice(&self.name, other),
        };
        self.changed |= self.reason != reason;
        self.reason = reason;
    }

    fn leave(&mut self) {
        if let Some(ring) = self.producer.take() {
            ring.close();
            self.changed = true;
        }
    }

    fn close(mut self) {
        self.leave();
    }

    /// The ring, if it is there, and the place in its source table that a sender's frames have.
    pub(crate) fn source(&mut self, tunnel: &str, address: IpAddr) -> u16 {
        match (&mut self.producer, self.sources.last) {
            (_, Some((last, source))) if last == address => source,
            (Some(ring), _) => self.sources.find(ring, tunnel, address),
            (None, _) => 0,
        }
    }

    /// The ring, while it is there.
    #[inline]
    pub(crate) fn producer(&mut self) -> Option<&mut Producer> {
        self.producer.as_mut()
    }

    /// Adds frames that were published.
    pub(crate) fn add_published(&mut self, frames: u64, bytes: u64) {
        self.frames += frames;
        self.bytes += bytes;
    }

    fn status(&self) -> v1::TunnelRingStatus {
        let state = match self.producer {
            Some(_) => State::Running,
            None => State::Waiting,
        };
        v1::TunnelRingStatus {
            name: self.name.clone(),
            state: v1::State::from(state).into(),
            reason: self.reason.clone(),
            epoch: self.epoch,
            published_frames: self.frames,
            published_bytes: self.bytes,
        }
    }
}

impl Sources {
    fn new(ring: &mut Producer, tunnel: &str) -> Result<Sources, Error> {
        Ok(Sources {
            common: ring.register_source(&label("", tunnel, SOURCE_MAX))?,
            ..Sources::default()
        })
    }

    fn find(&mut self, ring: &mut Producer, tunnel: &str, address: IpAddr) -> u16 {
        let source = match self.known.get(&address) {
            Some(source) => *source,
            None => self.add(ring, tunnel, address),
        };
        self.last = Some((address, source));
        source
    }

    /// A sender gets a place of its own as long as there is room, in the table and in the length of a name.
    #[cold]
    fn add(&mut self, ring: &mut Producer, tunnel: &str, address: IpAddr) -> u16 {
        if self.full {
            return self.common;
        }
        let name = format!("{tunnel} {address}");
        if name.len() > SOURCE_MAX {
            return self.common;
        }
        match ring.register_source(&name) {
            Ok(source) => {
                self.known.insert(address, source);
                source
            }
            Err(_) => {
                self.full = true;
                self.common
            }
        }
    }
}

/// A label of at most `longest` bytes. Names of tunnels are ASCII.
fn label(before: &str, tunnel: &str, longest: usize) -> String {
    let mut label = format!("{before}{tunnel}");
    label.truncate(longest);
    label
}
