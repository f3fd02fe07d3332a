//! The books of a ring go on when it is made anew.
//!
//! ```text
//!  .ring~17   .ring~17.readers   earlier epochs, oldest first: retired, and linked under hidden names
//!  .ring~18   .ring~18.readers     until their registered readers have passed
//!  ring       .ring.readers      the ring of that name
//! ```
//! A registered reader has a place in every epoch from the one that it reads on: whoever makes a new epoch carries the places
//! over, to its very beginning, before anybody can publish there. So nothing ties a reader to the moment at which it comes: it finds
//! the oldest epoch in which it has a place, reads that to its end, and takes its books along into the next one. A place that nobody
//! will come back for is let go of. What is over the bounds is cut off, oldest first, and counted as lapped in the next epoch.
//!
//! All of it is done under the lock of the directory, in steps that can be done again: whoever does them may be killed between
//! any two. An epoch whose data is gone and whose books nobody has taken along yet, because the ring was deleted, is **closed**:
//! of it the readers file is left.
//!
//! What lies in the directory is not trusted: a link counts only if header, identity and epoch are those that its name says, places
//! only if their numbers add up. An epoch that somebody lives in is never cut: its memory would not be freed.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::create::DirLock;
use crate::error::{Error, IoContext};
use crate::files::{self, Access, Opened, Pair};
use crate::layout::{READERS_MAGIC, SLOTS, readers};
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::{RingDir, RingName};
use crate::protocol::{Account, ledger_at};
use crate::reasons::Outcome;
use crate::slots::{self, Slot};

/// Earlier epochs of a ring that are kept at most, besides those that somebody lives in.
pub(crate) const KEPT: usize = 16;

/// What is kept of earlier epochs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) epochs: usize,
    pub(crate) bytes: u64,
}

impl Bounds {
    pub(crate) const NONE: Bounds = Bounds {
        epochs: usize::MAX,
        bytes: u64::MAX,
    };
}

/// Frames that a reader can get no more, because the epoch that they were in was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOff {
    /// The reader.
    pub reader: String,
    /// How many; they are among its lapped frames.
    pub frames: u64,
}

/// An epoch and the places in it.
#[derive(Debug)]
struct Epoch {
    name: RingName,
    pair: Pair,
    number: u64,
    base: u64,
    footprint: u64,
    shared: Arc<Shared>,
    readers_file: File,
    /// The data is gone.
    closed: bool,
}

impl Epoch {
    /// An earlier epoch, if the files are what their names say.
    fn open(dir: &RingDir, name: &RingName, number: u64) -> Option<Epoch> {
        let pair = dir.earlier_pair(name, number);
        match files::open_once(&pair, Access::Producer) {
            Ok(opened) if opened.info.epoch == number => Some(Epoch::of(opened, pair)),
            Err(Error::NotFound { .. }) => Epoch::open_closed(pair, number),
            _ => None,
        }
    }

    /// The ring of that name, unless it is retired.
    fn current(dir: &RingDir, name: &RingName) -> Option<Epoch> {
        let pair = dir.pair(name);
        let opened = files::open_once(&pair, Access::Producer).ok()?;
        let opened = opened.unless_retired().ok()?;
        Some(Epoch::of(opened, pair))
    }

    fn of(opened: Opened, pair: Pair) -> Epoch {
        Epoch {
            name: opened.info.name,
            pair,
            number: opened.info.epoch,
            base: opened.info.base_pos,
            footprint: opened.info.footprint,
            shared: opened.shared,
            readers_file: opened.readers_file,
            closed: false,
        }
    }

