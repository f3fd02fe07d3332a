//! What is done to rings.
//!
//! The rings themselves are the truth: whatever is in the ring directory is served, whoever made it. The state file only
//! says which rings to make again when they have vanished, as they do when the machine restarts.

use crate::{
    budget::{Budget, Need},
    status,
    words::{attached, broken, different, refusal},
};
use fluxcap_proto::v1::{Ring, RingMode, RingSpec, RingStatus, State};
use fluxcap_ring::{
    Announcement, CreateOptions, Creation, Error, Mode, Observer, RingDir, RingName, RingState,
    RingStats,
};
use fluxcap_service::{Counts, Jobs, Refusal, StateFile, apply_mask, format_size, realtime_ns};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

const FILE_MODE: u32 = 0o660;
/// Time between two looks at earlier epochs.
const TIDY: Duration = Duration::from_secs(1);
/// Time between two looks whether a request that waits is still wanted.
const STEP: Duration = Duration::from_millis(50);
/// Half of the shortest interval of a Watch stream.
const RECENT: Duration = Duration::from_millis(50);

/// All rings of a ring directory and of POSIX shared memory.
#[derive(Debug)]
pub(crate) struct Rings {
    dir: RingDir,
    budget: Budget,
    store: Option<StateFile>,
    /// Rings to make again after a restart of the machine. Held for moments, so that one change at a time looks at the budget; reserving
    /// the memory of a ring may take minutes, and is done without.
    wanted: Mutex<BTreeMap<String, RingSpec>>,
    /// Rings that are being made, and their share of the budget. Changed while `wanted` is held.
    making: Mutex<BTreeMap<String, Making>>,
    /// One of these is done.
    made: Condvar,
    /// Wanted rings that are not there, and why. Held for moments.
    absent: Mutex<BTreeMap<String, Absent>>,
    /// What the Watch streams share.
    recent: Mutex<Option<Snapshot>>,
    stopping: AtomicBool,
}

/// What becomes of a ring that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    /// It stays.
    Never,
    /// It stays if it is equal.
    Different,
    /// A new epoch takes its place.
    Always,
}

/// How a request is done.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// Nothing is done.
    pub(crate) validate_only: bool,
    /// The way to give it up.
    pub(crate) creation: Arc<Creation>,
}

/// What a new ring gets of the budget.
#[derive(Debug, Clone, Copy)]
struct Share {
    footprint: u64,
    /// Left for earlier epochs of all rings.
    keep: u64,
}

/// All rings as they were at one time.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    read: Instant,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub(crate) time_ns: u64,
    pub(crate) rings: Arc<[Ring]>,
}

/// A ring that is being made.
#[derive(Debug, Clone)]
struct Making {
    spec: RingSpec,
    footprint: u64,
    creation: Arc<Creation>,
}

#[derive(Debug, Clone)]
struct Absent {
    spec: RingSpec,
    state: State,
    reason: String,
}

impl Rings {
    /// Takes over the rings that exist and notes those that have vanished.
    pub(crate) fn open(
        dir: RingDir,
        budget: Budget,
        store: Option<StateFile>,
    ) -> anyhow::Result<Rings> {
        let mut wanted: BTreeMap<String, RingSpec> = match &store {
            Some(store) => store.load()?,
            None => BTreeMap::new(),
        };
        let mut absent = BTreeMap::new();
        for (name, spec) in &mut wanted {
            match RingName::parse(name).and_then(|name| live(&dir, &name)) {
                // The ring is the truth, also where ringd was killed between resizing it and writing that down.
                Ok(stats) => *spec = status::spec(&stats.info),
                Err(_) => {
                    let reason =
                        "is about to be made again, it was lost with the memory of the machine"
                            .to_owned();
                    absent.insert(
                        name.clone(),
                        Absent {
                            spec: *spec,
                            state: State::Starting,
                            reason,
                        },
                    );
                }
            }
        }
        let rings = Rings {
            dir,
            budget,
            store,
            wanted: Mutex::new(wanted),
            making: Mutex::default(),
            made: Condvar::new(),
            absent: Mutex::new(absent),
            recent: Mutex::new(None),
            stopping: AtomicBool::new(false),
        };
        for name in rings.dir.list()? {
            tracing::info!(ring = name.as_str(), "adopted");
        }
        Ok(rings)
    }

