//! `fluxctl mirror`: filtered copies of the traffic of interfaces, through mirrord.

mod options;
mod view;

use crate::add::{self, AddArgs};
use crate::complete;
use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure};
use crate::lists::Change;
use crate::output::{Block, Version, note, print};
use crate::resource::{self, Kind};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{
    ClassicArgs, MirrorArgs, RuleArg, TargetArg, default_mirror_name, rule_text,
};
use fluxcap_proto::v1::mirror_service_client::MirrorServiceClient;
use fluxcap_proto::v1::{
    CreateMirrorRequest, DeleteMirrorRequest, GetMirrorRequest, ListMirrorsRequest, Mirror,
    MirrorDevice, MirrorRule, MirrorSpec, UpdateMirrorRequest,
};

const EXAMPLES: &str = "\
Examples:
  fluxctl mirror add eth0 --to ring:web --rule 'dport 80,443 proto tcp' --rule 'sport 80,443 proto tcp'
  fluxctl mirror add eth0 --to gue:192.0.2.9:7080 --direction ingress --rate 100Mbit --for 10m
  fluxctl mirror add eth0 --to vxlan:[2001:db8::9]:4789,vni=9001 --rule 'exclude src 10.0.0.0/8' --rule accept
  fluxctl mirror add eth0 --to dev:gre1,gre2 --sample 1/10 --sample-by flow
  fluxctl mirror add tap1 --hook xdp --to dev:ids1,ids2 --to ring:last --vlan-push ids2=100

Rules: [accept|exclude] and any of  src NET,...  dst NET,...  sport PORT,...  dport PORT,...
proto NAME,...  vlan VID,...  untagged  flags syn/syn,ack  dir ingress|egress.
The first rule that a frame matches decides. One that matches none is copied if no rule accepts, else not.";

/// `fluxctl mirror ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Copy the traffic of an interface
    // --version is one of the Traffic Mirroring Tool's options.
    #[command(after_help = EXAMPLES, disable_version_flag = true)]
    Add(Box<Add>),
    /// List all mirrors
    #[command(visible_alias = "ls")]
    List,
    /// Show mirrors, all unless some are named: programs, rules, outputs, counters
    Show {
        /// Names of the mirrors
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Mirror>))]
        names: Vec<String>,
    },
    /// Change a running mirror; options not given stay as they are
    Set(Box<Set>),
    /// Stop mirrors and forget them
    #[command(visible_aliases = ["rm", "del"])]
    Delete {
        /// Names of the mirrors
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Mirror>))]
        names: Vec<String>,
    },
}

/// `fluxctl mirror add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Interface whose traffic is copied
    #[arg(value_name = "IFACE", required_unless_present_any = ["iface", "version"], conflicts_with = "iface", add = ArgValueCompleter::new(complete::interface))]
    interface: Option<String>,

    #[command(flatten)]
    add: AddArgs,

    /// End the mirror with mirrord; it stays in the kernel otherwise while mirrord restarts
    #[arg(long)]
    ephemeral: bool,

    #[command(flatten)]
    options: MirrorArgs,

    #[command(flatten)]
    classic: ClassicArgs,
}

/// `fluxctl mirror set`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name of the mirror
    #[arg(add = ArgValueCandidates::new(complete::known::<Mirror>))]
    name: String,

    /// Check only; the kernel is asked whether it takes the programs
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// End the mirror with mirrord
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ephemeral: Option<bool>,

    /// Rule that goes behind those that there are; may be repeated
    #[arg(long, alias = "rule+", value_name = "RULE", conflicts_with_all = ["rule", "rules_file"])]
    rule_add: Vec<RuleArg>,

    /// Rule that goes, as mirror show writes it; may be repeated
    #[arg(long, alias = "rule-", value_name = "RULE", conflicts_with_all = ["rule", "rules_file"])]
    rule_remove: Vec<RuleArg>,

    /// Interfaces that get copies, too
    #[arg(
        long,
        alias = "to+",
        value_name = "dev:IFACE[,IFACE...]",
        conflicts_with = "to"
    )]
    to_add: Vec<TargetArg>,

    /// Interfaces that get copies no longer
    #[arg(
        long,
        alias = "to-",
        value_name = "dev:IFACE[,IFACE...]",
        conflicts_with = "to"
    )]
    to_remove: Vec<TargetArg>,

    #[command(flatten)]
    options: MirrorArgs,
}

impl Set {
    fn changes_rules(&self) -> bool {
        !(self.rule_add.is_empty() && self.rule_remove.is_empty())
    }

    fn changes_devices(&self) -> bool {
        !(self.to_add.is_empty() && self.to_remove.is_empty())
    }
}

