//! How a socket takes the place of another one without a frame lost or doubled.
//!
//! ```text
//!   old   ------------------|===========|            what it has is published
//!   new                     |===========|---------   what the old one had, too, is passed over
//!                        bound     takes no more
//! ```
//!
//! The new socket is bound before the old one takes no more, so both have the frames in between. They are known by their time: while
//! a socket has asked for it, the kernel notes it once in each frame, for all sockets, to the nanosecond. (It begins to do so a few milliseconds
//! after it was asked; a frame without such a time is known by its bytes, and a time that is near.) So the old one takes note of its frames while the
//! new one is being opened, and once it has come to its end, the new one passes over those.

use fluxcap_socket::Packet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Frames that are remembered, the last ones: 6 MiB. What both sockets have is of some milliseconds.
const MEMORY: usize = 1 << 18;
/// By how much two sockets' own times of one frame differ at most.
const NEAR: u64 = 20_000_000;

/// A frame that a socket has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    what: u64,
    time: u64,
    /// The time is the frame's and not the socket's.
    stamped: bool,
}

impl Mark {
    fn of(packet: &Packet<'_>) -> Mark {
        let mut hasher = DefaultHasher::new();
        (packet.wire_len, packet.outgoing, packet.vlan).hash(&mut hasher);
        if !packet.stamped {
            packet.data.hash(&mut hasher);
        }
        Mark {
            what: hasher.finish(),
            time: packet.timestamp_ns,
            stamped: packet.stamped,
        }
    }
}

/// What a socket remembers of its frames while its successor is being opened.
#[derive(Debug)]
pub(crate) struct Memory {
    marks: Vec<Mark>,
    next: usize,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory {
            marks: Vec::with_capacity(MEMORY),
            next: 0,
        }
    }

    /// Takes note of a frame; of the oldest no more when there are too many.
    #[inline]
    pub(crate) fn note(&mut self, packet: &Packet<'_>) {
        let mark = Mark::of(packet);
        match self.marks.get_mut(self.next) {
            Some(oldest) => *oldest = mark,
            None => self.marks.push(mark),
        }
        self.next = (self.next + 1) % MEMORY;
    }
}

/// What all sockets that go have had, for those that come.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// In order, with whether it was met again.
    marks: Vec<(Mark, bool)>,
}

impl Seen {
    pub(crate) fn new(memories: impl IntoIterator<Item = Memory>) -> Seen {
        let marks = memories.into_iter().flat_map(|memory| memory.marks);
        let mut marks: Vec<_> = marks.map(|mark| (mark, false)).collect();
        marks.sort_unstable();
        Seen { marks }
    }

    /// Whether this frame is one of them. Each is met once.
    pub(crate) fn meet(&mut self, packet: &Packet<'_>) -> bool {
        let mark = Mark::of(packet);
        let from = match mark.stamped {
            true => mark.time,
            false => mark.time.saturating_sub(NEAR),
        };
        let first = Mark { time: from, ..mark };
        let at = self
            .marks
            .partition_point(|(other, _)| (other.what, other.time) < (first.what, first.time));
        let until = match mark.stamped {
            true => mark.time,
            false => mark.time.saturating_add(NEAR),
        };
        let candidates = self.marks.get_mut(at..).into_iter().flatten();
        let same = candidates
            .take_while(|(other, _)| other.what == mark.what && other.time <= until)
            .filter(|(other, met)| other.stamped == mark.stamped && !met)
            .min_by_key(|(other, _)| other.time.abs_diff(mark.time));
        same.map(|(_, met)| *met = true).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(data: &mut [u8], time: u64, stamped: bool) -> Packet<'_> {
        Packet {
            wire_len: u32::try_from(data.len()).unwrap_or(0),
            data,
            timestamp_ns: time,
            vlan: None,
            outgoing: false,
            checksum_partial: false,
            gso: false,
            losing: false,
            stamped,
        }
    }

    fn seen(frames: &[(u8, u64, bool)]) -> Seen {
        let mut memory = Memory::new();
        for (byte, time, stamped) in frames {
            memory.note(&packet(&mut [*byte; 60], *time, *stamped));
        }
        Seen::new([memory, Memory::new()])
    }

    #[test]
    fn a_frame_is_known_by_its_time_and_met_once() {
        let mut seen = seen(&[(1, 1000, true), (1, 1001, true), (2, 1001, true)]);
        let mut meet = |time| seen.meet(&packet(&mut [1; 60], time, true));
        assert!(meet(1000) && !meet(1000));
        // Two that came at the same nanosecond, and are as long.
        assert!(meet(1001) && meet(1001) && !meet(1001));
        assert!(!meet(999) && !meet(1002));
    }

    #[test]
    fn without_a_time_of_its_own_it_is_known_by_its_bytes_and_the_nearest_time() {
        let mut seen = seen(&[(1, 5_000_000, false), (1, 5_100_000, false), (2, 0, true)]);
        let mut meet = |byte, time| seen.meet(&packet(&mut [byte; 60], time, false));
        assert!(!meet(3, 5_000_000));
        assert!(meet(1, 5_000_900) && meet(1, 5_099_000) && !meet(1, 5_000_000));
        assert!(!meet(2, 0));
    }

    #[test]
    fn the_last_frames_are_remembered() {
        let mut memory = Memory::new();
        for time in 0..MEMORY as u64 + 10 {
            memory.note(&packet(&mut [0; 14], time, true));
        }
        let mut seen = Seen::new([memory]);
        assert!(!seen.meet(&packet(&mut [0; 14], 9, true)));
        assert!(seen.meet(&packet(&mut [0; 14], 10, true)));
        assert!(seen.meet(&packet(&mut [0; 14], MEMORY as u64 + 9, true)));
    }
}
