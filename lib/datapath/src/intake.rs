//! The rings of a sender, read together.

use crate::feed::{Feed, FeedLive};
use crate::merge::{Lane, MAX_LANES, Now, Pick, pick};
use fluxcap_proto::v1::{self, start::At};
use fluxcap_ring::{Consumer, ReaderOutput, RingDir, RingName, Start, wait_any};
use fluxcap_service::{Refusal, realtime_ns};
use std::time::{Duration, Instant};

/// How long a frame is held back for an earlier one from another ring, unless the spec says otherwise.
const MERGE_WINDOW: Duration = Duration::from_millis(2);
/// Longest sleep on the doorbell of a ring, which is not to be relied on for longer.
const NAP: Duration = Duration::from_millis(10);
/// The same when no frame has come for [`QUIET`]: each wake-up costs some 50 us, and an idle sender is to take no more than 0.3 % of a CPU.
const LONG_NAP: Duration = Duration::from_millis(40);
/// After so long without a frame the rings count as quiet.
const QUIET: Duration = Duration::from_secs(1);

/// The rings that a sender reads, merged by time.
#[derive(Debug)]
pub struct Intake {
    feeds: Vec<Feed>,
    /// Where their frames are sent.
    outputs: Vec<ReaderOutput>,
    window: Duration,
}

impl Intake {
    /// Reads `rings` under the name `reader`, from `start` on.
    pub fn new(
        rings: &[String],
        reader: &str,
        start: Option<v1::Start>,
        merge_window_us: u32,
    ) -> Intake {
        Intake {
            feeds: feeds(rings, reader, start),
            outputs: Vec::new(),
            window: window(merge_window_us),
        }
    }

    /// Reads these rings from now on. Those that were read before go on where they are, and the others' places are given back.
    pub fn set_rings(
        &mut self,
        dir: &RingDir,
        rings: &[String],
        reader: &str,
        start: Option<v1::Start>,
    ) {
        let mut old = std::mem::take(&mut self.feeds);
        for feed in feeds(rings, reader, start) {
            let known = old.iter().position(|old| old.name() == feed.name());
            self.feeds
                .push(known.map_or(feed, |at| old.swap_remove(at)));
        }
        old.iter_mut().for_each(|feed| feed.detach(dir));
        for feed in &mut self.feeds {
            feed.note_outputs(&self.outputs);
        }
    }

    /// How long a frame is held back for an earlier one; 0 means the default.
    pub fn set_merge_window(&mut self, merge_window_us: u32) {
        self.window = window(merge_window_us);
    }

    /// Holds nothing back any more: what is at hand is out of its rings and must be accounted for.
    pub fn hurry(&mut self) {
        self.window = Duration::ZERO;
    }

    /// The rings, by the numbers that picks have.
    pub fn feeds(&self) -> &[Feed] {
        &self.feeds
    }

    /// The same, to settle and finish frames.
    pub fn feeds_mut(&mut self) -> &mut [Feed] {
        &mut self.feeds
    }

    /// Gets the rings that are there, without anything out of them yet. True when one was not there before.
    pub fn open(&mut self, rings: &RingDir, live: &FeedLive) -> bool {
        let feeds = self.feeds.iter_mut().filter(|feed| !feed.has_frames());
        feeds.fold(false, |any, feed| any | feed.open(rings, live))
    }

    /// Notes in all rings, those that come later too, which interfaces they are sent to. True when that is news.
    pub fn note_outputs(&mut self, outputs: &[ReaderOutput]) -> bool {
        if self.outputs == outputs {
            return false;
        }
        self.outputs = outputs.to_vec();
        for feed in &mut self.feeds {
            feed.note_outputs(outputs);
        }
        true
    }

    /// Fetches from each ring of which nothing is at hand.
    pub fn fetch(&mut self, rings: &RingDir, live: &FeedLive) {
        for feed in &mut self.feeds {
            feed.fetch(rings, live);
        }
    }

    /// Which frames are due now, the earliest first; how many of `picks` were filled.
    pub fn pick(&self, picks: &mut [Pick]) -> usize {
        let now = Now {
            realtime_ns: realtime_ns(),
            monotonic: Instant::now(),
        };
        pick(&self.feeds, self.window, now, picks)
    }

