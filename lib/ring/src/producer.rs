//! The one that writes.

use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::epochs;
use crate::error::{Error, IoContext};
use crate::files::{self, Access, Opened, Retired, RingInfo};
use crate::frame::Meta;
use crate::layout::{LABEL_MAX, Mode, SLOTS, SOURCES, data, readers};
use crate::memory::lock;
use crate::memory::shared::Shared;
use crate::name::{RingDir, RingName};
use crate::name_watch::NameWatch;
use crate::protocol::{Account, DATA_BELL, Head, Kind, META, SPACE_BELL, Slept, Writer};
use crate::reasons::DropReason;
use crate::slots::{self, Slot};
use crate::sources::{self, SourceCounters};

/// Larger rings are not mapped page by page in advance: it would take seconds.
const POPULATE_MAX: u64 = 1 << 30;

/// The one producer of a ring.
///
/// It may move to another thread but not be shared: positions have one writer.
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    /// Carries the producer's lock.
    readers_file: File,
    info: RingInfo,
    watch: NameWatch,
    /// `wait` mode: the readers files of earlier epochs, in which those may live who have a place here but are not here yet.
    earlier: Vec<File>,
    writer: Writer,
    /// Frames of the present burst by source, and which of them are not zero.
    burst: [u32; SOURCES],
    touched: u32,
    /// Entries of the source table that this producer has use for.
    active: u32,
    /// Time of the latest frame so far.
    latest_ns: u64,
    /// `wait` mode: nobody who must not be lapped is before this position.
    slowest: u64,
    /// `wait` mode: state of the registrations when `slowest` was found out.
    registrations: u64,
    single_thread: PhantomData<Cell<()>>,
}

impl Producer {
    /// Becomes the producer of a ring and continues where the last one ended, however it ended.
    /// `holder` tells others who writes here: 1 to 64 bytes.
    ///
    /// # Errors
    /// [`Error::Busy`] when a live producer holds the ring, [`Error::NotFound`], [`Error::Retired`],
    /// [`Error::Damaged`], [`Error::InvalidLabel`], [`Error::Io`].
    pub fn open(dir: &RingDir, name: &RingName, holder: &str) -> Result<Self, Error> {
        files::check_label(holder, LABEL_MAX)?;
        let opened = files::open(dir, name, Access::Producer)?;
        let locked = lock::try_lock(opened.readers_file.as_fd(), lock::PRODUCER)
            .at("lock", &dir.readers_path(name))?;
        if !locked {
            return Err(Error::Busy {
                name: name.to_string(),
                holder: describe(&opened.shared),
            });
        }
        let Opened {
            shared,
            header,
            info,
            readers_file,
            watch,
        } = opened.unless_retired()?;
        let earlier = match info.mode {
            Mode::Overwrite => Vec::new(),
            Mode::Wait => epochs::earlier_readers(dir, name, info.epoch),
        };
        let writer = Writer::take_over(shared.as_ref(), header.geometry()).map_err(|reason| {
            Error::Damaged {
                path: dir.data_path(name),
                reason,
            }
        })?;
        let slowest = writer.published().pos;
        let producer = Self {
            shared,
            readers_file,
            info,
            watch,
            earlier,
            writer,
            burst: [0; SOURCES],
            touched: 0,
            active: 0,
            latest_ns: 0,
            slowest,
            // Differs from any count of registrations, so that the first reserve looks.
            registrations: u64::MAX,
            single_thread: PhantomData,
        };
        if producer.info.footprint <= POPULATE_MAX {
            // The pages are there; this spares the first lap a fault for each. Not worth failing for.
            let _ = producer.shared.data.populate(|_| true);
        }
        producer.settle();
        sources::forget_places(&producer.shared.data);
        producer.sign(holder);
        DATA_BELL.ring(producer.shared.as_ref());
        Ok(producer)
    }

