//! The source table: where the frames of a ring come from, and what was counted there.
//!
//! It has a fixed number of entries. A source that finds none gets that of one which is no longer at work, whose counters go into a sum
//! of all such; its number is a new one, so that nobody takes older frames in the ring for its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layout::{SOURCES, data};
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::places::{self, Place};
use crate::{error::Error, files};

/// Longest name of a source in bytes.
pub(crate) const NAME_MAX: usize = 48;

const ENTRY: u64 = 128;
const KERNEL_FRAMES: u64 = 48;
const KERNEL_DROPS: u64 = 56;
const RECEIVED: u64 = 64;
const RECEIVED_AT_READ: u64 = 72;
const PUBLISHED: u64 = 80;
const MISSED: u64 = 88;
const UNCERTAIN: u64 = 96;
const INTERFACE_COUNT: u64 = 104;
const INTERFACE_INDEX: u64 = 112;
/// Counts the sources that have had the entry.
const GENERATION: u64 = 120;

/// Generations of an entry that can be told apart by the numbers of its sources.
const GENERATIONS: u64 = 1 << 11;
/// Counters of an entry, which begin at [`KERNEL_FRAMES`].
const COUNTERS: u64 = 7;
/// Name under which the counters of those are shown whose entries others have got. No interface can have it.
const FORMER: &str = "former sources";

/// Number of entries that the table names; at most [`SOURCES`] whatever it says.
pub(crate) fn count(map: &Mapping) -> usize {
    // SYNC N: names are complete before they are counted.
    let count = map.word(data::SOURCE_COUNT).load(Ordering::Acquire);
    usize::try_from(count).unwrap_or(SOURCES).min(SOURCES)
}

/// Name of source `number`, none when there is no such source (any more).
pub(crate) fn name(map: &Mapping, number: u16) -> Option<String> {
    let entry = entry_of(number);
    let known = entry < count(map) && number_of(map, entry) == number;
    known.then(|| files::text(map, at(entry), NAME_MAX / 8))
}

/// The numbers of all that have an entry.
pub(crate) fn numbers(map: &Mapping) -> Vec<u16> {
    (0..count(map)).map(|entry| number_of(map, entry)).collect()
}

/// Where the times of watching of an entry are.
fn watched_at(entry: usize) -> u64 {
    data::WATCHED + 16 * entry.min(SOURCES - 1) as u64
}

fn at(entry: usize) -> u64 {
    data::SOURCES + ENTRY * entry.min(SOURCES - 1) as u64
}

/// Where the place of an entry is noted.
fn place_at(entry: usize) -> u64 {
    data::PLACES + 8 * entry.min(SOURCES - 1) as u64
}

/// The entry that a number stands for. Sources that have an entry one after the other have different numbers, so that frames of
/// the earlier ones are never taken for frames of the later ones.
#[inline]
pub(crate) fn entry_of(number: u16) -> usize {
    usize::from(number) % SOURCES
}

fn number_of(map: &Mapping, entry: usize) -> u16 {
    let generation = map.get(at(entry) + GENERATION) % GENERATIONS;
    // Below 2048 * 32.
    u16::try_from(generation * SOURCES as u64 + entry as u64).unwrap_or(0)
}

