//! Where everything lies in the two files of a ring.
//!
//! ```text
//! <name>            page 0  static header, written once before the file is published
//!                   page 1  producer page: reserve | commit | ledger | wake | status | holder | drops
//!                   page 2  source table: 32 entries of 128 bytes
//!                   page 3+ sync index: one u64 for each 64 KiB of data
//!                   data    `capacity` bytes of records, mapped twice back to back
//! .<name>.readers   page 0  control: identity | waiting | space bell | slot bitmap | retired event
//!                   page 1+ 64 slots of one page, one consumer each
//! ```
//! All words are native-endian u64: a ring never leaves its host.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::Error;
use crate::memory::mapping::Mapping;
use crate::protocol::Geometry;

/// Granularity of the files on ordinary memory, in bytes.
pub(crate) const PAGE: u64 = 4096;
/// First word of a data file.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"fluxcap\x01");
/// First word of a readers file.
pub(crate) const READERS_MAGIC: u64 = u64::from_ne_bytes(*b"fluxrdr\x01");
/// Another major version is refused, a higher minor version is accepted.
pub(crate) const MAJOR: u16 = 1;
/// Additions that older code may ignore: 1 has the tunnel's identifier in the metadata of a frame, where 0 wrote zeros; 2 has
/// places of consumers that are carried over from an earlier epoch, and sources that are used again under another number.
pub(crate) const MINOR: u16 = 2;
/// Smallest capacity in bytes.
pub(crate) const CAPACITY_MIN: u64 = 64 << 10;
/// Largest capacity in bytes: twice that must fit into the address space.
pub(crate) const CAPACITY_MAX: u64 = 1 << 44;
/// Longest record in bytes, whatever the capacity.
pub(crate) const RECORD_MAX: u64 = 1 << 20;
/// How many bytes, as a power of two, one entry of the sync index covers: 64 KiB, less in rings so
/// small that a record could reach around all blocks.
pub(crate) const fn sync_shift(capacity: u64) -> u32 {
    if capacity >= 1 << 20 { 16 } else { 12 }
}

/// Consumers that can be registered at a time.
pub const SLOTS: usize = 64;
/// Sources that a ring can name at a time.
pub const SOURCES: usize = 32;
/// Longest label of a producer or consumer, in bytes.
pub const LABEL_MAX: usize = 64;

/// Byte offsets in the data file.
pub(crate) mod data {
    use super::PAGE;

    pub(crate) const RESERVE: u64 = PAGE;
    pub(crate) const COMMIT: u64 = PAGE + 64;
    pub(crate) const LEDGER: u64 = PAGE + 128;
    pub(crate) const WAKE: u64 = PAGE + 192;
    pub(crate) const STATE: u64 = PAGE + 256;
    pub(crate) const SUCCESSOR: u64 = PAGE + 264;
    pub(crate) const GENERATION: u64 = PAGE + 320;
    pub(crate) const HOLDER_PID: u64 = PAGE + 328;
    pub(crate) const OPENED_NS: u64 = PAGE + 336;
    /// 1 while a producer works, 0 after a clean close.
    pub(crate) const OPEN: u64 = PAGE + 344;
    pub(crate) const SOURCE_COUNT: u64 = PAGE + 352;
    pub(crate) const HOLDER: u64 = PAGE + 384;
    /// Frames that were published behind a later one.
    pub(crate) const LATE: u64 = PAGE + 504;
    pub(crate) const DROPS: u64 = PAGE + 512;
    /// Two words for each source: until when it was watched, and how long it was not.
    pub(crate) const WATCHED: u64 = PAGE + 2048;
    pub(crate) const SOURCES: u64 = 2 * PAGE;
    pub(crate) const SYNC: u64 = 3 * PAGE;
    /// Counters of sources that have lost their entries to others: two sets of 64 bytes.
    pub(crate) const FORMER: u64 = PAGE + 1024;
    /// Which of the two sets counts, and the entry that was added to it last.
    pub(crate) const FOLD: u64 = FORMER + 128;
    /// Which interfaces the sources are, a word each; see `places.rs`.
    pub(crate) const PLACES: u64 = WATCHED + 16 * super::SOURCES as u64;
    const _: () = assert!(DROPS + 8 * 64 <= FORMER && FOLD + 8 <= WATCHED);
    const _: () = assert!(PLACES + 8 * super::SOURCES as u64 <= SOURCES);
}

