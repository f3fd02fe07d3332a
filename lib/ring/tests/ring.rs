//! The ring as its users see it, within one process.

use std::time::Duration;

use fluxcap_ring::*;

fn options(capacity: u64) -> CreateOptions {
    CreateOptions {
        capacity,
        ..CreateOptions::default()
    }
}

fn place() -> (tempfile::TempDir, RingDir, RingName) {
    let base = if std::path::Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    };
    let temp = tempfile::Builder::new()
        .prefix("fluxcap-test.")
        .tempdir_in(base)
        .expect("a directory");
    let dir = RingDir::new(temp.path());
    (temp, dir, RingName::parse("cisco").expect("a name"))
}

fn meta(time: u64) -> Meta {
    Meta {
        timestamp_ns: time,
        wire_len: 64,
        ..Meta::default()
    }
}

/// Publishes one frame whose bytes follow from `n`.
fn publish(producer: &mut Producer, n: u64) {
    let bytes = frame(n);
    let mut burst = producer
        .reserve(record_size(bytes.len()))
        .expect("a burst")
        .expect("space");
    assert!(burst.push(
        &meta(n * 10),
        &[&bytes[..5.min(bytes.len())], &bytes[5.min(bytes.len())..]]
    ));
    assert_eq!(burst.commit(), 1);
}

fn frame(n: u64) -> Vec<u8> {
    (0..(n * 37 % 300))
        .map(|i| (n + i).to_le_bytes()[0])
        .collect()
}

#[test]
fn frames_come_out_as_they_went_in() {
    let (_temp, dir, name) = place();
    let info = create(&dir, &name, &options(1 << 20)).expect("created");
    assert_eq!(info.capacity, 1 << 20);
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer =
        Consumer::open(&dir, &name, "reader", Start::Newest, false).expect("a consumer");
    let mut batch = Batch::new(64 << 10, 256);
    let mut expected = 1;
    for n in 1..=20_000u64 {
        publish(&mut producer, n);
        if n % 100 == 0 {
            while let Poll::Frames(count) = consumer.poll(&mut batch).expect("healthy") {
                assert_eq!(count, batch.len());
                for found in batch.frames() {
                    assert_eq!((found.seq, found.data), (expected, &frame(expected)[..]));
                    assert_eq!(found.meta, meta(expected * 10));
                    expected += 1;
                }
            }
        }
    }
    assert_eq!(expected, 20_001);
    assert!(!consumer.wait(Duration::from_millis(1)).expect("healthy"));
    let stats = Observer::open(&dir, &name)
        .expect("an observer")
        .stats()
        .expect("stats");
    assert_eq!((stats.published_frames, stats.readers.len()), (20_000, 1));
    assert_eq!(stats.readers[0].delivered, 20_000);
    assert_eq!(stats.readers[0].lag_frames, 0);
}
