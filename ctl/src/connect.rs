//! The options that every command takes, and connections to the daemons.

use crate::exit::{Code, Failure};
use crate::output::Format;
use clap::Args;
use fluxcap_ring::RingDir;
use fluxcap_service::{LogFormat, ServiceArgs, parse_duration, socket_path};
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Where daemons have their sockets, unless they are told otherwise.
const RUN_DIR: &str = "/run/fluxcap";

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Globals {
    /// Output for people (table) or programs: one JSON value (json), or one on each line (jsonl); errors on standard error follow
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, hide_possible_values = true, value_name = "table|json|jsonl")]
    pub(crate) output: Format,

    /// The same as --output json
    #[arg(long, short, global = true, conflicts_with = "output")]
    pub(crate) json: bool,

    /// Show everything about what is listed, added or changed
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,

    /// Say nothing of what was added, changed or deleted, and give no warnings; errors are still told
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Directory of the daemons' sockets
    #[arg(
        long,
        global = true,
        env = "FLUXCAP_RUN_DIR",
        default_value = RUN_DIR,
        value_name = "DIR",
        hide_env_values = true
    )]
    pub(crate) run_dir: PathBuf,

    /// Directory of the rings [default: /ram if that is a ramfs or tmpfs, else /run/fluxcap/rings]
    #[arg(
        long,
        global = true,
        env = "FLUXCAP_RING_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    ring_dir: Option<PathBuf>,

    /// Longest time to wait for a daemon's answer [default: 5s; 30 min where a ring is made]
    #[arg(long, global = true, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,

    /// How long the answers of this command may take, unless the user says.
    #[arg(skip = TIMEOUT)]
    pub(crate) patience: Duration,
}

/// How long a daemon may take to be connected to, and for most answers.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Globals {
    /// Where the rings are.
    pub(crate) fn rings(&self) -> RingDir {
        // The daemons' own rule: they and fluxctl must look in the same place.
        let service = ServiceArgs {
            run_dir: self.run_dir.clone(),
            ring_dir: self.ring_dir.clone(),
            state_dir: PathBuf::new(),
            ephemeral: true,
            log_level: String::new(),
            log_format: LogFormat::Text,
        };
        RingDir::new(service.ring_dir())
    }

    /// The same, with so much time for answers unless the user says how long.
    pub(crate) fn patient(&self, patience: Duration) -> Globals {
        Globals {
            patience,
            ..self.clone()
        }
    }

    /// Where daemons keep their work, when that is known: another run directory than the usual one may have another one beside it.
    pub(crate) fn state_dir(&self) -> Option<PathBuf> {
        self.place("FLUXCAP_STATE_DIR", "/var/lib/fluxcap")
    }

    /// Where mirrord keeps its programs, when that is known.
    pub(crate) fn bpffs(&self) -> Option<PathBuf> {
        self.place("FLUXCAP_BPFFS", "/sys/fs/bpf/fluxcap")
    }

    fn place(&self, variable: &str, usual: &str) -> Option<PathBuf> {
        let given = std::env::var_os(variable).map(PathBuf::from);
        given.or_else(|| (self.run_dir == Path::new(RUN_DIR)).then(|| usual.into()))
    }

    /// The socket of a daemon.
    pub(crate) fn socket(&self, daemon: &str) -> PathBuf {
        socket_path(&self.run_dir, daemon)
    }

    /// Connects to a daemon.
    pub(crate) async fn connect(&self, daemon: &str) -> Result<Channel, Failure> {
        let socket = self.socket(daemon);
        let path = std::path::absolute(&socket).unwrap_or_else(|_| socket.clone());
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display()))
            .map_err(|error| {
                Failure::new(
                    Code::Usage,
                    format!("--run-dir {}: {error}", self.run_dir.display()),
                )
            })?
            .connect_timeout(self.timeout.unwrap_or(TIMEOUT))
            .timeout(self.timeout.unwrap_or(self.patience));
        let longest = self.timeout.unwrap_or(TIMEOUT);
        match tokio::time::timeout(longest, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(unreachable(daemon, &socket, io_cause(&error))),
            Err(_) => Err(unreachable(daemon, &socket, Some(io::ErrorKind::TimedOut))),
        }
    }
}

/// Whether there is a socket. One that may not be looked at is there.
pub(crate) fn is_there(socket: &Path) -> bool {
    let looked = socket.symlink_metadata();
    !looked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Runs the client side of a command: one thread is enough.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::from_io("start the async runtime", &error))?
        .block_on(work)
}

/// What to do when a socket may not be used.
pub(crate) const JOIN_GROUP: &str = "become root, or join the group that owns the socket";

/// The system call error at the bottom of a connection error.
fn io_cause(error: &tonic::transport::Error) -> Option<io::ErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

fn unreachable(daemon: &str, socket: &Path, cause: Option<io::ErrorKind>) -> Failure {
    let (code, why) = match cause {
        Some(io::ErrorKind::NotFound) => (Code::Unreachable, "does not exist"),
        Some(io::ErrorKind::ConnectionRefused) => {
            (Code::Unreachable, "is there, but nobody listens on it")
        }
        Some(io::ErrorKind::PermissionDenied) => (Code::Denied, "may not be used by this user"),
        Some(io::ErrorKind::TimedOut) => (Code::Unreachable, "does not answer in time"),
        _ => (Code::Unreachable, "cannot be connected to"),
    };
    let hint = match code {
        Code::Denied => JOIN_GROUP.to_owned(),
        _ => format!(
            "start it: systemctl start fluxcap-{daemon}, or {daemon} by hand; \
             if it runs with another --run-dir, give that one here or in FLUXCAP_RUN_DIR"
        ),
    };
    Failure::new(
        code,
        format!("{daemon} is not reachable: {} {why}", socket.display()),
    )
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_daemon_is_named_with_its_socket_and_its_unit() {
        let failure = unreachable(
            "rxd",
            Path::new("/run/fluxcap/rxd.sock"),
            Some(io::ErrorKind::NotFound),
        );
        assert_eq!(failure.code, Code::Unreachable);
        assert!(
            failure
                .message
                .contains("/run/fluxcap/rxd.sock does not exist"),
            "{}",
            failure.message
        );
        assert!(failure.hint.contains("fluxcap-rxd"), "{}", failure.hint);
    }

    #[test]
    fn a_socket_that_cannot_be_looked_at_may_be_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let missing = Path::new("/nonexistent/rxd.sock");
        assert!(!is_there(missing));
        assert!(is_there(&file.path().join("rxd.sock")));
        assert!(is_there(file.path()));
    }

    #[test]
    fn a_forbidden_socket_is_a_matter_of_permission() {
        let failure = unreachable(
            "rxd",
            Path::new("/x"),
            Some(io::ErrorKind::PermissionDenied),
        );
        assert_eq!(failure.code, Code::Denied);
    }
}