/// Byte offsets in the readers file.
pub(crate) mod readers {
    use super::{PAGE, SLOTS};

    pub(crate) const MAGIC: u64 = 0;
    pub(crate) const UUID: u64 = 8;
    pub(crate) const EPOCH: u64 = 24;
    pub(crate) const WAITING: u64 = 64;
    pub(crate) const SPACE_WAKE: u64 = 128;
    pub(crate) const SPACE_WAITING: u64 = 192;
    /// Counts registrations, so that a waiting producer looks at the slots again.
    pub(crate) const REGISTRATIONS: u64 = 256;
    pub(crate) const EVENT: u64 = 320;
    pub(crate) const GONE: u64 = 384;
    /// Places of named consumers that were given to others, and the last one of them.
    pub(crate) const EVICTED: u64 = 416;
    /// In an earlier epoch whose data is gone: the number after that of its last frame.
    pub(crate) const CLOSED: u64 = 448;
    pub(crate) const EVICTED_LABEL: u64 = 512;
    pub(crate) const EVICTED_FOR: u64 = 576;
    pub(crate) const SLOTS_AT: u64 = PAGE;
    pub(crate) const FILE_LEN: u64 = PAGE * (SLOTS as u64 + 1);
}

/// Values of the state word.
pub(crate) const STATE_LIVE: u64 = 1;
pub(crate) const STATE_RETIRED: u64 = 2;

/// How a ring treats a slow consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// The producer never waits; a consumer that is too slow loses the oldest frames and
    /// counts them.
    #[default]
    Overwrite,
    /// The producer waits for the slowest live consumer.
    Wait,
}

impl Mode {
    /// The name used in output: `overwrite` or `wait`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overwrite => "overwrite",
            Self::Wait => "wait",
        }
    }
}

/// `value` rounded up to a multiple of `unit`, which is a power of two.
pub(crate) const fn round_up(value: u64, unit: u64) -> u64 {
    (value + unit - 1) & !(unit - 1)
}

/// The static header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) uuid: [u64; 2],
    pub(crate) epoch: u64,
    pub(crate) base_pos: u64,
    pub(crate) capacity: u64,
    pub(crate) mode: Mode,
    pub(crate) created_ns: u64,
    /// Page size of the backing in bytes.
    pub(crate) unit: u64,
}

/// Words of the header, its checksum included.
const HEADER_WORDS: usize = 16;

impl Header {
    /// First byte of the data area.
    pub(crate) fn data_off(&self) -> u64 {
        let entries = self.capacity.div_ceil(1 << sync_shift(self.capacity));
        round_up(data::SYNC + entries * 8, self.unit)
    }

