//! One that reads.

use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

use crate::batch::{Batch, Loss};
use crate::create::DirLock;
use crate::epochs::{self, Bounds, Next};
use crate::error::Error;
use crate::files::{self, Access, Opened, Retired, RingInfo};
use crate::layout::{LABEL_MAX, Mode};
use crate::memory::shared::Shared;
use crate::name::{RingDir, RingName};
use crate::name_watch::{self, NameWatch};
use crate::observe::{self, ReaderStats};
use crate::places::ReaderOutput;
use crate::protocol::{
    Account, Copied, DATA_BELL, Kind, Parsed, Reader, SPACE_BELL, Slept, Word, ledger_at,
};
use crate::reasons::Outcome;
use crate::slots::{self, Claim, Slot};
use crate::sources;
use crate::start::{self, Start};

/// What a poll found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// So many frames are in the batch; none when it only holds losses.
    Frames(usize),
    /// There is nothing now.
    Empty,
    /// There will never be anything again: the ring is retired, drained, and its producer is gone. [`Consumer::advance`] goes on
    /// with the next epoch.
    Retired,
}

/// So many corrupt records within a second end the reading.
const STRIKES: u32 = 3;
/// Looks for work before a sleep, about two microseconds: a producer under load is back by then, and
/// a system call on each side is spared.
const SPINS: u32 = 64;
/// Most attempts within one poll to get past laps, fillings and corrupt records.
const ROUNDS: u32 = 4;
/// Nanoseconds between two signs of life in the slot of one that works.
const LIFE_SIGN: u64 = 500_000_000;

/// A registered consumer of a ring.
///
/// Dropping it keeps its slot, so that a later one of the same label can resume there;
/// [`Consumer::detach`] gives the slot up.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    /// Carries the slot's lock.
    readers_file: File,
    info: RingInfo,
    dir: RingDir,
    label: String,
    uuid: [u64; 2],
    watch: NameWatch,
    /// When the slot had a sign of life last, by the coarse clock.
    alive: u64,
    reader: Reader,
    slot: usize,
    account: Account,
    /// What the slot says.
    published: Account,
    /// Bytes that a record had on average lately.
    usual: usize,
    strikes: u32,
    first_strike: Option<Instant>,
    quarantine: Option<&'static str>,
    single_thread: PhantomData<Cell<()>>,
}

impl Consumer {
    /// Registers a consumer under `label`, 1 to 64 bytes. With `resume`, one that died under the same
    /// label is continued: in the epoch that it was in, after the last frame that it was given, with its counters; what it was
    /// given and had not accounted for becomes [`Outcome::Killed`]. Otherwise `start` says where. Without `resume`, the place is
    /// given to others first when its consumer has died.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Retired`], [`Error::NoSlot`], [`Error::Damaged`],
    /// [`Error::InvalidLabel`], [`Error::Io`].
    pub fn open(
        dir: &RingDir,
        name: &RingName,
        label: &str,
        start: Start,
        resume: bool,
    ) -> Result<Self, Error> {
        files::check_label(label, LABEL_MAX)?;
        let left = if resume {
            epochs::resume(dir, name, label)?
        } else {
            None
        };
        let (opened, claim) = match left {
            Some((opened, index)) => (
                opened,
                Claim {
                    index,
                    resumed: true,
                },
            ),
            None => {
                let opened = files::open(dir, name, Access::Consumer)?.unless_retired()?;
                let earlier = epochs::earlier_readers(dir, name, opened.info.epoch);
                let file = &opened.readers_file;
                let claim = slots::claim(&opened.shared, file, name, label, resume, &earlier)?;
                (opened, claim)
            }
        };
        let Opened {
            shared,
            header,
            info,
            readers_file,
            watch,
        } = opened;
        let mut consumer = Self {
            reader: Reader::new(header.geometry(), header.base_pos, 1),
            shared,
            readers_file,
            info,
            dir: dir.clone(),
            label: label.to_owned(),
            uuid: header.uuid,
            watch,
            alive: 0,
            slot: claim.index,
            account: Account::default(),
            published: Account::default(),
            usual: 256,
            strikes: 0,
            first_strike: None,
            quarantine: None,
            single_thread: PhantomData,
        };
        let damaged = || Error::Damaged {
            path: dir.data_path(name),
            reason: "its positions do not agree",
        };
        let kind = if resume {
            slots::Kind::Named
        } else {
            slots::Kind::Transient
        };
        let settled = consumer.settle(&claim, label, kind, start);
        settled.ok_or_else(damaged)?;
        Ok(consumer)
    }