/// Runs the command. What is wrong with the command line is said before mirrord is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Add(args) if args.classic.version == Some(None) => {
                print(globals.output, &Version)
            }
            Command::Add(args) => {
                let (name, spec) = wanted(args)?;
                let notes = args.classic.notes(&spec).into_iter();
                notes
                    .filter(|_| !globals.quiet)
                    .for_each(|text| note(&format!("note: {text}")));
                add::add::<Mirror>(globals, &args.add, &name, spec).await
            }
            Command::List => resource::list::<Mirror>(globals).await,
            Command::Show { names } => resource::show::<Mirror>(globals, names).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Mirror>(globals, names).await,
        }
    })
}

/// What is to be added, and the name that it gets when none is given.
fn wanted(args: &Add) -> Result<(String, MirrorSpec), Failure> {
    let interface = args.interface.as_ref().or(args.classic.iface.as_ref());
    let missing = || Failure::new(Code::Usage, "name the interface whose traffic is copied");
    let interface = interface.ok_or_else(missing)?;
    let mut spec = args.options.to_spec(interface, None, &args.classic)?;
    spec.ephemeral = args.ephemeral;
    Ok((default_mirror_name(&spec), spec))
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    let lists = args.changes_rules() || args.changes_devices();
    if args.options == MirrorArgs::default() && args.ephemeral.is_none() && !lists {
        return Err(resource::nothing_to_change::<Mirror>(&args.name));
    }
    // What an option means depends on the target.
    let mirror: Mirror = resource::get(globals, &args.name).await?;
    let request = set_request(args, &mirror.spec.unwrap_or_default())?;
    resource::set::<Mirror>(globals, &args.name, request).await
}

fn set_request(args: &Set, current: &MirrorSpec) -> Result<UpdateMirrorRequest, Failure> {
    // Devices first: a tag may be for one that comes.
    let mut current = current.clone();
    if args.changes_devices() {
        current.devices = devices(args, &current)?;
    }
    let (mut spec, mut fields) = args.options.changes(&current)?;
    if args.changes_devices() && !fields.contains(&"devices") {
        fields.push("devices");
    }
    if args.changes_rules() {
        spec.rules = rules(args, &spec)?;
        fields.push("rules");
    }
    if let Some(ephemeral) = args.ephemeral {
        spec.ephemeral = ephemeral;
        fields.push("ephemeral");
    }
    Ok(UpdateMirrorRequest {
        name: args.name.clone(),
        spec: Some(spec),
        update_mask: resource::mask(&fields),
        validate_only: args.dry_run,
    })
}

/// The rules after the change.
fn rules(args: &Set, current: &MirrorSpec) -> Result<Vec<MirrorRule>, Failure> {
    let rules = |args: &[RuleArg]| -> Vec<MirrorRule> {
        args.iter().filter_map(|rule| rule.0.clone()).collect()
    };
    let change = Change {
        option: "--rule",
        whole: &[],
        add: &rules(&args.rule_add),
        remove: &rules(&args.rule_remove),
    };
    change.apply(&current.rules, MirrorRule::clone, |a, b| a == b, rule_text)
}

/// The interfaces that get copies after the change.
fn devices(args: &Set, current: &MirrorSpec) -> Result<Vec<MirrorDevice>, Failure> {
    let names = |args: &[TargetArg]| -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for target in args {
            let TargetArg::Devices(devices) = target else {
                let message = "--to-add and --to-remove are for interfaces: dev:IFACE[,IFACE...]";
                return Err(
                    Failure::new(Code::Usage, message).hint("another ring or collector: --to")
                );
            };
            names.extend(devices.iter().cloned());
        }
        Ok(names)
    };
    let change = Change {
        option: "--to",
        whole: &[],
        add: &names(&args.to_add)?,
        remove: &names(&args.to_remove)?,
    };
    let untagged = |name: &String| MirrorDevice {
        name: name.clone(),
        vlan_push: None,
    };
    let is = |device: &MirrorDevice, name: &String| device.name == *name;
    change.apply(&current.devices, untagged, is, String::clone)
}

