//! Which of several sockets' frames goes into the ring next: the earliest, by the kernel's time.
//!
//! A frame may go when nothing earlier can come any more. A socket that has a later frame to show proves that, because each
//! one's frames come in order. One that has nothing to show proves less: what it hands over, it hands over at most so late
//! (a block that is not full waits for its timer), so nothing is still to come that is older than that. The window is added
//! to this, for timers that are late. Nothing here waits by itself: [`Order::rest`] says how long there is nothing to do.

use std::time::Duration;

/// The time of no frame.
const NONE: u64 = u64::MAX;
/// A frame that is so far ahead of the clock was received before the clock was set back. Nobody knows what it has to wait for.
const AHEAD: u64 = 10_000_000;
/// Longest pause while frames are held back: blocks fill up meanwhile.
const PAUSE: Duration = Duration::from_millis(2);
/// Shortest pause: a sleep takes as long anyway.
const SHORTEST: Duration = Duration::from_micros(20);

/// The next frames of several sockets, by their number.
#[derive(Debug, Default)]
pub(crate) struct Order {
    heads: Tournament,
    /// The time when the sockets were looked at, nanoseconds since 1970.
    now: u64,
    /// How long a frame waits; `None`: not at all.
    window: Option<u64>,
    /// Frames up to this time may go.
    horizon: u64,
}

/// What is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// There are no frames.
    Idle,
    /// Frames are held back, the first one so long.
    Hold(Duration),
    /// Frames may go.
    Busy,
}

impl Order {
    /// Begins a look at so many sockets at the time `now`, which was read before any of them was looked at. Without a window
    /// nothing is held back.
    pub(crate) fn begin(&mut self, sockets: usize, now: u64, window: Option<Duration>) {
        self.heads.resize(sockets);
        let window = window.map(|window| u64::try_from(window.as_nanos()).unwrap_or(NONE));
        (self.now, self.window, self.horizon) = (now, window, NONE);
    }

    /// Takes note of a socket's next frame. A socket without one hands over what it still has after `hand_over` at most.
    #[inline]
    pub(crate) fn set(&mut self, socket: usize, head: Option<u64>, hand_over: Duration) {
        self.heads.set(socket, head.unwrap_or(NONE));
        if head.is_none()
            && let Some(window) = self.window
        {
            let hand_over = u64::try_from(hand_over.as_nanos()).unwrap_or(NONE);
            let proven = self.now.saturating_sub(hand_over).saturating_sub(window);
            self.horizon = self.horizon.min(proven);
        }
    }

    /// The socket whose frame is to go now.
    #[inline]
    pub(crate) fn due(&self) -> Option<usize> {
        let (first, time) = self.heads.first()?;
        (time <= self.horizon || self.is_ahead(time)).then_some(first)
    }

    /// Up to which time the socket that is due may go on without another look at the others.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        let (_, time) = self.heads.first().unwrap_or_default();
        let second = self.heads.second();
        if self.is_ahead(time) {
            second
        } else {
            second.min(self.horizon)
        }
    }

    #[inline]
    fn is_ahead(&self, time: u64) -> bool {
        time > self.now.saturating_add(AHEAD)
    }

    /// Whether a frame of this socket is at hand: then it need not be waited for.
    pub(crate) fn has(&self, socket: usize) -> bool {
        self.heads.key(socket) != NONE
    }

    /// What is left to do.
    pub(crate) fn rest(&self) -> Rest {
        match self.heads.first() {
            None => Rest::Idle,
            Some(_) if self.due().is_some() => Rest::Busy,
            Some((_, time)) => {
                let left = Duration::from_nanos(time.saturating_sub(self.horizon));
                Rest::Hold(left.clamp(SHORTEST, PAUSE))
            }
        }
    }

    /// Forgets all sockets.
    pub(crate) fn clear(&mut self) {
        self.heads.resize(0);
    }
}