    /// Finds the first position and fills the slot. `None`: the ring is damaged.
    fn settle(
        &mut self,
        claim: &Claim,
        label: &str,
        kind: slots::Kind,
        start: Start,
    ) -> Option<()> {
        if claim.resumed && self.resume()? {
            return Some(());
        }
        // In `wait` mode a burst may be under way that does not know of this consumer yet.
        let margin = match self.info.mode {
            Mode::Overwrite => 0,
            Mode::Wait => self.reader.geometry().max_burst,
        };
        let geometry = *self.reader.geometry();
        let (pos, next_seq) = start::locate(self.shared.as_ref(), geometry, start, margin)?;
        self.reader = Reader::new(geometry, pos, next_seq);
        self.account = Account {
            pos,
            next_seq,
            ..Account::default()
        };
        slots::register(&self.shared, self.slot, label, kind, &self.account);
        Some(())
    }

    /// Continues a dead consumer; false when what it left makes no sense.
    fn resume(&mut self) -> Option<bool> {
        let ledger = ledger_at(self.shared.as_ref())?;
        let slot = self.slot();
        let account = slot.account().unwrap_or_default();
        let behind = ledger.pos.wrapping_sub(account.pos);
        let published = ledger.pos.wrapping_sub(self.info.base_pos);
        let unread = ledger.seq.wrapping_add(1).wrapping_sub(account.next_seq);
        let seen = account.next_seq.wrapping_sub(slot.attach_seq());
        let counted = [
            account.delivered,
            account.lapped,
            account.corrupt,
            account.skipped,
        ];
        let plausible = behind <= published
            && behind % 16 == 0
            && unread <= behind / 48
            && counted.into_iter().fold(0, u64::wrapping_add) == seen;
        if !plausible {
            slot.free();
            return Some(false);
        }
        let settled = Outcome::ALL.iter().filter(|o| o.is_terminal());
        let settled = settled.map(|&o| slot.outcome(o)).fold(0, u64::wrapping_add);
        let due = account
            .delivered
            .wrapping_add(slot.outcome(Outcome::Copied));
        slot.add_outcome(Outcome::Killed, due.saturating_sub(settled));
        slot.sign();
        self.enter(account);
        Some(true)
    }

    /// Reads on where `account` says.
    fn enter(&mut self, account: Account) {
        self.reader = Reader::new(*self.reader.geometry(), account.pos, account.next_seq);
        self.reader.restore(account.lapped, account.corrupt);
        self.account = account;
    }

    /// After [`Poll::Retired`]: goes on at the beginning of the next epoch of the ring, with all counters. Returns the frames that were
    /// lost between the two, because epochs were cut off there or this one could not be read to its end; they are among the
    /// lapped ones already. `None` while there is no next epoch, or the producer has not left this one: the place is kept, also when
    /// this consumer is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NoSlot`], [`Error::Io`]: nothing has changed then.
    pub fn advance(&mut self) -> Result<Option<u64>, Error> {
        let name = self.info.name.clone();
        let _lock = DirLock::take(self.dir.place(&name))?;
        // Where it ends is known once nobody can add anything.
        if files::producer_lives(&self.readers_file, &name)? {
            return Ok(None);
        }
        let from = epochs::From {
            info: &self.info,
            uuid: self.uuid,
            shared: &self.shared,
            slot: self.slot,
            label: &self.label,
        };
        let Some(Next { opened, slot }) = epochs::advance(&self.dir, &from)? else {
            return Ok(None);
        };
        let lapped = self.account.lapped;
        self.slot().vacate();
        let Opened {
            shared,
            header,
            info,
            readers_file,
            watch,
        } = opened;
        self.reader = Reader::new(header.geometry(), header.base_pos, 1);
        (self.shared, self.readers_file, self.info) = (shared, readers_file, info);
        (self.uuid, self.watch, self.slot) = (header.uuid, watch, slot);
        (self.strikes, self.first_strike, self.quarantine) = (0, None, None);
        let account = self.slot().account().unwrap_or_default();
        self.enter(account);
        self.published = account;
        // What this was the last reader of is not needed any more. Should it not be possible, somebody else does it.
        let _ = epochs::sweep(&self.dir, &name, Bounds::NONE);
        Ok(Some(account.lapped.saturating_sub(lapped)))
    }