    /// Makes the rings that have vanished, on a thread of its own: the daemon serves meanwhile.
    pub(crate) fn restore_in_background(self: &Arc<Self>) -> io::Result<()> {
        if lock(&self.absent).is_empty() {
            return Ok(());
        }
        let rings = Arc::clone(self);
        thread::Builder::new()
            .name("restore".to_owned())
            .spawn(move || rings.restore())?;
        Ok(())
    }

    fn restore(&self) {
        let names: Vec<String> = lock(&self.absent).keys().cloned().collect();
        let mut announced: BTreeMap<&String, _> = names
            .iter()
            .filter_map(|name| Some((name, parse_name(name).ok()?)))
            .map(|(name, ring)| (name, Announcement::new(&self.dir, &ring)))
            .collect();
        for name in &names {
            if self.stopping.load(Relaxed) {
                return;
            }
            // Deleted or made by a client in the meantime.
            let Some(absent) = lock(&self.absent).get(name).cloned() else {
                announced.remove(name);
                continue;
            };
            let creation = Arc::default();
            let made = parse_name(name).and_then(|name| {
                let wanted = self.turn(&name, &creation)?;
                // Once more: what has been waited for may have been just this.
                if lock(&self.absent).contains_key(name.as_str()) {
                    return self.build(wanted, &name, &absent.spec, false, &creation);
                }
                drop(wanted);
                self.get(&name)
            });
            announced.remove(name);
            match made {
                Ok(_) => {
                    tracing::info!(ring = name, size = absent.spec.size_bytes, "made again");
                }
                Err(refusal) => {
                    tracing::error!(ring = name, %refusal, "cannot make again a ring that has vanished");
                    if let Some(absent) = lock(&self.absent).get_mut(name) {
                        absent.state = State::Failed;
                        absent.reason = format!("vanished and cannot be made again: {refusal}");
                    }
                }
            }
        }
    }

    /// Makes a ring. One with the same spec is left alone, unless it is to be replaced; a different one is an error then. What
    /// is left of a damaged one is replaced in any case.
    pub(crate) fn create(
        &self,
        name: &RingName,
        spec: &RingSpec,
        replace: Replace,
        how: &How,
    ) -> Result<Ring, Refusal> {
        let spec = normal(spec)?;
        let mut wanted = self.turn(name, &how.creation)?;
        match live(&self.dir, name) {
            Ok(stats) if replace != Replace::Always && self.is_equal(name, &stats, &spec)? => {
                if !how.validate_only {
                    self.remember(&mut wanted, name, status::spec(&stats.info));
                }
                return Ok(status::ring(&stats));
            }
            Ok(stats) if replace == Replace::Never => return Err(different(name, &stats)),
            Ok(stats) => {
                tracing::info!(ring = name.as_str(), attached = %attached(&stats), "replacing");
            }
            Err(Error::NotFound { .. }) => {}
            // Whether that is ours to replace is known by the one who does it.
            Err(error) => {
                tracing::warn!(ring = name.as_str(), %error, "replacing a ring that cannot be used");
            }
        }
        if how.validate_only {
            return self.validate(name, &spec);
        }
        self.build(
            wanted,
            name,
            &spec,
            replace != Replace::Never,
            &how.creation,
        )
    }

    /// Changes size or mode by a new epoch; `mask` names the fields of `new` to take, none takes all.
    pub(crate) fn update(
        &self,
        name: &RingName,
        new: &RingSpec,
        mask: &[String],
        how: &How,
    ) -> Result<Ring, Refusal> {
        let wanted = self.turn(name, &how.creation)?;
        let stats = live(&self.dir, name).map_err(refusal)?;
        let spec = normal(&apply_mask(&status::spec(&stats.info), new, mask)?)?;
        if self.is_equal(name, &stats, &spec)? {
            return Ok(status::ring(&stats));
        }
        if how.validate_only {
            return self.validate(name, &spec);
        }
        tracing::info!(ring = name.as_str(), attached = %attached(&stats), "new epoch");
        self.build(wanted, name, &spec, true, &how.creation)
    }

    /// Retires a ring; returns who was attached to it, empty when nobody was. One that is being made is not made. With `only_unused` a
    /// ring that somebody works with stays.
    pub(crate) fn delete(&self, name: &RingName, only_unused: bool) -> Result<String, Refusal> {
        let attached = observe(&self.dir, name)
            .map(|stats| attached(&stats))
            .unwrap_or_default();
        if only_unused && !attached.is_empty() {
            return Err(Refusal::Precondition(format!(
                "ring {name} is in use: {attached}"
            )));
        }
        if let Some(making) = lock(&self.making).get(name.as_str()) {
            making.creation.cancel();
        }
        let mut wanted = self.turn(name, &Creation::default())?;
        let known = wanted.contains_key(name.as_str());
        match fluxcap_ring::delete(&self.dir, name) {
            // A ring that had vanished is forgotten, which is all that is left to do.
            Err(Error::NotFound { .. }) if known => {}
            result => result.map_err(refusal)?,
        }
        wanted.remove(name.as_str());
        lock(&self.absent).remove(name.as_str());
        self.save(&wanted);
        tracing::info!(ring = name.as_str(), %attached, "deleted");
        Ok(attached)
    }

