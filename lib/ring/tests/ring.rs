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
        id: 0xffff_ff00 | u32::from(time.to_le_bytes()[0]),
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

/// Reads everything there is; returns numbers of the frames.
fn drain(consumer: &mut Consumer, batch: &mut Batch) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Poll::Frames(_) = consumer.poll(batch).expect("healthy") {
        for found in batch.frames() {
            assert_eq!(found.data, &frame(found.seq)[..]);
            seen.push(found.seq);
        }
    }
    seen
}

fn open(dir: &RingDir, name: &RingName, label: &str, start: Start) -> Consumer {
    Consumer::open(dir, name, label, start, false).expect("a consumer")
}

#[test]
fn a_lapped_consumer_counts_exactly_what_it_lost() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(64 << 10)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "slow", Start::Newest);
    let mut batch = Batch::new(64 << 10, 64);
    let mut delivered = 0;
    for n in 1..=50_000 {
        publish(&mut producer, n);
        if n % 7001 == 0 {
            delivered += drain(&mut consumer, &mut batch).len() as u64;
        }
    }
    delivered += drain(&mut consumer, &mut batch).len() as u64;
    let stats = consumer.stats();
    assert_eq!(
        (stats.delivered, stats.corrupt, stats.lag_frames),
        (delivered, 0, 0)
    );
    assert!(stats.lapped > 0);
    assert_eq!(stats.delivered + stats.lapped, 50_000);
    assert_eq!(stats.next_seq - stats.attach_seq, 50_000);
}

#[test]
fn a_wait_ring_loses_nothing() {
    let (_temp, dir, name) = place();
    let wait = CreateOptions {
        mode: Mode::Wait,
        ..options(64 << 10)
    };
    create(&dir, &name, &wait).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let consumer = open(&dir, &name, "slow", Start::Newest);
    // A dead consumer holds nobody up.
    drop(open(&dir, &name, "dead", Start::Newest));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut consumer, mut batch) = (consumer, Batch::new(8 << 10, 16));
            let mut expected = 1;
            while expected <= 30_000 {
                for seq in drain(&mut consumer, &mut batch) {
                    assert_eq!(seq, expected);
                    expected += 1;
                }
                consumer.wait(Duration::from_millis(10)).expect("healthy");
            }
            assert_eq!(consumer.stats().lapped, 0);
        });
        for n in 1..=30_000 {
            let bytes = frame(n);
            loop {
                if let Some(mut burst) = producer.reserve(record_size(bytes.len())).expect("fits") {
                    assert!(burst.push(&meta(n), &[&bytes]));
                    burst.commit();
                    break;
                }
                producer
                    .wait_space(Duration::from_millis(10))
                    .expect("healthy");
            }
        }
    });
}

#[test]
fn starts_are_where_they_were_asked_for() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(1 << 20)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut batch = Batch::new(1 << 20, 1 << 20);
    let mut first = |start| {
        let mut consumer = open(&dir, &name, "start", start);
        let seen = drain(&mut consumer, &mut batch);
        consumer.detach();
        seen.first().copied()
    };
    assert_eq!(first(Start::Oldest), None);
    for n in 1..=1000 {
        publish(&mut producer, n);
    }
    assert_eq!(first(Start::Oldest), Some(1));
    assert_eq!(first(Start::Newest), None);
    for n in 1001..=40_000 {
        publish(&mut producer, n);
    }
    let stats = Observer::open(&dir, &name)
        .expect("an observer")
        .stats()
        .expect("stats");
    let oldest = stats.first_seq;
    assert!(oldest > 30_000, "{oldest}");
    assert_eq!(first(Start::Oldest), Some(oldest));
    for seq in [
        1,
        oldest - 1,
        oldest,
        oldest + 1,
        38_777,
        39_999,
        40_000,
        40_001,
        u64::MAX,
    ] {
        let expected = (seq <= 40_000).then_some(seq.max(oldest));
        assert_eq!(first(Start::Seq(seq)), expected, "seq {seq}");
        // Frame n has time 10 n.
        let time = seq.saturating_mul(10).saturating_sub(3);
        assert_eq!(first(Start::Time(time)), expected, "time {time}");
    }
}

