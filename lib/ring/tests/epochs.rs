//! The books of readers go on when a ring is made anew. The truth is what the generator sent, never what the ring says.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use fluxcap_ring::*;

const SMALL: u64 = 64 << 10;
const LARGE: u64 = 4 << 20;

struct Lab {
    _temp: tempfile::TempDir,
    dir: RingDir,
    name: RingName,
}

impl Lab {
    fn new() -> Lab {
        let temp = tempfile::Builder::new()
            .prefix("fluxcap-test.")
            .tempdir_in("/dev/shm")
            .expect("a directory");
        Lab {
            dir: RingDir::new(temp.path()),
            _temp: temp,
            name: RingName::parse("Core.east").expect("a name"),
        }
    }

    fn make(&self, capacity: u64, mode: Mode, replace: bool) -> RingInfo {
        let options = CreateOptions {
            capacity,
            mode,
            replace,
            ..CreateOptions::default()
        };
        create(&self.dir, &self.name, &options).expect("made")
    }

    fn create(&self, capacity: u64) -> RingInfo {
        self.make(capacity, Mode::Overwrite, false)
    }

    fn resize(&self, capacity: u64) -> RingInfo {
        self.make(capacity, Mode::Overwrite, true)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("read");
        entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect()
    }
}

/// Sends frames that say which one they are, into whatever ring has the name.
struct Generator<'l> {
    lab: &'l Lab,
    producer: Option<Producer>,
    sent: u64,
}

impl<'l> Generator<'l> {
    fn new(lab: &'l Lab) -> Self {
        Generator {
            lab,
            producer: None,
            sent: 0,
        }
    }

    fn follow(&mut self) -> Option<&mut Producer> {
        if self
            .producer
            .as_ref()
            .is_some_and(|it| it.retired().is_some())
        {
            self.leave();
        }
        if self.producer.is_none() {
            self.producer = Producer::open(&self.lab.dir, &self.lab.name, "generator").ok();
        }
        self.producer.as_mut()
    }

    fn leave(&mut self) {
        if let Some(producer) = self.producer.take() {
            producer.close();
        }
    }

    /// Sends `count` frames, none while there is no ring.
    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let bytes = [self.sent.to_ne_bytes(); 16].concat();
            let Some(producer) = self.follow() else {
                return;
            };
            while producer
                .reserve(record_size(bytes.len()))
                .expect("a sound ring")
                .is_none()
            {
                producer
                    .wait_space(Duration::from_millis(5))
                    .expect("sound");
            }
            let reserved = producer.reserve(record_size(bytes.len()));
            let mut burst = reserved.expect("a sound ring").expect("room");
            assert!(burst.push(&Meta::default(), &[&bytes]));
            self.sent += burst.commit();
        }
    }
}

/// A reader, and what it got.
struct Sink<'l> {
    lab: &'l Lab,
    label: &'static str,
    consumer: Option<Consumer>,
    batch: Batch,
    /// The first frame that it can get.
    begun: u64,
    got: u64,
    last: Option<u64>,
}

impl<'l> Sink<'l> {
    fn new(lab: &'l Lab, label: &'static str, begun: u64) -> Self {
        let mut sink = Sink {
            lab,
            label,
            consumer: None,
            batch: Batch::new(1 << 16, 64),
            begun,
            got: 0,
            last: None,
        };
        assert!(sink.open(), "{label}");
        sink
    }

    fn open(&mut self) -> bool {
        let Lab { dir, name, .. } = self.lab;
        self.consumer = Consumer::open(dir, name, self.label, Start::Newest, true).ok();
        self.consumer.is_some()
    }

    /// Dies: nothing is given back.
    fn die(&mut self) {
        self.consumer = None;
    }

