//! A mirror in the driver's receive path: replicates what a tap delivers to several interfaces inside the kernel, at the speed of the
//! driver.
//!
//! ```text
//!   tap0 -> `replicate` --devmap--> `output0` -> eth1
//!                       \           `output1` -> eth2      copies that the driver drops -> `flushed`, at a tracepoint
//!                        \--> buffer -> ring
//! ```
//!
//! The maps that count and the link at the interface have names in the mirror's folder, as those of other mirrors. Everything else, the
//! devmap and the programs of the outputs among it, belongs to one generation of programs and hangs on the link. So a new life of
//! mirrord always loads programs of its own and has them take the place of those that it finds: one call, between two frames.

mod drops;
mod outputs;
mod program;
mod status;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use fluxcap_datapath::{Device, Placement};
use fluxcap_proto::v1::{self, Latency, MirrorAttachment, MirrorOutput, MirrorSpec, MirrorStatus};
use fluxcap_service::State;
use fluxcap_socket::{BpfLink, Link, LinkHook, LinkOrder, LinkWatch, poll, trim_memory};

use self::drops::Drops;
use self::outputs::Outputs;
use crate::counters::{Books, per_cpu};
use crate::error::{Error, errno};
use crate::events::{Events, Turn};
use crate::installed::{LAYOUT, Meta};
use crate::job::{MirrorJob, MirrorWorker, is_over};
use crate::loops::{self, LoopWatch};
use crate::pins::Folder;

/// Name of the link: that of a program for what arrives.
const PIN: &str = "ingress";
/// XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE (`linux/if_link.h`): in the driver, and behind it.
const IN_DRIVER: u32 = 4;
const BEHIND_DRIVER: u32 = 2;
/// Time between two looks at everything. Changes of interfaces are seen at once, those of an output's other end only now.
const LOOK: Duration = Duration::from_millis(300);
/// How long a mirror that ends takes out what is in its buffer.
const DRAIN: Duration = Duration::from_secs(1);

/// Replicates until the worker is asked to stop.
pub(crate) fn run(job: &MirrorJob, worker: &MirrorWorker) {
    let mut mirror = None;
    while !worker.stop_requested() {
        let generation = worker.generation();
        if is_over(&worker.spec()) {
            expire(job, worker, mirror);
            return worker.live().set_done(generation);
        }
        let done = turn(job, worker, &mut mirror);
        if let Err(error) = done {
            worker.set_state(State::Waiting, error.explained().to_string());
        }
        worker.live().set_done(generation);
        wait(worker, mirror.as_mut());
    }
    if let Some(mut mirror) = mirror {
        if let Some(events) = mirror.events.as_mut().filter(|_| worker.deleting()) {
            events.set_place(None);
        }
        mirror.end();
    }
}

/// Moves frames into the ring until it is time to look at everything again.
fn wait(worker: &MirrorWorker, mut mirror: Option<&mut Mirror>) {
    let begin = Instant::now();
    loop {
        let mut left = LOOK.saturating_sub(begin.elapsed());
        if left.is_zero() || worker.stop_requested() {
            return;
        }
        let mut descriptors = vec![worker.wake_fd()];
        if let Some(mirror) = &mut mirror {
            let mut broken = false;
            let moved = mirror
                .events
                .as_mut()
                .map_or(Ok(Turn::default()), |events| {
                    events.open_ring();
                    events.pump()
                });
            match moved {
                Ok(Turn { frames: 0, .. }) => {}
                Ok(turn) => {
                    mirror.placement.relieve();
                    if !turn.more {
                        let frames = usize::try_from(turn.frames).unwrap_or(0);
                        mirror.placement.gather(frames);
                    }
                    continue;
                }
                // The next look at everything tells of it; what is in the buffer must not keep poll from sleeping until then.
                Err(_) => broken = true,
            }
            descriptors.push(mirror.links.as_fd());
            if let Some(events) = mirror.events.as_mut().filter(|_| !broken) {
                left = events.rest(left).unwrap_or(left);
                descriptors.push(events.fd());
            }
        }
        let ready = poll(&descriptors, left).unwrap_or_default();
        if ready.readable(0) || ready.readable(1) {
            return;
        }
    }
}

/// Asks the kernel whether it would take the programs of this spec, and whether the interface is free.
pub(crate) fn check(job: &MirrorJob, name: &str, spec: &MirrorSpec) -> Result<(), Error> {
    program::load(spec, None).map(drop)?;
    trim_memory();
    let found = LinkWatch::open()?.find(&spec.interface)?;
    match found {
        // That one may be its own: then the mirror has a folder.
        Some(link) if link.xdp_program != 0 && !Folder::is_there(&job.bpffs, name) => {
            Err(taken(&link))
        }
        _ => Ok(()),
    }
}

