//! `fluxctl output`: the sensor's side of an output, which no daemon looks after.

use crate::complete;
use crate::connect::Globals;
use crate::exit::{Code, Failure, nearest};
use crate::output::{self, Block, Report};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use fluxcap_sensor::{Error, Sensors};
use serde_json::Value;
use std::path::PathBuf;

/// `fluxctl output ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Have an interface hand a sensor every frame as it was sent, or undo that; to be run as root in the sensor's network namespace
    ///
    /// Attaches an XDP program that passes everything, where the interface is a veth: the output at its other end can then use
    /// `live`, the fastest way. Turns off what joins frames (gro, lro, rx-gro-hw, rx-gro-list, rx-udp-gro-forwarding) and what has
    /// this host send by itself (IPv6, multicast, ARP). An interface with an address, or that is a port of another, is refused, and
    /// somebody else's XDP program is left alone. May be run again at any time.
    Prepare {
        #[command(flatten)]
        on: Interface,

        /// Have everything be as it was before it was prepared
        #[arg(long)]
        undo: bool,

        #[command(flatten)]
        places: Places,
    },
    /// How an interface is, and what that means for a sensor
    Show {
        #[command(flatten)]
        on: Interface,

        #[command(flatten)]
        places: Places,
    },
    /// The interfaces of this network namespace that are prepared
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        places: Places,
    },
}

/// Which one.
#[derive(Debug, Args)]
pub(crate) struct Interface {
    /// The interface on which the sensor listens
    #[arg(value_name = "IFACE", add = ArgValueCompleter::new(complete::interface))]
    name: String,
}

/// Where things are kept.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// The bpffs where the XDP program has its name, and stays
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    bpffs: PathBuf,
}

/// Runs the command.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    let sensors = |places: &Places| Sensors::new(&globals.run_dir, &places.bpffs);
    let report = match command {
        Command::Prepare {
            on,
            undo: false,
            places,
        } => sensors(places).prepare(&on.name),
        Command::Prepare {
            on,
            undo: true,
            places,
        } => sensors(places).undo(&on.name),
        Command::Show { on, places } => sensors(places).show(&on.name),
        Command::List { places } => {
            let all = sensors(places).list().map_err(failure)?;
            return output::print(globals.output, &Listed(all));
        }
    };
    output::print(globals.output, &Shown(report.map_err(failure)?))
}

fn failure(error: Error) -> Failure {
    let advice = error.advice();
    let code = match &error {
        Error::NoInterface { .. } => Code::NotFound,
        Error::Refused { .. } | Error::NoBpffs { .. } | Error::Distrust { .. } => Code::Refused,
        error if error.is_denied() => Code::Denied,
        _ => Code::Failed,
    };
    let failure = Failure::new(code, error.to_string());
    match &error {
        Error::NoInterface { name, known } => {
            let near = nearest(name, known.iter().map(String::as_str));
            failure.hint(near.map_or_else(
                || {
                    "the sensor's side may be in another network namespace: nsenter --net=/run/netns/NAME fluxctl output ..., or --net=/proc/PID/ns/net"
                        .to_owned()
                },
                |near| format!("did you mean {near}?"),
            ))
        }
        _ => failure.hint(advice),
    }
}

struct Shown(fluxcap_sensor::Report);

impl Report for Shown {
    fn json(&self) -> Value {
        serde_json::json!(self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        let report = &self.0;
        let state = if report.prepared {
            "prepared"
        } else {
            "not prepared"
        };
        let mut facts = vec![
            ("name", report.name.clone()),
            ("kind", report.kind.clone()),
            ("state", state.to_owned()),
        ];
        facts.extend(
            report
                .remarks
                .iter()
                .map(|remark| ("remark", remark.clone())),
        );
        let rows = report.settings.iter().map(|setting| {
            let before = setting.before.clone().unwrap_or_else(|| "-".to_owned());
            vec![setting.name.clone(), before, setting.now.clone()]
        });
        vec![
            Block::Facts(facts),
            Block::Rows(&["SETTING", "BEFORE", "NOW"], rows.collect()),
        ]
    }
}

struct Listed(Vec<fluxcap_sensor::Report>);

impl Report for Listed {
    fn json(&self) -> Value {
        serde_json::json!(self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        let rows = self.0.iter().map(|report| {
            let program = report.settings.first();
            vec![
                report.name.clone(),
                report.kind.clone(),
                program
                    .map(|setting| setting.now.clone())
                    .unwrap_or_default(),
                report.remarks.join("; "),
            ]
        });
        let header = &["NAME", "KIND", "XDP PROGRAM", "REMARKS"];
        vec![Block::Rows(header, rows.collect())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{assert_shows, render};
    use fluxcap_sensor::Setting;

    #[test]
    fn what_was_done_is_shown_with_what_was_before() {
        let report = fluxcap_sensor::Report {
            name: "eth1".into(),
            ifindex: 3,
            kind: "veth".into(),
            prepared: true,
            settings: vec![Setting {
                name: "gro".into(),
                before: Some("on".into()),
                now: "off".into(),
            }],
            remarks: vec!["it is down".into()],
        };
        let text = render(&Shown(report.clone()).blocks());
        assert_shows(&text, &["prepared", "gro      on      off", "it is down"]);
        assert_eq!(Shown(report.clone()).json()["settings"][0]["before"], "on");
        assert_eq!(Listed(vec![report]).json()[0]["name"], "eth1");
    }

    #[test]
    fn a_wrong_name_is_corrected_and_a_missing_one_looked_for_elsewhere() {
        let error = |name: &str| Error::NoInterface {
            name: name.into(),
            known: vec!["eth1".into()],
        };
        let near = failure(error("eht1"));
        assert_eq!(
            (near.code, &*near.hint),
            (Code::NotFound, "did you mean eth1?")
        );
        assert!(failure(error("wire")).hint.contains("nsenter"));
    }
}