    /// One ring.
    pub(crate) fn get(&self, name: &RingName) -> Result<Ring, Refusal> {
        match observe(&self.dir, name) {
            Ok(stats) => Ok(self.described(&stats)),
            Err(Error::NotFound { name, dir }) => match self.missing().remove(&name) {
                Some(ring) => Ok(ring),
                None => Err(refusal(Error::NotFound { name, dir })),
            },
            Err(error) => Err(refusal(error)),
        }
    }

    /// All rings, sorted by name, and those that should be there but are not.
    pub(crate) fn list(&self) -> Result<Vec<Ring>, Refusal> {
        let mut rings = self.missing();
        for name in self.dir.list().map_err(refusal)? {
            match observe(&self.dir, &name) {
                Ok(stats) => rings.insert(name.as_str().to_owned(), self.described(&stats)),
                // Deleted since it was listed.
                Err(Error::NotFound { .. }) => None,
                Err(error) => rings.insert(name.as_str().to_owned(), broken(&name, &error)),
            };
        }
        Ok(rings.into_values().collect())
    }

    /// A ring that is there, and what else is to be known of it.
    fn described(&self, stats: &RingStats) -> Ring {
        let mut ring = status::ring(stats);
        let name = &stats.info.name;
        if let Some(status) = &mut ring.status {
            status.remarks = status::remarks(&self.dir, name, stats);
            if let Some(making) = lock(&self.making).get(name.as_str()) {
                status
                    .remarks
                    .push(format!("a new epoch is being made: {}", making.progress()));
            }
        }
        ring
    }

    /// Rings that are wanted, if they are not there: being made, to be made again, or gone.
    fn missing(&self) -> BTreeMap<String, Ring> {
        let gone = |(name, spec): (&String, &RingSpec)| {
            let absent = Absent {
                spec: *spec,
                state: State::Failed,
                reason: format!(
                    "its files are gone from {}, somebody has removed them; workers wait for a new one: fluxctl ring create {name} --size {}",
                    self.dir.path().display(),
                    spec.size_bytes
                ),
            };
            (name.clone(), absent.ring(name))
        };
        let mut rings: BTreeMap<String, Ring> = lock(&self.wanted).iter().map(gone).collect();
        for (name, absent) in lock(&self.absent).iter() {
            rings.insert(name.clone(), absent.ring(name));
        }
        for (name, making) in lock(&self.making).iter() {
            let absent = Absent {
                spec: making.spec,
                state: State::Starting,
                reason: format!("is being made: {}", making.progress()),
            };
            rings.insert(name.clone(), absent.ring(name));
        }
        rings
    }

