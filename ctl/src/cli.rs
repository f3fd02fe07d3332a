//! The command line as a whole.

use crate::connect::Globals;
use crate::exit::{Code, Failure};
use crate::output::Format;
use crate::{audit, capture, complete, io, mirror, prepare, ring, rx, status, tunnel, tx};
use clap::{Parser, Subcommand, error::ErrorKind};
use std::ffi::OsString;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  fluxctl ring create cisco --size 100m              make a ring
  fluxctl rx add eth1 cisco                          capture eth1 into it
  fluxctl tx add cisco eth2,eth3                     and replicate it to eth2 and eth3
  nsenter --net=/run/netns/ids fluxctl output prepare eth0
                                                     where the sensor listens: frames arrive as they were sent
  fluxctl tunnel send cisco gretap 192.0.2.9         and to a collector far away
  fluxctl mirror add eth0 --to ring:web --rule 'dport 80 proto tcp'
                                                     copies of live traffic, made in the kernel
  fluxctl rx add eth1,eth4 both --vlan-push eth1=100,eth4=200
  fluxctl io                                         live rates, drops, lag of each reader
  fluxctl capture cisco -w - | tcpdump -nr -         frames straight from the ring
  fluxctl audit                                      in = out + named drops, at each stage

Sizes are powers of 1024 (64K, 100M, 1G); rates are SI (1 Mbit/s is 1,000,000 bit/s).
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused or in conflict, 5 daemon unreachable, 6 permission.
Completion of names: source <(fluxctl completion bash)";

/// Network taps in software: rings, captures, transmits, tunnels, mirrors, live rates, packet files and accounts.
#[derive(Debug, Parser)]
#[command(name = "fluxctl", version, after_help = EXAMPLES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rings: shared memory that holds the last frames
    #[command(subcommand)]
    Ring(ring::Command),
    /// Captures: from interfaces into a ring
    #[command(subcommand)]
    Rx(rx::Command),
    /// Transmits: from rings to interfaces
    #[command(subcommand)]
    Tx(tx::Command),
    /// Tunnels: rings into GRE, ERSPAN, VXLAN, Geneve, GUE... and back into rings
    #[command(subcommand)]
    Tunnel(Box<tunnel::Command>),
    /// Mirrors: filtered copies of live traffic into rings, to interfaces or into GUE, VXLAN, Geneve, GRETAP
    #[command(subcommand)]
    Mirror(mirror::Command),
    /// The sensor's side of an output: hands on every frame as it was sent
    #[command(subcommand)]
    Output(prepare::Command),
    /// Live rates, drops, and lag and loss of each reader, straight from the rings
    #[command(visible_alias = "top")]
    Io(io::Io),
    /// Frames of a ring into a pcapng file or a pipe, or one line each on the terminal
    Capture(capture::Capture),
    /// All daemons: health, resources, notices
    Status(status::StatusArgs),
    /// Prove that nothing was lost unseen: in = out + named drops, at each stage
    Audit(audit::Audit),
    /// Completion script for a shell; names of rings, captures, transmits, tunnels and mirrors complete too
    Completion(complete::Completion),
    /// The version of fluxctl
    Version,
}

/// Reads the command line; the exit code when there is nothing to be done.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let mut cli = Cli::try_parse_from(words).map_err(|error| usage(&error))?;
    if cli.globals.json {
        cli.globals.output = Format::Json;
    }
    Ok(cli)
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
    let is_json = |word: &str| matches!(word, "json" | "jsonl");
    let json = words
        .windows(2)
        .any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && is_json(&pair[1]))
        || words.iter().any(|word| {
            let value = ["-o=", "--output=", "-o"]
                .iter()
                .find_map(|option| word.strip_prefix(option));
            value.is_some_and(is_json) || matches!(word.as_str(), "-j" | "--json")
        });
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
