//! One ring of a sender: found by name, read from where it was left, followed from epoch to epoch.

use crate::merge::Lane;
use crate::ring_advice;
use fluxcap_proto::v1;
use fluxcap_ring::{
    Batch, Consumer, Error, Frame, Outcome, Poll, ReaderOutput, RingDir, RingName, Start,
};
use fluxcap_service::{Counter, State};
use std::time::{Duration, Instant};

/// Bytes copied out of a ring at a time. A frame larger than that cannot be: the ring's longest frame is below 1 MiB.
const BATCH_BYTES: usize = 1 << 20;
/// Frames copied out of a ring at a time. What a killed sender leaves unknown (sent or not) is at most this much.
const BATCH_FRAMES: usize = 512;
/// Time between two looks for a ring that is missing.
const RETRY: Duration = Duration::from_millis(50);

/// What came out of the rings of a sender; written by its thread.
#[derive(Debug, Default)]
pub struct FeedLive {
    /// Frames taken out.
    pub delivered: Counter,
    /// Frames overwritten before the sender came to them.
    pub lapped: Counter,
}

/// A ring that a sender reads, there or not.
#[derive(Debug)]
pub struct Feed {
    name: String,
    reader: String,
    /// Where to begin where it has no place yet; once the ring was read or waited for, at the first frame of what comes.
    start: Start,
    ring: Option<Consumer>,
    /// Where its frames are sent.
    outputs: Vec<ReaderOutput>,
    batch: Batch,
    /// Frames of the batch that are dealt with.
    done: usize,
    arrived: Instant,
    tried: Option<Instant>,
    /// Epoch of the ring that could not be read: only another one is worth a try.
    broken: Option<u64>,
    status: v1::TransmitRingStatus,
    changed: bool,
}

impl Feed {
    /// A feed of ring `name`, in which it is known as `reader`.
    pub(crate) fn new(name: &str, reader: String, start: Start) -> Feed {
        Feed {
            name: name.to_owned(),
            reader,
            start,
            ring: None,
            outputs: Vec::new(),
            batch: Batch::new(BATCH_BYTES, BATCH_FRAMES),
            done: 0,
            arrived: Instant::now(),
            tried: None,
            broken: None,
            status: v1::TransmitRingStatus {
                name: name.to_owned(),
                ..Default::default()
            },
            changed: false,
        }
    }

    /// Name of the ring.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ring, to wait for its doorbell.
    pub(crate) fn ring(&self) -> Option<&Consumer> {
        self.ring.as_ref()
    }

    /// What is shown, with the figures of this moment.
    pub fn status(&mut self) -> v1::TransmitRingStatus {
        if let Some(ring) = &self.ring {
            let stats = ring.stats();
            self.status.lag_frames = stats.lag_frames + self.waiting() as u64;
            self.status.delivered_frames = stats.delivered;
            self.status.lapped_frames = stats.lapped;
        }
        self.status.clone()
    }

    /// Whether frames are at hand.
    pub fn has_frames(&self) -> bool {
        self.waiting() > 0
    }

    fn waiting(&self) -> usize {
        self.batch.len() - self.done
    }