    fn open_closed(pair: Pair, number: u64) -> Option<Epoch> {
        let file = files::open_file(&pair.readers, true).ok()?;
        files::readers_uuid(&file).ok()??;
        let map = || Mapping::new(&file, readers::FILE_LEN, 0, crate::layout::PAGE, true).ok();
        // Of the data file nothing is looked at any more; the readers file stands in for it.
        let shared = Shared {
            data: map()?,
            readers: map()?,
        };
        let map = &shared.readers;
        let sound = map.get(readers::MAGIC) == READERS_MAGIC
            && map.get(readers::EPOCH) == number
            && map.get(readers::CLOSED) != 0;
        sound.then(|| Epoch {
            name: pair.name.clone(),
            pair,
            number,
            base: 0,
            footprint: readers::FILE_LEN,
            shared: Arc::new(shared),
            readers_file: file,
            closed: true,
        })
    }

    /// The number after that of the last frame.
    fn end(&self) -> u64 {
        if self.closed {
            return self.shared.readers.get(readers::CLOSED);
        }
        let ledger = ledger_at(self.shared.as_ref());
        ledger.map_or(1, |ledger| ledger.seq.wrapping_add(1))
    }

    fn producer_lives(&self) -> bool {
        !self.closed && files::producer_lives(&self.readers_file, &self.name).unwrap_or(true)
    }

    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let slots = (0..SLOTS).map(|index| Slot::new(&self.shared, index));
        slots.filter(Slot::used)
    }

    fn lives(&self, slot: &Slot<'_>) -> bool {
        slots::lives(&self.readers_file, slot.index())
    }

    fn is_lived_in(&self) -> bool {
        self.producer_lives() || self.slots().any(|slot| self.lives(&slot))
    }

    /// The place in this epoch into which the books of slot `from` of an earlier one go. `None` when there is no room.
    /// That of a reader which lives here already is nobody else's to write.
    fn place_for(&self, from: &Slot<'_>, epoch: u64) -> Option<Slot<'_>> {
        let label = from.label();
        let slot = |index| Slot::new(&self.shared, index);
        let order = || std::iter::once(from.index()).chain(0..SLOTS).map(slot);
        let mut own = order().filter(|slot| slot.used() && slot.label() == label);
        if let Some(slot) = own.next() {
            // One that is not carried has come from there in an earlier attempt, or is another's of the same name.
            let is_its = slot.carried() || slot.account().is_some_and(|it| it.came_from == epoch);
            return (is_its && !self.lives(&slot)).then_some(slot);
        }
        let found = order().find(|slot| !slot.used() && !self.lives(slot))?;
        found.carry(from, self.base);
        Some(found)
    }

    /// Removes the names. Nothing but the books of those who live in it is lost, and they have it mapped.
    fn remove(&self) -> Result<(), Error> {
        self.close()?;
        crate::create::remove(&self.pair.readers)
    }

    /// Removes the data, which nobody reads any more.
    fn close(&self) -> Result<(), Error> {
        if !self.closed {
            let end = self.end();
            self.shared.readers.set(readers::CLOSED, end);
        }
        crate::create::remove(&self.pair.data)
    }
}

/// Frames that an account has counted.
fn counted(account: &Account) -> u64 {
    let counters = [
        account.delivered,
        account.lapped,
        account.corrupt,
        account.skipped,
    ];
    counters.into_iter().fold(0, u64::wrapping_add)
}

/// The counters of a place, if they add up and end before `end`.
fn sound(slot: &Slot<'_>, end: u64) -> Option<Account> {
    let account = slot.account()?;
    let passed = account.next_seq.wrapping_sub(slot.attach_seq());
    (counted(&account) == passed && (1..=end).contains(&account.next_seq)).then_some(account)
}

