use super::*;
use crate::Notices;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Spec {
    port: u32,
    /// What the worker does: 0 works, 1 fails at once, 2 ignores requests to stop until released.
    behaviour: u32,
}

#[derive(Default)]
struct Live {
    /// Port of the spec that the worker uses.
    port: AtomicU64,
    starts: AtomicU64,
    wakes: AtomicU64,
    release: AtomicBool,
}

#[derive(Default)]
struct Echo {
    removed: Mutex<Vec<String>>,
}

impl Job for Echo {
    const KIND: &'static str = "echo";
    type Spec = Spec;
    type Live = Live;

    fn validate(&self, _: &str, spec: &Spec, others: &[(String, Spec)]) -> Result<(), Refusal> {
        if spec.port == 0 {
            return Err(Refusal::invalid("spec.port", "must not be 0"));
        }
        match others.iter().find(|(_, other)| other.port == spec.port) {
            Some((name, _)) => Err(Refusal::Precondition(format!("port taken by {name}"))),
            None => Ok(()),
        }
    }

    fn run(&self, worker: &Worker<Spec, Live>) {
        worker.live().starts.fetch_add(1, Relaxed);
        let mut generation = 0;
        loop {
            if worker.stop_requested()
                && (worker.spec().behaviour != 2 || worker.live().release.load(Relaxed))
            {
                return;
            }
            if worker.generation() != generation {
                let (seen, spec) = worker.current();
                generation = seen;
                worker.live().port.store(spec.port.into(), Relaxed);
                if spec.behaviour == 1 {
                    return worker.set_state(State::Failed, "told to fail");
                }
                worker.set_state(State::Running, "");
            }
            let mut fds = [PollFd::from_borrowed_fd(worker.wake_fd(), PollFlags::IN)];
            let timeout = Duration::from_millis(if worker.stop_requested() { 1 } else { 10_000 });
            let timeout = rustix::time::Timespec {
                tv_sec: timeout.as_secs() as i64,
                tv_nsec: timeout.subsec_nanos().into(),
            };
            poll(&mut fds, Some(&timeout)).expect("poll");
            worker.live().wakes.fetch_add(1, Relaxed);
        }
    }

    fn removed(&self, name: &str, _: &Spec) {
        lock(&self.removed).push(name.to_owned());
    }

    fn kept(&self, spec: &Spec) -> bool {
        spec.port != FLEETING
    }
}

/// A worker with this port does not come back.
const FLEETING: u32 = 9999;

fn spec(port: u32) -> Spec {
    Spec { port, behaviour: 0 }
}

fn registry(store: Option<StateFile>) -> Registry<Echo> {
    Registry::new(Echo::default(), store).expect("registry")
}

fn store(dir: &Path) -> Option<StateFile> {
    Some(StateFile::open(dir, "testd", &Notices::default()).expect("state file"))
}

/// Waits for a thread to do what it was asked for.
fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "timed out: {what}");
        thread::yield_now();
    }
}

#[test]
fn creating_the_same_again_changes_nothing_and_a_different_one_is_refused() {
    let registry = registry(None);
    let first = registry.create("a", spec(1), false).expect("create");
    let again = registry.create("a", spec(1), false).expect("same spec");
    assert!(Arc::ptr_eq(&first, &again));
    assert!(matches!(
        registry.create("a", spec(2), false),
        Err(Refusal::AlreadyExists(_))
    ));
    until("one start", || first.live().starts.load(Relaxed) == 1);
    registry.stop(Duration::from_secs(5));
}

#[test]
fn specs_are_validated_against_the_others_but_not_against_themselves() {
    let registry = registry(None);
    registry.create("a", spec(1), false).expect("create");
    assert!(matches!(
        registry.create("b", spec(1), false),
        Err(Refusal::Precondition(_))
    ));
    assert!(matches!(
        registry.create("b", spec(0), false),
        Err(Refusal::Invalid { .. })
    ));
    registry.create("b", spec(2), false).expect("create");
    let to = |port| {
        move |spec: &mut Spec| {
            spec.port = port;
            Ok(())
        }
    };
    registry.update("b", to(2), false).expect("unchanged");
    assert!(matches!(
        registry.update("b", to(1), false),
        Err(Refusal::Precondition(_))
    ));
    assert_eq!(registry.get("b").expect("get").spec().port, 2);
    registry.stop(Duration::from_secs(5));
}

