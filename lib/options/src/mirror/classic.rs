//! The options of the L3AF Traffic Mirroring Tool, under their old names.
//!
//! They make one rule that is the cross product of its lists, and a target. `0.0.0.0` as an address and `0` as a port mean any, as
//! does an option that is left out. (The old tool copied nothing when one was left out.)

use super::rule::{networks, ports, protocols};
use super::target::{OverlayArg, TargetArg};
use crate::UsageError;
use clap::Args;
use fluxcap_proto::v1::{MirrorOverlay, MirrorRule, MirrorSpec, RuleAction, TunnelKind};

/// Old names, for `fluxctl mirror add`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(
    next_help_heading = "Names of the L3AF Traffic Mirroring Tool, for what the options above say too"
)]
pub struct ClassicArgs {
    /// IFACE
    #[arg(long, value_name = "IFACE")]
    pub iface: Option<String>,

    /// src of a rule; 0.0.0.0 is any
    #[arg(long, value_name = "NET[,NET...]")]
    pub src_address: Vec<String>,

    /// dst of a rule; 0.0.0.0 is any
    #[arg(long, value_name = "NET[,NET...]")]
    pub dst_address: Vec<String>,

    /// sport of a rule; 0 is any
    #[arg(long, value_name = "PORT[,PORT...]")]
    pub src_port: Vec<String>,

    /// dport of a rule; 0 is any
    #[arg(long, value_name = "PORT[,PORT...]")]
    pub dst_port: Vec<String>,

    /// proto of a rule
    #[arg(long, value_name = "PROTO[,PROTO...]")]
    pub protocol: Vec<String>,

    /// --to gue:ADDR
    #[arg(long, value_name = "ADDR")]
    pub tunnel_remote_address: Option<String>,

    /// --sport
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u32).range(0..=65535))]
    pub tunnel_local_port: Option<u32>,

    /// Port in --to gue:ADDR:PORT
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u32).range(0..=65535))]
    pub tunnel_remote_port: Option<u32>,

    /// Not needed for a collector; without --tunnel-remote-address --to dev:NAME
    #[arg(long, value_name = "NAME")]
    pub tunnel_interface_name: Option<String>,

    /// --dev; without --tunnel-remote-address --to dev:IFACE
    #[arg(long, value_name = "IFACE")]
    pub redirect_to: Option<String>,

    /// Router on the way to the collector; the kernel's routes are followed, and with --device a route by --redirect-to is made
    #[arg(long, value_name = "ADDR")]
    pub gtw_address: Option<String>,

    /// gue, which is what --tunnel-remote-address is for
    #[arg(long, value_name = "gue")]
    pub tunnel_type: Option<String>,

    /// Place of tc-root's map; not needed here
    #[arg(long, value_name = "PATH")]
    pub map_name: Option<String>,

    /// Version of the old tool; not needed here
    #[arg(long, value_name = "VERSION", num_args = 0..=1)]
    pub version: Option<Option<String>>,
}

impl ClassicArgs {
    /// The rule that the options make; none when they name no condition.
    ///
    /// # Errors
    /// The first value that cannot be read.
    pub fn rule(&self) -> Result<Option<MirrorRule>, UsageError> {
        let lists = [
            &self.src_address,
            &self.dst_address,
            &self.src_port,
            &self.dst_port,
            &self.protocol,
        ];
        if lists.iter().all(|list| list.is_empty()) {
            return Ok(None);
        }
        let addresses = ["0.0.0.0", "::", "any"];
        let ports_any = ["0", "any"];
        Ok(Some(MirrorRule {
            action: RuleAction::Accept.into(),
            sources: list("--src-address", &self.src_address, &addresses, networks)?,
            destinations: list("--dst-address", &self.dst_address, &addresses, networks)?,
            source_ports: list("--src-port", &self.src_port, &ports_any, ports)?,
            destination_ports: list("--dst-port", &self.dst_port, &ports_any, ports)?,
            protocols: list("--protocol", &self.protocol, &["any"], protocols)?,
            ..Default::default()
        }))
    }

