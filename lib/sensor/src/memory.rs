//! What an interface was like before it was prepared: `<run-dir>/outputs/NAMESPACE-INDEX.json`.
//!
//! The run directory belongs to a group. So the directory in it and the files are looked at before they are believed: they must be the
//! caller's own, and nobody else's to write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fluxcap_socket::{Link, namespace_cookie};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::settings::Settings;

const VERSION: u32 = 1;
/// Ours have some hundred bytes.
const LONGEST: u64 = 64 << 10;

/// Which interface, as no other one is called before the next boot: by its network namespace and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    namespace: u64,
    pub(crate) ifindex: u32,
}

impl Identity {
    pub(crate) fn of(ifindex: u32) -> Result<Identity, Error> {
        Ok(Identity {
            namespace: namespace()?,
            ifindex,
        })
    }

    /// As a name of files and pins, which may have no dots.
    pub(crate) fn as_name(self) -> String {
        format!("{:x}-{}", self.namespace, self.ifindex)
    }

    /// From the name of a file, if it is of this network namespace.
    fn parse(name: &str) -> Result<Option<Identity>, Error> {
        let parts = name
            .strip_suffix(".json")
            .and_then(|name| name.split_once('-'));
        let Some((number, index)) = parts else {
            return Ok(None);
        };
        let namespace = namespace()?;
        let found = u64::from_str_radix(number, 16).ok().zip(index.parse().ok());
        let found = found.filter(|(number, _)| *number == namespace);
        Ok(found.map(|(namespace, ifindex)| Identity { namespace, ifindex }))
    }
}

/// The number of this network namespace; before Linux 5.14 that of its file, which another one can get when this one is gone.
fn namespace() -> Result<u64, Error> {
    const FILE: &str = "/proc/thread-self/ns/net";
    match namespace_cookie() {
        Some(cookie) => Ok(cookie),
        None => fs::metadata(FILE)
            .map(|file| file.ino())
            .map_err(Error::file("look at", FILE)),
    }
}

/// What an interface was like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    version: u32,
    /// The boot in which that was.
    boot: String,
    /// When that was: CLOCK_REALTIME, seconds since 1970.
    #[serde(default)]
    at: u64,
    /// Its name then, for people.
    name: String,
    mac: [u8; 6],
    /// A program was attached, or was going to be.
    pub(crate) program: bool,
    pub(crate) settings: Settings,
}

impl Before {
    pub(crate) fn new(link: &Link, settings: Settings) -> Before {
        Before {
            version: VERSION,
            boot: boot(),
            at: realtime(),
            name: link.name.clone(),
            mac: link.mac,
            program: false,
            settings,
        }
    }

    /// A container's systemd hides the number of the boot behind one of its own, but not from units with a /proc of theirs. So what was noted
    /// since the machine started is of this boot, too.
    fn is_of_this_boot(&self) -> bool {
        self.boot == boot() || uptime().is_some_and(|up| self.at > realtime().saturating_sub(up))
    }

    /// Whether it is about this interface.
    fn is_about(&self, link: &Link) -> bool {
        self.version == VERSION && self.is_of_this_boot() && self.mac == link.mac
    }
}

/// Where the files are.
#[derive(Debug)]
pub(crate) struct Memory {
    dir: PathBuf,
}

impl Memory {
    pub(crate) fn new(run_dir: &Path) -> Memory {
        Memory {
            dir: run_dir.join("outputs"),
        }
    }

    /// What is known of an interface; nothing of one that only has the place of another.
    pub(crate) fn load(&self, identity: Identity, link: &Link) -> Result<Option<Before>, Error> {
        let Some(file) = self.read(&self.path(identity))? else {
            return Ok(None);
        };
        Ok(file.filter(|before| before.is_about(link)))
    }

    /// Interfaces of this network namespace of which something is known.
    pub(crate) fn list(&self) -> Result<Vec<Identity>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("list", &self.dir)(error)),
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            found.extend(Identity::parse(&name.to_string_lossy())?);
        }
        found.sort_by_key(|identity| identity.ifindex);
        Ok(found)
    }

    /// Remembers, before anything is changed.
    pub(crate) fn save(&self, identity: Identity, before: &Before) -> Result<(), Error> {
        self.make_dir()?;
        let (path, fresh) = (self.path(identity), self.dir.join("new"));
        let failed = |operation| Error::file(operation, &fresh);
        let text = serde_json::to_vec_pretty(before)
            .map_err(|error| failed("write")(io::Error::from(error)))?;
        // What a killed process has left there.
        self.remove(&fresh)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&fresh);
        let mut file = file.map_err(|error| failed("make")(error))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed("write")(error))?;
        fs::rename(&fresh, &path).map_err(Error::file("write", &path))
    }

    pub(crate) fn forget(&self, identity: Identity) -> Result<(), Error> {
        self.remove(&self.path(identity))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, identity: Identity) -> PathBuf {
        self.dir.join(identity.as_name() + ".json")
    }

    fn make_dir(&self) -> Result<(), Error> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.dir);
        made.map_err(Error::file("make the directory", &self.dir))?;
        let seen = fs::symlink_metadata(&self.dir).map_err(Error::file("look at", &self.dir))?;
        match seen.is_dir() {
            true => own(&self.dir, &seen),
            false => Err(distrust(&self.dir, "it is no directory")),
        }
    }

    /// The content of a file; `Some(None)` when it makes no sense.
    fn read(&self, path: &Path) -> Result<Option<Option<Before>>, Error> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", path)(error)),
        };
        self.make_dir()?;
        let seen = file.metadata().map_err(Error::file("look at", path))?;
        own(path, &seen)?;
        if !seen.is_file() || seen.len() > LONGEST {
            return Err(distrust(path, "it is no file of this program"));
        }
        let text = read_bounded(&file).map_err(Error::file("read", path))?;
        Ok(Some(serde_json::from_slice(&text).ok()))
    }
}

fn read_bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// That it is the caller's own, and that nobody else may write to it.
pub(crate) fn own(path: &Path, seen: &fs::Metadata) -> Result<(), Error> {
    let caller = rustix::process::geteuid().as_raw();
    match (seen.uid() == caller, seen.mode() & 0o022) {
        (true, 0) => Ok(()),
        (false, _) => Err(distrust(
            path,
            &format!("it belongs to user {}", seen.uid()),
        )),
        (true, _) => Err(distrust(path, "others may write to it")),
    }
}

fn distrust(path: &Path, why: &str) -> Error {
    Error::Distrust {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

/// CLOCK_REALTIME in seconds since 1970.
fn realtime() -> u64 {
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    age.map_or(0, |age| age.as_secs())
}

/// Seconds since the machine started.
fn uptime() -> Option<u64> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    text.split('.').next()?.parse().ok()
}

/// The number of this boot; empty when the system does not tell.
fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}
