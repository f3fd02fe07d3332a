//! Named workers with a spec each: what rxd, txd and their kin have in common.

use crate::{Refusal, State, StateFile, Worker, WorkerOf, lock, still_wanted};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// How long a worker that is deleted may take to return.
const DELETE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest name of a resource, in characters: with every prefix that it gets (`tunneld NAME` as the label of a reader of a ring) it stays
/// below 64 bytes.
pub const MAX_NAME: usize = 56;

/// What the workers of a daemon do.
pub trait Job: Send + Sync + 'static {
    /// One word for it, for instance "capture": in messages and thread names.
    const KIND: &'static str;
    /// What a client asks for.
    type Spec: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Counters and details that a worker shares with the control side; written by the worker, so atomics.
    type Live: Default + Send + Sync + 'static;

    /// Refuses a spec that can never work or that conflicts with one of the `others`. What may come later (an interface,
    /// a ring) is no reason to refuse: the worker waits for it.
    fn validate(
        &self,
        name: &str,
        spec: &Self::Spec,
        others: &[(String, Self::Spec)],
    ) -> Result<(), Refusal>;

    /// Refuses what somebody asks for now and what, as things are, would do harm. Not asked about what comes back after a restart: a
    /// worker that finds such a thing waits.
    fn admit(&self, name: &str, spec: &Self::Spec) -> Result<(), Refusal> {
        let _ = (name, spec);
        Ok(())
    }

    /// Does the work, on a thread of its own, until `worker.stop_requested()`. Returning before that is a failure that
    /// `worker.set_state(State::Failed, why)` should explain, and that is tried again now and then, or the end of a bounded task (`State::Ended`); a changed spec then runs it
    /// again.
    fn run(&self, worker: &Worker<Self::Spec, Self::Live>);

    /// Called after a worker was deleted and its thread has returned; not when the daemon stops.
    fn removed(&self, name: &str, spec: &Self::Spec) {
        let _ = (name, spec);
    }

    /// Whether a worker with this spec is there again after a restart of the daemon.
    fn kept(&self, spec: &Self::Spec) -> bool {
        let _ = spec;
        true
    }
}

/// What the server needs to know of a daemon's work.
pub trait Jobs: Send + Sync + 'static {
    /// Ends all work, before `deadline` has passed if it can; nothing can be started afterwards.
    fn stop(&self, deadline: Duration);
    /// How many resources there are in which state.
    fn counts(&self) -> Counts;
    /// Something that hangs for longer than `limit`, by name: systemd's watchdog is then not fed.
    fn stalled(&self, limit: Duration) -> Option<String> {
        let _ = limit;
        None
    }
    /// Tries again what could not begin. Called about once a second, on a control thread: it must not wait.
    fn retry(&self) {}
}

/// Resources by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Running or starting.
    pub running: u32,
    /// Waiting for something.
    pub waiting: u32,
    /// Failed.
    pub failed: u32,
}

/// The workers of a daemon by name. Clones share the same workers.
///
/// Creating, updating and deleting write the state file and may wait for a thread to return: call them through
/// [`blocking`](crate::blocking) from async code. `get` and `list` are quick.
pub struct Registry<J: Job>(Arc<Inner<J>>);

struct Inner<J: Job> {
    job: Arc<J>,
    /// Held for each change as a whole, so that changes come one after another.
    changes: Mutex<Changes>,
    /// Held for moments only.
    workers: Mutex<BTreeMap<String, Arc<WorkerOf<J>>>>,
}

struct Changes {
    store: Option<StateFile>,
    stopping: bool,
}

impl<J: Job> Clone for Registry<J> {
    fn clone(&self) -> Self {
        Registry(Arc::clone(&self.0))
    }
}

impl<J: Job> fmt::Debug for Registry<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("kind", &J::KIND)
            .finish_non_exhaustive()
    }
}

impl<J: Job> Registry<J> {
    /// Starts a worker for each spec in the state file. A spec that is refused today stays, as failed, so that it is
    /// not lost.
    pub fn new(job: J, store: Option<StateFile>) -> anyhow::Result<Registry<J>> {
        Registry::with_command_line(job, store, &[])
    }

