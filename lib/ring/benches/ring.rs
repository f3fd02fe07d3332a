//! Publish and consume against a plain memcpy of the same bytes in the same run.
//!
//! `cargo bench -p fluxcap-ring` is quick (under two minutes); the last table puts the ring in proportion
//! to memcpy on this machine. Figures of a machine that does something else at the same time mean little.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use fluxcap_ring::*;

const SIZES: [usize; 3] = [64, 512, 1514];
const BATCH: usize = 64;
const CAPACITY: usize = 64 << 20;
/// A buffer that no cache holds.
const MEMORY: usize = 64 << 20;

struct Place {
    _temp: tempfile::TempDir,
    dir: RingDir,
    name: RingName,
}

fn place(mode: Mode) -> Place {
    let temp = tempfile::Builder::new()
        .prefix("fluxcap-bench.")
        .tempdir_in("/dev/shm");
    let temp = temp.expect("a directory");
    let dir = RingDir::new(temp.path());
    let name = RingName::parse("bench").expect("a name");
    let options = CreateOptions {
        capacity: CAPACITY as u64,
        mode,
        ..CreateOptions::default()
    };
    create(&dir, &name, &options).expect("a ring");
    Place {
        _temp: temp,
        dir,
        name,
    }
}

/// Publishes one batch. Frames come from a source buffer as large as a NIC's ring, not from one line.
fn publish(producer: &mut Producer, source: &[u8], size: usize, turn: &mut usize) -> bool {
    let meta = Meta {
        timestamp_ns: 1,
        wire_len: 64,
        ..Meta::default()
    };
    let Some(mut burst) = producer.reserve(BATCH * record_size(size)).expect("fits") else {
        return false;
    };
    for _ in 0..BATCH {
        *turn = if *turn + 2 * size > source.len() {
            0
        } else {
            *turn + size
        };
        burst.push(&meta, &[&source[*turn..*turn + size]]);
    }
    burst.commit();
    true
}

fn one_core(c: &mut Criterion) {
    let source = vec![7u8; 1 << 20];
    for size in SIZES {
        let mut group = c.benchmark_group(format!("{size} B"));
        group.throughput(Throughput::Bytes((BATCH * size) as u64));
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        group.bench_function("memcpy", |b| {
            let (mut to, mut turn, mut at) = (vec![0u8; CAPACITY], 0, 0);
            b.iter(|| {
                for _ in 0..BATCH {
                    turn = if turn + 2 * size > source.len() {
                        0
                    } else {
                        turn + size
                    };
                    at = if at + 2 * size > to.len() {
                        0
                    } else {
                        at + size
                    };
                    to[at..at + size].copy_from_slice(black_box(&source[turn..turn + size]));
                }
                black_box(&mut to);
            });
        });
        let place = place(Mode::Overwrite);
        let mut producer = Producer::open(&place.dir, &place.name, "bench").expect("a producer");
        let mut turn = 0;
        group.bench_function("publish", |b| {
            b.iter(|| publish(&mut producer, &source, size, &mut turn));
        });
        let mut consumer =
            Consumer::open(&place.dir, &place.name, "bench", Start::Newest, false).expect("one");
        let mut batch = Batch::new(1 << 18, BATCH);
        group.bench_function("publish+consume", |b| {
            b.iter(|| {
                publish(&mut producer, &source, size, &mut turn);
                consumer.poll(&mut batch).expect("healthy");
                black_box(batch.len())
            });
        });
        group.finish();
    }
}

/// Seconds of processor time that this thread has used: other load on the machine does not count.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Frames a second of processor time of memcpy through two buffers: in and out, as the ring does.
fn memcpy_rate(size: usize, copies: usize) -> f64 {
    let source = vec![7u8; 1 << 20];
    let (mut to, mut turn, mut at) = (vec![0u8; CAPACITY], 0, 0);
    let mut back = vec![0u8; BATCH * size];
    let begin = cpu_seconds();
    let mut frames = 0u64;
    while cpu_seconds() - begin < 0.3 {
        for _ in 0..256 {
            at = if at + 2 * BATCH * size > to.len() {
                0
            } else {
                at + BATCH * size
            };
            for i in 0..BATCH {
                turn = if turn + 2 * size > source.len() {
                    0
                } else {
                    turn + size
                };
                let from = black_box(&source[turn..turn + size]);
                to[at + i * size..at + (i + 1) * size].copy_from_slice(from);
            }
            for _ in 1..copies {
                back.copy_from_slice(black_box(&to[at..at + BATCH * size]));
                black_box(&mut back);
            }
            frames += BATCH as u64;
        }
    }
    frames as f64 / (cpu_seconds() - begin)
}

