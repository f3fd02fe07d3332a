//! `fluxctl tunnel`: rings into tunnels and tunnels into rings, through tunneld.

mod options;
mod view;

use crate::add::{self, AddArgs};
use crate::complete;
use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure};
use crate::lists::Change;
use crate::output::{Block, note};
use crate::resource::{self, Kind};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{
    MapArg, MapIdArg, Network, ReceiveWork, SendWork, TunnelKindArg, TunnelReceiveArgs,
    TunnelSendArgs, TunnelSetArgs, bare_address,
};
use fluxcap_proto::v1::tunnel_service_client::TunnelServiceClient;
use fluxcap_proto::v1::{
    CreateTunnelRequest, DeleteTunnelRequest, GetTunnelRequest, ListTunnelsRequest, Tunnel,
    TunnelMapping, TunnelReceive, TunnelSpec, UpdateTunnelRequest,
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
    /// Show tunnels, all unless some are named: path or senders, rings, counters
    Show {
        /// Names of the tunnels
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Tunnel>))]
        names: Vec<String>,
    },
    /// Change a running tunnel; options not given stay as they are
    Set(Box<Set>),
    /// Stop tunnels and forget them
    #[command(visible_aliases = ["rm", "del"])]
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

    #[command(flatten)]
    add: AddArgs,

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

    #[command(flatten)]
    add: AddArgs,

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

    /// Far end, of a tunnel that sends: an address or the name of a host
    #[arg(long, value_name = "ADDR")]
    remote: Option<String>,

    /// Rings from now on, of a tunnel that sends; those that were read before go on where they are
    #[arg(long, value_name = "RING[,RING...]", value_delimiter = ',', conflicts_with_all = ["rings_add", "rings_remove"])]
    rings: Vec<String>,

    /// Send these rings, too
    #[arg(
        long,
        alias = "rings+",
        value_name = "RING[,RING...]",
        value_delimiter = ','
    )]
    rings_add: Vec<String>,

    /// Send these rings no longer
    #[arg(
        long,
        alias = "rings-",
        value_name = "RING[,RING...]",
        value_delimiter = ','
    )]
    rings_remove: Vec<String>,

    /// Ring of the packets with this key, VNI or session; the others of the map stay
    #[arg(
        long,
        alias = "map+",
        value_name = "ID=RING",
        value_delimiter = ',',
        conflicts_with = "map"
    )]
    map_add: Vec<MapArg>,

    /// Packets with this key, VNI or session, or none, have no ring of their own any more
    #[arg(
        long,
        alias = "map-",
        value_name = "ID",
        value_delimiter = ',',
        conflicts_with = "map"
    )]
    map_remove: Vec<MapIdArg>,

    /// Listen to these senders, too
    #[arg(
        long,
        alias = "from+",
        value_name = "CIDR",
        value_delimiter = ',',
        conflicts_with = "from"
    )]
    from_add: Vec<Network>,

    /// Listen to these senders no longer
    #[arg(
        long,
        alias = "from-",
        value_name = "CIDR",
        value_delimiter = ',',
        conflicts_with = "from"
    )]
    from_remove: Vec<Network>,

    #[command(flatten)]
    options: TunnelSetArgs,
}

impl Set {
    fn rings(&self) -> Change<'_, String> {
        Change {
            option: "--rings",
            whole: &self.rings,
            add: &self.rings_add,
            remove: &self.rings_remove,
        }
    }

    fn from(&self) -> Change<'_, Network> {
        Change {
            option: "--from",
            whole: &[],
            add: &self.from_add,
            remove: &self.from_remove,
        }
    }

    /// Whether there is something that is for tunnels that send, and something for those that receive.
    fn sides(&self) -> (bool, bool) {
        let map = !(self.map_add.is_empty() && self.map_remove.is_empty());
        let send = self.remote.is_some() || self.rings().is_given();
        (send, map || self.from().is_given())
    }
}

/// Runs the command. What is wrong with the command line is said before tunneld is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Send(args) => add(globals, &args.add, to_send(args)?).await,
            Command::Recv(args) => add(globals, &args.add, to_receive(args)?).await,
            Command::List => resource::list::<Tunnel>(globals).await,
            Command::Show { names } => resource::show::<Tunnel>(globals, names).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Tunnel>(globals, names).await,
        }
    })
}

/// A tunnel that is to be added, and the name that it gets when none is given.
type Wanted = (String, TunnelSpec);

fn to_send(args: &Send) -> Result<Wanted, Failure> {
    let work = SendWork::new(&args.rings, args.kind, &args.remote)?;
    Ok((work.default_name(), args.options.to_spec(&work)?))
}

fn to_receive(args: &Recv) -> Result<Wanted, Failure> {
    let work = ReceiveWork {
        kind: args.kind,
        ring: args.ring.clone(),
    };
    let spec = args.options.to_spec(&work)?;
    let name = work.default_name(spec.receive.as_ref().map_or("", first_ring));
    Ok((name, spec))
}

