//! The options of the L3AF Traffic Mirroring Tool, under their old names.
//!
//! They make one rule that is the cross product of its lists, and a target. `0.0.0.0` as an address and `0` as a port mean any, as
//! does an option that is left out. (The old tool copied nothing when one was left out.)

use super::rule::{networks, ports, protocols};
use super::target::{OverlayArg, TargetArg};
use crate::UsageError;
use clap::Args;
use fluxcap_proto::v1::{MirrorOverlay, MirrorRule, RuleAction, TunnelKind};

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

    /// --device; without --tunnel-remote-address --to dev:NAME
    #[arg(long, value_name = "NAME")]
    pub tunnel_interface_name: Option<String>,

    /// --dev; without --tunnel-remote-address --to dev:IFACE
    #[arg(long, value_name = "IFACE")]
    pub redirect_to: Option<String>,

    /// Router on the way to the collector, for a route on --redirect-to; needs --tunnel-interface-name
    #[arg(long, value_name = "ADDR")]
    pub gtw_address: Option<String>,
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
    /// Options that need others.
    pub fn target(&self) -> Result<Option<TargetArg>, UsageError> {
        let needs = |given: bool, option: &str, problem: &str| match given {
            true => Err(UsageError::Unsuited {
                option: option.to_owned(),
                what: "a mirror without a collector".to_owned(),
                problem: problem.to_owned(),
            }),
            false => Ok(()),
        };
        let Some(remote) = &self.tunnel_remote_address else {
            let problem = "name the collector by --tunnel-remote-address";
            needs(
                self.tunnel_local_port.is_some(),
                "--tunnel-local-port",
                problem,
            )?;
            needs(
                self.tunnel_remote_port.is_some(),
                "--tunnel-remote-port",
                problem,
            )?;
            needs(self.gtw_address.is_some(), "--gtw-address", problem)?;
            // A tunnel device that is there is an interface like another.
            let device = self
                .tunnel_interface_name
                .as_ref()
                .or(self.redirect_to.as_ref());
            return Ok(device.map(|device| TargetArg::Devices(vec![device.clone()])));
        };
        let tunnel = self.tunnel_interface_name.clone();
        if self.gtw_address.is_some() && (tunnel.is_none() || self.redirect_to.is_none()) {
            return Err(UsageError::Unsuited {
                option: "--gtw-address".to_owned(),
                what: "a mirror that follows the kernel's routes".to_owned(),
                problem: "leave it out, or name the tunnel device that gets a route by --tunnel-interface-name, and the interface of that route by --redirect-to".to_owned(),
            });
        }
        let mut overlay = MirrorOverlay {
            kind: TunnelKind::Gue.into(),
            remote: remote.clone(),
            port: self.tunnel_remote_port.unwrap_or(0),
            source_port: self.tunnel_local_port.unwrap_or(0),
            tunnel_device: tunnel.unwrap_or_default(),
            ..Default::default()
        };
        let way = self.redirect_to.clone().unwrap_or_default();
        match &self.gtw_address {
            Some(gateway) => {
                overlay.gateway.clone_from(gateway);
                overlay.gateway_device = way;
            }
            None => overlay.device = way,
        }
        Ok(Some(TargetArg::Overlay(OverlayArg {
            overlay,
            ..Default::default()
        })))
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
        let made = overlay(&[&tunnel[..], &device, &gateway].concat());
        assert_eq!(
            (&*made.tunnel_device, &*made.gateway),
            ("gue1", "198.51.100.1")
        );
        assert_eq!((&*made.gateway_device, &*made.device), ("eth1", ""));
        assert_eq!(overlay(&[&tunnel[..], &device].concat()).device, "eth1");
        let none = parse(&[&tunnel[..], &gateway].concat()).target();
        assert!(none.is_err_and(|error| error.to_string().contains("--tunnel-interface-name")));
    }

    #[test]
    fn without_a_collector_an_interface_is_the_target() {
        for args in [["--redirect-to=gue1"], ["--tunnel-interface-name=gue1"]] {
            let devices = TargetArg::Devices(vec!["gue1".into()]);
            assert_eq!(parse(&args).target(), Ok(Some(devices)));
        }
        assert_eq!(parse(&[]).target(), Ok(None));
        for args in [
            ["--tunnel-local-port=5"],
            ["--tunnel-remote-port=5"],
            ["--gtw-address=192.0.2.1"],
        ] {
            assert!(parse(&args).target().is_err(), "{args:?}");
        }
    }
}
