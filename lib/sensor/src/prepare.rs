//! Preparing an interface, and undoing it.

use std::net::IpAddr;
use std::path::Path;

use fluxcap_socket::{BpfLinkInfo, Link, LinkWatch, PassAll, interface_addresses};

use crate::error::Error;
use crate::memory::{Before, Identity, Memory};
use crate::pin::Pins;
use crate::report::{Report, Setting};
use crate::settings::Settings;

/// EBUSY, EEXIST, ERANGE, ENOSPC, EOPNOTSUPP of a driver that is to take a program.
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;
const ERANGE: i32 = 34;
const EOPNOTSUPP: i32 = 95;

/// Prepares the interfaces of the network namespace of the calling thread.
#[derive(Debug)]
pub struct Sensors {
    memory: Memory,
    pins: Pins,
}

/// The XDP program of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// None, or several.
    None,
    /// The one that passes everything, put there by us.
    Ours(BpfLinkInfo),
    /// Somebody else's.
    Foreign { id: u32, generic: bool },
}

impl Sensors {
    /// What was before is remembered below `run_dir`; programs have their names below `bpffs`.
    #[must_use]
    pub fn new(run_dir: &Path, bpffs: &Path) -> Sensors {
        Sensors {
            memory: Memory::new(run_dir),
            pins: Pins::new(bpffs),
        }
    }

    /// Has the interface hand on every frame as it was sent, and send nothing by itself. One that is prepared already is looked after.
    ///
    /// # Errors
    /// When it is not for this, or something cannot be set; it is then as it was before.
    pub fn prepare(&self, name: &str) -> Result<Report, Error> {
        let link = find(name)?;
        let identity = Identity::of(link.index)?;
        let known = self.memory.load(identity, &link)?;
        let program = self.program(identity, &link);
        if known.is_none() {
            self.refuse_unfit(&link)?;
        }
        let wants_program = link.kind == "veth" && program == Program::None;
        match program {
            Program::Foreign { id, generic: true } if link.kind == "veth" => {
                return Err(refused(
                    &link,
                    format!(
                        "it has an XDP program of somebody else's (number {id}), which runs behind the driver; beside it, there is no place in the driver"
                    ),
                    format!(
                        "take that away, if it may go: ip link set dev {} xdpgeneric off",
                        link.name
                    ),
                ));
            }
            _ if wants_program => self.pins.make_ready()?,
            _ => {}
        }
        let fresh = known.is_none();
        let mut before = match known {
            Some(before) => before,
            None => Before::new(&link, Settings::of(&link)?),
        };
        // Before anything is changed, so that a killed process leaves nothing that cannot be undone.
        if fresh || wants_program {
            before.program |= wants_program;
            self.memory.save(identity, &before)?;
        }
        let done = self.change(identity, &link, &before, wants_program);
        if let Err(error) = done {
            if fresh {
                // What is the matter is the first error; this one would say the same.
                let _ = self.restore(identity, &link, &before);
            }
            return Err(error);
        }
        self.show(name)
    }

    /// Has the interface be as it was before it was prepared. One that is not prepared stays as it is.
    ///
    /// # Errors
    /// When something cannot be set.
    pub fn undo(&self, name: &str) -> Result<Report, Error> {
        let link = find(name)?;
        let identity = Identity::of(link.index)?;
        match self.memory.load(identity, &link)? {
            Some(before) => self.restore(identity, &link, &before)?,
            // Of another interface that had its place, or in a state that cannot be believed.
            None => self.memory.forget(identity)?,
        }
        self.show(name)
    }