#[test]
fn a_dead_consumer_is_resumed_where_it_was() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(1 << 20)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "txd", Start::Newest);
    let mut batch = Batch::new(1 << 20, 100);
    for n in 1..=300 {
        publish(&mut producer, n);
    }
    assert_eq!(
        consumer.poll(&mut batch).expect("healthy"),
        Poll::Frames(100)
    );
    consumer.add_outcome(Outcome::Sent, 60);
    drop(consumer);
    let other = Consumer::open(&dir, &name, "other", Start::Oldest, true).expect("another");
    let mut again = Consumer::open(&dir, &name, "txd", Start::Newest, true).expect("resumed");
    assert_ne!(again.slot_index(), other.slot_index());
    assert_eq!(
        drain(&mut again, &mut batch),
        (101..=300).collect::<Vec<_>>()
    );
    let stats = again.stats();
    let outcome = |wanted| {
        stats
            .outcomes
            .iter()
            .find(|(o, _)| *o == wanted)
            .map(|(_, n)| *n)
    };
    assert_eq!(
        (outcome(Outcome::Sent), outcome(Outcome::Killed)),
        (Some(60), Some(40))
    );
    assert_eq!((stats.delivered, stats.attach_seq), (300, 1));
}

#[test]
fn copies_for_further_interfaces_are_part_of_what_a_killed_consumer_owes() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(1 << 20)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "txd", Start::Newest);
    (1..=100).for_each(|n| publish(&mut producer, n));
    let mut batch = Batch::new(1 << 20, 100);
    assert_eq!(
        consumer.poll(&mut batch).expect("healthy"),
        Poll::Frames(100)
    );
    // 60 frames were on their way to two interfaces each, and half of that arrived.
    consumer.add_outcome(Outcome::Copied, 60);
    consumer.add_outcome(Outcome::Sent, 60);
    drop(consumer);
    let again = Consumer::open(&dir, &name, "txd", Start::Newest, true).expect("resumed");
    let outcomes = again.stats().outcomes;
    assert!(outcomes.contains(&(Outcome::Killed, 100)), "{outcomes:?}");
    assert!(outcomes.contains(&(Outcome::Copied, 60)), "{outcomes:?}");
}

#[test]
fn a_second_producer_is_refused_by_the_name_of_the_first() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(64 << 10)).expect("created");
    let first = Producer::open(&dir, &name, "rxd eth1").expect("a producer");
    let error = Producer::open(&dir, &name, "rxd eth2").expect_err("refused");
    assert!(matches!(&error, Error::Busy { holder, .. } if holder.starts_with("rxd eth1")));
    first.close();
    Producer::open(&dir, &name, "rxd eth2").expect("free again");
}

#[test]
fn sixty_four_consumers_and_not_one_more() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(64 << 10)).expect("created");
    let label = |i: usize| format!("c{i}");
    let mut all: Vec<_> = (0..SLOTS)
        .map(|i| open(&dir, &name, &label(i), Start::Newest))
        .collect();
    let more = Consumer::open(&dir, &name, "more", Start::Newest, false);
    assert!(matches!(more, Err(Error::NoSlot { .. })));
    // A dead one makes room, also when it could still be resumed.
    drop(all.remove(17));
    assert_eq!(open(&dir, &name, "more", Start::Newest).slot_index(), 17);
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    publish(&mut producer, 1);
    let mut batch = Batch::new(4096, 16);
    for consumer in &mut all {
        assert_eq!(drain(consumer, &mut batch), [1]);
    }
    let stats = Observer::open(&dir, &name)
        .expect("an observer")
        .stats()
        .expect("stats");
    assert_eq!(stats.readers.iter().filter(|r| r.live).count(), 63);
}