/// Finds the smallest of some numbers again and again, while one at a time changes: a tree of matches, in which only those of
/// the one that has changed are played anew.
#[derive(Debug, Default)]
struct Tournament {
    /// Who has come out of each place, with his number. Place 1 is the final; places `2 n` and `2 n + 1` lead to place `n`; the
    /// players stand in the second half.
    places: Vec<(u64, usize)>,
    players: usize,
}

impl Tournament {
    /// So many players, without numbers when there were not so many before.
    fn resize(&mut self, players: usize) {
        if players != self.players {
            let size = players.next_power_of_two();
            self.places.clear();
            // The first of those who stand below it.
            let player = |place: usize| {
                let depth = size.ilog2() - place.max(1).ilog2();
                (place << depth).saturating_sub(size)
            };
            self.places
                .extend((0..2 * size).map(|place| (NONE, player(place))));
            self.players = players;
        }
    }

    #[inline]
    fn place(&self, place: usize) -> (u64, usize) {
        self.places.get(place).copied().unwrap_or((NONE, 0))
    }

    #[inline]
    fn key(&self, player: usize) -> u64 {
        self.place(self.places.len() / 2 + player).0
    }

    #[inline]
    fn set(&mut self, player: usize, key: u64) {
        let mut place = self.places.len() / 2 + player;
        match self.places.get_mut(place) {
            Some(leaf) if leaf.0 != key => leaf.0 = key,
            _ => return,
        }
        let mut winner = (key, player);
        while place > 1 {
            let other = self.place(place ^ 1);
            // Without a branch, which nobody could foretell.
            winner = std::hint::select_unpredictable(other.0 < winner.0, other, winner);
            place /= 2;
            if let Some(slot) = self.places.get_mut(place) {
                *slot = winner;
            }
        }
    }

    /// A player with the smallest number; `None`: nobody has one.
    #[inline]
    fn first(&self) -> Option<(usize, u64)> {
        let (key, player) = self.place(1);
        (key != NONE).then_some((player, key))
    }