    /// A frame of the batch at hand.
    pub fn frame(&self, index: usize) -> Option<Frame<'_>> {
        self.batch.get(index)
    }

    /// Fetches the next frames when those at hand are dealt with. Opens the ring when that is due.
    pub(crate) fn fetch(&mut self, rings: &RingDir, live: &FeedLive) {
        if self.has_frames() {
            return;
        }
        self.open(rings, live);
        let Some(ring) = &mut self.ring else { return };
        self.done = 0;
        match ring.poll(&mut self.batch) {
            Ok(Poll::Frames(frames)) => {
                self.arrived = Instant::now();
                live.delivered.add(frames as u64);
                live.lapped.add(self.batch.lapped());
            }
            Ok(Poll::Empty) => {}
            Ok(Poll::Retired) => self.follow(live),
            Err(error) => {
                tracing::error!(ring = %self.name, %error, "cannot read the ring");
                self.broken = Some(self.status.epoch);
                self.close(
                    State::Waiting,
                    format!("{error}; make it anew: fluxctl ring delete {0}, fluxctl ring create {0} --size SIZE", self.name),
                );
                self.tried = Some(Instant::now());
            }
        }
    }

    /// Through with an epoch of the ring: goes on with the next, if there is one. Otherwise its place is kept for it until one comes.
    #[cold]
    fn follow(&mut self, live: &FeedLive) {
        let Some(ring) = &mut self.ring else { return };
        match ring.advance() {
            Ok(Some(lapped)) => {
                live.lapped.add(lapped);
                let epoch = ring.info().epoch;
                ring.set_outputs(&self.outputs);
                self.enter(epoch);
            }
            Ok(None) => {
                let reason = format!("ring {} was deleted, or its files were", self.name);
                self.close(State::Waiting, reason);
            }
            Err(error) => {
                // Its place is kept, too.
                self.close(State::Waiting, error.to_string());
                self.tried = Some(Instant::now());
            }
        }
    }

    /// Takes note of the epoch that is read.
    fn enter(&mut self, epoch: u64) {
        self.status.epoch = epoch;
        tracing::info!(ring = %self.name, epoch, reader = %self.reader, "reading ring");
        self.set_state(State::Running, String::new());
    }

    /// Takes note that the first `frames` frames at hand are dealt with.
    pub fn finish(&mut self, frames: usize) {
        self.done = (self.done + frames).min(self.batch.len());
    }

    /// Adds to the ring's books what became of frames.
    pub fn settle(&mut self, outcome: Outcome, frames: u64) {
        if let Some(ring) = &mut self.ring {
            ring.add_outcome(outcome, frames);
        }
    }

    /// Of an epoch that cannot be read the next one is what helps, once there is one: what is unread here is lost, and counted.
    #[cold]
    fn pass_by(&mut self, mut ring: Consumer, live: &FeedLive) {
        if ring.retired().is_none() {
            return;
        }
        if let Ok(Some(lapped)) = ring.advance() {
            live.lapped.add(lapped);
            self.broken = None;
            ring.set_outputs(&self.outputs);
            self.enter(ring.info().epoch);
            self.ring = Some(ring);
        }
    }

    /// Gets the ring when that is due. True when there is another one than before.
    pub(crate) fn open(&mut self, rings: &RingDir, live: &FeedLive) -> bool {
        if self.ring.is_some() || self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return false;
        }
        self.tried = Some(Instant::now());
        let opened = RingName::parse(&self.name)
            .and_then(|name| Consumer::open(rings, &name, &self.reader, self.start, true));
        match opened {
            Ok(ring) if self.broken == Some(ring.info().epoch) => self.pass_by(ring, live),
            Ok(ring) => {
                self.broken = None;
                // What comes in the place of this ring is all new.
                self.start = Start::First;
                self.enter(ring.info().epoch);
                ring.set_outputs(&self.outputs);
                self.ring = Some(ring);
            }
            Err(error) => {
                if let Error::NotFound { .. } = error {
                    // Should it come later, then all that is in it came while this sender was there.
                    self.start = Start::First;
                }
                self.set_state(State::Waiting, ring_advice(&self.name, &error));
            }
        }
        self.ring.is_some()
    }

    fn close(&mut self, state: State, reason: String) {
        self.ring = None;
        self.tried = None;
        self.set_state(state, reason);
    }

    /// Leaves the ring for good: its places are free again, also those that wait for a ring which is not there.
    pub(crate) fn detach(&mut self, rings: &RingDir) {
        match self.ring.take() {
            Some(ring) => ring.detach(),
            None => {
                if let Ok(name) = RingName::parse(&self.name)
                    && let Err(error) = Consumer::forget(rings, &name, &self.reader)
                {
                    tracing::warn!(ring = %self.name, %error, reader = %self.reader, "cannot give up the place in the ring");
                }
            }
        }
    }

    /// Notes in the ring, and in those that follow, where its frames are sent.
    pub(crate) fn note_outputs(&mut self, outputs: &[ReaderOutput]) {
        self.outputs = outputs.to_vec();
        if let Some(ring) = &self.ring {
            ring.set_outputs(outputs);
        }
    }

    /// Whether the state has changed since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn set_state(&mut self, state: State, reason: String) {
        self.changed |= self.status.reason != reason;
        self.status.state = v1::State::from(state).into();
        self.status.reason = reason;
    }
}

impl Lane for Feed {
    fn timestamp(&self, ahead: usize) -> Option<u64> {
        self.batch
            .get(self.done + ahead)
            .map(|frame| frame.meta.timestamp_ns)
    }

    fn next(&self) -> usize {
        self.done
    }

    fn arrived(&self) -> Instant {
        self.arrived
    }

    fn open(&self) -> bool {
        self.ring.is_some()
    }
}
