//! Command line of tunneld.

use clap::{CommandFactory, Parser, error::ErrorKind};
use fluxcap_options::{ReceiveWork, SendWork, TunnelSetArgs, UsageError, each_with_its_name};
use fluxcap_proto::v1::{TunnelReceive, TunnelSpec};
use fluxcap_service::ServiceArgs;

const EXAMPLES: &str = "\
Examples:
  tunneld                                    serve; tunnels come by `fluxctl tunnel send|recv`
  tunneld --send cisco:gretap:192.0.2.9      send the ring cisco to a GRETAP, too
  tunneld --send cisco:vxlan:2001:db8::9 --vni 9001 --mtu-policy truncate
  tunneld --recv gretap:edge --key any       receive GRETAP with any key into the ring edge
  tunneld --recv vxlan --map 9001=edge,9002=core --from 192.0.2.0/24 --ephemeral

Rings, interfaces, routes and host names that are missing are waited for. tunneld
needs CAP_NET_RAW; the faster ways of --io need more, and what is missing for them
is told by `fluxctl tunnel show`.";

/// Sends shared-memory rings into tunnels and receives tunnels into rings.
#[derive(Debug, Parser)]
#[command(name = "tunneld", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Send RINGS (one, or several with commas) to a far end; may be repeated. It replaces a kept tunnel of the same name, and ends when it is no longer given.
    #[arg(long, value_name = "RINGS:KIND:REMOTE", help_heading = "Tunnels")]
    pub(crate) send: Vec<SendWork>,

    /// Receive into a ring, or into those of --map; may be repeated. It replaces a kept tunnel of the same name, and ends when it is no longer given.
    #[arg(long, value_name = "KIND[:RING]", help_heading = "Tunnels")]
    pub(crate) recv: Vec<ReceiveWork>,

    /// What applies to each --send and --recv.
    #[command(flatten)]
    pub(crate) options: TunnelSetArgs,
}

impl Args {
    /// The tunnels named on the command line, each with a name of its own, exiting with a usage error when they make no sense.
    pub(crate) fn tunnels(&self) -> Vec<(String, TunnelSpec)> {
        self.named_specs().unwrap_or_else(|error| {
            Args::command()
                .error(ErrorKind::ValueValidation, error)
                .exit()
        })
    }

    fn named_specs(&self) -> Result<Vec<(String, TunnelSpec)>, UsageError> {
        let specs = self.options.to_specs(&self.send, &self.recv)?;
        let receives = specs.iter().filter_map(|spec| spec.receive.as_ref());
        let receives = self.recv.iter().zip(receives);
        let names: Vec<String> = self
            .send
            .iter()
            .map(SendWork::default_name)
            .chain(receives.map(|(work, receive)| work.default_name(first_ring(receive))))
            .collect();
        Ok(each_with_its_name(names.into_iter().zip(specs).collect()))
    }
}

/// The ring that stands for all in the name of a tunnel.
fn first_ring(receive: &TunnelReceive) -> &str {
    match receive.map.first() {
        Some(mapping) => &mapping.ring,
        None => &receive.default_ring,
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]
mod tests {
    use super::*;

    fn names(args: &[&str]) -> Vec<String> {
        let args = Args::try_parse_from([&["tunneld"], args].concat()).unwrap();
        let specs = args.named_specs().unwrap();
        specs.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn tunnels_are_named_by_their_rings() {
        let args = [
            "--send",
            "a,b:gretap:192.0.2.9",
            "--recv",
            "vxlan",
            "--map",
            "5=edge,6=core",
        ];
        assert_eq!(names(&args), ["a-b-gretap-192-0-2-9", "edge-vxlan"]);
        assert_eq!(names(&["--recv", "ipip:shm:x"]), ["shm-x-ipip"]);
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let args = Args::try_parse_from(["tunneld", "--send", "a:vxlan:h", "--key", "5"]).unwrap();
        assert!(args.named_specs().is_err());
    }
}
