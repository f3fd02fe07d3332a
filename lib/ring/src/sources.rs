//! The source table: where the frames of a ring come from, and what was counted there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layout::{SOURCES, data};
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
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

/// Number of sources that the table names; at most [`SOURCES`] whatever it says.
pub(crate) fn count(map: &Mapping) -> usize {
    // SYNC N: names are complete before they are counted.
    let count = map.word(data::SOURCE_COUNT).load(Ordering::Acquire);
    usize::try_from(count).unwrap_or(SOURCES).min(SOURCES)
}

/// Name of source `index`, none when there is no such source.
pub(crate) fn name(map: &Mapping, index: u16) -> Option<String> {
    let known = usize::from(index) < count(map);
    known.then(|| files::text(map, at(usize::from(index)), NAME_MAX / 8))
}

fn at(index: usize) -> u64 {
    data::SOURCES + ENTRY * index.min(SOURCES - 1) as u64
}

/// Finds the source of that name or adds it; only the producer may.
pub(crate) fn register(map: &Mapping, ring: &str, source_name: &str) -> Result<u16, Error> {
    files::check_label(source_name, NAME_MAX)?;
    let known = count(map);
    let index = (0..known)
        .find(|&index| files::text(map, at(index), NAME_MAX / 8) == source_name)
        .unwrap_or(known);
    if index >= SOURCES {
        return Err(Error::NoSource {
            name: ring.to_owned(),
            sources: SOURCES,
            source_name: source_name.to_owned(),
        });
    }
    if index == known {
        files::set_text(map, at(index), NAME_MAX / 8, source_name);
        // SYNC N: the name is complete before it is counted.
        map.word(data::SOURCE_COUNT)
            .store(index as u64 + 1, Ordering::Release);
    }
    Ok(u16::try_from(index).unwrap_or(0))
}

/// Counts published frames of a source.
#[inline]
pub(crate) fn add_published(map: &Mapping, index: usize, frames: u64) {
    map.bump(at(index) + PUBLISHED, frames);
}

/// Counts received frames of a source.
#[inline]
pub(crate) fn add_received(map: &Mapping, index: u16, frames: u64) {
    map.bump(at(usize::from(index)) + RECEIVED, frames);
}

/// After an unclean end: notes for every source that its counts may be off by what was in flight.
pub(crate) fn add_uncertain(map: &Mapping) {
    for index in 0..count(map) {
        map.bump(at(index) + UNCERTAIN, 1);
    }
}

/// Sums over all sources: frames received and frames published.
pub(crate) fn totals(map: &Mapping) -> (u64, u64) {
    (0..count(map)).fold((0u64, 0u64), |(received, published), index| {
        let add = |sum: u64, field| sum.wrapping_add(map.get(at(index) + field));
        (add(received, RECEIVED), add(published, PUBLISHED))
    })
}

/// Counts frames that were published but not yet counted when the producer was killed: for the first
/// source that has received that many more than it has published.
pub(crate) fn repair_published(map: &Mapping, frames: u64) {
    let owed = |index: &usize| {
        let get = |field| map.get(at(*index) + field);
        get(RECEIVED).saturating_sub(get(PUBLISHED)) >= frames
    };
    let index = (0..count(map)).find(owed).unwrap_or(0);
    map.bump(at(index) + PUBLISHED, frames);
}

/// Counters of one source of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStats {
    /// Index that its frames carry.
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
}

/// Reads the whole table.
pub(crate) fn stats(map: &Mapping) -> Vec<SourceStats> {
    let known = u16::try_from(count(map)).unwrap_or(0);
    (0..known)
        .map(|index| {
            let get = |field| map.get(at(usize::from(index)) + field);
            SourceStats {
                index,
                name: name(map, index).unwrap_or_default(),
                kernel_frames: get(KERNEL_FRAMES),
                kernel_drops: get(KERNEL_DROPS),
                received: get(RECEIVED),
                received_at_read: get(RECEIVED_AT_READ),
                published: get(PUBLISHED),
                missed: get(MISSED),
                uncertain: get(UNCERTAIN),
            }
        })
        .collect()
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

    /// Index that frames of this source carry.
    pub fn index(&self) -> u16 {
        self.index
    }

    fn get(&self, field: u64) -> u64 {
        self.shared.data.get(at(usize::from(self.index)) + field)
    }

    fn add(&self, field: u64, count: u64) {
        self.shared
            .data
            .bump(at(usize::from(self.index)) + field, count);
    }

    /// Adds what the kernel has counted since the last time: all frames, and the dropped ones
    /// among them.
    pub fn add_kernel(&self, frames: u64, drops: u64) {
        self.add(KERNEL_FRAMES, frames);
        self.add(KERNEL_DROPS, drops);
        let received = self.received();
        self.shared
            .data
            .set(at(usize::from(self.index)) + RECEIVED_AT_READ, received);
    }

    /// Counts received frames; to be called before they are published or dropped.
    #[inline]
    pub fn add_received(&self, frames: u64) {
        self.add(RECEIVED, frames);
    }

    /// Counts frames that went past while nobody captured.
    pub fn add_missed(&self, frames: u64) {
        self.add(MISSED, frames);
    }

    /// Notes that counts may have been lost.
    pub fn add_uncertain(&self, times: u64) {
        self.add(UNCERTAIN, times);
    }

    /// Notes an interface and a figure from its own frame counter, to find out after a pause what was missed.
    pub fn set_interface_count(&self, ifindex: u32, frames: u64) {
        let entry = at(usize::from(self.index));
        self.shared
            .data
            .set(entry + INTERFACE_INDEX, u64::from(ifindex));
        self.shared.data.set(entry + INTERFACE_COUNT, frames);
    }

    /// What [`SourceCounters::set_interface_count`] noted last, also in an earlier life; zeros at first.
    pub fn interface_count(&self) -> (u32, u64) {
        let ifindex = u32::try_from(self.get(INTERFACE_INDEX)).unwrap_or(0);
        (ifindex, self.get(INTERFACE_COUNT))
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