/// Looks at everything, and does what there is to do.
fn turn(job: &MirrorJob, worker: &MirrorWorker, mirror: &mut Option<Mirror>) -> Result<(), Error> {
    let (generation, spec) = worker.current();
    let mirror = match mirror {
        Some(mirror) => mirror,
        None => mirror.insert(Mirror::open(job, worker.name(), is_kept(job, &spec))?),
    };
    // The look at all interfaces that follows sees what has happened.
    mirror.links.drain(|_| ())?;
    let Some(input) = mirror.device.look(&spec.interface, &mut mirror.links)? else {
        mirror.lost_input();
        show(worker, mirror, None);
        return Err(Error::NoInterface(spec.interface.clone()));
    };
    if !input.ethernet {
        return Err(Error::Unsuitable(format!(
            "frames of {} have no Ethernet header: hook xdp replicates Ethernet frames only",
            input.name
        )));
    }
    mirror.kept = is_kept(job, &spec);
    let guard = loops::guard(&job.rings, worker.name(), &spec);
    let checked = mirror
        .loops
        .check(guard, &input, generation, mirror.events.as_mut());
    if let Err(looped) = checked {
        mirror.detach()?;
        show(worker, mirror, None);
        return Err(looped);
    }
    let loaded = mirror.loaded.as_ref().map(|loaded| loaded.generation);
    if loaded != Some(generation) {
        mirror.load(&spec, &input, generation)?;
        mirror.open_events(job, worker.name(), &spec)?;
        if let Some(events) = &mut mirror.events {
            let guard = loops::guard(&job.rings, worker.name(), &spec);
            mirror.loops.note(guard, &input, events);
            events.open_ring();
        }
        mirror
            .placement
            .apply(Latency::Normal, spec.scheduling.as_ref());
        let books = Arc::new(Books::open(&mirror.folder)?);
        let (rules, devices) = (spec.rules.len(), spec.devices.len());
        worker
            .live()
            .set_counters(status::reader(books, rules, devices));
    }
    mirror.attach(&input)?;
    let input = mirror.links.find_index(input.index)?.unwrap_or(input);
    mirror.follow(&input)?;
    mirror.settle()?;
    show(worker, mirror, Some(&input));
    tell(worker, mirror, &input);
    Ok(())
}

/// Takes the program off. The thread ends, until the spec changes.
fn expire(job: &MirrorJob, worker: &MirrorWorker, mirror: Option<Mirror>) {
    let kept = is_kept(job, &worker.spec());
    let mirror = mirror.map_or_else(|| Mirror::open(job, worker.name(), kept), Ok);
    let done = mirror.and_then(|mut mirror| {
        mirror.detach()?;
        show(worker, &mirror, None);
        mirror.end();
        Ok(())
    });
    if let Err(error) = done {
        tracing::error!(mirror = worker.name(), %error, "cannot take the program off");
    }
    worker.set_state(
        State::Ended,
        "its time is over; delete it, or set another --for",
    );
}

fn is_kept(job: &MirrorJob, spec: &MirrorSpec) -> bool {
    !spec.ephemeral && !job.ephemeral
}

/// A mirror and what it has in the kernel.
struct Mirror {
    folder: Folder,
    links: LinkWatch,
    device: Device,
    /// Programs stay when this process ends.
    kept: bool,
    /// Of this mirrord, see [`Meta::owner`].
    owner: u64,
    loaded: Option<Loaded>,
    link: Option<BpfLink>,
    events: Option<Events>,
    placement: Placement,
    loops: LoopWatch,
    /// What the driver had against the program.
    unwilling: String,
    reattached: u64,
    gap: Duration,
    /// It was attached once, and is not since then.
    missing: Option<Instant>,
}

/// A generation of programs.
struct Loaded {
    /// Of the spec.
    generation: u64,
    ebpf: Ebpf,
    outputs: Outputs,
    /// Or why there are none.
    drops: Result<Drops, String>,
    attached: bool,
}

impl Mirror {
    fn open(job: &MirrorJob, name: &str, kept: bool) -> Result<Mirror, Error> {
        let folder = Folder::open(&job.bpffs)?.of_mirror(name)?;
        if !kept || Meta::read(&folder)?.layout != LAYOUT {
            folder.clear()?;
        }
        Ok(Mirror {
            folder,
            links: LinkWatch::open()?,
            device: Device::default(),
            kept,
            owner: job.owner,
            loaded: None,
            link: None,
            events: None,
            placement: Placement::new(Latency::Normal, None),
            loops: LoopWatch::default(),
            unwilling: String::new(),
            reattached: 0,
            gap: Duration::ZERO,
            missing: None,
        })
    }

