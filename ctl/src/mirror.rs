//! `fluxctl mirror`: filtered copies of the traffic of interfaces, through mirrord.

mod options;
mod view;

use crate::complete;
use crate::connect::{Globals, block_on};
use crate::exit::Failure;
use crate::output::Block;
use crate::resource::{self, Kind};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{ClassicArgs, MirrorArgs, default_mirror_name};
use fluxcap_proto::v1::mirror_service_client::MirrorServiceClient;
use fluxcap_proto::v1::{
    CreateMirrorRequest, DeleteMirrorRequest, GetMirrorRequest, ListMirrorsRequest, Mirror,
    MirrorSpec, UpdateMirrorRequest,
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
    #[command(after_help = EXAMPLES)]
    Add(Box<Add>),
    /// List all mirrors
    #[command(visible_alias = "ls")]
    List,
    /// Show one mirror: programs, rules, outputs, counters
    Show {
        /// Name of the mirror
        #[arg(add = ArgValueCandidates::new(complete::known::<Mirror>))]
        name: String,
    },
    /// Change a running mirror; options not given stay as they are
    Set(Box<Set>),
    /// Stop mirrors and forget them
    #[command(visible_alias = "rm")]
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
    #[arg(value_name = "IFACE", required_unless_present = "iface", conflicts_with = "iface", add = ArgValueCompleter::new(complete::interface))]
    interface: Option<String>,

    /// Name of the mirror [default: IFACE-TARGET]
    #[arg(long)]
    name: Option<String>,

    /// Check only; the kernel is asked whether it takes the programs
    #[arg(long, short = 'n')]
    dry_run: bool,

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

    #[command(flatten)]
    options: MirrorArgs,
}

/// Runs the command. What is wrong with the command line is said before mirrord is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Add(args) => add(globals, add_request(args)?).await,
            Command::List => resource::list::<Mirror>(globals).await,
            Command::Show { name } => resource::show::<Mirror>(globals, name).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Mirror>(globals, names).await,
        }
    })
}

fn add_request(args: &Add) -> Result<CreateMirrorRequest, Failure> {
    let interface = args.interface.as_ref().or(args.classic.iface.as_ref());
    let interface = interface.map_or("", String::as_str);
    let mut spec = args.options.to_spec(interface, None, &args.classic)?;
    spec.ephemeral = args.ephemeral;
    Ok(CreateMirrorRequest {
        name: args
            .name
            .clone()
            .unwrap_or_else(|| default_mirror_name(&spec)),
        spec: Some(spec),
        validate_only: args.dry_run,
    })
}

/// Makes a mirror, and tells how it begins: what the kernel has against it is known at once.
async fn add(globals: &Globals, request: CreateMirrorRequest) -> Result<(), Failure> {
    let (name, dry_run) = (request.name.clone(), request.validate_only);
    let mirror: Mirror = resource::begin(globals, &name, request, dry_run).await?;
    resource::begun(globals, &name, mirror)
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    if args.options == MirrorArgs::default() && args.ephemeral.is_none() {
        return Err(resource::nothing_to_change::<Mirror>(&args.name));
    }
    // What an option means depends on the target.
    let mirror: Mirror = resource::get(globals, &args.name).await?;
    let request = set_request(args, &mirror.spec.unwrap_or_default())?;
    resource::set::<Mirror>(globals, &args.name, request).await
}

fn set_request(args: &Set, current: &MirrorSpec) -> Result<UpdateMirrorRequest, Failure> {
    let (mut spec, mut fields) = args.options.changes(current)?;
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
        MirrorServiceClient, mirror, mirrors,
        create_mirror(CreateMirrorRequest), update_mirror(UpdateMirrorRequest),
        list_mirrors(ListMirrorsRequest), get_mirror(GetMirrorRequest), delete_mirror(DeleteMirrorRequest),
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
    use crate::exit::Code;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn try_parse(args: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["mirror"], args].concat()).map(|cli| cli.command)
    }

    fn request(args: &[&str]) -> Result<CreateMirrorRequest, Failure> {
        match try_parse(args).unwrap() {
            Command::Add(args) => add_request(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mirror_is_named_by_interface_and_target() {
        let made = request(&["add", "eth0", "--to", "gue:192.0.2.9:7080", "--ephemeral"]).unwrap();
        assert_eq!(made.name, "eth0-gue-192-0-2-9");
        let spec = made.spec.unwrap();
        assert_eq!((spec.interface.as_str(), spec.ephemeral), ("eth0", true));
        let args = ["add", "eth0", "--to", "ring:web", "--name", "x", "-n"];
        let made = request(&args).unwrap();
        assert_eq!((made.name.as_str(), made.validate_only), ("x", true));
    }

    #[test]
    fn the_interface_may_have_its_old_name() {
        let args = ["add", "--iface=eth0", "--redirect-to=gre1", "--dst-port=0"];
        let made = request(&args).unwrap();
        assert_eq!(made.name, "eth0-gre1");
        assert_eq!(made.spec.unwrap().interface, "eth0");
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
        let current = request(&["add", "eth0", "--to", "ring:a", "--ephemeral"]).unwrap();
        let update = set_request(&args, &current.spec.unwrap()).unwrap();
        assert_eq!(update.update_mask.unwrap().paths, ["rules", "ephemeral"]);
        assert!(!update.spec.unwrap().ephemeral);
    }
}