/// Finds the source of that name or adds it; only the producer may. `active` has a bit for each entry that is in use: where there
/// is no other, one that is not is given to the new source.
pub(crate) fn register(
    map: &Mapping,
    ring: &str,
    source_name: &str,
    active: &mut u32,
) -> Result<u16, Error> {
    files::check_label(source_name, NAME_MAX)?;
    let known = count(map);
    let mut of_name =
        (0..known).filter(|&it| files::text(map, at(it), NAME_MAX / 8) == source_name);
    let entry = match of_name.next() {
        Some(entry) => entry,
        None if known < SOURCES => {
            files::set_text(map, at(known), NAME_MAX / 8, source_name);
            // SYNC N: the name is complete before it is counted.
            map.word(data::SOURCE_COUNT)
                .store(known as u64 + 1, Ordering::Release);
            known
        }
        None => {
            let free = (0..SOURCES).filter(|&entry| *active & (1 << entry) == 0);
            // Best the one of which fewest frames can be in the ring.
            let published = |entry: &usize| map.get(at(*entry) + PUBLISHED);
            let entry = free.min_by_key(published).ok_or_else(|| Error::NoSource {
                name: ring.to_owned(),
                sources: SOURCES,
                source_name: source_name.to_owned(),
            })?;
            fold(map, entry);
            files::set_text(map, at(entry), NAME_MAX / 8, source_name);
            entry
        }
    };
    *active |= 1 << entry;
    Ok(number_of(map, entry))
}

/// Where the counters of former sources are: two sets, used in turn, so that they change in one step with [`data::FOLD`].
fn former(turn: u64) -> u64 {
    data::FORMER + 64 * (turn & 1)
}

/// What [`data::FOLD`] says when the counters of an entry's present generation are among those of the former sources.
fn folded(map: &Mapping, entry: usize) -> u64 {
    let generation = map.get(at(entry) + GENERATION) % GENERATIONS;
    (entry as u64 + 1) << 8 | generation << 16
}

/// Adds the counters of an entry to those of the former sources and empties it.
fn fold(map: &Mapping, entry: usize) {
    finish_fold(map);
    let turn = map.get(data::FOLD) & 1;
    for counter in 0..COUNTERS {
        let sum = map
            .get(former(turn) + 8 * counter)
            .wrapping_add(map.get(at(entry) + KERNEL_FRAMES + 8 * counter));
        map.set(former(turn ^ 1) + 8 * counter, sum);
    }
    map.word(data::FOLD)
        .store(folded(map, entry) | (turn ^ 1), Ordering::Release);
    finish_fold(map);
}

/// Empties the entry whose counters were added last, unless that was done: a producer may be killed in between.
pub(crate) fn finish_fold(map: &Mapping) {
    let word = map.get(data::FOLD) & !1;
    let Some(entry) = (0..SOURCES).find(|&entry| folded(map, entry) == word) else {
        return;
    };
    for field in [INTERFACE_COUNT, INTERFACE_INDEX] {
        map.set(at(entry) + field, 0);
    }
    for word in [0, 8] {
        map.set(watched_at(entry) + word, 0);
    }
    for counter in 0..COUNTERS {
        map.set(at(entry) + KERNEL_FRAMES + 8 * counter, 0);
    }
    let generation = map.get(at(entry) + GENERATION);
    map.set(at(entry) + GENERATION, (generation + 1) % GENERATIONS);
}

/// A counter of an entry, which is 0 while it is among those of the former sources.
fn counter(map: &Mapping, entry: usize, field: u64) -> u64 {
    if map.get(data::FOLD) & !1 == folded(map, entry) {
        return 0;
    }
    map.get(at(entry) + field)
}

/// Counts published frames of a source.
#[inline]
pub(crate) fn add_published(map: &Mapping, entry: usize, frames: u64) {
    map.bump(at(entry) + PUBLISHED, frames);
}

/// Counts received frames of a source.
#[inline]
pub(crate) fn add_received(map: &Mapping, number: u16, frames: u64) {
    map.bump(at(entry_of(number)) + RECEIVED, frames);
}

/// After an unclean end: notes for every source that its counts may be off by what was in flight.
pub(crate) fn add_uncertain(map: &Mapping) {
    for entry in 0..count(map) {
        map.bump(at(entry) + UNCERTAIN, 1);
    }
}

/// Sums over all sources: frames received and frames published.
pub(crate) fn totals(map: &Mapping) -> (u64, u64) {
    let set = former(map.get(data::FOLD)) - KERNEL_FRAMES;
    let gone = (map.get(set + RECEIVED), map.get(set + PUBLISHED));
    (0..count(map)).fold(gone, |(received, published), entry| {
        let add = |sum: u64, field| sum.wrapping_add(counter(map, entry, field));
        (add(received, RECEIVED), add(published, PUBLISHED))
    })
}

