//! Creating, replacing and deleting rings.
//!
//! A ring is built without a name, with every page in place, and gets its name at the end: nobody
//! ever sees half a ring, and a creator that is killed leaves nothing behind. A lock on the directory
//! (freed by the kernel when its holder dies) makes the naming of the two files one step.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use shared_memory::{ShmemConf, ShmemError};

use crate::budget;
use crate::error::{Error, IoContext};
use crate::files::{self, Access, RingInfo};
use crate::layout::{Header, Mode, PAGE, READERS_MAGIC, STATE_LIVE, data, readers};
use crate::memory::mapping::Mapping;
use crate::memory::shared::Shared;
use crate::name::{Backing, RingDir, RingName};
use crate::protocol::Writer;

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

/// Creates a ring: reserves all of its memory, then gives it its name.
///
/// # Errors
/// [`Error::Exists`] unless `replace` is set, [`Error::NotEnoughMemory`] before any page is touched,
/// [`Error::InvalidCapacity`], [`Error::InvalidBase`], [`Error::Locked`], [`Error::Io`].
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
    if !options.replace && living(dir, name)?.is_some() {
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
    let shared = Shared {
        data: reserve(&data, header.file_len(), header.capacity, unit, &short)?,
        readers: reserve(&readers, header.readers_len(), 0, unit, &short)?,
    };
    publish(dir, name, header, &shared, &data, &readers, options.replace)
}

