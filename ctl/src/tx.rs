//! `fluxctl tx`: transmits from rings to an interface, through txd.

use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure, nearest};
use crate::output::{Block, Deleted, Report, by_reason, count, print};
use crate::{complete, edits, names};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use fluxcap_options::{TransmitArgs, TransmitWork};
use fluxcap_proto::v1::start::At;
use fluxcap_proto::v1::transmit_service_client::TransmitServiceClient;
use fluxcap_proto::v1::{
    CreateTransmitRequest, DeleteTransmitRequest, GetTransmitRequest, ListTransmitsRequest,
    Transmit, TransmitSpec, TransmitStatus, UpdateTransmitRequest,
};
use prost_types::FieldMask;
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};
use tonic::{Status, transport::Channel};

/// `fluxctl tx ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Transmit rings to an interface
    Add(Add),
    /// List all transmits
    #[command(visible_alias = "ls")]
    List,
    /// Show one transmit: rings, edits, counters
    Show(Named),
    /// Change a running transmit; options not given stay as they are
    Set(Set),
    /// Stop transmits and forget them
    #[command(visible_alias = "rm")]
    Delete(Many),
}

/// `fluxctl tx add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Rings, several with commas between; they are merged by timestamp
    #[arg(value_name = "RING[,RING...]", add = ArgValueCandidates::new(complete::rings))]
    rings: String,

    /// Interface that sends the frames
    #[arg(value_name = "IFACE", add = ArgValueCandidates::new(complete::interfaces))]
    interface: String,

    /// Name of the transmit [default: RING-IFACE]
    #[arg(long)]
    name: Option<String>,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    #[command(flatten)]
    options: TransmitArgs,
}

/// `fluxctl tx set`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name of the transmit
    #[arg(add = ArgValueCandidates::new(complete::transmits))]
    name: String,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    #[command(flatten)]
    options: TransmitArgs,
}

/// One transmit by name.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the transmit
    #[arg(add = ArgValueCandidates::new(complete::transmits))]
    name: String,
}

/// Transmits by name.
#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Names of the transmits
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::transmits))]
    names: Vec<String>,
}

type Client = TransmitServiceClient<Channel>;

/// Runs the command.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Add(args) => add(globals, add_request(args)?).await,
            Command::List => print(
                globals.output,
                &Transmits(list(&mut connect(globals).await?).await?),
            ),
            Command::Show(args) => print(
                globals.output,
                &OneTransmit(get(&mut connect(globals).await?, &args.name).await?),
            ),
            Command::Set(args) => set(globals, args, set_request(args)?).await,
            Command::Delete(args) => delete(globals, &args.names).await,
        }
    })
}

async fn connect(globals: &Globals) -> Result<Client, Failure> {
    Ok(TransmitServiceClient::new(globals.connect("txd").await?))
}

fn add_request(args: &Add) -> Result<CreateTransmitRequest, Failure> {
    let work: TransmitWork = format!("{}:{}", args.rings, args.interface).parse()?;
    let spec = args.options.to_specs(std::slice::from_ref(&work))?.pop();
    let name = args.name.clone().unwrap_or_else(|| work.default_name());
    Ok(CreateTransmitRequest {
        name,
        spec,
        validate_only: args.dry_run,
    })
}

async fn add(globals: &Globals, request: CreateTransmitRequest) -> Result<(), Failure> {
    let object = format!("transmit {}", request.name);
    match connect(globals).await?.create_transmit(request).await {
        Ok(reply) => print(
            globals.output,
            &Changed(reply.into_inner().transmit.unwrap_or_default()),
        ),
        Err(status) => Err(Failure::from_status(&object, &status)),
    }
}

/// All transmits that txd knows.
pub(crate) async fn list(client: &mut Client) -> Result<Vec<Transmit>, Failure> {
    let reply = client.list_transmits(ListTransmitsRequest {}).await;
    Ok(reply
        .map_err(|status| Failure::from_status("transmits", &status))?
        .into_inner()
        .transmits)
}

