//! Which frames go out next, when they come from several rings: the earliest first.

use std::time::{Duration, Instant};

/// A frame: index of its feed, index within the feed's batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pick {
    /// Which feed.
    pub feed: usize,
    /// Which frame of the feed's batch.
    pub frame: usize,
}

/// What the merge needs to know of a feed.
pub(crate) trait Lane {
    /// Timestamp in nanoseconds of the frame `ahead` places after the next one; `None` when it is not there (yet).
    fn timestamp(&self, ahead: usize) -> Option<u64>;
    /// Index within the batch of the next frame.
    fn next(&self) -> usize;
    /// When the frames at hand came from the ring.
    fn arrived(&self) -> Instant;
    /// Whether more frames may come: a ring that is missing holds nobody back.
    fn open(&self) -> bool;
}

/// The time, by the clock of the timestamps and by one that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub(crate) realtime_ns: u64,
    /// CLOCK_MONOTONIC.
    pub(crate) monotonic: Instant,
}

impl Now {
    /// Whether a frame has been waited with for long enough.
    fn is_past(self, window: Duration, time_ns: u64, arrived: Instant) -> bool {
        let age = Duration::from_nanos(self.realtime_ns.saturating_sub(time_ns));
        age >= window || self.monotonic.saturating_duration_since(arrived) >= window
    }
}

/// Fills `picks` with the frames to send now, in the order of their timestamps, and returns how many.
///
/// While an open lane is empty, a frame of another is held back, because an earlier one may still come, until it is older
/// than `window`. Should the clock have been set back, the time since it came from its ring counts. With one lane nothing is ever
/// held back. Timestamps that go backwards within a lane stay in the lane's order.
pub(crate) fn pick<L: Lane>(lanes: &[L], window: Duration, now: Now, picks: &mut [Pick]) -> usize {
    let mut taken = [0_usize; MAX_LANES];
    let lanes = &lanes[..lanes.len().min(MAX_LANES)];
    for (count, slot) in picks.iter_mut().enumerate() {
        let heads = lanes
            .iter()
            .enumerate()
            .filter_map(|(at, lane)| Some((lane.timestamp(taken[at])?, at)));
        let Some((time, first)) = heads.min() else {
            return count;
        };
        let awaited = lanes
            .iter()
            .zip(taken)
            .any(|(lane, taken)| lane.open() && lane.timestamp(taken).is_none());
        if awaited && lanes.len() > 1 && !now.is_past(window, time, lanes[first].arrived()) {
            return count;
        }
        *slot = Pick {
            feed: first,
            frame: lanes[first].next() + taken[first],
        };
        taken[first] += 1;
    }
    picks.len()
}

/// Most rings of one sender.
pub const MAX_LANES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        times: Vec<u64>,
        arrived: Instant,
        open: bool,
    }

    impl Lane for Fake {
        fn timestamp(&self, ahead: usize) -> Option<u64> {
            self.times.get(ahead).copied()
        }
        fn next(&self) -> usize {
            10
        }
        fn arrived(&self) -> Instant {
            self.arrived
        }
        fn open(&self) -> bool {
            self.open
        }
    }

    const WINDOW: Duration = Duration::from_millis(2);

    fn lane(times: &[u64], arrived: Instant) -> Fake {
        Fake {
            times: times.to_vec(),
            arrived,
            open: true,
        }
    }

    fn order(lanes: &[Fake], now: Instant, room: usize) -> Vec<(usize, usize)> {
        let mut picks = vec![Pick::default(); room];
        let now = Now {
            realtime_ns: 10,
            monotonic: now,
        };
        let count = pick(lanes, WINDOW, now, &mut picks);
        picks[..count].iter().map(|p| (p.feed, p.frame)).collect()
    }

    #[test]
    fn the_earliest_frame_goes_first_until_a_lane_runs_dry() {
        let now = Instant::now();
        let lanes = [lane(&[1, 4, 5], now), lane(&[2, 3, 9], now)];
        assert_eq!(
            order(&lanes, now, 8),
            [(0, 10), (1, 10), (1, 11), (0, 11), (0, 12)]
        );
    }

    #[test]
    fn a_frame_is_held_back_no_longer_than_the_window() {
        let now = Instant::now();
        let lanes = [lane(&[1], now), lane(&[], now)];
        assert!(order(&lanes, now, 8).is_empty());
        assert_eq!(order(&lanes, now + WINDOW, 8), [(0, 10)]);
    }

    #[test]
    fn frames_that_are_old_already_are_not_held_back_again_when_they_come_late() {
        let monotonic = Instant::now();
        let lanes = [lane(&[1, 2, 5_000_000], monotonic), lane(&[], monotonic)];
        let now = Now {
            realtime_ns: 5_500_000,
            monotonic,
        };
        let mut picks = [Pick::default(); 8];
        assert_eq!(pick(&lanes, WINDOW, now, &mut picks), 2);
    }

    #[test]
    fn a_ring_that_is_missing_holds_nobody_back() {
        let now = Instant::now();
        let mut lanes = [lane(&[1, 2], now), lane(&[], now)];
        lanes[1].open = false;
        assert_eq!(order(&lanes, now, 8).len(), 2);
    }

    #[test]
    fn one_lane_is_taken_as_it_is_and_as_far_as_there_is_room() {
        let now = Instant::now();
        let lanes = [lane(&[5, 3, 4], now)];
        assert_eq!(order(&lanes, now, 2), [(0, 10), (0, 11)]);
    }

    #[test]
    fn equal_times_keep_the_order_of_the_rings() {
        let now = Instant::now();
        let lanes = [lane(&[7, 7], now), lane(&[7], now)];
        assert_eq!(order(&lanes, now + WINDOW, 8), [(0, 10), (0, 11), (1, 10)]);
    }
}
