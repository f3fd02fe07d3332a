//! The worker of a mirror: has its programs at the interface, whatever becomes of that, and moves what they hand over into a ring.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fluxcap_datapath::{Device, Placement};
use fluxcap_proto::v1::{self, Hook, Latency, MirrorOutput, MirrorSpec, MirrorStatus};
use fluxcap_service::{Notices, Refusal, Registry, State};
use fluxcap_socket::{LinkWatch, poll, trim_memory};

use crate::attach::check_order;
use crate::counters::reader;
use crate::error::Error;
use crate::events::{Events, Turn};
use crate::installed::{self, Change, Installed, Meta, ways};
use crate::job::{MirrorJob, MirrorWorker, is_over};
use crate::known::{self, KnownLinks};
use crate::loops::{self, LoopWatch};
use crate::overlay;
use crate::pins::{Folder, unescape};
use crate::program::{Generation, Plan, Way};
use crate::target::{Home, Target, other_device, same_target, target};
use crate::xdp;

/// Time between two looks at whether everything is still there.
const LOOK: Duration = Duration::from_millis(250);
/// How long a mirror that ends takes out what is in its buffer.
const DRAIN: Duration = Duration::from_secs(1);

/// Copies traffic until the worker is asked to stop.
pub(crate) fn run(job: &MirrorJob, worker: &MirrorWorker) {
    let begun = worker.generation();
    if worker.spec().hook() == Hook::Xdp {
        xdp::run(job, worker);
    } else {
        match Mirror::new(job, worker) {
            Ok(mut mirror) => mirror.run(),
            Err(error) => worker.set_state(State::Failed, error.explained().to_string()),
        }
    }
    worker.live().set_done(begun);
}

/// Asks the kernel whether it would take the programs of this spec; nothing stays of them. Called where clients wait, before a
/// mirror is made or changed.
pub(crate) fn check(job: &MirrorJob, name: &str, spec: &MirrorSpec) -> Result<(), Refusal> {
    let checked = match spec.hook() {
        Hook::Xdp => xdp::check(job, name, spec),
        _ => try_check(job, spec),
    };
    checked.map_err(|error| error.explained().into())
}

fn try_check(job: &MirrorJob, spec: &MirrorSpec) -> Result<(), Error> {
    Folder::open(&job.bpffs)?;
    let mut links = LinkWatch::open()?;
    let source = links.find(&spec.interface)?;
    let mut target = target(spec, None);
    let outlets = match &source {
        Some(source) => {
            for way in ways(spec) {
                check_order(spec, source.index, way)?;
            }
            target.refresh(&mut links, source)?
        }
        None => Vec::new(),
    };
    let plan = Plan {
        spec,
        ethernet: source.is_none_or(|link| link.ethernet),
        outlets: &outlets,
        relayed: target.relayed(),
        origin: installed::origin(&job.rings, spec),
        ways: &ways(spec),
    };
    let checked = Generation::load(plan, None).map(drop);
    trim_memory();
    checked
}

/// Refuses what [`remove`] could not do: programs that are out of reach would go on copying, and nobody would know.
pub(crate) fn check_removable(job: &MirrorJob, name: &str) -> Result<(), Refusal> {
    let has_name = |way: &Way| Folder::is_pinned(&job.bpffs, name, way.name());
    let nameless: Vec<Way> = Way::ALL.into_iter().filter(|way| !has_name(way)).collect();
    let known = KnownLinks::new(&job.known, name, &job.bpffs);
    match known.find_all(&nameless) {
        Err(hidden @ Error::Hidden { .. }) => Err(hidden.into()),
        _ => Ok(()),
    }
}

/// Removes all that a deleted mirror has in the kernel. Its thread has ended.
pub(crate) fn remove(job: &MirrorJob, name: &str, spec: &MirrorSpec) {
    let home = home(job, name, spec);
    overlay::remove(&home);
    target(spec, Some(home)).remove();
    let removed = Installed::open(job, name, true).and_then(Installed::remove);
    if let Err(error) = removed {
        tracing::error!(mirror = name, %error, "cannot remove everything of a mirror");
    }
}