    /// Closes the books of the last producer: what it had received, and neither published nor
    /// dropped, was killed with it.
    fn settle(&self) {
        let map = &self.shared.data;
        sources::finish_fold(map);
        if map.get(data::OPEN) != 0 {
            sources::add_uncertain(map);
        }
        let seq = self.writer.published().seq;
        let (received, published) = sources::totals(map);
        if published < seq && sources::count(map) > 0 {
            sources::repair_published(map, seq - published);
        }
        let dropped = DropReason::ALL
            .iter()
            .map(|&r| self.drops(r))
            .fold(0, u64::wrapping_add);
        let killed = received.saturating_sub(seq).saturating_sub(dropped);
        if killed > 0 && received > 0 {
            self.add_drop(DropReason::Killed, killed);
        }
    }

    fn sign(&self, holder: &str) {
        let map = &self.shared.data;
        map.set(data::OPEN, 1);
        map.bump(data::GENERATION, 1);
        map.set(data::HOLDER_PID, u64::from(std::process::id()));
        map.set(data::OPENED_NS, files::now_ns());
        files::set_text(map, data::HOLDER, LABEL_MAX / 8, holder);
    }

    /// What the ring is.
    pub fn info(&self) -> &RingInfo {
        &self.info
    }

    /// Longest frame that a record can hold, in bytes: an eighth of the capacity, at most 1 MiB,
    /// less 48 bytes.
    pub fn max_frame(&self) -> usize {
        usize::try_from(self.writer.geometry().max_record - META).unwrap_or(0)
    }

    /// Largest burst that can be reserved, in bytes: a quarter of the capacity.
    pub fn max_burst(&self) -> usize {
        usize::try_from(self.writer.geometry().max_burst).unwrap_or(0)
    }