    /// Reads at most `polls` batches; false when there is nothing (yet).
    fn read(&mut self, polls: usize) -> bool {
        for _ in 0..polls {
            if self.consumer.is_none() && !self.open() {
                return false;
            }
            let consumer = self.consumer.as_mut().expect("there");
            match consumer.poll(&mut self.batch).expect("a sound ring") {
                Poll::Frames(frames) => {
                    for frame in self.batch.frames() {
                        let mut number = [0; 8];
                        number.copy_from_slice(&frame.data[..8]);
                        let number = u64::from_ne_bytes(number);
                        assert!(self.last < Some(number), "{}: twice or back", self.label);
                        self.last = Some(number);
                    }
                    self.got += frames as u64;
                    consumer.add_outcome(Outcome::Sent, frames as u64);
                }
                Poll::Empty => return false,
                Poll::Retired => {
                    if consumer.advance().expect("advanced").is_none() {
                        self.die();
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Reads all there is, and compares with what was sent: returns the frames that were lapped.
    fn close_books(&mut self, sent: u64) -> u64 {
        while self.read(100) {}
        let stats = self.consumer.as_ref().expect("there").stats();
        assert_eq!(stats.delivered, self.got, "{}", self.label);
        assert_eq!(
            self.got + stats.lapped,
            sent - self.begun,
            "{}: {stats:?}",
            self.label
        );
        assert_eq!((stats.corrupt, stats.skipped, stats.lag_frames), (0, 0, 0));
        let passed = stats.next_seq.wrapping_sub(stats.attach_seq);
        assert_eq!(passed, sent - self.begun, "{}", self.label);
        let settled = stats.outcomes.iter().filter(|(it, _)| it.is_terminal());
        assert_eq!(
            settled.map(|(_, n)| n).sum::<u64>(),
            self.got,
            "{}",
            self.label
        );
        stats.lapped
    }
}

#[test]
fn a_reader_that_stands_still_gets_everything_of_all_epochs() {
    for resizes in [1, 2, 5] {
        let lab = Lab::new();
        lab.create(LARGE);
        let mut generator = Generator::new(&lab);
        generator.send(10);
        let mut sink = Sink::new(&lab, "txd a", 10);
        for _ in 0..resizes {
            generator.send(1000);
            lab.resize(LARGE);
        }
        generator.send(1000);
        assert_eq!(sink.close_books(generator.sent), 0, "{resizes} resizes");
        assert_eq!(
            lab.files().len(),
            2,
            "earlier epochs are left: {:?}",
            lab.files()
        );
    }
}

#[test]
fn a_reader_that_was_stopped_and_started_again_goes_on_where_it_was() {
    let lab = Lab::new();
    lab.create(LARGE);
    let mut generator = Generator::new(&lab);
    let mut sink = Sink::new(&lab, "txd a", 0);
    generator.send(500);
    sink.read(3);
    sink.die();
    generator.send(500);
    lab.resize(LARGE);
    generator.send(500);
    lab.resize(SMALL * 4);
    generator.send(500);
    assert_eq!(sink.close_books(generator.sent), 0);
    // Once more, dead at the very end of an epoch.
    sink.die();
    lab.resize(LARGE);
    generator.send(500);
    assert_eq!(sink.close_books(generator.sent), 0);
    assert_eq!(lab.files().len(), 2, "{:?}", lab.files());
}

#[test]
fn a_ring_in_wait_mode_loses_nothing_when_it_is_made_anew_before_a_reader_that_stands_still() {
    let lab = Lab::new();
    lab.make(SMALL, Mode::Wait, false);
    let mut sink = Sink::new(&lab, "txd a", 0);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut generator = Generator::new(&lab);
            generator.send(100);
            lab.make(SMALL, Mode::Wait, true);
            // Many times what the ring holds: waits for the reader, which is in the ring before.
            generator.send(5000);
            lab.make(SMALL, Mode::Wait, true);
            generator.send(5000);
            generator.leave();
            generator.sent
        });
        // Long enough for the producer to fill the ring several times, did it not wait.
        std::thread::sleep(Duration::from_millis(300));
        while !sender.is_finished() {
            if !sink.read(10) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        sender.join().expect("sent")
    });
    assert_eq!(sent, 10_100);
    assert_eq!(sink.close_books(sent), 0);
}

/// A small generator of numbers, the same in each run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Frames that the places of a reader stand for, in all epochs together: what it has passed, and what is ahead of it.
fn accounted_for(lab: &Lab, label: &str) -> u64 {
    let mut epochs = Observer::open_earlier(&lab.dir, &lab.name);
    epochs.push(Observer::open(&lab.dir, &lab.name).expect("open"));
    let mut sum = 0_u64;
    for epoch in epochs {
        let stats = epoch.stats().expect("stats");
        let end = stats.last_seq + 1;
        for place in stats.readers.iter().filter(|it| it.label == label) {
            sum = sum.wrapping_add(end.wrapping_sub(place.attach_seq));
        }
    }
    sum
}

#[test]
fn a_thousand_resizes_deletions_and_re_creations_leave_no_frame_uncounted() {
    let lab = Lab::new();
    lab.create(SMALL);
    let mut generator = Generator::new(&lab);
    let mut eager = Sink::new(&lab, "eager", 0);
    let mut stopped = Sink::new(&lab, "stopped", 0);
    let mut killed = Sink::new(&lab, "killed", 0);
    let mut late: Option<Sink<'_>> = None;
    let (mut seed, mut there, mut deleted) = (0x1234_5678_9abc_def1, true, 0);
    for turn in 0..1000 {
        generator.send(random(&mut seed) % 300);
        eager.read(100);
        let luck = random(&mut seed) % 100;
        match luck {
            0..8 => while stopped.read(100) {},
            8..40 => drop(killed.read(2)),
            40..50 => killed.die(),
            _ => {}
        }
        if turn == 400 && there {
            late = Some(Sink::new(&lab, "late", generator.sent));
        } else if turn == 401 && late.is_none() {
            lab.create(SMALL);
            there = true;
            late = Some(Sink::new(&lab, "late", generator.sent));
        }
        if let Some(late) = &mut late {
            late.read(3);
        }
        if luck.is_multiple_of(7) && there {
            delete(&lab.dir, &lab.name).expect("deleted");
            (there, deleted) = (false, deleted + 1);
            // What the generator has mapped still takes frames, and they count.
        } else {
            lab.make(SMALL << (luck % 3), Mode::Overwrite, true);
            there = true;
        }
        if turn % 5 == 0 {
            tidy(&lab.dir, &lab.name, u64::MAX).expect("tidied");
        }
        if there && turn % 20 == 0 {
            for label in ["eager", "stopped", "killed"] {
                assert_eq!(
                    accounted_for(&lab, label),
                    generator.sent,
                    "{label}, turn {turn}"
                );
            }
        }
    }
    assert!(deleted > 50, "{deleted}");
    lab.make(SMALL, Mode::Overwrite, true);
    generator.send(10);
    let sent = generator.sent;
    assert!(sent > 100_000, "{sent}");
    assert_eq!(eager.close_books(sent), 0, "who always reads loses nothing");
    let lapped = stopped.close_books(sent);
    assert!(lapped > 0 && stopped.got > 0, "{lapped}");
    killed.close_books(sent);
    late.expect("there").close_books(sent);
    assert_eq!(
        lab.files().len(),
        2,
        "earlier epochs are left: {:?}",
        lab.files()
    );
}

#[test]
fn earlier_epochs_are_bounded_and_what_is_cut_off_is_lapped() {
    let lab = Lab::new();
    lab.create(LARGE);
    let mut generator = Generator::new(&lab);
    let mut sink = Sink::new(&lab, "txd a", 0);
    sink.die();
    for _ in 0..40 {
        generator.send(100);
        lab.resize(SMALL);
    }
    generator.send(100);
    let kept = |lab: &Lab| kept(&lab.dir).into_iter().next().expect("earlier epochs").1;
    let all = kept(&lab);
    assert_eq!((all.epochs, all.readers), (16, vec!["txd a".to_owned()]));
    // Half the memory: half the epochs.
    let cut = tidy(&lab.dir, &lab.name, all.bytes / 2).expect("tidied");
    assert_eq!(cut.iter().map(|it| it.frames).sum::<u64>(), 800, "{cut:?}");
    assert_eq!(kept(&lab).epochs, 8);
    let lapped = sink.close_books(generator.sent);
    assert_eq!(lapped, 32 * 100, "of 40 epochs, 8 were left");
}

#[test]
fn a_ring_whose_files_were_removed_is_left_within_a_second_and_followed() {
    for both in [true, false] {
        let lab = Lab::new();
        let old = lab.create(LARGE);
        let mut generator = Generator::new(&lab);
        let mut sink = Sink::new(&lab, "txd a", 0);
        generator.send(100);
        let path = lab.dir.path();
        std::fs::remove_file(path.join(".Core.east.readers")).expect("removed");
        if both {
            std::fs::remove_file(path.join("Core.east")).expect("removed");
        }
        let begun = Instant::now();
        let producer = generator.producer.as_ref().expect("there");
        while producer.retired().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(3), "not noticed");
            std::thread::sleep(Duration::from_millis(10));
        }
        generator.send(1);
        assert!(generator.producer.is_none());
        // Without --replace: there is no ring that this would take from anybody.
        let new = lab.create(LARGE);
        assert!(new.epoch > old.epoch);
        generator.send(100);
        let begun = Instant::now();
        while sink.got < generator.sent {
            sink.read(10);
            assert!(begun.elapsed() < Duration::from_secs(3), "not followed");
        }
        assert_eq!(sink.close_books(generator.sent), 0);
        assert_eq!(lab.files().len(), 2);
    }
}