    /// The smallest number of the others.
    #[inline]
    fn second(&self) -> u64 {
        let mut place = self.places.len() / 2 + self.place(1).1;
        let mut second = NONE;
        while place > 1 {
            second = second.min(self.place(place ^ 1).0);
            place /= 2;
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const BLOCK: Duration = Duration::from_millis(1);
    const WINDOW: Duration = Duration::from_millis(2);

    /// A socket that hands over its frames a block time after they came.
    struct Socket {
        /// Those that are still to go, the next one last.
        times: Vec<u64>,
    }

    impl Socket {
        fn head(&self, now: u64) -> Option<u64> {
            let ready = |time: &u64| *time + u64::from(BLOCK.subsec_nanos()) <= now;
            self.times.last().copied().filter(ready)
        }
    }

    /// What goes at `now`, as the data path does it.
    fn turn(order: &mut Order, sockets: &mut [Socket], now: u64, window: Duration) -> Vec<u64> {
        order.begin(sockets.len(), now, Some(window));
        for (at, socket) in sockets.iter().enumerate() {
            order.set(at, socket.head(now), BLOCK);
        }
        let mut gone = Vec::new();
        while let Some(first) = order.due() {
            let limit = order.limit();
            loop {
                gone.extend(sockets[first].times.pop());
                let head = sockets[first].head(now);
                if head.is_none_or(|time| time > limit) {
                    order.set(first, head, BLOCK);
                    break;
                }
            }
        }
        gone
    }

    /// A small generator of numbers that look random.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn sockets(state: &mut u64, count: usize, end: u64) -> Vec<Socket> {
        let socket = |at: usize, state: &mut u64| {
            let mut times = Vec::new();
            let mut time = 100 * MS;
            // The second one is silent; the third flaps.
            while at != 1 && time < end {
                time += random(state) % (MS / 2) + 1;
                if at == 2 && (time / (20 * MS)).is_multiple_of(2) {
                    continue;
                }
                times.push(time);
            }
            times.reverse();
            Socket { times }
        };
        (0..count).map(|at| socket(at, state)).collect()
    }

    #[test]
    fn nothing_goes_behind_a_later_one_and_nothing_waits_longer_than_block_and_window() {
        let mut state = 88_172_645_463_325_252;
        for count in [1, 2, 3, 4, 7, 32] {
            let end = 300 * MS;
            let mut sockets = sockets(&mut state, count, end);
            let sent: usize = sockets.iter().map(|s| s.times.len()).sum();
            let (mut order, mut now) = (Order::default(), 100 * MS);
            let (mut last, mut gone) = (0, 0);
            while now < end + 20 * MS {
                for time in turn(&mut order, &mut sockets, now, WINDOW) {
                    assert!(time >= last, "{count} sockets: {time} behind {last}");
                    (last, gone) = (time, gone + 1);
                }
                let longest = 3 * MS + MS / 2;
                let waits = sockets.iter().filter_map(|s| s.times.last()).min();
                assert!(
                    waits.is_none_or(|time| time + longest > now),
                    "{count} sockets: {waits:?} at {now}"
                );
                // Turns come as they like, but not seldom.
                now += random(&mut state) % (MS / 2) + 1;
            }
            assert_eq!(gone, sent, "{count} sockets");
        }
    }

    #[test]
    fn a_frame_goes_as_soon_as_all_others_have_shown_a_later_one() {
        let mut order = Order::default();
        order.begin(3, 10 * MS, Some(WINDOW));
        for (at, time) in [(0, 9), (1, 8), (2, 10)] {
            order.set(at, Some(time * MS), BLOCK);
        }
        assert_eq!((order.due(), order.limit()), (Some(1), 9 * MS));
        order.set(1, Some(9 * MS + 1), BLOCK);
        assert_eq!((order.due(), order.limit()), (Some(0), 9 * MS + 1));
        order.set(0, None, BLOCK);
        // The next of socket 0 can be anything younger than its block: 10 - 1 ms, and the window before that.
        assert_eq!(order.due(), None);
        assert!(order.has(1) && !order.has(0));
        assert_eq!(order.rest(), Rest::Hold(PAUSE));
    }

    #[test]
    fn a_silent_socket_holds_a_frame_back_for_its_block_and_the_window() {
        let mut order = Order::default();
        let mut at = |now: u64, window| {
            order.begin(2, now, window);
            order.set(0, Some(50 * MS), BLOCK);
            order.set(1, None, BLOCK);
            order.rest()
        };
        let hold = Rest::Hold(Duration::from_millis(1));
        assert_eq!(at(52 * MS, Some(WINDOW)), hold);
        assert_eq!(at(53 * MS, Some(WINDOW)), Rest::Busy);
        assert_eq!(at(50 * MS, None), Rest::Busy);
        // Long before it came: the clock was set back.
        assert_eq!(at(42 * MS, Some(WINDOW)), Rest::Hold(PAUSE));
        assert_eq!(at(50 * MS - AHEAD - 1, Some(WINDOW)), Rest::Busy);
    }

    #[test]
    fn the_tournament_finds_the_smallest_two_whatever_changes() {
        let mut state = 1;
        for players in [1_usize, 2, 3, 5, 8, 33] {
            let mut tournament = Tournament::default();
            tournament.resize(players);
            assert_eq!(tournament.first(), None);
            let mut keys = vec![NONE; players];
            for _ in 0..500 {
                let player = usize::try_from(random(&mut state)).expect("64 bits") % players;
                keys[player] = match random(&mut state) % 20 {
                    19 => NONE,
                    key => key,
                };
                tournament.set(player, keys[player]);
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                let first = (sorted[0] != NONE).then_some(sorted[0]);
                assert_eq!(tournament.first().map(|(_, key)| key), first);
                let second = sorted.get(1).copied().unwrap_or(NONE);
                assert!(first.is_none() || tournament.second() == second);
            }
        }
    }
}
