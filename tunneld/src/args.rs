//! Command line of tunneld.

use clap::Parser;
use fluxcap_service::ServiceArgs;

/// Sends shared-memory rings into tunnels and receives tunnels into rings.
#[derive(Debug, Parser)]
#[command(name = "tunneld", version)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}
