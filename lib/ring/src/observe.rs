//! Looking at a ring without taking part in it.

use std::fs::File;
use std::sync::Arc;

use crate::epochs;
use crate::error::Error;
use crate::files::{self, Access, Opened, RingInfo};
use crate::layout::{LABEL_MAX, SLOTS, data};
use crate::memory::shared::Shared;
use crate::name::{RingDir, RingName};
use crate::places::ReaderOutput;
use crate::producer::drop_at;
use crate::protocol::{Geometry, Ledger, ledger_at};
use crate::reasons::{DropReason, Outcome};
use crate::slots::{self, Slot};
use crate::sources::{self, SourceStats};
use crate::start::{self, Start};

/// Whether a ring is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingState {
    /// It is the ring of its name.
    Live,
    /// It was deleted or replaced.
    Retired {
        /// Epoch of the ring that replaced it.
        successor: Option<u64>,
    },
}

/// The producer of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerInfo {
    /// What it calls itself.
    pub holder: String,
    /// Its process id when it opened the ring.
    pub pid: u32,
    /// Whether it lives; otherwise it is the last one that did.
    pub live: bool,
}

/// Counters of a whole ring, as they lie in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingStats {
    /// What the ring is.
    pub info: RingInfo,
    /// Whether it is in use.
    pub state: RingState,
    /// The present or last producer, none when there never was one.
    pub producer: Option<ProducerInfo>,
    /// Number of the oldest frame that is still there.
    pub first_seq: u64,
    /// Number of the newest frame, 0 before the first.
    pub last_seq: u64,
    /// Frames published since the ring was created.
    pub published_frames: u64,
    /// Captured bytes of these frames.
    pub published_bytes: u64,
    /// Bytes written to the ring since it was created, record overhead included.
    pub committed_bytes: u64,
    /// Frames that were published behind a later one.
    pub late_frames: u64,
    /// Timestamp of the newest frame, nanoseconds since 1970, 0 before the first.
    pub last_timestamp_ns: u64,
    /// Frames that the producer received and did not publish.
    pub drops: Vec<(DropReason, u64)>,
    /// Where the frames came from.
    pub sources: Vec<SourceStats>,
    /// Consumers, dead ones that can be resumed included.
    pub readers: Vec<ReaderStats>,
    /// Consumers that gave up their slot, or lost it to another.
    pub gone: GoneReaders,
}

/// Sums over consumers that are no longer listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GoneReaders {
    /// How many there were.
    pub readers: u64,
    /// Frames given to them.
    pub delivered: u64,
    /// Frames that were overwritten before they read them.
    pub lapped: u64,
    /// Frames lost in corrupt places of the ring.
    pub corrupt: u64,
    /// Workers among them whose place was given to another reader, because all were taken.
    pub evicted: u64,
}

/// Counters of one consumer.
///
/// `next_seq - attach_seq = delivered + lapped + corrupt + skipped`, at every instant. The counters go on from epoch to epoch; the
/// numbers are those of this epoch, so `attach_seq` lies before its first frame, and wraps, once there were others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderStats {
    /// Its slot, 0 to 63.
    pub slot: usize,
    /// What it calls itself.
    pub label: String,
    /// Its process id.
    pub pid: u32,
    /// Whether it lives.
    pub live: bool,
    /// Number of the first frame that it could have got.
    pub attach_seq: u64,
    /// Number of the frame that it gets next.
    pub next_seq: u64,
    /// Frames given to it.
    pub delivered: u64,
    /// Bytes of these frames.
    pub delivered_bytes: u64,
    /// Frames that were overwritten before it read them.
    pub lapped: u64,
    /// Frames lost in corrupt places of the ring.
    pub corrupt: u64,
    /// Frames passed over on request.
    pub skipped: u64,
    /// Frames published that it has not seen.
    pub lag_frames: u64,
    /// Bytes of ring between it and the newest frame.
    pub lag_bytes: u64,
    /// What became of the delivered frames, by its own account.
    pub outcomes: Vec<(Outcome, u64)>,
    /// The interfaces that it sends to, as far as it has noted them.
    pub outputs: Vec<ReaderOutput>,
}

/// A view of a ring for statistics: registers nothing, writes nothing.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    readers_file: File,
    /// Of earlier epochs: there those may live who are not here yet.
    earlier: Vec<File>,
    info: RingInfo,
    geometry: Geometry,
}

impl Observer {
    /// Opens the ring for reading only.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::Io`].
    pub fn open(dir: &RingDir, name: &RingName) -> Result<Self, Error> {
        files::open(dir, name, Access::Observer).map(|opened| Self::of(dir, opened))
    }

    /// Opens the earlier epochs of the ring that are kept because readers have not passed them yet, oldest first.
    pub fn open_earlier(dir: &RingDir, name: &RingName) -> Vec<Self> {
        let open = |epoch| {
            let pair = dir.earlier_pair(name, epoch);
            let opened = files::open_once(&pair, Access::Observer).ok()?;
            let kept = opened.info.epoch == epoch && opened.shared.retired().is_some();
            kept.then(|| Self::of(dir, opened))
        };
        dir.earlier_epochs(name)
            .into_iter()
            .filter_map(open)
            .collect()
    }

