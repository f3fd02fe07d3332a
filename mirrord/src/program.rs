//! The programs of a mirror at traffic control: `bpf/mirror.bpf.c`, loaded with settings in place. One load is one generation; to change a
//! setting, another one takes its place.

use std::borrow::{BorrowMut, Cow};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use fluxcap_headers::{Filter, Sampler, TailCalls};
use fluxcap_options::mirror_filter;
use fluxcap_proto::v1::{MirrorFuse, MirrorRate, MirrorSpec, SampleMode};
use fluxcap_socket::Classifier;
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::job::time_left;
use crate::pins::Folder;
use crate::rules::Tables;
use crate::target::{MAX_DEVICES, Outlet};

/// The object.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mirror.bpf.o"));

/// Maps that the generations of a mirror share, by their names as pins.
const SHARED: [&str; 8] = [
    "counters",
    "state",
    "output_frames",
    "rule_frames",
    "meta",
    "drained",
    "events",
    "doorbell",
];
/// Maps of one generation, which stay with it: a program array is emptied when nobody holds it any more.
pub(crate) const OWN: [&str; 2] = ["stages", "devices"];
/// Own tunnels, of all mirrors.
const TUNNELS: &str = "tunnels";

/// Buffer between the kernel and the ring when the spec does not say.
pub(crate) const BUFFER_BYTES: u32 = 8 << 20;
/// `TICK` of `bpf/mirror.h`.
const TICKS_PER_NS: u64 = 16;
const SECOND_NS: u64 = 1_000_000_000;
/// Bit of the mark of copies when the spec does not say.
const MARK: u32 = 0x4000_0000;

/// The way that frames go past the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// They arrive.
    In,
    /// The host sends them.
    Out,
}

impl Way {
    /// Both.
    pub(crate) const ALL: [Way; 2] = [Way::In, Way::Out];

    /// Name of the program, and of its pin.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::In => "ingress",
            Way::Out => "egress",
        }
    }

    fn number(self) -> u32 {
        match self {
            Way::In => 0,
            Way::Out => 1,
        }
    }

    fn selected(self) -> &'static str {
        match self {
            Way::In => "selected_in",
            Way::Out => "selected_out",
        }
    }
}

/// Programs that call each other, by their numbers in bpf/mirror.bpf.c; the first two are by direction.
const STAGE_FILTER: u32 = 0;
const STAGE_SELECTED: u32 = 2;
const STAGE_REJECTED: u32 = 4;

/// Where the maps of a mirror have their names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'f> {
    /// Of all mirrors.
    pub(crate) root: &'f Folder,
    /// Of this one.
    pub(crate) folder: &'f Folder,
    /// Number of the maps that belong to the generation.
    pub(crate) slot: u8,
}

/// What is loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'s> {
    pub(crate) spec: &'s MirrorSpec,
    /// The interface's frames begin with an Ethernet header.
    pub(crate) ethernet: bool,
    /// Where copies go at first.
    pub(crate) outlets: &'s [Outlet],
    pub(crate) relayed: bool,
    /// Mark of frames from the ring that is filled; 0: they may come again.
    pub(crate) origin: u32,
    pub(crate) ways: &'s [Way],
}

/// Programs in the kernel, not attached by themselves.
#[derive(Debug)]
pub(crate) struct Generation {
    ebpf: Ebpf,
}

/// The pcap-filter of a plan, if it has one.
fn filter(plan: Plan<'_>) -> Result<Option<Filter>, Error> {
    let unsuitable = |problem: String| Err(Error::Unsuitable(problem));
    match mirror_filter(plan.spec) {
        Ok(Some(_)) if !plan.ethernet => {
            unsuitable("a filter needs frames with Ethernet headers; use rules".to_owned())
        }
        Ok(filter) => Ok(filter),
        Err(error) => unsuitable(error.to_string()),
    }
}

