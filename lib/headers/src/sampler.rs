//! Keeping one frame, or one flow, in N.

use crate::{WireFrame, flow_hash};

/// What is kept or left out as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleBy {
    /// Each frame by itself, at random.
    Random,
    /// Whole flows, both directions together; the same seed picks the same flows everywhere.
    Flow,
}

/// Keeps one in N.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// A draw in 0..2^32 below this value is kept.
    threshold: u64,
    by: SampleBy,
    seed: u64,
    state: u64,
}

impl Sampler {
    /// Keeps one in `one_in`; 0 and 1 keep everything. Equal seeds give equal choices.
    pub fn new(one_in: u32, by: SampleBy, seed: u64) -> Sampler {
        Sampler {
            threshold: Sampler::threshold(one_in),
            by,
            seed,
            state: seed,
        }
    }

    /// The value below which a draw of 32 bits is kept, for programs that do the same elsewhere.
    pub fn threshold(one_in: u32) -> u64 {
        (1u64 << 32).div_ceil(u64::from(one_in.max(1)))
    }

    /// Whether this frame is kept.
    #[inline]
    pub fn keep(&mut self, frame: &WireFrame<'_>) -> bool {
        let draw = match self.by {
            SampleBy::Random => {
                // SplitMix64 (Steele, Lea, Flood 2014): the state walks all 2^64 values.
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                mix(self.state)
            }
            SampleBy::Flow => mix(self.seed ^ u64::from(flow_hash(frame))),
        };
        (draw >> 32) < self.threshold
    }
}

/// The finaliser of SplitMix64: every input bit changes every output bit with probability one half.
#[inline]
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: u8, port: u16, swap: bool) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0,
        ]);
        frame.extend(if swap {
            [1, 10, 0, 0, source]
        } else {
            [source, 10, 0, 0, 1]
        });
        let ports = if swap { [53, port] } else { [port, 53] };
        frame.extend(ports.iter().flat_map(|p| p.to_be_bytes()));
        frame.extend([0, 8, 0, 0]);
        frame
    }

    #[test]
    fn random_sampling_keeps_one_in_n_within_five_sigma() {
        let bytes = udp(7, 1000, false);
        let frame = WireFrame::new(&bytes, 42);
        for (one_in, expected) in [
            (0, 100_000.0),
            (1, 100_000.0),
            (2, 5e4),
            (10, 1e4),
            (1000, 100.0),
        ] {
            let mut sampler = Sampler::new(one_in, SampleBy::Random, 42);
            let kept = (0..100_000).filter(|_| sampler.keep(&frame)).count();
            let sigma = f64::sqrt(expected);
            assert!(
                (kept as f64 - expected).abs() <= 5.0 * sigma,
                "1/{one_in}: {kept}"
            );
        }
    }

    #[test]
    fn equal_seeds_choose_alike_and_different_seeds_do_not() {
        let bytes = udp(7, 1000, false);
        let frame = WireFrame::new(&bytes, 42);
        let choices = |seed| {
            let mut sampler = Sampler::new(4, SampleBy::Random, seed);
            (0..256).map(|_| sampler.keep(&frame)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn flow_sampling_keeps_or_leaves_both_directions_of_a_flow_together() {
        let mut sampler = Sampler::new(8, SampleBy::Flow, 99);
        let mut kept = 0;
        for port in 1..=4000u16 {
            let there = udp((port % 200) as u8, port, false);
            let back = udp((port % 200) as u8, port, true);
            let first = sampler.keep(&WireFrame::new(&there, 42));
            assert_eq!(sampler.keep(&WireFrame::new(&there, 42)), first);
            assert_eq!(sampler.keep(&WireFrame::new(&back, 42)), first);
            kept += u32::from(first);
        }
        assert!((400..=600).contains(&kept), "{kept} of 4000 flows at 1/8");
    }
}
