//! Command line of mirrord.

use clap::{CommandFactory, Parser, error::ErrorKind};
use fluxcap_options::{
    ClassicArgs, MirrorArgs, MirrorWork, UsageError, default_mirror_name, each_with_its_name,
};
use fluxcap_proto::v1::MirrorSpec;
use fluxcap_service::{ServiceArgs, from_env};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mirrord                                    serve; mirrors come by `fluxctl mirror add`
  mirrord --mirror eth0:ring:web --rule 'dport 80 proto tcp' --rule 'sport 80 proto tcp'
  mirrord --mirror eth0:gue:192.0.2.9:7080 --direction ingress --rate 100Mbit
  mirrord --mirror tap1:dev:ids1,ids2 --hook xdp --ephemeral

Interfaces, rings and routes that are missing are waited for. mirrord needs CAP_BPF and
CAP_NET_ADMIN, and a bpffs where it may write; what is missing is told by `fluxctl mirror show`.";

/// Copies the live traffic of interfaces, by eBPF programs in the kernel.
#[derive(Debug, Parser)]
#[command(name = "mirrord", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directories, logs.
    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Folder in a bpffs where the programs of mirrors are kept while mirrord restarts [env: FLUXCAP_BPFFS] [default: /sys/fs/bpf/fluxcap]
    #[arg(
        long,
        value_name = "DIR",
        default_value = from_env("FLUXCAP_BPFFS").unwrap_or("/sys/fs/bpf/fluxcap"),
        hide_default_value = true,
        help_heading = "Service options"
    )]
    pub(crate) bpffs: PathBuf,

    /// Copy the traffic of IFACE to a target as in --to; may be repeated. It replaces a kept mirror of the same name, and ends when it is no longer given.
    #[arg(long, value_name = "IFACE:TARGET", help_heading = "Mirrors")]
    pub(crate) mirror: Vec<MirrorWork>,

    /// What applies to each --mirror.
    #[command(flatten)]
    pub(crate) options: MirrorArgs,
}

impl Args {
    /// The mirrors named on the command line, each with a name of its own, exiting with a usage error when they make no sense.
    pub(crate) fn mirrors(&self) -> Vec<(String, MirrorSpec)> {
        self.named_specs().unwrap_or_else(|error| {
            Args::command()
                .error(ErrorKind::ValueValidation, error)
                .exit()
        })
    }

    fn named_specs(&self) -> Result<Vec<(String, MirrorSpec)>, UsageError> {
        if self.mirror.is_empty() && self.options != MirrorArgs::default() {
            return Err(UsageError::Unsuited {
                option: "what was given".to_owned(),
                what: "a mirrord without --mirror".to_owned(),
                problem: "say what to copy, for instance --mirror eth0:ring:web".to_owned(),
            });
        }
        let specs = self.mirror.iter().map(|work| {
            let target = Some(&work.target);
            let old = ClassicArgs::default();
            let spec = self.options.to_spec(&work.interface, target, &old)?;
            Ok((default_mirror_name(&spec), spec))
        });
        Ok(each_with_its_name(
            specs.collect::<Result<_, UsageError>>()?,
        ))
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]
mod tests {
    use super::*;

    fn specs(args: &[&str]) -> Result<Vec<(String, MirrorSpec)>, UsageError> {
        let args = Args::try_parse_from([&["mirrord"], args].concat()).unwrap();
        args.named_specs()
    }

    #[test]
    fn mirrors_are_named_by_interface_and_target_and_share_the_options() {
        let args = [
            "--mirror",
            "eth0:ring:web",
            "--mirror",
            "eth1:gue:192.0.2.9:7080",
            "--snaplen",
            "96",
        ];
        let specs = specs(&args).unwrap();
        let names: Vec<&str> = specs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["eth0-web", "eth1-gue-192-0-2-9"]);
        assert!(specs.iter().all(|(_, spec)| spec.snaplen == 96));
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        assert!(specs(&["--mirror", "eth0:ring:web", "--ttl", "5"]).is_err());
        assert!(specs(&["--snaplen", "96"]).is_err());
        assert_eq!(specs(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_second_mirror_to_a_collector_gets_a_name_of_its_own() {
        let same = ["eth0:gue:192.0.2.9", "eth0:gue:192.0.2.9:7080"];
        let same = same.map(|work| ["--mirror", work]).concat();
        let specs = specs(&same).unwrap();
        let names: Vec<&str> = specs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["eth0-gue-192-0-2-9", "eth0-gue-192-0-2-9-2"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
