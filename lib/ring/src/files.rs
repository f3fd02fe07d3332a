//! Opening the two files of a ring, and checking that they belong together.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raw_sync::Timeout;
use raw_sync::events::{BusyEvent, EventImpl, EventInit, EventState};

use crate::error::{Error, IoContext};
use crate::layout::{
    Header, LABEL_MAX, Mode, READERS_MAGIC, STATE_LIVE, STATE_RETIRED, data, readers,
};
use crate::memory::lock;
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::{Backing, RingDir, RingName};
use crate::name_watch::NameWatch;
use crate::protocol::{DATA_BELL, SPACE_BELL};

/// What a ring is; fixed for the life of its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingInfo {
    /// Its name.
    pub name: RingName,
    /// Grows with every ring of that name.
    pub epoch: u64,
    /// Bytes of the data area.
    pub capacity: u64,
    /// How it treats slow consumers.
    pub mode: Mode,
    /// The memory that it lies in.
    pub backing: Backing,
    /// Bytes of memory that it occupies.
    pub footprint: u64,
    /// When it was created, nanoseconds since 1970.
    pub created_ns: u64,
    /// Position of its first record.
    pub base_pos: u64,
}

/// That a ring was deleted or replaced, or that its files were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    /// Epoch of the ring that replaced it; none when it was deleted, or nobody has said.
    pub successor: Option<u64>,
}

/// Who opens a ring: decides what may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Both files read-write.
    Producer,
    /// Data read-only, readers file read-write.
    Consumer,
    /// Both read-only.
    Observer,
}

/// An open ring.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) header: Header,
    pub(crate) info: RingInfo,
    pub(crate) readers_file: File,
    pub(crate) watch: NameWatch,
}

impl Opened {
    /// The ring, unless it was deleted or replaced: nobody may join it then.
    pub(crate) fn unless_retired(self) -> Result<Self, Error> {
        match self.shared.retired() {
            None => Ok(self),
            Some(Retired { successor }) => Err(Error::Retired {
                name: self.info.name.to_string(),
                successor,
            }),
        }
    }
}

/// How often a pair of files that do not belong together is looked at again: a replacement
/// renames one after the other.
const PAIR_ATTEMPTS: u32 = 50;

/// The two files of a ring: those that have its name, or those of an earlier epoch.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) name: RingName,
    pub(crate) place: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) readers: PathBuf,
}

impl Pair {
    pub(crate) fn not_found(&self) -> Error {
        Error::NotFound {
            name: self.name.to_string(),
            dir: self.place.clone(),
        }
    }
}

/// Opens the ring `name`.
pub(crate) fn open(dir: &RingDir, name: &RingName, access: Access) -> Result<Opened, Error> {
    let pair = dir.pair(name);
    for attempt in 0..PAIR_ATTEMPTS {
        if let Some(opened) = open_pair(&pair, access)? {
            return Ok(opened);
        }
        std::thread::sleep(Duration::from_millis(2));
        if attempt == PAIR_ATTEMPTS / 2 {
            // Whoever replaced it died between the two renames: finish its work.
            crate::create::finish_replacement(dir, name)?;
        }
    }
    open_once(&pair, access)
}

/// As [`open`], without patience for a replacement that is under way.
pub(crate) fn open_once(pair: &Pair, access: Access) -> Result<Opened, Error> {
    open_pair(pair, access)?.ok_or_else(|| Error::Damaged {
        path: pair.readers.clone(),
        reason: "the readers file is missing or belongs to another ring; create the ring again",
    })
}

/// None when the two files do not belong together.
fn open_pair(pair: &Pair, access: Access) -> Result<Option<Opened>, Error> {
    let (data_file, header) = open_data(pair, access)?;
    match open_readers(pair, access, &header)? {
        Some(readers_file) => map(pair, access, data_file, readers_file, header).map(Some),
        None => Ok(None),
    }
}

