//! Creating, replacing and deleting rings.
//!
//! A ring is built without a name, with every page in place, and gets its name at the end: nobody
//! ever sees half a ring, and a creator that is killed leaves nothing behind. A lock on the directory
//! (freed by the kernel when its holder dies) makes the naming of the two files one step.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;

use crate::budget;
use crate::draft::{Announcement, Draft};
use crate::epochs::{self, Bounds};
use crate::error::{Error, IoContext};
use crate::files::{self, Access, Pair, RingInfo};
use crate::layout::{Header, Mode, PAGE, READERS_MAGIC, STATE_LIVE, data, readers};
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::{Backing, RingDir, RingName};
use crate::protocol::Writer;

/// A creation under way: what it has come to, and the way to give it up.
#[derive(Debug, Default)]
pub struct Creation {
    reserved: AtomicU64,
    cancelled: AtomicBool,
}

impl Creation {
    /// Bytes of memory that are reserved already.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Nobody waits for it any more: the ring is not made, unless it has its name already.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Takes note of progress; whether to go on.
    fn add(&self, bytes: u64) -> bool {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        !self.is_cancelled()
    }
}

/// How a ring is to be created.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the data area, from 64 KiB to 16 TiB; rounded up to the page size of the backing.
    pub capacity: u64,
    /// How the ring treats slow consumers.
    pub mode: Mode,
    /// Whether a ring of that name may be replaced: its users drain it and follow to the new one.
    pub replace: bool,
    /// Permission bits of both files.
    pub file_mode: u32,
    /// Position of the first record, a multiple of 4096. Random unless a test wants to see
    /// positions pass a border.
    pub base_pos: Option<u64>,
    /// Refuse to create a ring that occupies more bytes than this.
    pub memory_limit: Option<u64>,
    /// Earlier epochs of the ring, which are kept until their readers have passed, may occupy so many bytes; the oldest of what is
    /// more is cut off.
    pub keep_bytes: Option<u64>,
    /// To watch the creation, and to give it up.
    pub creation: Option<Arc<Creation>>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            capacity: 64 << 20,
            mode: Mode::Overwrite,
            replace: false,
            file_mode: 0o660,
            base_pos: None,
            memory_limit: None,
            keep_bytes: None,
            creation: None,
        }
    }
}

/// Bytes of memory that a ring of `capacity` bytes in `dir` would occupy.
///
/// # Errors
/// [`Error::InvalidCapacity`]; [`Error::Io`] when the directory cannot be examined.
pub fn footprint(dir: &RingDir, capacity: u64) -> Result<u64, Error> {
    let unit = unit_of(dir.path())?;
    let capacity = Header::check_capacity(capacity, unit)?;
    Ok(blank(capacity, unit, Mode::Overwrite).footprint())
}

/// Creates a ring: reserves all of its memory, then gives it its name. Where the name stands for a ring that was retired or is
/// damaged, the new one takes its place. Readers that are registered in the one before have their places in the new one, too.
///
/// # Errors
/// [`Error::Exists`] unless `replace` is set, [`Error::NotEnoughMemory`] before any page is touched,
/// [`Error::InvalidCapacity`], [`Error::InvalidBase`], [`Error::Foreign`], [`Error::Cancelled`], [`Error::Locked`], [`Error::Io`].
pub fn create(dir: &RingDir, name: &RingName, options: &CreateOptions) -> Result<RingInfo, Error> {
    let place = dir.place(name);
    let unit = unit_of(place)?;
    let mut header = blank(
        Header::check_capacity(options.capacity, unit)?,
        unit,
        options.mode,
    );
    header.base_pos = match options.base_pos {
        Some(base_pos) if !base_pos.is_multiple_of(PAGE) => {
            return Err(Error::InvalidBase { base_pos });
        }
        Some(base_pos) => base_pos,
        None => random()? << 40,
    };
    header.uuid = [random()?, random()?];
    let standing = Standing::of(&dir.pair(name))?;
    if !options.replace && matches!(standing, Standing::Live(_)) {
        return Err(Error::Exists {
            name: name.to_string(),
        });
    }
    let needed = header.footprint();
    let available = budget::available(place, options.memory_limit)?;
    let short = Error::NotEnoughMemory {
        name: name.to_string(),
        needed,
        available,
    };
    if needed > available {
        return Err(short);
    }
    let _announcement = Announcement::new(dir, name);
    let data = Draft::new(
        dir,
        name,
        &dir.data_path(name),
        header.file_len(),
        options.file_mode,
    )?;
    let readers = Draft::new(
        dir,
        name,
        &dir.readers_path(name),
        header.readers_len(),
        options.file_mode,
    )?;
    let creation = options.creation.as_deref();
    let reserve = |draft: &Draft, len, ring| {
        let reserved = reserve(draft, len, ring, unit, &short, creation);
        match creation {
            Some(creation) if creation.is_cancelled() => Err(Error::Cancelled {
                name: name.to_string(),
            }),
            _ => reserved,
        }
    };
    let shared = Shared {
        data: reserve(&data, header.file_len(), header.capacity)?,
        readers: reserve(&readers, header.readers_len(), 0)?,
    };
    publish(dir, name, header, &shared, &data, &readers, options)
}

