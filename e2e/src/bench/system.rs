//! The systems under test: fluxcap, and those that it is compared with.

mod fluxcap;
mod mirred;
mod mirrord;
mod process;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use fluxcap_proto::v1::Hook;

use crate::bench::bed::{Bed, Shape};
use crate::bench::trial::{self, Trial};

pub use fluxcap::{Books, Fluxcap, Setup};
pub(crate) use mirred::Mirred;
pub(crate) use mirrord::{Mirror, begin};
pub(crate) use process::{Processes, must_succeed};

/// Names the binary of fluxcap 3.2.
pub const C_VARIABLE: &str = "FLUXCAP_C";

/// How long a system may take until the first frame comes through.
const PATIENCE: Duration = Duration::from_secs(8);

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// rxd, ring, txd.
    Fluxcap(Setup),
    /// fluxcap 3.2, in C.
    FluxcapC,
    /// mirrord, in the driver's receive path (XDP) or at traffic control.
    Mirror {
        /// XDP.
        xdp: bool,
    },
    /// `tc ... action mirred`, in the kernel.
    Mirred,
    /// daemonlogger, from one interface to another.
    Daemonlogger,
    /// tcpbridge of tcpreplay, from one interface to another.
    Tcpbridge,
}

impl System {
    /// fluxcap with one transmit for all outputs and defaults but for `--io`.
    #[must_use]
    pub const fn fluxcap(io: &'static str) -> System {
        System::Fluxcap(Setup::of(io))
    }

    /// Whether it is fluxcap.
    #[must_use]
    pub fn is_fluxcap(self) -> bool {
        matches!(self, System::Fluxcap(_))
    }

    /// Whether it can connect interfaces in this way.
    #[must_use]
    pub fn can(self, shape: Shape) -> bool {
        match self {
            System::Daemonlogger | System::Tcpbridge => shape.inputs == 1 && shape.outputs == 1,
            System::Fluxcap(setup) => !setup.one_each || shape.outputs > 1,
            System::FluxcapC | System::Mirror { .. } | System::Mirred => true,
        }
    }

    /// How long it holds the last frames back at most when there are no more.
    #[must_use]
    pub fn held_back(self) -> Duration {
        Duration::from_millis(match self {
            // A clock of 10 Hz flushes what the receiver has gathered.
            System::FluxcapC => 200,
            // libpcap's time-out.
            System::Daemonlogger => 600,
            System::Fluxcap(_) | System::Mirror { .. } | System::Mirred | System::Tcpbridge => 20,
        })
    }

    /// Why it cannot be run on this machine.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let absent = |program: &str| {
            let found = process::find(program).is_some();
            (!found).then(|| format!("{program} is not installed"))
        };
        match self {
            System::Fluxcap(_) | System::Mirror { .. } => None,
            System::FluxcapC => match c_binary() {
                None => Some(format!("{C_VARIABLE} does not name its binary")),
                Some(path) if !path.exists() => Some(format!("{} is not there", path.display())),
                Some(_) => None,
            },
            System::Mirred => absent("tc"),
            System::Daemonlogger => absent("daemonlogger"),
            System::Tcpbridge => absent("tcpbridge"),
        }
    }

    /// Starts it in the host of a bed, and waits until frames come out of all outputs.
    ///
    /// # Errors
    /// What it says when it does not work.
    pub fn start(self, bed: &mut Bed) -> Result<Running> {
        let running = match self {
            System::Fluxcap(setup) => Running::Fluxcap(Box::new(Fluxcap::start(bed, setup)?)),
            System::FluxcapC => Running::Processes(process::fluxcap_c(bed)?),
            System::Mirror { xdp } => {
                let hook = if xdp { Hook::Xdp } else { Hook::Tc };
                Running::Mirror(Box::new(Mirror::start(bed, hook)?))
            }
            System::Mirred => Running::Kernel(Mirred::start(bed)?),
            System::Daemonlogger => Running::Processes(process::daemonlogger(bed)?),
            System::Tcpbridge => Running::Processes(process::tcpbridge(bed)?),
        };
        wait_ready(bed, &running, self.held_back())?;
        Ok(running)
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            System::Fluxcap(setup) => write!(f, "fluxcap {setup}"),
            System::FluxcapC => write!(f, "fluxcap 3.2"),
            System::Mirror { xdp: true } => write!(f, "fluxcap mirror xdp"),
            System::Mirror { xdp: false } => write!(f, "fluxcap mirror tc"),
            System::Mirred => write!(f, "tc mirred"),
            System::Daemonlogger => write!(f, "daemonlogger"),
            System::Tcpbridge => write!(f, "tcpbridge"),
        }
    }
}

/// The binary of fluxcap 3.2.
fn c_binary() -> Option<PathBuf> {
    std::env::var_os(C_VARIABLE).map(PathBuf::from)
}

/// A system at work. It ends on drop.
#[derive(Debug)]
pub enum Running {
    /// Daemons of this project.
    Fluxcap(Box<Fluxcap>),
    /// Other programs.
    Processes(Processes),
    /// mirrord.
    Mirror(Box<Mirror>),
    /// Rules in the kernel.
    Kernel(Mirred),
}

impl Running {
    /// Its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        match self {
            Running::Fluxcap(fluxcap) => fluxcap.pids(),
            Running::Processes(processes) => processes.pids(),
            Running::Mirror(mirror) => mirror.pids(),
            Running::Kernel(_) => Vec::new(),
        }
    }

    /// What it has to say when it does not work.
    fn log(&self) -> String {
        match self {
            Running::Fluxcap(fluxcap) => fluxcap.reasons(),
            Running::Processes(processes) => processes.log(),
            Running::Mirror(mirror) => mirror.reasons(),
            Running::Kernel(_) => String::new(),
        }
    }

    /// The daemons, when it is fluxcap.
    pub fn fluxcap(&mut self) -> Option<&mut Fluxcap> {
        match self {
            Running::Fluxcap(fluxcap) => Some(fluxcap),
            _ => None,
        }
    }
}

/// Sends some frames again and again, until all outputs have seen all of a try.
fn wait_ready(bed: &mut Bed, running: &Running, held_back: Duration) -> Result<()> {
    let begin = std::time::Instant::now();
    let probe = Trial {
        mix: super::frame::MIXES[0],
        rate: 2_000.0,
        duration: Duration::from_millis(10),
        held_back,
    };
    loop {
        let outcome = trial::run(bed, probe)?;
        if outcome.lost() == 0 {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            anyhow::bail!(
                "of {} frames {:?} arrived, {PATIENCE:?} after the start: {}",
                outcome.frames,
                outcome.received,
                running.log()
            );
        }
    }
}