/// Adds the books of slot `from` of epoch `epoch`, which ends before frame `end`, to those in `to`, which is at the beginning of its
/// epoch: what has not been read is lapped. `to` may have counted what was cut off between the two. May be done again when it was
/// done in part: all changes in one step, and what must be known before is computed from what has not changed.
fn pass_on(from: &Slot<'_>, epoch: u64, end: u64, to: &Slot<'_>) {
    let there = to.account().unwrap_or_default();
    let Some(here) = sound(from, end).filter(|_| there.came_from != epoch) else {
        return;
    };
    let passed = end.wrapping_sub(from.attach_seq());
    to.set_attach_seq(1_u64.wrapping_sub(passed).wrapping_sub(counted(&there)));
    // Only one of the two can have any: the place that the reader was in.
    for &outcome in Outcome::ALL {
        if from.outcome(outcome) > 0 {
            to.set_outcome(outcome, from.outcome(outcome));
        }
    }
    let unread = end.wrapping_sub(here.next_seq);
    to.set_account(&Account {
        pos: there.pos,
        next_seq: 1,
        delivered: there.delivered.wrapping_add(here.delivered),
        delivered_bytes: there.delivered_bytes.wrapping_add(here.delivered_bytes),
        lapped: there.lapped.wrapping_add(here.lapped).wrapping_add(unread),
        corrupt: there.corrupt.wrapping_add(here.corrupt),
        skipped: there.skipped.wrapping_add(here.skipped),
        came_from: epoch,
    });
}

/// Empties places whose books have gone on already, should somebody have been killed before he could do that.
fn finish_passing(epoch: &Epoch, next: &Epoch) {
    for slot in epoch.slots().filter(|slot| !epoch.lives(slot)) {
        let label = slot.label();
        let mut places = next.slots().filter(|place| place.label() == label);
        let came = |place: Slot<'_>| {
            place
                .account()
                .is_some_and(|it| it.came_from == epoch.number)
        };
        if places.any(came) {
            slot.vacate();
        }
    }
}

/// Opens what there is, oldest first. Links to the ring that has the name, which a killed creator has left, are removed.
fn chain(dir: &RingDir, name: &RingName, current: Option<&Epoch>) -> Vec<Epoch> {
    let mut chain = Vec::new();
    for number in dir.earlier_epochs(name) {
        if let Some(current) = current.filter(|current| current.number == number) {
            let pair = dir.earlier_pair(name, number);
            for (link, real) in [
                (&pair.data, &current.pair.data),
                (&pair.readers, &current.pair.readers),
            ] {
                if files::is_same(link, real) {
                    let _ = std::fs::remove_file(link);
                }
            }
            continue;
        }
        let Some(epoch) = Epoch::open(dir, name, number) else {
            continue;
        };
        if !epoch.closed && epoch.shared.retired().is_none() {
            // Its successor has the name, but whoever put it there was killed before it could say so.
            epoch.shared.retire(current.map(|current| current.number));
        }
        chain.push(epoch);
    }
    chain
}

/// What became of an epoch.
enum Settled {
    /// Nobody needs it any more.
    Removed,
    /// It was left as it is, or as its books.
    Kept,
}

/// Lets the places of `epoch` go on to `next` that are at its end, all if it is to be `cut`, and removes what is not needed then.
fn settle(
    before: &[&Epoch],
    epoch: &Epoch,
    next: Option<&Epoch>,
    cut: bool,
    cut_off: &mut Vec<CutOff>,
) -> Result<Settled, Error> {
    if epoch.producer_lives() {
        return Ok(Settled::Kept);
    }
    let end = epoch.end();
    let (mut needed, mut books) = (false, false);
    for slot in epoch.slots() {
        if epoch.lives(&slot) {
            needed = true;
            continue;
        }
        let lives_earlier = slot.carried() && before.iter().any(|earlier| earlier.lives(&slot));
        if slot.transient() && !lives_earlier {
            slot.free();
            continue;
        }
        let unread = sound(&slot, end).map_or(0, |account| end.wrapping_sub(account.next_seq));
        if unread > 0 && !cut && !epoch.closed {
            needed = true;
            continue;
        }
        let Some(next) = next else {
            books = true;
            continue;
        };
        if let Some(place) = next.place_for(&slot, epoch.number) {
            pass_on(&slot, epoch.number, end, &place);
        }
        if unread > 0 {
            cut_off.push(CutOff {
                reader: slot.label(),
                frames: unread,
            });
        }
        slot.vacate();
    }
    if needed {
        return Ok(Settled::Kept);
    }
    if books {
        epoch.close()?;
        return Ok(Settled::Kept);
    }
    epoch.remove()?;
    Ok(Settled::Removed)
}

