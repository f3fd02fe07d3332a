//! Options that every daemon has.

use crate::logging;
use clap::{Args, ValueEnum};
use rustix::fs::{stat, statfs};
use std::path::{Path, PathBuf};

const RAMFS_MAGIC: i64 = 0x8584_58f6;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Units give each daemon a directory in it.
const STATE_DIR: &str = "/var/lib/fluxcap";

/// What a variable of the environment says, as the default of an option; nothing when it is empty. clap's own `env` takes an option for
/// given when its variable is set, and shows it in the usage line of each error.
pub fn from_env(variable: &str) -> Option<&'static str> {
    let value = std::env::var(variable).ok()?;
    // Once for each command line that is read: that is once.
    (!value.is_empty()).then(|| &*value.leak())
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Options that every daemon has: directories and logging.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Service options")]
pub struct ServiceArgs {
    /// Directory of the control sockets [env: FLUXCAP_RUN_DIR] [default: /run/fluxcap]
    #[arg(
        long,
        value_name = "DIR",
        default_value = from_env("FLUXCAP_RUN_DIR").unwrap_or("/run/fluxcap"),
        hide_default_value = true
    )]
    pub run_dir: PathBuf,
    /// Directory of the rings [env: FLUXCAP_RING_DIR] [default: /ram if that is a ramfs or tmpfs, else /run/fluxcap/rings]
    #[arg(
        long = "ring-dir",
        value_name = "DIR",
        default_value = from_env("FLUXCAP_RING_DIR"),
        hide_default_value = true
    )]
    pub ring_dir: Option<PathBuf>,
    /// Directory where specs are kept over a restart [env: FLUXCAP_STATE_DIR] [default: /var/lib/fluxcap/ and the daemon's name]
    #[arg(
        long,
        value_name = "DIR",
        default_value = from_env("FLUXCAP_STATE_DIR").unwrap_or(STATE_DIR),
        hide_default_value = true
    )]
    pub state_dir: PathBuf,
    /// Keep nothing over a restart
    #[arg(long)]
    pub ephemeral: bool,
    /// Least important level that is logged: error, warn, info, debug or trace [env: FLUXCAP_LOG] [default: info]
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = from_env("FLUXCAP_LOG").unwrap_or("info"),
        hide_default_value = true,
        value_parser = logging::level
    )]
    pub log_level: String,
    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl ServiceArgs {
    /// Where a daemon keeps its state: `--state-dir`; when that is left out, where its unit keeps it too.
    pub fn state_dir(&self, daemon: &str) -> PathBuf {
        match self.state_dir == Path::new(STATE_DIR) {
            true => self.state_dir.join(daemon),
            false => self.state_dir.clone(),
        }
    }

    /// The directory of the rings: `--ring-dir`, else `/ram` when it is a ramfs or tmpfs mount, else `/run/fluxcap/rings`.
    pub fn ring_dir(&self) -> PathBuf {
        match &self.ring_dir {
            Some(dir) => dir.clone(),
            None if is_memory_mount(Path::new("/ram")) => PathBuf::from("/ram"),
            None => PathBuf::from("/run/fluxcap/rings"),
        }
    }
}

/// True when a ramfs or tmpfs is mounted exactly at `path`, not somewhere above it.
fn is_memory_mount(path: &Path) -> bool {
    let in_memory = statfs(path).is_ok_and(|fs| [RAMFS_MAGIC, TMPFS_MAGIC].contains(&fs.f_type));
    let parent = path.parent().unwrap_or(path);
    in_memory
        && matches!((stat(path), stat(parent)), (Ok(own), Ok(above)) if own.st_dev != above.st_dev)
}

/// Control socket of a daemon.
pub fn socket_path(run_dir: &Path, daemon: &str) -> PathBuf {
    run_dir.join(format!("{daemon}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_dir_given_wins() {
        let args = crate::daemon::tests::args(Path::new("/tmp/x"));
        assert_eq!(args.ring_dir(), Path::new("/tmp/x/rings"));
    }

    #[test]
    fn a_directory_inside_a_memory_file_system_is_no_mount() {
        assert!(is_memory_mount(Path::new("/dev/shm")) || !Path::new("/dev/shm").exists());
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(!is_memory_mount(dir.path()));
        assert!(!is_memory_mount(Path::new("/does/not/exist")));
    }
}