#[test]
fn creators_that_were_killed_between_two_steps_leave_nothing_that_holds() {
    // After the old ring was kept, before the new one got its name.
    let lab = Lab::new();
    let ring = lab.create(LARGE);
    let mut generator = Generator::new(&lab);
    let mut sink = Sink::new(&lab, "txd a", 0);
    generator.send(10);
    let path = lab.dir.path();
    let kept = |what: &str| path.join(format!(".Core.east~{}{what}", ring.epoch));
    std::fs::hard_link(path.join("Core.east"), kept("")).expect("linked");
    std::fs::hard_link(path.join(".Core.east.readers"), kept(".readers")).expect("linked");
    tidy(&lab.dir, &lab.name, u64::MAX).expect("tidied");
    assert!(
        generator
            .producer
            .as_ref()
            .expect("there")
            .retired()
            .is_none()
    );
    assert_eq!(lab.files().len(), 2, "{:?}", lab.files());
    // After the new one got its name, before the old one was retired: as if another ring had been put there.
    std::fs::hard_link(path.join("Core.east"), kept("")).expect("linked");
    std::fs::hard_link(path.join(".Core.east.readers"), kept(".readers")).expect("linked");
    for file in ["Core.east", ".Core.east.readers"] {
        std::fs::remove_file(path.join(file)).expect("removed");
    }
    lab.create(LARGE);
    tidy(&lab.dir, &lab.name, u64::MAX).expect("tidied");
    assert!(
        generator
            .producer
            .as_ref()
            .expect("there")
            .retired()
            .is_some()
    );
    generator.send(10);
    sink.die();
    assert_eq!(sink.close_books(generator.sent), 0);
    assert_eq!(lab.files().len(), 2, "{:?}", lab.files());
}

