//! Folders in a bpffs: what stays in the kernel while mirrord restarts has a name there.
//!
//! ```text
//!   <bpffs>/tunnels              own tunnels, of all mirrors
//!   <bpffs>/<mirror>/ingress     links of TCX and XDP: as long as the name is there, the program is
//!                    egress
//!                    counters, state, output_frames, rule_frames, events, meta, drained
//!                    stages0, devices0      maps that belong to the programs in use; stages1, devices1 in turn
//! ```
//!
//! Everything goes through a descriptor of the folder, by way of /proc: another bpffs that somebody mounts over the path meanwhile changes
//! nothing.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fstatfs, mkdirat, open, openat, unlinkat};

use crate::error::Error;

/// `BPF_FS_MAGIC` (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// A folder in a bpffs.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// What people call it.
    shown: PathBuf,
}

impl Folder {
    /// Opens the folder of all mirrors, and makes it if need be.
    pub(crate) fn open(path: &Path) -> Result<Folder, Error> {
        let failed = |operation| move |error| Error::pin(operation, path.to_owned(), error);
        match fs::DirBuilder::new().create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotBpffs {
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                // On a bpffs this says that the caller may not, or that a name is none.
                return Err(failed("make the folder")(error));
            }
            _ => {}
        }
        let fd =
            open(path, FOLDER, Mode::empty()).map_err(|e| failed("open the folder")(e.into()))?;
        let folder = Folder {
            fd,
            shown: path.to_owned(),
        };
        let system = fstatfs(&folder.fd).map_err(|e| failed("look at")(e.into()))?;
        if u64::try_from(system.f_type).unwrap_or(0) & 0xffff_ffff != BPF_FS_MAGIC {
            // It was made for nothing, perhaps.
            let _ = fs::remove_dir(path);
            return Err(Error::NotBpffs {
                path: path.to_owned(),
            });
        }
        folder.close_to_others()?;
        Ok(folder)
    }

    /// Opens the folder of one mirror, and makes it if need be.
    pub(crate) fn of_mirror(&self, name: &str) -> Result<Folder, Error> {
        let (name, shown) = (escape(name), self.shown.join(escape(name)));
        let failed = |operation, error: rustix::io::Errno| {
            Error::pin(operation, shown.clone(), error.into())
        };
        match mkdirat(&self.fd, &name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed("make the folder", error)),
        }
        let fd = openat(&self.fd, &name, FOLDER, Mode::empty())
            .map_err(|error| failed("open the folder", error))?;
        let folder = Folder { fd, shown };
        folder.close_to_others()?;
        Ok(folder)
    }

    /// What tells this folder from that of another mirrord: it is in the names of what is made beside it.
    pub(crate) fn instance(&self) -> Result<u64, Error> {
        let about = rustix::fs::fstat(&self.fd)
            .map_err(|error| Error::pin("look at", self.shown.clone(), error.into()))?;
        Ok(crate::program::hash(
            format!("{}:{}", about.st_dev, about.st_ino).as_bytes(),
        ))
    }

    /// Whether a mirror has a folder.
    pub(crate) fn is_there(root: &Path, name: &str) -> bool {
        root.join(escape(name)).is_dir()
    }

    /// Whether something in the folder of a mirror has this name.
    pub(crate) fn is_pinned(root: &Path, mirror: &str, name: &str) -> bool {
        root.join(escape(mirror)).join(name).exists()
    }

    /// Removes all names in the folder of a mirror.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        self.names()?
            .iter()
            .try_for_each(|(name, _)| self.remove(name))
    }

    /// Nobody but its owner may look in: what is pinned can be changed by whoever can open it.
    fn close_to_others(&self) -> Result<(), Error> {
        rustix::fs::fchmod(&self.fd, Mode::RWXU)
            .map_err(|error| Error::pin("set the permissions of", self.shown.clone(), error.into()))
    }

    /// A path to a name in this folder, for system calls.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Whether there is something of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Takes a name away. That there is none is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::pin("remove", self.shown.join(name), error.into())),
        }
    }

    /// The names in it, and whether each is a folder.
    pub(crate) fn names(&self) -> Result<Vec<(String, bool)>, Error> {
        let failed = |error: rustix::io::Errno| {
            Error::pin("list the folder", self.shown.clone(), error.into())
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push((name, entry.file_type().is_dir()));
            }
        }
        Ok(names)
    }

    /// Removes the folder of a mirror with all names in it.
    pub(crate) fn remove_mirror(&self, name: &str) -> Result<(), Error> {
        let folder = self.of_mirror(name)?;
        for (name, _) in folder.names()? {
            folder.remove(&name)?;
        }
        match unlinkat(&self.fd, escape(name), AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::pin("remove the folder", folder.shown, error.into())),
        }
    }
}

/// The path of a folder that this process has open.
pub(crate) fn path_of(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// The name of a mirror as that of a folder: a bpffs takes no dots (`bpf_lookup` in `kernel/bpf/inode.c`), and no mirror has a comma.
pub(crate) fn escape(name: &str) -> String {
    name.replace('.', ",")
}

/// The name of a mirror from that of its folder.
pub(crate) fn unescape(name: &str) -> String {
    name.replace(',', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mirrors_survive_a_file_system_without_dots() {
        for name in ["web", "eth0.100", "a.b-c_d:e+f@g"] {
            assert!(!escape(name).contains('.'));
            assert_eq!(unescape(&escape(name)), name);
        }
    }

    #[test]
    fn a_folder_elsewhere_is_refused_and_not_left_behind() {
        let path = std::env::temp_dir().join(format!("flux-pins-{}", std::process::id()));
        let error = Folder::open(&path).expect_err("no bpffs");
        assert!(matches!(error, Error::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"));
        assert!(!path.exists());
    }
}
