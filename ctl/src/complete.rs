//! Completion of names in the shell: asks the daemons, briefly, and offers nothing when they do not answer.

use crate::cli::Cli;
use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure};
use crate::output;
use crate::resource::{self, Kind};
use clap::{Args, CommandFactory, FromArgMatches, ValueEnum};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
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
pub(crate) fn run(globals: &Globals, args: &Completion) -> Result<(), Failure> {
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
    match globals.output.is_json() {
        true => output::print(globals.output, &Script { name, script }),
        false => output::write(&script),
    }
}

/// A script as a value.
struct Script {
    name: &'static str,
    script: Vec<u8>,
}

impl output::Report for Script {
    fn json(&self) -> Value {
        json!({ "shell": self.name, "script": String::from_utf8_lossy(&self.script) })
    }

    fn blocks(&self) -> Vec<output::Block> {
        Vec::new()
    }
}

/// Rings, from their directory: no daemon is needed.
pub(crate) fn rings() -> Vec<CompletionCandidate> {
    ring_names()
        .into_iter()
        .map(CompletionCandidate::new)
        .collect()
}

/// Rings with commas between, of which `typed` is the beginning.
pub(crate) fn ring_list(typed: &OsStr) -> Vec<CompletionCandidate> {
    list(typed, ring_names())
}

/// Network interfaces of this namespace with commas between, of which `typed` is the beginning.
pub(crate) fn interface_list(typed: &OsStr) -> Vec<CompletionCandidate> {
    list(typed, interface_names())
}

/// Network interfaces of this namespace that begin with `typed`.
pub(crate) fn interface(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let names = interface_names().into_iter();
    names
        .filter(|name| name.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

fn interface_names() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    // Not all that is there is an interface: the file bonding_masters is none.
    let interfaces = entries
        .flatten()
        .filter(|entry| entry.path().join("ifindex").exists());
    interfaces
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn ring_names() -> Vec<String> {
    globals()
        .and_then(|globals| globals.rings().list().ok())
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// What the last name of the list `typed` can become; no name is offered twice.
fn list(typed: &OsStr, names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else {
        return Vec::new();
    };
    let begun = typed.rfind(',').map_or(0, |comma| comma + 1);
    let (chosen, begun) = typed.split_at(begun);
    names
        .into_iter()
        .filter(|name| name.starts_with(begun) && !chosen.split(',').any(|one| one == name))
        .map(|name| CompletionCandidate::new(format!("{chosen}{name}")))
        .collect()
}

/// All of a kind, from their daemon.
pub(crate) fn known<K: Kind>() -> Vec<CompletionCandidate> {
    let Some(mut globals) = globals() else {
        return Vec::new();
    };
    globals.timeout = Some(PATIENCE);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(typed: &str) -> Vec<String> {
        let names = ["eth1", "eth2", "wlan0"].map(str::to_owned);
        list(OsStr::new(typed), names)
            .iter()
            .map(|candidate| candidate.get_value().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn the_last_name_of_a_list_completes_to_one_that_is_not_in_it() {
        assert_eq!(offered(""), ["eth1", "eth2", "wlan0"]);
        assert_eq!(offered("w"), ["wlan0"]);
        assert_eq!(offered("eth2,e"), ["eth2,eth1"]);
        assert_eq!(offered("eth2,wlan0,"), ["eth2,wlan0,eth1"]);
        assert!(offered("eth1,x").is_empty());
    }
}
