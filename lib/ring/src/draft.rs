//! Files that are not yet rings: no name, or a hidden one, until everything is in place.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use shared_memory::{ShmemConf, ShmemError};

use crate::error::{Error, IoContext};
use crate::name::{RingDir, RingName};

/// A file that has no final name yet.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: File,
    /// A temporary name, where the file system cannot do without. Removed on drop.
    temporary: Option<PathBuf>,
    /// What it is to become.
    pub(crate) goal: PathBuf,
}

impl Draft {
    pub(crate) fn new(
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
    pub(crate) fn link(&self, to: &Path) -> Result<(), Error> {
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
    // With a sign that no ring's name has.
    format!(".{}~tmp-", name.trim_start_matches('.'))
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

/// Tells everybody that a ring is being made, or is about to be, as long as it lives: a hidden file that is locked, so that a
/// maker who is killed tells nothing.
#[derive(Debug)]
pub struct Announcement {
    file: File,
    path: PathBuf,
}

impl Announcement {
    /// Announces a ring. `None` when somebody else has, or it cannot be done: then people are told that the ring is missing.
    #[must_use]
    pub fn new(dir: &RingDir, name: &RingName) -> Option<Self> {
        let path = dir.announcement_path(name);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = FileMode::from_raw_mode(0o660);
        let file = File::from(rustix::fs::openat(CWD, &path, flags, mode).ok()?);
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self { file, path })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // Before the lock goes with the file: nobody else has announced it meanwhile.
        let _ = std::fs::remove_file(&self.path);
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whether somebody is making a ring of that name.
#[must_use]
pub fn is_being_made(dir: &RingDir, name: &RingName) -> bool {
    let file = crate::files::open_file(&dir.announcement_path(name), false);
    file.is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}
