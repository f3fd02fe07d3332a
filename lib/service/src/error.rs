//! What can go wrong: [`Error`] at the start of a daemon, [`Refusal`] as the answer to a client.

use std::{io, path::PathBuf};
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A failure of the shared parts of a daemon.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call on a file or directory failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, for instance "create directory".
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another instance holds the lock of this run directory.
    #[error(
        "{daemon} is already running{} in {}; stop it, or give this one its own --run-dir",
        holder.map(|pid| format!(" with pid {pid}")).unwrap_or_default(), run_dir.display()
    )]
    AlreadyRunning {
        /// Which daemon.
        daemon: String,
        /// Process that holds the lock, when it has written its number.
        holder: Option<u32>,
        /// Where.
        run_dir: PathBuf,
    },
    /// Text that is no size in bytes.
    #[error("\"{text}\" is not a size: {reason}")]
    Size {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Text that is no duration.
    #[error(
        "\"{text}\" is not a duration: write a number and a unit, for instance 500us, 10ms, 2s or 1m, or seconds without one"
    )]
    Duration {
        /// What was given.
        text: String,
    },
    /// The state file was written by a fluxcap that this one does not understand.
    #[error(
        "{} has version {version}, this program knows version 1; use the program that wrote it, move the file away, or start with --ephemeral",
        path.display()
    )]
    StateVersion {
        /// The state file.
        path: PathBuf,
        /// What it says.
        version: u64,
    },
    /// `--log-level` is no filter.
    #[error("--log-level {text}: use error, warn, info, debug or trace")]
    LogLevel {
        /// What was given.
        text: String,
    },
}

/// An error with the causes that it does not name itself.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Why a request is refused; becomes a gRPC status. The text says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nothing of that name: NOT_FOUND.
    #[error("{0}")]
    NotFound(String),
    /// The name stands for something different: ALREADY_EXISTS.
    #[error("{0}")]
    AlreadyExists(String),
    /// A field of the request is wrong whatever the state of the system: INVALID_ARGUMENT.
    #[error("{}: {message}", option(field))]
    Invalid {
        /// Field of the request, for instance "spec.buffer_bytes". People read "buffer" in the text, programs all of it in the details.
        field: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// The system is not in the state that the request needs: FAILED_PRECONDITION.
    #[error("{0}")]
    Precondition(String),
    /// Memory, budget or another bounded thing is used up: RESOURCE_EXHAUSTED.
    #[error("{0}")]
    Exhausted(String),
    /// The daemon is about to end; the same request succeeds later: UNAVAILABLE.
    #[error("{0}")]
    Unavailable(String),
    /// A failure that the client can do nothing about: INTERNAL.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// A refusal because of one field of the request.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    /// The same, for a check of a spec: its fields are fields of `spec` in the request.
    pub(crate) fn in_spec(self) -> Refusal {
        match self {
            Refusal::Invalid { field, message } if !of_request(&field) => Refusal::Invalid {
                field: format!("spec.{field}"),
                message,
            },
            other => other,
        }
    }
}

/// What the option for a field is called: the units are for programs.
fn option(field: &str) -> String {
    let last = field.rsplit('.').next().unwrap_or(field);
    let plain = ["_bytes", "_us", "_ms", "_ns"]
        .iter()
        .find_map(|unit| last.strip_suffix(unit))
        .unwrap_or(last);
    plain.replace('_', "-")
}

/// Whether a field is one of the request itself.
fn of_request(field: &str) -> bool {
    ["name", "update_mask"].contains(&field) || field.starts_with("spec")
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotFound(_) => Status::not_found(text),
            Refusal::AlreadyExists(_) => Status::already_exists(text),
            Refusal::Invalid { field, message } => Status::with_error_details(
                Code::InvalidArgument,
                text,
                ErrorDetails::with_bad_request_violation(field, message),
            ),
            Refusal::Precondition(_) => Status::failed_precondition(text),
            Refusal::Exhausted(_) => Status::resource_exhausted(text),
            Refusal::Unavailable(_) => Status::unavailable(text),
            Refusal::Internal(_) => Status::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_speak_of_options_and_details_of_fields() {
        for (field, text) in [
            ("spec.size_bytes", "size: too small"),
            ("merge_window_us", "merge-window: too small"),
            ("spec.rules[1].action", "action: too small"),
            ("name", "name: too small"),
        ] {
            let refusal = Refusal::invalid(field, "too small");
            assert_eq!(refusal.to_string(), text);
            let details = Status::from(refusal).get_details_bad_request();
            assert_eq!(details.expect("details").field_violations[0].field, field);
        }
    }
}
