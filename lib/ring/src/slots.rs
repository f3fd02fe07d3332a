//! The slots of the consumers: who reads, how far it is, what became of the frames.
//!
//! ```text
//! one page: 0 used | 8 pid | 16 attach_seq | 24 attached ns | 64 label | 128 turn
//!           192 account 0 | 256 account 1 | 512 outcomes
//! ```
//! The two accounts are used in turn, see [`Account`](crate::protocol::Account).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::error::{Error, IoContext};
use crate::files;
use crate::layout::{LABEL_MAX, PAGE, SLOTS, readers};
use crate::memory::lock;
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::RingName;
use crate::observe::GoneReaders;
use crate::protocol::Account;
use crate::reasons::Outcome;

const USED: u64 = 0;
const PID: u64 = 8;
const ATTACH_SEQ: u64 = 16;
const ATTACHED_NS: u64 = 24;
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

    pub(crate) fn used(&self) -> bool {
        self.map.word(self.at + USED).load(Ordering::Acquire) == 1
    }

    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.map.get(self.at + PID)).unwrap_or(0)
    }

    pub(crate) fn attach_seq(&self) -> u64 {
        self.map.get(self.at + ATTACH_SEQ)
    }

    fn attached_ns(&self) -> u64 {
        self.map.get(self.at + ATTACHED_NS)
    }

    pub(crate) fn label(&self) -> String {
        files::text(self.map, self.at + LABEL, LABEL_MAX / 8)
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

    /// Makes the slot that of a new consumer.
    fn register(&self, label: &str, account: &Account) {
        for outcome in Outcome::ALL {
            self.map
                .set(self.at + OUTCOMES + 8 * outcome.index() as u64, 0);
        }
        files::set_text(self.map, self.at + LABEL, LABEL_MAX / 8, label);
        self.map.set(self.at + ATTACH_SEQ, account.next_seq);
        self.map.set(self.at + ATTACHED_NS, files::now_ns());
        self.set_account(account);
        self.sign();
    }

    /// Notes who reads here, and tells a waiting producer to look at the slots again.
    pub(crate) fn sign(&self) {
        self.map.set(self.at + PID, u64::from(std::process::id()));
        self.map.word(self.at + USED).store(1, Ordering::Release);
        self.map
            .word(readers::REGISTRATIONS)
            .fetch_add(1, Ordering::AcqRel);
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
        self.map.word(self.at + USED).store(0, Ordering::Release);
    }
}

/// A slot whose lock this process holds through `file`.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) index: usize,
    /// Whether a dead consumer of the same label is to be continued.
    pub(crate) resumed: bool,
}

/// Finds a slot for a consumer: its own from an earlier life, else a free one, else that of
/// the consumer that is dead for longest.
pub(crate) fn claim(
    shared: &Shared,
    file: &File,
    name: &RingName,
    label: &str,
    resume: bool,
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
    if let Some(index) = take(shared, file, name, 0..SLOTS, |slot| !slot.used())? {
        return Ok(Claim {
            index,
            resumed: false,
        });
    }
    let mut by_age: Vec<usize> = (0..SLOTS).collect();
    by_age.sort_by_key(|&index| Slot::new(shared, index).attached_ns());
    if let Some(index) = take(shared, file, name, by_age, |slot| slot.used())? {
        Slot::new(shared, index).free();
        return Ok(Claim {
            index,
            resumed: false,
        });
    }
    Err(Error::NoSlot {
        name: name.to_string(),
        slots: SLOTS,
    })
}

/// Locks the first slot that `fits` and that no live consumer holds.
fn take(
    shared: &Shared,
    file: &File,
    name: &RingName,
    order: impl IntoIterator<Item = usize>,
    fits: impl Fn(&Slot<'_>) -> bool,
) -> Result<Option<usize>, Error> {
    let path = Path::new(name.as_str());
    for index in order {
        let slot = Slot::new(shared, index);
        let byte = lock::SLOT_0 + index as u64;
        if !fits(&slot) || !lock::try_lock(file.as_fd(), byte).at("lock a slot of ring", path)? {
            continue;
        }
        // Somebody else may have been faster between the look and the lock.
        if fits(&slot) {
            return Ok(Some(index));
        }
        lock::unlock(file.as_fd(), byte).at("unlock a slot of ring", path)?;
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
    }
}

/// Begins a new consumer's life in a claimed slot.
pub(crate) fn register(shared: &Shared, index: usize, label: &str, account: &Account) {
    Slot::new(shared, index).register(label, account);
}

/// Whether a live consumer of another descriptor than `file` holds slot `index`.
pub(crate) fn lives(file: &File, index: usize) -> bool {
    // When the kernel cannot say, it is taken for alive: wrongly dead is worse.
    lock::held_by_other(file.as_fd(), lock::SLOT_0 + index as u64).unwrap_or(true)
}
