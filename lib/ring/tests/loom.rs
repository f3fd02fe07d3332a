//! Every interleaving of the protocol under loom's memory model, with small rings.
//!
//! The code under test is that of production; only the memory below it is loom's. Each [`Fault`] makes that
//! memory behave as if one ordering or one step of the protocol were missing: every one
//! of them must be caught, which shows that the checks can fail.
//!
//! What loom cannot see: copies that are not words, other processes, real hardware.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicUsize, Ordering as StdOrdering};
use std::time::Duration;

use fluxcap_ring::protocol::{
    Account, Copied, DATA_BELL, Fence, Geometry, Head, Kind, Parsed, Reader, Slept, Word, Words,
    Writer, ledger_at,
};
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A defect of the protocol that must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    NoWriterFence,
    NoReaderFence,
    RelaxedCommit,
    RelaxedCommitLoad,
    ReserveMovedBack,
    PadWithoutHeader,
    OneLedgerEntry,
    IndexNotWiped,
    NoTurnFence,
    NoAccountFence,
    RelaxedTurn,
    TicketAfterLook,
    WakeNotBumped,
    NoRingerFence,
    NoSleeperFence,
}

/// A ring in loom's memory.
struct LoomWords {
    fault: Fault,
    words: Vec<AtomicU64>,
    data: Vec<AtomicU64>,
    /// Stores that the present process still makes before it is killed.
    life: std::sync::atomic::AtomicIsize,
    futex: Mutex<()>,
    woken: Condvar,
}

const SYNC_AT: usize = 32;

impl LoomWords {
    fn new(fault: Fault, geometry: &Geometry) -> Self {
        let zeroed = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        let mut memory = Self {
            // A fault begins when the ring is in order.
            fault: Fault::None,
            words: zeroed(SYNC_AT as u64 + geometry.blocks()),
            data: zeroed(geometry.capacity / 8),
            life: std::sync::atomic::AtomicIsize::new(isize::MAX),
            futex: Mutex::new(()),
            woken: Condvar::new(),
        };
        Writer::format(&memory, geometry);
        memory.fault = fault;
        memory
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        let index = match word {
            Word::Reserve => 0,
            Word::Commit => 1,
            Word::Wake => 2,
            Word::Waiting => 3,
            Word::SpaceWake => 4,
            Word::SpaceWaiting => 5,
            Word::Turn(_) => 6,
            Word::Ledger(i) if self.fault == Fault::OneLedgerEntry => 8 + i % 4,
            Word::Ledger(i) => 8 + i,
            Word::Account { index, .. } => 16 + index,
            Word::Sync(block) => SYNC_AT + block as usize,
        };
        &self.words[index]
    }

    /// Whether the process still lives to make this store.
    fn lives(&self) -> bool {
        self.life.fetch_sub(1, StdOrdering::Relaxed) > 0
    }

    fn die_after(&self, stores: isize) {
        self.life.store(stores, StdOrdering::Relaxed);
    }

    /// Whether the process had been killed.
    fn dead(&self) -> bool {
        self.life.load(StdOrdering::Relaxed) < 0
    }

    fn weaken(&self, word: Word, order: Ordering) -> Ordering {
        let relaxed = match self.fault {
            Fault::RelaxedCommit => word == Word::Commit && order == Ordering::Release,
            Fault::RelaxedCommitLoad => word == Word::Commit && order == Ordering::Acquire,
            Fault::RelaxedTurn => matches!(word, Word::Turn(_)) && order == Ordering::Release,
            _ => false,
        };
        if relaxed { Ordering::Relaxed } else { order }
    }
}

impl Words for LoomWords {
    const PATIENCE: u32 = 2;

    fn load(&self, word: Word, order: Ordering) -> u64 {
        self.word(word).load(self.weaken(word, order))
    }

