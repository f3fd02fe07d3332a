//! `fluxctl tx`: transmits from rings to interfaces, through txd.

use crate::add::{self, AddArgs};
use crate::connect::{Globals, block_on};
use crate::exit::Failure;
use crate::lists::Change;
use crate::output::{Block, by_reason, count};
use crate::resource::{self, Kind};
use crate::{complete, edits, names, scheduling};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{TransmitArgs, TransmitWork};
use fluxcap_proto::v1::start::At;
use fluxcap_proto::v1::transmit_service_client::TransmitServiceClient;
use fluxcap_proto::v1::{
    CreateTransmitRequest, DeleteTransmitRequest, GetTransmitRequest, ListTransmitsRequest, Start,
    Transmit, TransmitRingStatus, TransmitSpec, TransmitStatus, UpdateTransmitRequest,
};
use std::time::{Duration, UNIX_EPOCH};

/// `fluxctl tx ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Transmit rings to interfaces
    Add(Add),
    /// List all transmits
    #[command(visible_alias = "ls")]
    List,
    /// Show transmits, all unless some are named: interfaces, rings, edits, counters
    Show {
        /// Names of the transmits
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Transmit>))]
        names: Vec<String>,
    },
    /// Change a running transmit; options not given stay as they are
    Set(Set),
    /// Stop transmits and forget them
    #[command(visible_aliases = ["rm", "del"])]
    Delete {
        /// Names of the transmits
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Transmit>))]
        names: Vec<String>,
    },
}

/// `fluxctl tx add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Rings, several with commas between; they are merged by timestamp
    #[arg(value_name = "RING[,RING...]", add = ArgValueCompleter::new(complete::ring_list))]
    rings: String,

    /// Interfaces that send the frames, several with commas between; each gets them all
    #[arg(value_name = "IFACE[,IFACE...]", add = ArgValueCompleter::new(complete::interface_list))]
    interfaces: String,

    #[command(flatten)]
    add: AddArgs,

    #[command(flatten)]
    options: TransmitArgs,
}

/// `fluxctl tx set`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name of the transmit
    #[arg(add = ArgValueCandidates::new(complete::known::<Transmit>))]
    name: String,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Rings from now on; those that were read before go on where they are
    #[arg(long, value_name = "RING[,RING...]", value_delimiter = ',', conflicts_with_all = ["rings_add", "rings_remove"])]
    rings: Vec<String>,

    /// Transmit these rings, too
    #[arg(
        long,
        alias = "rings+",
        value_name = "RING[,RING...]",
        value_delimiter = ','
    )]
    rings_add: Vec<String>,

    /// Transmit these rings no longer
    #[arg(
        long,
        alias = "rings-",
        value_name = "RING[,RING...]",
        value_delimiter = ','
    )]
    rings_remove: Vec<String>,

    /// Interfaces from now on
    #[arg(long, value_name = "IFACE[,IFACE...]", value_delimiter = ',', conflicts_with_all = ["interfaces_add", "interfaces_remove"])]
    interfaces: Vec<String>,

    /// Send to these interfaces, too
    #[arg(
        long,
        alias = "interfaces+",
        value_name = "IFACE[,IFACE...]",
        value_delimiter = ','
    )]
    interfaces_add: Vec<String>,

    /// Send to these interfaces no longer
    #[arg(
        long,
        alias = "interfaces-",
        value_name = "IFACE[,IFACE...]",
        value_delimiter = ','
    )]
    interfaces_remove: Vec<String>,

    #[command(flatten)]
    options: TransmitArgs,
}

impl Set {
    /// How rings and interfaces change.
    fn lists(&self) -> [Change<'_, String>; 2] {
        let rings = Change {
            option: "--rings",
            whole: &self.rings,
            add: &self.rings_add,
            remove: &self.rings_remove,
        };
        let interfaces = Change {
            option: "--interfaces",
            whole: &self.interfaces,
            add: &self.interfaces_add,
            remove: &self.interfaces_remove,
        };
        [rings, interfaces]
    }
}

