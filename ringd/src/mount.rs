//! The memory below the ring directory.
//!
//! ramfs is what rings want: its pages are never swapped out and never written back. ringd mounts it when it may and
//! nothing of the kind is there, and says so where rings will live on something worse. The mount stays when ringd ends,
//! as the rings do.

use anyhow::Context;
use fluxcap_ring::{Backing, RingDir};
use fluxcap_service::Notices;
use nix::mount::{MsFlags, mount};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, chown, stat, statx};
use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::Path};

const NOTICE: &str = "ring-dir";
const OPTIONS: &str = "mode=0770";

/// Makes the ring directory and, when `may_mount`, puts memory below it unless something is mounted there already.
pub(crate) fn prepare(dir: &RingDir, may_mount: bool, notices: &Notices) -> anyhow::Result<()> {
    let path = dir.path();
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .with_context(|| {
            format!(
                "cannot create the ring directory {}; choose another by --ring-dir",
                path.display()
            )
        })?;
    if may_mount && needs_mount(dir, notices)? {
        mount_memory(path, notices);
    }
    let backing = dir.backing()?;
    tracing::info!(ring_dir = %path.display(), backing = backing.as_str(), "ring directory");
    if let Some(warning) = warning(backing, path) {
        notices.set(NOTICE, warning);
    }
    Ok(())
}

/// False when the directory has good memory already, some that was mounted just for it, or rings that a mount would hide.
fn needs_mount(dir: &RingDir, notices: &Notices) -> anyhow::Result<bool> {
    match dir.backing()? {
        Backing::Ramfs | Backing::Hugetlbfs => return Ok(false),
        Backing::Tmpfs if is_mount_point(dir.path())? => return Ok(false),
        // A tmpfs above it, /run for instance, is nobody's choice for rings.
        Backing::Tmpfs | Backing::Shm | Backing::Other => {}
    }
    if dir.list()?.iter().any(|name| !name.is_shm()) {
        let text = "there are rings in the directory already; nothing is mounted over them. To move to ramfs, delete them and restart ringd";
        notices.set("ring-dir-in-use", text);
        return Ok(false);
    }
    Ok(true)
}

fn mount_memory(path: &Path, notices: &Notices) {
    for kind in ["ramfs", "tmpfs"] {
        match mount_one(kind, path) {
            Ok(()) => {
                tracing::info!(ring_dir = %path.display(), kind, "mounted");
                return;
            }
            Err(error) => {
                let text = format!(
                    "cannot mount {kind} at {}: {error}; ringd needs CAP_SYS_ADMIN for that",
                    path.display()
                );
                notices.set(&format!("ring-dir-{kind}"), text);
            }
        }
    }
}

fn mount_one(kind: &str, path: &Path) -> io::Result<()> {
    let below = stat(path)?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some(kind), path, Some(kind), flags, Some(OPTIONS))?;
    // ramfs ignores uid= and gid=, so the owner of the directory is carried over by hand.
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(below.st_uid),
        rustix::fs::Gid::from_raw(below.st_gid),
    );
    Ok(chown(path, Some(uid), Some(gid))?)
}

/// True when a file system is mounted exactly here, bind mounts included.
fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        .with_context(|| format!("cannot examine {}", path.display()))?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// What the operator should know of rings on this kind of memory.
fn warning(backing: Backing, path: &Path) -> Option<String> {
    let advice = format!(
        "mount ramfs there: mount -t ramfs -o {OPTIONS},nodev,nosuid,noexec ramfs {}",
        path.display()
    );
    match backing {
        Backing::Ramfs | Backing::Hugetlbfs | Backing::Shm => None,
        Backing::Tmpfs => Some(format!(
            "rings are on tmpfs at {}: the kernel may swap them out, which costs frames; to avoid that, {advice}",
            path.display()
        )),
        Backing::Other => Some(format!(
            "rings are on a disk file system at {}: the kernel writes them back all the time, expect loss; {advice}",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_mount_is_a_mount_point() {
        assert!(is_mount_point(Path::new("/proc")).expect("statx"));
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(!is_mount_point(dir.path()).expect("statx"));
        assert!(is_mount_point(Path::new("/does/not/exist")).is_err());
    }

    #[test]
    fn slow_backings_are_told_and_good_ones_are_not() {
        let path = Path::new("/rings");
        assert_eq!(warning(Backing::Ramfs, path), None);
        assert_eq!(warning(Backing::Hugetlbfs, path), None);
        assert!(
            warning(Backing::Tmpfs, path)
                .expect("warning")
                .contains("mount -t ramfs")
        );
        assert!(
            warning(Backing::Other, path)
                .expect("warning")
                .contains("disk")
        );
    }
}
