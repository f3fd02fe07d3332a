//! The slots of the consumers: who reads, how far it is, what became of the frames.
//!
//! ```text
//! one page: 0 used | 8 pid | 16 attach_seq | 24 attached ns | 64 label | 128 turn
//!           192 account 0 | 256 account 1 | 512 outcomes
//! ```
//! A consumer's position and counters change together: it writes the account that is not in use and then
//! moves `turn` (SYNC S), so that a consumer killed anywhere leaves numbers that add up.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, IoContext};
use crate::files;
use crate::layout::{LABEL_MAX, PAGE, SLOTS, readers};
use crate::memory::lock;
use crate::memory::mapping::Mapping;
use crate::name::RingName;
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

/// Where a consumer is and what it has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Account {
    pub(crate) pos: u64,
    pub(crate) next_seq: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_bytes: u64,
    pub(crate) lapped: u64,
    pub(crate) corrupt: u64,
    pub(crate) skipped: u64,
}

/// One slot of the readers file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    map: &'a Mapping,
    at: u64,
}

impl<'a> Slot<'a> {
    /// Slot `index`, below [`SLOTS`].
    pub(crate) fn new(map: &'a Mapping, index: usize) -> Self {
        Self {
            map,
            at: readers::SLOTS_AT + PAGE * index as u64,
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

    fn account_at(&self, turn: u64) -> u64 {
        self.at + ACCOUNTS + 64 * (turn & 1)
    }

    /// A consistent account, also while its owner works.
    pub(crate) fn account(&self) -> Account {
        let mut account = Account::default();
        // Its owner writes once in a poll; more attempts mean that somebody scribbles.
        for _ in 0..1000 {
            let turn = self.map.word(self.at + TURN).load(Ordering::Acquire); // SYNC S
            let field = |i: u64| self.map.get(self.account_at(turn) + 8 * i);
            account = Account {
                pos: field(0),
                next_seq: field(1),
                delivered: field(2),
                delivered_bytes: field(3),
                lapped: field(4),
                corrupt: field(5),
                skipped: field(6),
            };
            fence(Ordering::Acquire);
            if self.map.get(self.at + TURN) == turn {
                break;
            }
        }
        account
    }

    /// Replaces the account; only its owner may.
    pub(crate) fn set_account(&self, account: &Account) {
        let turn = self.map.get(self.at + TURN).wrapping_add(1);
        // The turn stored last time must be visible before the other account is overwritten.
        fence(Ordering::Release); // SYNC S
        let fields = [
            account.pos,
            account.next_seq,
            account.delivered,
            account.delivered_bytes,
            account.lapped,
            account.corrupt,
            account.skipped,
        ];
        for (i, value) in (0u64..).zip(fields) {
            self.map.set(self.account_at(turn) + 8 * i, value);
        }
        // Also tells a producer that waits for space: what is behind `pos` has been copied.
        self.map.word(self.at + TURN).store(turn, Ordering::Release); // SYNC S, SYNC E
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
        let account = self.account();
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
    map: &Mapping,
    file: &File,
    name: &RingName,
    label: &str,
    resume: bool,
) -> Result<Claim, Error> {
    let own = |slot: &Slot<'_>| slot.used() && slot.label() == label;
    if let Some(index) = take(map, file, name, 0..SLOTS, own)? {
        if !resume {
            Slot::new(map, index).free();
        }
        return Ok(Claim {
            index,
            resumed: resume,
        });
    }
    if let Some(index) = take(map, file, name, 0..SLOTS, |slot| !slot.used())? {
        return Ok(Claim {
            index,
            resumed: false,
        });
    }
    let mut by_age: Vec<usize> = (0..SLOTS).collect();
    by_age.sort_by_key(|&index| Slot::new(map, index).attached_ns());
    if let Some(index) = take(map, file, name, by_age, |slot| slot.used())? {
        Slot::new(map, index).free();
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
    map: &Mapping,
    file: &File,
    name: &RingName,
    order: impl IntoIterator<Item = usize>,
    fits: impl Fn(&Slot<'_>) -> bool,
) -> Result<Option<usize>, Error> {
    let path = Path::new(name.as_str());
    for index in order {
        let slot = Slot::new(map, index);
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

/// Begins a new consumer's life in a claimed slot.
pub(crate) fn register(map: &Mapping, index: usize, label: &str, account: &Account) {
    Slot::new(map, index).register(label, account);
}

/// Whether a live consumer of another descriptor than `file` holds slot `index`.
pub(crate) fn lives(file: &File, index: usize) -> bool {
    // When the kernel cannot say, it is taken for alive: wrongly dead is worse.
    lock::held_by_other(file.as_fd(), lock::SLOT_0 + index as u64).unwrap_or(true)
}
