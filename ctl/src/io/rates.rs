//! Rates out of two looks at a ring.

use crate::output::{Block, count, rate, reasons};
use fluxcap_ring::{Outcome, ReaderStats, RingStats, SourceStats};
use fluxcap_service::realtime_ns;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens on a ring. Rates are per second; totals are since the ring's epoch began.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RingRates {
    pub(crate) name: String,
    /// When it was looked at: CLOCK_REALTIME, nanoseconds since 1970.
    pub(crate) time_ns: u64,
    pub(crate) epoch: u64,
    pub(crate) size_bytes: u64,
    pub(crate) mode: &'static str,
    /// Who produces; `None` when nobody ever did.
    pub(crate) producer: Option<String>,
    pub(crate) producer_live: bool,
    pub(crate) interval_seconds: f64,
    pub(crate) frames_per_second: f64,
    /// Of frame data, without anything that a wire adds.
    pub(crate) bits_per_second: f64,
    pub(crate) published_frames: u64,
    pub(crate) published_bytes: u64,
    pub(crate) kernel_drops_per_second: f64,
    pub(crate) kernel_dropped_frames: u64,
    /// Frames that the producer did not publish, by reason.
    pub(crate) dropped_frames: BTreeMap<&'static str, u64>,
    pub(crate) sources: Vec<SourceRates>,
    pub(crate) readers: Vec<ReaderRates>,
}

/// What happens on an interface that feeds a ring.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SourceRates {
    pub(crate) name: String,
    pub(crate) frames_per_second: f64,
    pub(crate) received_frames: u64,
    pub(crate) kernel_drops_per_second: f64,
    pub(crate) kernel_dropped_frames: u64,
    pub(crate) missed_frames: u64,
}

/// What a reader of a ring does.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReaderRates {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) live: bool,
    pub(crate) frames_per_second: f64,
    pub(crate) bits_per_second: f64,
    pub(crate) lag_frames: u64,
    pub(crate) lag_bytes: u64,
    /// Share of the ring that it is behind, 0 to 1; at 1 it is lapped.
    pub(crate) lag_ratio: f64,
    pub(crate) lapped_per_second: f64,
    pub(crate) lapped_frames: u64,
    pub(crate) delivered_frames: u64,
    /// What became of the delivered frames, by outcome.
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
}

/// Rates from `before` to `after`, which are of the same epoch; an `interval` of zero gives rates of zero.
pub(crate) fn rates(before: &RingStats, after: &RingStats, interval: Duration) -> RingRates {
    let per_second = PerSecond(interval.as_secs_f64());
    let kernel_drops = |stats: &RingStats| {
        stats
            .sources
            .iter()
            .map(|source| source.kernel_drops)
            .sum::<u64>()
    };
    RingRates {
        name: after.info.name.to_string(),
        time_ns: realtime_ns(),
        epoch: after.info.epoch,
        size_bytes: after.info.capacity,
        mode: match after.info.mode {
            fluxcap_ring::Mode::Overwrite => "overwrite",
            fluxcap_ring::Mode::Wait => "wait",
        },
        producer: after
            .producer
            .as_ref()
            .map(|producer| producer.holder.clone()),
        producer_live: after
            .producer
            .as_ref()
            .is_some_and(|producer| producer.live),
        interval_seconds: interval.as_secs_f64(),
        frames_per_second: per_second.of(before.published_frames, after.published_frames),
        bits_per_second: per_second.of(before.published_bytes, after.published_bytes) * 8.0,
        published_frames: after.published_frames,
        published_bytes: after.published_bytes,
        kernel_drops_per_second: per_second.of(kernel_drops(before), kernel_drops(after)),
        kernel_dropped_frames: kernel_drops(after),
        dropped_frames: after
            .drops
            .iter()
            .map(|(reason, n)| (reason.as_str(), *n))
            .collect(),
        sources: after
            .sources
            .iter()
            .map(|source| source_rates(before, source, per_second))
            .collect(),
        readers: after
            .readers
            .iter()
            .map(|reader| reader_rates(before, after, reader, per_second))
            .collect(),
    }
}

fn source_rates(before: &RingStats, after: &SourceStats, per_second: PerSecond) -> SourceRates {
    let known = before
        .sources
        .iter()
        .find(|source| source.index == after.index && source.name == after.name);
    let before = known.unwrap_or(after);
    SourceRates {
        name: after.name.clone(),
        frames_per_second: per_second.of(before.received, after.received),
        received_frames: after.received,
        kernel_drops_per_second: per_second.of(before.kernel_drops, after.kernel_drops),
        kernel_dropped_frames: after.kernel_drops,
        missed_frames: after.missed,
    }
}

fn reader_rates(
    before: &RingStats,
    ring: &RingStats,
    after: &ReaderStats,
    per_second: PerSecond,
) -> ReaderRates {
    let same = |reader: &&ReaderStats| {
        (reader.slot, &reader.label, reader.pid) == (after.slot, &after.label, after.pid)
    };
    let before = before.readers.iter().find(same).unwrap_or(after);
    ReaderRates {
        name: after.label.clone(),
        pid: after.pid,
        live: after.live,
        frames_per_second: per_second.of(before.delivered, after.delivered),
        bits_per_second: per_second.of(before.delivered_bytes, after.delivered_bytes) * 8.0,
        lag_frames: after.lag_frames,
        lag_bytes: after.lag_bytes,
        lag_ratio: ratio(after.lag_bytes, ring.info.capacity),
        lapped_per_second: per_second.of(before.lapped, after.lapped),
        lapped_frames: after.lapped,
        delivered_frames: after.delivered,
        outcomes: after
            .outcomes
            .iter()
            .map(|(outcome, n)| (outcome.as_str(), *n))
            .collect(),
    }
}

