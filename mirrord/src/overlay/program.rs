//! The relay program and its maps: `bpf/relay.bpf.c`.

use super::format::{Form, MAX_HEADER};
use crate::counters;
use crate::error::Error;
use crate::pins::Folder;
use crate::program::{hash, write};
use crate::target::Outlet;
use aya::maps::{Array, MapData, MapError};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use std::borrow::Cow;

/// The object.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay.bpf.o"));
/// Names of the programs' functions: for what mirrors clone, and for what the cutter has made of a giant.
const PROGRAM: &str = "relay";
const OF_CUTTER: &str = "packet";
/// Bytes of `struct way`.
const WAY_BYTES: usize = HEADER_AT + MAX_HEADER;
/// Where it has the header, and the interface that cuts giants.
const HEADER_AT: usize = 32;
const CUTTER_AT: usize = 24;

/// What a relay program is told before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) task: Task,
    /// The bit of the packet mark that all copies have.
    pub(super) mark: u32,
    /// Longest part of a frame that is kept; 0 keeps all.
    pub(super) snaplen: u32,
    /// Copies that may fail within a second before the mirror's fuse blows; 0: any number.
    pub(super) fuse_errors: u32,
}

/// What a relay does with copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Encapsulates them.
    Encapsulate(Form),
    /// Gives each to this many interfaces.
    Distribute(u32),
}

/// The way to the collector at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Interface to leave by; 0: there is none.
    pub(super) ifindex: u32,
    /// Longest IP packet.
    pub(super) mtu: u32,
    /// The next host does not answer: one copy in a second goes out.
    pub(super) silent: bool,
    /// The interface that cuts giants which are in a tunnel already; 0: there is none.
    pub(super) cutter: u32,
    /// What packets begin with, at most [`MAX_HEADER`] bytes.
    pub(super) header: Vec<u8>,
}

impl Way {
    /// As the program has it.
    fn to_bytes(&self) -> [u8; WAY_BYTES] {
        let mut bytes = [0; WAY_BYTES];
        let length = self.header.len().min(MAX_HEADER);
        let words = [
            self.ifindex,
            self.mtu,
            u32::try_from(length).unwrap_or_default(),
            u32::from(self.silent),
        ];
        for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        bytes[CUTTER_AT..CUTTER_AT + 4].copy_from_slice(&self.cutter.to_ne_bytes());
        bytes[HEADER_AT..HEADER_AT + length].copy_from_slice(&self.header[..length]);
        bytes
    }
}

/// Pin of the ways, whose layout was another one once.
const WAYS: &str = "relay_ways2";

/// Maps of the mirror, which the relay shares, and its own ones: names as in the object, and as pins.
const PINS: [(&str, &str); 7] = [
    ("counters", "counters"),
    ("state", "state"),
    ("output_frames", "output_frames"),
    ("ways", WAYS),
    ("way_in_use", "relay_way"),
    ("devices", "relay_devices"),
    ("meta", "relay_meta"),
];

/// A relay program that is loaded.
#[derive(Debug)]
pub(super) struct RelayProgram(Ebpf);

impl RelayProgram {
    /// Loads it. `places`: the folders of all mirrors and of this one;
    /// without them nothing of it stays, the kernel is only asked what it says.
    pub(super) fn load(
        orders: Orders,
        places: Option<(&Folder, &Folder)>,
    ) -> Result<RelayProgram, Error> {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        let (form, devices) = match orders.task {
            Task::Encapsulate(form) => (form, 0),
            Task::Distribute(devices) => (Form::default(), devices),
        };
        let globals = [
            ("carries_frames", u32::from(form.carries_frames)),
            ("names_version", u32::from(form.names_version)),
            ("over_gre", u32::from(form.over_gre)),
            ("spread_ports", u32::from(form.spread_ports)),
            ("drop_oversize", u32::from(form.drop_oversize)),
            ("device_count", devices),
            ("mark", orders.mark),
            ("snaplen", orders.snaplen),
        ];
        let fuse_errors = u64::from(orders.fuse_errors);
        loader.override_global("fuse_errors", &fuse_errors, true);
        for (name, value) in &globals {
            loader.override_global(name, value, true);
        }
        if let Some((root, folder)) = places {
            for (name, pin) in PINS {
                loader.map_pin_path(name, Cow::Owned(folder.path(pin)));
            }
            loader.map_pin_path("tunnels", Cow::Owned(root.path("tunnels")));
        }
        let ebpf = loader
            .load(OBJECT)
            .map_err(|error| Error::kernel("make the maps of a relay", error))?;
        let mut relay = RelayProgram(ebpf);
        let names: &[&str] = match orders.task {
            Task::Encapsulate(_) => &[PROGRAM, OF_CUTTER],
            Task::Distribute(_) => &[PROGRAM],
        };
        for name in names {
            relay
                .find(name)?
                .load()
                .map_err(|error| Error::kernel("load the relay program", error))?;
        }
        Ok(relay)
    }

    /// The program at the interface that mirrors clone to.
    pub(super) fn program(&mut self) -> Result<&mut SchedClassifier, Error> {
        self.find(PROGRAM)
    }

    /// That behind the cutter.
    pub(super) fn of_cutter(&mut self) -> Result<&mut SchedClassifier, Error> {
        self.find(OF_CUTTER)
    }

    fn find(&mut self, name: &str) -> Result<&mut SchedClassifier, Error> {
        let program = self.0.program_mut(name);
        program
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| Error::Kernel {
                // Cannot be: the object and its reader are built together.
                operation: "load the relay program",
                detail: format!("{name} is missing"),
            })
    }
}

/// Fingerprints: of the object and all that it is told, and of its task.
pub(super) fn fingerprints(orders: Orders) -> [u64; 2] {
    let all = hash(OBJECT) ^ hash(format!("{orders:?}").as_bytes());
    [all, hash(format!("{:?}", orders.task).as_bytes())]
}

/// The maps by which a relay is told what to do, while it runs.
pub(super) struct RelayMaps {
    ways: Array<MapData, [u8; WAY_BYTES]>,
    in_use: Array<MapData, u32>,
    devices: Array<MapData, [u32; 2]>,
}

impl RelayMaps {
    /// Those of a relay that was loaded, in this life or an earlier one.
    pub(super) fn open(folder: &Folder) -> Result<RelayMaps, Error> {
        Ok(RelayMaps {
            ways: counters::array(folder, WAYS)?,
            in_use: counters::array(folder, "relay_way")?,
            devices: counters::array(folder, "relay_devices")?,
        })
    }

    /// Has copies take this way from now on. Each takes either this one or the one before.
    pub(super) fn set_way(&mut self, way: &Way) -> Result<(), Error> {
        let next = 1 - (self.in_use.get(&0, 0).map_err(unusable)? & 1);
        self.ways.set(next, way.to_bytes(), 0).map_err(unusable)?;
        self.in_use.set(0, next, 0).map_err(unusable)
    }

    /// Gives copies to these interfaces from now on.
    pub(super) fn set_devices(&mut self, outlets: &[Outlet]) -> Result<(), Error> {
        write(&mut self.devices, outlets)
    }
}

fn unusable(error: MapError) -> Error {
    Error::kernel("use a map of a relay", error)
}

#[cfg(test)]
mod tests;
