//! Command line of rxd.

use clap::{CommandFactory, Parser, error::ErrorKind};
use fluxcap_options::{CaptureArgs, CaptureWork, UsageError, each_with_its_name};
use fluxcap_proto::v1::CaptureSpec;
use fluxcap_service::ServiceArgs;

const EXAMPLES: &str = "\
Examples:
  rxd                             serve; captures come by `fluxctl rx add`
  rxd --capture eth1:cisco        capture eth1 into the ring cisco, too
  rxd --capture eth1,eth2:all --vlan-push eth1=100,eth2=200
                                  aggregate two interfaces into one ring
  rxd --capture eth1:trade --io af_xdp --latency low --cpu 2 --priority 10
                                  each frame as soon as it is there
  rxd --capture eth1:web --filter 'tcp port 443' --snaplen 128 --ephemeral

Rings are made by ringd: `fluxctl ring create cisco --size 100m`. A capture
whose ring or interface is missing waits for it. rxd needs CAP_NET_RAW; --io
af_xdp needs CAP_NET_ADMIN and CAP_BPF, too, and CAP_IPC_LOCK or LimitMEMLOCK
for more than 8 MiB of --buffer; --priority CAP_SYS_NICE.";

/// Captures network interfaces into shared-memory rings.
#[derive(Debug, Parser)]
#[command(name = "rxd", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Capture INTERFACES (one, or several with commas) into RING; may be repeated. It replaces a kept capture of the same name, and ends when it is no longer given.
    #[arg(long, value_name = "INTERFACES:RING", help_heading = "Captures")]
    pub(crate) capture: Vec<String>,

    /// What applies to each --capture.
    #[command(flatten, next_help_heading = "Captures")]
    pub(crate) options: CaptureArgs,
}

impl Args {
    /// The captures named on the command line, each with a name of its own, exiting with a usage error when they make no sense.
    pub(crate) fn captures(&self) -> Vec<(String, CaptureSpec)> {
        let works: Result<Vec<CaptureWork>, UsageError> =
            self.capture.iter().map(|text| text.parse()).collect();
        let specs = works.and_then(|works| {
            let names = works.iter().map(CaptureWork::default_name);
            let specs = self.options.to_specs(&works)?;
            Ok(each_with_its_name(names.zip(specs).collect()))
        });
        specs.unwrap_or_else(|error| {
            Args::command()
                .error(ErrorKind::ValueValidation, error)
                .exit()
        })
    }
}
