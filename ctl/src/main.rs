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

mod audit;
mod capture;
mod cli;
mod complete;
mod connect;
mod edits;
mod exit;
mod io;
mod mirror;
mod names;
mod observe;
mod output;
mod prepare;
mod resource;
mod ring;
mod rx;
mod scheduling;
mod status;
mod tunnel;
mod tx;
mod words;

use cli::{Cli, Command};
use exit::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    complete::answer_shell();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
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
        Command::Tunnel(command) => tunnel::run(globals, command),
        Command::Mirror(command) => mirror::run(globals, command),
        Command::Output(command) => prepare::run(globals, command),
        Command::Io(args) => io::run(globals, args),
        Command::Capture(args) => capture::run(globals, args),
        Command::Status(args) => status::run(globals, args),
        Command::Audit(args) => audit::run(globals, args),
        Command::Completion(args) => complete::run(args),
        Command::Version => output::print(globals.output, &output::Version),
    }
}