    /// Loads programs for a spec. Those that are attached go on until [`Mirror::attach`].
    fn load(&mut self, spec: &MirrorSpec, input: &Link, generation: u64) -> Result<(), Error> {
        let (before, wanted) = (
            Meta::read(&self.folder)?,
            Meta::new(spec, input, self.owner, 0),
        );
        if before.devices != wanted.devices {
            for name in ["output_frames", "unsent", drops::PIN] {
                self.folder.remove(name)?;
            }
        }
        if before.rules != wanted.rules {
            self.folder.remove("rule_frames")?;
        }
        if before.buffer != wanted.buffer {
            self.folder.remove("events")?;
        }
        let mut ebpf = program::load(spec, Some(&self.folder))?;
        wanted.write(&self.folder)?;
        let outputs = Outputs::new(&spec.devices, &mut ebpf)?;
        let drops = Drops::attach(&self.folder, self.kept).map_err(|error| error.to_string());
        self.loaded = Some(Loaded {
            generation,
            ebpf,
            outputs,
            drops,
            attached: false,
        });
        trim_memory();
        Books::open(&self.folder)?.mend_fuse()
    }

    /// Opens the buffer of the present generation. What is in another one comes first.
    fn open_events(&mut self, job: &MirrorJob, name: &str, spec: &MirrorSpec) -> Result<(), Error> {
        if let Some(mut events) = self.events.take() {
            drain(&mut events);
            events.close();
        }
        if !spec.ring.is_empty() {
            let books = Books::open(&self.folder)?;
            let mut events = Events::open(&self.folder, books, &job.rings, name)?;
            events.apply(spec, true);
            self.events = Some(events);
        }
        Ok(())
    }

    /// Counts what was lost without a trace in the buffer, if that is empty.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let buffered: PerCpuArray<MapData, u64> = per_cpu(&self.folder, "buffered")?;
        let of_cpus = buffered
            .get(&0, 0)
            .map_err(|error| Error::kernel("read a map of the mirror", error))?;
        if !events.pump()?.more {
            events.settle(of_cpus.iter().sum())?;
        }
        Ok(())
    }

    /// Has the present generation at the input.
    fn attach(&mut self, input: &Link) -> Result<(), Error> {
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        let at_input = |link: &BpfLink| link.info().is_ok_and(|info| info.ifindex == input.index);
        if loaded.attached && self.link.as_ref().is_some_and(at_input) {
            return Ok(());
        }
        let generic = input.xdp_generic;
        if self.link.as_ref().is_none_or(|link| !at_input(link)) {
            self.link = None;
            if self.folder.has(PIN) {
                self.link = BpfLink::open(&self.folder.path(PIN)).ok().filter(at_input);
            }
        }
        let (program, _) = program::replicate(&loaded.ebpf)?;
        match &self.link {
            // Outputs first: from the next frame on they are the ones that count.
            Some(link) => {
                let indexes = &mut self.links;
                loaded
                    .outputs
                    .refresh(indexes, input, generic, &loaded.ebpf)?;
                link.replace(program)?;
            }
            None => {
                self.folder.remove(PIN)?;
                let (link, unwilling) = attach(program, input)?;
                (self.link, self.unwilling) = (Some(link), unwilling);
                if let Some(since) = self.missing.take() {
                    self.reattached += 1;
                    self.gap += since.elapsed();
                }
            }
        }
        loaded.attached = true;
        self.pin()
    }

    /// The link has a name exactly when it is to be kept.
    fn pin(&self) -> Result<(), Error> {
        match (&self.link, self.kept, self.folder.has(PIN)) {
            (Some(link), true, false) => Ok(link.pin(&self.folder.path(PIN))?),
            (_, false, true) => self.folder.remove(PIN),
            _ => Ok(()),
        }
    }

    /// Follows what becomes of the outputs.
    fn follow(&mut self, input: &Link) -> Result<(), Error> {
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        let outputs = &mut loaded.outputs;
        outputs.refresh(&mut self.links, input, input.xdp_generic, &loaded.ebpf)?;
        if let Ok(drops) = &mut loaded.drops {
            drops.watch(input.index, outputs.indexes())?;
        }
        Ok(())
    }

    /// The input is gone, and the program with it.
    fn lost_input(&mut self) {
        if self.link.take().is_some() {
            self.missing = Some(Instant::now());
        }
        if let Some(loaded) = &mut self.loaded {
            loaded.attached = false;
        }
        // A link without an interface.
        let _ = self.folder.remove(PIN);
    }

    /// Takes the program off the input.
    fn detach(&mut self) -> Result<(), Error> {
        if self.link.is_none() && self.folder.has(PIN) {
            self.link = BpfLink::open(&self.folder.path(PIN)).ok();
        }
        if let Some(link) = self.link.take() {
            // It may be gone already.
            let _ = link.detach();
        }
        self.folder.remove(PIN)?;
        self.folder.remove(drops::PIN)?;
        self.loaded = None;
        Ok(())
    }

    /// This process ends, or the mirror does.
    fn end(self) {
        if let Some(mut events) = self.events {
            drain(&mut events);
            events.close();
        }
        if !self.kept {
            // Whoever reads counters holds them.
            let _ = self.folder.clear();
        }
    }
}

