//! Copies for which a driver had no room: `bpf/xdp_drops.bpf.c`, at a tracepoint. It needs CAP_PERFMON and a kernel with BTF; without
//! them such copies count as mirrored, and the mirror says so.

use std::borrow::Cow;
use std::io;

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::BtfTracePoint;
use aya::programs::links::{FdLink, PinnedLink};
use aya::util::nr_cpus;
use aya::{Btf, EbpfLoader, VerifierLogLevel};
use rustix::fs::stat;

use crate::error::Error;
use crate::pins::Folder;
use crate::target::MAX_DEVICES;

/// The object.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp_drops.bpf.o"));
/// Maps that it shares with the programs of the mirror, and its own, by their names as pins.
const MAPS: [&str; 4] = ["counters", "output_frames", "unsent", "places"];
/// Name of the pin of its link. The number is that of what it counts: another one takes its place.
pub(super) const PIN: &str = "drops1";
const TRACEPOINT: &str = "xdp_devmap_xmit";

/// Words of `struct places`.
const WORDS: usize = 2 + MAX_DEVICES;

/// The program at the tracepoint.
pub(super) struct Drops {
    places: Array<MapData, [u32; WORDS]>,
    shown: [u32; WORDS],
    /// Without a pin the program is there as long as this.
    _link: Option<FdLink>,
}

impl Drops {
    /// Finds the program that is there, or attaches it; `kept` says that it is to outlive this process. The maps of the mirror are in
    /// `folder` already.
    pub(super) fn attach(folder: &Folder, kept: bool) -> Result<Drops, Error> {
        let link = match PinnedLink::from_pin(folder.path(PIN)) {
            Ok(_) if kept => None,
            _ => Some(attach(folder)?),
        };
        let places = MapData::from_pin(folder.path("places"))
            .and_then(|data| Array::try_from(aya::maps::Map::Array(data)))
            .map_err(|error| Error::kernel("use a map", error))?;
        let link = match link {
            Some(link) if kept => {
                folder.remove(PIN)?;
                // It holds a descriptor, which the pin makes needless.
                link.pin(folder.path(PIN))
                    .map_err(|error| Error::kernel("pin a link", error))?;
                None
            }
            link => link,
        };
        Ok(Drops {
            places,
            shown: [0; WORDS],
            _link: link,
        })
    }

    /// Says which interfaces are meant.
    pub(super) fn watch(
        &mut self,
        input: u32,
        outputs: impl Iterator<Item = u32>,
    ) -> Result<(), Error> {
        let mut words = [0; WORDS];
        words[0] = namespace()?;
        words[1] = input;
        for (word, ifindex) in words[2..].iter_mut().zip(outputs) {
            *word = ifindex;
        }
        if words != self.shown {
            self.places
                .set(0, words, 0)
                .map_err(|error| Error::kernel("use a map", error))?;
            self.shown = words;
        }
        Ok(())
    }
}

/// Number of the network namespace of this thread. The kernel has no more than 32 bits for it.
fn namespace() -> Result<u32, Error> {
    let path = "/proc/thread-self/ns/net";
    let stat = stat(path).map_err(|error| Error::pin("look at", path.into(), error.into()))?;
    Ok(u32::try_from(stat.st_ino).unwrap_or(0))
}

fn attach(folder: &Folder) -> Result<FdLink, Error> {
    let failed = |error| Error::kernel("count what drivers drop", error);
    let btf = Btf::from_sys_fs().map_err(|error| Error::kernel("read the kernel's BTF", error))?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf));
    loader.verifier_log_level(VerifierLogLevel::DISABLE);
    for name in MAPS {
        loader.map_pin_path(name, Cow::Owned(folder.path(name)));
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| Error::kernel("make the maps of a mirror", error))?;
    forget_unsent(&mut ebpf)?;
    let program: &mut BtfTracePoint = super::program::find_mut(&mut ebpf, "flushed")?;
    program.load(TRACEPOINT, &btf).map_err(failed)?;
    let id = program.attach().map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    drop(btf);
    fluxcap_socket::trim_memory();
    Ok(link.into())
}

/// While the program was not there, nobody has taken back what the outputs' programs have noted.
fn forget_unsent(ebpf: &mut aya::Ebpf) -> Result<(), Error> {
    let mut unsent: PerCpuArray<&mut MapData, u32> = super::program::map(ebpf, "unsent")?
        .try_into()
        .map_err(|error| Error::kernel("use a map", error))?;
    let cpus = nr_cpus().map_err(|(_, error)| Error::kernel("count CPUs", error))?;
    for place in 0..u32::try_from(MAX_DEVICES).unwrap_or(0) {
        let none = PerCpuValues::try_from(vec![0; cpus])
            .map_err(|error: io::Error| Error::kernel("use a map", error))?;
        unsent
            .set(place, none, 0)
            .map_err(|error| Error::kernel("use a map", error))?;
    }
    Ok(())
}