pub(crate) fn open_file(path: &Path, write: bool) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Whether two names stand for one file.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

/// Opens the data file and checks its header.
pub(crate) fn open_data(pair: &Pair, access: Access) -> Result<(File, Header), Error> {
    let file = match open_file(&pair.data, access == Access::Producer) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(pair.not_found()),
        Err(e) => return Err(e).at("open", &pair.data),
    };
    let header = read_header(&file, &pair.data)?;
    Ok((file, header))
}

/// Reads the header of a data file and checks it.
pub(crate) fn read_header(file: &File, path: &Path) -> Result<Header, Error> {
    let mut words = [0; Header::WORDS];
    read_words(file, 0, &mut words).at("read the header of", path)?;
    let length = file.metadata().at("examine", path)?.len();
    Header::read(&words, length).map_err(|reason| Error::Damaged {
        path: path.to_owned(),
        reason,
    })
}

/// Reads so many words, zeroes where the file has ended.
fn read_words(file: &File, at: u64, words: &mut [u64]) -> std::io::Result<()> {
    let mut bytes = [0; 8 * Header::WORDS];
    let wanted = bytes.len().min(8 * words.len());
    let length = file.read_at(bytes.get_mut(..wanted).unwrap_or_default(), at)?;
    let whole = bytes.get(..length).unwrap_or_default();
    words.fill(0);
    for (word, bytes) in words.iter_mut().zip(whole.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(())
}

/// Identity in the control page of a readers file; none when it is no such file.
pub(crate) fn readers_uuid(file: &File) -> std::io::Result<Option<[u64; 2]>> {
    let mut words = [0; 3];
    read_words(file, readers::MAGIC, &mut words)?;
    let whole = file.metadata()?.len() >= readers::FILE_LEN;
    Ok((words[0] == READERS_MAGIC && whole).then_some([words[1], words[2]]))
}

/// Opens the readers file; none while it is missing or belongs to another ring, as in the midst of a replacement.
fn open_readers(pair: &Pair, access: Access, header: &Header) -> Result<Option<File>, Error> {
    let file = match open_file(&pair.readers, access != Access::Observer) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("open", &pair.readers),
    };
    let uuid = readers_uuid(&file).at("read", &pair.readers)?;
    Ok((uuid == Some(header.uuid)).then_some(file))
}

fn map(
    pair: &Pair,
    access: Access,
    data_file: File,
    readers_file: File,
    header: Header,
) -> Result<Opened, Error> {
    let data = Mapping::new(
        &data_file,
        header.file_len(),
        header.capacity,
        header.unit,
        access == Access::Producer,
    )
    .at("map", &pair.data)?;
    let readers = Mapping::new(
        &readers_file,
        header.readers_len(),
        0,
        header.unit,
        access != Access::Observer,
    )
    .at("map", &pair.readers)?;
    let backing = backing_of(data_file.as_fd(), &pair.name).at("examine", &pair.data)?;
    let info = info(&pair.name, &header, backing);
    let watch =
        NameWatch::new(pair.clone(), &data_file, &readers_file).at("examine", &pair.data)?;
    Ok(Opened {
        shared: Arc::new(Shared { data, readers }),
        header,
        info,
        readers_file,
        watch,
    })
}

/// What kind of memory an open file lies in.
pub(crate) fn backing_of(file: BorrowedFd<'_>, name: &RingName) -> std::io::Result<Backing> {
    if name.is_shm() {
        return Ok(Backing::Shm);
    }
    Ok(Backing::from_magic(rustix::fs::fstatfs(file)?.f_type))
}

/// The public description of a ring.
pub(crate) fn info(name: &RingName, header: &Header, backing: Backing) -> RingInfo {
    RingInfo {
        name: name.clone(),
        epoch: header.epoch,
        capacity: header.capacity,
        mode: header.mode,
        backing,
        footprint: header.footprint(),
        created_ns: header.created_ns,
        base_pos: header.base_pos,
    }
}