async fn get(client: &mut Client, name: &str) -> Result<Transmit, Failure> {
    match client
        .get_transmit(GetTransmitRequest {
            name: name.to_owned(),
        })
        .await
    {
        Ok(reply) => reply
            .into_inner()
            .transmit
            .ok_or_else(|| Failure::new(Code::Failed, "txd sent an empty answer")),
        Err(status) => Err(advise(client, name, &status).await),
    }
}

fn set_request(args: &Set) -> Result<UpdateTransmitRequest, Failure> {
    let paths: Vec<String> = args
        .options
        .changed_fields()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let nowhere = TransmitWork {
        rings: Vec::new(),
        interface: String::new(),
    };
    let spec = args.options.to_specs(&[nowhere])?.pop();
    if paths.is_empty() {
        let failure = Failure::new(
            Code::Usage,
            format!("nothing to change in transmit {}", args.name),
        );
        return Err(failure.hint("give the options to change; fluxctl tx set --help lists them"));
    }
    let update_mask = Some(FieldMask { paths });
    Ok(UpdateTransmitRequest {
        name: args.name.clone(),
        spec,
        update_mask,
        validate_only: args.dry_run,
    })
}

async fn set(globals: &Globals, args: &Set, request: UpdateTransmitRequest) -> Result<(), Failure> {
    let mut client = connect(globals).await?;
    match client.update_transmit(request).await {
        Ok(reply) => print(
            globals.output,
            &Changed(reply.into_inner().transmit.unwrap_or_default()),
        ),
        Err(status) => Err(advise(&mut client, &args.name, &status).await),
    }
}

async fn delete(globals: &Globals, names: &[String]) -> Result<(), Failure> {
    let mut client = connect(globals).await?;
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match client
            .delete_transmit(DeleteTransmitRequest { name: name.clone() })
            .await
        {
            Ok(_) => deleted.push(name.clone()),
            Err(status) => failures.push(advise(&mut client, name, &status).await),
        }
    }
    if !deleted.is_empty() {
        print(
            globals.output,
            &Deleted {
                noun: "transmit",
                names: deleted,
            },
        )?;
    }
    Failure::all(failures)
}

/// The failure with what to do about a transmit that is not there.
async fn advise(client: &mut Client, name: &str, status: &Status) -> Failure {
    let failure = Failure::from_status(&format!("transmit {name}"), status);
    if failure.code != Code::NotFound {
        return failure;
    }
    let transmits = list(client).await.unwrap_or_default();
    failure.hint(
        match nearest(
            name,
            transmits.iter().map(|transmit| transmit.name.as_str()),
        ) {
            Some(near) => format!("did you mean {near}?"),
            None => "fluxctl tx list shows the transmits that there are".to_owned(),
        },
    )
}

/// Several transmits, one line each.
struct Transmits(Vec<Transmit>);

impl Report for Transmits {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        vec![Block::Rows(&HEADER, self.0.iter().map(row).collect())]
    }
}

/// A transmit that was just added or changed: one line.
struct Changed(Transmit);

impl Report for Changed {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        vec![Block::Rows(&HEADER, vec![row(&self.0)])]
    }
}

/// A transmit with everything about it.
struct OneTransmit(Transmit);

impl Report for OneTransmit {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        let (no_spec, no_status) = (TransmitSpec::default(), TransmitStatus::default());
        let spec = self.0.spec.as_ref().unwrap_or(&no_spec);
        let status = self.0.status.as_ref().unwrap_or(&no_status);
        vec![
            Block::Facts(facts(&self.0.name, spec, status)),
            rings(status),
        ]
    }
}

const HEADER: [&str; 10] = [
    "NAME",
    "RINGS",
    "INTERFACE",
    "STATE",
    "IO",
    ">DELIVERED",
    ">SENT",
    ">LAPPED",
    "DROPS",
    "REASON",
];

