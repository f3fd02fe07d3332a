//! Specs on disk: `<state-dir>/<daemon>.json`, `{"version":1,"entries":{"NAME":SPEC,...}}`.

use crate::{Error, Notices, instance::create_directory, realtime_ns};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const VERSION: u64 = 1;

/// Keeps named specs over a restart. A write replaces the whole file or nothing of it.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    notices: Notices,
}

/// What is needed to judge a file before its entries are looked at.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Document<E> {
    version: u64,
    entries: E,
}

impl StateFile {
    /// The state file of `daemon` in `dir`, which is created (mode 0750) when it is not there.
    pub fn open(dir: &Path, daemon: &str, notices: &Notices) -> Result<StateFile, Error> {
        create_directory(dir)?;
        Ok(StateFile {
            path: dir.join(format!("{daemon}.json")),
            notices: notices.clone(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entries; none when there is no file. A file that cannot be understood is moved aside with a notice, never
    /// overwritten; one of another version, or that cannot be read, is an error.
    pub fn load<S: DeserializeOwned>(&self) -> Result<BTreeMap<String, S>, Error> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(self.failed("read state file", source)),
        };
        match serde_json::from_slice::<Header>(&bytes) {
            Ok(header) if header.version != VERSION => {
                return Err(Error::StateVersion {
                    path: self.path.clone(),
                    version: header.version,
                });
            }
            Ok(_) => {}
            Err(error) => return self.move_aside(&error),
        }
        match serde_json::from_slice::<Document<BTreeMap<String, S>>>(&bytes) {
            Ok(document) => Ok(document.entries),
            Err(error) => self.move_aside(&error),
        }
    }

    /// Replaces the entries on disk. A failure (disk full, read-only) is logged and shown as a notice until a later
    /// write succeeds; the daemon goes on with what it has in memory. True when the entries are on disk.
    pub fn save<S: Serialize>(&self, entries: &BTreeMap<String, S>) -> bool {
        let temporary = self.path.with_extension("json.tmp");
        match self.write(&temporary, entries) {
            Ok(()) => {
                self.notices.clear("state");
                true
            }
            Err(error) => {
                // Free the space of a half-written file; it may not even exist.
                let _ = fs::remove_file(&temporary);
                tracing::error!(path = %self.path.display(), %error, "cannot save state");
                self.notices.set(
                    "state",
                    format!(
                        "state not saved: {}: {error}; what was changed since is lost at a restart, make room and change something again",
                        self.path.display()
                    ),
                );
                false
            }
        }
    }

    fn write<S: Serialize>(
        &self,
        temporary: &Path,
        entries: &BTreeMap<String, S>,
    ) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&Document {
            version: VERSION,
            entries,
        })?;
        bytes.push(b'\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn move_aside<S>(&self, why: &serde_json::Error) -> Result<BTreeMap<String, S>, Error> {
        let aside = self
            .path
            .with_extension(format!("json.corrupt-{}", realtime_ns()));
        fs::rename(&self.path, &aside)
            .map_err(|source| self.failed("move aside corrupt state file", source))?;
        tracing::error!(path = %self.path.display(), aside = %aside.display(), %why, "state file is corrupt, starting without it");
        self.notices.set(
            "state-corrupt",
            format!("the state file was corrupt ({why}) and is kept as {}; create what is missing again", aside.display()),
        );
        Ok(BTreeMap::new())
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io {
            operation,
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use std::io::Write;

    type Entries = BTreeMap<String, Vec<u32>>;

    fn entries(count: u32) -> Entries {
        (0..count).map(|n| (format!("n{n}"), vec![n; 64])).collect()
    }

    #[test]
    fn what_is_saved_is_loaded_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = StateFile::open(&dir.path().join("deep/state"), "testd", &Notices::default())
            .expect("open");
        assert!(file.load::<Vec<u32>>().expect("nothing yet").is_empty());
        assert!(file.save(&entries(3)));
        assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(3));
        assert!(file.save(&entries(1)));
        assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(1));
    }

    #[test]
    fn corrupt_file_is_moved_aside_with_a_notice() {
        for content in [
            "",
            "{",
            "\0\0\0\0",
            "{\"version\":1}",
            "{\"version\":1,\"entries\":{\"a\":\"text\"}}",
            "[]",
        ] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let notices = Notices::default();
            let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
            fs::write(file.path(), content).expect("write");
            assert!(file.load::<Vec<u32>>().expect("load").is_empty());
            assert_eq!(notices.list().len(), 1);
            let kept: Vec<_> = fs::read_dir(dir.path())
                .expect("list")
                .map(|e| e.expect("entry").path())
                .collect();
            assert_eq!(kept.len(), 1, "{kept:?}");
            assert_eq!(fs::read_to_string(&kept[0]).expect("read"), content);
        }
    }

    #[test]
    fn unknown_version_is_refused_and_left_in_place() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = StateFile::open(dir.path(), "testd", &Notices::default()).expect("open");
        fs::write(file.path(), "{\"version\":2,\"things\":[]}").expect("write");
        assert!(matches!(
            file.load::<Vec<u32>>(),
            Err(Error::StateVersion { version: 2, .. })
        ));
        assert!(file.path().exists());
    }

    #[test]
    fn full_disk_keeps_the_old_file_and_shows_a_notice_until_there_is_room() {
        let dir = tempfile::tempdir().expect("temporary directory");
        if let Err(errno) = mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=32k"),
        ) {
            assert!(
                std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some(),
                "a tmpfs needs root to mount ({errno}); set FLUXCAP_TEST_SKIP_ROOT=1 to skip such tests"
            );
            // Past the capture of the test harness: a skip must be seen.
            let _ = writeln!(std::io::stderr(), "skipped: full disk ({errno})");
            return;
        }
        let notices = Notices::default();
        let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
        assert!(file.save(&entries(2)));
        assert!(!file.save(&entries(1000)));
        assert!(
            notices.list().iter().any(|text| text.contains("not saved")),
            "{:?}",
            notices.list()
        );
        assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(2));
        assert!(file.save(&entries(3)));
        assert!(notices.list().is_empty());
        umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmount");
    }
}