    /// Waits until there may be something to do: looks at the rings for `spin`, because a sleep and the call that ends it take
    /// longer than what can be expected to come soon; then sleeps until a ring rings, or a frame that is held back is due, or
    /// it is time to look around. While there are frames to wait for and nothing else, it sleeps on as long as `idle` says so.
    pub fn wait(&self, spin: Duration, idle: impl Fn() -> bool) {
        if !self.spin(spin) {
            self.sleep(idle);
        }
    }

    /// False when nothing came.
    fn spin(&self, time: Duration) -> bool {
        if time.is_zero() {
            return false;
        }
        let end = Instant::now() + time;
        loop {
            if self.rings().any(Consumer::is_ready) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn sleep(&self, idle: impl Fn() -> bool) {
        let held_back = self.feeds.iter().any(Feed::has_frames);
        let timeout = || {
            if held_back {
                self.window.min(Duration::from_millis(1))
            } else if self
                .feeds
                .iter()
                .all(|feed| feed.arrived().elapsed() >= QUIET)
            {
                LONG_NAP
            } else {
                NAP
            }
        };
        // A ring whose frames are held back has more of them, perhaps; only the others can end the wait.
        let empty = self.feeds.iter().filter(|feed| !feed.has_frames());
        let mut open = empty.filter_map(Feed::ring);
        let Some(first) = open.next() else {
            return std::thread::sleep(timeout());
        };
        let mut rings = [first; MAX_LANES];
        let count = 1 + rings[1..]
            .iter_mut()
            .zip(open)
            .map(|(slot, ring)| *slot = ring)
            .count();
        // Nothing to do but to look at the rings is not worth a turn.
        let quiet = count == self.feeds.len();
        let retired = || self.rings().any(|ring| ring.retired().is_some());
        loop {
            match wait_any(&rings[..count], timeout()) {
                Ok(false) if quiet && idle() && !retired() => {}
                Ok(_) => return,
                // The ring is broken: the next look at it says so.
                Err(_) => return std::thread::sleep(timeout()),
            }
        }
    }

    fn rings(&self) -> impl Iterator<Item = &Consumer> {
        self.feeds.iter().filter_map(Feed::ring)
    }

    /// Whether the state of a ring has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        let changes = self.feeds.iter_mut().map(Feed::take_changed);
        changes.fold(false, |any, changed| any | changed)
    }

    /// Leaves all rings for good.
    pub fn detach(&mut self, dir: &RingDir) {
        self.feeds.iter_mut().for_each(|feed| feed.detach(dir));
    }
}

fn feeds(rings: &[String], reader: &str, start: Option<v1::Start>) -> Vec<Feed> {
    let start = match start.and_then(|start| start.at) {
        None | Some(At::Newest(_)) => Start::Newest,
        Some(At::Oldest(_)) => Start::Oldest,
        Some(At::Seq(seq)) => Start::Seq(seq),
        Some(At::TimeNs(time)) => Start::Time(time),
    };
    rings
        .iter()
        .map(|ring| Feed::new(ring, reader.to_owned(), start))
        .collect()
}

fn window(us: u32) -> Duration {
    match us {
        0 => MERGE_WINDOW,
        us => Duration::from_micros(us.into()),
    }
}

/// Checks the rings that a spec names in `field`.
///
/// # Errors
/// No ring, or too many; a name that cannot be, or twice.
pub fn validate_rings(field: &str, rings: &[String]) -> Result<(), Refusal> {
    if rings.is_empty() || rings.len() > MAX_LANES {
        let message = format!("name 1 to {MAX_LANES} rings");
        return Err(Refusal::invalid(field, message));
    }
    for (index, ring) in rings.iter().enumerate() {
        RingName::parse(ring).map_err(|e| Refusal::invalid(field, e.to_string()))?;
        if rings[..index].contains(ring) {
            return Err(Refusal::invalid(field, format!("{ring} is named twice")));
        }
    }
    Ok(())
}