    /// Begins a burst of at most `bytes`, the sum of [`record_size`](crate::record_size) over its frames.
    ///
    /// `None` only in `wait` mode: the slowest consumer has not made space yet, see
    /// [`Producer::wait_space`].
    ///
    /// # Errors
    /// [`Error::BurstTooLarge`] when that never fits; [`Error::Poisoned`] when another process cut the
    /// file short.
    #[inline]
    pub fn reserve(&mut self, bytes: usize) -> Result<Option<Burst<'_>>, Error> {
        let wanted = (bytes as u64).saturating_add(15) & !15;
        let most = self.writer.geometry().max_burst;
        if wanted > most {
            return Err(self.too_large(bytes));
        }
        if self.shared.poisoned() {
            return Err(self.poisoned());
        }
        if self.info.mode == Mode::Wait && !self.has_space(wanted) {
            return Ok(None);
        }
        self.writer.begin(self.shared.as_ref(), wanted);
        Ok(Some(Burst {
            producer: self,
            frames: 0,
            late: 0,
        }))
    }

    #[cold]
    fn poisoned(&self) -> Error {
        Error::Poisoned {
            name: self.info.name.to_string(),
        }
    }

    #[cold]
    fn too_large(&self, bytes: usize) -> Error {
        Error::BurstTooLarge {
            name: self.info.name.to_string(),
            bytes,
            most: self.max_burst(),
        }
    }

    /// Whether a burst of `wanted` bytes would overwrite nothing that a live consumer has not read.
    fn has_space(&mut self, wanted: u64) -> bool {
        let capacity = self.info.capacity;
        let end = self.writer.reserve_after(wanted);
        let registrations = self.registrations_now();
        if registrations == self.registrations && end.wrapping_sub(self.slowest) <= capacity {
            return true;
        }
        self.registrations = registrations;
        self.slowest = self.find_slowest(end);
        end.wrapping_sub(self.slowest) <= capacity
    }

    fn registrations_now(&self) -> u64 {
        self.shared
            .readers
            .word(readers::REGISTRATIONS)
            .load(Ordering::Acquire)
    }

    /// Position of the slowest live consumer, that of the producer when there is none. Asks the
    /// kernel about a consumer only when it is in the way of `end`.
    fn find_slowest(&self, end: u64) -> u64 {
        let capacity = self.info.capacity;
        let here = self.writer.published().pos;
        let mut most_behind = 0;
        for index in 0..SLOTS {
            let slot = Slot::new(&self.shared, index);
            if !slot.used() {
                continue;
            }
            // SYNC E: what it has read is behind its position.
            let Some(Account { pos, .. }) = slot.account() else {
                continue;
            };
            let behind = here.wrapping_sub(pos);
            // A position that is no position holds nobody up: it is lapped already, or a lie.
            if behind > capacity || behind <= most_behind {
                continue;
            }
            let in_the_way = end.wrapping_sub(pos) > capacity;
            let lives = || {
                slots::lives(&self.readers_file, index)
                    || slots::lives_earlier(&slot, &self.earlier)
            };
            if !in_the_way || lives() {
                most_behind = behind;
            }
        }
        here.wrapping_sub(most_behind)
    }

    /// `wait` mode: sleeps until a consumer has made space, at most `timeout` or 10 ms. Then
    /// [`Producer::reserve`] is to be tried again, whatever this returns: true when woken.
    pub fn wait_space(&mut self, timeout: Duration) -> Result<bool, Error> {
        let shared = Arc::clone(&self.shared);
        let ticket = SPACE_BELL.arm(shared.as_ref());
        let before = self.slowest;
        let end = self.writer.reserve_after(self.writer.geometry().max_burst);
        self.slowest = self.find_slowest(end);
        if self.slowest != before {
            return Ok(true);
        }
        match SPACE_BELL.sleep(shared.as_ref(), ticket, timeout) {
            Slept::Woken => Ok(true),
            Slept::TimedOut => Ok(false),
            Slept::Unreachable => Err(Error::Poisoned {
                name: self.info.name.to_string(),
            }),
        }
    }

    /// Whether the ring was deleted or replaced, or has lost its files. Cheap: to be asked once a burst. A retired
    /// ring still takes frames, but nobody new will find it: close it and open its successor.
    #[inline]
    pub fn retired(&self) -> Option<Retired> {
        self.shared.retired_or(&self.watch)
    }

    /// Frames published since the ring was created.
    pub fn published(&self) -> u64 {
        self.writer.published().seq
    }

    /// Counts frames that were received and not published. To be called after the decision.
    pub fn add_drop(&self, reason: DropReason, frames: u64) {
        self.shared.data.bump(drop_at(reason), frames);
    }

    /// Frames dropped for `reason` since the ring was created.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.shared.data.get(drop_at(reason))
    }

    /// Finds or adds a source; the same name keeps its number while it is registered. Names have 1 to 48 bytes. When all places are
    /// taken, one is given to it that this producer has not registered, or has released.
    ///
    /// # Errors
    /// [`Error::NoSource`] when all places are in use, [`Error::InvalidLabel`].
    pub fn register_source(&mut self, name: &str) -> Result<u16, Error> {
        let ring = self.info.name.as_str();
        sources::register(&self.shared.data, ring, name, &mut self.active)
    }

    /// Says that no more frames of a source will come: another may have its place.
    pub fn release_source(&mut self, number: u16) {
        self.active &= !(1 << sources::entry_of(number));
    }

    /// The counters of a source. An index that was not registered counts for the last place of the table.
    pub fn source(&self, index: u16) -> SourceCounters {
        SourceCounters::new(Arc::clone(&self.shared), index)
    }

    /// Takes back what [`SourceCounters::set_place`] has noted: nothing will come from there any more.
    pub fn forget_places(&self) {
        sources::forget_places(&self.shared.data);
    }

    /// Ends in order: nothing is in flight, so the next producer has nothing to put right.
    pub fn close(self) {
        self.shared.data.set(data::OPEN, 0);
    }
}

/// Byte offset of the counter of a reason.
pub(crate) fn drop_at(reason: DropReason) -> u64 {
    data::DROPS + 8 * reason.index() as u64
}

/// Who holds a ring, by what it wrote about itself.
pub(crate) fn describe(shared: &Shared) -> String {
    let holder = files::text(&shared.data, data::HOLDER, LABEL_MAX / 8);
    format!("{holder} (pid {})", shared.data.get(data::HOLDER_PID))
}

