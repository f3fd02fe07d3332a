//! Why an interface is not prepared.

use std::io;
use std::path::PathBuf;

/// A failed call. [`Error::advice`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such interface here.
    #[error("there is no interface {name} in this network namespace")]
    NoInterface {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// It is not for this, or not now. Nothing was changed.
    #[error("{interface} is not prepared: {why}")]
    Refused {
        /// Its name.
        interface: String,
        /// What is in the way.
        why: String,
        /// What to do.
        advice: String,
    },
    /// No place where an XDP program stays.
    #[error("there is no bpffs at {path}, where the XDP program would stay")]
    NoBpffs {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file or directory that is not ours alone, or not what it should be.
    #[error("{path} is not used: {why}")]
    Distrust {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refused something with a file.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something with the interface.
    #[error("{interface}: {}", chain(source))]
    Kernel {
        /// Its name.
        interface: String,
        /// What it says.
        #[source]
        source: fluxcap_socket::Error,
    },
}

impl Error {
    /// What to do; empty when there is nothing to be said.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Error::Refused { advice, .. } => advice.clone(),
            Error::NoBpffs { .. } => {
                "mount -t bpf bpf /sys/fs/bpf; for a container or a namespace, run this on the host: nsenter --net=/proc/PID/ns/net fluxctl output prepare IFACE"
                    .to_owned()
            }
            Error::Distrust { .. } => "remove it, or give another --run-dir or --bpffs".to_owned(),
            Error::File { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                "this is read-only here: for a container, run this on the host: nsenter --net=/proc/PID/ns/net fluxctl output prepare IFACE"
                    .to_owned()
            }
            error if error.is_denied() => {
                "become root, or have CAP_NET_ADMIN and CAP_BPF".to_owned()
            }
            _ => String::new(),
        }
    }

    /// Whether the caller lacks the right.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Error::File { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Error::Kernel { source, .. } => {
                matches!(source, fluxcap_socket::Error::Permission { .. })
            }
            _ => false,
        }
    }

    pub(crate) fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::File {
            operation,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn kernel(interface: &str) -> impl FnOnce(fluxcap_socket::Error) -> Error {
        let interface = interface.to_owned();
        move |source| Error::Kernel { interface, source }
    }
}

/// An error with what the system says; a missing capability is cause enough.
fn chain(error: &fluxcap_socket::Error) -> String {
    let cause = std::error::Error::source(error);
    match cause.filter(|_| !matches!(error, fluxcap_socket::Error::Permission { .. })) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