/// Runs the command. What is wrong with the command line is said before txd is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Add(args) => {
                let (name, spec) = wanted(args)?;
                add::add::<Transmit>(globals, &args.add, &name, spec).await
            }
            Command::List => resource::list::<Transmit>(globals).await,
            Command::Show { names } => resource::show::<Transmit>(globals, names).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Transmit>(globals, names).await,
        }
    })
}

/// What is to be added, and the name that it gets when none is given.
fn wanted(args: &Add) -> Result<(String, TransmitSpec), Failure> {
    let work: TransmitWork = format!("{}:{}", args.rings, args.interfaces).parse()?;
    let spec = args.options.to_specs(std::slice::from_ref(&work))?.pop();
    Ok((work.default_name(), spec.unwrap_or_default()))
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    let mut current = TransmitSpec::default();
    if args.lists().iter().any(Change::is_given) {
        let transmit: Transmit = resource::get(globals, &args.name).await?;
        current = transmit.spec.unwrap_or_default();
    }
    let request = set_request(args, &current)?;
    resource::set::<Transmit>(globals, &args.name, request).await
}

/// The update for `args`; `current` is what the transmit does now, of which the lists are needed that change.
fn set_request(args: &Set, current: &TransmitSpec) -> Result<UpdateTransmitRequest, Failure> {
    let [rings, interfaces] = args.lists();
    let mut fields = args.options.changed_fields();
    fields.extend(rings.is_given().then_some("rings"));
    fields.extend(interfaces.is_given().then_some("interfaces"));
    if fields.is_empty() {
        return Err(resource::nothing_to_change::<Transmit>(&args.name));
    }
    let work = TransmitWork {
        rings: rings.names(&current.rings)?,
        interfaces: interfaces.names(&current.interfaces)?,
    };
    let spec = args.options.to_specs(&[work])?.pop();
    Ok(UpdateTransmitRequest {
        name: args.name.clone(),
        spec,
        update_mask: resource::mask(&fields),
        validate_only: args.dry_run,
    })
}

impl Kind for Transmit {
    const NOUN: &'static str = "transmit";
    const COMMAND: &'static str = "tx";
    const DAEMON: &'static str = "txd";
    const HEADER: &'static [&'static str] = &[
        "NAME",
        "RINGS",
        "INTERFACES",
        "STATE",
        "IO",
        ">DELIVERED",
        ">SENT",
        ">LAPPED",
        "DROPS",
        "REASON",
    ];

    resource::calls! {
        TransmitServiceClient, transmit, transmits, TransmitSpec,
        create_transmit(CreateTransmitRequest), update_transmit(UpdateTransmitRequest),
        list_transmits(ListTransmitsRequest), get_transmit(GetTransmitRequest), delete_transmit(DeleteTransmitRequest),
    }

    fn same_work(one: &TransmitSpec, other: &TransmitSpec) -> bool {
        (&one.rings, &one.interfaces) == (&other.rings, &other.interfaces)
    }

    fn filter(&self) -> &str {
        let edits = self.spec.as_ref().and_then(|spec| spec.edits.as_ref());
        edits.map_or("", |edits| &edits.filter)
    }

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        vec![
            self.name.clone(),
            spec.rings.join(","),
            spec.interfaces.join(","),
            names::state(status.state).to_owned(),
            names::distinct(status.interfaces.iter().map(|it| it.io.as_str())),
            count(status.delivered_frames),
            count(status.sent_frames),
            count(status.lapped_frames),
            by_reason(&status.dropped_frames),
            status.reason,
        ]
    }

    fn blocks(&self) -> Vec<Block> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        vec![
            Block::Facts(facts(&self.name, &spec, &status)),
            interfaces(&spec, &status),
            rings(&status.rings),
        ]
    }
}