/// Frames that are published together by [`Burst::commit`], or not at all.
#[derive(Debug)]
#[must_use = "a burst that is not committed publishes nothing"]
pub struct Burst<'a> {
    producer: &'a mut Producer,
    frames: u64,
    late: u64,
}

/// When a time is so much behind another one, the clock was set back, and those after it are compared with this one.
const CLOCK_SET_NS: u64 = 1_000_000_000;

impl Burst<'_> {
    /// Adds a frame whose bytes are `pieces`, one after another. False when the reservation is
    /// exhausted, or the frame is longer than [`Producer::max_frame`]; nothing is added then.
    #[inline]
    pub fn push(&mut self, meta: &Meta, pieces: &[&[u8]]) -> bool {
        let length = pieces
            .iter()
            .fold(0usize, |sum, piece| sum.saturating_add(piece.len()));
        let Ok(length) = u32::try_from(length) else {
            return false;
        };
        let producer = &mut *self.producer;
        if !producer
            .writer
            .push(producer.shared.as_ref(), meta.head(length), pieces)
        {
            return false;
        }
        let source = sources::entry_of(meta.source);
        if let Some(count) = producer.burst.get_mut(source) {
            *count += 1;
            producer.touched |= 1 << source;
        }
        let behind = producer.latest_ns.saturating_sub(meta.timestamp_ns);
        self.late += u64::from(behind > 0);
        if behind == 0 || behind > CLOCK_SET_NS {
            producer.latest_ns = meta.timestamp_ns;
        }
        self.frames += 1;
        true
    }

    /// Adds a mark that `count` frames of a source were lost at this place. False when the reservation
    /// is exhausted: a mark takes 48 bytes.
    pub fn push_loss(&mut self, source: u16, count: u64, timestamp_ns: u64) -> bool {
        let head = Head {
            kind: Kind::Loss,
            len: 32,
            seq: count,
            time_ns: timestamp_ns,
            source,
            ..Head::EMPTY
        };
        let producer = &mut *self.producer;
        producer.writer.push(producer.shared.as_ref(), head, &[])
    }

    /// Bytes left of the reservation.
    pub fn room(&self) -> usize {
        usize::try_from(self.producer.writer.room()).unwrap_or(0)
    }

    /// Frames in the burst so far.
    pub fn len(&self) -> u64 {
        self.frames
    }

    /// Whether the burst holds no frame yet.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Frames of the burst so far that stand behind a later one, whenever that was published.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Counts received frames of a source; to be called before they are published.
    pub fn add_received(&self, source: u16, frames: u64) {
        sources::add_received(&self.producer.shared.data, source, frames);
    }

    /// Counts frames that were received and are not published.
    pub fn add_drop(&self, reason: DropReason, frames: u64) {
        self.producer.add_drop(reason, frames);
    }

    /// Publishes the burst, wakes consumers that sleep, and returns the number of frames.
    #[inline]
    pub fn commit(self) -> u64 {
        let producer = &mut *self.producer;
        producer.writer.publish(producer.shared.as_ref());
        while producer.touched != 0 {
            let source = producer.touched.trailing_zeros() as usize;
            producer.touched &= producer.touched - 1;
            if let Some(count) = producer.burst.get_mut(source) {
                let frames = u64::from(std::mem::take(count));
                sources::add_published(&producer.shared.data, source, frames);
            }
        }
        if self.late != 0 {
            producer.shared.data.bump(data::LATE, self.late);
        }
        DATA_BELL.ring(producer.shared.as_ref());
        self.frames
    }
}

impl Drop for Burst<'_> {
    /// Publishes nothing; after a commit there is nothing left to forget.
    fn drop(&mut self) {
        self.producer.writer.abandon();
        if self.producer.touched != 0 {
            self.producer.burst = [0; SOURCES];
            self.producer.touched = 0;
        }
    }
}
