//! Copies that are changed on their way: encapsulated, or cut before they go to interfaces.
//!
//! ```text
//!   mirror program -- clone --> interface "fxm...", down, with the relay program --> the way to the collector, or each device
//!        Kernel: interface, program, pins      Path: route, next host, MTU      Form: what packets look like
//! ```
//!
//! All of it stays in the kernel while mirrord restarts, like the mirror's own programs. While there is no way to the collector, copies are counted
//! as "no_route".

mod cutter;
mod format;
mod kernel;
mod path;
mod program;

pub(crate) use kernel::{Own, TunnelKey, guard, sweep, unguard};

use crate::error::Error;
use crate::target::{Devices, Home, Outlet, Target};
use fluxcap_headers::tunnel::{Encap, TunnelKind};
use fluxcap_proto::v1::{self, Attach, MirrorOutput, MirrorOverlay, MirrorSpec};
use fluxcap_socket::{Link, LinkWatch};
use format::{Form, encap_spec};
use kernel::Kernel;
use path::Path;
use program::{Orders, RelayProgram, Task, Way};

/// A target that needs a relay.
pub(crate) struct Relay {
    /// None: it is only to be asked what the kernel says.
    home: Option<Home>,
    orders: Orders,
    /// How the program is attached to the interface of its own.
    attach: Attach,
    end: End,
    kernel: Option<Kernel>,
}

/// Where a relay sends copies.
enum End {
    Collector(Box<Collector>),
    Devices {
        devices: Devices,
        known: Vec<Outlet>,
    },
}

/// The far end of an overlay.
struct Collector {
    overlay: MirrorOverlay,
    path: Path,
    /// What the program was told last.
    way: Option<Way>,
    problem: Option<String>,
}

impl Relay {
    /// The relay that a spec needs, if it needs one.
    pub(crate) fn new(spec: &MirrorSpec, home: Option<Home>) -> Option<Relay> {
        let (task, end) = match &spec.overlay {
            Some(overlay) => {
                let collector = Collector {
                    overlay: overlay.clone(),
                    path: Path::new(overlay),
                    way: None,
                    problem: None,
                };
                let task = Task::Encapsulate(Form::of(overlay));
                (task, End::Collector(Box::new(collector)))
            }
            None if !spec.devices.is_empty() && spec.snaplen != 0 => {
                let devices = Devices::new(spec);
                let count = u32::try_from(spec.devices.len()).unwrap_or(0);
                let known = Vec::new();
                (Task::Distribute(count), End::Devices { devices, known })
            }
            None => return None,
        };
        Some(Relay {
            home,
            orders: Orders {
                task,
                mark: crate::program::mark(spec),
                snaplen: spec.snaplen,
                fuse_errors: spec.fuse.unwrap_or_default().errors_per_second,
            },
            attach: spec.attach(),
            end,
            kernel: None,
        })
    }

    /// What is in the kernel, made or made anew if need be.
    fn kernel(&mut self, home: &Home, links: &mut LinkWatch) -> Result<&mut Kernel, Error> {
        if let Some(kernel) = &self.kernel
            && !kernel.lives(links)?
        {
            tracing::info!(mirror = home.name, "the relay is made anew");
            self.kernel = None;
        }
        if self.kernel.is_none() {
            self.kernel = Some(Kernel::install(home, links, self.orders, self.attach)?);
            match &mut self.end {
                End::Collector(collector) => collector.way = None,
                End::Devices { known, .. } => known.clear(),
            }
        }
        self.kernel
            .as_mut()
            .ok_or_else(|| Error::Unsuitable("there is no relay".to_owned()))
    }
}

impl Target for Relay {
    fn refresh(&mut self, links: &mut LinkWatch, source: &Link) -> Result<Vec<Outlet>, Error> {
        if !source.ethernet {
            return Err(Error::Unsuitable(format!(
                "frames of {} have no Ethernet header, which a copy needs that is cut or encapsulated",
                source.name
            )));
        }
        let Some(home) = self.home.clone() else {
            RelayProgram::load(self.orders, None)?;
            return Ok(vec![Outlet::default()]);
        };
        self.kernel(&home, links)?;
        let Some(kernel) = &mut self.kernel else {
            return Ok(Vec::new());
        };
        match &mut self.end {
            End::Collector(collector) => collector.follow(kernel, links)?,
            End::Devices { devices, known } => {
                let outlets = devices.refresh(links, source)?;
                if *known != outlets {
                    kernel.maps.set_devices(&outlets)?;
                    *known = outlets;
                }
            }
        }
        Ok(vec![Outlet {
            ifindex: kernel.ifindex,
            down: false,
        }])
    }

