//! The place in a bpffs where the link of an interface's program has its name: `<bpffs>/fluxcap-outputs/NAMESPACE-INDEX`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fluxcap_socket::{BpfLink, BpfLinkInfo, Link};

use crate::error::Error;
use crate::memory::{Identity, own};

/// `BPF_FS_MAGIC` (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const FOLDER: &str = "fluxcap-outputs";

/// Where the names are.
#[derive(Debug)]
pub(crate) struct Pins {
    bpffs: PathBuf,
}

impl Pins {
    pub(crate) fn new(bpffs: &Path) -> Pins {
        Pins {
            bpffs: bpffs.to_owned(),
        }
    }

    /// The bpffs: `ip netns exec` hides it behind another sysfs, where the first process still has it.
    fn root(&self) -> Result<PathBuf, Error> {
        let first =
            Path::new("/proc/1/root").join(self.bpffs.strip_prefix("/").unwrap_or(&self.bpffs));
        let found = [self.bpffs.clone(), first]
            .into_iter()
            .find(|path| is_bpffs(path));
        found.ok_or_else(|| Error::NoBpffs {
            path: self.bpffs.clone(),
        })
    }

    /// The link of an interface, if it is there and alive.
    pub(crate) fn find(&self, identity: Identity, link: &Link) -> Option<(BpfLink, BpfLinkInfo)> {
        let path = self.path(identity).ok()?;
        let found = BpfLink::open(&path).ok()?;
        let info = found.info().ok()?;
        (info.ifindex == link.index).then_some((found, info))
    }

    /// That a name could be made: what would be missing later is better said before anything is changed.
    pub(crate) fn make_ready(&self) -> Result<(), Error> {
        let folder = self.root()?.join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::file("make the folder", folder)(error));
            }
            _ => {}
        }
        let seen = fs::symlink_metadata(&folder).map_err(Error::file("look at", &folder))?;
        own(&folder, &seen)
    }

    /// Gives a link its name. One that is there is of an interface that is gone.
    pub(crate) fn pin(&self, identity: Identity, name: &str, link: &BpfLink) -> Result<(), Error> {
        self.sweep()?;
        self.remove(identity)?;
        link.pin(&self.path(identity)?).map_err(Error::kernel(name))
    }

    /// Takes away the names of links whose interfaces are gone: nobody will ask for them again.
    fn sweep(&self) -> Result<(), Error> {
        let folder = self.root()?.join(FOLDER);
        let entries = fs::read_dir(&folder).map_err(Error::file("list", &folder))?;
        for entry in entries.flatten() {
            let info = BpfLink::open(&entry.path()).and_then(|link| link.info());
            if info.is_ok_and(|info| info.ifindex == 0) {
                // Somebody else may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Takes the name away. That there is none is fine.
    pub(crate) fn remove(&self, identity: Identity) -> Result<(), Error> {
        let path = self.path(identity)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, identity: Identity) -> Result<PathBuf, Error> {
        Ok(self.root()?.join(FOLDER).join(identity.as_name()))
    }
}

fn is_bpffs(path: &Path) -> bool {
    let system = rustix::fs::statfs(path);
    system
        .is_ok_and(|system| u64::try_from(system.f_type).unwrap_or(0) & 0xffff_ffff == BPF_FS_MAGIC)
}