/// Lets go of what nobody needs, and cuts off the oldest of what is over the bounds. The caller holds the lock of the directory.
pub(crate) fn sweep(dir: &RingDir, name: &RingName, bounds: Bounds) -> Result<Vec<CutOff>, Error> {
    let mut cut_off = Vec::new();
    if dir.earlier_epochs(name).is_empty() {
        return Ok(cut_off);
    }
    let current = Epoch::current(dir, name);
    let chain = chain(dir, name, current.as_ref());
    let mut left: Vec<&Epoch> = Vec::new();
    let next = |at: usize| chain.get(at + 1).or(current.as_ref());
    for (at, epoch) in chain.iter().enumerate() {
        if let Some(next) = next(at) {
            finish_passing(epoch, next);
        }
    }
    for (at, epoch) in chain.iter().enumerate() {
        match settle(&left, epoch, next(at), false, &mut cut_off)? {
            Settled::Removed => {}
            Settled::Kept => left.push(epoch),
        }
    }
    let over = |left: &[&Epoch]| {
        let bytes = left
            .iter()
            .fold(0, |sum: u64, it| sum.saturating_add(it.footprint));
        left.len() > bounds.epochs || bytes > bounds.bytes
    };
    let mut at = 0;
    while at < left.len() && over(&left) {
        let epoch = left[at];
        if epoch.closed || epoch.is_lived_in() {
            at += 1;
            continue;
        }
        let (before, after) = left.split_at(at);
        let next = after.get(1).copied().or(current.as_ref());
        match settle(before, epoch, next, true, &mut cut_off)? {
            Settled::Removed => drop(left.remove(at)),
            Settled::Kept => at += 1,
        }
    }
    Ok(cut_off)
}

/// Keeps the ring that has the name, which is about to lose it, if there are places in it that are to go on. The caller holds the
/// lock of the directory.
pub(crate) fn keep(dir: &RingDir, old: &Opened) -> Result<(), Error> {
    let earlier = earlier_readers(dir, &old.info.name, old.info.epoch);
    let mut places = (0..SLOTS).map(|index| Slot::new(&old.shared, index));
    if !places.any(|slot| goes_on(old, &slot, &earlier)) {
        return Ok(());
    }
    let (pair, goal) = (
        dir.pair(&old.info.name),
        dir.earlier_pair(&old.info.name, old.info.epoch),
    );
    for (from, to) in [(&pair.readers, &goal.readers), (&pair.data, &goal.data)] {
        crate::create::remove(to)?;
        std::fs::hard_link(from, to).at("keep as an earlier epoch", from)?;
    }
    Ok(())
}

/// Whether a place is to be carried over: its reader lives, there or in an earlier epoch, or will be started again.
fn goes_on(old: &Opened, slot: &Slot<'_>, earlier: &[File]) -> bool {
    let lives = || slots::lives(&old.readers_file, slot.index());
    slot.used() && (!slot.transient() || lives() || slots::lives_earlier(slot, earlier))
}

/// Gives the readers of the newest epoch before it places in a ring that nobody sees yet, at its beginning. `old` is the ring that has
/// the name; without one it is the newest that is kept.
pub(crate) fn carry(dir: &RingDir, name: &RingName, old: Option<&Opened>, new: &Shared, base: u64) {
    if let Some(old) = old {
        let earlier = earlier_readers(dir, name, old.info.epoch);
        for index in 0..SLOTS {
            let slot = Slot::new(&old.shared, index);
            if goes_on(old, &slot, &earlier) {
                Slot::new(new, index).carry(&slot, base);
            }
        }
        return;
    }
    let chain = chain(dir, name, None);
    for slot in chain.last().iter().flat_map(|last| last.slots()) {
        if !slot.transient() || chain.iter().any(|epoch| epoch.lives(&slot)) {
            Slot::new(new, slot.index()).carry(&slot, base);
        }
    }
}