#[test]
fn validate_only_starts_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let registry = registry(store(dir.path()));
    let shown = registry.create("a", spec(1), true).expect("valid");
    assert_eq!(shown.spec().port, 1);
    assert!(registry.list().is_empty());
    assert!(registry.create("a", spec(0), true).is_err());
    registry.create("a", spec(1), false).expect("create");
    let shown = registry
        .update(
            "a",
            |spec| {
                spec.port = 9;
                Ok(())
            },
            true,
        )
        .expect("valid");
    assert_eq!(
        (
            shown.spec().port,
            registry.get("a").expect("get").spec().port
        ),
        (9, 1)
    );
    registry.stop(Duration::from_secs(5));
}

#[test]
fn names_that_are_none_are_refused() {
    let registry = registry(None);
    for name in ["", "-a", ".", "a/b", "a b", "a\n", "ä", &"a".repeat(57)] {
        assert!(
            matches!(
                registry.create(name, spec(1), false),
                Err(Refusal::Invalid { .. })
            ),
            "{name:?}"
        );
    }
    registry
        .create(&"a".repeat(56), spec(1), false)
        .expect("create");
    registry
        .create("eth0.100-to:ring@2", spec(2), false)
        .expect("create");
    registry.stop(Duration::from_secs(5));
}

#[test]
fn an_update_wakes_the_worker_once_and_is_used() {
    let registry = registry(None);
    let worker = registry.create("a", spec(1), false).expect("create");
    until("first spec", || worker.live().port.load(Relaxed) == 1);
    for port in 2..100 {
        // Readers on other threads must not take the wake-up from the worker.
        worker.spec();
        registry
            .update(
                "a",
                |spec| {
                    spec.port = port;
                    Ok(())
                },
                false,
            )
            .expect("update");
        worker.spec();
        until("new spec", || {
            worker.live().port.load(Relaxed) == u64::from(port)
        });
    }
    let wakes = worker.live().wakes.load(Relaxed);
    assert!(
        wakes <= 2 * 98,
        "the wake-up is taken off when it was served: {wakes}"
    );
    registry.stop(Duration::from_secs(5));
}

#[test]
fn a_failed_worker_starts_again_when_its_spec_changes() {
    let registry = registry(None);
    let worker = registry
        .create(
            "a",
            Spec {
                port: 1,
                behaviour: 1,
            },
            false,
        )
        .expect("create");
    until("failure", || worker.state().0 == State::Failed);
    assert_eq!(worker.state().1, "told to fail");
    assert_eq!(
        registry.counts(),
        Counts {
            failed: 1,
            ..Counts::default()
        }
    );
    for _ in 0..50 {
        registry
            .update(
                "a",
                |spec| {
                    spec.behaviour = 0;
                    Ok(())
                },
                false,
            )
            .expect("mend");
        until("running", || worker.state().0 == State::Running);
        registry
            .update(
                "a",
                |spec| {
                    spec.behaviour = 1;
                    Ok(())
                },
                false,
            )
            .expect("break");
        until("failure", || worker.state().0 == State::Failed);
    }
    registry.stop(Duration::from_secs(5));
}

#[test]
fn deleting_ends_the_thread_and_frees_the_name() {
    let registry = registry(None);
    assert!(matches!(registry.delete("a"), Err(Refusal::NotFound(_))));
    let worker = registry.create("a", spec(1), false).expect("create");
    registry.delete("a").expect("delete");
    assert!(worker.deleting() && worker.wait_ended(Instant::now()));
    assert_eq!(*lock(&registry.job().removed), ["a"]);
    assert!(matches!(registry.get("a"), Err(Refusal::NotFound(_))));
    registry
        .create("a", spec(2), false)
        .expect("same name, other spec");
    registry.stop(Duration::from_secs(5));
    assert_eq!(
        lock(&registry.job().removed).len(),
        1,
        "a stop is no removal"
    );
}