/// Deletes a ring: its users finish what is in it, then find that it is gone.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Locked`], [`Error::Io`].
pub fn delete(dir: &RingDir, name: &RingName) -> Result<(), Error> {
    let _lock = DirLock::take(dir.place(name))?;
    let found = living(dir, name)?;
    let (data_path, readers_path) = (dir.data_path(name), dir.readers_path(name));
    if found.is_none() && !data_path.exists() {
        return Err(Error::NotFound {
            name: name.to_string(),
            dir: dir.place(name).to_owned(),
        });
    }
    // Retired first: were the names gone first, a killed deleter would leave users waiting for ever.
    if let Some(ring) = found.flatten() {
        ring.shared.retire(None);
    }
    for path in [
        data_path,
        next(&dir.data_path(name)),
        readers_path,
        next(&dir.readers_path(name)),
    ] {
        remove(&path)?;
    }
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
fn reserve(draft: &Draft, len: u64, ring: u64, unit: u64, short: &Error) -> Result<Mapping, Error> {
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
    let mapped = Mapping::new(&draft.file, len, ring, unit, true)
        .and_then(|mapping| mapping.populate().map(|()| mapping));
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
    replace: bool,
) -> Result<RingInfo, Error> {
    let _lock = DirLock::take(dir.place(name))?;
    let old = living(dir, name)?;
    if old.is_some() && !replace {
        return Err(Error::Exists {
            name: name.to_string(),
        });
    }
    let old = old.flatten();
    header.created_ns = files::now_ns();
    header.epoch = old
        .as_ref()
        .map_or(0, |o| o.info.epoch + 1)
        .max(header.created_ns);
    format(shared, &header);
    let (data_path, readers_path) = (dir.data_path(name), dir.readers_path(name));
    for leftover in [next(&data_path), next(&readers_path)] {
        remove(&leftover)?;
    }
    if data_path.exists() && replace {
        readers_draft.link(&next(&readers_path))?;
        data_draft.link(&next(&data_path))?;
        rename(&next(&readers_path), &readers_path)?;
        rename(&next(&data_path), &data_path)?;
        if let Some(old) = old {
            old.shared.retire(Some(header.epoch));
        }
    } else {
        // What is there now was retired or never finished.
        remove(&data_path)?;
        remove(&readers_path)?;
        readers_draft.link(&readers_path)?;
        data_draft.link(&data_path)?;
    }
    let backing = files::backing_of(data_draft.file.as_fd(), name).at("examine", &data_path)?;
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
    let _lock = DirLock::take(dir.place(name))?;
    let (data_path, readers_path) = (dir.data_path(name), dir.readers_path(name));
    let (Ok(new), Ok(readers)) = (File::open(next(&data_path)), File::open(&readers_path)) else {
        return Ok(());
    };
    let header = files::read_header(&new, &next(&data_path))?;
    if files::readers_uuid(&readers).at("read", &readers_path)? != Some(header.uuid) {
        return Ok(());
    }
    let old = files::open_data(dir, name, Access::Producer);
    rename(&next(&data_path), &data_path)?;
    if let Ok((file, old)) = old {
        // Its readers file is gone, so nobody can be woken; all look at the state when idle.
        let map = Mapping::new(&file, old.file_len(), old.capacity, old.unit, true)
            .at("map", &data_path)?;
        map.set(data::SUCCESSOR, header.epoch);
        map.word(data::STATE)
            .store(crate::layout::STATE_RETIRED, Ordering::Release); // SYNC R
    }
    Ok(())
}

/// The ring that has the name now: none, one that cannot be opened (`Some(None)`), or an open one.
/// A retired ring does not count.
fn living(dir: &RingDir, name: &RingName) -> Result<Option<Option<files::Opened>>, Error> {
    match files::open_once(dir, name, Access::Producer) {
        Ok(ring) if ring.shared.retired().is_some() => Ok(None),
        Ok(ring) => Ok(Some(Some(ring))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(Error::Damaged { .. }) => Ok(Some(None)),
        Err(e) => Err(e),
    }
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

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).at("rename over", to)
}

/// A file that has no final name yet.
#[derive(Debug)]
struct Draft {
    file: File,
    /// A temporary name, where the file system cannot do without. Removed on drop.
    temporary: Option<PathBuf>,
    /// What it is to become.
    goal: PathBuf,
}

impl Draft {
    fn new(
        dir: &RingDir,
        name: &RingName,
        goal: &Path,
        len: u64,
        file_mode: u32,
    ) -> Result<Self, Error> {
        let place = dir.place(name);
        let draft = if name.is_shm() {
            Self::in_shm(goal, len)?
        } else {
            match Self::unnamed(place, goal) {
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                    Self::named(goal)?
                }
                other => other.at("create a file in", place)?,
            }
        };
        rustix::fs::fchmod(&draft.file, FileMode::from_raw_mode(file_mode & 0o777))
            .at("set the permissions of", goal)?;
        draft.file.set_len(len).at("set the length of", goal)?;
        Ok(draft)
    }

    fn unnamed(place: &Path, goal: &Path) -> Result<Self, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, place, flags, FileMode::RUSR | FileMode::WUSR)?;
        Ok(Self {
            file: File::from(fd),
            temporary: None,
            goal: goal.to_owned(),
        })
    }

    fn named(goal: &Path) -> Result<Self, Error> {
        sweep(goal);
        let temporary = temporary(goal);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .at("create", &temporary)?;
        let draft = Self {
            file,
            temporary: Some(temporary),
            goal: goal.to_owned(),
        };
        draft.claim()?;
        Ok(draft)
    }

    /// An object of POSIX shared memory, by the `shared_memory` crate. Its ownership is released
    /// at once: the crate would unlink the object's name when its creator ends, also when
    /// the name belongs to a newer ring by then.
    fn in_shm(goal: &Path, len: u64) -> Result<Self, Error> {
        sweep(goal);
        let temporary = temporary(goal);
        let os_id = temporary.file_name().unwrap_or_default().to_string_lossy();
        let size = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory.into());
        let size = size
            .map_err(|e: std::io::Error| e)
            .at("create", &temporary)?;
        let created = ShmemConf::new()
            .os_id(format!("/{os_id}"))
            .size(size)
            .create();
        let mut object = created.map_err(shm_error).at("create", &temporary)?;
        object.set_owner(false);
        let opened = File::options().read(true).write(true).open(&temporary);
        let file = opened.at("open", &temporary)?;
        let draft = Self {
            file,
            temporary: Some(temporary),
            goal: goal.to_owned(),
        };
        draft.claim()?;
        Ok(draft)
    }

    /// Tells [`sweep`] that the creator lives.
    fn claim(&self) -> Result<(), Error> {
        rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive)
            .at("lock", &self.goal)
    }

    /// Gives the file a name that must be free.
    fn link(&self, to: &Path) -> Result<(), Error> {
        let linked = match &self.temporary {
            Some(temporary) => rustix::fs::linkat(CWD, temporary, CWD, to, AtFlags::empty()),
            None => {
                let fd = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                match rustix::fs::linkat(CWD, fd, CWD, to, AtFlags::SYMLINK_FOLLOW) {
                    // Without /proc; needs CAP_DAC_READ_SEARCH on older kernels.
                    Err(Errno::NOENT) => {
                        rustix::fs::linkat(&self.file, "", CWD, to, AtFlags::EMPTY_PATH)
                    }
                    other => other,
                }
            }
        };
        linked.at("give a name to", to)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn shm_error(error: ShmemError) -> std::io::Error {
    match error {
        ShmemError::MapCreateFailed(code) | ShmemError::UnknownOsError(code) => {
            std::io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(libc::EIO))
        }
        other => std::io::Error::other(other),
    }
}

/// A name for a draft of `goal`: hidden, and of no other process or thread.
fn temporary(goal: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    goal.with_file_name(format!("{}{}-{count}", stem(goal), std::process::id()))
}

fn stem(goal: &Path) -> String {
    let name = goal.file_name().unwrap_or_default().to_string_lossy();
    format!(".{}.tmp-", name.trim_start_matches('.'))
}

/// Removes drafts of `goal` whose creators are dead: their lock is free.
fn sweep(goal: &Path) {
    let (Some(place), stem) = (goal.parent(), stem(goal)) else {
        return;
    };
    let Ok(listing) = std::fs::read_dir(place) else {
        return;
    };
    for entry in listing.flatten() {
        let leftover = entry.file_name().to_string_lossy().starts_with(&stem)
            && File::open(entry.path()).is_ok_and(|file| {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            });
        if leftover {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The right to name and remove files of rings in a directory.
struct DirLock {
    _fd: OwnedFd,
}

impl DirLock {
    /// Longest wait for another process, which holds the lock for microseconds.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn take(place: &Path) -> Result<Self, Error> {
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
