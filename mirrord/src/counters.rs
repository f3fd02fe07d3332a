//! What the programs of a mirror have counted, and what became in user space of the frames that they handed over.
//!
//! Counters are maps in the kernel, which are read when somebody asks. `bpf/mirror.h` has the same numbers.

use std::sync::Arc;

use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use fluxcap_proto::v1::{MirrorSpec, MirrorStatus};
use fluxcap_ring::DropReason;

use crate::error::Error;
use crate::pins::Folder;
use crate::program::Way;

/// Names of `enum drop`, in its order.
const DROPS: [&str; 20] = [
    "loop_guard",
    "expired",
    "fuse",
    "no_memory",
    "link_down",
    "no_interface",
    "congested",
    "clone_failed",
    BUFFER_FULL,
    "unreadable",
    "filter_failed",
    "no_route",
    "oversize",
    "not_ip",
    "encap_failed",
    "redirect_failed",
    "not_taken",
    "no_headroom",
    "unreachable",
    "not_segmented",
];

/// The reason of copies that found no room on their way to user space.
const BUFFER_FULL: &str = "buffer_full";

/// Words of `struct counters`: eight, a place for each reason, and one.
const WORDS: usize = 8 + 31 + 1;
/// Words of `struct state`.
const STATE_WORDS: usize = 10;

/// Sums of `struct counters` over all CPUs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals([u64; WORDS]);

impl Totals {
    /// Frames that passed the program, by [`Way`].
    pub(crate) fn seen(&self, way: Way) -> u64 {
        let out = self.0[WORDS - 1];
        match way {
            Way::In => self.0[0].saturating_sub(out),
            Way::Out => out,
        }
    }

    /// Copies made, those that user space did not want included.
    pub(crate) fn mirrored(&self) -> u64 {
        self.0[2]
    }
}

/// What became of the frames that the programs handed over; kept in the kernel, so that it goes on after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Frames taken out of the buffer.
    pub(crate) taken: u64,
    /// Frames published in the ring.
    pub(crate) published: u64,
    /// Frames for which the buffer had no room, as far as the ring has been told.
    pub(crate) told_lost: u64,
    /// Bytes of frames that were not published.
    pub(crate) dropped_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Drained {
    /// Counts frames that were not published.
    pub(crate) fn drop_frames(&mut self, reason: DropReason, frames: u64, bytes: u64) {
        self.drops[reason.index()] += frames;
        self.dropped_bytes += bytes;
    }

    /// Frames that were taken and not published.
    pub(crate) fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    fn from_words(words: &[u64; 16]) -> Drained {
        let [taken, published, told_lost, dropped_bytes, rest @ ..] = words;
        let mut drained = Drained {
            taken: *taken,
            published: *published,
            told_lost: *told_lost,
            dropped_bytes: *dropped_bytes,
            ..Drained::default()
        };
        for (count, word) in drained.drops.iter_mut().zip(rest) {
            *count = *word;
        }
        drained
    }

    fn to_words(self) -> [u64; 16] {
        let mut words = [0; 16];
        words[..4].copy_from_slice(&[
            self.taken,
            self.published,
            self.told_lost,
            self.dropped_bytes,
        ]);
        words[4..4 + self.drops.len()].copy_from_slice(&self.drops);
        words
    }
}

/// Rate and fuse, as far as they are shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Why the mirror has switched itself off; empty: it has not.
    pub(crate) fuse: &'static str,
    /// Frames for which the buffer had no room.
    pub(crate) lost: u64,
}

/// The counting maps of one mirror.
pub(crate) struct Books {
    counters: PerCpuArray<MapData, [u64; WORDS]>,
    outputs: PerCpuArray<MapData, u64>,
    rule_frames: PerCpuArray<MapData, u64>,
    state: Array<MapData, [u64; STATE_WORDS]>,
    drained: Array<MapData, [u64; 16]>,
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Books")
    }
}

impl Books {
    /// Opens the maps that are pinned.
    pub(crate) fn open(pins: &Folder) -> Result<Books, Error> {
        Ok(Books {
            counters: per_cpu(pins, "counters")?,
            outputs: per_cpu(pins, "output_frames")?,
            rule_frames: per_cpu(pins, "rule_frames")?,
            state: array(pins, "state")?,
            drained: array(pins, "drained")?,
        })
    }

    /// What the programs have counted.
    pub(crate) fn totals(&self) -> Result<Totals, Error> {
        let mut totals = [0_u64; WORDS];
        let of_cpus = self.counters.get(&0, 0).map_err(unreadable)?;
        for words in of_cpus.iter() {
            for (total, word) in totals.iter_mut().zip(words) {
                // What is counted back on one CPU may have been counted on another.
                *total = total.wrapping_add(*word);
            }
        }
        Ok(Totals(totals))
    }

    /// Fuse and losses.
    pub(crate) fn limits(&self) -> Result<Limits, Error> {
        let words = self.state.get(&0, 0).map_err(unreadable)?;
        Ok(Limits {
            fuse: match words[1] {
                0 => "",
                1 => "more copies failed in a second than errors_per_second allows",
                2 => "more copies in a second than frames_per_second allows",
                3 => "more bits of copies in a second than bits_per_second allows",
                _ => "the mirror is off for a reason that this mirrord does not know",
            },
            lost: words[9],
        })
    }

    /// Switches the mirror on again after its fuse has blown.
    pub(crate) fn mend_fuse(&mut self) -> Result<(), Error> {
        let mut words = self.state.get(&0, 0).map_err(unreadable)?;
        if words[1] == 0 {
            return Ok(());
        }
        words[1..9].fill(0);
        self.state.set(0, words, 0).map_err(unreadable)
    }