#[test]
fn a_name_being_deleted_cannot_be_used_and_does_not_come_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let registry = registry(store(dir.path()));
    let worker = registry
        .create(
            "a",
            Spec {
                port: 1,
                behaviour: 2,
            },
            false,
        )
        .expect("create");
    thread::scope(|scope| {
        let deletion = scope.spawn(|| registry.delete("a"));
        until("deleting", || worker.deleting());
        assert!(matches!(
            registry.create("a", spec(1), false),
            Err(Refusal::Precondition(_))
        ));
        assert!(matches!(
            registry.update("a", |_| Ok(()), false),
            Err(Refusal::Precondition(_))
        ));
        until("off the disk", || {
            store(dir.path())
                .expect("store")
                .load::<Spec>()
                .expect("load")
                .is_empty()
        });
        worker.live().release.store(true, Relaxed);
        deletion.join().expect("join").expect("delete");
    });
    registry.stop(Duration::from_secs(5));
}

#[test]
fn specs_come_back_after_a_restart_and_bad_ones_are_kept_as_failed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let first = registry(store(dir.path()));
    for port in 1..=3 {
        first
            .create(&format!("n{port}"), spec(port), false)
            .expect("create");
    }
    first.delete("n2").expect("delete");
    first.stop(Duration::from_secs(5));
    let mut saved: BTreeMap<String, Spec> = store(dir.path()).expect("store").load().expect("load");
    saved.insert("bad".to_owned(), spec(0));
    store(dir.path()).expect("store").save(&saved);

    let second = registry(store(dir.path()));
    let names: Vec<_> = second
        .list()
        .iter()
        .map(|worker| worker.name().to_owned())
        .collect();
    assert_eq!(names, ["bad", "n1", "n3"]);
    let bad = second.get("bad").expect("get");
    assert_eq!(bad.state().0, State::Failed);
    assert!(bad.state().1.contains("must not be 0"));
    second
        .update(
            "bad",
            |spec| {
                spec.port = 7;
                Ok(())
            },
            false,
        )
        .expect("mend");
    until("running", || bad.state().0 == State::Running);
    second.stop(Duration::from_secs(5));
}

#[test]
fn what_is_not_to_be_kept_does_not_come_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let first = registry(store(dir.path()));
    first.create("a", spec(1), false).expect("create");
    first.create("b", spec(FLEETING), false).expect("create");
    first.stop(Duration::from_secs(5));
    let second = registry(store(dir.path()));
    let names = |registry: &Registry<Echo>| {
        let workers = registry.list();
        workers
            .iter()
            .map(|it| it.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&second), ["a"]);
    let fleeting = |spec: &mut Spec| {
        spec.port = FLEETING;
        Ok(())
    };
    second.update("a", fleeting, false).expect("update");
    second.stop(Duration::from_secs(5));
    assert!(names(&registry(store(dir.path()))).is_empty());
}

#[test]
fn a_stop_waits_no_longer_than_its_deadline_and_ends_changes() {
    let registry = registry(None);
    registry.create("good", spec(1), false).expect("create");
    let stubborn = registry
        .create(
            "stubborn",
            Spec {
                port: 2,
                behaviour: 2,
            },
            false,
        )
        .expect("create");
    until("running", || stubborn.state().0 == State::Running);
    let begin = Instant::now();
    registry.stop(Duration::from_millis(100));
    assert!(
        begin.elapsed() >= Duration::from_millis(100) && begin.elapsed() < Duration::from_secs(2)
    );
    assert!(
        registry
            .get("good")
            .expect("get")
            .wait_ended(Instant::now())
    );
    assert!(matches!(
        registry.create("b", spec(3), false),
        Err(Refusal::Unavailable(_))
    ));
    assert!(matches!(
        registry.delete("good"),
        Err(Refusal::Unavailable(_))
    ));
    stubborn.live().release.store(true, Relaxed);
    registry.stop(Duration::from_secs(5));
}

#[test]
fn a_worker_that_does_not_turn_its_loop_is_named() {
    let registry = registry(None);
    let worker = registry.create("a", spec(1), false).expect("create");
    until("running", || worker.state().0 == State::Running);
    // The worker sleeps in poll for 10 s; two looks without a beat in between are enough.
    until("stalled", || {
        registry.stalled(Duration::from_millis(50)) == Some("echo a".to_owned())
    });
    assert_eq!(registry.stalled(Duration::from_secs(60)), None);
    registry.stop(Duration::from_secs(5));
    assert_eq!(
        registry.stalled(Duration::ZERO),
        None,
        "a thread that has ended does not hang"
    );
}