fn facts(name: &str, spec: &TransmitSpec, status: &TransmitStatus) -> Vec<(&'static str, String)> {
    vec![
        ("name", name.to_owned()),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("io", names::io(&spec.io).to_owned()),
        (
            "scheduling",
            scheduling::options(spec.latency, spec.scheduling.as_ref()),
        ),
        ("oversize frames", names::oversize(spec.oversize).to_owned()),
        ("begins at", start(spec.start.as_ref())),
        (
            "merge window",
            merge_window(spec.rings.len(), spec.merge_window_us),
        ),
        ("edits", edits::options(spec.edits.as_ref())),
        ("delivered frames", count(status.delivered_frames)),
        (
            "copied frames",
            match spec.interfaces.len() {
                0 | 1 => String::new(),
                _ => count(status.copied_frames),
            },
        ),
        ("sent frames", count(status.sent_frames)),
        ("sent bytes", count(status.sent_bytes)),
        ("lapped frames", count(status.lapped_frames)),
        ("truncated frames", count(status.truncated_frames)),
        ("not sent", by_reason(&status.dropped_frames)),
        ("remarks", status.remarks.join("; ")),
    ]
}

/// How long frames of several rings are held back to be merged; empty for a single ring.
pub(crate) fn merge_window(rings: usize, us: u32) -> String {
    match (rings, us) {
        (0 | 1, _) => String::new(),
        (_, 0) => "default".to_owned(),
        (_, us) => humantime::format_duration(Duration::from_micros(us.into())).to_string(),
    }
}

/// Where a reader begins, as the option says it.
pub(crate) fn start(start: Option<&Start>) -> String {
    match start.and_then(|start| start.at) {
        None | Some(At::Newest(_)) => "newest".to_owned(),
        Some(At::Oldest(_)) => "oldest".to_owned(),
        Some(At::Seq(seq)) => format!("seq:{seq}"),
        Some(At::TimeNs(ns)) => {
            format!(
                "time:{}",
                humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(ns))
            )
        }
    }
}

fn interfaces(spec: &TransmitSpec, status: &TransmitStatus) -> Block {
    let header = &[
        "INTERFACE",
        "STATE",
        ">INDEX",
        ">MTU",
        ">SENT",
        ">SENT BYTES",
        "NOT SENT",
        "REASON",
        "IO",
        "LAST FRAMES BY",
        "WHY",
    ];
    let rows = spec.interfaces.iter().map(|name| {
        let known = status.interfaces.iter().find(|status| status.name == *name);
        let status = known.cloned().unwrap_or_default();
        vec![
            name.clone(),
            names::state(status.state).to_owned(),
            status.ifindex.to_string(),
            status.mtu.to_string(),
            count(status.sent_frames),
            count(status.sent_bytes),
            by_reason(&status.dropped_frames),
            status.reason,
            status.io,
            status.last_io,
            status.io_reason,
        ]
    });
    Block::Rows(header, rows.collect())
}

