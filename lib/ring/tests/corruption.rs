//! Somebody scribbles over the ring while a consumer reads: no panic, no hang, and the ring is
//! quarantined with an error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use fluxcap_ring::*;

struct Victim {
    _temp: tempfile::TempDir,
    dir: RingDir,
    name: RingName,
    file: File,
    producer: Producer,
}

fn victim() -> Victim {
    let temp = tempfile::Builder::new()
        .prefix("fluxcap-test.")
        .tempdir_in("/dev/shm");
    let temp = temp.expect("a directory");
    let dir = RingDir::new(temp.path());
    let name = RingName::parse("victim").expect("a name");
    let options = CreateOptions {
        capacity: 64 << 10,
        ..CreateOptions::default()
    };
    create(&dir, &name, &options).expect("created");
    let file = File::options()
        .read(true)
        .write(true)
        .open(temp.path().join("victim"));
    let producer = Producer::open(&dir, &name, "test").expect("a producer");
    Victim {
        _temp: temp,
        dir,
        name,
        file: file.expect("the file"),
        producer,
    }
}

fn fill(producer: &mut Producer, frames: u32) {
    for n in 0..frames {
        let bytes = [7; 100];
        let mut burst = producer
            .reserve(record_size(100))
            .expect("fits")
            .expect("space");
        let meta = Meta {
            timestamp_ns: u64::from(n),
            ..Meta::default()
        };
        assert!(burst.push(&meta, &[&bytes]));
        burst.commit();
    }
}

fn flip(file: &File, at: u64, bit: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1 << bit], at)
        .expect("written");
}

/// Polls until there is nothing more; true when the ring was quarantined.
fn read_to_end(consumer: &mut Consumer, batch: &mut Batch) -> bool {
    for _ in 0..10_000 {
        let begin = Instant::now();
        match consumer.poll(batch) {
            Ok(Poll::Empty) => return false,
            Ok(_) => batch
                .frames()
                .for_each(|frame| assert!(frame.data.len() <= 1 << 20)),
            Err(Error::Quarantined { .. }) => return true,
            Err(e) => panic!("{e}"),
        }
        assert!(
            begin.elapsed() < Duration::from_millis(500),
            "a poll takes too long"
        );
    }
    panic!("the consumer never comes to an end");
}

#[test]
fn a_ring_full_of_garbage_is_quarantined() {
    let mut v = victim();
    let mut consumer =
        Consumer::open(&v.dir, &v.name, "reader", Start::Newest, false).expect("a consumer");
    let length = v.file.metadata().expect("metadata").len();
    let mut batch = Batch::new(64 << 10, 64);
    for strike in 1..=3 {
        fill(&mut v.producer, 300);
        v.file
            .write_all_at(&vec![0xa5; 64 << 10], length - (64 << 10))
            .expect("written");
        // Once or twice may be an accident: go on behind it, and count what was lost.
        assert_eq!(read_to_end(&mut consumer, &mut batch), strike == 3);
        let stats = consumer.stats();
        assert_eq!(
            stats.next_seq - stats.attach_seq,
            stats.delivered + stats.corrupt
        );
    }
    // And it stays so.
    fill(&mut v.producer, 10);
    assert!(matches!(
        consumer.poll(&mut batch),
        Err(Error::Quarantined { .. })
    ));
}

#[test]
fn every_flipped_bit_of_the_header_page_is_noticed_at_open() {
    let v = victim();
    for at in 0..128 {
        for bit in 0..8 {
            flip(&v.file, at, bit);
            let opened = Observer::open(&v.dir, &v.name);
            assert!(opened.is_err(), "byte {at} bit {bit}");
            flip(&v.file, at, bit);
            if at % 16 != 0 {
                break;
            }
        }
    }
    Observer::open(&v.dir, &v.name).expect("sound again");
}

