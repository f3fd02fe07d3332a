//! Where, how urgently and how patiently the thread of a sender runs.

use fluxcap_proto::v1::{Latency, Scheduling};
use fluxcap_socket::{Affinity, Starvation, place_thread};
use std::time::Duration;

/// With low latency: how long to look for frames before a sleep, which costs as much and more on each side.
const SPIN: Duration = Duration::from_micros(50);
/// CPUs from which on somebody can be spared for that.
const SPIN_CPUS: usize = 4;

/// Without low latency: how long to let more frames come when they come thick. A burst costs much the same for few and for many: a
/// wake-up alone some 50 us.
const GATHER: Duration = Duration::from_micros(1000);
/// How many frames in a burst are thick: those that live frames pay for; and from how many on more pay no more.
const THICK: std::ops::Range<usize> = 16..256;

/// What the calling thread was given of what its spec asks for.
#[derive(Debug)]
pub struct Placement {
    spin: Duration,
    /// Frames may wait for others.
    patient: bool,
    /// The CPUs that the thread could use before it was given some.
    any: Option<Affinity>,
    remark: String,
    starvation: Starvation,
}

impl Placement {
    /// Places the calling thread as a spec says.
    pub fn new(latency: Latency, scheduling: Option<&Scheduling>) -> Placement {
        let mut placement = Placement {
            spin: Duration::ZERO,
            patient: false,
            any: None,
            remark: String::new(),
            starvation: Starvation::watch(),
        };
        placement.apply(latency, scheduling);
        placement
    }

    /// Places the calling thread, which must be the one of [`Placement::new`], as another spec says.
    pub fn apply(&mut self, latency: Latency, scheduling: Option<&Scheduling>) {
        let wanted = scheduling.cloned().unwrap_or_default();
        self.spin = spin(latency, wanted.spin_us);
        self.patient = latency != Latency::Low && self.spin.is_zero();
        self.remark = self.schedule(&wanted);
    }

    /// How long to look for frames before a sleep.
    pub fn spin(&self) -> Duration {
        self.spin
    }

    /// What of the scheduling that was asked for cannot be had; often nothing.
    pub fn remark(&self) -> &str {
        &self.remark
    }

    /// To be called between two bursts: leaves a CPU that is taken up by what comes before this thread, if there is another one.
    pub fn relieve(&mut self) {
        self.starvation.relieve();
    }

    /// To be called after a burst of so many frames: lets more come for a moment, if they come thick and latency does not matter.
    pub fn gather(&self, sent: usize) {
        if self.patient && THICK.contains(&sent) {
            std::thread::sleep(GATHER);
        }
    }

    /// Nothing is tried when nothing is asked for.
    fn schedule(&mut self, wanted: &Scheduling) -> String {
        if self.any.is_none() && wanted.cpus.is_empty() && wanted.priority == 0 {
            return String::new();
        }
        let placed = match self.any {
            Some(any) => Ok(any),
            None => Affinity::of_thread(),
        };
        let placed = placed.and_then(|all| {
            self.any = Some(all);
            place_thread(0, &wanted.cpus, &all, wanted.priority)
        });
        placed
            .err()
            .map_or(String::new(), |error| error.to_string())
    }
}

/// As long as the spec says; else, for low latency, unless that would keep a CPU from others.
fn spin(latency: Latency, asked_us: u32) -> Duration {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match asked_us {
        0 if latency == Latency::Low && cpus >= SPIN_CPUS => SPIN,
        us => Duration::from_micros(us.into()),
    }
}