/// Deletes a ring: its users finish what is in it, then find that it is gone. The places of its registered readers are kept for the
/// next ring of that name.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Foreign`], [`Error::Locked`], [`Error::Io`].
pub fn delete(dir: &RingDir, name: &RingName) -> Result<(), Error> {
    let pair = dir.pair(name);
    let _lock = DirLock::take(dir.place(name))?;
    match Standing::of(&pair)? {
        Standing::Free => return Err(pair.not_found()),
        // Retired first: were the names gone first, a killed deleter would leave users waiting for ever.
        Standing::Live(ring) => {
            ring.shared.retire(None);
            epochs::keep(dir, &ring)?;
        }
        Standing::Retired(ring) => epochs::keep(dir, &ring)?,
        Standing::Damaged => {}
    }
    for path in [
        &pair.data,
        &next(&pair.data),
        &pair.readers,
        &next(&pair.readers),
    ] {
        remove(path)?;
    }
    // What cannot be let go of now is later.
    let _ = epochs::sweep(dir, name, Bounds::NONE);
    Ok(())
}

/// A header with everything that follows from size and mode.
fn blank(capacity: u64, unit: u64, mode: Mode) -> Header {
    Header {
        uuid: [0; 2],
        epoch: 0,
        base_pos: 0,
        capacity,
        mode,
        created_ns: files::now_ns(),
        unit,
    }
}

/// Page size of the memory behind a directory.
fn unit_of(place: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statfs(place).at("examine the file system of", place)?;
    let huge = Backing::from_magic(stat.f_type) == Backing::Hugetlbfs;
    let block = u64::try_from(stat.f_bsize).unwrap_or(PAGE);
    Ok(if huge && block.is_power_of_two() {
        block.max(PAGE)
    } else {
        PAGE
    })
}

fn random() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    // SAFETY: the kernel writes at most the eight bytes of the buffer.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if length == 8 {
        return Ok(u64::from_ne_bytes(bytes));
    }
    Err(std::io::Error::last_os_error()).at("read", Path::new("/dev/urandom"))
}

/// Maps a draft and makes the kernel provide every page of it.
fn reserve(
    draft: &Draft,
    len: u64,
    ring: u64,
    unit: u64,
    short: &Error,
    creation: Option<&Creation>,
) -> Result<Mapping, Error> {
    let shortage = |e: &std::io::Error| {
        matches!(
            e.raw_os_error(),
            Some(libc::ENOMEM | libc::EFAULT | libc::ENOSPC)
        )
    };
    let copy = || match short {
        Error::NotEnoughMemory {
            name,
            needed,
            available,
        } => Error::NotEnoughMemory {
            name: name.clone(),
            needed: *needed,
            available: *available,
        },
        _ => Error::NotEnoughMemory {
            name: String::new(),
            needed: len,
            available: 0,
        },
    };
    let progress = |bytes| creation.is_none_or(|creation| creation.add(bytes));
    let mapped = Mapping::new(&draft.file, len, ring, unit, true)
        .and_then(|mapping| mapping.populate(progress).map(|()| mapping));
    match mapped {
        Err(e) if shortage(&e) => Err(copy()),
        other => other.at("reserve memory for", &draft.goal),
    }
}

/// Writes everything that a fresh ring needs, then gives both files their names.
fn publish(
    dir: &RingDir,
    name: &RingName,
    mut header: Header,
    shared: &Shared,
    data_draft: &Draft,
    readers_draft: &Draft,
    options: &CreateOptions,
) -> Result<RingInfo, Error> {
    let pair = dir.pair(name);
    let _lock = DirLock::take(dir.place(name))?;
    // The last moment: from here on it is made.
    if options
        .creation
        .as_ref()
        .is_some_and(|it| it.is_cancelled())
    {
        return Err(Error::Cancelled {
            name: name.to_string(),
        });
    }
    let old = match Standing::of(&pair)? {
        Standing::Live(_) if !options.replace => {
            return Err(Error::Exists {
                name: name.to_string(),
            });
        }
        Standing::Live(old) | Standing::Retired(old) => Some(old),
        Standing::Damaged | Standing::Free => None,
    };
    header.created_ns = files::now_ns();
    let last = old.as_ref().map(|old| old.info.epoch);
    let last = last.into_iter().chain(dir.earlier_epochs(name)).max();
    header.epoch = last
        .map_or(0, |last| last.saturating_add(1))
        .max(header.created_ns);
    format(shared, &header);
    epochs::carry(dir, name, old.as_ref(), shared, header.base_pos);
    for leftover in [next(&pair.data), next(&pair.readers)] {
        remove(&leftover)?;
    }
    if let Some(old) = &old {
        epochs::keep(dir, old)?;
    }
    if std::fs::symlink_metadata(&pair.data).is_ok() {
        readers_draft.link(&next(&pair.readers))?;
        data_draft.link(&next(&pair.data))?;
        rename(&next(&pair.readers), &pair.readers)?;
        rename(&next(&pair.data), &pair.data)?;
    } else {
        remove(&pair.readers)?;
        readers_draft.link(&pair.readers)?;
        data_draft.link(&pair.data)?;
    }
    if let Some(old) = old {
        old.shared.retire(Some(header.epoch));
        epochs::reconcile(dir, &old, shared, header.base_pos);
    }
    let bounds = Bounds {
        epochs: epochs::KEPT,
        bytes: options.keep_bytes.unwrap_or(u64::MAX),
    };
    // The ring is made. What cannot be let go of now is later.
    let _ = epochs::sweep(dir, name, bounds);
    let backing = files::backing_of(data_draft.file.as_fd(), name).at("examine", &pair.data)?;
    Ok(files::info(name, &header, backing))
}

