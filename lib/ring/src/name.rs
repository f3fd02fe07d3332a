//! Names of rings and the places where they live.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, IoContext};
use crate::files::Pair;

/// Longest name in bytes, a `shm:` included.
const NAME_MAX: usize = 63;
/// Directory of POSIX shared-memory objects, see shm_overview(7).
const SHM_DIR: &str = "/dev/shm";
/// What the objects of shm rings are called: `/dev/shm/fluxcap.NAME`.
const SHM_PREFIX: &str = "fluxcap.";
/// Between the name of a ring and an earlier epoch in the names of hidden files.
const EARLIER: char = '~';
/// How the names of readers files end.
const READERS_SUFFIX: &str = ".readers";

/// The checked name of a ring: 1 to 63 of `A-Z a-z 0-9 _ . -`, of which the first is a letter or digit and the end is not
/// `.readers`, a file in the ring directory; or `shm:` and such a name, 63 bytes together, an object of POSIX shared memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingName(String);

impl RingName {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// [`Error::InvalidName`] when the text is no ring name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bare = text.strip_prefix("shm:").unwrap_or(text);
        let legal = |b: u8| b.is_ascii_alphanumeric();
        let valid = text.len() <= NAME_MAX
            && bare.bytes().next().is_some_and(legal)
            && bare.bytes().all(|b| legal(b) || b"_.-".contains(&b))
            // The names of our own files.
            && !bare.ends_with(READERS_SUFFIX);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::InvalidName {
                name: text.to_owned(),
            })
        }
    }

    /// The name as it was given, `shm:` included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the ring is an object of POSIX shared memory.
    pub fn is_shm(&self) -> bool {
        self.0.starts_with("shm:")
    }

    /// The name without `shm:`.
    pub(crate) fn bare(&self) -> &str {
        self.0.strip_prefix("shm:").unwrap_or(&self.0)
    }
}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RingName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// What kind of memory holds a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backing {
    /// ramfs: never swapped, no size limit of its own.
    Ramfs,
    /// tmpfs: may be swapped out, limited by the mount's `size=`.
    Tmpfs,
    /// hugetlbfs: huge pages set aside by the administrator.
    Hugetlbfs,
    /// POSIX shared memory, `shm:NAME`.
    Shm,
    /// Any other file system, e.g. a disk: works, but the kernel writes it back.
    Other,
}

