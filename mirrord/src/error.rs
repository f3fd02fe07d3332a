//! Why a mirror cannot be.

use std::io;
use std::path::PathBuf;

use fluxcap_service::Refusal;
use rustix::thread::{CapabilitySet, capabilities};

/// A failure to set up a mirror. What is missing may come: the mirror waits then and tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The folder for pins is somewhere else.
    #[error(
        "{} is not in a bpffs: mount -t bpf bpf /sys/fs/bpf, or name another folder by --bpffs", path.display()
    )]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused something about pins.
    #[error("cannot {operation} {}: {source}", path.display())]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// Which pin, or the folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Programs of an earlier life are attached, and their names are not found.
    #[error(
        "its program is attached already, by link {link}, of which {} knows nothing: unmount what was mounted over that and restart mirrord; or as root: bpftool link detach id {link}",
        bpffs.display()
    )]
    Hidden {
        /// Identifier of the link.
        link: u32,
        /// The folder.
        bpffs: PathBuf,
    },
    /// Capabilities are missing.
    #[error("no permission to {operation}: mirrord runs without {missing}")]
    Capability {
        /// What was tried.
        operation: &'static str,
        /// Those that are missing, in words.
        missing: String,
    },
    /// The kernel refused programs or maps.
    #[error("the kernel refuses to {operation}: {detail}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        detail: String,
    },
    /// A link, a filter, an interface.
    #[error("{}", chain(.0))]
    Socket(#[from] fluxcap_socket::Error),
    /// Rules that cannot be put into programs.
    #[error("{}", chain(.0))]
    Rules(#[from] crate::rules::Error),
    /// There is no such interface.
    #[error("interface {0} does not exist")]
    NoInterface(String),
    /// The interface cannot be mirrored like that.
    #[error("{0}")]
    Unsuitable(String),
}

impl Error {
    /// An error of the loader.
    pub(crate) fn kernel<E>(operation: &'static str, error: E) -> Error
    where
        E: std::error::Error + 'static,
    {
        if let Some(code) = errno(&error)
            && let Some(missing) = denied(code)
        {
            return Error::Capability { operation, missing };
        }
        let mut detail = chain(&error);
        // The verifier tells all that it did; what it has against the program stands at the end.
        if let Some((at, _)) = detail.char_indices().rev().nth(TOLD) {
            detail.replace_range(..at, "...");
        }
        Error::Kernel { operation, detail }
    }

    /// An error of a system call on a pin.
    pub(crate) fn pin(operation: &'static str, path: PathBuf, source: io::Error) -> Error {
        Error::Pin {
            operation,
            path,
            source,
        }
    }

    /// The same, saying which capability is missing if that is it.
    pub(crate) fn explained(self) -> Error {
        match &self {
            Error::Socket(fluxcap_socket::Error::Permission { operation, .. }) => {
                match denied(libc::EPERM) {
                    Some(missing) => Error::Capability { operation, missing },
                    None => self,
                }
            }
            _ => self,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Precondition(error.to_string())
    }
}

/// Characters that are told of what the kernel says.
const TOLD: usize = 600;

/// An error with all that is behind it, once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// The errno at the bottom of an error.
pub(crate) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        let system = error.downcast_ref::<io::Error>();
        if let Some(code) = system.and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// The capabilities that this thread has to have and has not, if the errno may come from that.
fn denied(code: i32) -> Option<String> {
    if !matches!(code, libc::EPERM | libc::EACCES) {
        return None;
    }
    let have = capabilities(None).ok()?.effective;
    let needed = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|(bit, _)| !have.contains(*bit))
        .map(|(_, name)| name)
        .collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}
