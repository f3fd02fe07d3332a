//! fluxctl as its users run it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon::{Dirs, binary};

/// Runs `fluxctl` against the daemons of one set of directories.
#[derive(Clone, Debug)]
pub struct Fluxctl {
    environment: [(&'static str, PathBuf); 3],
}

/// What a run of `fluxctl` gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as JSON, with counts as numbers: see `counts` below.
    ///
    /// # Panics
    /// When it is not one JSON value.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        let mut value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr));
        counts(&mut value);
        value
    }
}

/// Makes numbers of the strings in which protobuf's JSON has integers of 64 bits.
pub(crate) fn counts(value: &mut Value) {
    match value {
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
            if let Ok(number) = text.parse::<u64>() {
                *value = number.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(counts),
        Value::Object(members) => members.values_mut().for_each(counts),
        _ => {}
    }
}

impl Fluxctl {
    /// For the daemons that live in `dirs`.
    #[must_use]
    pub fn new(dirs: &Dirs) -> Fluxctl {
        Fluxctl {
            environment: dirs.environment(),
        }
    }

    /// The command, not yet started: for `capture` into a pipe and the like.
    #[must_use]
    #[track_caller]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("fluxctl"));
        command
            .args(args)
            .envs(self.environment.clone())
            .env("NO_COLOR", "1")
            // Tests add what is not there yet, and wait by themselves for what they want to see.
            .env("FLUXCTL_WAIT", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end, whatever that is.
    #[must_use]
    #[track_caller]
    pub fn try_run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().expect("run fluxctl");
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it; panics with what it said when it fails.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.try_run(args);
        assert_eq!(
            output.code,
            0,
            "fluxctl {}: {}{}",
            args.join(" "),
            output.stdout,
            output.stderr
        );
        output
    }

    /// Runs it with `-o json` and returns the value; panics when it fails.
    #[must_use]
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut with_format = args.to_vec();
        with_format.extend(["-o", "json"]);
        self.run(&with_format).json()
    }
}
