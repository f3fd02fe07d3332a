//! Command line of txd.

use clap::{CommandFactory, Parser, error::ErrorKind};
use fluxcap_options::{TransmitArgs, TransmitWork, UsageError, each_with_its_name};
use fluxcap_proto::v1::TransmitSpec;
use fluxcap_service::ServiceArgs;

const EXAMPLES: &str = "\
Examples:
  txd                             serve; transmits come by `fluxctl tx add`
  txd --transmit cisco:eth2       send the ring cisco out of eth2, too
  txd --transmit cisco:eth2,eth3  the same out of two interfaces
  txd --transmit cisco,dell:eth3  aggregate two rings, in the order of time
  txd --transmit cisco:eth2 --filter 'udp port 53' --snaplen 256 --ephemeral

A transmit begins with the frames that arrive from now on (--from oldest: with
those still in the ring); after a restart it goes on where it was. A ring or
interface that is missing is waited for. txd needs CAP_NET_RAW; the faster ways
of --io need more, and what is missing for them is told by `fluxctl tx show`.";

/// Transmits shared-memory rings to network interfaces.
#[derive(Debug, Parser)]
#[command(name = "txd", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Transmit RINGS to INTERFACES (one each, or several with commas); may be repeated. It replaces a kept transmit of the same name, and ends when it is no longer given.
    #[arg(long, value_name = "RINGS:INTERFACES", help_heading = "Transmits")]
    pub(crate) transmit: Vec<String>,

    /// What applies to each --transmit.
    #[command(flatten, next_help_heading = "Transmits")]
    pub(crate) options: TransmitArgs,
}

impl Args {
    /// The transmits named on the command line, each with a name of its own, exiting with a usage error when they make no sense.
    pub(crate) fn transmits(&self) -> Vec<(String, TransmitSpec)> {
        let works: Result<Vec<TransmitWork>, UsageError> =
            self.transmit.iter().map(|text| text.parse()).collect();
        let specs = works.and_then(|works| {
            let names = works.iter().map(TransmitWork::default_name);
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