    /// As `list`, not older than `RECENT`: however many streams are open, rings are looked at only so often.
    pub(crate) fn recent(&self) -> Result<Snapshot, Refusal> {
        let mut recent = lock(&self.recent);
        if let Some(snapshot) = &*recent
            && snapshot.read.elapsed() < RECENT
        {
            return Ok(snapshot.clone());
        }
        let (read, time_ns) = (Instant::now(), realtime_ns());
        let snapshot = Snapshot {
            read,
            time_ns,
            rings: self.list()?.into(),
        };
        *recent = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// The right to change rings, once none of that name is being made.
    fn turn(
        &self,
        name: &RingName,
        creation: &Creation,
    ) -> Result<MutexGuard<'_, BTreeMap<String, RingSpec>>, Refusal> {
        let mut wanted = lock(&self.wanted);
        while lock(&self.making).contains_key(name.as_str()) {
            if creation.is_cancelled() {
                let name = name.to_string();
                return Err(refusal(Error::Cancelled { name }));
            }
            let waited = self.made.wait_timeout(wanted, STEP);
            wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(wanted)
    }

    /// What a ring would be. That the memory is there shows only when it is taken.
    fn validate(&self, name: &RingName, spec: &RingSpec) -> Result<Ring, Refusal> {
        let status = RingStatus {
            footprint_bytes: self.check_budget(name, spec.size_bytes)?.footprint,
            ..RingStatus::default()
        };
        Ok(Ring {
            name: name.to_string(),
            spec: Some(*spec),
            status: Some(status),
        })
    }

    /// Checks the budget, makes the ring and writes it down. The caller has looked at what is there. Others have their turn while the
    /// memory is reserved.
    fn build(
        &self,
        wanted: MutexGuard<'_, BTreeMap<String, RingSpec>>,
        name: &RingName,
        spec: &RingSpec,
        replace: bool,
        creation: &Arc<Creation>,
    ) -> Result<Ring, Refusal> {
        let share = self.check_budget(name, spec.size_bytes)?;
        let making = Making {
            spec: *spec,
            footprint: share.footprint,
            creation: Arc::clone(creation),
        };
        lock(&self.making).insert(name.to_string(), making);
        drop(wanted);
        // Only now: what stops everything has either seen this one, or is seen by it.
        let made = if self.stopping.load(Relaxed) {
            Err(Refusal::Unavailable(
                "ringd is stopping; try again when it runs again".to_owned(),
            ))
        } else {
            self.make(name, spec, replace, share.keep, creation)
        };
        let mut wanted = lock(&self.wanted);
        lock(&self.making).remove(name.as_str());
        self.made.notify_all();
        let spec = made?;
        lock(&self.absent).remove(name.as_str());
        self.remember(&mut wanted, name, spec);
        drop(wanted);
        self.get(name)
    }

    /// Makes the ring and returns its spec as it came out, the size rounded up.
    fn make(
        &self,
        name: &RingName,
        spec: &RingSpec,
        replace: bool,
        keep_bytes: u64,
        creation: &Arc<Creation>,
    ) -> Result<RingSpec, Refusal> {
        let options = CreateOptions {
            capacity: spec.size_bytes,
            mode: if spec.mode() == RingMode::Wait {
                Mode::Wait
            } else {
                Mode::Overwrite
            },
            replace,
            file_mode: FILE_MODE,
            base_pos: None,
            memory_limit: None,
            keep_bytes: Some(keep_bytes),
            creation: Some(Arc::clone(creation)),
        };
        let info = fluxcap_ring::create(&self.dir, name, &options).map_err(refusal)?;
        tracing::info!(
            ring = name.as_str(),
            capacity = info.capacity,
            epoch = info.epoch,
            "created"
        );
        Ok(status::spec(&info))
    }

    /// Refuses a ring that does not fit beside the others, of which earlier epochs give way if need be.
    fn check_budget(&self, name: &RingName, size_bytes: u64) -> Result<Share, Refusal> {
        let footprint = self.footprint(name, size_bytes)?;
        let mut others = 0_u64;
        for other in self.dir.list().map_err(refusal)? {
            if other == *name {
                continue;
            }
            // What cannot be read is no ring that anybody uses.
            let taken = observe(&self.dir, &other).map_or(0, |stats| stats.info.footprint);
            others = others.saturating_add(taken);
        }
        for (other, making) in lock(&self.making).iter() {
            if other != name.as_str() {
                others = others.saturating_add(making.footprint);
            }
        }
        self.budget.check(Need {
            ring: name.as_str(),
            footprint,
            others,
        })?;
        let keep = self.budget.left(others.saturating_add(footprint));
        self.tidy(keep);
        Ok(Share { footprint, keep })
    }

    /// Lets go of earlier epochs that nobody needs, and of the oldest of those that do not fit into so many bytes.
    fn tidy(&self, bytes: u64) {
        let mut left = bytes;
        for (name, kept) in fluxcap_ring::kept(&self.dir) {
            match fluxcap_ring::tidy(&self.dir, &name, left) {
                Ok(cut) => {
                    for it in cut {
                        tracing::warn!(
                            ring = name.as_str(),
                            reader = it.reader,
                            frames = it.frames,
                            "cut off an earlier epoch: its reader has not come in time"
                        );
                    }
                }
                Err(error) => tracing::warn!(ring = name.as_str(), %error, "cannot tidy up"),
            }
            left = left.saturating_sub(kept.bytes);
        }
    }

    /// Looks after earlier epochs, again and again until the end.
    pub(crate) fn tidy_in_background(self: &Arc<Self>) -> io::Result<()> {
        let rings = Arc::clone(self);
        thread::Builder::new()
            .name("tidy".to_owned())
            .spawn(move || {
                while !rings.stopping.load(Relaxed) {
                    thread::sleep(TIDY);
                    // To look at all rings is worth it only when there is something to look after.
                    if !fluxcap_ring::kept(&rings.dir).is_empty() {
                        let taken = rings.taken();
                        rings.tidy(rings.budget.left(taken));
                    }
                }
            })?;
        Ok(())
    }

    /// Bytes that all rings take, earlier epochs not counted.
    fn taken(&self) -> u64 {
        let names = self.dir.list().unwrap_or_default();
        let sizes = names
            .iter()
            .map(|name| observe(&self.dir, name).map_or(0, |stats| stats.info.footprint));
        let making = lock(&self.making);
        let making = making.values().map(|it| it.footprint);
        sizes.chain(making).fold(0, u64::saturating_add)
    }

    fn footprint(&self, name: &RingName, size_bytes: u64) -> Result<u64, Refusal> {
        if name.is_shm() {
            return fluxcap_ring::footprint(&RingDir::new("/dev/shm"), size_bytes).map_err(refusal);
        }
        fluxcap_ring::footprint(&self.dir, size_bytes).map_err(refusal)
    }

    /// True when a ring is what `spec` asks for: sizes that round up to the same pages are the same.
    fn is_equal(
        &self,
        name: &RingName,
        stats: &RingStats,
        spec: &RingSpec,
    ) -> Result<bool, Refusal> {
        let is = status::spec(&stats.info);
        Ok(is.mode == spec.mode
            && self.footprint(name, is.size_bytes)? == self.footprint(name, spec.size_bytes)?)
    }

    fn remember(&self, wanted: &mut BTreeMap<String, RingSpec>, name: &RingName, spec: RingSpec) {
        if wanted.insert(name.as_str().to_owned(), spec) != Some(spec) {
            self.save(wanted);
        }
    }

    fn save(&self, wanted: &BTreeMap<String, RingSpec>) {
        if let Some(store) = &self.store {
            store.save(wanted);
        }
    }
}

impl Jobs for Rings {
    /// Rings stay. What is not there yet is not made any more.
    fn stop(&self, _deadline: Duration) {
        self.stopping.store(true, Relaxed);
        lock(&self.making)
            .values()
            .for_each(|it| it.creation.cancel());
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for ring in self.list().unwrap_or_default() {
            match ring.status.map(|status| status.state()) {
                Some(State::Failed) => counts.failed += 1,
                Some(State::Waiting) => counts.waiting += 1,
                _ => counts.running += 1,
            }
        }
        counts
    }
}

impl Making {
    fn progress(&self) -> String {
        let reserved = self.creation.reserved().min(self.footprint);
        format!(
            "{} of {}",
            format_size(reserved),
            format_size(self.footprint)
        )
    }
}

impl Absent {
    fn ring(&self, name: &str) -> Ring {
        let status = RingStatus {
            state: self.state.into(),
            reason: self.reason.clone(),
            ..RingStatus::default()
        };
        Ring {
            name: name.to_owned(),
            spec: Some(self.spec),
            status: Some(status),
        }
    }
}

/// Checks a name that came from a client.
pub(crate) fn parse_name(name: &str) -> Result<RingName, Refusal> {
    RingName::parse(name).map_err(refusal)
}

fn observe(dir: &RingDir, name: &RingName) -> Result<RingStats, Error> {
    Observer::open(dir, name)?.stats()
}

/// As `observe`; a ring that was retired, but not removed because whoever did that was killed, is none.
fn live(dir: &RingDir, name: &RingName) -> Result<RingStats, Error> {
    match observe(dir, name)? {
        stats if matches!(stats.state, RingState::Live) => Ok(stats),
        _ => Err(Error::NotFound {
            name: name.to_string(),
            dir: dir.path().to_owned(),
        }),
    }
}

/// The spec with its defaults written out.
fn normal(spec: &RingSpec) -> Result<RingSpec, Refusal> {
    if spec.size_bytes == 0 {
        return Err(Refusal::invalid(
            "spec.size_bytes",
            "a ring needs a size, for instance 100m",
        ));
    }
    let mode = match RingMode::try_from(spec.mode) {
        Ok(RingMode::Wait) => RingMode::Wait,
        Ok(RingMode::Unspecified | RingMode::Overwrite) => RingMode::Overwrite,
        Err(_) => {
            return Err(Refusal::invalid(
                "spec.mode",
                format!("there is no mode {}", spec.mode),
            ));
        }
    };
    Ok(RingSpec {
        size_bytes: spec.size_bytes,
        mode: mode.into(),
    })
}

/// Nothing panics while it holds one of these locks, and a panic would end the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