#[test]
fn links_that_are_not_what_their_names_say_are_ignored_and_left_alone() {
    let lab = Lab::new();
    lab.create(LARGE);
    let mut generator = Generator::new(&lab);
    let mut sink = Sink::new(&lab, "txd a", 0);
    let path = lab.dir.path();
    std::fs::write(path.join(".Core.east~5"), b"no ring").expect("written");
    std::fs::write(path.join(".Core.east~6.readers"), vec![0; 1 << 20]).expect("written");
    symlink("/dev/zero", path.join(".Core.east~7")).expect("linked");
    symlink(".", path.join(".Core.east~8")).expect("linked");
    // A ring of another epoch than it says, and a name that is no number.
    for (from, to) in [("Core.east", ""), (".Core.east.readers", ".readers")] {
        for name in ["9", "x"] {
            let to = path.join(format!(".Core.east~{name}{to}"));
            std::fs::copy(path.join(from), to).expect("copied");
        }
    }
    let strangers = lab.files().len() - 2;
    generator.send(100);
    lab.resize(LARGE);
    generator.send(100);
    sink.die();
    assert_eq!(sink.close_books(generator.sent), 0);
    tidy(&lab.dir, &lab.name, 0).expect("tidied");
    assert_eq!(lab.files().len(), 2 + strangers, "{:?}", lab.files());
}

#[test]
fn a_deleted_ring_gives_its_memory_back_and_keeps_the_books() {
    let lab = Lab::new();
    lab.create(LARGE);
    let mut generator = Generator::new(&lab);
    let mut sink = Sink::new(&lab, "txd a", 0);
    generator.send(100);
    sink.read(1);
    sink.die();
    generator.leave();
    delete(&lab.dir, &lab.name).expect("deleted");
    tidy(&lab.dir, &lab.name, 0).expect("tidied");
    let kept = kept(&lab.dir).into_iter().next().expect("the books").1;
    assert!(kept.bytes < 1 << 20, "{kept:?}");
    assert!(!sink.open(), "there is no ring");
    lab.create(LARGE);
    generator.send(50);
    assert_eq!(sink.close_books(generator.sent), 100 - 64);
    // A reader that takes its leave while there is no ring leaves nothing behind.
    sink.die();
    generator.leave();
    delete(&lab.dir, &lab.name).expect("deleted");
    Consumer::forget(&lab.dir, &lab.name, "txd a").expect("forgotten");
    assert_eq!(lab.files(), Vec::<String>::new());
}

