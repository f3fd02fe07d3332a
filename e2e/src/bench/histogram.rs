//! Latencies, counted in buckets of 3 %.

use std::time::Duration;

/// Buckets for each power of two.
const PARTS: usize = 32;
/// As many as `bpf/sink.bpf.c` has: up to 18 minutes.
pub const BUCKETS: usize = 1184;

/// How often each latency was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    /// From the counts of all buckets.
    #[must_use]
    pub fn new(counts: &[u64]) -> Histogram {
        let mut counts = counts.to_vec();
        counts.resize(BUCKETS, 0);
        Histogram { counts }
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// Latencies counted.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The latency that this share of the frames (0 to 1) did not exceed, to the middle of its bucket; `None` without frames.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among the frames counted"
    )]
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.len() as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Duration::from_nanos(middle(bucket)))
    }
}

/// The value in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let (power, part) = (bucket / PARTS, (bucket % PARTS) as u64);
    if power == 0 {
        return part;
    }
    let shift = power - 1;
    ((PARTS as u64 + part) << shift) + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in `bpf/sink.bpf.c`.
    fn bucket(value: u64) -> usize {
        if value < 32 {
            return usize::try_from(value).expect("small");
        }
        let shift = value.ilog2() - 5;
        (shift as usize + 1) * 32 + usize::try_from(value >> shift & 31).expect("small")
    }

    #[test]
    fn every_value_is_in_a_bucket_whose_middle_is_near() {
        for value in (0..200).chain([1_000, 65_535, 98_600_000, 1_000_000_000_000]) {
            let near = middle(bucket(value)).abs_diff(value);
            assert!(near * 32 <= value, "{value}: {}", middle(bucket(value)));
        }
    }

    #[test]
    fn percentiles_are_ranks() {
        let mut counts = [0; BUCKETS];
        counts[10] = 98;
        counts[20] = 1;
        counts[30] = 1;
        let histogram = Histogram::new(&counts);
        let at = |share| histogram.percentile(share).map(|d| d.as_nanos());
        assert_eq!(
            [at(0.5), at(0.98), at(0.99), at(0.999), at(1.0)],
            [Some(10), Some(10), Some(20), Some(30), Some(30)]
        );
        assert_eq!(Histogram::new(&[]).percentile(0.5), None);
    }
}
