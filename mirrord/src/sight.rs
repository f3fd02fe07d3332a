//! Whether a mirror sees what passes its interface. A program or filter that runs before it may end the way of frames, and nobody tells: the
//! interface counts frames and the mirror does not.

use std::time::{Duration, Instant};

use fluxcap_socket::Link;

use crate::program::Way;

/// How long it may be so.
const PATIENCE: Duration = Duration::from_secs(2);
/// Fewer frames than this may have come by another way.
const FEW: u64 = 3;

/// What is watched, by way.
#[derive(Debug, Default)]
pub(crate) struct Sight([Eye; 2]);

#[derive(Debug, Default)]
struct Eye {
    ifindex: u32,
    /// Frames that the mirror has seen, and that the interface had counted when that number changed last.
    seen: u64,
    base: u64,
    /// When the interface was found to count on without it.
    since: Option<Instant>,
    blind: bool,
}

impl Sight {
    /// Takes note of the counters of the interface, and of the mirror's for one way.
    pub(crate) fn look(&mut self, way: Way, link: &Link, seen: u64) {
        let counted = match way {
            Way::In => link.rx_packets,
            Way::Out => link.tx_packets,
        };
        self.0[way as usize].look(link.index, counted, seen, Instant::now());
    }

    /// Nothing is attached this way.
    pub(crate) fn forget(&mut self, way: Way) {
        self.0[way as usize] = Eye::default();
    }

    /// The ways of which the mirror sees nothing while frames pass.
    pub(crate) fn blind(&self) -> impl Iterator<Item = Way> {
        let blind = |way: &Way| self.0[*way as usize].blind;
        Way::ALL.into_iter().filter(blind)
    }
}

impl Eye {
    fn look(&mut self, ifindex: u32, counted: u64, seen: u64, now: Instant) {
        if self.ifindex != ifindex || self.seen != seen || counted < self.base {
            *self = Eye {
                ifindex,
                seen,
                base: counted,
                ..Eye::default()
            };
        } else if counted - self.base >= FEW {
            let since = *self.since.get_or_insert(now);
            self.blind |= now.duration_since(since) >= PATIENCE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_nothing_for_two_seconds_while_frames_pass_is_blind_until_he_sees_one() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut eye = Eye::default();
        eye.look(1, 100, 7, at(0));
        // A few, by another way.
        eye.look(1, 102, 7, at(5_000));
        assert!(!eye.blind && eye.since.is_none());
        eye.look(1, 200, 7, at(6_000));
        eye.look(1, 300, 7, at(7_900));
        assert!(!eye.blind);
        eye.look(1, 300, 7, at(8_000));
        assert!(eye.blind);
        eye.look(1, 301, 8, at(8_100));
        assert!(!eye.blind);
        // Another interface, or one that was made anew.
        eye.look(2, 5, 8, at(9_000));
        eye.look(2, 0, 8, at(20_000));
        assert!(!eye.blind && eye.since.is_none());
    }
}