    fn slot(&self) -> Slot<'_> {
        Slot::new(&self.shared, self.slot)
    }

    /// What the ring is.
    pub fn info(&self) -> &RingInfo {
        &self.info
    }

    /// The slot that this consumer occupies, 0 to 63.
    pub fn slot_index(&self) -> usize {
        self.slot
    }

    /// Fills the batch with the next frames. They count as delivered, and will never come again, as
    /// soon as this returns: whatever becomes of them is to be reported by
    /// [`Consumer::add_outcome`].
    ///
    /// Frames that were overwritten before they could be read are counted
    /// ([`Batch::lapped`], [`ReaderStats::lapped`]) and reading goes on in the middle of the ring.
    ///
    /// # Errors
    /// [`Error::Quarantined`] after three corrupt records within a second, and from then on;
    /// [`Error::Poisoned`] when another process cut the file short.
    pub fn poll(&mut self, batch: &mut Batch) -> Result<Poll, Error> {
        batch.clear();
        if let Some(reason) = self.quarantine {
            return Err(self.quarantined(reason));
        }
        let lapped_before = self.reader.lapped();
        let mut found = None;
        for _ in 0..ROUNDS {
            match self.read_span(batch) {
                Round::Got => {
                    found = Some(Poll::Frames(batch.len()));
                    break;
                }
                Round::Idle => {
                    found = Some(self.idle()?);
                    break;
                }
                Round::Nothing => {}
                Round::Corrupt(reason) => self.strike(reason)?,
            }
        }
        if self.shared.poisoned() {
            batch.clear();
            return Err(self.poisoned());
        }
        batch.lapped = self.reader.lapped() - lapped_before;
        self.publish_account();
        Ok(found.unwrap_or(Poll::Empty))
    }

    /// Copies one span and parses it.
    fn read_span(&mut self, batch: &mut Batch) -> Round {
        // No more than will be used: the rest would have to be copied again.
        let likely = batch
            .max_frames()
            .saturating_mul(self.usual + self.usual / 8)
            + 4096;
        let words = (likely / 8).min(batch.arena.len());
        let Some(arena) = batch.arena.get_mut(..words) else {
            return Round::Nothing;
        };
        match self.reader.copy(self.shared.as_ref(), arena) {
            Copied::Idle => Round::Idle,
            Copied::Span(words) => self.parse(batch, words),
            Copied::Lapped => {
                self.reader.resync_after_lap(self.shared.as_ref());
                Round::Nothing
            }
            Copied::Broken(reason) => Round::Corrupt(reason),
        }
    }

    fn parse(&mut self, batch: &mut Batch, words: usize) -> Round {
        let Batch {
            arena,
            starts,
            losses,
            ..
        } = batch;
        let limit = starts.capacity().min(1 << 20);
        let span = arena.get(..words).unwrap_or_default();
        let (mut at, mut bytes) = (0, 0u64);
        let mut stop = None;
        while starts.len() + losses.len() < limit && at < words {
            match self.reader.next(span, at) {
                Parsed::Record(head, length) => {
                    match head.kind {
                        Kind::Data => {
                            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
                            bytes += u64::from(head.len) - 32;
                        }
                        Kind::Loss => losses.push(Loss {
                            source: head.source,
                            count: head.seq,
                            timestamp_ns: head.time_ns,
                        }),
                        Kind::Pad => {}
                    }
                    at += length;
                }
                other => {
                    stop = Some(other);
                    break;
                }
            }
        }
        self.account.delivered += starts.len() as u64;
        self.account.delivered_bytes += bytes;
        if !starts.is_empty() {
            self.usual = at * 8 / starts.len();
        }
        match stop {
            _ if !starts.is_empty() || !losses.is_empty() => Round::Got,
            Some(Parsed::Broken(reason)) => Round::Corrupt(reason),
            Some(Parsed::Partial(needed)) if at == 0 => {
                // A record longer than what was copied, or even than the arena.
                if needed > arena.len() {
                    arena.resize(needed.next_power_of_two(), 0);
                }
                self.usual = self.usual.max(needed * 8);
                Round::Nothing
            }
            _ => Round::Nothing,
        }
    }

    /// Nothing to read: is there anything to come?
    fn idle(&self) -> Result<Poll, Error> {
        if self.retired().is_none() || files::producer_lives(&self.readers_file, &self.info.name)? {
            return Ok(Poll::Empty);
        }
        // The lock was freed after the last publication, so this look is the last one needed.
        let drained = !self.reader.ready(self.shared.as_ref());
        Ok(if drained { Poll::Retired } else { Poll::Empty })
    }

    /// Notes a corrupt record and goes on behind it, unless there were too many.
    #[cold]
    fn strike(&mut self, reason: &'static str) -> Result<(), Error> {
        let now = Instant::now();
        let first = *self.first_strike.get_or_insert(now);
        if now.duration_since(first) > Duration::from_secs(1) {
            self.first_strike = Some(now);
            self.strikes = 0;
        }
        self.strikes += 1;
        if self.shared.poisoned() {
            return Err(self.poisoned());
        }
        if self.strikes >= STRIKES {
            self.quarantine = Some(reason);
            self.publish_account();
            return Err(self.quarantined(reason));
        }
        self.reader.resync_after_corruption(self.shared.as_ref());
        Ok(())
    }

    fn quarantined(&self, reason: &'static str) -> Error {
        Error::Quarantined {
            name: self.info.name.to_string(),
            strikes: self.strikes,
            reason,
        }
    }

    /// Writes position and counters into the slot, if they changed, and tells a waiting producer.
    fn publish_account(&mut self) {
        let account = Account {
            pos: self.reader.pos(),
            next_seq: self.reader.next_seq(),
            lapped: self.reader.lapped(),
            corrupt: self.reader.corrupt(),
            ..self.account
        };
        let now = name_watch::now_ns();
        if now.wrapping_sub(self.alive) > LIFE_SIGN {
            self.alive = now;
            self.slot().show_life();
        }
        if account == self.published {
            return;
        }
        self.published = account;
        self.account = account;
        self.slot().set_account(&account);
        if self.info.mode == Mode::Wait {
            SPACE_BELL.ring(self.shared.as_ref());
        }
    }

    /// Sleeps until something is published, at most `timeout` or 10 ms. True when there is
    /// something to read.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when the memory of the ring is gone.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let words = self.shared.as_ref();
        if !timeout.is_zero() && (0..SPINS).any(|_| self.ready_soon()) {
            return Ok(true);
        }
        let ticket = DATA_BELL.arm(words);
        if self.reader.ready(words) {
            return Ok(true);
        }
        match DATA_BELL.sleep(words, ticket, self.nap(timeout)) {
            Slept::Unreachable => Err(self.poisoned()),
            Slept::Woken | Slept::TimedOut => Ok(self.reader.ready(words)),
        }
    }

    fn ready_soon(&self) -> bool {
        std::hint::spin_loop();
        self.is_ready()
    }

    /// Whether there is something to read. Costs one look at shared memory.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.reader.ready(self.shared.as_ref())
    }

    /// How long to sleep: shorter once the ring is retired and only its producer's end is awaited.
    fn nap(&self, timeout: Duration) -> Duration {
        if self.shared.event_is_set() {
            timeout.min(Duration::from_millis(1))
        } else {
            timeout
        }
    }

    fn poisoned(&self) -> Error {
        Error::Poisoned {
            name: self.info.name.to_string(),
        }
    }

    /// Whether the ring was deleted or replaced, or has lost its files; there may still be frames in it.
    pub fn retired(&self) -> Option<Retired> {
        self.shared.retired_or(&self.watch)
    }

    /// Counts what became of delivered frames.
    #[inline]
    pub fn add_outcome(&self, outcome: Outcome, frames: u64) {
        self.slot().add_outcome(outcome, frames);
    }

    /// The counters of this consumer.
    pub fn stats(&self) -> ReaderStats {
        let ledger = ledger_at(self.shared.as_ref()).unwrap_or_default();
        observe::reader_stats(&self.shared, self.slot, true, &ledger)
    }

    /// The numbers of the sources that there are now.
    pub fn sources(&self) -> Vec<u16> {
        sources::numbers(&self.shared.data)
    }

    /// Name of a source, none when there is no such source (any more).
    pub fn source_name(&self, index: u16) -> Option<String> {
        sources::name(&self.shared.data, index)
    }

    /// Notes the interfaces that this consumer sends to, for those who look for loops; at most [`crate::OUTPUTS`] are kept. The note
    /// stays when the consumer ends, and goes with its slot.
    pub fn set_outputs(&self, outputs: &[ReaderOutput]) {
        self.slot().set_outputs(outputs);
    }

    /// Gives the place up, in this epoch and in those that came after it: nobody will resume here.
    pub fn detach(self) {
        self.slot().free();
        // Places in later epochs; when there are none, because the ring has not been retired, that spares the lock.
        if self.shared.retired().is_some() {
            let _ = Self::forget(&self.dir, &self.info.name, &self.label);
        }
    }

    /// Gives up the places that a dead consumer of that label has in any epoch of a ring.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`].
    pub fn forget(dir: &RingDir, name: &RingName, label: &str) -> Result<(), Error> {
        let _lock = DirLock::take(dir.place(name))?;
        epochs::forget(dir, name, label);
        epochs::sweep(dir, name, Bounds::NONE).map(drop)
    }
}

