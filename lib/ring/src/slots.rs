//! The slots of the consumers: who reads, how far it is, what became of the frames.
//!
//! ```text
//! one page: 0 used | 8 pid | 16 attach_seq | 24 attached ns | 32 kind | 40 seen ns | 48 carried
//!           64 label | 128 turn | 192 account 0 | 256 account 1 | 512 outcomes | 1024 outputs
//! ```
//! A place is **carried** when it was taken over from an earlier epoch whose reader has not come here yet: nobody holds its
//! lock in this epoch's file, and its reader may well live. `attach_seq` is a number of this epoch; the frames of earlier epochs
//! count as numbers before the first, so it goes below zero (it wraps) and the account stays one sum.
//! The two accounts are used in turn, see [`Account`](crate::protocol::Account).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, IoContext};
use crate::files;
use crate::layout::{LABEL_MAX, PAGE, SLOTS, readers};
use crate::memory::lock;
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::RingName;
use crate::observe::GoneReaders;
use crate::places::{self, ReaderOutput};
use crate::protocol::Account;
use crate::reasons::Outcome;

const USED: u64 = 0;
const PID: u64 = 8;
const ATTACH_SEQ: u64 = 16;
const ATTACHED_NS: u64 = 24;
const KIND: u64 = 32;
const SEEN_NS: u64 = 40;
const CARRIED: u64 = 48;
const LABEL: u64 = 64;
const TURN: u64 = 128;
const ACCOUNTS: u64 = 192;
const OUTCOMES: u64 = 512;
const _: () = assert!(OUTCOMES + 8 * 64 <= PAGE);

/// Byte offset of a slot's page.
fn slot_at(slot: usize) -> u64 {
    readers::SLOTS_AT + PAGE * slot as u64
}

/// Byte offset of the turn of a slot.
pub(crate) fn turn_at(slot: usize) -> u64 {
    slot_at(slot) + TURN
}

/// Byte offset of the two accounts of a slot.
pub(crate) fn accounts_at(slot: usize) -> u64 {
    slot_at(slot) + ACCOUNTS
}

/// One slot of the readers file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    shared: &'a Shared,
    map: &'a Mapping,
    index: usize,
    at: u64,
}

impl<'a> Slot<'a> {
    /// Slot `index`, below [`SLOTS`].
    pub(crate) fn new(shared: &'a Shared, index: usize) -> Self {
        Self {
            shared,
            map: &shared.readers,
            index,
            at: slot_at(index),
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn used(&self) -> bool {
        self.map.word(self.at + USED).load(Ordering::Acquire) == 1
    }

    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.map.get(self.at + PID)).unwrap_or(0)
    }

    pub(crate) fn attach_seq(&self) -> u64 {
        self.map.get(self.at + ATTACH_SEQ)
    }

    /// Nobody will come back for this place when its reader is dead.
    pub(crate) fn transient(&self) -> bool {
        self.map.get(self.at + KIND) == TRANSIENT
    }

    /// Whether its reader is still in an earlier epoch.
    pub(crate) fn carried(&self) -> bool {
        self.map.get(self.at + CARRIED) != 0
    }

    /// The last sign of life: when it died, if it is dead, to within a second of work.
    fn seen_ns(&self) -> u64 {
        let attached = self.map.get(self.at + ATTACHED_NS);
        self.map.get(self.at + SEEN_NS).max(attached)
    }

    /// Gives a sign of life.
    pub(crate) fn show_life(&self) {
        self.map.set(self.at + SEEN_NS, files::now_ns());
    }

    pub(crate) fn set_attach_seq(&self, seq: u64) {
        self.map.set(self.at + ATTACH_SEQ, seq);
    }

    pub(crate) fn set_outcome(&self, outcome: Outcome, count: u64) {
        self.map
            .set(self.at + OUTCOMES + 8 * outcome.index() as u64, count);
    }

    pub(crate) fn label(&self) -> String {
        files::text(self.map, self.at + LABEL, LABEL_MAX / 8)
    }

