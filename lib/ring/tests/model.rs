//! The protocol against a model: random operations, starting at positions near every border.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

use fluxcap_ring::protocol::{
    Copied, Geometry, Head, HeapWords, Kind, Parsed, Reader, Word, Words, Writer,
};
use proptest::prelude::*;

/// What happens to the ring.
#[derive(Debug, Clone)]
enum Step {
    /// Publish frames of these lengths, having reserved this much more than they need.
    Publish(Vec<u16>, u16),
    /// Begin the same and forget it.
    Abandon(Vec<u16>),
    /// Begin the same and be killed; another producer takes over.
    Killed(Vec<u16>),
    /// A consumer reads so many times, at most so many words at once.
    Read(usize, u8, u16),
    /// A consumer looks for the record at or after a place in the last lap.
    Find(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(prop_oneof![0u16..200, 0u16..2000], 1..8);
    prop_oneof![
        5 => (lengths(), 0u16..3000).prop_map(|(l, more)| Step::Publish(l, more)),
        1 => lengths().prop_map(Step::Abandon),
        1 => lengths().prop_map(Step::Killed),
        4 => (0usize..3, 1u8..6, 2u16..600).prop_map(|(r, n, w)| Step::Read(r, n, w)),
        1 => any::<u16>().prop_map(Step::Find),
    ]
}

fn base() -> impl Strategy<Value = u64> {
    let near = |border: u64| (0u64..40).prop_map(move |n| border.wrapping_sub(n * 4096));
    prop_oneof![near(1 << 32), near(1 << 63), near(0), near(1 << 40)]
}

/// Capacities that are and are not multiples of a block, and not powers of two.
fn geometry() -> impl Strategy<Value = Geometry> {
    (base(), 16u64..40, 10u32..13).prop_map(|(base, pages, sync_shift)| {
        let capacity = pages * 4096;
        Geometry {
            base,
            capacity,
            max_record: (capacity / 8) & !15,
            max_burst: (capacity / 4) & !15,
            sync_shift,
        }
    })
}

fn head(seq: u64, length: u16) -> Head {
    Head {
        kind: Kind::Data,
        len: 32 + u32::from(length),
        time_ns: seq * 3,
        ..Head::EMPTY
    }
}

fn payload(seq: u64, length: u16) -> Vec<u8> {
    (0..u64::from(length))
        .map(|i| (seq * 31 + i * 7).to_le_bytes()[0])
        .collect()
}

/// The ring, its producer, and what is true about it.
struct World {
    geometry: Geometry,
    words: HeapWords,
    writer: Writer,
    /// Length of every published frame.
    truth: Vec<u16>,
    readers: Vec<(Reader, u64)>,
}

impl World {
    fn new(geometry: Geometry) -> Self {
        let words = HeapWords::new(&geometry);
        let writer = Writer::take_over(&words, geometry).expect("a fresh ring");
        let readers = (0..3)
            .map(|_| (Reader::new(geometry, geometry.base, 1), 0))
            .collect();
        Self {
            geometry,
            words,
            writer,
            truth: Vec::new(),
            readers,
        }
    }

    /// Begins a burst and writes as many of the frames as fit.
    fn write(&mut self, lengths: &[u16], more: u16) -> Vec<u16> {
        let needed: u64 = lengths.iter().map(|&l| head(0, l).total()).sum();
        let bytes = ((needed + u64::from(more)) & !15).min(self.geometry.max_burst);
        self.writer.begin(&self.words, bytes);
        let mut written = Vec::new();
        for &length in lengths {
            let seq = (self.truth.len() + written.len()) as u64 + 1;
            let bytes = payload(seq, length);
            let (a, b) = bytes.split_at(bytes.len() / 3);
            if !self.writer.push(&self.words, head(seq, length), &[a, b]) {
                break;
            }
            written.push(length);
        }
        written
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Publish(lengths, more) => {
                let written = self.write(lengths, *more);
                self.writer.publish(&self.words);
                self.truth.extend(written);
            }
            Step::Abandon(lengths) => {
                self.write(lengths, 0);
                self.writer.abandon();
            }
            Step::Killed(lengths) => {
                self.write(lengths, 64);
                let next = Writer::take_over(&self.words, self.geometry).expect("a takeover");
                assert_eq!(next.published().seq, self.truth.len() as u64);
                self.writer = next;
            }
            Step::Read(reader, polls, words) => {
                for _ in 0..*polls {
                    self.read(*reader, usize::from(*words));
                }
            }
            Step::Find(place) => self.find(*place),
        }
    }