/// Removes what mirrors that are none of these have left in the kernel. Called once, at start. What may be wanted still, and what another
/// mirrord has noted as its own, is left alone and told.
pub(crate) fn sweep(mirrors: &Registry<MirrorJob>, notices: &Notices) {
    let (job, complete) = (mirrors.job(), mirrors.state_is_complete());
    // Without a bpffs nothing can have been left; the mirrors themselves tell what is wrong.
    let root = Folder::open(&job.bpffs);
    let left = root.as_ref().ok().and_then(|root| root.names().ok());
    let folders = left.into_iter().flatten().filter(|(_, folder)| *folder);
    let mut names = known::mirrors(&job.known);
    names.extend(folders.map(|(name, _)| unescape(&name)));
    names.sort();
    names.dedup();
    let (mut wanted, mut foreign) = (Vec::new(), Vec::new());
    for name in names {
        if mirrors.get(&name).is_ok() {
            continue;
        }
        if root.as_ref().is_ok_and(|root| is_foreign(job, root, &name)) {
            foreign.push(name);
        } else if !complete {
            wanted.push(name);
        } else {
            tracing::info!(mirror = name, "removing what a mirror has left");
            remove(job, &name, &MirrorSpec::default());
        }
    }
    let is_known =
        |name: &str| !complete || foreign.iter().any(|it| it == name) || mirrors.get(name).is_ok();
    if root.is_ok()
        && let Err(error) = overlay::sweep(&job.bpffs, is_known)
    {
        tracing::error!(%error, "cannot remove what mirrors have left");
    }
    let why = "the saved state was not understood, and may name them: make those that are wanted again, remove what is kept of the state, and restart mirrord";
    tell(notices, "mirrors-not-understood", &wanted, why);
    let theirs = "they belong to a mirrord with another state directory: start it with that one, or with another --bpffs";
    tell(notices, "mirrors-of-others", &foreign, theirs);
}

/// Whether another mirrord has noted a mirror as its own.
fn is_foreign(job: &MirrorJob, root: &Folder, name: &str) -> bool {
    if !Folder::is_there(&job.bpffs, name) {
        return false;
    }
    let meta = root.of_mirror(name).and_then(|folder| Meta::read(&folder));
    meta.is_ok_and(|meta| meta.owner != 0 && meta.owner != job.owner)
}

fn tell(notices: &Notices, key: &str, names: &[String], why: &str) {
    if names.is_empty() {
        return;
    }
    let text = format!(
        "programs of these mirrors are left at work: {}; {why}",
        names.join(", ")
    );
    tracing::warn!("{text}");
    notices.set(key, text);
}

/// Where a mirror keeps what outlives this process.
fn home(job: &MirrorJob, name: &str, spec: &MirrorSpec) -> Home {
    Home {
        bpffs: job.bpffs.clone(),
        name: name.to_owned(),
        persistent: !spec.ephemeral && !job.ephemeral,
    }
}

/// A running mirror.
struct Mirror<'w> {
    job: &'w MirrorJob,
    worker: &'w MirrorWorker,
    generation: u64,
    spec: MirrorSpec,
    links: LinkWatch,
    /// The interface that is mirrored.
    device: Device,
    target: Box<dyn Target>,
    installed: Option<Installed>,
    events: Option<Events>,
    placement: Placement,
    loops: LoopWatch,
    /// When everything was looked at last; `None`: now is the time.
    looked: Option<Instant>,
}