    pub(crate) fn set_label(&self, label: &str) {
        files::set_text(self.map, self.at + LABEL, LABEL_MAX / 8, label);
    }

    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        self.map
            .get(self.at + OUTCOMES + 8 * outcome.index() as u64)
    }

    pub(crate) fn add_outcome(&self, outcome: Outcome, count: u64) {
        self.map
            .bump(self.at + OUTCOMES + 8 * outcome.index() as u64, count);
    }

    /// A consistent account, also while its owner works.
    pub(crate) fn account(&self) -> Option<Account> {
        Account::load(self.shared, self.index)
    }

    /// Replaces the account; only its owner may.
    pub(crate) fn set_account(&self, account: &Account) {
        account.store(self.shared, self.index);
    }

    /// The interfaces that the reader sends to, as it has noted them.
    pub(crate) fn outputs(&self) -> Vec<ReaderOutput> {
        places::outputs(self.map, self.at)
    }

    /// Notes them.
    pub(crate) fn set_outputs(&self, outputs: &[ReaderOutput]) {
        places::set_outputs(self.map, self.at, outputs);
    }

    /// Makes the slot that of a new consumer.
    fn register(&self, label: &str, kind: Kind, account: &Account) {
        self.fill(label, kind, account);
        self.set_outputs(&[]);
        self.map.set(self.at + ATTACHED_NS, files::now_ns());
        self.sign();
    }

    fn fill(&self, label: &str, kind: Kind, account: &Account) {
        for outcome in Outcome::ALL {
            self.set_outcome(*outcome, 0);
        }
        self.set_label(label);
        self.set_attach_seq(account.next_seq);
        self.map.set(self.at + KIND, kind as u64);
        self.map.set(self.at + SEEN_NS, 0);
        self.map.set(self.at + CARRIED, 0);
        self.set_account(account);
    }

    /// Makes the slot that of the reader which has slot `from` in an earlier epoch, at the very beginning of this one.
    pub(crate) fn carry(&self, from: &Slot<'_>, base: u64) {
        let account = Account {
            pos: base,
            next_seq: 1,
            ..Account::default()
        };
        let kind = if from.transient() {
            Kind::Transient
        } else {
            Kind::Named
        };
        self.fill(&from.label(), kind, &account);
        for field in [PID, ATTACHED_NS, SEEN_NS] {
            self.map.set(self.at + field, from.map.get(from.at + field));
        }
        self.map.set(self.at + CARRIED, 1);
        self.announce();
    }

    /// Notes who reads here, and tells a waiting producer to look at the slots again.
    pub(crate) fn sign(&self) {
        self.map.set(self.at + PID, u64::from(std::process::id()));
        self.map.set(self.at + CARRIED, 0);
        self.show_life();
        self.announce();
    }

    fn announce(&self) {
        self.map.word(self.at + USED).store(1, Ordering::Release);
        self.map
            .word(readers::REGISTRATIONS)
            .fetch_add(1, Ordering::AcqRel);
    }

    /// Empties the slot, whose books go on elsewhere.
    pub(crate) fn vacate(&self) {
        self.map.word(self.at + USED).store(0, Ordering::Release);
        // A creator that is carrying places over looks at them again after it has retired the ring: either it sees
        // this, or whoever empties the slot sees the retirement.
        fence(Ordering::SeqCst);
    }

    /// Empties the slot; its numbers go into those of the readers that are gone.
    pub(crate) fn free(&self) {
        let account = self.account().unwrap_or_default();
        let gone = [1, account.delivered, account.lapped, account.corrupt];
        for (i, value) in (0u64..).zip(gone) {
            self.map
                .word(readers::GONE + 8 * i)
                .fetch_add(value, Ordering::Relaxed);
        }
        self.set_outputs(&[]);
        self.vacate();
    }

    /// Empties the slot of a named consumer that may come back, because there is no other place for `label`: counted, and noted for
    /// whoever looks after the ring.
    fn evict(&self, label: &str) {
        let gone = self.label();
        files::set_text(self.map, readers::EVICTED_LABEL, LABEL_MAX / 8, &gone);
        files::set_text(self.map, readers::EVICTED_FOR, LABEL_MAX / 8, label);
        self.map
            .word(readers::EVICTED)
            .fetch_add(1, Ordering::Relaxed);
        self.free();
    }
}

/// Whether somebody will come back for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A worker, which is started again under the same name.
    Named = 1,
    /// A command, which nobody continues.
    Transient = 2,
}

const TRANSIENT: u64 = Kind::Transient as u64;

/// A slot whose lock this process holds through `file`.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) index: usize,
    /// Whether a dead consumer of the same label is to be continued.
    pub(crate) resumed: bool,
}