#[test]
fn flipped_bits_of_words_and_records_harm_nobody_but_the_ring() {
    let mut batch = Batch::new(64 << 10, 64);
    let mut quarantines = 0;
    let mut v = victim();
    // The producer page, the source table, the index, the first records.
    let data_at = v.file.metadata().expect("metadata").len() - (64 << 10);
    for at in (4096..4096 + 640)
        .chain(8192..8320)
        .chain(12288..12288 + 128)
        .chain(data_at..data_at + 512)
    {
        let bit = (at % 8) as u8;
        let reader = Consumer::open(&v.dir, &v.name, "reader", Start::Oldest, false);
        let Ok(mut consumer) = reader else {
            v = victim();
            continue;
        };
        let observer = Observer::open(&v.dir, &v.name).expect("an observer");
        flip(&v.file, at, bit);
        observer.stats().expect("statistics, if not true ones");
        quarantines += u32::from(read_to_end(&mut consumer, &mut batch));
        consumer.wait(Duration::ZERO).expect("no error");
        fill(&mut v.producer, 3);
        quarantines += u32::from(read_to_end(&mut consumer, &mut batch));
        flip(&v.file, at, bit);
        fill(&mut v.producer, 3);
        read_to_end(&mut consumer, &mut batch);
        consumer.detach();
    }
    println!("{quarantines} quarantines");
}

#[test]
fn a_monkey_with_a_writable_map_stops_nobody() {
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let (mut quarantines, mut polls) = (0, 0u64);
    for _ in 0..100 {
        let mut v = victim();
        let mut consumer =
            Consumer::open(&v.dir, &v.name, "reader", Start::Oldest, false).expect("a consumer");
        let observer = Observer::open(&v.dir, &v.name).expect("an observer");
        let (file, producer) = (&v.file, &mut v.producer);
        let length = file.metadata().expect("metadata").len();
        let stop = &std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let chance = &mut chance;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    *chance ^= *chance << 13;
                    *chance ^= *chance >> 7;
                    *chance ^= *chance << 17;
                    let at = (4096 + *chance % (length - 4096 - 8)) & !7;
                    file.write_all_at(&chance.to_ne_bytes(), at)
                        .expect("written");
                }
            });
            let mut batch = Batch::new(64 << 10, 64);
            let end = Instant::now() + Duration::from_millis(20);
            while Instant::now() < end {
                fill(producer, 50);
                polls += 1;
                observer.stats().expect("statistics, if not true ones");
                if read_to_end(&mut consumer, &mut batch) {
                    quarantines += 1;
                    break;
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
    println!("{quarantines} of 100 rings quarantined, {polls} rounds");
    assert!(quarantines > 50);
}

#[test]
fn a_truncated_file_kills_nobody() {
    for length in [0, 4096, 12288] {
        let mut v = victim();
        let mut other = victim();
        let mut consumer =
            Consumer::open(&v.dir, &v.name, "reader", Start::Newest, false).expect("a consumer");
        let observer = Observer::open(&v.dir, &v.name).expect("an observer");
        fill(&mut v.producer, 100);
        v.file.set_len(length).expect("truncated");
        let mut batch = Batch::new(64 << 10, 64);
        let polled = consumer.poll(&mut batch);
        assert!(matches!(polled, Err(Error::Poisoned { .. })), "{polled:?}");
        assert!(batch.is_empty());
        // With its pages left alone, the statistics are still true.
        let stats = observer.stats();
        assert_eq!(
            matches!(stats, Err(Error::Poisoned { .. })),
            length < 12288,
            "{stats:?}"
        );
        // The producer notices at the latest after a burst into nowhere.
        let mut errors = 0;
        for _ in 0..3 {
            match v.producer.reserve(record_size(100)) {
                Ok(Some(mut burst)) => {
                    burst.push(&Meta::default(), &[&[1; 100]]);
                    burst.commit();
                }
                Ok(None) => {}
                Err(Error::Poisoned { .. }) => errors += 1,
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(errors, 2);
        // Rings next to it go on.
        let mut reader =
            Consumer::open(&other.dir, &other.name, "r", Start::Oldest, false).expect("a consumer");
        fill(&mut other.producer, 10);
        assert_eq!(reader.poll(&mut batch).expect("healthy"), Poll::Frames(10));
    }
}
