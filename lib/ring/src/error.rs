//! What can go wrong with a ring, and with which one.

use std::io;
use std::path::PathBuf;

/// An operation on a ring that failed.
///
/// The text names the operation and the object; the cause, where there is one, is the
/// [`source`](std::error::Error::source) and is not repeated in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no ring name.
    #[error(
        "`{name}` is not a ring name: use 1 to 63 of A-Z a-z 0-9 _ . -, beginning with a letter or digit and not ending in `.readers`, optionally after a `shm:` that counts among the 63"
    )]
    InvalidName {
        /// What was given.
        name: String,
    },
    /// The size asked for is outside what a ring can have.
    #[error("a ring of {capacity} bytes is impossible: sizes go from {least} to {most} bytes")]
    InvalidCapacity {
        /// Bytes asked for.
        capacity: u64,
        /// Smallest possible size in bytes.
        least: u64,
        /// Largest possible size in bytes.
        most: u64,
    },
    /// A start position injected for tests is not a multiple of 4096.
    #[error("a base position of {base_pos} is impossible: it must be a multiple of 4096")]
    InvalidBase {
        /// The position that was asked for.
        base_pos: u64,
    },
    /// There is a ring of that name already.
    #[error("ring {name} exists already")]
    Exists {
        /// The name of the ring.
        name: String,
    },
    /// There is no ring of that name.
    #[error("ring {name} does not exist in {}", dir.display())]
    NotFound {
        /// The name of the ring.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The ring would need more memory than there is, or than the budget allows.
    #[error("ring {name} needs {needed} bytes of memory, only {available} bytes are available")]
    NotEnoughMemory {
        /// The name of the ring.
        name: String,
        /// Bytes that the ring would occupy.
        needed: u64,
        /// Bytes that may be used now.
        available: u64,
    },
    /// Another live producer writes into the ring.
    #[error("ring {name} already has a producer: {holder}")]
    Busy {
        /// The name of the ring.
        name: String,
        /// Who holds it, as it described itself (label and process id).
        holder: String,
    },
    /// The ring was deleted or replaced.
    #[error("ring {name} was {}", if successor.is_some() { "replaced" } else { "deleted" })]
    Retired {
        /// The name of the ring.
        name: String,
        /// Epoch of the ring that replaced it, if there is one.
        successor: Option<u64>,
    },
    /// A consumer found one broken record after the other and stopped reading.
    #[error("ring {name} is quarantined: {strikes} corrupt records within one second ({reason})")]
    Quarantined {
        /// The name of the ring.
        name: String,
        /// How many were found.
        strikes: u32,
        /// What was wrong with the last one.
        reason: &'static str,
    },
    /// All consumer slots of the ring are taken by live consumers.
    #[error("ring {name} already has {slots} consumers")]
    NoSlot {
        /// The name of the ring.
        name: String,
        /// How many there can be.
        slots: usize,
    },
    /// All entries of the ring's source table are taken.
    #[error("ring {name} has {sources} sources at work, no room for `{source_name}`")]
    NoSource {
        /// The name of the ring.
        name: String,
        /// How many there can be.
        sources: usize,
        /// The source that found no room.
        source_name: String,
    },
    /// A burst larger than the ring can take at once was asked for.
    #[error("a burst of {bytes} bytes is too large for ring {name}: at most {most} bytes")]
    BurstTooLarge {
        /// The name of the ring.
        name: String,
        /// Bytes asked for.
        bytes: usize,
        /// Largest burst in bytes.
        most: usize,
    },
    /// A label or a source name is empty, too long or has control characters.
    #[error("`{label}` cannot be used as a label: use 1 to {most} bytes of printable text")]
    InvalidLabel {
        /// What was given.
        label: String,
        /// Longest label in bytes.
        most: usize,
    },
    /// What has the name is no ring, nor ever was one: nothing is done to it.
    #[error("{} is no ring and is left alone: choose another name, or move it away", path.display())]
    Foreign {
        /// The file in question.
        path: PathBuf,
    },
    /// The creation of a ring was given up because nobody waits for it any more.
    #[error("ring {name} was not made: nobody waits for it any more")]
    Cancelled {
        /// The name of the ring.
        name: String,
    },
    /// The file has that name but is no ring, or a ring of another layout, or is damaged.
    #[error("{} is not a usable ring: {reason}", path.display())]
    Damaged {
        /// The file in question.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// The memory of the ring was taken away: another process cut its file short.
    #[error("ring {name} is poisoned: its file was truncated by another process")]
    Poisoned {
        /// The name of the ring.
        name: String,
    },
    /// Another process kept the ring directory locked for too long.
    #[error("{} stays locked by another process", dir.display())]
    Locked {
        /// The directory that is locked.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was to be done, as a verb phrase.
        operation: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Names operation and object of a failed system call.
pub(crate) trait IoContext<T> {
    /// Turns the kernel's error into [`Error::Io`].
    fn at(self, operation: &'static str, path: &std::path::Path) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn at(self, operation: &'static str, path: &std::path::Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            operation,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}
