//! The independent tools that some tests ask: `../shared/kit`, or where `FLUXCAP_KIT` says.

use std::path::{Path, PathBuf};

use crate::netns::skipped;

/// The folder of the tools, if this one is there. None, and a line that begins with `skipped:`, when it is not.
#[must_use]
pub fn kit_or_skip(tool: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kit");
    let kit = std::env::var_os("FLUXCAP_KIT").map_or(here, PathBuf::from);
    if kit.join(tool).exists() {
        return Some(kit);
    }
    skipped("../shared/kit is not there");
    None
}
