//! mirrord copies the live traffic of interfaces, by eBPF programs in the kernel.

mod args;
mod attach;
mod counters;
mod error;
mod events;
mod installed;
mod job;
mod known;
mod mirror;
mod overlay;
mod pins;
mod program;
mod rules;
mod service;
mod stats;
mod target;
mod tunnel_device;
mod xdp;

use anyhow::Context;
use args::Args;
use clap::Parser;
use fluxcap_proto::v1::mirror_service_server::SERVICE_NAME;
use fluxcap_ring::RingDir;
use fluxcap_service::{Daemon, Registry};
use job::{MirrorJob, put};
use service::MirrorApi;
use std::process::ExitCode;
use std::sync::Arc;
use tonic::service::Routes;

fn main() -> ExitCode {
    fluxcap_service::main("mirrord", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = args.mirrors();
    let daemon = Daemon::start("mirrord", &args.service)?;
    let job = MirrorJob {
        bpffs: args.bpffs.clone(),
        known: known::folder(&args.service.run_dir),
        rings: RingDir::new(args.service.ring_dir()),
        ephemeral: args.service.ephemeral,
    };
    let mirrors = Registry::with_command_line(job, daemon.state_file()?, &wanted)?;
    mirror::sweep(&mirrors);
    for (name, spec) in wanted {
        put(&mirrors, &name, spec).with_context(|| format!("mirror {name}"))?;
    }
    let api = MirrorApi::server(mirrors.clone(), daemon.watches());
    daemon.serve(Routes::new(api), &[SERVICE_NAME], Arc::new(mirrors))
}
