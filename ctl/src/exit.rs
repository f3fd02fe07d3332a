//! How a command ends: the exit codes, and errors that say what to do next.

use crate::output::{note, printable};
use fluxcap_options::UsageError;
use serde::Serialize;
use std::{io, process::ExitCode};
use tonic::Status;

/// Why a command did not do what it was asked to. Each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The reader of standard output went away (`| head`): nothing to say, and no failure.
    ClosedPipe = 0,
    /// Something went wrong, or an audit did not close.
    Failed = 1,
    /// The command line, or a value in it, makes no sense.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// It is in conflict with what is there.
    Refused = 4,
    /// A daemon does not answer.
    Unreachable = 5,
    /// Not allowed.
    Denied = 6,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Code::ClosedPipe => "ok",
            Code::Failed => "failed",
            Code::Usage => "usage",
            Code::NotFound => "not_found",
            Code::Refused => "refused",
            Code::Unreachable => "unreachable",
            Code::Denied => "permission",
        }
    }
}

/// An error for the person at the keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// What happened, with the object's name; one sentence without a full stop.
    pub(crate) message: String,
    /// What to do next; may be empty.
    pub(crate) hint: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// Adds advice, unless there is some already.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        if self.hint.is_empty() {
            self.hint = hint.into();
        }
        self
    }

    /// A reply of a daemon about `object`, for instance "ring cisco".
    pub(crate) fn from_status(object: &str, status: &Status) -> Failure {
        use tonic::Code as Grpc;
        let code = match status.code() {
            Grpc::Ok => Code::Failed,
            Grpc::InvalidArgument | Grpc::OutOfRange => Code::Usage,
            Grpc::NotFound => Code::NotFound,
            Grpc::AlreadyExists
            | Grpc::FailedPrecondition
            | Grpc::Aborted
            | Grpc::ResourceExhausted => Code::Refused,
            Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Cancelled => Code::Unreachable,
            Grpc::PermissionDenied | Grpc::Unauthenticated => Code::Denied,
            Grpc::Unimplemented | Grpc::Unknown | Grpc::Internal | Grpc::DataLoss => Code::Failed,
        };
        // Daemons name the object in most messages; where they do not, say it here.
        let name = object.rsplit(' ').next().unwrap_or(object);
        let message = match status.message() {
            "" => format!("{object}: {}", status.code().description()),
            // What the client says itself.
            "Timeout expired" => {
                return Failure::new(code, format!("{object}: no answer in time")).hint(
                    "see whether the daemon is well: fluxctl status; or wait longer: --timeout 30s",
                );
            }
            text if names(text, name) => text.to_owned(),
            text => format!("{object}: {text}"),
        };
        Failure::new(code, message)
    }

    /// A system call that failed while doing `what`, for instance "write cisco.pcapng".
    pub(crate) fn from_io(what: &str, error: &io::Error) -> Failure {
        let code = match error.kind() {
            io::ErrorKind::BrokenPipe => Code::ClosedPipe,
            io::ErrorKind::PermissionDenied => Code::Denied,
            io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Failure::new(code, format!("cannot {what}: {error}"))
    }

    /// Writes the error to standard error, as text or as JSON, and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            message: &'a str,
            hint: &'a str,
        }
        if self.code != Code::ClosedPipe {
            let body = Body {
                code: self.code.as_str(),
                message: &self.message,
                hint: &self.hint,
            };
            if json {
                note(&format!("{}", serde_json::json!({ "error": body })));
            } else {
                note(&format!("error: {}", printable(&self.message)));
                for line in self.hint.lines() {
                    note(&format!("  {}", printable(line)));
                }
            }
        }
        ExitCode::from(self.code as u8)
    }

    /// One failure out of several: the first one's code and advice, all the messages.
    pub(crate) fn all(failures: Vec<Failure>) -> Result<(), Failure> {
        let messages: Vec<&str> = failures
            .iter()
            .map(|failure| failure.message.as_str())
            .collect();
        let message = messages.join("; ");
        match failures.into_iter().next() {
            Some(first) => Err(Failure { message, ..first }),
            None => Ok(()),
        }
    }
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Failure::new(Code::Usage, error.to_string())
    }
}