impl Generation {
    /// Loads programs. Without places nothing of them stays: the kernel is only asked what it says.
    pub(crate) fn load(plan: Plan<'_>, places: Option<Places<'_>>) -> Result<Generation, Error> {
        let settings = Settings::new(plan);
        let tables = Tables::compile(&plan.spec.rules)
            .map_err(|error| Error::Unsuitable(error.to_string()))?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        settings.configure(&mut loader);
        tables.configure(&mut loader);
        if !plan.spec.ring.is_empty() {
            loader.map_max_entries("events", buffer_bytes(plan.spec));
        }
        if let Some(places) = places {
            for name in SHARED {
                loader.map_pin_path(name, Cow::Owned(places.folder.path(name)));
            }
            loader.map_pin_path(TUNNELS, Cow::Owned(places.root.path(TUNNELS)));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| Error::kernel("make the maps of a mirror", error))?;
        tables
            .install(&mut ebpf)
            .map_err(|error| Error::kernel("fill the tables of the rules", error))?;
        let mut generation = Generation { ebpf };
        generation.pin_own(places)?;
        generation.set_outlets(plan.outlets)?;
        for way in plan.ways {
            generation.load_program(way.name())?;
        }
        if let Some(filter) = filter(plan)? {
            generation.load_stages(plan, &filter)?;
        }
        Ok(generation)
    }

    fn pin_own(&mut self, places: Option<Places<'_>>) -> Result<(), Error> {
        let Some(places) = places else { return Ok(()) };
        for name in OWN {
            let pin = own_pin(name, places.slot);
            places.folder.remove(&pin)?;
            let map = self.ebpf.map_mut(name).ok_or_else(|| absent(name))?;
            map.pin(places.folder.path(&pin))
                .map_err(|error| Error::kernel("pin a map", error))?;
        }
        Ok(())
    }

    fn load_program(&mut self, name: &str) -> Result<(), Error> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| absent(name))?;
        program
            .load()
            .map_err(|error| Error::kernel("load the programs of a mirror", error))
    }

    /// The pcap-filter, and the programs that it calls.
    fn load_stages(&mut self, plan: Plan<'_>, filter: &Filter) -> Result<(), Error> {
        self.load_program("rejected")?;
        for way in plan.ways {
            self.load_program(way.selected())?;
            self.set_stage(STAGE_SELECTED + way.number(), way.selected())?;
        }
        self.set_stage(STAGE_REJECTED, "rejected")?;
        let stages = match self.ebpf.map("stages") {
            Some(Map::ProgramArray(stages)) => stages.fd().as_fd(),
            _ => return Err(absent("stages")),
        };
        for way in plan.ways {
            let calls = TailCalls {
                programs: stages.as_raw_fd(),
                matched: STAGE_SELECTED + way.number(),
                refused: STAGE_REJECTED,
            };
            let instructions = filter
                .classifier(&calls)
                .map_err(|error| Error::Unsuitable(error.to_string()))?;
            // The array keeps it.
            Classifier::load("filter", &instructions)?
                .put_into(stages, STAGE_FILTER + way.number())?;
        }
        Ok(())
    }

    fn set_stage(&mut self, stage: u32, name: &str) -> Result<(), Error> {
        let refused = |error| Error::kernel("use a map", error);
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| absent(name))?;
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| Error::kernel("load the programs of a mirror", error))?;
        let map = self
            .ebpf
            .map_mut("stages")
            .ok_or_else(|| absent("stages"))?;
        let mut stages = ProgramArray::try_from(map).map_err(refused)?;
        stages.set(stage, &fd, 0).map_err(refused)
    }

    /// Says where copies go. To a generation that somebody else has loaded, [`set_outlets`] says that.
    fn set_outlets(&mut self, outlets: &[Outlet]) -> Result<(), Error> {
        let map = self
            .ebpf
            .map_mut("devices")
            .ok_or_else(|| absent("devices"))?;
        let mut devices = map
            .try_into()
            .map_err(|error| Error::kernel("use a map", error))?;
        write(&mut devices, outlets)
    }

    /// The program for one way, and its identifier.
    pub(crate) fn program(&self, way: Way) -> Result<(BorrowedFd<'_>, u32), Error> {
        let program = self
            .ebpf
            .program(way.name())
            .ok_or_else(|| absent(way.name()))?;
        let fd = program
            .fd()
            .map_err(|error| Error::kernel("use a program", error))?;
        let info = program
            .info()
            .map_err(|error| Error::kernel("look at a program", error))?;
        Ok((fd.as_fd(), info.id()))
    }
}

/// Says where copies go from now on, of the generation with these maps.
pub(crate) fn set_outlets(folder: &Folder, slot: u8, outlets: &[Outlet]) -> Result<(), Error> {
    let pin = own_pin("devices", slot);
    write(&mut crate::counters::array(folder, &pin)?, outlets)
}