    /// What became of the frames that were handed over.
    pub(crate) fn drained(&self) -> Result<Drained, Error> {
        let words = self.drained.get(&0, 0).map_err(unreadable)?;
        Ok(Drained::from_words(&words))
    }

    /// Notes what became of them.
    pub(crate) fn set_drained(&mut self, drained: &Drained) -> Result<(), Error> {
        let words = drained.to_words();
        self.drained.set(0, words, 0).map_err(unreadable)
    }

    /// Adds what is counted to a status whose outputs are those of the spec: the first `counted` of them are counted by the programs, and a
    /// ring is behind them, perhaps. `rules` is how many rules there are.
    pub(crate) fn show(
        &self,
        status: &mut MirrorStatus,
        rules: usize,
        counted: usize,
    ) -> Result<(), Error> {
        // Later counters of a frame are read before earlier ones.
        let drained = self.drained()?;
        let Totals(totals) = self.totals()?;
        let [
            seen,
            copied,
            mirrored,
            bytes,
            not_selected,
            sampled_out,
            rate_limited,
            truncated,
            drops @ ..,
            _,
        ] = &totals;
        status.seen_frames = *seen;
        // The packets that a giant is cut into are counted when they come: until then it is one too few.
        status.copied_frames = if *copied > u64::MAX / 2 { 0 } else { *copied };
        // A copy that user space gave up was none.
        status.mirrored_frames = mirrored.saturating_sub(drained.dropped());
        status.mirrored_bytes = bytes.saturating_sub(drained.dropped_bytes);
        status.not_selected_frames = *not_selected;
        status.sampled_out_frames = *sampled_out;
        status.rate_limited_frames = *rate_limited;
        status.truncated_frames = *truncated;
        status.published_frames = drained.published;
        for (name, frames) in names_of_drops().zip(drops) {
            add(status, name, *frames);
        }
        for (reason, frames) in DropReason::ALL.iter().zip(drained.drops) {
            add(status, reason.as_str(), frames);
        }
        let full = status.dropped_frames.get(BUFFER_FULL).copied();
        for output in status.outputs.iter_mut().skip(counted) {
            output.frames = drained.published;
            output.failed_frames = drained.dropped() + full.unwrap_or(0);
        }
        for (index, output) in (0_u32..).zip(status.outputs.iter_mut().take(counted)) {
            let frames =
                |place| -> Result<u64, MapError> { Ok(self.outputs.get(&place, 0)?.iter().sum()) };
            output.frames = frames(2 * index).map_err(unreadable)?;
            output.failed_frames = frames(2 * index + 1).map_err(unreadable)?;
        }
        status.rule_frames = (0..u32::try_from(rules).unwrap_or(0))
            .map(|rule| Ok(self.rule_frames.get(&rule, 0)?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .map_err(unreadable)?;
        status.fuse = self.limits()?.fuse.to_owned();
        Ok(())
    }
}

/// A reader of counters for those who ask for the status. What cannot be read is left out.
pub(crate) fn reader(books: Arc<Books>, spec: &MirrorSpec) -> Arc<crate::stats::ReadCounters> {
    let rules = spec.rules.len();
    let counted = if spec.ring.is_empty() { usize::MAX } else { 0 };
    Arc::new(move |status: &mut MirrorStatus| {
        if let Err(error) = books.show(status, rules, counted) {
            tracing::warn!(%error, "cannot read the counters of a mirror");
        }
    })
}

/// What is in the map of a newer program of ours has a name, too.
fn names_of_drops() -> impl Iterator<Item = &'static str> {
    DROPS.into_iter().chain(std::iter::repeat("other"))
}

fn add(status: &mut MirrorStatus, name: &str, frames: u64) {
    if frames != 0 {
        *status.dropped_frames.entry(name.to_owned()).or_default() += frames;
    }
}

fn unreadable(error: MapError) -> Error {
    Error::kernel("read or write a map of the mirror", error)
}

/// Opens an array that is pinned.
pub(crate) fn array<V: Pod>(pins: &Folder, name: &str) -> Result<Array<MapData, V>, Error> {
    let data = MapData::from_pin(pins.path(name)).map_err(unreadable)?;
    Map::Array(data).try_into().map_err(unreadable)
}

/// Has the counters of all outputs begin anew, if there are any.
pub(crate) fn clear_outputs(pins: &Folder) -> Result<(), Error> {
    if !pins.has("output_frames") {
        return Ok(());
    }
    let mut outputs: PerCpuArray<MapData, u64> = per_cpu(pins, "output_frames")?;
    for index in 0..outputs.len() {
        let zero = outputs.get(&index, 0).map_err(unreadable)?;
        let zero = zero.iter().map(|_| 0).collect::<Vec<_>>();
        let zero = PerCpuValues::try_from(zero)
            .map_err(|error| Error::kernel("write a map of the mirror", error))?;
        outputs.set(index, zero, 0).map_err(unreadable)?;
    }
    Ok(())
}

/// The same for an array with an entry for each CPU.
pub(crate) fn per_cpu<V: Pod>(pins: &Folder, name: &str) -> Result<PerCpuArray<MapData, V>, Error> {
    let data = MapData::from_pin(pins.path(name)).map_err(unreadable)?;
    Map::PerCpuArray(data).try_into().map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_frames_survives_in_sixteen_words() {
        let mut drained = Drained {
            taken: 9,
            published: 5,
            told_lost: 7,
            ..Drained::default()
        };
        for (n, reason) in (1..).zip(DropReason::ALL) {
            drained.drop_frames(*reason, n, 100);
        }
        assert_eq!(Drained::from_words(&drained.to_words()), drained);
        assert_eq!(drained.dropped(), 66);
        assert_eq!(drained.dropped_bytes, 1100);
    }
}