    fn relayed(&self) -> bool {
        true
    }

    fn remarks(&self) -> Vec<String> {
        self.kernel.iter().filter_map(Kernel::remark).collect()
    }

    fn outputs(&self) -> Vec<MirrorOutput> {
        match &self.end {
            End::Collector(collector) => vec![collector.output()],
            End::Devices { devices, .. } => devices.outputs(),
        }
    }

    fn remove(&mut self) {
        self.kernel = None;
        if let Some(home) = &self.home {
            remove(home);
        }
    }
}

/// Removes what the relay of a mirror has in the kernel, if it has one.
pub(crate) fn remove(home: &Home) {
    if let Err(error) = kernel::remove(home) {
        tracing::error!(mirror = home.name, %error, "cannot remove everything of a relay");
    }
}

impl Collector {
    /// Has the program send by the way that there is now.
    fn follow(&mut self, kernel: &mut Kernel, links: &mut LinkWatch) -> Result<(), Error> {
        self.path.look(links);
        if let Some(destination) = self.path.destination() {
            let kind = format::kind(&self.overlay);
            let protocol = kind.ip_protocols().first().copied().unwrap_or_default();
            let port = if kind.is_udp() {
                port(&self.overlay, kind)
            } else {
                0
            };
            kernel.guard(TunnelKey::new(protocol, destination, port))?;
        }
        let (way, problem) = match self.way(kernel.cutter()) {
            Ok(way) => (way, self.path.problem()),
            Err(problem) => (Way::default(), Some(problem)),
        };
        self.problem = problem;
        if self.way.as_ref() != Some(&way) {
            kernel.maps.set_way(&way)?;
            self.tell(&way);
            self.way = Some(way);
        }
        Ok(())
    }

    /// The way that there is now, or why there is none.
    fn way(&self, cutter: u32) -> Result<Way, String> {
        let Some(hop) = self.path.hop() else {
            return Err(self.path.problem().unwrap_or_default());
        };
        let spec = encap_spec(&self.overlay, hop.source, hop.destination);
        let header = Encap::new(&spec)
            .map_err(|error| error.to_string())?
            .header();
        Ok(Way {
            ifindex: hop.link.index,
            mtu: hop.mtu,
            silent: self.path.silent(),
            cutter,
            header,
        })
    }

    fn tell(&self, way: &Way) {
        match self.path.hop() {
            Some(hop) => tracing::info!(
                destination = %hop.destination, source = %hop.source, next_hop = %hop.next, device = %hop.link.name, mtu = way.mtu,
                silent = way.silent, "path of an overlay"
            ),
            None => tracing::info!(remote = self.overlay.remote, "an overlay has no path"),
        }
    }

    fn output(&self) -> MirrorOutput {
        let state = match &self.problem {
            None => v1::State::Running,
            Some(_) => v1::State::Waiting,
        };
        MirrorOutput {
            name: self.name(),
            state: state.into(),
            reason: self.problem.clone().unwrap_or_default(),
            ..MirrorOutput::default()
        }
    }

    /// Kind and address, as people write them.
    fn name(&self) -> String {
        let MirrorOverlay { remote, .. } = &self.overlay;
        let kind = format::kind(&self.overlay);
        let word = kind.as_str();
        match (kind.is_udp(), remote.contains(':')) {
            (false, _) => format!("{word}:{remote}"),
            (true, true) => format!("{word}:[{remote}]:{}", port(&self.overlay, kind)),
            (true, false) => format!("{word}:{remote}:{}", port(&self.overlay, kind)),
        }
    }
}

/// The UDP port of the collector.
fn port(overlay: &MirrorOverlay, kind: TunnelKind) -> u16 {
    match u16::try_from(overlay.port) {
        Ok(0) | Err(_) => kind.default_port().unwrap_or_default(),
        Ok(port) => port,
    }
}
