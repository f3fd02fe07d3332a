//! Command line of mirrord.

use clap::Parser;
use fluxcap_proto::v1::MirrorSpec;
use fluxcap_service::ServiceArgs;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mirrord                                    serve; mirrors come by `fluxctl mirror add`

mirrord needs CAP_BPF and CAP_NET_ADMIN.";

/// Copies the live traffic of interfaces, by eBPF programs in the kernel.
#[derive(Debug, Parser)]
#[command(name = "mirrord", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Folder in a bpffs where the programs of mirrors are kept while mirrord restarts
    #[arg(
        long,
        env = "FLUXCAP_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/fluxcap"
    )]
    pub(crate) bpffs: PathBuf,
}

impl Args {
    /// The mirrors named on the command line.
    pub(crate) fn mirrors(&self) -> Vec<(String, MirrorSpec)> {
        Vec::new()
    }
}