/// After the old ring was retired: who has left it or joined it since [`carry`] leaves the new one, or gets a place there.
pub(crate) fn reconcile(dir: &RingDir, old: &Opened, new: &Shared, base: u64) {
    // See `Slot::vacate`.
    fence(Ordering::SeqCst);
    let earlier = earlier_readers(dir, &old.info.name, old.info.epoch);
    for index in 0..SLOTS {
        let (from, to) = (Slot::new(&old.shared, index), Slot::new(new, index));
        let stays = goes_on(old, &from, &earlier);
        if stays && to.used() && from.label() == to.label() {
            continue;
        }
        if to.used() && to.carried() {
            to.vacate();
        }
        if stays && !to.used() {
            to.carry(&from, base);
        }
    }
}

/// The oldest epoch in which a dead reader of that label has a place, with the place locked. What it has passed is let go of first.
pub(crate) fn resume(
    dir: &RingDir,
    name: &RingName,
    label: &str,
) -> Result<Option<(Opened, usize)>, Error> {
    if dir.earlier_epochs(name).is_empty() {
        return Ok(None);
    }
    let _lock = DirLock::take(dir.place(name))?;
    // What cannot be removed is removed by somebody who may.
    let _ = sweep(dir, name, Bounds::NONE);
    for number in dir.earlier_epochs(name) {
        let pair = dir.earlier_pair(name, number);
        let Ok(opened) = files::open_once(&pair, Access::Consumer) else {
            continue;
        };
        if opened.info.epoch != number || opened.shared.retired().is_none() {
            continue;
        }
        for index in 0..SLOTS {
            let slot = Slot::new(&opened.shared, index);
            if !slot.used() || slot.label() != label {
                continue;
            }
            // Another one of that name lives there: its later places are its own.
            let free = slots::lock_place(&opened.readers_file, name, index)?;
            return Ok(free.then_some((opened, index)));
        }
    }
    Ok(None)
}

/// Where a reader goes on that is through with its epoch.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) opened: Opened,
    pub(crate) slot: usize,
}

/// A reader that is through with its epoch.
#[derive(Debug)]
pub(crate) struct From<'a> {
    pub(crate) info: &'a files::RingInfo,
    pub(crate) uuid: [u64; 2],
    pub(crate) shared: &'a Shared,
    pub(crate) slot: usize,
    pub(crate) label: &'a str,
}

/// Gives a reader its place in the next epoch, locked and with its books. `None` when there is no next one yet. The caller holds the
/// lock of the directory.
pub(crate) fn advance(dir: &RingDir, from: &From<'_>) -> Result<Option<Next>, Error> {
    let name = &from.info.name;
    // Books that are left over from epochs without data are to be in the next one before ours are.
    let _ = sweep(dir, name, Bounds::NONE);
    let Some(opened) = next_after(dir, name, from.info.epoch, from.uuid) else {
        return Ok(None);
    };
    let old = Slot::new(from.shared, from.slot);
    let end = ledger_at(from.shared).map_or(1, |ledger| ledger.seq.wrapping_add(1));
    let slot = claim(&opened, name, &old, from.label)?;
    let to = Slot::new(&opened.shared, slot);
    if !(to.used() && to.carried()) {
        // The one who made it did not know of this reader.
        to.carry(&old, opened.info.base_pos);
        to.set_label(from.label);
    }
    pass_on(&old, from.info.epoch, end, &to);
    to.sign();
    Ok(Some(Next { opened, slot }))
}

/// Locks the place of `label` in a next epoch: the one that was carried over, or another.
fn claim(opened: &Opened, name: &RingName, old: &Slot<'_>, label: &str) -> Result<usize, Error> {
    let order = std::iter::once(old.index()).chain(0..SLOTS);
    for index in order {
        let slot = Slot::new(&opened.shared, index);
        let carried = slot.used() && slot.carried() && slot.label() == label;
        if carried && slots::lock_place(&opened.readers_file, name, index)? {
            return Ok(index);
        }
    }
    let claim = slots::claim(
        &opened.shared,
        &opened.readers_file,
        name,
        label,
        false,
        &[],
    )?;
    Ok(claim.index)
}