/// Writes a `struct device` for each; what is not there has none.
pub(crate) fn write<M: BorrowMut<MapData>>(
    devices: &mut Array<M, [u32; 2]>,
    outlets: &[Outlet],
) -> Result<(), Error> {
    let none = Outlet::default();
    for n in 0..MAX_DEVICES {
        let outlet = outlets.get(n).unwrap_or(&none);
        let index = u32::try_from(n).unwrap_or(u32::MAX);
        devices
            .set(index, [outlet.ifindex, outlet.down.into()], 0)
            .map_err(|error| Error::kernel("use a map", error))?;
    }
    Ok(())
}

/// Name of a map of the generation with this number.
pub(crate) fn own_pin(name: &str, slot: u8) -> String {
    format!("{name}{slot}")
}

/// Size of the buffer between the kernel and the ring.
pub(crate) fn buffer_bytes(spec: &MirrorSpec) -> u32 {
    match spec.buffer_bytes {
        0 => BUFFER_BYTES,
        bytes => bytes,
    }
}

/// The bit of the packet mark that copies have.
pub(crate) fn mark(spec: &MirrorSpec) -> u32 {
    match spec.mark {
        0 => MARK,
        mark => mark,
    }
}

/// A fingerprint of the object: another one may count differently.
pub(crate) fn object_hash() -> u64 {
    hash(OBJECT)
}

/// The Fowler-Noll-Vo hash, version 1a, of 64 bits: the same in every build.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// CLOCK_BOOTTIME in nanoseconds.
pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * SECOND_NS + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Cannot be: the object and its reader are built together.
fn absent(name: &str) -> Error {
    Error::Kernel {
        operation: "load the programs of a mirror",
        detail: format!("{name} is missing"),
    }
}

/// The `const volatile` variables of `bpf/mirror.h`.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    words: Vec<(&'static str, u32)>,
    longs: Vec<(&'static str, u64)>,
}

impl Settings {
    pub(crate) fn new(plan: Plan<'_>) -> Settings {
        let spec = plan.spec;
        let mut settings = Settings::default();
        let outlets = u32::try_from(plan.outlets.len()).unwrap_or(0);
        settings.words = vec![
            ("l2_len", if plan.ethernet { 14 } else { 0 }),
            ("mark", mark(spec)),
            ("origin", plan.origin),
            ("device_count", outlets),
            ("relayed", u32::from(plan.relayed)),
            ("snaplen", spec.snaplen),
        ];
        if !spec.filter.trim().is_empty() {
            settings.words.push(("filtered", 1));
        }
        settings.add_sample(spec);
        settings.add_rate(&spec.rate.unwrap_or_default());
        settings.add_fuse(&spec.fuse.unwrap_or_default());
        if let Some(left) = time_left(spec) {
            settings
                .longs
                .push(("expires", boottime_ns().saturating_add(left.max(1))));
        }
        settings
    }

    fn add_sample(&mut self, spec: &MirrorSpec) {
        let sample = spec.sample.unwrap_or_default();
        if sample.kept.max(1) < sample.one_in {
            let flows = sample.mode() == SampleMode::Flow;
            self.words.push(("sample_flows", u32::from(flows)));
            self.longs.push((
                "sample_below",
                Sampler::threshold(sample.kept, sample.one_in),
            ));
            self.longs.push(("sample_seed", sample.seed));
        }
    }

    fn add_rate(&mut self, rate: &MirrorRate) {
        let per_second = |n: u64| {
            n.checked_sub(1)
                .map_or(0, |_| (SECOND_NS * TICKS_PER_NS / n).max(1))
        };
        let burst_ms = match rate.burst_ms {
            0 => 100,
            ms => u64::from(ms),
        };
        self.longs.extend([
            ("frame_ticks", per_second(rate.frames_per_second)),
            ("bits_per_second", rate.bits_per_second),
            ("burst_ticks", burst_ms * 1_000_000 * TICKS_PER_NS),
        ]);
    }

    fn add_fuse(&mut self, fuse: &MirrorFuse) {
        self.longs.extend([
            ("fuse_errors", u64::from(fuse.errors_per_second)),
            ("fuse_frames", fuse.frames_per_second),
            // A limit below a byte is one of a byte.
            ("fuse_bytes", fuse.bits_per_second.div_ceil(8)),
        ]);
    }

    pub(crate) fn configure<'s>(&'s self, loader: &mut EbpfLoader<'s>) {
        for (name, value) in &self.words {
            loader.override_global(name, value, true);
        }
        for (name, value) in &self.longs {
            loader.override_global(name, value, true);
        }
    }
}
