//! ringd creates, resizes, watches and retires the rings of a host.
//!
//! It has no data path: producers and consumers meet in the files that it makes, and go on when it dies. What it knows
//! of a ring it reads from the ring itself, so a restarted ringd finds everything as it was.
//!
//! ```text
//!  main.rs    the order of a start          args.rs    the command line
//!  mount.rs   memory below the directory    budget.rs  how much of it rings may take
//!  rings.rs   what is done to rings         status.rs  what is told of them
//!  service.rs the gRPC methods                 words.rs   why rings cannot be had
//! ```

mod args;
mod budget;
mod mount;
mod rings;
mod service;
mod status;
mod words;

use anyhow::Context;
use args::Args;
use budget::Budget;
use clap::Parser;
use fluxcap_proto::v1::ring_service_server::{RingServiceServer, SERVICE_NAME};
use fluxcap_ring::RingDir;
use fluxcap_service::{Daemon, MAX_MESSAGE_BYTES};
use rings::{How, Replace, Rings};
use std::{process::ExitCode, sync::Arc, time::Duration};
use tonic::service::Routes;

/// Reserving hundreds of gigabytes takes minutes, and a client that asks for them waits.
const RPC_TIMEOUT: Duration = Duration::from_secs(30 * 60);

fn main() -> ExitCode {
    fluxcap_service::main("ringd", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut daemon = Daemon::start("ringd", &args.service)?;
    daemon.rpc_timeout = RPC_TIMEOUT;
    let dir = RingDir::new(args.service.ring_dir());
    mount::prepare(&dir, !args.no_mount, &daemon.notices())?;
    let budget = Budget::new(args.memory_budget)?;
    let rings = Arc::new(Rings::open(dir, budget, daemon.state_file()?)?);
    for wanted in &args.create {
        daemon.announce_slow_start(RPC_TIMEOUT);
        // A start changes nothing that is as it was.
        let replace = if args.replace {
            Replace::Different
        } else {
            Replace::Never
        };
        let created = rings.create(&wanted.name, &wanted.spec, replace, &How::default());
        created.with_context(|| format!("--create {}", wanted.name))?;
    }
    rings
        .restore_in_background()
        .and_then(|()| rings.tidy_in_background())
        .context("cannot start a thread")?;
    let service =
        RingServiceServer::new(service::Service::new(Arc::clone(&rings), daemon.watches()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
    daemon.serve(Routes::new(service), &[SERVICE_NAME], rings)
}