    /// The target that the options name; none when they name none.
    ///
    /// # Errors
    /// Another kind of tunnel than the old tool has.
    pub fn target(&self) -> Result<Option<TargetArg>, UsageError> {
        if let Some(kind) = self.tunnel_type.as_ref().filter(|kind| *kind != "gue") {
            return Err(UsageError::Value {
                option: "--tunnel-type",
                text: kind.clone(),
                problem: "the old name is for gue; for another kind use --to, for instance --to vxlan:192.0.2.9,vni=9001".to_owned(),
            });
        }
        let Some(remote) = &self.tunnel_remote_address else {
            // A tunnel device that is there is an interface like another.
            let device = self
                .tunnel_interface_name
                .as_ref()
                .or(self.redirect_to.as_ref());
            return Ok(device.map(|device| TargetArg::Devices(vec![device.clone()])));
        };
        let overlay = MirrorOverlay {
            kind: TunnelKind::Gue.into(),
            remote: remote.clone(),
            port: self.tunnel_remote_port.unwrap_or(0),
            source_port: self.tunnel_local_port.unwrap_or(0),
            device: self.redirect_to.clone().unwrap_or_default(),
            ..Default::default()
        };
        Ok(Some(TargetArg::Overlay(OverlayArg {
            overlay,
            ..Default::default()
        })))
    }

    /// Puts the router into the target of a mirror for which a tunnel device is made: such a device gets a route of its own.
    pub(super) fn lead(&self, spec: &mut MirrorSpec) {
        if let (Some(gateway), Some(way), Some(overlay)) =
            (&self.gtw_address, &self.redirect_to, &mut spec.overlay)
            && !overlay.tunnel_device.is_empty()
        {
            overlay.gateway.clone_from(gateway);
            overlay.gateway_device.clone_from(way);
            overlay.device.clear();
        }
    }

    /// What of the options has no meaning here for a mirror that was made of them, and what there is in its place.
    #[must_use]
    pub fn notes(&self, spec: &MirrorSpec) -> Vec<String> {
        let mut notes = Vec::new();
        if self.map_name.is_some() {
            notes.push("--map-name has no meaning here: programs are attached beside those that are there, and need no map of tc-root".to_owned());
        }
        if let Some(Some(version)) = &self.version {
            notes.push(format!("--version {version} has no meaning here: there is one version of the programs, that of mirrord"));
        }
        let Some(overlay) = &spec.overlay else {
            let ports = self.tunnel_local_port.or(self.tunnel_remote_port).is_some();
            if ports || self.gtw_address.is_some() {
                notes.push("--tunnel-local-port, --tunnel-remote-port and --gtw-address have no meaning without --tunnel-remote-address: copies leave by the interface as they are".to_owned());
            }
            return notes;
        };
        if let Some(device) = &self.tunnel_interface_name
            && overlay.tunnel_device.is_empty()
        {
            notes.push(format!(
                "--tunnel-interface-name {device} has no meaning here: copies are encapsulated without a tunnel device (--device NAME has one made)"
            ));
        }
        if let Some(gateway) = &self.gtw_address
            && overlay.gateway.is_empty()
        {
            let remote = &overlay.remote;
            notes.push(format!(
                "--gtw-address {gateway} has no meaning here: the kernel's routes lead to the collector; should there be none: ip route add {remote} via {gateway}"
            ));
        }
        notes
    }
}