fn row(transmit: &Transmit) -> Vec<String> {
    let (no_spec, no_status) = (TransmitSpec::default(), TransmitStatus::default());
    let spec = transmit.spec.as_ref().unwrap_or(&no_spec);
    let status = transmit.status.as_ref().unwrap_or(&no_status);
    vec![
        transmit.name.clone(),
        spec.rings.join(","),
        spec.interface.clone(),
        names::state(status.state).to_owned(),
        status.io.clone(),
        count(status.delivered_frames),
        count(status.sent_frames),
        count(status.lapped_frames),
        by_reason(&status.dropped_frames),
        status.reason.clone(),
    ]
}

fn facts(name: &str, spec: &TransmitSpec, status: &TransmitStatus) -> Vec<(&'static str, String)> {
    let io = match status.io_reason.as_str() {
        "" => status.io.clone(),
        reason => format!("{} ({reason})", status.io),
    };
    let merge_window = match (spec.rings.len(), spec.merge_window_us) {
        (0 | 1, _) => String::new(),
        (_, 0) => "default".to_owned(),
        (_, us) => humantime::format_duration(Duration::from_micros(us.into())).to_string(),
    };
    vec![
        ("name", name.to_owned()),
        ("interface", spec.interface.clone()),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("io", io),
        ("mtu", status.mtu.to_string()),
        ("oversize frames", names::oversize(spec.oversize).to_owned()),
        ("begins at", start(spec)),
        ("merge window", merge_window),
        ("edits", edits::options(spec.edits.as_ref())),
        ("delivered frames", count(status.delivered_frames)),
        ("sent frames", count(status.sent_frames)),
        ("sent bytes", count(status.sent_bytes)),
        ("lapped frames", count(status.lapped_frames)),
        ("truncated frames", count(status.truncated_frames)),
        ("not sent", by_reason(&status.dropped_frames)),
    ]
}

fn start(spec: &TransmitSpec) -> String {
    match spec.start.and_then(|start| start.at) {
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

fn rings(status: &TransmitStatus) -> Block {
    let header = &[
        "RING",
        "STATE",
        ">EPOCH",
        ">LAG",
        ">DELIVERED",
        ">LAPPED",
        "REASON",
    ];
    let rows = status.rings.iter().map(|ring| {
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
    use crate::output::render;
    use clap::Parser;
    use fluxcap_proto::v1::{Start, State, TransmitRingStatus};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(args: &[&str]) -> Command {
        Cli::parse_from([&["tx"], args].concat()).command
    }

    #[test]
    fn the_default_name_is_made_of_rings_and_interface() {
        let Command::Add(args) = parse(&["add", "shm:a,b", "eth3", "--from", "oldest"]) else {
            panic!()
        };
        let request = add_request(&args).unwrap();
        assert_eq!(request.name, "shm-a-b-eth3");
        let spec = request.spec.unwrap();
        assert_eq!(
            (spec.rings, spec.interface.as_str()),
            (vec!["shm:a".into(), "b".into()], "eth3")
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
        let paths = set_request(&args).unwrap().update_mask.unwrap().paths;
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
            set_request(&args).map_err(|failure| failure.code),
            Err(Code::Usage)
        );
    }

    #[test]
    fn a_shown_transmit_says_why_its_backend_was_chosen() {
        let spec = TransmitSpec {
            rings: vec!["a".into(), "b".into()],
            start: Some(Start {
                at: Some(At::TimeNs(1)),
            }),
            merge_window_us: 2500,
            ..Default::default()
        };
        let ring = TransmitRingStatus {
            name: "a".into(),
            lag_frames: 1000,
            ..Default::default()
        };
        let status = TransmitStatus {
            state: State::Running.into(),
            io: "sendmmsg".into(),
            io_reason: "the only one so far".into(),
            rings: vec![ring],
            ..Default::default()
        };
        let transmit = Transmit {
            name: "x".into(),
            spec: Some(spec),
            status: Some(status),
        };
        let text = render(&OneTransmit(transmit).blocks());
        for part in [
            "sendmmsg (the only one so far)",
            "1970-01-01T00:00:00.000000001Z",
            "2ms 500us",
            "1,000",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