    /// Length of the data file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.data_off() + self.capacity
    }

    /// Length of the readers file in bytes.
    pub(crate) fn readers_len(&self) -> u64 {
        round_up(readers::FILE_LEN, self.unit)
    }

    /// Bytes of memory that both files occupy.
    pub(crate) fn footprint(&self) -> u64 {
        self.file_len() + self.readers_len()
    }

    /// What the protocol must know.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            base: self.base_pos,
            capacity: self.capacity,
            max_record: (self.capacity / 8).min(RECORD_MAX) & !15,
            max_burst: (self.capacity / 4) & !15,
            sync_shift: sync_shift(self.capacity),
        }
    }

    /// Checks the sizes; everything else is computed from them.
    pub(crate) fn check_capacity(capacity: u64, unit: u64) -> Result<u64, Error> {
        let refused = Error::InvalidCapacity {
            capacity,
            least: CAPACITY_MIN,
            most: CAPACITY_MAX,
        };
        if !(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) {
            return Err(refused);
        }
        Ok(round_up(capacity, unit))
    }

    fn words(&self) -> [u64; HEADER_WORDS] {
        let version = u64::from(MAJOR) | u64::from(MINOR) << 16 | (HEADER_WORDS as u64 * 8) << 32;
        let mode = match self.mode {
            Mode::Overwrite => 0,
            Mode::Wait => 1,
        };
        let geometry = self.geometry();
        let mut words = [
            MAGIC,
            version,
            self.uuid[0],
            self.uuid[1],
            self.epoch,
            self.base_pos,
            self.capacity,
            self.data_off(),
            geometry.max_record,
            16,
            u64::from(geometry.sync_shift),
            mode,
            self.created_ns,
            self.unit,
            self.file_len(),
            0,
        ];
        words[HEADER_WORDS - 1] = u64::from(crc32c(&words[..HEADER_WORDS - 1]));
        words
    }

    /// Writes the header into page 0.
    pub(crate) fn write(&self, map: &Mapping) {
        for (i, word) in (0u64..).zip(self.words()) {
            map.set(i * 8, word);
        }
    }

    /// Copies page 0 once and checks the copy: magic, version, checksum, and that every derived
    /// number is what this code would have computed.
    pub(crate) fn read(words: &[u64], file_len: u64) -> Result<Self, &'static str> {
        let words: [u64; HEADER_WORDS] = words.try_into().map_err(|_| "the header is cut short")?;
        if words[0] != MAGIC {
            return Err("the magic number is missing");
        }
        if words[1] & 0xffff != u64::from(MAJOR) {
            return Err("it has another layout version");
        }
        if words[HEADER_WORDS - 1] != u64::from(crc32c(&words[..HEADER_WORDS - 1])) {
            return Err("the header checksum is wrong");
        }
        let mode = match words[11] {
            0 => Mode::Overwrite,
            1 => Mode::Wait,
            _ => return Err("the mode is unknown"),
        };
        let header = Self {
            uuid: [words[2], words[3]],
            epoch: words[4],
            base_pos: words[5],
            capacity: words[6],
            mode,
            created_ns: words[12],
            unit: words[13],
        };
        let unit_fits = header.unit.is_power_of_two() && (PAGE..=1 << 30).contains(&header.unit);
        let size_fits = (CAPACITY_MIN..=CAPACITY_MAX + (1 << 30)).contains(&header.capacity);
        if !unit_fits || !size_fits || !header.capacity.is_multiple_of(header.unit) {
            return Err("the sizes in the header are impossible");
        }
        let derived = header.words();
        if derived[7..11] != words[7..11] || header.file_len() != words[14] {
            return Err("the sizes in the header contradict each other");
        }
        if !header.base_pos.is_multiple_of(PAGE) {
            return Err("the base position is impossible");
        }
        if file_len != header.file_len() {
            return Err("the file is not as long as its header says");
        }
        Ok(header)
    }

    /// Number of words that [`Header::read`] wants.
    pub(crate) const WORDS: usize = HEADER_WORDS;
}

/// Whether the file at `path` begins like a ring.
pub(crate) fn has_magic(path: &Path) -> bool {
    let mut bytes = [0; 8];
    // A pipe of that name must not keep anybody waiting.
    let opened = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    opened.is_ok_and(|mut file| file.read_exact(&mut bytes).is_ok())
        && u64::from_ne_bytes(bytes) == MAGIC
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4) over the bytes of `words`.
fn crc32c(words: &[u64]) -> u32 {
    let mut crc = u32::MAX;
    for byte in words.iter().flat_map(|w| w.to_le_bytes()) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            uuid: [1, 2],
            epoch: 3,
            base_pos: 1 << 40,
            capacity: 1 << 20,
            mode: Mode::Wait,
            created_ns: 4,
            unit: PAGE,
        }
    }

    #[test]
    fn crc_matches_the_rfc_vector() {
        assert_eq!(crc32c(&[0; 4]), 0x8a91_36aa);
    }

    #[test]
    fn header_survives_a_round_trip() {
        let header = header();
        assert_eq!(Header::read(&header.words(), header.file_len()), Ok(header));
    }

    #[test]
    fn other_minor_version_is_accepted_and_another_major_one_is_not() {
        let header = header();
        let read = |version: u64| {
            let mut words = header.words();
            words[1] = words[1] & !0xffff_ffff | version;
            words[HEADER_WORDS - 1] = u64::from(crc32c(&words[..HEADER_WORDS - 1]));
            Header::read(&words, header.file_len())
        };
        assert_eq!(read(1), Ok(header));
        assert_eq!(read(9 << 16 | 1), Ok(header));
        assert!(read(1 << 16 | 2).is_err());
    }

    #[test]
    fn header_with_any_flipped_bit_is_refused() {
        let header = header();
        for word in 0..HEADER_WORDS {
            for bit in 0..64 {
                let mut words = header.words();
                words[word] ^= 1 << bit;
                // The minor version may grow, but not without a new checksum.
                assert!(
                    Header::read(&words, header.file_len()).is_err(),
                    "word {word} bit {bit}"
                );
            }
        }
    }
}
