//! What is told of a ring: statistics from shared memory as messages of the API.

use fluxcap_proto::v1::{Reader, Ring, RingMode, RingSpec, RingStatus, Source, State};
use fluxcap_ring::{
    Mode, Observer, ReaderStats, RingDir, RingInfo, RingName, RingState, RingStats, SourceStats,
};
use fluxcap_service::format_size;
use std::collections::BTreeMap;

/// A ring as clients see it.
pub(crate) fn ring(stats: &RingStats) -> Ring {
    Ring {
        name: stats.info.name.to_string(),
        spec: Some(spec(&stats.info)),
        status: Some(status(stats)),
    }
}

/// What a ring is, as the spec that makes one like it.
pub(crate) fn spec(info: &RingInfo) -> RingSpec {
    let mode = match info.mode {
        Mode::Overwrite => RingMode::Overwrite,
        Mode::Wait => RingMode::Wait,
    };
    RingSpec {
        size_bytes: info.capacity,
        mode: mode.into(),
    }
}

fn status(stats: &RingStats) -> RingStatus {
    let (state, reason) = match stats.state {
        RingState::Live => (State::Running, String::new()),
        RingState::Retired { .. } => (
            State::Waiting,
            "retired; its workers are leaving it".to_owned(),
        ),
    };
    RingStatus {
        state: state.into(),
        reason,
        epoch: stats.info.epoch,
        backing: stats.info.backing.as_str().to_owned(),
        footprint_bytes: stats.info.footprint,
        created_ns: stats.info.created_ns,
        published_frames: stats.published_frames,
        published_bytes: stats.published_bytes,
        kernel_dropped_frames: stats
            .sources
            .iter()
            .fold(0, |sum, source| sum.saturating_add(source.kernel_drops)),
        producer: stats
            .producer
            .as_ref()
            .map(|producer| producer.holder.clone())
            .unwrap_or_default(),
        producer_live: stats
            .producer
            .as_ref()
            .is_some_and(|producer| producer.live),
        dropped_frames: counted(
            stats
                .drops
                .iter()
                .map(|(reason, count)| (reason.as_str(), *count)),
        ),
        sources: stats.sources.iter().map(source).collect(),
        readers: stats.readers.iter().map(reader).collect(),
        remarks: Vec::new(),
    }
}

/// What else is to be known of a ring: earlier epochs that are kept, workers that have lost their places.
pub(crate) fn remarks(dir: &RingDir, name: &RingName, stats: &RingStats) -> Vec<String> {
    let mut remarks = Vec::new();
    let kept = fluxcap_ring::kept_of(dir, name);
    if kept.epochs > 0 {
        remarks.push(format!(
            "{} earlier epochs ({}) are kept until their readers have passed: {}",
            kept.epochs,
            format_size(kept.bytes),
            kept.readers.join(", ")
        ));
    }
    if stats.gone.evicted > 0
        && let Ok(observer) = Observer::open(dir, name)
        && let Some((worker, to)) = observer.evicted()
    {
        remarks.push(format!(
            "{} dead workers have lost their places to other readers, because all were taken; the last: {worker}, to {to}",
            stats.gone.evicted
        ));
    }
    remarks
}

/// Counters by name, without those that nothing was counted under.
fn counted<'a>(counters: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let happened = counters.filter(|(_, count)| *count != 0);
    happened
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

fn source(source: &SourceStats) -> Source {
    Source {
        index: source.index.into(),
        name: source.name.clone(),
        kernel_frames: source.kernel_frames,
        kernel_dropped_frames: source.kernel_drops,
        received_frames: source.received,
        published_frames: source.published,
        missed_frames: source.missed,
        uncertain: source.uncertain,
    }
}

fn reader(reader: &ReaderStats) -> Reader {
    Reader {
        // 0 to 63.
        slot: u32::try_from(reader.slot).unwrap_or(u32::MAX),
        name: reader.label.clone(),
        pid: reader.pid,
        live: reader.live,
        lag_frames: reader.lag_frames,
        lag_bytes: reader.lag_bytes,
        delivered_frames: reader.delivered,
        lapped_frames: reader.lapped,
        corrupt_frames: reader.corrupt,
        skipped_frames: reader.skipped,
        outcomes: counted(
            reader
                .outcomes
                .iter()
                .map(|(outcome, count)| (outcome.as_str(), *count)),
        ),
    }
}
