//! fluxctl, the command line of fluxcap.
//!
//! ```text
//!   ring rx tx status  -- gRPC on Unix sockets -->  ringd rxd txd
//!   io capture audit   -- shared memory        -->  the rings themselves; no daemon is needed
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

mod audit;
mod capture;
mod cli;
mod complete;
mod connect;
mod edits;
mod exit;
mod io;
mod names;
mod observe;
mod output;
mod ring;
mod rx;
mod status;
mod tx;

use clap::{CommandFactory, Parser, error::ErrorKind};
use cli::{Cli, Command};
use exit::{Code, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Cli::command)
        .var(complete::VARIABLE)
        .complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.globals.output == output::Format::Json),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Ring(command) => ring::run(globals, command),
        Command::Rx(command) => rx::run(globals, command),
        Command::Tx(command) => tx::run(globals, command),
        Command::Io(args) => io::run(globals, args),
        Command::Capture(args) => capture::run(globals, args),
        Command::Status(args) => status::run(globals, args),
        Command::Audit(args) => audit::run(globals, args),
        Command::Completion(args) => complete::run(args),
        Command::Version => output::print(globals.output, &output::Version),
    }
}

/// Help and version are no failures; everything else that clap finds is one of usage.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nothing is left to do when the reader has gone.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The options could not be read, so that they are looked for here.
    let words: Vec<String> = std::env::args().collect();
    let json = words
        .windows(2)
        .any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
        || words
            .iter()
            .any(|word| word == "-ojson" || word == "--output=json");
    if json {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").trim_end().to_owned();
        return Failure::new(Code::Usage, message)
            .hint("fluxctl --help")
            .report(true);
    }
    let _ = error.print();
    ExitCode::from(Code::Usage as u8)
}