    /// How an interface is.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn show(&self, name: &str) -> Result<Report, Error> {
        self.describe(&find(name)?)
    }

    /// All interfaces of this network namespace that are prepared.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self) -> Result<Vec<Report>, Error> {
        let links = links()?;
        let mut reports = Vec::new();
        for identity in self.memory.list()? {
            let found = links.iter().find(|link| link.index == identity.ifindex);
            let report = found.map(|link| self.describe(link)).transpose()?;
            reports.extend(report.filter(|report| report.prepared));
        }
        Ok(reports)
    }

    /// What is prepared for a sensor alone must not be anybody else's.
    fn refuse_unfit(&self, link: &Link) -> Result<(), Error> {
        if !link.ethernet || link.name == "lo" {
            let why = "it is not an Ethernet interface".to_owned();
            return Err(refused(link, why, String::new()));
        }
        if link.master != 0 {
            let mut links = links()?.into_iter();
            let master = links.find(|other| other.index == link.master);
            let master = master.map_or_else(|| link.master.to_string(), |other| other.name);
            return Err(refused(
                link,
                format!("it is a port of {master}, to which its frames go"),
                format!(
                    "if a sensor is to have it: ip link set dev {} nomaster",
                    link.name
                ),
            ));
        }
        let addresses = interface_addresses(link.index).map_err(Error::kernel(&link.name))?;
        let own = addresses.iter().find(|address| !is_link_local(address));
        match own {
            None => Ok(()),
            Some(address) => Err(refused(
                link,
                format!(
                    "it has the address {address}, so this host uses it; prepared, it would lose IPv6, ARP and speed"
                ),
                format!(
                    "give the sensor an interface of its own; or, if the address may go: ip address flush dev {}",
                    link.name
                ),
            )),
        }
    }

    fn change(
        &self,
        identity: Identity,
        link: &Link,
        before: &Before,
        wants_program: bool,
    ) -> Result<(), Error> {
        let quiet = before.settings.quiet();
        // First of all LRO, beside which many drivers run no program.
        quiet.apply(link)?;
        if wants_program {
            let mut program = PassAll::load().map_err(Error::kernel(&link.name))?;
            let attached = program.attach(link.index);
            let held = attached.map_err(|error| unfit_for_programs(link, error))?;
            self.pins.pin(identity, &link.name, &held)?;
        }
        // Some kernels turn GRO on with a program.
        let link = find(&link.name)?;
        quiet.apply(&link)?;
        let now = Settings::of(&find(&link.name)?)?;
        if now.glues() {
            return Err(refused(
                &link,
                format!("its driver keeps {} on, so a sensor would see joined frames", now.gluing().join(", ")),
                "a kernel of 6.9 or later turns GRO off beside an XDP program; other drivers: another interface".to_owned(),
            ));
        }
        Ok(())
    }

    fn restore(&self, identity: Identity, link: &Link, before: &Before) -> Result<(), Error> {
        if let Some((held, _)) = self.pins.find(identity, link) {
            held.detach().map_err(Error::kernel(&link.name))?;
            self.pins.remove(identity)?;
        } else if before.program && link.xdp_program != 0 {
            // Where its name cannot be seen, the program must not be forgotten.
            self.pins.make_ready()?;
        }
        before.settings.apply(&find(&link.name)?)?;
        self.memory.forget(identity)
    }

    fn program(&self, identity: Identity, link: &Link) -> Program {
        match self.pins.find(identity, link) {
            Some((_, info)) => Program::Ours(info),
            None if link.xdp_program == 0 => Program::None,
            None => Program::Foreign {
                id: link.xdp_program,
                generic: link.xdp_generic,
            },
        }
    }

    fn describe(&self, link: &Link) -> Result<Report, Error> {
        let identity = Identity::of(link.index)?;
        let before = self.memory.load(identity, link)?;
        let settings = Settings::of(link)?;
        let program = self.program(identity, link);
        let mut lines = vec![Setting {
            name: "xdp program".to_owned(),
            before: match program {
                Program::Ours(_) => Some("none".to_owned()),
                _ => None,
            },
            now: program.words(),
        }];
        lines.extend(settings.lines(before.as_ref().map(|before| &before.settings)));
        Ok(Report {
            name: link.name.clone(),
            ifindex: link.index,
            kind: link.kind.clone(),
            prepared: before.is_some(),
            settings: lines,
            remarks: remarks(link, program, &settings, before.is_some()),
        })
    }
}

impl Program {
    fn words(self) -> String {
        match self {
            Program::None => "none".to_owned(),
            Program::Ours(info) => format!("passes everything (number {})", info.program_id),
            Program::Foreign { id, generic } => {
                let place = if generic {
                    "behind the driver"
                } else {
                    "in the driver"
                };
                format!("somebody else's (number {id}, {place})")
            }
        }
    }
}

/// What somebody should know about the interface as it is.
fn remarks(link: &Link, program: Program, settings: &Settings, prepared: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if settings.glues() {
        remarks.push(format!(
            "{} on: frames of a flow are joined to ones of up to 64 KiB before a sensor sees them",
            settings.gluing().join(", ")
        ));
    }
    match program {
        Program::Foreign { generic: false, .. } => remarks.push(
            "the XDP program is somebody else's and was left alone; live frames reach it as well".to_owned(),
        ),
        Program::Foreign { generic: true, .. } => remarks.push(
            "the XDP program is somebody else's and was left alone; it runs behind the driver, so live frames do not reach it".to_owned(),
        ),
        Program::None if prepared && link.kind == "veth" => remarks.push(
            "the XDP program is gone, so live frames do not arrive: prepare it again".to_owned(),
        ),
        Program::None if prepared => remarks.push(
            "no XDP program: only a veth needs one, to take live frames".to_owned(),
        ),
        Program::None | Program::Ours(_) => {}
    }
    if !link.up {
        remarks.push(format!("it is down: ip link set dev {} up", link.name));
    }
    remarks
}

/// What a driver has against a program.
fn unfit_for_programs(link: &Link, error: fluxcap_socket::Error) -> Error {
    let code = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error);
    let name = &link.name;
    let (why, advice) = match code {
        Some(EBUSY | EEXIST) => (
            "it has an XDP program of somebody else's, which is left alone".to_owned(),
            format!("see whose it is: ip link show dev {name}; bpftool net"),
        ),
        Some(ENOSPC) => (
            "it has fewer receive queues than the other end has transmit queues, so its driver takes no XDP program".to_owned(),
            format!("ethtool -L {name} rx N, with as many as the other end has for tx"),
        ),
        Some(ERANGE) => (
            "the MTU of the other end is too large for an XDP program in this kernel".to_owned(),
            "a kernel of 5.18 or later, or an MTU of at most 3,500 at the other end".to_owned(),
        ),
        Some(EOPNOTSUPP) => (
            "its driver runs no XDP programs".to_owned(),
            String::new(),
        ),
        _ => return Error::kernel(name)(error),
    };
    refused(link, why, advice)
}

fn refused(link: &Link, why: String, advice: String) -> Error {
    Error::Refused {
        interface: link.name.clone(),
        why,
        advice,
    }
}

/// Addresses that an interface has because it is up, and not because somebody uses it.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn links() -> Result<Vec<Link>, Error> {
    LinkWatch::open()
        .and_then(|mut watch| watch.links())
        .map_err(Error::kernel("interfaces"))
}

fn find(name: &str) -> Result<Link, Error> {
    let links = links()?;
    let found = links.iter().find(|link| link.is_called(name));
    found.cloned().ok_or_else(|| Error::NoInterface {
        name: name.to_owned(),
        known: links.into_iter().map(|link| link.name).collect(),
    })
}