    fn of(dir: &RingDir, opened: Opened) -> Self {
        let Opened {
            shared,
            header,
            info,
            readers_file,
            watch: _,
        } = opened;
        Self {
            shared,
            readers_file,
            earlier: epochs::earlier_readers(dir, &info.name, info.epoch),
            geometry: header.geometry(),
            info,
        }
    }

    /// The last worker whose place was given to another reader because there was no other, and to whom.
    pub fn evicted(&self) -> Option<(String, String)> {
        slots::evicted(&self.shared.readers)
    }

    /// What the ring is.
    pub fn info(&self) -> &RingInfo {
        &self.info
    }

    /// Whether the ring was retired since it was opened.
    pub fn state(&self) -> RingState {
        match self.shared.retired() {
            None => RingState::Live,
            Some(retired) => RingState::Retired {
                successor: retired.successor,
            },
        }
    }

    /// Reads all counters. Consumers first and the producer after them, so that nobody
    /// seems to have read what was not published.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked who lives; [`Error::Poisoned`] when another process
    /// cut the file short.
    pub fn stats(&self) -> Result<RingStats, Error> {
        let (map, shared) = (&self.shared.data, self.shared.as_ref());
        let used = |&index: &usize| Slot::new(&self.shared, index).used();
        let slots: Vec<_> = (0..SLOTS)
            .filter(used)
            .map(|i| (i, self.reader(i)))
            .collect();
        let drops = DropReason::ALL
            .iter()
            .map(|&r| (r, map.get(drop_at(r))))
            .collect();
        let ledger = ledger_at(shared).unwrap_or_default();
        let oldest = start::locate(shared, self.geometry, Start::Oldest, 0);
        if shared.poisoned() {
            return Err(Error::Poisoned {
                name: self.info.name.to_string(),
            });
        }
        let readers = slots
            .into_iter()
            .map(|(_, stats)| lag(stats, &ledger))
            .collect();
        Ok(RingStats {
            state: self.state(),
            producer: self.producer()?,
            first_seq: oldest.map_or(0, |(_, seq)| seq),
            last_seq: ledger.seq,
            published_frames: ledger.seq,
            published_bytes: ledger.bytes,
            committed_bytes: ledger.pos.wrapping_sub(self.geometry.base),
            late_frames: map.get(data::LATE),
            last_timestamp_ns: ledger.time_ns,
            drops,
            sources: sources::stats(map),
            readers,
            gone: slots::gone(&self.shared.readers),
            info: self.info.clone(),
        })
    }

    fn reader(&self, index: usize) -> (ReaderStats, u64) {
        let slot = Slot::new(&self.shared, index);
        let live =
            slots::lives(&self.readers_file, index) || slots::lives_earlier(&slot, &self.earlier);
        read_slot(&self.shared, index, live)
    }

    fn producer(&self) -> Result<Option<ProducerInfo>, Error> {
        let map = &self.shared.data;
        if map.get(data::GENERATION) == 0 {
            return Ok(None);
        }
        Ok(Some(ProducerInfo {
            holder: files::text(map, data::HOLDER, LABEL_MAX / 8),
            pid: u32::try_from(map.get(data::HOLDER_PID)).unwrap_or(0),
            live: files::producer_lives(&self.readers_file, &self.info.name)?,
        }))
    }
}

/// The counters in one slot, with the lag against `ledger`.
pub(crate) fn reader_stats(
    shared: &Shared,
    index: usize,
    live: bool,
    ledger: &Ledger,
) -> ReaderStats {
    lag(read_slot(shared, index, live), ledger)
}

/// The counters in one slot, and its position.
fn read_slot(shared: &Shared, index: usize, live: bool) -> (ReaderStats, u64) {
    let slot = Slot::new(shared, index);
    let account = slot.account().unwrap_or_default();
    let stats = ReaderStats {
        slot: index,
        label: slot.label(),
        pid: slot.pid(),
        live,
        attach_seq: slot.attach_seq(),
        next_seq: account.next_seq,
        delivered: account.delivered,
        delivered_bytes: account.delivered_bytes,
        lapped: account.lapped,
        corrupt: account.corrupt,
        skipped: account.skipped,
        lag_frames: 0,
        lag_bytes: 0,
        outcomes: Outcome::ALL.iter().map(|&o| (o, slot.outcome(o))).collect(),
        outputs: slot.outputs(),
    };
    (stats, account.pos)
}

/// Fills in how far behind a consumer is. Its numbers may be lies, so the results are at most what was published.
fn lag((mut stats, pos): (ReaderStats, u64), ledger: &Ledger) -> ReaderStats {
    stats.lag_frames = ledger
        .seq
        .saturating_add(1)
        .saturating_sub(stats.next_seq)
        .min(ledger.seq);
    let behind = ledger.pos.wrapping_sub(pos);
    stats.lag_bytes = if behind > u64::MAX / 2 { 0 } else { behind };
    stats
}