    fn store(&self, word: Word, value: u64, order: Ordering) {
        if !self.lives() {
            return;
        }
        let wiping = matches!(word, Word::Sync(_)) && self.fault == Fault::IndexNotWiped;
        if wiping && self.word(word).load(Ordering::Relaxed) > value {
            return;
        }
        self.word(word).store(value, self.weaken(word, order));
    }

    fn swap(&self, word: Word, value: u64, order: Ordering) -> u64 {
        self.word(word).swap(value, self.weaken(word, order))
    }

    fn add(&self, word: Word, value: u64, order: Ordering) {
        if self.fault != Fault::WakeNotBumped {
            self.word(word).fetch_add(value, self.weaken(word, order));
        }
    }

    fn fence(&self, at: Fence) {
        let missing = match self.fault {
            Fault::NoWriterFence => at == Fence::ReserveBeforeData,
            Fault::NoReaderFence => at == Fence::DataBeforeReserve,
            Fault::NoTurnFence => at == Fence::TurnBeforeAccount,
            Fault::NoAccountFence => at == Fence::AccountBeforeTurn,
            Fault::NoRingerFence => at == Fence::WorkBeforeWaiting,
            Fault::NoSleeperFence => at == Fence::WaitingBeforeWork,
            _ => false,
        };
        if !missing {
            fence(at.ordering());
        }
    }

    fn write(&self, offset: u64, head: &[u64], _pieces: &[&[u8]]) {
        if self.fault == Fault::PadWithoutHeader && head.len() == 2 {
            return;
        }
        for (i, &word) in head.iter().enumerate() {
            if !self.lives() {
                return;
            }
            let at = (offset as usize / 8 + i) % self.data.len();
            self.data[at].store(word, Ordering::Relaxed);
        }
    }

    fn read(&self, offset: u64, into: &mut [u64]) {
        for (i, word) in into.iter_mut().enumerate() {
            let at = (offset as usize / 8 + i) % self.data.len();
            *word = self.data[at].load(Ordering::Relaxed);
        }
    }

    /// What futex(2) does: compare and sleep are one step against a wake.
    fn sleep(&self, word: Word, expected: u32, _timeout: Duration) -> Slept {
        let guard = self.futex.lock().expect("the lock of the model");
        let now = self.word(word).load(Ordering::Relaxed);
        // Reading the ticket only now is the same as not comparing.
        if now as u32 == expected || self.fault == Fault::TicketAfterLook {
            // No time-out in the model: a lost wake-up is a deadlock, which loom reports.
            drop(self.woken.wait(guard).expect("the lock of the model"));
        }
        Slept::Woken
    }

    fn wake(&self, _word: Word) {
        drop(self.futex.lock().expect("the lock of the model"));
        self.woken.notify_all();
    }
}

/// Frames without bytes, 48 bytes a record; `records` of them fill the ring.
fn geometry(records: u64, burst: u64) -> Geometry {
    Geometry {
        base: 1 << 40,
        capacity: 48 * records,
        max_record: 48 * burst,
        max_burst: 48 * burst,
        sync_shift: 5,
    }
}

/// A frame all of whose fields follow from its number.
fn frame(seq: u64) -> Head {
    Head {
        kind: Kind::Data,
        len: 32,
        time_ns: seq * 3,
        wire_len: seq as u32 * 5,
        flow_hash: seq as u32 * 7,
        id: seq as u32 * 11,
        ..Head::EMPTY
    }
}

fn burst(writer: &mut Writer, words: &LoomWords, frames: u64) {
    writer.begin(words, 48 * frames);
    let last = writer.published().seq;
    for seq in last + 1..=last + frames {
        assert!(writer.push(words, frame(seq), &[]));
    }
    writer.publish(words);
}

