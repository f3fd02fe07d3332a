//! txd transmits shared-memory rings to network interfaces.

mod args;
mod datapath;
mod service;
mod stats;
mod transmit;

use anyhow::Context;
use args::Args;
use clap::Parser;
use fluxcap_proto::v1::transmit_service_server::SERVICE_NAME;
use fluxcap_ring::RingDir;
use fluxcap_service::{Daemon, Registry};
use service::TransmitApi;
use std::process::ExitCode;
use std::sync::Arc;
use tonic::service::Routes;
use transmit::TransmitJob;

fn main() -> ExitCode {
    fluxcap_service::main("txd", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = args.transmits();
    let daemon = Daemon::start("txd", &args.service)?;
    let job = TransmitJob {
        rings: RingDir::new(args.service.ring_dir()),
    };
    let transmits = Registry::with_command_line(job, daemon.state_file()?, &wanted)?;
    for (name, spec) in wanted {
        transmits
            .put(&name, spec)
            .with_context(|| format!("transmit {name}"))?;
    }
    let api = TransmitApi::server(transmits.clone(), daemon.watches());
    daemon.serve(Routes::new(api), &[SERVICE_NAME], Arc::new(transmits))
}