/// What came of one span.
enum Round {
    Got,
    Idle,
    Nothing,
    Corrupt(&'static str),
}

/// Most consumers that [`wait_any`] waits for; further ones are only looked at when it wakes.
const MAX_WAIT: usize = 16;

/// Sleeps until one of the consumers has something to read, at most `timeout` or 25 ms. Who waits longer than 10 ms accepts that a
/// wake-up that somebody has stolen delays the next frame by that much.
/// True when one has. With no consumer at all it just sleeps.
///
/// # Errors
/// [`Error::Poisoned`] when the memory of a ring is gone.
pub fn wait_any(consumers: &[&Consumer], timeout: Duration) -> Result<bool, Error> {
    let nap = consumers
        .iter()
        .fold(timeout.min(crate::protocol::LONG_NAP), |nap, c| c.nap(nap));
    let mut waiters = [futex::Wait::new(); MAX_WAIT];
    for (waiter, consumer) in waiters.iter_mut().zip(consumers) {
        let ticket = DATA_BELL.arm(consumer.shared.as_ref());
        waiter.val = u64::from(ticket);
        waiter.uaddr = futex::WaitPtr::new(
            std::ptr::from_ref(consumer.shared.futex(Word::Wake))
                .cast_mut()
                .cast(),
        );
        waiter.flags = futex::WaitFlags::SIZE_U32;
    }
    let waiters = waiters.get(..consumers.len()).unwrap_or(&waiters);
    let ready = |c: &&Consumer| c.reader.ready(c.shared.as_ref());
    if consumers.iter().any(ready) {
        return Ok(true);
    }
    match sleep_any(waiters, nap) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        // A kernel before 5.16, or more rings than it takes at once.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
            std::thread::sleep(nap.min(Duration::from_millis(1)));
        }
        Err(_) => {
            let gone = consumers.first().map(|c| c.poisoned());
            return gone.map_or(Ok(false), Err);
        }
    }
    Ok(consumers.iter().any(ready))
}

fn sleep_any(waiters: &[futex::Wait], nap: Duration) -> Result<(), Errno> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = now.tv_nsec + i64::from(nap.subsec_nanos());
    let end = futex::Timespec {
        tv_sec: now.tv_sec + nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    };
    let flags = futex::WaitvFlags::empty();
    let clock = futex::ClockId::Monotonic;
    futex::waitv(waiters, flags, Some(&end), clock).map(|_| ())
}
