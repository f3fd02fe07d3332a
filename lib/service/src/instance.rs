//! One instance of a daemon for each run directory.

use crate::Error;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a predecessor that was killed may take to be gone: the kernel takes its sockets and programs apart first.
const ENDING: Duration = Duration::from_secs(1);
/// How often it is looked for meanwhile.
const STEP: Duration = Duration::from_millis(10);

/// The lock of a run directory, held until it is dropped or the process dies.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Takes `<run_dir>/<daemon>.lock` and writes this process into it. The file stays when the lock goes: removing it
    /// would let two instances lock two files of one name.
    pub(crate) fn acquire(run_dir: &Path, daemon: &str) -> Result<InstanceLock, Error> {
        let path = run_dir.join(format!("{daemon}.lock"));
        let failed = |operation| {
            let path = path.clone();
            move |source| Error::Io {
                operation,
                path,
                source,
            }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(failed("open lock file"))?;
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(Error::AlreadyRunning {
                    daemon: daemon.to_owned(),
                    holder,
                    run_dir: run_dir.to_owned(),
                });
            }
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        // Only for the message above; a full disk must not keep a daemon from starting.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot write the pid into the lock file");
        }
        Ok(InstanceLock { _file: file })
    }
}

/// Locks the file; waits a little for one that holds it and may be ending.
fn lock(file: &File) -> Result<(), Errno> {
    let begun = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begun.elapsed() < ENDING => thread::sleep(STEP),
            done => return done,
        }
    }
}

/// Creates a directory of mode 0750 with the parents that it needs; leaves one that exists as it is.
pub(crate) fn create_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(0o750).create(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists || !path.is_dir() => {
            Err(Error::Io {
                operation: "create directory",
                path: path.to_owned(),
                source,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn second_instance_is_refused_and_told_the_holder() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = InstanceLock::acquire(dir.path(), "testd").expect("first instance");
        let refused = InstanceLock::acquire(dir.path(), "testd")
            .expect_err("second instance")
            .to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        InstanceLock::acquire(dir.path(), "otherd").expect("another daemon");
        drop(first);
        InstanceLock::acquire(dir.path(), "testd").expect("after the first has gone");
    }

    #[test]
    fn one_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = InstanceLock::acquire(dir.path(), "testd").expect("first instance");
        let ending = thread::spawn(move || {
            thread::sleep(ENDING / 10);
            drop(first);
        });
        InstanceLock::acquire(dir.path(), "testd").expect("the second waits for it");
        ending.join().expect("the first has ended");
    }

    #[test]
    fn directories_are_made_private_and_existing_ones_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let inner = dir.path().join("a/b");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").mode() & 0o777;
        create_directory(&inner).expect("create");
        assert_eq!(mode(&inner), 0o750);
        std::fs::set_permissions(&inner, PermissionsExt::from_mode(0o755)).expect("chmod");
        create_directory(&inner).expect("exists");
        assert_eq!(mode(&inner), 0o755);
        std::fs::write(dir.path().join("file"), "").expect("write");
        assert!(create_directory(&dir.path().join("file")).is_err());
    }
}
