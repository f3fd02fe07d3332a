//! Whose the programs are that are pinned: several mirrords may share a bpffs, each with a state directory of its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::program::hash;

/// The number of a state directory, wherever it is mounted; 0 when there is none.
pub(crate) fn owner(state_dir: &Path) -> u64 {
    fs::metadata(state_dir).map_or(0, |about| {
        hash(format!("{}:{}", about.dev(), about.ino()).as_bytes()).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_told_apart() {
        let here = std::env::temp_dir();
        assert_eq!(owner(&here), owner(&here.join(".")));
        assert_ne!(owner(&here), owner(Path::new("/proc")));
        assert_eq!(owner(&here.join("there-is-no-such-directory")), 0);
    }
}
