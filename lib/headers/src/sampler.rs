//! Keeping one frame, or one flow, in N.

use crate::{WireFrame, flow, flow_hash};

/// What is kept or left out as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleBy {
    /// Each frame by itself, at random.
    Random,
    /// Whole flows, both directions together; the same seed picks the same flows everywhere.
    Flow,
}

/// Fragmented packets whose flow is remembered at the same time.
const PACKETS: usize = 1024;

/// Keeps K in N.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// A draw in 0..2^32 below this value is kept.
    threshold: u64,
    by: SampleBy,
    seed: u64,
    state: u64,
    /// By flow only: packet and flow of first fragments. A later one takes the place of whatever has it.
    fragments: Vec<(u64, u32)>,
}

impl Sampler {
    /// Keeps `kept` in `one_in`, each at least 1; all when `kept` is not less. Equal seeds give equal choices.
    pub fn new(kept: u32, one_in: u32, by: SampleBy, seed: u64) -> Sampler {
        let remembered = match by {
            SampleBy::Random => 0,
            SampleBy::Flow => PACKETS,
        };
        Sampler {
            threshold: Sampler::threshold(kept, one_in),
            by,
            seed,
            state: seed,
            fragments: vec![(0, 0); remembered],
        }
    }

    /// The value below which a draw of 32 bits is kept, for programs that do the same elsewhere.
    pub fn threshold(kept: u32, one_in: u32) -> u64 {
        (u64::from(kept.max(1)) << 32).div_ceil(u64::from(one_in.max(1)))
    }

    /// The flow of a frame. A fragment belongs to the flow of its packet: that of the first part, which has the ports, is remembered
    /// for the others. Parts that come before the first one, or very late, go by their addresses.
    fn flow(&mut self, frame: &WireFrame<'_>) -> u32 {
        let Some(part) = flow::fragment(frame) else {
            return flow_hash(frame);
        };
        let places = u64::try_from(self.fragments.len()).unwrap_or(u64::MAX);
        let place = part.packet.checked_rem(places);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let Some(known) = place.and_then(|place| self.fragments.get_mut(place)) else {
            return flow_hash(frame);
        };
        if let Some(flow) = part.flow {
            *known = (part.packet, flow);
        }
        match *known {
            (packet, flow) if packet == part.packet => flow,
            _ => flow_hash(frame),
        }
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
            SampleBy::Flow => mix(self.seed ^ u64::from(self.flow(frame))),
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
            let mut sampler = Sampler::new(1, one_in, SampleBy::Random, 42);
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
            let mut sampler = Sampler::new(1, 4, SampleBy::Random, seed);
            (0..256).map(|_| sampler.keep(&frame)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn flow_sampling_keeps_or_leaves_both_directions_of_a_flow_together() {
        let mut sampler = Sampler::new(1, 8, SampleBy::Flow, 99);
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

    /// A datagram of UDP from `port` in three parts, and whole.
    fn parts(v6: bool, port: u16, identification: u16) -> Vec<Vec<u8>> {
        let mut udp: Vec<u8> = Vec::new();
        udp.extend([port, 53, 24, 0].iter().flat_map(|word| word.to_be_bytes()));
        udp.extend([7; 16]);
        let part = |at: usize, more: bool| {
            let mut frame = vec![2; 12];
            let offset = u16::try_from(at / 8).expect("small");
            if v6 {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 44, 64]);
                frame.extend([[0xfd; 16], [0xfe; 16]].concat());
                frame.extend([17, 0]);
                frame.extend((offset << 3 | u16::from(more)).to_be_bytes());
                frame.extend(u32::from(identification).to_be_bytes());
            } else {
                frame.extend([8, 0, 0x45, 0, 0, 28]);
                frame.extend(identification.to_be_bytes());
                frame.extend((offset | u16::from(more) << 13).to_be_bytes());
                frame.extend([64, 17, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
            }
            frame.extend(&udp[at..at + 8]);
            frame
        };
        let mut frames = vec![part(0, true), part(8, true), part(16, false)];
        // The whole one, without the fragment header.
        let mut whole = vec![2; 12];
        if v6 {
            whole.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 17, 64]);
            whole.extend([[0xfd; 16], [0xfe; 16]].concat());
        } else {
            whole.extend([8, 0, 0x45, 0, 0, 44, 0, 9, 0, 0, 64, 17, 0, 0]);
            whole.extend([10, 0, 0, 9, 10, 0, 0, 1]);
        }
        whole.extend(&udp);
        frames.push(whole);
        frames
    }

    #[test]
    fn flow_sampling_keeps_the_fragments_of_a_datagram_with_its_flow() {
        for v6 in [false, true] {
            let mut sampler = Sampler::new(1, 2, SampleBy::Flow, 3);
            let mut kept = 0;
            for port in 1000..1400 {
                let choices: Vec<bool> = parts(v6, port, port)
                    .iter()
                    .map(|bytes| sampler.keep(&WireFrame::new(bytes, 100)))
                    .collect();
                assert!(
                    choices.iter().all(|choice| *choice == choices[0]),
                    "IPv6 {v6}, port {port}: {choices:?}"
                );
                kept += usize::from(choices[0]);
            }
            assert!((120..=280).contains(&kept), "{kept} of 400");
        }
    }

    #[test]
    fn three_in_four_are_three_quarters() {
        let bytes = udp(7, 1000, false);
        let frame = WireFrame::new(&bytes, 42);
        let mut sampler = Sampler::new(3, 4, SampleBy::Random, 42);
        let kept = (0..100_000).filter(|_| sampler.keep(&frame)).count();
        assert!((74_000..=76_000).contains(&kept), "{kept}");
    }
}
