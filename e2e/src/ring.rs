//! Frames into a ring and out of it, without a capture or a transmit.

use std::time::{Duration, Instant};

use fluxcap_ring::{
    Batch, Consumer, Meta, Observer, Outcome, Poll, Producer, RingDir, RingName, Start, record_size,
};

use crate::daemon::Dirs;

/// The writing end of a ring.
#[derive(Debug)]
pub struct RingWriter(Producer);

impl RingWriter {
    /// Becomes the producer of a ring that exists.
    #[must_use]
    #[track_caller]
    pub fn open(dirs: &Dirs, ring: &str) -> RingWriter {
        let producer = Producer::open(&RingDir::new(dirs.rings()), &name(ring), "test");
        RingWriter(producer.unwrap_or_else(|error| panic!("cannot write to {ring}: {error}")))
    }

    /// Publishes frames, all at once.
    #[track_caller]
    pub fn publish<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]> + Clone) {
        let bytes = frames.clone().map(|frame| record_size(frame.len())).sum();
        let burst = self.0.reserve(bytes).expect("a burst fits the ring");
        let mut burst = burst.expect("nobody is waited for");
        let mut meta = Meta {
            timestamp_ns: now_ns(),
            ..Meta::default()
        };
        for frame in frames {
            meta.wire_len = u32::try_from(frame.len()).expect("a frame is short");
            assert!(burst.push(&meta, &[frame]), "room was reserved");
        }
        burst.commit();
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct RingReader {
    consumer: Consumer,
    batch: Batch,
}

impl RingReader {
    /// Becomes a consumer of a ring that exists, from its oldest frame on.
    #[must_use]
    #[track_caller]
    pub fn open(dirs: &Dirs, ring: &str) -> RingReader {
        let dir = RingDir::new(dirs.rings());
        let consumer = Consumer::open(&dir, &name(ring), "test", Start::Oldest, false);
        RingReader {
            consumer: consumer.unwrap_or_else(|error| panic!("cannot read {ring}: {error}")),
            batch: Batch::new(1 << 20, 1024),
        }
    }

    /// Waits until `wanted` more frames are there, or `patience` is over, and returns those that are, more of them too.
    #[track_caller]
    pub fn take(&mut self, wanted: usize, patience: Duration) -> Vec<(Meta, Vec<u8>)> {
        let (begun, mut frames) = (Instant::now(), Vec::new());
        loop {
            let poll = self.consumer.poll(&mut self.batch).expect("a sound ring");
            if let Poll::Frames(_) = poll {
                let before = frames.len();
                let batch = self.batch.frames();
                frames.extend(batch.map(|frame| (frame.meta, frame.data.to_vec())));
                let taken = (frames.len() - before) as u64;
                self.consumer.add_outcome(Outcome::Written, taken);
            } else if frames.len() >= wanted || begun.elapsed() > patience {
                return frames;
            } else {
                let _ = self.consumer.wait(Duration::from_millis(10));
            }
        }
    }
}

fn name(ring: &str) -> RingName {
    RingName::parse(ring).expect("a name of a ring")
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Frames published in a ring since it was made.
#[must_use]
#[track_caller]
pub fn published(dirs: &Dirs, ring: &str) -> u64 {
    let observer = Observer::open(&RingDir::new(dirs.rings()), &name(ring));
    let stats = observer.and_then(|observer| observer.stats());
    stats
        .unwrap_or_else(|error| panic!("cannot look at {ring}: {error}"))
        .published_frames
}