impl Kind for Mirror {
    const NOUN: &'static str = "mirror";
    const COMMAND: &'static str = "mirror";
    const DAEMON: &'static str = "mirrord";
    const HEADER: &'static [&'static str] = &[
        "NAME",
        "IFACE",
        "DIRECTION",
        "TO",
        "STATE",
        ">SEEN",
        ">MIRRORED",
        ">LIMITED",
        "DROPS",
        "REASON",
    ];

    resource::calls! {
        MirrorServiceClient, mirror, mirrors, MirrorSpec,
        create_mirror(CreateMirrorRequest), update_mirror(UpdateMirrorRequest),
        list_mirrors(ListMirrorsRequest), get_mirror(GetMirrorRequest), delete_mirror(DeleteMirrorRequest),
    }

    fn same_work(one: &MirrorSpec, other: &MirrorSpec) -> bool {
        let collector = |spec: &MirrorSpec| {
            let overlay = spec.overlay.as_ref();
            overlay.map(|it| (it.kind, it.remote.clone(), it.port, it.id))
        };
        let devices = |spec: &MirrorSpec| {
            let names = spec.devices.iter().map(|device| device.name.clone());
            names.collect::<Vec<_>>()
        };
        let place = |spec: &MirrorSpec| {
            (
                spec.interface.clone(),
                spec.hook,
                spec.ring.clone(),
                collector(spec),
                devices(spec),
            )
        };
        // Two that copy different frames to one collector are two.
        let frames = |spec: &MirrorSpec| (spec.direction, spec.rules.clone(), spec.filter.clone());
        (place(one), frames(one)) == (place(other), frames(other))
    }

    fn filter(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.filter)
    }

    fn row(&self) -> Vec<String> {
        view::row(self)
    }

    fn blocks(&self) -> Vec<Block> {
        view::blocks(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn try_parse(args: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["mirror"], args].concat()).map(|cli| cli.command)
    }

    fn request(args: &[&str]) -> Result<(String, MirrorSpec), Failure> {
        match try_parse(args).unwrap() {
            Command::Add(args) => wanted(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mirror_is_named_by_interface_and_target() {
        let args = ["add", "eth0", "--to", "gue:192.0.2.9:7080", "--ephemeral"];
        let (name, spec) = request(&args).unwrap();
        assert_eq!(name, "eth0-gue-192-0-2-9");
        assert_eq!((spec.interface.as_str(), spec.ephemeral), ("eth0", true));
    }

    #[test]
    fn the_interface_may_have_its_old_name() {
        let args = ["add", "--iface=eth0", "--redirect-to=gre1", "--dst-port=0"];
        let (name, spec) = request(&args).unwrap();
        assert_eq!(name, "eth0-gre1");
        assert_eq!(spec.interface, "eth0");
        assert!(request(&["add", "--version=1.01", "--to", "ring:a"]).is_err());
        assert!(try_parse(&["add", "--to", "ring:a"]).is_err());
        assert!(try_parse(&["add", "eth0", "--iface", "eth1", "--to", "ring:a"]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_a_mistake_of_usage() {
        for args in [
            &["add", "eth0"][..],
            &["add", "eth0", "--to", "ring:a", "--ttl", "5"],
            &["add", "eth0", "--to", "ring:a", "--to", "ring:b"],
            &["add", "eth0", "--to", "ring:a", "--src-port", "x"],
        ] {
            let code = request(args).map_err(|failure| failure.code);
            assert_eq!(code.map(|_| ()), Err(Code::Usage), "{args:?}");
        }
    }

    #[test]
    fn only_the_options_given_are_in_the_update() {
        let args = ["set", "x", "--rule", "dport 80", "--ephemeral=false"];
        let Ok(Command::Set(args)) = try_parse(&args) else {
            panic!()
        };
        let (_, current) = request(&["add", "eth0", "--to", "ring:a", "--ephemeral"]).unwrap();
        let update = set_request(&args, &current).unwrap();
        assert_eq!(update.update_mask.unwrap().paths, ["rules", "ephemeral"]);
        assert!(!update.spec.unwrap().ephemeral);
    }

    #[test]
    fn rules_and_interfaces_come_and_go() {
        let add = [
            "add", "eth0", "--to", "dev:a,b", "--rule", "dport 80", "--rule", "dport 53",
        ];
        let (_, current) = request(&add).unwrap();
        let args = [
            "set",
            "x",
            "--rule-remove",
            "dport 80",
            "--rule-add",
            "exclude vlan 5",
            "--to-add",
            "dev:c",
            "--to-remove=dev:a",
        ];
        let Ok(Command::Set(args)) = try_parse(&args) else {
            panic!()
        };
        let update = set_request(&args, &current).unwrap();
        let spec = update.spec.unwrap();
        let rules: Vec<String> = spec.rules.iter().map(rule_text).collect();
        assert_eq!(rules, ["accept dport 53", "exclude vlan 5"]);
        let devices: Vec<&str> = spec.devices.iter().map(|it| &*it.name).collect();
        assert_eq!(devices, ["b", "c"]);
        assert_eq!(update.update_mask.unwrap().paths, ["devices", "rules"]);
    }

    #[test]
    fn copies_of_other_frames_to_one_collector_are_another_mirror() {
        let spec = |args: &[&str]| {
            request(&[&["add", "eth0", "--to", "gue:192.0.2.9"], args].concat())
                .unwrap()
                .1
        };
        let web = spec(&["--rule", "dport 80"]);
        assert!(Mirror::same_work(
            &web,
            &spec(&["--rule", "dport 80", "--rate", "10kpps"])
        ));
        assert!(!Mirror::same_work(&web, &spec(&["--rule", "dport 53"])));
        assert!(!Mirror::same_work(
            &web,
            &spec(&["--rule", "dport 80", "--direction", "in"])
        ));
    }
}