#[test]
fn dead_commands_give_way_before_workers_and_workers_are_counted() {
    let lab = Lab::new();
    lab.create(SMALL);
    let Lab { dir, name, .. } = &lab;
    let open = |label: &str, resume| Consumer::open(dir, name, label, Start::Newest, resume);
    let stats = || {
        Observer::open(dir, name)
            .expect("open")
            .stats()
            .expect("stats")
    };
    let readers = || -> Vec<String> { stats().readers.into_iter().map(|it| it.label).collect() };
    // The worker is the oldest of all, and dead.
    drop(open("txd a", true).expect("a place"));
    for n in 0..63 {
        drop(open(&format!("capture-{n}"), false).expect("a place"));
    }
    // A capture that lived on longest goes last, whenever it came.
    let mut lasting = open("capture-0", false).expect("a place");
    lasting.poll(&mut Batch::new(4096, 1)).expect("sound");
    let others: Vec<_> = (0..62)
        .map(|n| {
            let label = format!("capture-new-{n}");
            open(&label, false).expect("the place of a dead capture")
        })
        .collect();
    drop(lasting);
    assert!(readers().contains(&"txd a".to_owned()));
    assert!(readers().contains(&"capture-0".to_owned()));
    let _more = open("capture-more", false).expect("the place of capture-0");
    assert!(readers().contains(&"txd a".to_owned()));
    assert_eq!(stats().gone.evicted, 0);
    // Only now there is no other.
    let _last = open("txd b", true).expect("the worker's place");
    assert!(!readers().contains(&"txd a".to_owned()));
    assert_eq!(stats().gone.evicted, 1);
    let evicted = Observer::open(dir, name).expect("open").evicted();
    assert_eq!(evicted, Some(("txd a".to_owned(), "txd b".to_owned())));
    assert!(matches!(open("txd c", true), Err(Error::NoSlot { .. })));
    drop(others);
}