/// The epoch after `epoch`: the oldest later one that is kept, else the ring that has the name.
fn next_after(dir: &RingDir, name: &RingName, epoch: u64, uuid: [u64; 2]) -> Option<Opened> {
    let later = dir.earlier_epochs(name);
    let later = later.into_iter().filter(|&number| number > epoch);
    let mut kept = later.filter_map(|number| {
        let opened = files::open_once(&dir.earlier_pair(name, number), Access::Consumer).ok()?;
        (opened.info.epoch == number).then_some(opened)
    });
    if let Some(opened) = kept.next() {
        return Some(opened);
    }
    let current = files::open_once(&dir.pair(name), Access::Consumer).ok()?;
    let current = current.unless_retired().ok()?;
    (current.header.uuid != uuid).then_some(current)
}

/// Gives up the places that a reader of that label has and does not live in. The caller holds the lock of the directory.
pub(crate) fn forget(dir: &RingDir, name: &RingName, label: &str) {
    let current = Epoch::current(dir, name);
    let mut epochs = chain(dir, name, current.as_ref());
    epochs.extend(current);
    for epoch in &epochs {
        for slot in epoch.slots().filter(|slot| slot.label() == label) {
            if !epoch.lives(&slot) {
                slot.free();
            }
        }
    }
}

/// The readers files of the earlier epochs, to ask who lives there.
pub(crate) fn earlier_readers(dir: &RingDir, name: &RingName, before: u64) -> Vec<File> {
    let epochs = dir.earlier_epochs(name);
    let epochs = epochs.into_iter().filter(|&number| number < before);
    epochs
        .filter_map(|number| files::open_file(&dir.earlier_pair(name, number).readers, false).ok())
        .filter(|file| matches!(files::readers_uuid(file), Ok(Some(_))))
        .collect()
}

/// What the earlier epochs of a ring are kept for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many epochs.
    pub epochs: usize,
    /// Bytes of memory that they occupy.
    pub bytes: u64,
    /// The readers that have not passed them yet.
    pub readers: Vec<String>,
}

/// The rings that have earlier epochs, whether or not there is a ring of that name now, and what these are kept for.
#[must_use]
pub fn kept(dir: &RingDir) -> Vec<(RingName, Kept)> {
    let names = dir.with_earlier_epochs().into_iter();
    names
        .map(|name| (name.clone(), kept_of(dir, &name)))
        .collect()
}

/// What the earlier epochs of one ring are kept for.
#[must_use]
pub fn kept_of(dir: &RingDir, name: &RingName) -> Kept {
    let mut kept = Kept::default();
    for number in dir.earlier_epochs(name) {
        let Some(epoch) = Epoch::open(dir, name, number) else {
            continue;
        };
        kept.epochs += 1;
        kept.bytes = kept.bytes.saturating_add(epoch.footprint);
        kept.readers.extend(epoch.slots().map(|slot| slot.label()));
    }
    kept.readers.sort();
    kept.readers.dedup();
    kept
}

/// Lets go of the earlier epochs of a ring that nobody needs, and of the oldest others if all together occupy more than `bytes`. Returns what
/// that cut off. To be called now and then: nobody else does it for readers that have died.
///
/// # Errors
/// [`Error::Locked`], [`Error::Io`].
pub fn tidy(dir: &RingDir, name: &RingName, bytes: u64) -> Result<Vec<CutOff>, Error> {
    if dir.earlier_epochs(name).is_empty() {
        return Ok(Vec::new());
    }
    let _lock = DirLock::take(dir.place(name))?;
    let bounds = Bounds {
        epochs: KEPT,
        bytes,
    };
    sweep(dir, name, bounds)
}