impl Shared {
    /// The truth about a retirement: words of the data file, which no consumer can write.
    #[inline]
    pub(crate) fn retired(&self) -> Option<Retired> {
        // SYNC R: the successor is written before the state.
        if self.data.word(data::STATE).load(Ordering::Acquire) == STATE_LIVE {
            return None;
        }
        let successor = self.data.get(data::SUCCESSOR);
        Some(Retired {
            successor: (successor != 0).then_some(successor),
        })
    }

    /// As [`Shared::retired`]; also when the names of the files stand for something else, or nothing, which nobody need have told.
    #[inline]
    pub(crate) fn retired_or(&self, watch: &NameWatch) -> Option<Retired> {
        let lost = || watch.displaced().then_some(Retired { successor: None });
        self.retired().or_else(lost)
    }

    /// Marks the ring as retired and wakes everybody who sleeps on it.
    pub(crate) fn retire(&self, successor: Option<u64>) {
        self.data.set(data::SUCCESSOR, successor.unwrap_or(0));
        self.data
            .word(data::STATE)
            .store(STATE_RETIRED, Ordering::Release); // SYNC R
        self.with_event(|event| event.set(EventState::Signaled).is_ok());
        DATA_BELL.ring_anyway(self);
        SPACE_BELL.ring_anyway(self);
    }

    /// Lays out the retired event in fresh memory.
    pub(crate) fn format_event(&self) {
        let at = self.readers.address(readers::EVENT, 64);
        // SAFETY: 64 bytes of our mapping that nobody else sees yet; a BusyEvent has two.
        let _ = unsafe { BusyEvent::new(at, false) };
    }

    /// Whether the retired event is set. Only a hint: every consumer may write it.
    ///
    /// Asking it allocates (the crate's way to say no), so it is for loops that are idle.
    pub(crate) fn event_is_set(&self) -> bool {
        self.with_event(|event| event.wait(Timeout::Val(Duration::ZERO)).is_ok())
    }

    fn with_event(&self, action: impl FnOnce(&dyn EventImpl) -> bool) -> bool {
        let at = self.readers.address(readers::EVENT, 64);
        // SAFETY: 64 bytes of a mapping that outlives the event; the event reads and writes its
        // flag atomically, and refuses a state that makes no sense.
        let event = unsafe { BusyEvent::from_existing(at) };
        event.is_ok_and(|(event, _)| action(event.as_ref()))
    }
}

/// Whether somebody else than `file` holds the producer's lock.
pub(crate) fn producer_lives(file: &File, name: &RingName) -> Result<bool, Error> {
    lock::held_by_other(file.as_fd(), lock::PRODUCER).at(
        "query the producer's lock of ring",
        Path::new(name.as_str()),
    )
}

/// Checks text that goes into shared memory as a label or name.
pub(crate) fn check_label(text: &str, most: usize) -> Result<(), Error> {
    let printable = !text.chars().any(char::is_control);
    if text.is_empty() || text.len() > most || !printable {
        return Err(Error::InvalidLabel {
            label: text.to_owned(),
            most,
        });
    }
    Ok(())
}

/// Stores a checked label in `words` words.
pub(crate) fn set_text(map: &Mapping, at: u64, words: usize, text: &str) {
    let mut padded = [0u8; LABEL_MAX];
    for (to, from) in padded.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    for (i, chunk) in (0u64..).zip(padded.chunks_exact(8).take(words)) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        map.set(at + i * 8, u64::from_ne_bytes(word));
    }
}

/// Reads a label that anybody may have scribbled over: at most its field, no control characters.
pub(crate) fn text(map: &Mapping, at: u64, words: usize) -> String {
    let bytes: Vec<u8> = (0..words as u64)
        .flat_map(|i| map.get(at + i * 8).to_ne_bytes())
        .collect();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