impl Backing {
    /// The name used in output: `ramfs`, `tmpfs`, `hugetlbfs`, `shm` or `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ramfs => "ramfs",
            Self::Tmpfs => "tmpfs",
            Self::Hugetlbfs => "hugetlbfs",
            Self::Shm => "shm",
            Self::Other => "other",
        }
    }

    /// Recognises a file system by its magic number, see statfs(2).
    pub(crate) fn from_magic(f_type: i64) -> Self {
        match f_type {
            0x8584_58f6 => Self::Ramfs,
            0x0102_1994 => Self::Tmpfs,
            0x9584_58f6 => Self::Hugetlbfs,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The directory whose files are rings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingDir {
    path: PathBuf,
}

impl RingDir {
    /// Names the directory; it is not touched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file system the directory is on.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory does not exist or cannot be examined.
    pub fn backing(&self) -> Result<Backing, Error> {
        let stat = rustix::fs::statfs(&self.path).at("examine the file system of", &self.path)?;
        Ok(Backing::from_magic(stat.f_type))
    }

    /// A number by which a ring is told from all others of the host, the same in each process and container that has the directory,
    /// wherever that is mounted. It is the name's, so it stays when the ring is replaced.
    pub fn fingerprint(&self, name: &RingName) -> u64 {
        let place = self.place(name);
        let mut hash = match rustix::fs::stat(place) {
            Ok(stat) => fnv(
                fnv(FNV_BASIS, &stat.st_dev.to_ne_bytes()),
                &stat.st_ino.to_ne_bytes(),
            ),
            // Without a directory there is no ring either.
            Err(_) => fnv(FNV_BASIS, place.as_os_str().as_encoded_bytes()),
        };
        hash = fnv(hash, name.bare().as_bytes());
        // The last bytes have not reached all bits yet.
        hash ^ hash >> 32
    }

    /// The names of all rings, sorted: those in this directory, then those in POSIX shared memory.
    ///
    /// Files that are no rings are left out. A directory that does not exist holds no rings.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be read.
    pub fn list(&self) -> Result<Vec<RingName>, Error> {
        let mut names = Vec::new();
        for entry in entries(&self.path)? {
            if let Ok(name) = RingName::parse(&entry)
                && !name.is_shm()
                && crate::layout::has_magic(&self.data_path(&name))
            {
                names.push(name);
            }
        }
        for entry in entries(Path::new(SHM_DIR))? {
            let Some(bare) = entry.strip_prefix(SHM_PREFIX) else {
                continue;
            };
            if let Ok(name) = RingName::parse(&format!("shm:{bare}"))
                && crate::layout::has_magic(&self.data_path(&name))
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where the files of `name` live: this directory or that of POSIX shared memory.
    pub(crate) fn place(&self, name: &RingName) -> &Path {
        if name.is_shm() {
            Path::new(SHM_DIR)
        } else {
            &self.path
        }
    }

    /// The file with header, index and data of `name`.
    pub(crate) fn data_path(&self, name: &RingName) -> PathBuf {
        if name.is_shm() {
            Path::new(SHM_DIR).join(format!("{SHM_PREFIX}{}", name.bare()))
        } else {
            self.path.join(name.bare())
        }
    }

    /// The two files that have the name.
    pub(crate) fn pair(&self, name: &RingName) -> Pair {
        Pair {
            name: name.clone(),
            place: self.place(name).to_owned(),
            data: self.data_path(name),
            readers: self.readers_path(name),
        }
    }

    /// The two files of an earlier epoch: hidden, with a sign that no ring's name has.
    pub(crate) fn earlier_pair(&self, name: &RingName, epoch: u64) -> Pair {
        let place = self.place(name);
        let data = format!("{}{epoch}", earlier_stem(name));
        Pair {
            name: name.clone(),
            place: place.to_owned(),
            readers: place.join(format!("{data}{READERS_SUFFIX}")),
            data: place.join(data),
        }
    }

    /// The file that is there while `name` is being made.
    pub(crate) fn announcement_path(&self, name: &RingName) -> PathBuf {
        self.place(name)
            .join(format!("{}making", earlier_stem(name)))
    }

    /// The earlier epochs of `name` by the names of files, oldest first. A directory that cannot be read has none.
    pub(crate) fn earlier_epochs(&self, name: &RingName) -> Vec<u64> {
        let stem = earlier_stem(name);
        let epoch = |entry: String| {
            let rest = entry.strip_prefix(&stem)?;
            let digits = rest.strip_suffix(READERS_SUFFIX).unwrap_or(rest);
            let epoch: u64 = digits.parse().ok()?;
            (epoch.to_string() == digits).then_some(epoch)
        };
        let entries = entries(self.place(name)).unwrap_or_default();
        let mut epochs: Vec<u64> = entries.into_iter().filter_map(epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        epochs
    }

    /// The rings that have earlier epochs, whether or not there is a ring of that name now.
    pub(crate) fn with_earlier_epochs(&self) -> Vec<RingName> {
        let bare = |entry: &String| {
            let (bare, epoch) = entry.strip_prefix('.')?.rsplit_once(EARLIER)?;
            let epoch = epoch.strip_suffix(READERS_SUFFIX).unwrap_or(epoch);
            epoch.parse::<u64>().is_ok().then(|| bare.to_owned())
        };
        let here = entries(&self.path).unwrap_or_default();
        let here = here.iter().filter_map(bare);
        let shm = entries(Path::new(SHM_DIR)).unwrap_or_default();
        let shm = shm.iter().filter_map(bare);
        let shm = shm.filter_map(|bare| Some(format!("shm:{}", bare.strip_prefix(SHM_PREFIX)?)));
        let names = here
            .chain(shm)
            .filter_map(|name| RingName::parse(&name).ok());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The file with the consumer slots of `name`.
    pub(crate) fn readers_path(&self, name: &RingName) -> PathBuf {
        if name.is_shm() {
            Path::new(SHM_DIR).join(format!("{SHM_PREFIX}{}.readers", name.bare()))
        } else {
            self.path.join(format!(".{}.readers", name.bare()))
        }
    }
}

/// How the names of the files of earlier epochs begin.
fn earlier_stem(name: &RingName) -> String {
    let prefix = if name.is_shm() { SHM_PREFIX } else { "" };
    format!(".{prefix}{}{EARLIER}", name.bare())
}

/// FNV-1a.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// The file names in `dir`; none when it does not exist.
fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).at("list", dir),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.at("list", dir)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        let most = "x".repeat(63);
        let most_shm = format!("shm:{}", "x".repeat(59));
        for good in [
            "a",
            "0",
            "cisco",
            "shm:dell-2",
            "a_b-c",
            "Core.East",
            "eth1.5",
            &most,
            &most_shm,
        ] {
            assert_eq!(RingName::parse(good).expect(good).as_str(), good);
        }
        let long = "x".repeat(64);
        let long_shm = format!("shm:{}", "x".repeat(60));
        for bad in [
            "",
            "shm:",
            "-a",
            "_a",
            ".a",
            "a.readers",
            "a~1",
            "a/b",
            "..",
            "shm:shm:a",
            "ä",
            &long,
            &long_shm,
        ] {
            assert!(RingName::parse(bad).is_err(), "{bad}");
        }
    }
}
