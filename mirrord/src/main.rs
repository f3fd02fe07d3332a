//! mirrord copies the live traffic of interfaces, by eBPF programs in the kernel.

mod args;
mod attach;
mod counters;
mod error;
mod events;
mod installed;
mod job;
mod known;
mod loops;
mod mirror;
mod overlay;
mod owner;
mod pins;
mod program;
mod rules;
mod service;
mod sight;
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
use pins::{Folder, path_of};
use service::MirrorApi;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use tonic::service::Routes;

/// Where nothing outlives the process and there is no bpffs, one of its own serves.
fn private_bpffs(args: &Args) -> Option<OwnedFd> {
    if !args.service.ephemeral || Folder::open(&args.bpffs).is_ok() {
        return None;
    }
    // What is missing for that the mirrors tell.
    fluxcap_socket::private_bpffs()
        .inspect_err(|error| tracing::debug!(%error, "no bpffs of its own"))
        .ok()
}

fn main() -> ExitCode {
    fluxcap_service::main("mirrord", || run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = args.mirrors();
    let daemon = Daemon::start("mirrord", &args.service)?;
    let state = daemon.state_file()?;
    let private = private_bpffs(args);
    let job = MirrorJob {
        bpffs: private.as_ref().map_or(args.bpffs.clone(), path_of),
        known: known::folder(&args.service.run_dir),
        rings: RingDir::new(args.service.ring_dir()),
        ephemeral: args.service.ephemeral,
        owner: owner::owner(&args.service.state_dir("mirrord")),
    };
    let mirrors = Registry::with_command_line(job, state, &wanted)?;
    mirror::sweep(&mirrors, &daemon.notices());
    for (name, spec) in wanted {
        put(&mirrors, &name, spec).with_context(|| format!("mirror {name}"))?;
    }
    let api = MirrorApi::server(mirrors.clone(), daemon.watches());
    daemon.serve(Routes::new(api), &[SERVICE_NAME], Arc::new(mirrors))
}