    /// The same for a daemon whose command line asks for `work`: what an earlier one asked for, and this one does not, ends.
    /// [`put`](Registry::put) begins what this one asks for.
    pub fn with_command_line(
        job: J,
        store: Option<StateFile>,
        work: &[(String, J::Spec)],
    ) -> anyhow::Result<Registry<J>> {
        let mut restored: BTreeMap<String, J::Spec> = match &store {
            Some(store) => store.load()?,
            None => BTreeMap::new(),
        };
        let mut ended = false;
        let before = store.as_ref().map(StateFile::command_line);
        for name in before.unwrap_or_default() {
            if !work.iter().any(|(wanted, _)| *wanted == name)
                && let Some(spec) = restored.remove(&name)
            {
                tracing::info!(kind = J::KIND, name, "no longer on the command line, ended");
                job.removed(&name, &spec);
                ended = true;
            }
        }
        let registry = Registry(Arc::new(Inner {
            job: Arc::new(job),
            changes: Mutex::new(Changes {
                store,
                stopping: false,
            }),
            workers: Mutex::default(),
        }));
        let mut others: Vec<(String, J::Spec)> = Vec::new();
        for (name, spec) in restored {
            let valid =
                check_name(&name).and_then(|()| registry.0.job.validate(&name, &spec, &others));
            let worker = Arc::new(Worker::idle(J::KIND, &name, spec.clone()));
            lock(&registry.0.workers).insert(name.clone(), Arc::clone(&worker));
            match valid {
                // One that cannot have a thread waits for it.
                Ok(()) => drop(registry.start(&worker)),
                Err(refusal) => worker.set_state(State::Failed, refusal.to_string()),
            }
            others.push((name, spec));
        }
        if ended {
            registry.save(&lock(&registry.0.changes));
        }
        Ok(registry)
    }

    /// Starts a worker. The same spec again: nothing happens; a different one is refused. With `validate_only` nothing
    /// is started and the worker in the answer is only a picture of what would be.
    pub fn create(
        &self,
        name: &str,
        spec: J::Spec,
        validate_only: bool,
    ) -> Result<Arc<WorkerOf<J>>, Refusal> {
        check_name(name)?;
        // What takes long (a filter) is done here, where nobody waits for the lock; below it is known already.
        let same = |existing: Arc<WorkerOf<J>>| *existing.spec() == spec;
        if !self.get(name).is_ok_and(same) {
            self.0.job.validate(name, &spec, &[])?;
        }
        let changes = lock(&self.0.changes);
        self.refuse_when_stopping(&changes)?;
        if let Ok(existing) = self.get(name) {
            if existing.deleting() {
                return Err(being_deleted::<J>(name));
            }
            if *existing.spec() == spec {
                return Ok(existing);
            }
            return Err(Refusal::AlreadyExists(format!(
                "{} \"{name}\" exists with a different spec; change it, or delete it first",
                J::KIND
            )));
        }
        self.0.job.validate(name, &spec, &self.others(name))?;
        self.0.job.admit(name, &spec)?;
        let worker = Arc::new(Worker::idle(J::KIND, name, spec));
        if validate_only {
            return Ok(worker);
        }
        still_wanted()?;
        // One that cannot have a thread or a descriptor waits for it.
        let _ = self.start(&worker);
        lock(&self.0.workers).insert(name.to_owned(), Arc::clone(&worker));
        self.save(&changes);
        tracing::info!(kind = J::KIND, name, "created");
        Ok(worker)
    }

    /// Starts a worker, or gives the one of that name this spec: for work that the command line asks for.
    /// It is marked in the state, unless a client had asked for the same before.
    pub fn put(&self, name: &str, spec: J::Spec) -> Result<Arc<WorkerOf<J>>, Refusal> {
        if self
            .get(name)
            .is_ok_and(|existing| *existing.spec() == spec)
        {
            return self.create(name, spec, false);
        }
        if let Some(store) = &lock(&self.0.changes).store {
            store.mark_command_line(name, true);
        }
        match self.create(name, spec.clone(), false) {
            Err(Refusal::AlreadyExists(_)) => {
                let change = |old: &mut J::Spec| {
                    old.clone_from(&spec);
                    Ok(())
                };
                self.update(name, change, false)
            }
            done => done,
        }
    }

    /// Whether all of the saved state was understood. If not, what belongs to a name that is not here may still be wanted.
    pub fn state_is_complete(&self) -> bool {
        let changes = lock(&self.0.changes);
        changes.store.as_ref().is_none_or(StateFile::is_complete)
    }