fn first_ring(receive: &TunnelReceive) -> &str {
    match receive.map.first() {
        Some(mapping) => &mapping.ring,
        None => &receive.default_ring,
    }
}

/// Makes a tunnel, and tells how it begins: what its path lacks is known at once or never.
async fn add(globals: &Globals, args: &AddArgs, (name, spec): Wanted) -> Result<(), Failure> {
    let tunnel: Tunnel = add::begin(globals, args, &name, spec).await?;
    let send = tunnel.status.as_ref().and_then(|it| it.send.as_ref());
    if let Some(path) = send.and_then(|send| send.path.as_ref())
        && !path.warning.is_empty()
        && !globals.quiet
    {
        note(&format!("warning: {}", path.warning));
    }
    add::finish(globals, args, tunnel).await
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    if args.options == TunnelSetArgs::default() && args.sides() == (false, false) {
        return Err(resource::nothing_to_change::<Tunnel>(&args.name));
    }
    // What an option means depends on the kind and the direction.
    let tunnel: Tunnel = resource::get(globals, &args.name).await?;
    let request = set_request(args, &tunnel.spec.unwrap_or_default())?;
    resource::set::<Tunnel>(globals, &args.name, request).await
}

fn set_request(args: &Set, current: &TunnelSpec) -> Result<UpdateTunnelRequest, Failure> {
    let (mut spec, mut fields) = args.options.changes(current)?;
    let (sends, receives) = args.sides();
    match (&mut spec.send, &mut spec.receive) {
        (Some(send), _) if !receives => {
            if let Some(remote) = &args.remote {
                send.remote = bare_address(remote).to_owned();
                fields.push("send.remote");
            }
            if args.rings().is_given() {
                send.rings = args.rings().names(&send.rings)?;
                fields.push("send.rings");
            }
        }
        (None, Some(receive)) if !sends => change_receive(args, receive, &mut fields)?,
        (send, _) => {
            let (options, this) = match send {
                Some(_) => (
                    "--map-add, --map-remove, --from-add and --from-remove",
                    "sends",
                ),
                None => (
                    "--remote, --rings, --rings-add and --rings-remove",
                    "receives",
                ),
            };
            let message = format!("{options} are not for tunnel {}, which {this}", args.name);
            return Err(Failure::new(Code::Usage, message));
        }
    }
    Ok(UpdateTunnelRequest {
        name: args.name.clone(),
        spec: Some(spec),
        update_mask: resource::mask(&fields),
        validate_only: args.dry_run,
    })
}

/// Changes who is listened to, and which identifier goes into which ring.
fn change_receive(
    args: &Set,
    receive: &mut TunnelReceive,
    fields: &mut Vec<&'static str>,
) -> Result<(), Failure> {
    let from = args.from();
    if from.is_given() {
        let is = |one: &String, other: &Network| one.parse() == Ok(*other);
        receive.from = from.apply(&receive.from, Network::to_string, is, Network::to_string)?;
        fields.push("receive.from");
    }
    for mapping in args.map_add.iter().map(MapArg::to_message) {
        // An identifier that is there gets another ring.
        match receive.map.iter_mut().find(|it| it.id == mapping.id) {
            Some(known) => known.ring = mapping.ring,
            None => receive.map.push(mapping),
        }
    }
    let map = Change {
        option: "--map",
        whole: &[],
        add: &[],
        remove: &args.map_remove,
    };
    let is = |mapping: &TunnelMapping, id: &MapIdArg| mapping.id == id.0;
    receive.map = map.apply(
        &receive.map,
        |_| TunnelMapping::default(),
        is,
        MapIdArg::to_string,
    )?;
    if !args.map_add.is_empty() || map.is_given() {
        fields.push("receive.map");
    }
    Ok(())
}