#[test]
fn files_that_are_no_rings_are_left_alone_and_damaged_rings_are_made_anew() {
    let lab = Lab::new();
    let path = lab.dir.path().join("Core.east");
    let foreign = |lab: &Lab| {
        for replace in [false, true] {
            let options = CreateOptions {
                capacity: SMALL,
                replace,
                ..CreateOptions::default()
            };
            let made = create(&lab.dir, &lab.name, &options);
            assert!(matches!(made, Err(Error::Foreign { .. })), "{made:?}");
        }
        let deleted = delete(&lab.dir, &lab.name);
        assert!(matches!(deleted, Err(Error::Foreign { .. })), "{deleted:?}");
    };
    for content in [&b"notes of a meeting"[..], b"", b"flux"] {
        std::fs::write(&path, content).expect("written");
        foreign(&lab);
        assert_eq!(std::fs::read(&path).expect("still there"), content);
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    foreign(&lab);
    std::fs::remove_dir(&path).expect("removed");
    symlink("elsewhere", &path).expect("linked");
    foreign(&lab);
    std::fs::remove_file(&path).expect("removed");
    // What is left of a ring is ours: cut short, written over, or without its readers.
    let damage: [&dyn Fn(); 3] = [
        &|| {
            std::fs::File::options()
                .write(true)
                .open(&path)
                .expect("open")
                .set_len(0)
                .expect("cut")
        },
        &|| std::fs::write(&path, [0xff; 8192]).expect("written"),
        &|| std::fs::remove_file(lab.dir.path().join(".Core.east.readers")).expect("removed"),
    ];
    let mut last = lab.create(SMALL).epoch;
    for damage in damage {
        damage();
        let made = lab.create(SMALL);
        assert!(made.epoch > last);
        last = made.epoch;
    }
    delete(&lab.dir, &lab.name).expect("deleted");
    assert_eq!(lab.files().len(), 0);
}

#[test]
fn a_ring_cut_short_kills_nobody_however_many_are_mapped() {
    let lab = Lab::new();
    lab.create(SMALL);
    let open = || Observer::open(&lab.dir, &lab.name).expect("open");
    let first: Vec<_> = (0..400).map(|_| open()).collect();
    let other = RingName::parse("other").expect("a name");
    let options = CreateOptions {
        capacity: SMALL,
        ..CreateOptions::default()
    };
    create(&lab.dir, &other, &options).expect("made");
    let last = Observer::open(&lab.dir, &other).expect("open");
    for file in ["other", ".other.readers"] {
        let file = std::fs::File::options()
            .write(true)
            .open(lab.dir.path().join(file));
        file.expect("open").set_len(0).expect("cut");
    }
    assert!(matches!(last.stats(), Err(Error::Poisoned { .. })));
    first.last().expect("there").stats().expect("sound");
}

#[test]
fn a_ring_that_is_being_made_is_announced_by_the_living_only() {
    let lab = Lab::new();
    let is_being_made = || fluxcap_ring::is_being_made(&lab.dir, &lab.name);
    assert!(!is_being_made());
    let announcement = Announcement::new(&lab.dir, &lab.name).expect("nobody else has");
    assert!(is_being_made());
    assert!(Announcement::new(&lab.dir, &lab.name).is_none());
    // The maker need not be the one who has announced it.
    lab.create(SMALL);
    assert!(is_being_made());
    let marker = lab.files().into_iter().find(|it| it.ends_with("~making"));
    let marker = lab.dir.path().join(marker.expect("a file"));
    drop(announcement);
    assert!(!is_being_made());
    // Of a maker who was killed the file is left, but not its lock.
    std::fs::write(&marker, "").expect("written");
    assert!(!is_being_made());
    lab.resize(LARGE);
    assert_eq!(lab.files().len(), 2, "{:?}", lab.files());
}

#[test]
fn a_creation_that_is_given_up_leaves_nothing() {
    let lab = Lab::new();
    let creation = std::sync::Arc::new(Creation::default());
    creation.cancel();
    let options = CreateOptions {
        capacity: LARGE,
        creation: Some(creation.clone()),
        ..CreateOptions::default()
    };
    let made = create(&lab.dir, &lab.name, &options);
    assert!(matches!(made, Err(Error::Cancelled { .. })), "{made:?}");
    assert_eq!(lab.files().len(), 0);
}

#[test]
fn sources_that_come_one_after_the_other_get_places_and_are_never_mixed_up() {
    let lab = Lab::new();
    lab.create(LARGE);
    let reader = Consumer::open(&lab.dir, &lab.name, "reader", Start::Newest, false);
    let mut reader = reader.expect("a place");
    let mut sent = std::collections::BTreeMap::new();
    for n in 0..100_u64 {
        let mut producer = Producer::open(&lab.dir, &lab.name, "test").expect("a producer");
        let name = format!("eth{n}");
        let source = producer.register_source(&name).expect("a place");
        assert_eq!(producer.register_source(&name).expect("its own"), source);
        assert_eq!(sent.insert(source, n), None, "a number of another");
        producer.source(source).add_received(n + 1);
        let meta = Meta {
            source,
            ..Meta::default()
        };
        for _ in 0..=n {
            let mut burst = producer
                .reserve(record_size(8))
                .expect("sound")
                .expect("room");
            assert!(burst.push(&meta, &[&n.to_ne_bytes()]));
            burst.commit();
        }
        assert_eq!(reader.source_name(source), Some(name));
        producer.close();
    }
    let mut batch = Batch::new(1 << 20, 8192);
    reader.poll(&mut batch).expect("sound");
    assert_eq!(batch.len(), 5050);
    let mut unnamed = 0;
    for frame in batch.frames() {
        let mut n = [0; 8];
        n.copy_from_slice(&frame.data[..8]);
        let n = u64::from_ne_bytes(n);
        match reader.source_name(frame.meta.source) {
            Some(name) => assert_eq!(name, format!("eth{n}")),
            None => unnamed += 1,
        }
    }
    assert!(unnamed > 0, "more sources than places");
    // The books close over all of them.
    let stats = Observer::open(&lab.dir, &lab.name)
        .expect("open")
        .stats()
        .expect("stats");
    let sum = |get: fn(&SourceStats) -> u64| stats.sources.iter().map(get).sum::<u64>();
    assert_eq!(
        (sum(|it| it.received), sum(|it| it.published)),
        (5050, 5050)
    );
    assert_eq!(stats.published_frames, 5050);
    // Those that are at work keep their places; one that is released does not.
    let mut producer = Producer::open(&lab.dir, &lab.name, "test").expect("a producer");
    let names: Vec<_> = (0..32).map(|n| format!("veth{n}")).collect();
    let all: Vec<_> = names
        .iter()
        .map(|it| producer.register_source(it).expect("a place"))
        .collect();
    assert!(matches!(
        producer.register_source("one-more"),
        Err(Error::NoSource { .. })
    ));
    producer.release_source(all[7]);
    let last = producer
        .register_source("one-more")
        .expect("the place of veth7");
    assert_eq!((last % 32, last == all[7]), (all[7] % 32, false));
}