#[test]
fn a_replaced_ring_is_drained_then_followed() {
    let (_temp, dir, name) = place();
    let old = create(&dir, &name, &options(64 << 10)).expect("created");
    assert!(matches!(
        create(&dir, &name, &options(64 << 10)),
        Err(Error::Exists { .. })
    ));
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "reader", Start::Newest);
    publish(&mut producer, 1);
    let replace = CreateOptions {
        replace: true,
        ..options(1 << 20)
    };
    let new = create(&dir, &name, &replace).expect("replaced");
    assert!(new.epoch > old.epoch);
    let retired = Some(Retired {
        successor: Some(new.epoch),
    });
    assert_eq!((producer.retired(), consumer.retired()), (retired, retired));
    // The producer may still finish what it had begun.
    publish(&mut producer, 2);
    let mut batch = Batch::new(4096, 16);
    assert_eq!(drain(&mut consumer, &mut batch), [1, 2]);
    assert_eq!(consumer.poll(&mut batch).expect("healthy"), Poll::Empty);
    producer.close();
    assert_eq!(consumer.poll(&mut batch).expect("healthy"), Poll::Retired);
    assert_eq!(consumer.advance().expect("healthy"), Some(0));
    let mut follower = consumer;
    assert_eq!(
        (follower.info().epoch, follower.info().capacity),
        (new.epoch, 1 << 20)
    );
    let mut producer = Producer::open(&dir, &name, "test").expect("the new ring");
    publish(&mut producer, 1);
    assert_eq!(drain(&mut follower, &mut batch), [1]);
    delete(&dir, &name).expect("deleted");
    assert_eq!(follower.retired(), Some(Retired { successor: None }));
    // The place of a live reader goes on in a ring that is made later; nobody else's.
    follower.detach();
    drop(producer);
    tidy(&dir, &name, 0).expect("tidied");
    assert!(matches!(delete(&dir, &name), Err(Error::NotFound { .. })));
    assert!(matches!(
        Producer::open(&dir, &name, "x"),
        Err(Error::NotFound { .. })
    ));
    assert_eq!(
        dir.list()
            .expect("listed")
            .iter()
            .filter(|n| !n.is_shm())
            .count(),
        0
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("read").count(),
        0,
        "leftovers"
    );
}

#[test]
fn a_ring_that_does_not_fit_is_refused_before_it_is_built() {
    let (_temp, dir, name) = place();
    let limit = CreateOptions {
        memory_limit: Some(1 << 20),
        ..options(2 << 20)
    };
    match create(&dir, &name, &limit) {
        Err(Error::NotEnoughMemory {
            needed, available, ..
        }) => {
            assert_eq!(available, 1 << 20);
            assert_eq!(needed, footprint(&dir, 2 << 20).expect("a footprint"));
        }
        other => panic!("{other:?}"),
    }
    let huge = create(&dir, &name, &options(8 << 40));
    assert!(matches!(huge, Err(Error::NotEnoughMemory { .. })));
    assert!(matches!(
        create(&dir, &name, &options(1)),
        Err(Error::InvalidCapacity { .. })
    ));
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("read").count(),
        0,
        "leftovers"
    );
}

#[test]
fn of_many_creators_one_wins_and_nobody_sees_half_a_ring() {
    let (_temp, dir, name) = place();
    for _ in 0..20 {
        let won = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| match create(&dir, &name, &options(64 << 10)) {
                    Ok(_) => drop(won.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                    Err(Error::Exists { .. }) => {}
                    Err(e) => panic!("{e}"),
                });
            }
            scope.spawn(|| {
                loop {
                    match Observer::open(&dir, &name) {
                        Ok(ring) => break drop(ring.stats().expect("a whole ring")),
                        Err(Error::NotFound { .. }) => std::thread::yield_now(),
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        });
        assert_eq!(won.into_inner(), 1);
        delete(&dir, &name).expect("deleted");
    }
}

#[test]
fn positions_pass_every_border() {
    for base in [
        (1u64 << 32) - 4096,
        (1 << 63) - 4096,
        0u64.wrapping_sub(4096),
    ] {
        let (_temp, dir, name) = place();
        let options = CreateOptions {
            base_pos: Some(base),
            ..options(64 << 10)
        };
        create(&dir, &name, &options).expect("created");
        let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
        let mut consumer = open(&dir, &name, "reader", Start::Oldest);
        let mut batch = Batch::new(64 << 10, 64);
        for n in 1..=2000u64 {
            publish(&mut producer, n);
            if n == 1000 {
                producer.close();
                producer = Producer::open(&dir, &name, "test").expect("a producer");
            }
            assert_eq!(drain(&mut consumer, &mut batch), [n]);
        }
        let late = drain(&mut open(&dir, &name, "late", Start::Oldest), &mut batch);
        assert_eq!(late.last(), Some(&2000));
    }
}

#[test]
fn a_shm_ring_lives_without_its_creator() {
    let dir = RingDir::new("/nonexistent");
    let name = RingName::parse(&format!("shm:test-{}", std::process::id())).expect("a name");
    let info = create(&dir, &name, &options(64 << 10)).expect("created");
    assert_eq!(info.backing, Backing::Shm);
    assert!(dir.list().expect("listed").contains(&name));
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "reader", Start::Newest);
    publish(&mut producer, 1);
    assert_eq!(drain(&mut consumer, &mut Batch::new(4096, 16)), [1]);
    delete(&dir, &name).expect("deleted");
    assert!(!dir.list().expect("listed").contains(&name));
}

