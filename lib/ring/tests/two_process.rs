//! A producer that is killed over and over while consumers read: nothing torn, nothing twice, nothing out
//! of order, and every frame accounted for.
//!
//! The producer is this test program itself, started again with its role in the environment.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fluxcap_ring::*;

const ROLE: &str = "FLUXCAP_RING_PRODUCER";
const KILLS: u32 = 1000;

fn name() -> RingName {
    RingName::parse("kills").expect("a name")
}

/// Length of frame `seq`: 0 to 1500 bytes, now and then 9000.
fn length(seq: u64) -> usize {
    let mixed = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    usize::try_from(if mixed.is_multiple_of(64) {
        9000
    } else {
        mixed % 1501
    })
    .expect("small")
}

/// Byte `at` of frame `seq`.
fn byte(seq: u64, at: usize) -> u8 {
    (seq.wrapping_mul(31).wrapping_add(at as u64 * 7)).to_le_bytes()[0]
}

fn fill(seq: u64, frame: &mut Vec<u8>) {
    frame.clear();
    frame.extend((0..length(seq)).map(|at| byte(seq, at)));
}

/// The producer's life: publish bursts as fast as possible until killed.
fn produce(dir: &str) {
    let dir = RingDir::new(dir);
    let mut producer = Producer::open(&dir, &name(), "victim").expect("a producer");
    let source = producer.register_source("eth0").expect("a source");
    let counters = producer.source(source);
    let mut frame = Vec::new();
    loop {
        let burst_len = 1 + producer.published() % 32;
        let first = producer.published() + 1;
        counters.add_received(burst_len);
        let mut burst = producer
            .reserve(64 << 10)
            .expect("fits")
            .expect("never waits");
        for seq in first..first + burst_len {
            fill(seq, &mut frame);
            let half = frame.len() / 2;
            let meta = Meta {
                timestamp_ns: seq,
                source,
                ..Meta::default()
            };
            let bytes = [&frame[..half], &frame[half..]];
            if !burst.push(&meta, &bytes) {
                burst.add_drop(DropReason::Other, first + burst_len - seq);
                break;
            }
        }
        burst.commit();
    }
}

/// A reader that believes nothing.
struct Checker {
    consumer: Consumer,
    batch: Batch,
    next: u64,
    delivered: u64,
    lapped: u64,
    expected: Vec<u8>,
}

impl Checker {
    fn open(dir: &RingDir, label: &str) -> Self {
        let consumer = Consumer::open(dir, &name(), label, Start::Oldest, false);
        Self {
            consumer: consumer.expect("a consumer"),
            batch: Batch::new(256 << 10, 512),
            next: 1,
            delivered: 0,
            lapped: 0,
            expected: Vec::new(),
        }
    }

    /// Reads once; false when there was nothing.
    fn step(&mut self) -> bool {
        let found = self.consumer.poll(&mut self.batch).expect("no corruption");
        self.lapped += self.batch.lapped();
        for frame in self.batch.frames() {
            assert!(
                frame.seq >= self.next,
                "frame {} came after {}",
                frame.seq,
                self.next
            );
            fill(frame.seq, &mut self.expected);
            assert_eq!(
                frame.data.len(),
                self.expected.len(),
                "length of frame {}",
                frame.seq
            );
            assert!(frame.data == self.expected, "frame {} is torn", frame.seq);
            assert_eq!(frame.meta.timestamp_ns, frame.seq);
            self.next = frame.seq + 1;
            self.delivered += 1;
        }
        !matches!(found, Poll::Empty)
    }

    fn read_until(&mut self, stop: &std::sync::atomic::AtomicBool, slow: bool) {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            if !self.step() {
                self.consumer
                    .wait(Duration::from_millis(10))
                    .expect("a healthy ring");
            } else if slow {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        while self.step() {}
    }
}

fn spawn(dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "killed_producers_leave_no_trace", "--nocapture"])
        .env(ROLE, dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("a child")
}

#[test]
fn killed_producers_leave_no_trace() {
    if let Ok(dir) = std::env::var(ROLE) {
        produce(&dir);
        return;
    }
    let temp = tempfile::Builder::new()
        .prefix("fluxcap-test.")
        .tempdir_in("/dev/shm");
    let temp = temp.expect("a directory");
    let dir = RingDir::new(temp.path());
    // Small, so that it is overwritten often.
    let options = CreateOptions {
        capacity: 1 << 20,
        ..CreateOptions::default()
    };
    create(&dir, &name(), &options).expect("a ring");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (stop, dir) = (&stop, &dir);
    let checkers: Vec<Checker> = std::thread::scope(|scope| {
        let readers: Vec<_> = [("fast", false), ("slow", true)]
            .map(|(label, slow)| {
                scope.spawn(move || {
                    let mut checker = Checker::open(dir, label);
                    checker.read_until(stop, slow);
                    checker
                })
            })
            .into_iter()
            .collect();
        kill_many(temp.path(), dir);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        readers
            .into_iter()
            .map(|r| r.join().expect("a sound reader"))
            .collect()
    });
    // The last takeover settles the books of the last victim.
    Producer::open(dir, &name(), "heir")
        .expect("the lock is free")
        .close();
    let stats = Observer::open(dir, &name())
        .expect("an observer")
        .stats()
        .expect("stats");
    for checker in &checkers {
        println!("delivered {} lapped {}", checker.delivered, checker.lapped);
        assert_eq!(checker.delivered + checker.lapped, stats.published_frames);
    }
    let received: u64 = stats.sources.iter().map(|s| s.received).sum();
    let published: u64 = stats.sources.iter().map(|s| s.published).sum();
    let drops: u64 = stats.drops.iter().map(|(_, n)| n).sum();
    println!(
        "published {published} received {received} drops {:?}",
        stats.drops
    );
    assert_eq!(published, stats.published_frames);
    assert_eq!(received, published + drops);
}

/// Starts producers and kills each at some point of its work.
fn kill_many(place: &std::path::Path, dir: &RingDir) {
    let observer = Observer::open(dir, &name()).expect("an observer");
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let mut working = 0;
    for _ in 0..KILLS {
        let before = observer.stats().expect("stats").published_frames;
        let mut child = spawn(place);
        let end = Instant::now() + Duration::from_secs(10);
        while observer.stats().expect("stats").published_frames == before {
            assert!(Instant::now() < end, "the producer does not start");
            std::thread::sleep(Duration::from_micros(200));
        }
        working += 1;
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        std::thread::sleep(Duration::from_micros(chance % 10_000));
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
    println!("{working} producers killed at work");
}