    /// Changes the spec of a worker in place: `change` works on a copy, which is then validated. A worker that had
    /// failed starts again.
    pub fn update(
        &self,
        name: &str,
        change: impl Fn(&mut J::Spec) -> Result<(), Refusal>,
        validate_only: bool,
    ) -> Result<Arc<WorkerOf<J>>, Refusal> {
        let changed = |old: &J::Spec| {
            let mut spec = J::Spec::clone(old);
            change(&mut spec)?;
            Ok(spec)
        };
        // As in `create`: what takes long is done before anybody has to wait for the lock.
        let before = self.get(name)?.spec();
        let planned = changed(&before)?;
        self.0.job.validate(name, &planned, &[])?;
        let changes = lock(&self.0.changes);
        self.refuse_when_stopping(&changes)?;
        let worker = self.get(name)?;
        if worker.deleting() {
            return Err(being_deleted::<J>(name));
        }
        let old = worker.spec();
        let spec = match Arc::ptr_eq(&before, &old) {
            true => planned,
            false => changed(&old)?,
        };
        self.0.job.validate(name, &spec, &self.others(name))?;
        self.0.job.admit(name, &spec)?;
        if validate_only {
            return Ok(Arc::new(Worker::idle(J::KIND, name, spec)));
        }
        still_wanted()?;
        if spec == *old && !worker.state().0.is_over() {
            return Ok(worker);
        }
        worker.update(spec);
        // Without a thread it waits for one, with the spec that it has now.
        let _ = self.start(&worker);
        self.save(&changes);
        tracing::info!(kind = J::KIND, name, "updated");
        Ok(worker)
    }

    /// Ends a worker for good and waits until its thread has returned.
    pub fn delete(&self, name: &str) -> Result<(), Refusal> {
        still_wanted()?;
        self.remove(name)
    }

    /// The same, whether somebody waits for it or not.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Refusal> {
        let worker = {
            let changes = lock(&self.0.changes);
            self.refuse_when_stopping(&changes)?;
            let worker = match self.get(name) {
                Ok(worker) => worker,
                // An entry that was not understood can be got rid of by its name.
                Err(_) if self.forget(&changes, name) => return Ok(()),
                Err(refusal) => return Err(refusal),
            };
            if !worker.mark_deleting() {
                return Err(being_deleted::<J>(name));
            }
            if let Some(store) = &changes.store {
                store.mark_command_line(name, false);
            }
            // Off the disk first: should the daemon be killed now, it does not come back.
            self.save(&changes);
            worker
        };
        worker.request_stop();
        if !worker.wait_ended(Instant::now() + DELETE_DEADLINE) {
            worker.set_state(State::Failed, "was deleted, but its thread does not end");
            return Err(Refusal::Internal(format!(
                "the thread of {} \"{name}\" has not ended after {} s; restart the daemon to be rid of it",
                J::KIND,
                DELETE_DEADLINE.as_secs()
            )));
        }
        self.0.job.removed(name, &worker.spec());
        lock(&self.0.workers).remove(name);
        tracing::info!(kind = J::KIND, name, "deleted");
        Ok(())
    }

    /// The worker of that name.
    pub fn get(&self, name: &str) -> Result<Arc<WorkerOf<J>>, Refusal> {
        lock(&self.0.workers).get(name).cloned().ok_or_else(|| {
            Refusal::NotFound(format!(
                "there is no {} \"{name}\"; list them to see the names",
                J::KIND
            ))
        })
    }

    /// All workers, sorted by name.
    pub fn list(&self) -> Vec<Arc<WorkerOf<J>>> {
        lock(&self.0.workers).values().cloned().collect()
    }

    /// What the workers do.
    pub fn job(&self) -> &J {
        &self.0.job
    }

    /// Ends all workers and waits for them until `deadline` has passed; refuses changes from now on.
    pub fn stop(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        lock(&self.0.changes).stopping = true;
        let workers = self.list();
        for worker in &workers {
            worker.request_stop();
        }
        for worker in &workers {
            if !worker.wait_ended(end) {
                tracing::error!(
                    kind = J::KIND,
                    name = worker.name(),
                    "does not stop, leaving it behind"
                );
            }
        }
    }

    /// How many workers are in which state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for worker in self.list() {
            match worker.state().0 {
                State::Starting | State::Running => counts.running += 1,
                State::Waiting => counts.waiting += 1,
                State::Failed => counts.failed += 1,
                State::Ended => {}
            }
        }
        counts
    }

    /// Gives a worker a thread, unless it has one.
    fn start(&self, worker: &Arc<WorkerOf<J>>) -> io::Result<()> {
        if !worker.claim_thread() {
            return Ok(());
        }
        worker.set_state(State::Starting, "");
        let (job, own) = (Arc::clone(&self.0.job), Arc::clone(worker));
        // The kernel shows 15 bytes of it, so the name comes first.
        let name = format!("{}-{}", worker.name(), J::KIND);
        let started = worker.make_wake().and_then(|()| {
            thread::Builder::new()
                .name(name)
                .spawn(move || own.run_thread(|| job.run(&own)))
        });
        if let Err(error) = started {
            worker.disclaim_thread();
            let reason = format!("cannot start a thread: {error}; trying again");
            worker.set_state(State::Waiting, reason);
            return Err(error);
        }
        Ok(())
    }

    /// Drops an entry of the state file that was not understood; false when there is none of that name.
    fn forget(&self, changes: &Changes, name: &str) -> bool {
        let forgotten = changes
            .store
            .as_ref()
            .is_some_and(|store| store.forget(name));
        if forgotten {
            self.save(changes);
        }
        forgotten
    }

    fn others(&self, name: &str) -> Vec<(String, J::Spec)> {
        let workers = self.list();
        let others = workers
            .iter()
            .filter(|worker| worker.name() != name && !worker.deleting());
        others
            .map(|worker| (worker.name().to_owned(), J::Spec::clone(&worker.spec())))
            .collect()
    }

    fn save(&self, changes: &Changes) {
        let Some(store) = &changes.store else { return };
        let workers = self.list();
        let kept = workers
            .iter()
            .filter(|worker| !worker.deleting())
            .map(|worker| (worker.name().to_owned(), J::Spec::clone(&worker.spec())))
            .filter(|(_, spec)| self.0.job.kept(spec));
        store.save(&kept.collect());
    }

    fn refuse_when_stopping(&self, changes: &Changes) -> Result<(), Refusal> {
        if changes.stopping {
            return Err(Refusal::Unavailable(
                "the daemon is stopping; try again when it runs again".to_owned(),
            ));
        }
        Ok(())
    }
}