/// Bytes a second that memcpy moves in memory: from one buffer to another one, both too large for the caches.
fn memory_rate() -> f64 {
    let source = vec![7u8; MEMORY];
    let mut to = vec![0u8; MEMORY];
    let begin = cpu_seconds();
    let mut bytes = 0;
    while cpu_seconds() - begin < 0.3 {
        to.copy_from_slice(black_box(&source));
        black_box(&mut to);
        bytes += MEMORY;
    }
    bytes as f64 / (cpu_seconds() - begin)
}

/// Frames a second through the ring on one core: publish a batch, consume it.
fn ring_rate(size: usize) -> f64 {
    let place = place(Mode::Overwrite);
    let source = vec![7u8; 1 << 20];
    let mut producer = Producer::open(&place.dir, &place.name, "bench").expect("a producer");
    let mut consumer =
        Consumer::open(&place.dir, &place.name, "bench", Start::Newest, false).expect("one");
    let (mut batch, mut turn) = (Batch::new(1 << 18, BATCH), 0);
    let begin = cpu_seconds();
    let mut frames = 0u64;
    while cpu_seconds() - begin < 0.3 {
        for _ in 0..256 {
            publish(&mut producer, &source, size, &mut turn);
            consumer.poll(&mut batch).expect("healthy");
            frames += batch.len() as u64;
        }
    }
    frames as f64 / (cpu_seconds() - begin)
}

/// One producer thread against consumer threads, waiting for the slowest: frames a second that
/// everybody got.
fn threads_rate(size: usize, consumers: usize) -> f64 {
    let place = place(Mode::Wait);
    let source = vec![7u8; 1 << 20];
    let mut producer = Producer::open(&place.dir, &place.name, "bench").expect("a producer");
    let (stop, least) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for index in 0..consumers {
            let label = format!("bench{index}");
            let mut consumer =
                Consumer::open(&place.dir, &place.name, &label, Start::Newest, false).expect("one");
            let (stop, least) = (&stop, &least);
            scope.spawn(move || {
                let mut batch = Batch::new(1 << 18, 1024);
                while !stop.load(Ordering::Relaxed) {
                    if consumer.poll(&mut batch).expect("healthy") == Poll::Empty {
                        consumer.wait(Duration::from_millis(10)).expect("healthy");
                    }
                }
                least.fetch_min(consumer.stats().delivered, Ordering::Relaxed);
                consumer.detach();
            });
        }
        let mut turn = 0;
        while begin.elapsed() < Duration::from_millis(600) {
            for _ in 0..16 {
                if !publish(&mut producer, &source, size, &mut turn) {
                    producer
                        .wait_space(Duration::from_millis(1))
                        .expect("healthy");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    least.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
}

fn median(run: impl FnMut() -> f64) -> f64 {
    let mut runs: Vec<f64> = std::iter::repeat_with(run).take(3).collect();
    runs.sort_by(f64::total_cmp);
    runs[1]
}

/// The last column is the bandwidth against that of memory; the one before against memcpy of the same frames in and out, which find
/// much in the caches.
fn proportions() {
    println!(
        "\n{:>6} {:>22} {:>10} {:>10} {:>10} {:>8} {:>10}",
        "size", "", "Mpps", "ns/frame", "GB/s", "ratio", "of memory"
    );
    let memory = median(memory_rate);
    println!(
        "{:>6} {:>22} {:>10} {:>10} {:>10.2} {:>8} {:>10.2}",
        "-",
        "memcpy of 64 MiB",
        "-",
        "-",
        memory / 1e9,
        "-",
        1.0
    );
    for size in SIZES {
        let row = |what: &str, rate: f64, against: f64| {
            println!(
                "{size:>6} {what:>22} {:>10.2} {:>10.1} {:>10.2} {:>8.2} {:>10.2}",
                rate / 1e6,
                1e9 / rate,
                rate * size as f64 / 1e9,
                rate / against,
                rate * size as f64 / memory
            );
        };
        let copies = median(|| memcpy_rate(size, 2));
        row("memcpy in and out", copies, copies);
        row("publish+consume", median(|| ring_rate(size)), copies);
        for consumers in [1, 2, 4] {
            let rate = median(|| threads_rate(size, consumers));
            row(&format!("threads, {consumers} consumers"), rate, copies);
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    one_core(&mut criterion);
    criterion.final_summary();
    // `cargo test --benches` only wants to know that everything runs.
    if !std::env::args().any(|a| a == "--test") {
        proportions();
    }
}
