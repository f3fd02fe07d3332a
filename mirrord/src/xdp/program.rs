//! The programs of an XDP mirror: `bpf/xdp.bpf.c`, loaded with settings in place.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::Map;
use aya::programs::{Program, ProgramError, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use fluxcap_proto::v1::{MirrorDevice, MirrorSpec, VlanTag};

use super::outputs::program_of;
use crate::error::Error;
use crate::pins::Folder;
use crate::program::{Plan, Settings, buffer_bytes};
use crate::rules::Tables;
use crate::target::{MAX_DEVICES, Outlet};

/// The object.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.bpf.o"));
/// Maps that the generations of a mirror share, by their names as pins.
const SHARED: [&str; 10] = [
    "counters",
    "state",
    "output_frames",
    "rule_frames",
    "meta",
    "drained",
    "events",
    "doorbell",
    "unsent",
    "buffered",
];

/// Loads the programs. Without a folder nothing of them stays: the kernel is only asked what it says.
pub(super) fn load(spec: &MirrorSpec, folder: Option<&Folder>) -> Result<Ebpf, Error> {
    if KernelVersion::current().is_ok_and(|kernel| kernel < KernelVersion::new(5, 18, 0)) {
        return Err(Error::Unsuitable(
            "hook xdp needs Linux 5.18: older kernels do not have all that its programs call"
                .to_owned(),
        ));
    }
    // Only their number matters here.
    let outlets = vec![Outlet::default(); spec.devices.len()];
    let settings = Settings::new(Plan {
        spec,
        ethernet: true,
        outlets: &outlets,
        relayed: false,
        // A driver's frames have no mark.
        origin: 0,
        ways: &[],
    });
    let tables = Tables::compile(&spec.rules)?;
    let tags = tags(&spec.devices);
    let used = tags.iter().filter(|tag| **tag != 0).count();
    let untagged = u32::try_from(spec.devices.len() - used).unwrap_or(0);
    let to_ring = u32::from(!spec.ring.is_empty());
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    settings.configure(&mut loader);
    tables.configure(&mut loader);
    loader.override_global("tags", &tags, true);
    loader.override_global("untagged_count", &untagged, true);
    loader.override_global("to_ring", &to_ring, true);
    if to_ring != 0 {
        loader.map_max_entries("events", buffer_bytes(spec));
    }
    for name in SHARED.iter().filter(|_| folder.is_some()) {
        if let Some(folder) = folder {
            loader.map_pin_path(name, Cow::Owned(folder.path(name)));
        }
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| Error::kernel("make the maps of a mirror", error))?;
    tables.install(&mut ebpf)?;
    load_program(&mut ebpf, REPLICATE)?;
    for n in 0..spec.devices.len() {
        load_program(&mut ebpf, &program_of(n))?;
    }
    Ok(ebpf)
}

/// Name of the program at the input.
const REPLICATE: &str = "replicate";

/// The program for the input, and its identifier.
pub(super) fn replicate(ebpf: &Ebpf) -> Result<(BorrowedFd<'_>, u32), Error> {
    let program: &Xdp = find(ebpf, REPLICATE)?;
    let fd = program
        .fd()
        .map_err(|error| Error::kernel("use a program", error))?;
    let info = program
        .info()
        .map_err(|error| Error::kernel("look at a program", error))?;
    Ok((fd.as_fd(), info.id()))
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let program: &mut Xdp = find_mut(ebpf, name)?;
    program
        .load()
        .map_err(|error| Error::kernel("load the programs of a mirror", error))
}

/// A program of an object, of the kind that is wanted.
pub(super) fn find<'e, P>(ebpf: &'e Ebpf, name: &str) -> Result<&'e P, Error>
where
    &'e P: TryFrom<&'e Program, Error = ProgramError>,
{
    ebpf.program(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| absent(name))
}

/// The same, to be changed.
pub(super) fn find_mut<'e, P>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut P, Error>
where
    &'e mut P: TryFrom<&'e mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| absent(name))
}

/// A map of an object.
pub(super) fn map<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Map, Error> {
    ebpf.map_mut(name).ok_or_else(|| absent(name))
}

/// Takes a map out of its object.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| absent(name))
}

/// Cannot be: the object and its reader are built together.
fn absent(name: &str) -> Error {
    Error::Kernel {
        operation: "load the programs of a mirror",
        detail: format!("{name} is missing"),
    }
}

/// The tag of each output as it stands in a frame, in the machine's order of bytes; 0: none.
fn tags(devices: &[MirrorDevice]) -> [u32; MAX_DEVICES] {
    let mut tags = [0; MAX_DEVICES];
    for (tag, device) in tags.iter_mut().zip(devices) {
        *tag = device.vlan_push.as_ref().map_or(0, word);
    }
    tags
}

fn word(tag: &VlanTag) -> u32 {
    let tpid = if tag.tpid == 0 { 0x8100 } else { tag.tpid };
    let tci = (tag.pcp & 7) << 13 | u32::from(tag.dei) << 12 | tag.vid & 0xfff;
    u32::from_ne_bytes(((tpid & 0xffff) << 16 | tci).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_as_they_stand_in_a_frame() {
        let device = |vlan_push| MirrorDevice {
            name: "eth1".to_owned(),
            vlan_push,
        };
        let tag = VlanTag {
            tpid: 0x88a8,
            vid: 0x123,
            pcp: 5,
            dei: true,
        };
        let tags = tags(&[device(None), device(Some(tag))]);
        assert_eq!(tags[0], 0);
        assert_eq!(tags[1].to_ne_bytes(), [0x88, 0xa8, 0xb1, 0x23]);
        let plain = VlanTag {
            vid: 1,
            ..VlanTag::default()
        };
        assert_eq!(word(&plain).to_ne_bytes(), [0x81, 0x00, 0x00, 0x01]);
    }
}