impl<J: Job> Jobs for Registry<J> {
    fn retry(&self) {
        // Somebody changes something: the next time is soon enough.
        let Ok(changes) = self.0.changes.try_lock() else {
            return;
        };
        if changes.stopping {
            return;
        }
        for worker in self.list() {
            if worker.deleting() || !worker.is_due() {
                continue;
            }
            let (name, spec) = (worker.name(), worker.spec());
            let valid = check_name(name)
                .and_then(|()| self.0.job.validate(name, &spec, &self.others(name)));
            match valid {
                Ok(()) => drop(self.start(&worker)),
                Err(refusal) => worker.set_state(State::Failed, refusal.to_string()),
            }
        }
    }

    fn stop(&self, deadline: Duration) {
        Registry::stop(self, deadline);
    }

    fn counts(&self) -> Counts {
        Registry::counts(self)
    }

    fn stalled(&self, limit: Duration) -> Option<String> {
        // Ask all of them, also after a hit: the clock of each runs from the last time it was asked.
        let stalled: Vec<_> = self
            .list()
            .into_iter()
            .filter(|worker| worker.stalled(limit))
            .collect();
        stalled
            .first()
            .map(|worker| format!("{} {}", worker.kind(), worker.name()))
    }
}

fn being_deleted<J: Job>(name: &str) -> Refusal {
    Refusal::Precondition(format!(
        "{} \"{name}\" is being deleted; try again in a moment",
        J::KIND
    ))
}

/// Names go into thread names, logs and labels: 1 to 56 of `[A-Za-z0-9_.:+@-]`, the first one a letter or digit.
fn check_name(name: &str) -> Result<(), Refusal> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.:+@-".contains(&byte));
    if first && rest && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Refusal::invalid(
        "name",
        format!(
            "\"{}\" is no name; use 1 to {MAX_NAME} letters, digits or _ . : + @ - and begin with a letter or digit",
            name.escape_debug()
        ),
    ))
}

#[cfg(test)]
mod tests;
