//! `fluxctl tunnel`: rings into tunnels and tunnels into rings, through tunneld.

mod options;
mod view;

use crate::complete;
use crate::connect::{Globals, block_on};
use crate::exit::Failure;
use crate::output::{Block, note};
use crate::resource::{self, Kind};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{
    ReceiveWork, SendWork, TunnelKindArg, TunnelReceiveArgs, TunnelSendArgs, TunnelSetArgs,
};
use fluxcap_proto::v1::tunnel_service_client::TunnelServiceClient;
use fluxcap_proto::v1::{
    CreateTunnelRequest, DeleteTunnelRequest, GetTunnelRequest, ListTunnelsRequest, Tunnel,
    TunnelReceive, TunnelSpec, UpdateTunnelRequest,
};

const SEND_EXAMPLES: &str = "\
Examples:
  fluxctl tunnel send cisco gretap 192.0.2.9 --key 500
  fluxctl tunnel send cisco vxlan 2001:db8::9 --vni 9001 --mtu-policy truncate
  fluxctl tunnel send cisco erspan ids.example --session 17 --index 3 --snaplen 256
  fluxctl tunnel send a,b gue 192.0.2.9 --dport 7080 --filter 'tcp port 80'

gre, ipip, gue and fou (unless --inner gretap) carry IP packets without their Ethernet header.";

const RECV_EXAMPLES: &str = "\
Examples:
  fluxctl tunnel recv gretap edge                      packets without a key; --key 5, --key any
  fluxctl tunnel recv vxlan --map 9001=edge,9002=core --from 192.0.2.0/24
  fluxctl tunnel recv erspan edge --session 17
  fluxctl tunnel recv gue edge --dport 7080";

/// `fluxctl tunnel ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send rings into a tunnel
    #[command(after_help = SEND_EXAMPLES)]
    Send(Send),
    /// Receive a tunnel into a ring, or into one for each key, VNI or session
    #[command(after_help = RECV_EXAMPLES)]
    Recv(Recv),
    /// List all tunnels
    #[command(visible_alias = "ls")]
    List,
    /// Show one tunnel: path or senders, rings, counters
    Show {
        /// Name of the tunnel
        #[arg(add = ArgValueCandidates::new(complete::known::<Tunnel>))]
        name: String,
    },
    /// Change a running tunnel; options not given stay as they are
    Set(Set),
    /// Stop tunnels and forget them
    #[command(visible_alias = "rm")]
    Delete {
        /// Names of the tunnels
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Tunnel>))]
        names: Vec<String>,
    },
}

/// `fluxctl tunnel send`
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Rings, several with commas between; they are merged by timestamp
    #[arg(value_name = "RING[,RING...]", add = ArgValueCompleter::new(complete::ring_list))]
    rings: String,

    /// gre, gretap, nvgre, erspan, vxlan, geneve, gue, fou or ipip
    #[arg(value_enum, hide_possible_values = true)]
    kind: TunnelKindArg,

    /// Far end: an address or the name of a host
    remote: String,

    /// Name of the tunnel [default: RING-KIND-REMOTE]
    #[arg(long)]
    name: Option<String>,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    #[command(flatten)]
    options: TunnelSendArgs,
}

/// `fluxctl tunnel recv`
#[derive(Debug, Args)]
pub(crate) struct Recv {
    /// gre, gretap, nvgre, erspan, vxlan, geneve, gue, fou, ipip or tzsp
    #[arg(value_enum, hide_possible_values = true)]
    kind: TunnelKindArg,

    /// Ring that gets the frames; may be left out with --map
    #[arg(add = ArgValueCandidates::new(complete::rings))]
    ring: Option<String>,

    /// Name of the tunnel [default: RING-KIND]
    #[arg(long)]
    name: Option<String>,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    #[command(flatten)]
    options: TunnelReceiveArgs,
}

/// `fluxctl tunnel set`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name of the tunnel
    #[arg(add = ArgValueCandidates::new(complete::known::<Tunnel>))]
    name: String,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    #[command(flatten)]
    options: TunnelSetArgs,
}

/// Runs the command. What is wrong with the command line is said before tunneld is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Send(args) => add(globals, send_request(args)?).await,
            Command::Recv(args) => add(globals, recv_request(args)?).await,
            Command::List => resource::list::<Tunnel>(globals).await,
            Command::Show { name } => resource::show::<Tunnel>(globals, name).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Tunnel>(globals, names).await,
        }
    })
}

fn send_request(args: &Send) -> Result<CreateTunnelRequest, Failure> {
    let work = SendWork::new(&args.rings, args.kind, &args.remote)?;
    Ok(CreateTunnelRequest {
        name: args.name.clone().unwrap_or_else(|| work.default_name()),
        spec: Some(args.options.to_spec(&work)?),
        validate_only: args.dry_run,
    })
}

fn recv_request(args: &Recv) -> Result<CreateTunnelRequest, Failure> {
    let work = ReceiveWork {
        kind: args.kind,
        ring: args.ring.clone(),
    };
    let spec = args.options.to_spec(&work)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => work.default_name(spec.receive.as_ref().map_or("", first_ring)),
    };
    Ok(CreateTunnelRequest {
        name,
        spec: Some(spec),
        validate_only: args.dry_run,
    })
}