/// Part of a whole, 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64).min(1.0)
    }
}

/// The length of an interval in seconds.
#[derive(Debug, Clone, Copy)]
struct PerSecond(f64);

impl PerSecond {
    /// Growth of a counter per second; a counter that fell back was started anew and counts as still.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn of(self, before: u64, after: u64) -> f64 {
        if self.0 > 0.0 {
            after.saturating_sub(before) as f64 / self.0
        } else {
            0.0
        }
    }
}

/// Tables: rings, then their readers.
pub(crate) fn blocks(rings: &[RingRates]) -> Vec<Block> {
    let header = &[
        "RING",
        ">RATE",
        ">BIT RATE",
        "",
        ">KERNEL DROPS",
        ">TOTAL",
        "NOT PUBLISHED",
        "PRODUCER",
    ];
    let mut blocks = vec![Block::Rows(header, rings.iter().map(ring_row).collect())];
    let readers: Vec<Vec<String>> = rings
        .iter()
        .flat_map(|ring| ring.readers.iter().map(|reader| reader_row(ring, reader)))
        .collect();
    if !readers.is_empty() {
        let header = &[
            "READER",
            "RING",
            ">RATE",
            ">BIT RATE",
            ">LAG",
            "",
            ">LAPPED",
            ">TOTAL",
            "OUTCOMES",
            ">PID",
        ];
        blocks.push(Block::Rows(header, readers));
    }
    blocks
}

fn ring_row(ring: &RingRates) -> Vec<String> {
    vec![
        ring.name.clone(),
        rate(ring.frames_per_second, "pps"),
        rate(ring.bits_per_second, "bit/s"),
        bar(rate_level(ring.bits_per_second)),
        rate(ring.kernel_drops_per_second, "pps"),
        count(ring.kernel_dropped_frames),
        reasons(ring.dropped_frames.iter().map(|(reason, n)| (*reason, *n))),
        match (&ring.producer, ring.producer_live) {
            (None, _) => "-".to_owned(),
            (Some(holder), true) => holder.clone(),
            (Some(holder), false) => format!("{holder} (gone)"),
        },
    ]
}

fn reader_row(ring: &RingRates, reader: &ReaderRates) -> Vec<String> {
    // What went right is in the rate; here is the rest.
    let good = [Outcome::Sent, Outcome::Written, Outcome::Copied].map(Outcome::as_str);
    let other = reader
        .outcomes
        .iter()
        .filter(|(outcome, _)| !good.contains(outcome));
    vec![
        reader.name.clone(),
        ring.name.clone(),
        rate(reader.frames_per_second, "pps"),
        rate(reader.bits_per_second, "bit/s"),
        count(reader.lag_frames),
        bar(reader.lag_ratio),
        rate(reader.lapped_per_second, "pps"),
        count(reader.lapped_frames),
        reasons(other.map(|(outcome, n)| (*outcome, *n))),
        if reader.live {
            reader.pid.to_string()
        } else {
            format!("{} (gone)", reader.pid)
        },
    ]
}

/// How far a bit rate is between 1 kbit/s and 1 Tbit/s, on a logarithmic scale.
fn rate_level(bits_per_second: f64) -> f64 {
    if bits_per_second <= 1e3 {
        0.0
    } else {
        (bits_per_second.log10() - 3.0) / 9.0
    }
}

const BAR: usize = 18;

/// A bar that is `level` full, 0 to 1; anything above 0 shows.
fn bar(level: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let filled = (1..=BAR)
        .filter(|step| (*step as f64 - 0.5) / BAR as f64 <= level)
        .count();
    let filled = if level > 0.0 { filled.max(1) } else { filled };
    format!("|{}{}|", "#".repeat(filled), ".".repeat(BAR - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_growth_over_time() {
        assert_eq!(PerSecond(0.5).of(100, 200), 200.0);
        assert_eq!(PerSecond(0.0).of(100, 200), 0.0);
        assert_eq!(PerSecond(1.0).of(200, 100), 0.0);
    }

    #[test]
    fn bars_show_the_least_and_the_most() {
        assert_eq!(bar(0.0), format!("|{}|", ".".repeat(BAR)));
        assert_eq!(bar(1e-9).matches('#').count(), 1);
        assert_eq!(bar(0.5).matches('#').count(), BAR / 2);
        assert_eq!(bar(7.0), format!("|{}|", "#".repeat(BAR)));
        assert_eq!(bar(f64::NAN), format!("|{}|", ".".repeat(BAR)));
    }

    #[test]
    fn the_scale_of_rates_is_logarithmic() {
        assert_eq!(rate_level(0.0), 0.0);
        assert!((rate_level(1e6) - 1.0 / 3.0).abs() < 1e-9);
        assert!((rate_level(1e12) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_share_of_nothing_is_nothing() {
        assert_eq!(ratio(5, 0), 0.0);
        assert_eq!(ratio(5, 10), 0.5);
        assert_eq!(ratio(u64::MAX, 1), 1.0);
    }
}