#[test]
fn losses_are_told_in_their_place() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(64 << 10)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer = open(&dir, &name, "reader", Start::Newest);
    assert_eq!(producer.register_source("eth0").expect("room"), 0);
    assert_eq!(producer.register_source("eth1").expect("room"), 1);
    assert_eq!(producer.register_source("eth0").expect("room"), 0);
    let mut burst = producer.reserve(4096).expect("fits").expect("space");
    assert!(burst.push(&Meta::default(), &[b"a"]));
    assert!(burst.push_loss(1, 940, 7));
    assert!(burst.push(
        &Meta {
            source: 1,
            ..Meta::default()
        },
        &[b"b"]
    ));
    assert_eq!(burst.commit(), 2);
    // What is not committed never was.
    let mut burst = producer.reserve(4096).expect("fits").expect("space");
    assert!(burst.push(&Meta::default(), &[b"never"]));
    drop(burst);
    let mut batch = Batch::new(4096, 16);
    assert_eq!(consumer.poll(&mut batch).expect("healthy"), Poll::Frames(2));
    assert_eq!(
        batch.losses(),
        [Loss {
            source: 1,
            count: 940,
            timestamp_ns: 7
        }]
    );
    assert_eq!(batch.get(1).map(|f| (f.seq, f.data)), Some((2, &b"b"[..])));
    assert_eq!(consumer.poll(&mut batch).expect("healthy"), Poll::Empty);
    assert_eq!(consumer.source_name(1).as_deref(), Some("eth1"));
    assert_eq!(consumer.source_name(2), None);
    let stats = Observer::open(&dir, &name)
        .expect("an observer")
        .stats()
        .expect("stats");
    assert_eq!(
        stats
            .sources
            .iter()
            .map(|s| s.published)
            .collect::<Vec<_>>(),
        [1, 1]
    );
}

#[test]
fn a_sleeper_is_woken_by_a_publication() {
    let (_temp, dir, name) = place();
    create(&dir, &name, &options(64 << 10)).expect("created");
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let (mut a, mut b) = (
        open(&dir, &name, "a", Start::Newest),
        open(&dir, &name, "b", Start::Newest),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=2000 {
                publish(&mut producer, n);
                if n % 16 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let (mut batch, mut seen) = (Batch::new(64 << 10, 64), [0, 0]);
        while seen != [2000, 2000] {
            wait_any(&[&a, &b], Duration::from_millis(10)).expect("healthy");
            for (consumer, seen) in [&mut a, &mut b].into_iter().zip(&mut seen) {
                *seen += drain(consumer, &mut batch).len() as u64 + batch.lapped();
                let stats = consumer.stats();
                *seen = stats.delivered + stats.lapped;
            }
        }
    });
}

#[test]
fn a_replacement_whose_author_died_halfway_is_finished_by_the_next_user() {
    let (_temp, dir, name) = place();
    let (_other, elsewhere, _) = place();
    create(&dir, &name, &options(64 << 10)).expect("the old ring");
    let mut consumer = open(&dir, &name, "reader", Start::Newest);
    let new = create(&elsewhere, &name, &options(1 << 20)).expect("the new ring");
    // What is there after the first of the two renames.
    let (from, to) = (elsewhere.path(), dir.path());
    std::fs::rename(from.join("cisco"), to.join(".cisco.next")).expect("renamed");
    std::fs::rename(from.join(".cisco.readers"), to.join(".cisco.readers")).expect("renamed");
    let follower = open(&dir, &name, "reader", Start::Newest);
    assert_eq!(follower.info().epoch, new.epoch);
    assert_eq!(
        consumer.retired(),
        Some(Retired {
            successor: Some(new.epoch)
        })
    );
    let retired = consumer.poll(&mut Batch::new(4096, 16)).expect("healthy");
    assert_eq!(retired, Poll::Retired);
    assert_eq!(std::fs::read_dir(to).expect("read").count(), 2, "leftovers");
}

/// Both sides may move to a thread of their own.
#[test]
fn both_sides_are_send() {
    fn send<T: Send>() {}
    send::<Producer>();
    send::<Consumer>();
    send::<Batch>();
    send::<SourceCounters>();
    send::<Observer>();
}