fn first_ring(receive: &TunnelReceive) -> &str {
    match receive.map.first() {
        Some(mapping) => &mapping.ring,
        None => &receive.default_ring,
    }
}

/// Makes a tunnel, and tells how it begins: what its path lacks is known at once or never.
async fn add(globals: &Globals, request: CreateTunnelRequest) -> Result<(), Failure> {
    let (name, dry_run) = (request.name.clone(), request.validate_only);
    let tunnel: Tunnel = resource::begin(globals, &name, request, dry_run).await?;
    let send = tunnel.status.as_ref().and_then(|it| it.send.as_ref());
    if let Some(path) = send.and_then(|send| send.path.as_ref())
        && !path.warning.is_empty()
    {
        note(&format!("warning: {}", path.warning));
    }
    resource::begun(globals, &name, tunnel)
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    if args.options == TunnelSetArgs::default() {
        return Err(resource::nothing_to_change::<Tunnel>(&args.name));
    }
    // What an option means depends on the kind and the direction.
    let tunnel: Tunnel = resource::get(globals, &args.name).await?;
    let request = set_request(args, &tunnel.spec.unwrap_or_default())?;
    resource::set::<Tunnel>(globals, &args.name, request).await
}

fn set_request(args: &Set, current: &TunnelSpec) -> Result<UpdateTunnelRequest, Failure> {
    let (spec, fields) = args.options.changes(current)?;
    Ok(UpdateTunnelRequest {
        name: args.name.clone(),
        spec: Some(spec),
        update_mask: resource::mask(&fields),
        validate_only: args.dry_run,
    })
}

impl Kind for Tunnel {
    const NOUN: &'static str = "tunnel";
    const COMMAND: &'static str = "tunnel";
    const DAEMON: &'static str = "tunneld";
    const HEADER: &'static [&'static str] = &[
        "NAME", "KIND", "RINGS", "PEER", "STATE", "IO", ">IN", ">OUT", ">LOST", "DROPS", "REASON",
    ];

    resource::calls! {
        TunnelServiceClient, tunnel, tunnels,
        create_tunnel(CreateTunnelRequest), update_tunnel(UpdateTunnelRequest),
        list_tunnels(ListTunnelsRequest), get_tunnel(GetTunnelRequest), delete_tunnel(DeleteTunnelRequest),
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
    use fluxcap_proto::v1::TunnelKind;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(args: &[&str]) -> Command {
        Cli::parse_from([&["tunnel"], args].concat()).command
    }

    fn request(args: &[&str]) -> Result<CreateTunnelRequest, Failure> {
        match parse(args) {
            Command::Send(args) => send_request(&args),
            Command::Recv(args) => recv_request(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sender_is_named_by_rings_kind_and_far_end() {
        let made = request(&["send", "a,shm:b", "gretap", "2001:db8::9", "--key", "500"]).unwrap();
        assert_eq!(made.name, "a-shm-b-gretap-2001-db8--9");
        let spec = made.spec.unwrap();
        let send = spec.send.unwrap();
        assert_eq!(send.rings, ["a", "shm:b"]);
        assert_eq!((send.remote.as_str(), send.id), ("2001:db8::9", Some(500)));
        let made = request(&["send", "a", "gre", "h", "--name", "x", "--dry-run"]).unwrap();
        assert_eq!((made.name.as_str(), made.validate_only), ("x", true));
    }

    #[test]
    fn a_receiver_is_named_by_its_first_ring_and_kind() {
        let made = request(&["recv", "gretap", "edge", "--key", "any"]).unwrap();
        assert_eq!(made.name, "edge-gretap");
        assert_eq!(made.spec.unwrap().receive.unwrap().default_ring, "edge");
        let made = request(&["recv", "vxlan", "--map", "9001=edge,9002=core"]).unwrap();
        assert_eq!(made.name, "edge-vxlan");
        assert_eq!(made.spec.unwrap().kind(), TunnelKind::Vxlan);
    }

    #[test]
    fn what_makes_no_sense_is_a_mistake_of_usage() {
        for args in [
            &["send", "a", "vxlan", "h", "--key", "5"][..],
            &["send", "a,", "vxlan", "h"],
            &["recv", "vxlan"],
        ] {
            let code = request(args).map_err(|failure| failure.code);
            assert_eq!(code.map(|_| ()), Err(Code::Usage), "{args:?}");
        }
    }

    #[test]
    fn only_the_options_given_are_in_the_update() {
        let Command::Set(args) = parse(&["set", "x", "--ttl", "9", "--filter", ""]) else {
            panic!()
        };
        let current = request(&["send", "a", "gretap", "h", "--key", "5"]).unwrap();
        let update = set_request(&args, &current.spec.unwrap()).unwrap();
        let paths = update.update_mask.unwrap().paths;
        assert_eq!(paths, ["send.ttl", "send.ttl_inherit", "edits.filter"]);
    }

    #[test]
    fn a_set_without_options_is_known_as_such() {
        let Command::Set(args) = parse(&["set", "x", "-n"]) else {
            panic!()
        };
        assert_eq!(args.options, TunnelSetArgs::default());
    }
}
