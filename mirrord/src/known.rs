//! Which links a mirror has at interfaces, noted outside of the bpffs.
//!
//! When another bpffs is mounted over the path, the names that an earlier life has given are not found, and its programs go on: others beside them
//! would make each copy twice. So a link is noted before it gets its name, in the run directory: a reboot empties that, as it does the kernel.
//! `<run-dir>/mirrord.links/<mirror>` has a line `IFINDEX LINK` for each. Those that are gone are of no harm: the kernel is asked.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use fluxcap_socket::BpfLink;

use crate::error::{Error, errno};
use crate::program::Way;

/// Name of the folder.
const FOLDER: &str = "mirrord.links";

/// The notes of all mirrors, in the run directory.
pub(crate) fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join(FOLDER)
}

/// Mirrors that there are notes of.
pub(crate) fn mirrors(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.ends_with('~'))
        .collect()
}

/// The notes of one mirror.
#[derive(Debug)]
pub(crate) struct KnownLinks {
    file: PathBuf,
    /// Where the names of links are, as people call it.
    bpffs: PathBuf,
}

/// A link at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    ifindex: u32,
    link: u32,
}

impl KnownLinks {
    /// The notes of this mirror.
    pub(crate) fn new(folder: &Path, mirror: &str, bpffs: &Path) -> KnownLinks {
        KnownLinks {
            file: folder.join(mirror),
            bpffs: bpffs.to_owned(),
        }
    }

    /// Notes a link. Without notes a mirror works as well, as long as its pins are found.
    pub(crate) fn add(&self, ifindex: u32, link: u32) {
        let mut known = self.list();
        known.retain(|known| known.lives());
        known.push(Known { ifindex, link });
        if let Err(error) = self.write(&known) {
            tracing::warn!(path = %self.file.display(), %error, "cannot note a link");
        }
    }

    /// The link that this mirror has at a place, to be asked for when no name leads to it.
    ///
    /// # Errors
    /// [`Error::Hidden`]: it is there, and out of reach.
    pub(crate) fn find(&self, ifindex: u32, way: Way) -> Result<Option<BpfLink>, Error> {
        let known = self.list();
        if known.is_empty() {
            return Ok(None);
        }
        for found in at(ifindex, way)? {
            let link = found.id;
            if !known.contains(&Known { ifindex, link }) {
                continue;
            }
            match BpfLink::by_id(link) {
                // An identifier of another boot may be somebody else's link.
                Ok(opened) if is_named(found.program_id, way) => return Ok(Some(opened)),
                Ok(_) => {}
                Err(error) if errno(&error) == Some(libc::ENOENT) => {}
                Err(fluxcap_socket::Error::Permission { .. }) => {
                    let bpffs = self.bpffs.clone();
                    return Err(Error::Hidden { link, bpffs });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The links of these ways, wherever they are.
    ///
    /// # Errors
    /// [`Error::Hidden`]: one is out of reach.
    pub(crate) fn find_all(&self, ways: &[Way]) -> Result<Vec<BpfLink>, Error> {
        let mut links = Vec::new();
        for Known { ifindex, .. } in self.list() {
            for way in ways {
                links.extend(self.find(ifindex, *way)?);
            }
        }
        Ok(links)
    }

    /// Takes off whatever this mirror still has anywhere, and forgets it.
    ///
    /// # Errors
    /// [`Error::Hidden`]: something is out of reach, and stays noted.
    pub(crate) fn detach_all(&self) -> Result<(), Error> {
        for link in self.find_all(&Way::ALL)? {
            // Another one of the list may be the same.
            let _ = link.detach();
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::pin("remove", self.file.clone(), error))
            }
            _ => Ok(()),
        }
    }

    fn list(&self) -> Vec<Known> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter_map(Known::parse).collect()
    }

    /// All or nothing of it is there, whenever this process is killed.
    fn write(&self, known: &[Known]) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            // Whoever could write there could keep a mirror from beginning.
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder)?;
        }
        let lines = known.iter().map(|k| format!("{} {}\n", k.ifindex, k.link));
        let mut next = self.file.clone().into_os_string();
        next.push("~");
        fs::write(&next, lines.collect::<String>())?;
        fs::rename(&next, &self.file)
    }
}

impl Known {
    fn parse(line: &str) -> Option<Known> {
        let (ifindex, link) = line.split_once(' ')?;
        Some(Known {
            ifindex: ifindex.parse().ok()?,
            link: link.parse().ok()?,
        })
    }

    fn lives(self) -> bool {
        let is_there =
            |way| at(self.ifindex, way).is_ok_and(|all| all.iter().any(|it| it.id == self.link));
        Way::ALL.into_iter().any(is_there)
    }
}

/// What is attached there; nothing by a kernel without TCX, or where there is no such interface.
fn at(ifindex: u32, way: Way) -> Result<Vec<fluxcap_socket::BpfLinkInfo>, Error> {
    match BpfLink::attached(ifindex, way.tcx()) {
        Err(error) if matches!(errno(&error), Some(libc::EINVAL | libc::ENODEV)) => Ok(Vec::new()),
        done => Ok(done?),
    }
}

/// Whether a program has the name that ours has.
fn is_named(program_id: u32, way: Way) -> bool {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == program_id)
        .is_some_and(|program| program.name() == way.name().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written_and_nonsense_is_passed_over() {
        let folder = std::env::temp_dir().join(format!("flux-known-{}", std::process::id()));
        let known = KnownLinks::new(&folder, "a.b", Path::new("/nowhere"));
        assert_eq!(known.list(), []);
        let all = [(3, 17), (4_000_000_000, 1)].map(|(ifindex, link)| Known { ifindex, link });
        known.write(&all).expect("write");
        assert_eq!(known.list(), all);
        fs::write(&known.file, "3 17\n\n3\n-1 4\n5 x\n6 7 8\n9 10\n").expect("write");
        let sound = [(3, 17), (9, 10)].map(|(ifindex, link)| Known { ifindex, link });
        assert_eq!(known.list(), sound);
        assert_eq!(mirrors(&folder), ["a.b"]);
        known.detach_all().expect("there is no such link");
        assert!(mirrors(&folder).is_empty());
        fs::remove_dir(&folder).expect("it is empty");
    }
}