/// Finds a slot for a consumer: its own from an earlier life, else a free one, else that of the command, and only then of the
/// worker, that is dead for longest. A place that is carried and whose reader lives in one of the `earlier` readers
/// files is nobody else's.
pub(crate) fn claim(
    shared: &Shared,
    file: &File,
    name: &RingName,
    label: &str,
    resume: bool,
    earlier: &[File],
) -> Result<Claim, Error> {
    let own = |slot: &Slot<'_>| slot.used() && slot.label() == label;
    if let Some(index) = take(shared, file, name, 0..SLOTS, own)? {
        if !resume {
            Slot::new(shared, index).free();
        }
        return Ok(Claim {
            index,
            resumed: resume,
        });
    }
    let new = |index| Claim {
        index,
        resumed: false,
    };
    if let Some(index) = take(shared, file, name, 0..SLOTS, |slot| !slot.used())? {
        return Ok(new(index));
    }
    let mut by_death: Vec<usize> = (0..SLOTS).collect();
    by_death.sort_by_key(|&index| Slot::new(shared, index).seen_ns());
    let dead = |slot: &Slot<'_>| slot.used() && !lives_earlier(slot, earlier);
    let unwanted = |slot: &Slot<'_>| dead(slot) && slot.transient();
    if let Some(index) = take(shared, file, name, by_death.iter().copied(), unwanted)? {
        Slot::new(shared, index).free();
        return Ok(new(index));
    }
    if let Some(index) = take(shared, file, name, by_death, dead)? {
        Slot::new(shared, index).evict(label);
        return Ok(new(index));
    }
    Err(Error::NoSlot {
        name: name.to_string(),
        slots: SLOTS,
    })
}

/// Whether the reader of a carried place lives in one of these readers files: places keep their numbers from epoch to epoch.
pub(crate) fn lives_earlier(slot: &Slot<'_>, earlier: &[File]) -> bool {
    slot.carried() && earlier.iter().any(|file| lives(file, slot.index))
}

/// Locks one slot, if its reader is dead.
pub(crate) fn lock_place(file: &File, name: &RingName, index: usize) -> Result<bool, Error> {
    let path = Path::new(name.as_str());
    lock::try_lock(file.as_fd(), lock::SLOT_0 + index as u64).at("lock a slot of ring", path)
}

/// Unlocks it again.
pub(crate) fn unlock_place(file: &File, name: &RingName, index: usize) -> Result<(), Error> {
    let path = Path::new(name.as_str());
    lock::unlock(file.as_fd(), lock::SLOT_0 + index as u64).at("unlock a slot of ring", path)
}

/// Locks the first slot that `fits` and that no live consumer holds.
fn take(
    shared: &Shared,
    file: &File,
    name: &RingName,
    order: impl IntoIterator<Item = usize>,
    fits: impl Fn(&Slot<'_>) -> bool,
) -> Result<Option<usize>, Error> {
    for index in order {
        let slot = Slot::new(shared, index);
        if !fits(&slot) || !lock_place(file, name, index)? {
            continue;
        }
        // Somebody else may have been faster between the look and the lock.
        if fits(&slot) {
            return Ok(Some(index));
        }
        unlock_place(file, name, index)?;
    }
    Ok(None)
}

/// What the freed slots had counted.
pub(crate) fn gone(map: &Mapping) -> GoneReaders {
    let get = |i: u64| map.get(readers::GONE + 8 * i);
    GoneReaders {
        readers: get(0),
        delivered: get(1),
        lapped: get(2),
        corrupt: get(3),
        evicted: map.get(readers::EVICTED),
    }
}

/// The last named consumer whose place was given away, and to whom; none when that never happened.
pub(crate) fn evicted(map: &Mapping) -> Option<(String, String)> {
    let text = |at| files::text(map, at, LABEL_MAX / 8);
    (map.get(readers::EVICTED) != 0)
        .then(|| (text(readers::EVICTED_LABEL), text(readers::EVICTED_FOR)))
}

/// Begins a new consumer's life in a claimed slot.
pub(crate) fn register(shared: &Shared, index: usize, label: &str, kind: Kind, account: &Account) {
    Slot::new(shared, index).register(label, kind, account);
}

/// Whether a live consumer of another descriptor than `file` holds slot `index`.
pub(crate) fn lives(file: &File, index: usize) -> bool {
    // When the kernel cannot say, it is taken for alive: wrongly dead is worse.
    lock::held_by_other(file.as_fd(), lock::SLOT_0 + index as u64).unwrap_or(true)
}