/// Reads at most `polls` times and checks whatever comes out. Returns the frames delivered.
fn read(reader: &mut Reader, words: &LoomWords, polls: usize) -> u64 {
    let mut delivered = 0;
    let mut span = [0; 6];
    for poll in 1..=polls {
        match reader.copy(words, &mut span) {
            Copied::Idle => break,
            // Of a last poll, the next one will notice it again.
            Copied::Lapped if poll == polls => break,
            Copied::Lapped => reader.resync_after_lap(words),
            Copied::Broken(reason) => panic!("{reason}"),
            Copied::Span(length) => {
                let expected = reader.next_seq();
                match reader.next(&span[..length], 0) {
                    Parsed::Record(head, _) if head.kind == Kind::Data => {
                        let whole = Head {
                            seq: head.seq,
                            ..frame(head.seq)
                        };
                        assert_eq!(head, whole, "torn");
                        assert!(head.seq >= expected, "reordered or duplicated");
                        delivered += 1;
                    }
                    Parsed::Record(..) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    delivered
}

/// Runs the model and returns how many executions it took.
fn explore(bound: usize, model: impl Fn() + Sync + Send + 'static) -> usize {
    let executions = StdArc::new(AtomicUsize::new(0));
    let count = StdArc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.max_branches = 10_000;
    builder.check(move || {
        count.fetch_add(1, StdOrdering::Relaxed);
        model();
    });
    executions.load(StdOrdering::Relaxed)
}

/// Names the fault that a child process is to run.
const CHILD: &str = "FLUXCAP_LOOM_FAULT";

/// The model must hold without a fault and must fail with each of the others.
///
/// A failing model may take its whole process down, so each runs in a process of its own: this test
/// once more, with the fault in its environment.
fn holds_and_catches(test: &str, faults: &[Fault], model: impl Fn(Fault) -> usize) {
    if let Ok(wanted) = std::env::var(CHILD) {
        let fault = faults.iter().find(|f| format!("{f:?}") == wanted);
        model(*fault.expect("a fault"));
        return;
    }
    println!("{test}: {} executions hold", model(Fault::None));
    for &fault in faults {
        assert!(is_caught(test, fault), "{test}: {fault:?} was not caught");
        println!("{test}: {fault:?} caught");
    }
}

/// Whether this test, run with the fault, fails.
fn is_caught(test: &str, fault: Fault) -> bool {
    let me = std::env::current_exe().expect("the name of this program");
    let run = std::process::Command::new(me)
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, format!("{fault:?}"))
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("this program runs");
    // It was the model that failed, not the start of the child.
    !run.status.success() && String::from_utf8_lossy(&run.stderr).contains("panicked at")
}

/// One thread publishes over what another one reads, or right before it: that begins after `skip` frames.
fn overwrite(fault: Fault, skip: u64) {
    let geometry = geometry(2, 1);
    let words = Arc::new(LoomWords::new(fault, &geometry));
    let mut writer = Writer::take_over(words.as_ref(), geometry).expect("a fresh ring");
    burst(&mut writer, &words, 1);
    let theirs = Arc::clone(&words);
    let producer = thread::spawn(move || {
        burst(&mut writer, &theirs, 1);
        burst(&mut writer, &theirs, 1);
        writer
    });
    let mut reader = Reader::new(geometry, geometry.base + 48 * skip, 1 + skip);
    let mut delivered = skip + read(&mut reader, &words, 1);
    let writer = producer.join().expect("the producer");
    delivered += read(&mut reader, &words, 4);
    assert_eq!(
        delivered + reader.lapped(),
        writer.published().seq,
        "not accounted for"
    );
    assert_eq!(
        (reader.corrupt(), reader.pos()),
        (0, writer.published().pos)
    );
}

#[test]
fn a_frame_is_read_whole_or_counted_as_lapped() {
    use Fault::*;
    let faults = [
        NoWriterFence,
        NoReaderFence,
        RelaxedCommit,
        RelaxedCommitLoad,
    ];
    holds_and_catches(
        "a_frame_is_read_whole_or_counted_as_lapped",
        &faults,
        |fault| explore(3, move || overwrite(fault, 0)) + explore(3, move || overwrite(fault, 1)),
    );
}

/// Stores that a burst of two frames makes, plus one: at this many it is not killed at all.
const STORES: isize = 24;

/// The producer of a burst of two is killed after its `step`th store while a reader is about to
/// be lapped; a successor takes over and publishes a shorter burst.
fn killed(fault: Fault, step: isize) {
    let geometry = geometry(4, 2);
    let words = Arc::new(LoomWords::new(fault, &geometry));
    let mut writer = Writer::take_over(words.as_ref(), geometry).expect("a fresh ring");
    burst(&mut writer, &words, 2);
    burst(&mut writer, &words, 2);
    let theirs = Arc::clone(&words);
    let producer = thread::spawn(move || {
        theirs.die_after(step);
        burst(&mut writer, &theirs, 2);
        let dead = theirs.dead();
        theirs.die_after(isize::MAX);
        if dead && theirs.fault == Fault::ReserveMovedBack {
            let commit = theirs.load(Word::Commit, Ordering::Relaxed);
            theirs.store(Word::Reserve, commit, Ordering::Relaxed);
        }
        let mut writer = Writer::take_over(theirs.as_ref(), geometry).expect("a takeover");
        burst(&mut writer, &theirs, 1);
        writer
    });
    // At the second frame: the killed burst overwrites it, the shorter one does not.
    let mut reader = Reader::new(geometry, geometry.base + 48, 2);
    let mut delivered = read(&mut reader, &words, 1);
    let writer = producer.join().expect("the producer");
    // Go on at the place that the index gives for each position: it must be a true record.
    let commit = writer.published().pos;
    for back in 0..4 {
        if let Some((pos, head)) = reader.find(words.as_ref(), commit, commit - 48 * (back + 1)) {
            let beyond = writer.published().seq;
            assert!(
                head.kind == Kind::Pad || head.seq <= beyond,
                "{head:?} at {pos}"
            );
        }
    }
    delivered += read(&mut reader, &words, 8);
    assert_eq!(
        1 + delivered + reader.lapped(),
        writer.published().seq,
        "not accounted for"
    );
    assert_eq!((reader.corrupt(), reader.pos()), (0, commit));
    // Another one was at the end: it is not lapped and reads whatever lies there.
    let mut follower = Reader::new(geometry, geometry.base + 48 * 4, 5);
    let delivered = read(&mut follower, &words, 8);
    assert_eq!(4 + delivered, writer.published().seq, "not accounted for");
    assert_eq!((follower.lapped(), follower.pos()), (0, commit));
}

#[test]
fn a_successor_never_exposes_what_a_killed_producer_left() {
    use Fault::*;
    let faults = [
        ReserveMovedBack,
        PadWithoutHeader,
        OneLedgerEntry,
        IndexNotWiped,
    ];
    let anywhere = |fault| {
        (0..=STORES)
            .map(|step| explore(2, move || killed(fault, step)))
            .sum()
    };
    let test = "a_successor_never_exposes_what_a_killed_producer_left";
    holds_and_catches(test, &faults, anywhere);
}

/// Position and sequence number are read while two bursts are published.
fn ledger(fault: Fault) {
    let geometry = geometry(4, 1);
    let words = Arc::new(LoomWords::new(fault, &geometry));
    let mut writer = Writer::take_over(words.as_ref(), geometry).expect("a fresh ring");
    let theirs = Arc::clone(&words);
    let producer = thread::spawn(move || {
        for _ in 0..2 {
            burst(&mut writer, &theirs, 1);
        }
    });
    if let Some(ledger) = ledger_at(words.as_ref()) {
        let records = (ledger.pos - geometry.base) / 48;
        assert_eq!((ledger.seq, ledger.time_ns), (records, records * 3));
    }
    producer.join().expect("the producer");
}

#[test]
fn position_and_sequence_number_stay_together() {
    use Fault::*;
    let faults = [RelaxedCommit, NoWriterFence, NoReaderFence];
    holds_and_catches(
        "position_and_sequence_number_stay_together",
        &faults,
        |fault| explore(2, move || ledger(fault)),
    );
}

/// A consumer notes three batches while somebody looks.
fn account(fault: Fault) {
    let words = Arc::new(LoomWords::new(fault, &geometry(2, 1)));
    let theirs = Arc::clone(&words);
    let note = |n: u64| Account {
        pos: n,
        next_seq: n,
        delivered: n,
        delivered_bytes: n,
        lapped: n,
        corrupt: n,
        skipped: n,
        came_from: n,
    };
    let consumer = thread::spawn(move || {
        for n in 1..=2 {
            note(n).store(theirs.as_ref(), 0);
        }
    });
    if let Some(seen) = Account::load(words.as_ref(), 0) {
        assert_eq!(seen, note(seen.pos));
    }
    consumer.join().expect("the consumer");
}

#[test]
fn the_numbers_of_a_consumer_are_of_one_instant() {
    use Fault::*;
    holds_and_catches(
        "the_numbers_of_a_consumer_are_of_one_instant",
        &[NoTurnFence, NoAccountFence, RelaxedTurn],
        |fault| explore(2, move || account(fault)),
    );
}

/// A consumer of a `wait` ring makes space; the producer must not lap it.
fn space(fault: Fault) {
    let geometry = geometry(2, 1);
    let words = Arc::new(LoomWords::new(fault, &geometry));
    let mut writer = Writer::take_over(words.as_ref(), geometry).expect("a fresh ring");
    burst(&mut writer, &words, 1);
    burst(&mut writer, &words, 1);
    Account {
        pos: geometry.base,
        next_seq: 1,
        ..Account::default()
    }
    .store(words.as_ref(), 0);
    let theirs = Arc::clone(&words);
    let producer = thread::spawn(move || {
        let slowest = Account::load(theirs.as_ref(), 0);
        let free = |a: Account| writer.reserve_after(48) - a.pos <= geometry.capacity;
        if slowest.is_some_and(free) {
            burst(&mut writer, &theirs, 1);
        }
    });
    let mut reader = Reader::new(geometry, geometry.base, 1);
    for expected in 1..=2 {
        assert_eq!(read(&mut reader, &words, 1), 1);
        assert_eq!(reader.next_seq(), expected + 1);
        let account = Account {
            pos: reader.pos(),
            next_seq: expected + 1,
            ..Account::default()
        };
        account.store(words.as_ref(), 0);
    }
    producer.join().expect("the producer");
    assert_eq!(reader.lapped(), 0);
}

#[test]
fn a_waiting_producer_laps_nobody() {
    holds_and_catches("a_waiting_producer_laps_nobody", &[], |fault| {
        explore(3, move || space(fault))
    });
}

/// Two publications, one sleeper, no time-out: a lost wake-up would sleep for ever.
fn doorbell(fault: Fault) {
    let words = Arc::new(LoomWords::new(fault, &geometry(2, 1)));
    let theirs = Arc::clone(&words);
    let producer = thread::spawn(move || {
        for published in 1..=2 {
            theirs.store(Word::Commit, published, Ordering::Release);
            DATA_BELL.ring(theirs.as_ref());
        }
    });
    let ready = |seen: u64| words.load(Word::Commit, Ordering::Acquire) >= seen;
    for wanted in 1..=2 {
        while !ready(wanted) {
            let ticket = DATA_BELL.arm(words.as_ref());
            if !ready(wanted) {
                DATA_BELL.sleep(words.as_ref(), ticket, Duration::from_millis(10));
            }
        }
    }
    producer.join().expect("the producer");
}

#[test]
fn no_wake_up_is_lost() {
    use Fault::*;
    let faults = [
        TicketAfterLook,
        WakeNotBumped,
        NoRingerFence,
        NoSleeperFence,
    ];
    holds_and_catches("no_wake_up_is_lost", &faults, |fault| {
        explore(3, move || doorbell(fault))
    });
}