impl Kind for Tunnel {
    const NOUN: &'static str = "tunnel";
    const COMMAND: &'static str = "tunnel";
    const DAEMON: &'static str = "tunneld";
    const HEADER: &'static [&'static str] = &[
        "NAME", "KIND", "RINGS", "PEER", "STATE", "IO", ">IN", ">OUT", ">LOST", "DROPS", "REASON",
    ];

    resource::calls! {
        TunnelServiceClient, tunnel, tunnels, TunnelSpec,
        create_tunnel(CreateTunnelRequest), update_tunnel(UpdateTunnelRequest),
        list_tunnels(ListTunnelsRequest), get_tunnel(GetTunnelRequest), delete_tunnel(DeleteTunnelRequest),
    }

    fn same_work(one: &TunnelSpec, other: &TunnelSpec) -> bool {
        let way = |spec: &TunnelSpec| {
            let send = spec.send.as_ref();
            let send = send.map(|it| (it.rings.clone(), it.remote.clone(), it.id));
            let receive = spec.receive.as_ref();
            let receive = receive.map(|it| (it.map.clone(), it.default_ring.clone()));
            (send, receive)
        };
        let place = |spec: &TunnelSpec| {
            (
                spec.kind,
                spec.inner,
                spec.port,
                spec.local.clone(),
                spec.device.clone(),
            )
        };
        (way(one), place(one)) == (way(other), place(other))
    }

    fn filter(&self) -> &str {
        let edits = self.spec.as_ref().and_then(|spec| spec.edits.as_ref());
        edits.map_or("", |edits| &edits.filter)
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
    use fluxcap_proto::v1::TunnelKind;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(args: &[&str]) -> Command {
        Cli::parse_from([&["tunnel"], args].concat()).command
    }

    fn request(args: &[&str]) -> Result<Wanted, Failure> {
        match parse(args) {
            Command::Send(args) => to_send(&args),
            Command::Recv(args) => to_receive(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sender_is_named_by_rings_kind_and_far_end() {
        let args = ["send", "a,shm:b", "gretap", "2001:db8::9", "--key", "500"];
        let (name, spec) = request(&args).unwrap();
        assert_eq!(name, "a-shm-b-gretap-2001-db8--9");
        let send = spec.send.unwrap();
        assert_eq!(send.rings, ["a", "shm:b"]);
        assert_eq!((send.remote.as_str(), send.id), ("2001:db8::9", Some(500)));
    }

    #[test]
    fn a_receiver_is_named_by_its_first_ring_and_kind() {
        let (name, spec) = request(&["recv", "gretap", "edge", "--key", "any"]).unwrap();
        assert_eq!(name, "edge-gretap");
        assert_eq!(spec.receive.unwrap().default_ring, "edge");
        let (name, spec) = request(&["recv", "vxlan", "--map", "9001=edge,9002=core"]).unwrap();
        assert_eq!((&*name, spec.kind()), ("edge-vxlan", TunnelKind::Vxlan));
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
        let (_, current) = request(&["send", "a", "gretap", "h", "--key", "5"]).unwrap();
        let update = set_request(&args, &current).unwrap();
        let paths = update.update_mask.unwrap().paths;
        assert_eq!(paths, ["send.ttl", "send.ttl_inherit", "edits.filter"]);
    }

    fn changed(current: &[&str], set: &[&str]) -> Result<(TunnelSpec, Vec<String>), Failure> {
        let Command::Set(args) = parse(&[&["set", "x"], set].concat()) else {
            panic!()
        };
        let (_, current) = request(current).unwrap();
        let update = set_request(&args, &current)?;
        Ok((update.spec.unwrap(), update.update_mask.unwrap().paths))
    }

    #[test]
    fn identifiers_and_senders_come_and_go_one_by_one() {
        let current = [
            "recv",
            "vxlan",
            "--map",
            "1=a,2=b",
            "--from",
            "192.0.2.0/24,192.0.3.7",
        ];
        let set = [
            "--map-add",
            "9=core,2=c",
            "--map-remove",
            "1",
            "--from-add=10.0.0.1",
            "--from-remove=192.0.3.7",
        ];
        let (spec, fields) = changed(&current, &set).unwrap();
        let receive = spec.receive.unwrap();
        let map: Vec<_> = receive
            .map
            .iter()
            .map(|it| (it.id, it.ring.as_str()))
            .collect();
        assert_eq!(map, [(Some(2), "c"), (Some(9), "core")]);
        assert_eq!(receive.from, ["192.0.2.0/24", "10.0.0.1"]);
        assert_eq!(fields, ["receive.from", "receive.map"]);
        let (spec, _) = changed(&current, &["--map+", "none=rest", "--map-=2"]).unwrap();
        assert_eq!(spec.receive.unwrap().map.last().unwrap().id, None);
        for wrong in [
            &["--map-remove", "7"][..],
            &["--remote", "h"],
            &["--rings-add", "c"],
        ] {
            assert!(changed(&current, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn far_end_and_rings_of_a_sender_change() {
        let current = ["send", "a,b", "gretap", "h"];
        let set = [
            "--remote",
            "[2001:db8::9]",
            "--rings-add",
            "c",
            "--rings-remove",
            "a",
        ];
        let (spec, fields) = changed(&current, &set).unwrap();
        let send = spec.send.unwrap();
        assert_eq!(
            (&send.rings[..], &*send.remote),
            (&["b".to_owned(), "c".to_owned()][..], "2001:db8::9")
        );
        assert_eq!(fields, ["send.remote", "send.rings"]);
        assert!(changed(&current, &["--map-add", "1=a"]).is_err());
    }

    #[test]
    fn another_network_at_one_collector_is_another_tunnel() {
        let spec = |vni: &str| {
            request(&["send", "a", "vxlan", "h", "--vni", vni])
                .unwrap()
                .1
        };
        assert!(Tunnel::same_work(&spec("5"), &spec("5")));
        assert!(!Tunnel::same_work(&spec("5"), &spec("6")));
    }

    #[test]
    fn a_set_without_options_is_known_as_such() {
        let Command::Set(args) = parse(&["set", "x", "-n"]) else {
            panic!()
        };
        assert_eq!(args.options, TunnelSetArgs::default());
    }
}