    /// One poll; false when there was nothing.
    fn read(&mut self, index: usize, words: usize) -> bool {
        let (reader, delivered) = &mut self.readers[index];
        let mut span = vec![0; words];
        match reader.copy(&self.words, &mut span) {
            Copied::Idle => return false,
            Copied::Lapped => reader.resync_after_lap(&self.words),
            Copied::Broken(reason) => panic!("{reason}"),
            Copied::Span(length) => {
                let mut at = 0;
                while at < length {
                    match reader.next(&span[..length], at) {
                        Parsed::Record(head, used) => {
                            if head.kind == Kind::Data {
                                check(&self.truth, &head, &span[at..at + used]);
                                *delivered += 1;
                            }
                            at += used;
                        }
                        Parsed::Partial(needed) if at == 0 => {
                            return self.read(index, needed);
                        }
                        Parsed::Partial(_) => break,
                        Parsed::Broken(reason) => panic!("{reason}"),
                    }
                }
            }
        }
        true
    }

    /// Whatever the index names is a true record at or after the place.
    fn find(&self, place: u16) {
        let commit = self.writer.published().pos;
        let back = ((u64::from(place) * self.geometry.capacity) >> 16) & !15;
        let published = commit.wrapping_sub(self.geometry.base);
        let target = commit.wrapping_sub(back.min(published));
        let (reader, _) = &self.readers[0];
        if let Some((pos, head)) = reader.find(&self.words, commit, target) {
            assert!(pos.wrapping_sub(target) < commit.wrapping_sub(target));
            if head.kind == Kind::Data {
                let mut span = vec![0; head.total() as usize / 8];
                self.words.read(self.geometry.offset(pos), &mut span);
                check(&self.truth, &head, &span);
            }
        }
    }

    /// Everybody reads to the end: each frame was delivered or counted as lapped.
    fn settle(&mut self) {
        for index in 0..self.readers.len() {
            while self.read(index, 300) {}
            let (reader, delivered) = &self.readers[index];
            assert_eq!(reader.pos(), self.writer.published().pos);
            assert_eq!(delivered + reader.lapped(), self.truth.len() as u64);
            assert_eq!(reader.corrupt(), 0);
        }
    }
}

fn check(truth: &[u16], head: &Head, record: &[u64]) {
    let length = truth[head.seq as usize - 1];
    assert_eq!(
        (head.len, head.time_ns),
        (32 + u32::from(length), head.seq * 3)
    );
    let bytes: Vec<u8> = record[6..].iter().flat_map(|w| w.to_ne_bytes()).collect();
    assert_eq!(bytes[..usize::from(length)], payload(head.seq, length));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_is_delivered_in_order_or_counted(
        geometry in geometry(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(geometry);
        for step in &steps {
            world.apply(step);
        }
        world.settle();
    }

    /// Words and records are overwritten with anything: no panic, no endless loop, and
    /// no record that is longer than it may be.
    #[test]
    fn garbage_is_refused(
        geometry in geometry(),
        steps in prop::collection::vec(step(), 1..60),
        garbage in prop::collection::vec((any::<u32>(), any::<u64>(), 0u8..20), 1..60),
    ) {
        let mut world = World::new(geometry);
        for step in &steps {
            if let Step::Publish(..) = step {
                world.apply(step);
            }
        }
        for (word, value, kind) in garbage {
            match kind {
                0 => world.words.store(Word::Commit, value, std::sync::atomic::Ordering::Release),
                1 => world.words.store(Word::Reserve, value, std::sync::atomic::Ordering::Relaxed),
                2 => world.words.store(Word::Ledger(word as usize % 8), value, std::sync::atomic::Ordering::Relaxed),
                3 => world.words.store(Word::Sync(u64::from(word) % geometry.blocks()), value & !15, std::sync::atomic::Ordering::Relaxed),
                _ => world.words.corrupt(word as usize, 1 << (value % 64)),
            }
            let (reader, _) = &mut world.readers[usize::from(kind) % 3];
            let mut span = vec![0; 512];
            match reader.copy(&world.words, &mut span) {
                Copied::Idle => {}
                Copied::Lapped => reader.resync_after_lap(&world.words),
                Copied::Broken(_) => reader.resync_after_corruption(&world.words),
                Copied::Span(length) => {
                    let mut at = 0;
                    while at < length {
                        match reader.next(&span[..length], at) {
                            Parsed::Record(head, used) => {
                                prop_assert!(used >= 2 && head.total() <= geometry.max_record);
                                at += used;
                            }
                            Parsed::Partial(needed) => {
                                prop_assert!(needed as u64 * 8 <= geometry.max_record);
                                break;
                            }
                            Parsed::Broken(_) => {
                                reader.resync_after_corruption(&world.words);
                                break;
                            }
                        }
                    }
                }
            }
            let _ = Writer::take_over(&world.words, geometry).is_err();
        }
    }
}
