//! Completion of names in the shell: asks the daemons, briefly, and offers nothing when they do not answer.

use crate::cli::Cli;
use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure};
use crate::output;
use crate::resource::{self, Kind};
use clap::{Args, CommandFactory, FromArgMatches, ValueEnum};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use std::ffi::OsString;
use std::time::Duration;

/// The environment variable by which the shell's script asks this program for completions.
const VARIABLE: &str = "COMPLETE";

/// Answers the shell's script and ends, when that is who calls.
pub(crate) fn answer_shell() {
    clap_complete::CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .complete();
}

/// Nobody waits longer than this for a completion.
const PATIENCE: Duration = Duration::from_millis(500);

/// `fluxctl completion`
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script that makes the shell ask this program.
pub(crate) fn run(args: &Completion) -> Result<(), Failure> {
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells
        .completer(name)
        .ok_or_else(|| Failure::new(Code::Failed, format!("no completion for {name}")))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "fluxctl", "fluxctl", "fluxctl", &mut script)
        .map_err(|error| Failure::from_io("make the completion script", &error))?;
    output::write(&script)
}

/// Rings, from their directory: no daemon is needed.
pub(crate) fn rings() -> Vec<CompletionCandidate> {
    let names = globals()
        .and_then(|globals| globals.rings().list().ok())
        .unwrap_or_default();
    names
        .iter()
        .map(|name| CompletionCandidate::new(name.to_string()))
        .collect()
}

/// Network interfaces of this namespace.
pub(crate) fn interfaces() -> Vec<CompletionCandidate> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| CompletionCandidate::new(entry.file_name()))
        .collect()
}

/// All of a kind, from their daemon.
pub(crate) fn known<K: Kind>() -> Vec<CompletionCandidate> {
    let Some(mut globals) = globals() else {
        return Vec::new();
    };
    globals.timeout = PATIENCE;
    let known = block_on(async {
        let mut client = resource::connect::<K>(&globals).await?;
        resource::all::<K>(&mut client).await
    });
    known
        .unwrap_or_default()
        .iter()
        .map(|one| CompletionCandidate::new(one.name()))
        .collect()
}

/// The options typed so far that say where to look (`--run-dir`, `--ring-dir`); the environment otherwise.
fn globals() -> Option<Globals> {
    // The script calls `fluxctl -- fluxctl WORD...`.
    let typed = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let matches = Cli::command()
        .ignore_errors(true)
        .disable_help_flag(true)
        .try_get_matches_from(typed.chain(std::iter::empty::<OsString>()))
        .ok()?;
    Globals::from_arg_matches(&matches).ok()
}
