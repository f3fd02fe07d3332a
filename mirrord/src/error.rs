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
    /// Capabilities are there, and something else is in the way.
    #[error(
        "may not {operation}, although mirrord has CAP_BPF and CAP_NET_ADMIN: {who} forbids bpf(2)"
    )]
    Forbidden {
        /// What was tried.
        operation: &'static str,
        /// What forbids it, and what to do.
        who: &'static str,
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
        if let Some(who) = errno(&error).and_then(forbidden) {
            return Error::Forbidden { operation, who };
        }
        Error::Kernel {
            operation,
            detail: without_log(operation, &chain(&error)),
        }
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
                match (denied(libc::EPERM), forbidden(libc::EPERM)) {
                    (Some(missing), _) => Error::Capability { operation, missing },
                    (None, Some(who)) => Error::Forbidden { operation, who },
                    (None, None) => self,
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
/// What the loader puts in front of the verifier's log.
const LOG: &str = "Verifier output:";

/// What the kernel says, without what its verifier tells of all that it did: that is for those who made the program, and goes to the log.
fn without_log(operation: &str, text: &str) -> String {
    let (told, log) = text.split_once(LOG).unwrap_or((text, ""));
    if !log.trim().is_empty() {
        tracing::error!(operation, "the verifier refuses a program:{log}");
    }
    let mut told = told.trim().trim_end_matches('.').to_owned();
    if let Some((at, _)) = told.char_indices().nth(TOLD) {
        told.replace_range(at.., "...");
    }
    match log.trim().is_empty() {
        true => told,
        false => format!(
            "{told}; this is a fault of fluxcap's: please report it with what mirrord has just logged (journalctl -u fluxcap-mirrord)"
        ),
    }
}

/// What forbids bpf(2) to a thread that has all capabilities for it; nothing if the errno does not come from that.
fn forbidden(code: i32) -> Option<&'static str> {
    let have = capabilities(None).ok()?.effective;
    if !matches!(code, libc::EPERM | libc::ENOSYS)
        || !have.contains(CapabilitySet::BPF | CapabilitySet::NET_ADMIN)
    {
        return None;
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Some(who_forbids(
        &read("/proc/self/uid_map"),
        &read("/proc/thread-self/status"),
    ))
}

/// Finds it by the users that there are here (`/proc/self/uid_map`), and by what the thread is told of its filter (`/proc/self/status`).
fn who_forbids(uid_map: &str, status: &str) -> &'static str {
    let all_users: Vec<&str> = uid_map.split_whitespace().collect();
    if !all_users.is_empty() && all_users != ["0", "0", "4294967295"] {
        return "the kernel, for which capabilities in a user namespace do not count (run the container without one, with --userns=host for instance),";
    }
    let filtered = |line: &str| {
        line.strip_prefix("Seccomp:")
            .is_some_and(|mode| mode.trim() == "2")
    };
    if status.lines().any(filtered) {
        return "a system call filter (seccomp: SystemCallFilter=bpf in a unit, --security-opt seccomp=FILE for a container)";
    }
    "a security profile (AppArmor, SELinux, lockdown; see the kernel's log)"
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_verifier_did_is_not_told_to_users() {
        let told = without_log(
            "load",
            "the BPF_PROG_LOAD syscall returned Permission denied (os error 13). Verifier output: 0: R1=ctx() R10=fp0\n1: (b7) r0 = 0",
        );
        assert!(
            told.contains("Permission denied") && told.contains("journalctl"),
            "{told}"
        );
        assert!(!told.contains("R10"), "{told}");
        assert_eq!(without_log("load", "no space"), "no space");
    }

    #[test]
    fn whoever_forbids_is_named() {
        let whole = "         0          0 4294967295\n";
        assert!(who_forbids(whole, "Seccomp:\t2\n").contains("seccomp"));
        assert!(who_forbids(whole, "Seccomp:\t0\n").contains("AppArmor"));
        assert!(who_forbids("0 100000 65536\n", "Seccomp:\t2\n").contains("user namespace"));
    }
}
