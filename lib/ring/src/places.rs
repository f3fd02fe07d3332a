//! Interfaces as the files of rings note them: where the frames of a source come from, and where a reader sends what it reads. Daemons
//! know of each other from this alone; it says what may not be begun, and nothing on a data path believes it.
//!
//! ```text
//! word: 0..31 interface index | 32..55 namespace | 56 noted | 57 in | 58 out | 59 loop allowed
//! ```

use crate::files;
use crate::layout::PAGE;
use crate::memory::mapping::Mapping;
use std::sync::atomic::Ordering;

/// Interfaces that a reader can note.
pub const OUTPUTS: usize = 16;

/// Where the outputs stand in the page of a reader's slot.
const OUTPUTS_AT: u64 = 1024;
/// Bytes of an output: the word, and a name.
const ENTRY: u64 = 64;
const NAME_WORDS: usize = 7;
const _: () = assert!(OUTPUTS_AT + ENTRY * (OUTPUTS as u64 + 1) <= PAGE);

const NOTED: u64 = 1 << 56;
const INWARD: u64 = 1 << 57;
const OUTWARD: u64 = 1 << 58;
const LOOP_ALLOWED: u64 = 1 << 59;
const NAMESPACE: u32 = 0xff_ffff;

/// An interface, as those see it who are in its network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Its index; 0 while there is none of the name.
    pub ifindex: u32,
    /// Which network namespace it is in, as 24 bits of that one's number: enough to tell them apart, as a rule.
    pub namespace: u32,
    /// Of a source: frames that arrive there are taken.
    pub inward: bool,
    /// Of a source: frames that the host sends there are taken.
    pub outward: bool,
    /// Whoever noted it was told that frames may go round.
    pub loop_allowed: bool,
}

impl Place {
    /// As a word, never 0.
    fn to_word(self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        u64::from(self.ifindex)
            | u64::from(self.namespace & NAMESPACE) << 32
            | NOTED
            | flag(self.inward, INWARD)
            | flag(self.outward, OUTWARD)
            | flag(self.loop_allowed, LOOP_ALLOWED)
    }

    fn of_word(word: u64) -> Option<Place> {
        let [a, b, c, d, ..] = word.to_le_bytes();
        (word & NOTED != 0).then_some(Place {
            ifindex: u32::from_le_bytes([a, b, c, d]),
            namespace: u32::try_from(word >> 32 & u64::from(NAMESPACE)).unwrap_or(0),
            inward: word & INWARD != 0,
            outward: word & OUTWARD != 0,
            loop_allowed: word & LOOP_ALLOWED != 0,
        })
    }
}

/// An interface that a reader sends to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderOutput {
    /// The name by which it looks for the interface, its first 56 bytes.
    pub name: String,
    /// The interface.
    pub place: Place,
}

/// What stands at `at`.
pub(crate) fn load(map: &Mapping, at: u64) -> Option<Place> {
    Place::of_word(map.get(at))
}

/// Notes a place at `at`, or that there is none.
pub(crate) fn store(map: &Mapping, at: u64, place: Option<Place>) {
    map.set(at, place.map_or(0, Place::to_word));
}

/// The outputs of the reader whose page begins at `slot`.
pub(crate) fn outputs(map: &Mapping, slot: u64) -> Vec<ReaderOutput> {
    let at = slot + OUTPUTS_AT;
    // SYNC P: entries are complete before they are counted.
    let count = map.word(at).load(Ordering::Acquire).min(OUTPUTS as u64);
    let entries = (1..=count).map(|entry| at + ENTRY * entry);
    entries
        .filter_map(|entry| {
            Some(ReaderOutput {
                place: load(map, entry)?,
                name: files::text(map, entry + 8, NAME_WORDS),
            })
        })
        .collect()
}

/// Notes the outputs of that reader, the first [`OUTPUTS`] of them.
pub(crate) fn set_outputs(map: &Mapping, slot: u64, outputs: &[ReaderOutput]) {
    let at = slot + OUTPUTS_AT;
    map.word(at).store(0, Ordering::Release);
    let mut count = 0;
    for output in outputs.iter().take(OUTPUTS) {
        count += 1;
        let entry = at + ENTRY * count;
        store(map, entry, Some(output.place));
        files::set_text(map, entry + 8, NAME_WORDS, &output.name);
    }
    // SYNC P: entries are complete before they are counted.
    map.word(at).store(count, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_an_interface_is_what_is_read() {
        let place = Place {
            ifindex: u32::MAX,
            namespace: 0xf0_0001,
            inward: true,
            outward: false,
            loop_allowed: true,
        };
        assert_eq!(Place::of_word(place.to_word()), Some(place));
        let other = Place {
            inward: false,
            outward: true,
            loop_allowed: false,
            ..place
        };
        assert_eq!(Place::of_word(other.to_word()), Some(other));
        assert_ne!(Place::default().to_word(), 0);
        assert_eq!(Place::of_word(0), None);
    }
}