fn format(shared: &Shared, header: &Header) {
    header.write(&shared.data);
    Writer::format(shared, &header.geometry());
    shared.data.set(data::STATE, STATE_LIVE);
    shared.readers.set(readers::MAGIC, READERS_MAGIC);
    shared.readers.set(readers::UUID, header.uuid[0]);
    shared.readers.set(readers::UUID + 8, header.uuid[1]);
    shared.readers.set(readers::EPOCH, header.epoch);
    shared.format_event();
}

/// Ends a replacement whose author died between its two renames. Does nothing when there
/// is none.
pub(crate) fn finish_replacement(dir: &RingDir, name: &RingName) -> Result<(), Error> {
    let pair = dir.pair(name);
    let _lock = DirLock::take(dir.place(name))?;
    let (Ok(new), Ok(readers)) = (File::open(next(&pair.data)), File::open(&pair.readers)) else {
        return Ok(());
    };
    let header = files::read_header(&new, &next(&pair.data))?;
    if files::readers_uuid(&readers).at("read", &pair.readers)? != Some(header.uuid) {
        return Ok(());
    }
    let old = files::open_data(&pair, Access::Producer);
    rename(&next(&pair.data), &pair.data)?;
    if let Ok((file, old)) = old {
        // Its readers file has lost its name, so nobody can be woken; all look at the state when idle.
        let map = Mapping::new(&file, old.file_len(), old.capacity, old.unit, true)
            .at("map", &pair.data)?;
        map.set(data::SUCCESSOR, header.epoch);
        map.word(data::STATE)
            .store(crate::layout::STATE_RETIRED, Ordering::Release); // SYNC R
    }
    Ok(())
}

/// What the name of a ring stands for.
enum Standing {
    /// Nothing.
    Free,
    /// A ring in use.
    Live(files::Opened),
    /// A ring whose users are leaving it, because whoever deleted it was killed.
    Retired(files::Opened),
    /// A ring that cannot be used: one of its files is missing, cut short or written over.
    Damaged,
}

impl Standing {
    /// Looks. What is no ring, nor what is left of one, is an error: nobody has asked for that to be touched.
    fn of(pair: &Pair) -> Result<Standing, Error> {
        let foreign = || Error::Foreign {
            path: pair.data.clone(),
        };
        match std::fs::symlink_metadata(&pair.data) {
            Ok(found) if !found.is_file() => return Err(foreign()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Free),
            _ => {}
        }
        match files::open_once(pair, Access::Producer) {
            Ok(ring) if ring.shared.retired().is_some() => Ok(Standing::Retired(ring)),
            Ok(ring) => Ok(Standing::Live(ring)),
            Err(Error::NotFound { .. }) => Ok(Standing::Free),
            Err(Error::Damaged { .. }) if is_ours(pair) => Ok(Standing::Damaged),
            Err(Error::Damaged { .. }) => Err(foreign()),
            Err(e) => Err(e),
        }
    }
}

/// Whether a file that is no sound ring was one: it, or the readers file beside it, begins as ours do.
fn is_ours(pair: &Pair) -> bool {
    let readers = || {
        let file = files::open_file(&pair.readers, false).ok()?;
        files::readers_uuid(&file).ok()?
    };
    crate::layout::has_magic(&pair.data) || readers().is_some()
}

fn next(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    if !name.as_encoded_bytes().starts_with(b".") {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(&name);
        name = hidden;
    }
    name.push(".next");
    path.with_file_name(name)
}

pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).at("rename over", to)
}

/// The right to name and remove files of rings in a directory.
#[derive(Debug)]
pub(crate) struct DirLock {
    _fd: OwnedFd,
}

impl DirLock {
    /// Longest wait for another process, which holds the lock for microseconds.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub(crate) fn take(place: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, place, flags, FileMode::empty()).at("open", place)?;
        let end = Instant::now() + Self::PATIENCE;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _fd: fd }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::Locked {
                        dir: place.to_owned(),
                    });
                }
                Err(e) => return Err(e).at("lock", place),
            }
        }
    }
}