/// Takes out what is in the buffer, for a second at most.
fn drain(events: &mut Events) {
    let begin = Instant::now();
    let more = |turn: Turn| turn.frames > 0 || turn.more;
    while begin.elapsed() < DRAIN && events.pump().is_ok_and(more) {}
}

/// Attaches a program: in the driver, or where the driver cannot, behind it; then with what the driver has against it.
fn attach(program: std::os::fd::BorrowedFd<'_>, input: &Link) -> Result<(BpfLink, String), Error> {
    let attach = |flags| {
        BpfLink::attach(
            program,
            input.index,
            LinkHook::Xdp(flags),
            LinkOrder::default(),
        )
    };
    let is_taken =
        |error: &fluxcap_socket::Error| matches!(errno(error), Some(libc::EBUSY | libc::EEXIST));
    let is_forbidden =
        |error: &fluxcap_socket::Error| matches!(error, fluxcap_socket::Error::Permission { .. });
    match attach(IN_DRIVER) {
        Ok(link) => Ok((link, String::new())),
        Err(error) if is_taken(&error) => Err(taken(input)),
        Err(error) if is_forbidden(&error) => Err(error.into()),
        Err(error) => match attach(BEHIND_DRIVER) {
            Ok(link) => Ok((link, Error::from(error).to_string())),
            Err(error) if is_taken(&error) => Err(taken(input)),
            Err(error) => Err(error.into()),
        },
    }
}

/// The program of somebody else is never replaced.
fn taken(link: &Link) -> Error {
    Error::Unsuitable(format!(
        "{} has an XDP program of somebody else (identifier {}), or of an earlier mirrord, hidden by what was mounted over its bpffs; it can have one only",
        link.name, link.xdp_program
    ))
}

/// Shows what is attached, and the outputs.
fn show(worker: &MirrorWorker, mirror: &Mirror, input: Option<&Link>) {
    let info = mirror.link.as_ref().and_then(|link| link.info().ok());
    let mut attachment = MirrorAttachment {
        direction: v1::Direction::In.into(),
        reattached: mirror.reattached,
        gap_ms: u64::try_from(mirror.gap.as_millis()).unwrap_or(u64::MAX),
        ..MirrorAttachment::default()
    };
    if let (Some(info), Some(input)) = (info, input) {
        attachment.how = match input.xdp_generic {
            true => "xdp (generic)",
            false => "xdp (native)",
        }
        .to_owned();
        attachment.ifindex = info.ifindex;
        attachment.program_id = info.program_id;
        attachment.link_id = info.id;
    }
    let loaded = mirror.loaded.as_ref();
    let mut outputs = loaded.map_or_else(Vec::new, |loaded| loaded.outputs.shown());
    outputs.extend(mirror.events.as_ref().map(|events| MirrorOutput {
        name: worker.spec().ring.clone(),
        state: match events.absent.as_str() {
            "" => v1::State::Running.into(),
            _ => v1::State::Waiting.into(),
        },
        reason: events.absent.clone(),
        ..MirrorOutput::default()
    }));
    worker.live().set_details(MirrorStatus {
        attachments: vec![attachment],
        outputs,
        ..MirrorStatus::default()
    });
}

/// Says what the mirror is doing, and what is not as it could be.
fn tell(worker: &MirrorWorker, mirror: &Mirror, input: &Link) {
    let Some(loaded) = &mirror.loaded else { return };
    let limits = Books::open(&mirror.folder).and_then(|books| books.limits());
    if let Some(blown) = limits
        .ok()
        .map(|limits| limits.fuse)
        .filter(|it| !it.is_empty())
    {
        let reason =
            format!("the fuse has blown: {blown}; change the mirror to switch it on again");
        return worker.set_state(State::Waiting, reason);
    }
    let mut remarks: Vec<String> = loaded.outputs.idle().map(str::to_owned).collect();
    if remarks.len() == loaded.outputs.indexes().count() {
        return worker.set_state(State::Waiting, remarks.join("; "));
    }
    if input.xdp_generic {
        remarks.push(match mirror.unwilling.as_str() {
            "" => "behind the driver, which is slow".to_owned(),
            why => format!("behind the driver, which is slow: {why}"),
        });
    }
    if let Err(why) = &loaded.drops {
        remarks.push(format!("what drivers drop is not counted: {why}"));
    }
    worker.set_state(State::Running, remarks.join("; "));
}