/// Whether a text holds a name as a word of its own.
fn names(text: &str, name: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ':');
    let begins = |text: &str| text.starts_with(of_a_name);
    let goes_on = |rest: &str| begins(rest.strip_prefix('.').unwrap_or(rest));
    text.match_indices(name).any(|(at, _)| {
        let (before, rest) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(of_a_name) && !goes_on(rest)
    })
}

/// The name among `candidates` that `wrong` was probably meant to be: at most two letters differ, one in short names; in those of one or two
/// letters, which are all alike, only capitals.
pub(crate) fn nearest<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut candidates = candidates.into_iter();
    let limit = match wrong.chars().count() {
        0..=2 => return candidates.find(|candidate| candidate.eq_ignore_ascii_case(wrong)),
        3 => 1,
        _ => 2,
    };
    candidates
        .map(|candidate| (distance(wrong, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which two letters in the wrong order count once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_grpc_code_has_its_exit_code() {
        use tonic::Code as Grpc;
        for (grpc, code) in [
            (Grpc::InvalidArgument, 2),
            (Grpc::NotFound, 3),
            (Grpc::AlreadyExists, 4),
            (Grpc::FailedPrecondition, 4),
            (Grpc::ResourceExhausted, 4),
            (Grpc::Unavailable, 5),
            (Grpc::DeadlineExceeded, 5),
            (Grpc::PermissionDenied, 6),
            (Grpc::Internal, 1),
            (Grpc::Unimplemented, 1),
        ] {
            let failure = Failure::from_status("ring a", &Status::new(grpc, "no"));
            assert_eq!(failure.code as u8, code, "{grpc:?}");
        }
    }

    #[test]
    fn the_object_is_named_once() {
        let message =
            |text: &str| Failure::from_status("ring cisco", &Status::not_found(text)).message;
        assert_eq!(message("no such thing"), "ring cisco: no such thing");
        assert_eq!(
            message("there is no ring 'cisco'"),
            "there is no ring 'cisco'"
        );
        assert!(message("").starts_with("ring cisco: "));
        // A name that is part of another word is not named.
        let short = Failure::from_status("ring a", &Status::already_exists("already there"));
        assert_eq!(short.message, "ring a: already there");
        let short = Failure::from_status("mirror eth0", &Status::not_found("no interface eth0.5"));
        assert_eq!(short.message, "mirror eth0: no interface eth0.5");
        let long = Failure::from_status("ring shm:a", &Status::not_found("no ring shm:a."));
        assert_eq!(long.message, "no ring shm:a.");
        assert_eq!(message("Timeout expired"), "ring cisco: no answer in time");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from_io("write", &error).code, Code::ClosedPipe);
        assert_eq!(Code::ClosedPipe as u8, 0);
    }

    #[test]
    fn the_nearest_name_is_found_only_if_it_is_near() {
        let names = ["cisco", "dell", "juniper"];
        assert_eq!(nearest("csico", names), Some("cisco"));
        assert_eq!(nearest("del", names), Some("dell"));
        assert_eq!(nearest("arista", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest("b1", ["b2", "a"]), None);
        assert_eq!(nearest("X", ["y", "x"]), Some("x"));
    }

    #[test]
    fn several_failures_keep_the_first_code_and_every_message() {
        let failures = vec![
            Failure::new(Code::NotFound, "a"),
            Failure::new(Code::Refused, "b"),
        ];
        assert_eq!(
            Failure::all(failures),
            Err(Failure::new(Code::NotFound, "a; b"))
        );
        assert_eq!(Failure::all(Vec::new()), Ok(()));
    }
}