/// The values of a list; empty when one of them is any.
fn list<T>(
    option: &'static str,
    texts: &[String],
    any: &[&str],
    read: impl Fn(&str) -> Result<Vec<T>, String>,
) -> Result<Vec<T>, UsageError> {
    let text = texts.join(",");
    if texts.is_empty() || text.split(',').any(|part| any.contains(&part)) {
        return Ok(Vec::new());
    }
    read(&text).map_err(|problem| UsageError::Value {
        option,
        text,
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::rule_text;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: ClassicArgs,
    }

    fn parse(args: &[&str]) -> ClassicArgs {
        Cli::parse_from([&["x"], args].concat()).options
    }

    fn rule(args: &[&str]) -> String {
        let rule = parse(args).rule().unwrap();
        rule.map_or(String::new(), |rule| rule_text(&rule))
    }

    #[test]
    fn the_lists_make_one_rule() {
        let args = [
            "--src-address=10.0.0.0/8,192.0.2.7",
            "--dst-port",
            "80,443",
            "--protocol=tcp,udp,icmp",
        ];
        let expected = "accept src 10.0.0.0/8,192.0.2.7 dport 80,443 proto tcp,udp,icmp";
        assert_eq!(rule(&args), expected);
        assert_eq!(rule(&[]), "");
    }

    #[test]
    fn zeroes_mean_any() {
        let args = [
            "--src-address=0.0.0.0",
            "--dst-address=10.0.0.1,0.0.0.0",
            "--src-port=0",
            "--dst-port=0,80",
        ];
        assert_eq!(rule(&args), "accept");
        assert_eq!(rule(&["--src-address=0.0.0.0/1"]), "accept src 0.0.0.0/1");
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_option() {
        let error = parse(&["--dst-port=80,x"]).rule().unwrap_err().to_string();
        assert!(
            error.contains("--dst-port") && error.contains("'x'"),
            "{error}"
        );
        let error = parse(&["--src-address=h"]).rule().unwrap_err().to_string();
        assert!(error.contains("--src-address"), "{error}");
    }

    fn overlay(args: &[&str]) -> MirrorOverlay {
        match parse(args).target() {
            Ok(Some(TargetArg::Overlay(arg))) => arg.overlay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_collector_is_one_of_gue() {
        let tunnel = [
            "--tunnel-remote-address=192.0.2.9",
            "--tunnel-local-port=6000",
            "--tunnel-remote-port=7080",
        ];
        let expected = MirrorOverlay {
            kind: TunnelKind::Gue.into(),
            remote: "192.0.2.9".into(),
            port: 7080,
            source_port: 6000,
            ..Default::default()
        };
        assert_eq!(overlay(&tunnel), expected);
        let device = ["--tunnel-interface-name=gue1", "--redirect-to=eth1"];
        let gateway = ["--gtw-address=198.51.100.1"];
        // The device that the old tool needs may be there, and is left alone.
        let made = overlay(&[&tunnel[..], &device, &gateway].concat());
        assert_eq!((&*made.tunnel_device, &*made.gateway), ("", ""));
        assert_eq!(made.device, "eth1");
        assert_eq!(overlay(&[&tunnel[..], &gateway].concat()), overlay(&tunnel));
        assert_eq!(
            overlay(&[&tunnel[..], &["--tunnel-type=gue"]].concat()),
            overlay(&tunnel)
        );
        let other = parse(&[&tunnel[..], &["--tunnel-type=vxlan"]].concat()).target();
        assert!(other.is_err_and(|error| error.to_string().contains("--to vxlan")));
    }

    #[test]
    fn a_tunnel_device_that_is_asked_for_gets_the_route() {
        let args = parse(&[
            "--tunnel-remote-address=192.0.2.9",
            "--redirect-to=eth1",
            "--gtw-address=198.51.100.1",
        ]);
        let mut spec = MirrorSpec {
            overlay: Some(MirrorOverlay {
                tunnel_device: "gue1".into(),
                ..overlay(&["--tunnel-remote-address=192.0.2.9", "--redirect-to=eth1"])
            }),
            ..Default::default()
        };
        args.lead(&mut spec);
        assert_eq!(args.notes(&spec), Vec::<String>::new());
        let made = spec.overlay.unwrap();
        let route = (&*made.gateway, &*made.gateway_device, &*made.device);
        assert_eq!(route, ("198.51.100.1", "eth1", ""));
    }

    #[test]
    fn what_has_no_meaning_is_told() {
        let args = parse(&[
            "--map-name=/sys/fs/bpf/tc/globals/mirroring_ingress_jmp_table",
            "--version=1.01",
            "--gtw-address=198.51.100.1",
            "--tunnel-interface-name=gue1",
            "--tunnel-remote-address=192.0.2.9",
            "--tunnel-type=gue",
        ]);
        let spec = MirrorSpec {
            overlay: Some(overlay(&["--tunnel-remote-address=192.0.2.9"])),
            ..Default::default()
        };
        let notes = args.notes(&spec);
        for option in [
            "--map-name",
            "--version 1.01",
            "--gtw-address",
            "--tunnel-interface-name gue1",
        ] {
            assert!(
                notes.iter().any(|note| note.starts_with(option)),
                "{option}: {notes:?}"
            );
        }
        assert_eq!(notes.len(), 4);
        let device = MirrorSpec::default();
        let notes = parse(&["--redirect-to=gue1", "--tunnel-remote-port=5"]).notes(&device);
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    #[test]
    fn without_a_collector_an_interface_is_the_target() {
        for args in [["--redirect-to=gue1"], ["--tunnel-interface-name=gue1"]] {
            let devices = TargetArg::Devices(vec!["gue1".into()]);
            assert_eq!(parse(&args).target(), Ok(Some(devices)));
        }
        for args in [
            &[][..],
            &["--tunnel-local-port=5"],
            &["--gtw-address=192.0.2.1"],
        ] {
            assert_eq!(parse(args).target(), Ok(None), "{args:?}");
        }
    }
}
