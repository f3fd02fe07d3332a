//! fluxctl, the command line of fluxcap.
//!
//! ```text
//!   ring rx tx tunnel mirror status  -- gRPC on Unix sockets -->  ringd rxd txd tunneld mirrord
//!   io capture audit                 -- shared memory        -->  the rings themselves; no daemon is needed
//!   output                           -- netlink, bpf(2)      -->  the interface of a sensor; no daemon is needed
//! ```
//!
//! Each command makes one value, and `output` prints it as a table or as JSON. Data goes to standard output, messages to
//! standard error, and the exit code says how it ended (`exit`).

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        reason = "a test that panics has failed, as it should"
    )
)]

mod add;
mod audit;
mod capture;
mod cli;
mod complete;
mod connect;
mod edits;
mod exit;
mod io;
mod json;
mod lists;
mod mirror;
mod names;
mod observe;
mod output;
mod predecessor;
mod prepare;
mod resource;
mod ring;
mod rx;
mod scheduling;
mod signals;
mod status;
mod tunnel;
mod tx;
mod words;

use cli::{Cli, Command};
use exit::Failure;
use output::note;
use predecessor::Old;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match predecessor::read(&words) {
        Some(Ok((old, notes))) => return run_old(&old, &notes),
        Some(Err(failure)) => return failure.report(false),
        None => {}
    }
    complete::answer_shell();
    finish(cli::parse(std::env::args_os()))
}

/// Runs a command line that was read, and gives the exit code.
fn finish(cli: Result<Cli, ExitCode>) -> ExitCode {
    let cli = match cli {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.globals.output.is_json()),
    }
}

/// Does what a predecessor's command line says, and tells how fluxctl says it.
fn run_old(old: &Old, notes: &[String]) -> ExitCode {
    let (add, end) = match old {
        Old::Once(add) => (add, None),
        Old::Until(add, end) => (add, Some(end)),
    };
    note(&add.join(" "));
    notes.iter().for_each(|text| note(&format!("note: {text}")));
    let Some(end) = end else {
        return finish(cli::parse(add.iter().map(Into::into)));
    };
    // Before anything is added, so that it never stays behind.
    let stop = signals::stop();
    let code = finish(cli::parse(add.iter().map(Into::into)));
    if code == ExitCode::SUCCESS {
        stop.wait();
    }
    let taken_away = finish(cli::parse(end.iter().map(Into::into)));
    if code == ExitCode::SUCCESS {
        taken_away
    } else {
        code
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Ring(command) => ring::run(globals, command),
        Command::Rx(command) => rx::run(globals, command),
        Command::Tx(command) => tx::run(globals, command),
        Command::Tunnel(command) => tunnel::run(globals, command),
        Command::Mirror(command) => mirror::run(globals, command),
        Command::Output(command) => prepare::run(globals, command),
        Command::Io(args) => io::run(globals, args),
        Command::Capture(args) => capture::run(globals, args),
        Command::Status(args) => status::run(globals, args),
        Command::Audit(args) => audit::run(globals, args),
        Command::Completion(args) => complete::run(globals, args),
        Command::Version => output::print(globals.output, &output::Version),
    }
}