/// Counts frames that were published but not yet counted when the producer was killed: for the first
/// source that has received that many more than it has published.
pub(crate) fn repair_published(map: &Mapping, frames: u64) {
    let owed = |entry: &usize| {
        let get = |field| map.get(at(*entry) + field);
        get(RECEIVED).saturating_sub(get(PUBLISHED)) >= frames
    };
    let entry = (0..count(map)).find(owed).unwrap_or(0);
    map.bump(at(entry) + PUBLISHED, frames);
}

/// A new producer: what the one before has noted of interfaces holds no longer.
pub(crate) fn forget_places(map: &Mapping) {
    for index in 0..count(map) {
        places::store(map, place_at(index), None);
    }
}

/// Counters of one source of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStats {
    /// Number that its frames carry.
    pub index: u16,
    /// Its name, e.g. that of the interface.
    pub name: String,
    /// Frames that the kernel counted for it, dropped ones included.
    pub kernel_frames: u64,
    /// Frames that the kernel dropped before the producer saw them.
    pub kernel_drops: u64,
    /// Frames that the producer received.
    pub received: u64,
    /// Value of `received` when the kernel's counters were last read.
    pub received_at_read: u64,
    /// Frames published into the ring.
    pub published: u64,
    /// Frames that went past while nobody captured, by estimate of the interface's own counter.
    pub missed: u64,
    /// How often counts may have been lost because a producer was killed.
    pub uncertain: u64,
    /// For how long, in nanoseconds, frames may have gone past that no counter tells of.
    pub unwatched_ns: u64,
    /// The interface that it is, as far as whoever fills the ring has noted that; none when it is not one any more.
    pub place: Option<Place>,
}

/// Reads the whole table, and in the end the sum of those that have lost their entries to others, if there are any.
pub(crate) fn stats(map: &Mapping) -> Vec<SourceStats> {
    let read = |index, name, place, get: &dyn Fn(u64) -> u64| SourceStats {
        index,
        name,
        kernel_frames: get(KERNEL_FRAMES),
        kernel_drops: get(KERNEL_DROPS),
        received: get(RECEIVED),
        received_at_read: get(RECEIVED_AT_READ),
        published: get(PUBLISHED),
        missed: get(MISSED),
        uncertain: get(UNCERTAIN),
        unwatched_ns: 0,
        place,
    };
    let mut all: Vec<_> = (0..count(map))
        .map(|entry| {
            let number = number_of(map, entry);
            let get = |field| counter(map, entry, field);
            let place = places::load(map, place_at(entry));
            SourceStats {
                unwatched_ns: map.get(watched_at(entry) + 8),
                ..read(number, name(map, number).unwrap_or_default(), place, &get)
            }
        })
        .collect();
    let fold = map.get(data::FOLD);
    if fold != 0 {
        let set = former(fold) - KERNEL_FRAMES;
        all.push(read(u16::MAX, FORMER.to_owned(), None, &|field| {
            map.get(set + field)
        }));
    }
    all
}

/// The producer's handle on the counters of one source. Cheap to clone; keeps the ring mapped.
///
/// Counters have one writer: only the thread that produces may add.
#[derive(Debug, Clone)]
pub struct SourceCounters {
    shared: Arc<Shared>,
    index: u16,
}

impl SourceCounters {
    pub(crate) fn new(shared: Arc<Shared>, index: u16) -> Self {
        Self { shared, index }
    }

    /// Number that frames of this source carry.
    pub fn index(&self) -> u16 {
        self.index
    }

    fn get(&self, field: u64) -> u64 {
        self.shared.data.get(at(entry_of(self.index)) + field)
    }

    fn add(&self, field: u64, count: u64) {
        self.shared
            .data
            .bump(at(entry_of(self.index)) + field, count);
    }