#[test]
fn work_of_the_command_line_ends_when_it_is_no_longer_there_and_other_work_does_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let start = |work: &[(String, Spec)]| {
        let registry =
            Registry::with_command_line(Echo::default(), store(dir.path()), work).expect("start");
        for (name, spec) in work {
            registry.put(name, spec.clone()).expect("put");
        }
        registry
    };
    let names = |registry: &Registry<Echo>| -> Vec<String> {
        let workers = registry.list();
        workers.iter().map(|it| it.name().to_owned()).collect()
    };
    let work = |name: &str, port| (name.to_owned(), spec(port));
    let first = start(&[work("a", 1), work("b", 2)]);
    first.create("kept", spec(3), false).expect("create");
    first.stop(Duration::from_secs(5));
    let second = start(&[work("b", 2), work("kept", 3)]);
    assert_eq!(names(&second), ["b", "kept"]);
    assert_eq!(*lock(&second.job().removed), ["a"]);
    second.stop(Duration::from_secs(5));
    // A client had asked for it before the command line did.
    let third = start(&[]);
    assert_eq!(names(&third), ["kept"]);
    third.stop(Duration::from_secs(5));
}

#[test]
fn a_worker_for_which_there_is_no_thread_waits_and_is_tried_again() {
    let registry = registry(None);
    let worker = Arc::new(Worker::idle("echo", "a", spec(1)));
    lock(&registry.0.workers).insert("a".to_owned(), Arc::clone(&worker));
    worker.set_state(
        State::Waiting,
        "cannot start a thread: (os error 11); trying again",
    );
    registry.retry();
    assert_eq!(worker.live().starts.load(Relaxed), 0, "not at once");
    until("a further attempt", || {
        registry.retry();
        worker.live().starts.load(Relaxed) == 1
    });
    until("running", || worker.state().0 == State::Running);
    registry.retry();
    assert_eq!(worker.live().starts.load(Relaxed), 1, "it runs");
    registry.stop(Duration::from_secs(5));
}

#[test]
fn a_failure_for_want_of_descriptors_is_waiting() {
    let worker: Worker<Spec, Live> = Worker::new("echo", "a", spec(1)).expect("worker");
    worker.run_thread(|| {
        let error = std::io::Error::from_raw_os_error(24);
        worker.set_state(State::Failed, format!("cannot open a socket: {error}"));
    });
    let (state, reason) = worker.state();
    assert_eq!(state, State::Waiting);
    assert!(reason.contains("trying again"), "{reason}");
}

#[test]
fn a_spec_that_is_refused_after_a_restart_is_tried_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let saved = BTreeMap::from([("a".to_owned(), spec(7)), ("b".to_owned(), spec(7))]);
    store(dir.path()).expect("store").save(&saved);
    let registry = registry(store(dir.path()));
    let second = registry.get("b").expect("get");
    assert_eq!(second.state().0, State::Failed);
    registry.delete("a").expect("delete");
    until("it is valid now", || {
        registry.retry();
        second.state().0 == State::Running
    });
    registry.stop(Duration::from_secs(5));
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_made() {
    let registry = registry(None);
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (answer, answered) = std::sync::mpsc::channel();
    let made = registry.clone();
    let request = crate::blocking(move || {
        // The client gives up meanwhile.
        let _ = gone.recv();
        let _ = answer.send(made.create("a", spec(1), false).map(drop));
        Ok(())
    });
    let waited = tokio::time::timeout(Duration::from_millis(20), request).await;
    assert!(waited.is_err());
    go.send(()).expect("the request goes on");
    let refused = answered.recv().expect("an answer to nobody");
    assert!(
        matches!(refused, Err(Refusal::Unavailable(_))),
        "{refused:?}"
    );
    assert!(registry.list().is_empty());
    // The next request of that thread is another one.
    let made = registry.clone();
    let request = crate::blocking(move || made.create("a", spec(1), false).map(drop));
    request.await.expect("made");
    assert_eq!(registry.list().len(), 1);
    registry.stop(Duration::from_secs(5));
}
