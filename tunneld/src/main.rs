//! tunneld sends shared-memory rings into tunnels and receives tunnels into rings.

mod args;
mod decap_path;
mod encap_path;
mod job;
mod path;
mod receive;
mod rings;
mod send;
mod senders;
mod service;
mod stats;

use anyhow::Context;
use args::Args;
use clap::Parser;
use fluxcap_proto::v1::tunnel_service_server::SERVICE_NAME;
use fluxcap_ring::RingDir;
use fluxcap_service::{Daemon, Registry};
use job::{TunnelJob, put};
use service::TunnelApi;
use std::process::ExitCode;
use std::sync::Arc;
use tonic::service::Routes;

fn main() -> ExitCode {
    fluxcap_service::main("tunneld", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = args.tunnels();
    let daemon = Daemon::start("tunneld", &args.service)?;
    let job = TunnelJob {
        rings: RingDir::new(args.service.ring_dir()),
    };
    let tunnels = Registry::with_command_line(job, daemon.state_file()?, &wanted)?;
    for (name, spec) in wanted {
        put(&tunnels, &name, spec).with_context(|| format!("tunnel {name}"))?;
    }
    let api = TunnelApi::server(tunnels.clone(), daemon.watches());
    daemon.serve(Routes::new(api), &[SERVICE_NAME], Arc::new(tunnels))
}