    /// Adds what the kernel has counted since the last time: all frames, and the dropped ones
    /// among them.
    pub fn add_kernel(&self, frames: u64, drops: u64) {
        self.add(KERNEL_FRAMES, frames);
        self.add(KERNEL_DROPS, drops);
        let received = self.received();
        self.shared
            .data
            .set(at(entry_of(self.index)) + RECEIVED_AT_READ, received);
    }

    /// Counts received frames; to be called before they are published or dropped.
    #[inline]
    pub fn add_received(&self, frames: u64) {
        self.add(RECEIVED, frames);
    }

    /// Takes frames out of the counts of the kernel and of those received: they were received twice, by a socket and by the one that took
    /// its place.
    pub fn take_back(&self, frames: u64) {
        for field in [KERNEL_FRAMES, RECEIVED_AT_READ, RECEIVED] {
            self.add(field, frames.wrapping_neg());
        }
    }

    /// Counts frames that went past while nobody captured.
    pub fn add_missed(&self, frames: u64) {
        self.add(MISSED, frames);
    }

    /// Notes that counts may have been lost.
    pub fn add_uncertain(&self, times: u64) {
        self.add(UNCERTAIN, times);
    }

    /// Notes which counter of an interface counts the frames of this source, and a figure from it, to find out after a pause what was
    /// missed.
    pub fn set_interface_count(&self, counter: u64, frames: u64) {
        let entry = at(entry_of(self.index));
        self.shared.data.set(entry + INTERFACE_INDEX, counter);
        self.shared.data.set(entry + INTERFACE_COUNT, frames);
    }

    /// Notes which interface it is, for those who look for loops; none: frames do not come from there any more.
    pub fn set_place(&self, place: Option<Place>) {
        let at = place_at(entry_of(self.index));
        places::store(&self.shared.data, at, place);
    }

    /// What [`SourceCounters::set_interface_count`] noted last, also in an earlier life; zeros at first.
    pub fn interface_count(&self) -> (u64, u64) {
        (self.get(INTERFACE_INDEX), self.get(INTERFACE_COUNT))
    }

    /// Notes that frames of this source have been received, or would have been, until this time, in nanoseconds since 1970.
    pub fn set_watched(&self, until_ns: u64) {
        let at = watched_at(entry_of(self.index));
        self.shared.data.set(at, until_ns);
    }

    /// What [`SourceCounters::set_watched`] noted last, also in an earlier life; 0 at first.
    pub fn watched_until(&self) -> u64 {
        self.shared.data.get(watched_at(entry_of(self.index)))
    }

    /// Notes that nobody knows what went past for so many nanoseconds.
    pub fn add_unwatched(&self, ns: u64) {
        let at = watched_at(entry_of(self.index)) + 8;
        self.shared.data.bump(at, ns);
    }

    /// The sum of those times.
    pub fn unwatched_ns(&self) -> u64 {
        self.shared.data.get(watched_at(entry_of(self.index)) + 8)
    }

    /// Frames that the kernel counted, dropped ones included.
    pub fn kernel_frames(&self) -> u64 {
        self.get(KERNEL_FRAMES)
    }

    /// Frames that the kernel dropped.
    pub fn kernel_drops(&self) -> u64 {
        self.get(KERNEL_DROPS)
    }

    /// Frames received.
    pub fn received(&self) -> u64 {
        self.get(RECEIVED)
    }

    /// Frames received when the kernel's counters were last read.
    pub fn received_at_read(&self) -> u64 {
        self.get(RECEIVED_AT_READ)
    }

    /// Frames published.
    pub fn published(&self) -> u64 {
        self.get(PUBLISHED)
    }

    /// Frames that went past while nobody captured.
    pub fn missed(&self) -> u64 {
        self.get(MISSED)
    }

    /// How often counts may have been lost.
    pub fn uncertain(&self) -> u64 {
        self.get(UNCERTAIN)
    }
}