/// How far a sender is in each of its rings.
pub(crate) fn rings(rings: &[TransmitRingStatus]) -> Block {
    let header = &[
        "RING",
        "STATE",
        ">EPOCH",
        ">LAG",
        ">DELIVERED",
        ">LAPPED",
        "REASON",
    ];
    let rows = rings.iter().map(|ring| {
        vec![
            ring.name.clone(),
            names::state(ring.state).to_owned(),
            ring.epoch.to_string(),
            count(ring.lag_frames),
            count(ring.delivered_frames),
            count(ring.lapped_frames),
            ring.reason.clone(),
        ]
    });
    Block::Rows(header, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;
    use crate::output::{Report, assert_shows, render};
    use crate::resource::{Listed as Transmits, Shown as OneTransmit};
    use clap::Parser;
    use fluxcap_proto::v1::{Latency, State, TransmitInterfaceStatus};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(args: &[&str]) -> Command {
        Cli::parse_from([&["tx"], args].concat()).command
    }

    #[test]
    fn the_default_name_is_made_of_rings_and_interfaces() {
        let Command::Add(args) = parse(&["add", "a", "eth3,eth4", "--cpu", "0,2-3"]) else {
            panic!()
        };
        let (name, spec) = wanted(&args).unwrap();
        assert_eq!(name, "a-eth3-eth4");
        assert_eq!(spec.interfaces, ["eth3", "eth4"]);
        assert_eq!(spec.scheduling.unwrap().cpus, [0, 2, 3]);
        let Command::Add(args) = parse(&["add", "shm:a,b", "eth3", "--from", "oldest"]) else {
            panic!()
        };
        let (name, spec) = wanted(&args).unwrap();
        assert_eq!(name, "shm-a-b-eth3");
        assert_eq!(
            (spec.rings, spec.interfaces),
            (vec!["shm:a".into(), "b".into()], vec!["eth3".into()])
        );
        assert_eq!(
            spec.start,
            Some(Start {
                at: Some(At::Oldest(true))
            })
        );
    }

    #[test]
    fn only_the_options_given_are_in_the_update() {
        let Command::Set(args) = parse(&["set", "a", "--qdisc-bypass=false", "--vlan-push", "5"])
        else {
            panic!()
        };
        let update = set_request(&args, &TransmitSpec::default()).unwrap();
        let paths = update.update_mask.unwrap().paths;
        assert_eq!(
            paths,
            ["qdisc_bypass", "edits.vlan_push", "edits.vlan_replace"]
        );
    }

    #[test]
    fn a_change_of_nothing_is_a_mistake() {
        let Command::Set(args) = parse(&["set", "a"]) else {
            panic!()
        };
        assert_eq!(
            set_request(&args, &TransmitSpec::default()).map_err(|failure| failure.code),
            Err(Code::Usage)
        );
    }

    #[test]
    fn rings_and_interfaces_come_and_go() {
        let current = TransmitSpec {
            rings: vec!["a".into(), "shm:b".into()],
            interfaces: vec!["eth3".into()],
            ..Default::default()
        };
        let args = [
            "set",
            "x",
            "--rings-add",
            "c",
            "--rings-remove",
            "a",
            "--interfaces",
            "eth4,eth3",
        ];
        let Command::Set(args) = parse(&args) else {
            panic!()
        };
        let update = set_request(&args, &current).unwrap();
        let spec = update.spec.unwrap();
        assert_eq!(spec.rings, ["shm:b", "c"]);
        assert_eq!(spec.interfaces, ["eth4", "eth3"]);
        assert_eq!(update.update_mask.unwrap().paths, ["rings", "interfaces"]);
    }

    #[test]
    fn a_shown_transmit_says_how_each_interface_is_and_why_its_backend_was_chosen() {
        let spec = TransmitSpec {
            rings: vec!["a".into(), "b".into()],
            interfaces: vec!["eth3".into(), "eth4".into(), "eth5".into()],
            start: Some(Start {
                at: Some(At::TimeNs(1)),
            }),
            merge_window_us: 2500,
            latency: Latency::Low.into(),
            ..Default::default()
        };
        let ring = TransmitRingStatus {
            name: "a".into(),
            lag_frames: 1000,
            ..Default::default()
        };
        let output = |name: &str, io: &str| TransmitInterfaceStatus {
            name: name.into(),
            io: io.into(),
            io_reason: format!("{io} is best for {name}"),
            dropped_frames: [("enobufs".to_owned(), 7)].into(),
            ..Default::default()
        };
        let status = TransmitStatus {
            state: State::Running.into(),
            interfaces: vec![
                output("eth3", "live"),
                output("eth4", "tc"),
                output("eth5", "live"),
            ],
            rings: vec![ring],
            copied_frames: 12_345,
            ..Default::default()
        };
        let transmit = Transmit {
            name: "x".into(),
            spec: Some(spec),
            status: Some(status),
        };
        let text = render(&Transmits(vec![transmit.clone()]).blocks());
        assert_shows(&text, &["eth3,eth4,eth5", "live,tc "]);
        let text = render(&OneTransmit(transmit).blocks());
        assert_shows(
            &text,
            &[
                "live is best for eth3",
                "tc is best for eth4",
                "enobufs 7",
                "auto",
                "--latency low",
                "12,345",
                "1970-01-01T00:00:00.000000001Z",
                "2ms 500us",
                "1,000",
            ],
        );
    }
}
