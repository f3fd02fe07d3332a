//! rxd captures network interfaces into shared-memory rings.

mod args;
mod capture;
mod datapath;
mod input;
mod lane;
mod loops;
mod merge;
mod missed;
mod open;
mod order;
mod ring;
mod service;
mod spec;
mod stats;
mod succession;
mod takers;
mod tap;

use anyhow::Context;
use args::Args;
use capture::CaptureJob;
use clap::Parser;
use fluxcap_proto::v1::capture_service_server::SERVICE_NAME;
use fluxcap_ring::RingDir;
use fluxcap_service::{Daemon, Registry};
use service::CaptureApi;
use std::process::ExitCode;
use std::sync::Arc;
use tonic::service::Routes;

fn main() -> ExitCode {
    fluxcap_service::main("rxd", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = args.captures();
    let daemon = Daemon::start("rxd", &args.service)?;
    let job = CaptureJob {
        rings: RingDir::new(args.service.ring_dir()),
    };
    let captures = Registry::with_command_line(job, daemon.state_file()?, &wanted)?;
    for (name, spec) in wanted {
        captures
            .put(&name, spec)
            .with_context(|| format!("capture {name}"))?;
    }
    let api = CaptureApi::server(captures.clone(), daemon.watches());
    daemon.serve(Routes::new(api), &[SERVICE_NAME], Arc::new(captures))
}
