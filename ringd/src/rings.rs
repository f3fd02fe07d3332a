//! What is done to rings.
//!
//! The rings themselves are the truth: whatever is in the ring directory is served, whoever made it. The state file only
//! says which rings to make again when they have vanished, as they do when the machine restarts.

use crate::{
    budget::{Budget, Need},
    status,
};
use fluxcap_proto::v1::{Ring, RingMode, RingSpec, RingStatus, State};
use fluxcap_ring::{CreateOptions, Error, Mode, Observer, RingDir, RingName, RingState, RingStats};
use fluxcap_service::{Counts, Jobs, Refusal, StateFile, apply_mask, format_size, realtime_ns};
use std::{
    collections::BTreeMap,
    error::Error as _,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

const FILE_MODE: u32 = 0o660;
/// Half of the shortest interval of a Watch stream.
const RECENT: Duration = Duration::from_millis(50);

/// All rings of a ring directory and of POSIX shared memory.
#[derive(Debug)]
pub(crate) struct Rings {
    dir: RingDir,
    budget: Budget,
    store: Option<StateFile>,
    /// Rings to make again after a restart of the machine. Held while rings are changed, so that one change at a time
    /// looks at the budget; reserving the memory of a ring may take minutes.
    wanted: Mutex<BTreeMap<String, RingSpec>>,
    /// Wanted rings that are not there, and why. Held for moments.
    absent: Mutex<BTreeMap<String, Absent>>,
    /// What the Watch streams share.
    recent: Mutex<Option<Snapshot>>,
    stopping: AtomicBool,
}

/// All rings as they were at one time.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    read: Instant,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub(crate) time_ns: u64,
    pub(crate) rings: Arc<[Ring]>,
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
                    let reason = "vanished; about to be made again".to_owned();
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
        for name in names {
            if self.stopping.load(Relaxed) {
                return;
            }
            let wanted = lock(&self.wanted);
            // Deleted or made by a client in the meantime.
            let Some(absent) = lock(&self.absent).get(&name).cloned() else {
                continue;
            };
            let made = parse_name(&name).and_then(|name| {
                self.check_budget(&name, absent.spec.size_bytes)?;
                self.make(&name, &absent.spec, false)
            });
            drop(wanted);
            match made {
                Ok(_) => {
                    lock(&self.absent).remove(&name);
                    tracing::info!(ring = name, size = absent.spec.size_bytes, "made again");
                }
                Err(refusal) => {
                    tracing::error!(ring = name, %refusal, "cannot make again a ring that has vanished");
                    if let Some(absent) = lock(&self.absent).get_mut(&name) {
                        absent.state = State::Failed;
                        absent.reason = format!("vanished and cannot be made again: {refusal}");
                    }
                }
            }
        }
    }

    /// Makes a ring. One with the same spec is left alone; a different one is an error unless `replace`. With
    /// `validate_only` nothing is done; that the memory is there shows only when it is taken.
    pub(crate) fn create(
        &self,
        name: &RingName,
        spec: &RingSpec,
        replace: bool,
        validate_only: bool,
    ) -> Result<Ring, Refusal> {
        let spec = normal(spec)?;
        let mut wanted = lock(&self.wanted);
        match live(&self.dir, name) {
            Ok(stats) if self.is_equal(name, &stats, &spec)? => {
                if !validate_only {
                    self.remember(&mut wanted, name, status::spec(&stats.info));
                }
                return Ok(status::ring(&stats));
            }
            Ok(stats) if !replace => return Err(different(name, &stats)),
            Ok(stats) => {
                tracing::info!(ring = name.as_str(), attached = %attached(&stats), "replacing")
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) if !replace => return Err(refusal(error)),
            Err(error) => {
                tracing::warn!(ring = name.as_str(), %error, "replacing a ring that cannot be used")
            }
        }
        self.build(&mut wanted, name, &spec, replace, validate_only)
    }

    /// Changes size or mode by a new epoch; `mask` names the fields of `new` to take, none takes all.
    pub(crate) fn update(
        &self,
        name: &RingName,
        new: &RingSpec,
        mask: &[String],
        validate_only: bool,
    ) -> Result<Ring, Refusal> {
        let mut wanted = lock(&self.wanted);
        let stats = live(&self.dir, name).map_err(refusal)?;
        let spec = normal(&apply_mask(&status::spec(&stats.info), new, mask)?)?;
        if self.is_equal(name, &stats, &spec)? {
            return Ok(status::ring(&stats));
        }
        tracing::info!(ring = name.as_str(), attached = %attached(&stats), "new epoch");
        self.build(&mut wanted, name, &spec, true, validate_only)
    }

    /// Retires a ring; returns who was attached to it, empty when nobody was.
    pub(crate) fn delete(&self, name: &RingName) -> Result<String, Refusal> {
        let mut wanted = lock(&self.wanted);
        let known = wanted.remove(name.as_str()).is_some();
        lock(&self.absent).remove(name.as_str());
        let attached = observe(&self.dir, name)
            .map(|stats| attached(&stats))
            .unwrap_or_default();
        let result = match fluxcap_ring::delete(&self.dir, name) {
            // A ring that had vanished is forgotten, which is all that is left to do.
            Err(Error::NotFound { .. }) if known => Ok(()),
            result => result.map_err(refusal),
        };
        self.save(&wanted);
        result?;
        tracing::info!(ring = name.as_str(), %attached, "deleted");
        Ok(attached)
    }

    /// One ring.
    pub(crate) fn get(&self, name: &RingName) -> Result<Ring, Refusal> {
        match observe(&self.dir, name) {
            Ok(stats) => Ok(status::ring(&stats)),
            Err(Error::NotFound { name, dir }) => match lock(&self.absent).get(&name) {
                Some(absent) => Ok(absent.ring(&name)),
                None => Err(refusal(Error::NotFound { name, dir })),
            },
            Err(error) => Err(refusal(error)),
        }
    }

    /// All rings, sorted by name, and those that should be there but are not.
    pub(crate) fn list(&self) -> Result<Vec<Ring>, Refusal> {
        let mut rings: BTreeMap<String, Ring> = lock(&self.absent)
            .iter()
            .map(|(name, absent)| (name.clone(), absent.ring(name)))
            .collect();
        for name in self.dir.list().map_err(refusal)? {
            match observe(&self.dir, &name) {
                Ok(stats) => rings.insert(name.as_str().to_owned(), status::ring(&stats)),
                // Deleted since it was listed.
                Err(Error::NotFound { .. }) => None,
                Err(error) => rings.insert(name.as_str().to_owned(), broken(&name, &error)),
            };
        }
        Ok(rings.into_values().collect())
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

    /// Checks the budget, makes the ring and writes it down. The caller has looked at what is there.
    fn build(
        &self,
        wanted: &mut BTreeMap<String, RingSpec>,
        name: &RingName,
        spec: &RingSpec,
        replace: bool,
        validate_only: bool,
    ) -> Result<Ring, Refusal> {
        if self.stopping.load(Relaxed) {
            return Err(Refusal::Unavailable(
                "ringd is stopping; try again when it runs again".to_owned(),
            ));
        }
        let footprint = self.check_budget(name, spec.size_bytes)?;
        if validate_only {
            let status = RingStatus {
                footprint_bytes: footprint,
                ..RingStatus::default()
            };
            return Ok(Ring {
                name: name.to_string(),
                spec: Some(*spec),
                status: Some(status),
            });
        }
        let spec = self.make(name, spec, replace)?;
        lock(&self.absent).remove(name.as_str());
        self.remember(wanted, name, spec);
        self.get(name)
    }

    /// Makes the ring and returns its spec as it came out, the size rounded up.
    fn make(&self, name: &RingName, spec: &RingSpec, replace: bool) -> Result<RingSpec, Refusal> {
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

    /// Refuses a ring that does not fit beside the others; returns all the bytes that it will take.
    fn check_budget(&self, name: &RingName, size_bytes: u64) -> Result<u64, Refusal> {
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
        self.budget.check(Need {
            ring: name.as_str(),
            footprint,
            others,
        })?;
        Ok(footprint)
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
    /// Rings stay. Only what was not begun yet is not begun any more.
    fn stop(&self, _deadline: Duration) {
        self.stopping.store(true, Relaxed);
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

/// Who works with a ring right now, for the log and the client.
fn attached(stats: &RingStats) -> String {
    let producer = stats
        .producer
        .iter()
        .filter(|producer| producer.live)
        .map(|p| format!("producer {}", p.holder));
    let readers = stats
        .readers
        .iter()
        .filter(|reader| reader.live)
        .map(|r| format!("reader {} (pid {})", r.label, r.pid));
    producer.chain(readers).collect::<Vec<_>>().join(", ")
}

fn broken(name: &RingName, error: &Error) -> Ring {
    let status = RingStatus {
        state: State::Failed.into(),
        reason: format!("{}; replace or delete it", explain(error)),
        ..RingStatus::default()
    };
    Ring {
        name: name.to_string(),
        spec: None,
        status: Some(status),
    }
}

fn different(name: &RingName, stats: &RingStats) -> Refusal {
    let spec = status::spec(&stats.info);
    let mode = if spec.mode() == RingMode::Wait {
        "wait"
    } else {
        "overwrite"
    };
    Refusal::AlreadyExists(format!(
        "ring {name} exists with {} in mode {mode}; to change it: fluxctl ring resize {name}, or create it with --replace \
         (what is in it is lost, workers follow by themselves)",
        format_size(spec.size_bytes)
    ))
}

/// The error with its causes.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What a client is told of an error of a ring.
fn refusal(error: Error) -> Refusal {
    let text = explain(&error);
    match error {
        Error::InvalidName { .. } => Refusal::invalid("name", text),
        Error::InvalidCapacity { .. } => Refusal::invalid("spec.size_bytes", text),
        Error::Exists { .. } => {
            Refusal::AlreadyExists(format!("{text}; choose another name, or replace it"))
        }
        Error::NotFound { .. } => Refusal::NotFound(format!(
            "{text}; fluxctl ring list shows the rings, fluxctl ring create makes one"
        )),
        Error::NotEnoughMemory {
            name,
            needed,
            available,
        } => Refusal::Exhausted(format!(
            "ring {name} needs {}, but only {} of memory can be taken now; delete or shrink a ring, end other programs, or \
             ask for less",
            format_size(needed),
            format_size(available)
        )),
        Error::Damaged { .. } | Error::Poisoned { .. } => Refusal::Precondition(format!(
            "{text}; create it anew with --replace, or delete it"
        )),
        Error::Retired { .. } | Error::Busy { .. } | Error::Locked { .. } => {
            Refusal::Precondition(format!("{text}; try again in a moment"))
        }
        _ => Refusal::Internal(text),
    }
}

/// Nothing panics while it holds one of these locks, and a panic would end the process anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