impl<'w> Mirror<'w> {
    fn new(job: &'w MirrorJob, worker: &'w MirrorWorker) -> Result<Mirror<'w>, Error> {
        let (generation, spec) = worker.current();
        Ok(Mirror {
            job,
            worker,
            generation,
            target: target(&spec, Some(home(job, worker.name(), &spec))),
            links: LinkWatch::open()?,
            device: Device::default(),
            installed: None,
            events: None,
            placement: Placement::new(Latency::Normal, spec.scheduling.as_ref()),
            spec: MirrorSpec::clone(&spec),
            loops: LoopWatch::default(),
            looked: None,
        })
    }

    fn run(&mut self) {
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation {
                self.take_spec();
            }
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                self.look();
            }
            if self.expired() {
                return self.expire();
            }
            self.move_frames();
        }
        self.finish();
    }

    fn take_spec(&mut self) {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        if !same_target(&self.spec, &spec) {
            if other_device(&self.spec, &spec) {
                self.target.remove();
            }
            let home = home(self.job, self.worker.name(), &spec);
            self.target = target(&spec, Some(home));
        }
        self.spec = MirrorSpec::clone(&spec);
        self.placement
            .apply(Latency::Normal, self.spec.scheduling.as_ref());
        self.looked = None;
    }

    /// Sees to it that everything is there, and says what is not.
    fn look(&mut self) {
        self.looked = Some(Instant::now());
        let missing = self.try_look().err();
        self.show(missing.map(|error| error.explained().to_string()));
        self.worker.live().set_done(self.generation);
    }

    fn try_look(&mut self) -> Result<(), Error> {
        if self.expired() {
            return Ok(());
        }
        let persistent = !self.spec.ephemeral && !self.job.ephemeral;
        let mut installed = match self.installed.take() {
            Some(installed) => installed,
            None => Installed::open(self.job, self.worker.name(), persistent)?,
        };
        let done = self.install(&mut installed, persistent);
        if let Err(hidden @ Error::Hidden { .. }) = done {
            // Let go of the folder: it is not the right one, and what hides that can be unmounted.
            return Err(hidden);
        }
        self.installed = Some(installed);
        self.settle()?;
        let change = done?;
        if change != Change::None || self.events.is_none() {
            self.open_books(change)?;
        }
        if change != Change::None {
            trim_memory();
        }
        Ok(())
    }

    fn install(&mut self, installed: &mut Installed, persistent: bool) -> Result<Change, Error> {
        let Some(link) = self.device.look(&self.spec.interface, &mut self.links)? else {
            installed.interface_gone();
            return Err(Error::NoInterface(self.spec.interface.clone()));
        };
        // The target comes after this: what is hidden needs it as it is.
        installed.look_for_hidden(&self.spec, &link)?;
        let guard = loops::guard(&self.job.rings, self.worker.name(), &self.spec);
        let checked = self
            .loops
            .check(guard, &link, self.generation, self.events.as_mut());
        if let Err(looped) = checked {
            installed.detach(&self.spec, &link)?;
            return Err(looped);
        }
        let outlets = self.target.refresh(&mut self.links, &link)?;
        let relayed = self.target.relayed();
        installed.leave(&self.spec, &mut self.links, &link)?;
        let change = installed.ensure(&self.spec, persistent, &link, &outlets, relayed)?;
        if let Some(events) = &mut self.events {
            events.apply(&self.spec, link.ethernet);
        }
        installed.watch(&self.spec, &link)?;
        Ok(change)
    }

    /// Opens the maps that count, and the buffer: after a change they may be others.
    fn open_books(&mut self, change: Change) -> Result<(), Error> {
        let Some(installed) = &self.installed else {
            return Ok(());
        };
        if change != Change::None {
            let books = Arc::new(installed.books()?);
            self.worker.live().set_counters(reader(books, &self.spec));
        }
        if self.spec.ring.is_empty() {
            return Ok(());
        }
        // The programs write into another buffer now: what is in the old one comes first.
        self.drain(Instant::now() + DRAIN);
        if let Some(events) = self.events.take() {
            events.close();
        }
        let folder = installed_folder(&self.installed)?;
        let books = crate::counters::Books::open(folder)?;
        let mut events = Events::open(folder, books, &self.job.rings, self.worker.name())?;
        let link = self.device.look(&self.spec.interface, &mut self.links)?;
        events.apply(&self.spec, link.as_ref().is_none_or(|link| link.ethernet));
        if let Some(link) = &link {
            let guard = loops::guard(&self.job.rings, self.worker.name(), &self.spec);
            self.loops.note(guard, link, &mut events);
        }
        events.open_ring();
        self.events = Some(events);
        Ok(())
    }

    /// Counts what was lost without a trace in the buffer, if that is empty.
    fn settle(&mut self) -> Result<(), Error> {
        let (Some(events), Some(installed)) = (&mut self.events, &self.installed) else {
            return Ok(());
        };
        let mirrored = installed.books()?.totals()?.mirrored();
        let turn = events.pump()?;
        if !turn.more {
            events.settle(mirrored)?;
        }
        Ok(())
    }

    fn move_frames(&mut self) {
        let Some(events) = &mut self.events else {
            return self.wait(&[]);
        };
        events.open_ring();
        match events.pump() {
            Ok(Turn { frames: 0, .. }) => self.wait(&[true]),
            Ok(turn) => {
                self.placement.relieve();
                if !turn.more {
                    self.placement
                        .gather(usize::try_from(turn.frames).unwrap_or(0));
                }
            }
            Err(error) => {
                self.worker.set_state(State::Waiting, error.to_string());
                self.wait(&[]);
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self, with_buffer: &[bool]) {
        let passed = self.looked.map_or(LOOK, |looked| looked.elapsed());
        let mut left = LOOK.saturating_sub(passed);
        if let (Some(events), [true]) = (&mut self.events, with_buffer) {
            left = events.rest(left).unwrap_or(left);
        }
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.worker.wake_fd(), self.links.as_fd()];
        if let (Some(events), [true]) = (&self.events, with_buffer) {
            fds.push(events.fd());
        }
        let ready = poll(&fds, left).unwrap_or_default();
        if ready.readable(0) {
            // Read by whoever takes the spec; a request to stop stays.
            let _ = self.worker.spec();
        }
        if ready.readable(1) {
            let mut changed = false;
            if let Err(error) = self.links.drain(|_| changed = true) {
                tracing::warn!(%error, "cannot read changes of interfaces");
            }
            if changed {
                self.looked = None;
            }
        }
    }

    fn expired(&self) -> bool {
        is_over(&self.spec)
    }

    /// Takes the programs off. The thread ends, until the spec changes.
    fn expire(&mut self) {
        if let Err(error) = self.take_off() {
            tracing::error!(mirror = self.worker.name(), %error, "cannot take the programs off");
        }
        self.drain(Instant::now() + DRAIN);
        self.show(None);
        self.worker.set_state(
            State::Ended,
            "its time is over; delete it, or set another --for",
        );
    }

    fn take_off(&mut self) -> Result<(), Error> {
        let mut installed = match self.installed.take() {
            Some(installed) => installed,
            None => Installed::open(self.job, self.worker.name(), true)?,
        };
        if let Some(link) = self.device.look(&self.spec.interface, &mut self.links)? {
            installed.detach(&self.spec, &link)?;
        }
        if let Ok(books) = installed.books() {
            self.worker
                .live()
                .set_counters(reader(Arc::new(books), &self.spec));
        }
        self.installed = Some(installed);
        Ok(())
    }

    /// Says what is there, and the state: that of a mirror that waits if something is missing.
    fn show(&self, missing: Option<String>) {
        let mut details = MirrorStatus::default();
        let mut reasons: Vec<String> = missing.into_iter().collect();
        if let Some(installed) = &self.installed {
            details.attachments = installed.show(&self.spec);
            let (waits, remarks) = installed.unseen(&self.spec);
            reasons.extend(waits);
            details.remarks = remarks;
            let blown = installed
                .books()
                .and_then(|books| books.limits())
                .map_or("", |limits| limits.fuse);
            if !blown.is_empty() {
                reasons.push(format!(
                    "the fuse has blown: {blown}; change the mirror to switch it on again"
                ));
            }
        }
        if !self.spec.filter.trim().is_empty() {
            details.filter_at = "kernel".to_owned();
        }
        details.outputs = self.outputs();
        for output in details.outputs.iter().filter(|o| !o.reason.is_empty()) {
            reasons.push(output.reason.clone());
        }
        let state = if reasons.is_empty() {
            State::Running
        } else {
            State::Waiting
        };
        if reasons.is_empty() {
            reasons = self.target.remarks();
            if !self.placement.remark().is_empty() {
                reasons.push(self.placement.remark().to_owned());
            }
        }
        details.device_changes = self.device.changes();
        details.remarks.extend(self.remarks());
        self.worker.live().set_details(details);
        self.worker.set_state(state, reasons.join("; "));
    }

    /// What is worth knowing and no state.
    fn remarks(&self) -> Vec<String> {
        let device = Some(self.device.remark().to_owned());
        device
            .filter(|remark| !remark.is_empty())
            .into_iter()
            .collect()
    }

    fn outputs(&self) -> Vec<MirrorOutput> {
        let mut outputs = self.target.outputs();
        if let Some(events) = &self.events {
            let state = if events.absent.is_empty() {
                v1::State::Running
            } else {
                v1::State::Waiting
            };
            outputs.push(MirrorOutput {
                name: self.spec.ring.clone(),
                state: state.into(),
                reason: events.absent.clone(),
                ..MirrorOutput::default()
            });
        }
        outputs
    }

    /// Takes what is in the buffer, until then.
    fn drain(&mut self, end: Instant) {
        let Some(events) = &mut self.events else {
            return;
        };
        while Instant::now() < end && events.pump().is_ok_and(|turn| turn.frames > 0 || turn.more) {
        }
    }

    /// The mirror's programs stay when they are to, and go on without this thread.
    fn finish(&mut self) {
        let persistent = !self.spec.ephemeral && !self.job.ephemeral;
        if !persistent && !self.worker.deleting() {
            if let Err(error) = self.take_off() {
                tracing::error!(mirror = self.worker.name(), %error, "cannot take the programs off");
            }
            self.target.remove();
        }
        self.drain(Instant::now() + DRAIN);
        if let Some(mut events) = self.events.take() {
            if self.worker.deleting() {
                events.set_place(None);
            }
            events.close();
        }
        if !persistent
            && !self.worker.deleting()
            && let Some(installed) = self.installed.take()
            && let Err(error) = installed.remove()
        {
            tracing::error!(mirror = self.worker.name(), %error, "cannot remove everything of a mirror");
        }
    }
}

fn installed_folder(installed: &Option<Installed>) -> Result<&Folder, Error> {
    installed
        .as_ref()
        .map(Installed::folder)
        .ok_or_else(|| Error::Unsuitable("nothing is installed".to_owned()))
}
