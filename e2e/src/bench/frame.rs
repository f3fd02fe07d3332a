//! The frames of the bench: cheap to make and to judge at millions a second.
//!
//! ```text
//!  0        12       14      18     20       22      30         38     46
//! +---------+--------+-------+------+--------+-------+---------+------+---- ...
//! | MACs    | type   | magic | run  | stream | seq   | sent_ns | sum  | filler, a piece of the pool that depends on seq
//! |         | 0x88b5 | u32   | u16  | u16    | u64   | u64     | u64  |
//! +---------+--------+-------+------+--------+-------+---------+------+---- ...
//! ```
//!
//! The fields from `magic` on are in the machine's own byte order, since they never leave it. `sum` covers them and the length of the frame;
//! the filler is compared byte for byte where that is asked for. No IP in it: GRO has nothing to merge, and what arrives is what was sent.

use crate::payload::ETHERTYPE;

/// Bytes in front of the filler.
pub const HEADER: usize = 46;

/// Where the fields begin.
const ETHERNET: usize = 14;
const MAGIC: u32 = 0x666c_7562;
/// Places in the pool where a filler can begin.
const PLACES: u64 = 1 << 16;
/// The longest frame.
const LONGEST: usize = 1514;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The trial in which it was sent.
    pub run: u16,
    /// Which source sent it.
    pub stream: u16,
    /// Its number in the run and stream, from 0.
    pub seq: u64,
    /// CLOCK_MONOTONIC at which it was handed to the kernel, in nanoseconds.
    pub sent_ns: u64,
}

impl Stamp {
    /// What stands in `sum` in a frame of this length; `bpf/sink.bpf.c` has the same.
    fn sum(&self, len: usize) -> u64 {
        let last = u64::from(self.run) << 48 | u64::from(self.stream) << 32 | len as u64;
        let mut hash = self.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 29 ^ self.sent_ns).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 32 ^ last).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    }

    /// The first [`HEADER`] bytes of the frame of this length.
    #[must_use]
    pub fn header(&self, len: usize) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        header[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        let fields = &mut header[ETHERNET..];
        fields[..4].copy_from_slice(&MAGIC.to_ne_bytes());
        fields[4..6].copy_from_slice(&self.run.to_ne_bytes());
        fields[6..8].copy_from_slice(&self.stream.to_ne_bytes());
        fields[8..16].copy_from_slice(&self.seq.to_ne_bytes());
        fields[16..24].copy_from_slice(&self.sent_ns.to_ne_bytes());
        fields[24..].copy_from_slice(&self.sum(len).to_ne_bytes());
        header
    }

    /// Reads a frame. `None` when it is none of ours, or its fields or its length are not those that were sent.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Stamp> {
        let fields = frame.get(ETHERNET..HEADER)?;
        let half = |at: usize| u16::from_ne_bytes([fields[at], fields[at + 1]]);
        let word = |at: usize| fields[at..at + 8].try_into().map(u64::from_ne_bytes);
        let stamp = Stamp {
            run: half(4),
            stream: half(6),
            seq: word(8).ok()?,
            sent_ns: word(16).ok()?,
        };
        let good = fields[..4] == MAGIC.to_ne_bytes() && word(24).ok()? == stamp.sum(frame.len());
        good.then_some(stamp)
    }
}

/// Where the fillers of all frames come from.
#[derive(Debug)]
pub struct Pool(Vec<u8>);

impl Pool {
    /// The same bytes each time.
    #[must_use]
    pub fn new() -> Pool {
        let mut state = 1_u64;
        let words = (PLACES + LONGEST as u64) / 8 + 1;
        let bytes = (0..words).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_ne_bytes()
        });
        Pool(bytes.collect())
    }

    /// What follows the header of frame `seq`, which is `len` bytes long in all.
    #[must_use]
    #[inline]
    pub fn filler(&self, seq: u64, len: usize) -> &[u8] {
        let at = (seq.wrapping_mul(0x9e37) % PLACES) as usize;
        &self.0[at..at + len.saturating_sub(HEADER)]
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::new()
    }
}

/// Lengths of frames, taken in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// How it is called: with the FCS that a veth does not have, but for 1514.
    pub name: &'static str,
    /// Bytes as the interface has them, without FCS.
    pub lengths: &'static [usize],
}

/// The sizes of the issue. "64" and "512" count the FCS; "1514" is the longest frame of an MTU of 1500, 1518 with its FCS.
/// IMIX is seven short, four middling and one long frame.
pub const MIXES: [Mix; 4] = [
    Mix {
        name: "64",
        lengths: &[60],
    },
    Mix {
        name: "512",
        lengths: &[508],
    },
    Mix {
        name: "1514",
        lengths: &[1514],
    },
    Mix {
        name: "IMIX",
        lengths: &[60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60],
    },
];

impl Mix {
    /// Length of frame `seq`.
    #[must_use]
    #[inline]
    pub fn length(&self, seq: u64) -> usize {
        let lengths = self.lengths;
        match lengths {
            [one] => *one,
            _ => {
                #[expect(clippy::cast_possible_truncation, reason = "below a small number")]
                let turn = (seq % lengths.len() as u64) as usize;
                lengths[turn]
            }
        }
    }

    /// Bytes of a frame on average, without FCS.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    pub fn mean(&self) -> f64 {
        self.lengths.iter().sum::<usize>() as f64 / self.lengths.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_stamped_and_no_other_way() {
        let pool = Pool::new();
        for mix in MIXES {
            for seq in [0, 1, 77, u64::MAX - 1] {
                let len = mix.length(seq);
                let stamp = Stamp {
                    run: 3,
                    stream: 1,
                    seq,
                    sent_ns: 12345,
                };
                let mut frame = stamp.header(len).to_vec();
                frame.extend(pool.filler(seq, len));
                assert_eq!(frame.len(), len);
                assert_eq!(Stamp::read(&frame), Some(stamp));
                assert_eq!(Stamp::read(&frame[..len - 1]), None);
                frame[23] ^= 1;
                assert_eq!(Stamp::read(&frame), None);
            }
        }
    }

    #[test]
    fn imix_is_seven_four_one() {
        let count = |len| MIXES[3].lengths.iter().filter(|n| **n == len).count();
        assert_eq!([count(60), count(590), count(1514)], [7, 4, 1]);
    }
}
