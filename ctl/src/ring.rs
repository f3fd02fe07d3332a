//! `fluxctl ring`: rings, through ringd.

use crate::complete;
use crate::connect::{Globals, block_on};
use crate::exit::{Code, Failure, nearest};
use crate::names;
use crate::output::{Block, Deleted, Report, by_reason, count, print};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use fluxcap_proto::v1::ring_service_client::RingServiceClient;
use fluxcap_proto::v1::{
    CreateRingRequest, DeleteRingRequest, GetRingRequest, ListRingsRequest, Ring, RingMode,
    RingSpec, RingStatus, UpdateRingRequest,
};
use fluxcap_service::{format_size, parse_size};
use prost_types::FieldMask;
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};
use tonic::{Status, transport::Channel};

/// `fluxctl ring ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make rings
    Create(Create),
    /// List all rings
    #[command(visible_alias = "ls")]
    List,
    /// Show one ring: producer, sources, readers
    Show(Named),
    /// Delete rings; workers wait for a new one of that name
    #[command(visible_alias = "rm")]
    Delete(Many),
    /// Change the size of a ring: a new epoch takes its place and the workers follow by themselves
    Resize(Resize),
}

/// `fluxctl ring create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Names: 1 to 63 of a-z 0-9 _ -; after `shm:` for a ring in POSIX shared memory
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Size of the data area of each: 64K, 100M, 1G are powers of 1024
    #[arg(long, short, value_parser = parse_size)]
    size: u64,

    /// What happens when a ring is full: the oldest frames are overwritten, or the producer waits for the slowest reader
    #[arg(long, value_enum, default_value_t = Mode::Overwrite, value_name = "overwrite|wait", hide_possible_values = true)]
    mode: Mode,

    /// Put it in the place of a different ring of that name
    #[arg(long)]
    replace: bool,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// One ring by name.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the ring
    #[arg(add = ArgValueCandidates::new(complete::rings))]
    name: String,
}

/// Rings by name.
#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Names of the rings
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::rings))]
    names: Vec<String>,
}

/// `fluxctl ring resize`
#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// Name of the ring
    #[arg(add = ArgValueCandidates::new(complete::rings))]
    name: String,

    /// New size of the data area: 64K, 100M, 1G are powers of 1024
    #[arg(long, short, value_parser = parse_size)]
    size: u64,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Overwrite,
    Wait,
}

impl From<Mode> for RingMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Overwrite => RingMode::Overwrite,
            Mode::Wait => RingMode::Wait,
        }
    }
}

/// Runs the command.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        let mut client = RingServiceClient::new(globals.connect("ringd").await?);
        match command {
            Command::Create(args) => create(globals, &mut client, args).await,
            Command::List => print(globals.output, &Rings(list(&mut client).await?)),
            Command::Show(args) => print(
                globals.output,
                &OneRing(get(&mut client, &args.name).await?),
            ),
            Command::Delete(args) => delete(globals, &mut client, &args.names).await,
            Command::Resize(args) => resize(globals, &mut client, args).await,
        }
    })
}

type Client = RingServiceClient<Channel>;

async fn create(globals: &Globals, client: &mut Client, args: &Create) -> Result<(), Failure> {
    let (mut made, mut failures) = (Vec::new(), Vec::new());
    for name in &args.names {
        let spec = RingSpec {
            size_bytes: args.size,
            mode: RingMode::from(args.mode).into(),
        };
        let request = CreateRingRequest {
            name: name.clone(),
            spec: Some(spec),
            replace: args.replace,
            validate_only: args.dry_run,
        };
        match client.create_ring(request).await {
            Ok(reply) => made.extend(reply.into_inner().ring),
            Err(status) => failures.push(Failure::from_status(&format!("ring {name}"), &status)),
        }
    }
    if !made.is_empty() {
        print(globals.output, &Rings(made))?;
    }
    Failure::all(failures)
}

/// All rings that ringd knows.
pub(crate) async fn list(client: &mut Client) -> Result<Vec<Ring>, Failure> {
    let reply = client.list_rings(ListRingsRequest {}).await;
    Ok(reply
        .map_err(|status| Failure::from_status("rings", &status))?
        .into_inner()
        .rings)
}

async fn get(client: &mut Client, name: &str) -> Result<Ring, Failure> {
    match client
        .get_ring(GetRingRequest {
            name: name.to_owned(),
        })
        .await
    {
        Ok(reply) => reply
            .into_inner()
            .ring
            .ok_or_else(|| Failure::new(Code::Failed, "ringd sent an empty answer")),
        Err(status) => Err(advise(client, name, &status).await),
    }
}

async fn delete(globals: &Globals, client: &mut Client, names: &[String]) -> Result<(), Failure> {
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match client
            .delete_ring(DeleteRingRequest { name: name.clone() })
            .await
        {
            Ok(_) => deleted.push(name.clone()),
            Err(status) => failures.push(advise(client, name, &status).await),
        }
    }
    if !deleted.is_empty() {
        print(
            globals.output,
            &Deleted {
                noun: "ring",
                names: deleted,
            },
        )?;
    }
    Failure::all(failures)
}

async fn resize(globals: &Globals, client: &mut Client, args: &Resize) -> Result<(), Failure> {
    let request = UpdateRingRequest {
        name: args.name.clone(),
        spec: Some(RingSpec {
            size_bytes: args.size,
            ..Default::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["size_bytes".to_owned()],
        }),
        validate_only: args.dry_run,
    };
    match client.update_ring(request).await {
        Ok(reply) => print(
            globals.output,
            &OneRing(reply.into_inner().ring.unwrap_or_default()),
        ),
        Err(status) => Err(advise(client, &args.name, &status).await),
    }
}

/// The failure with what to do about a ring that is not there.
async fn advise(client: &mut Client, name: &str, status: &Status) -> Failure {
    let failure = Failure::from_status(&format!("ring {name}"), status);
    if failure.code != Code::NotFound {
        return failure;
    }
    let rings = list(client).await.unwrap_or_default();
    failure.hint(missing_hint(
        name,
        rings.iter().map(|ring| ring.name.as_str()),
    ))
}

/// What to do about a ring that is not there: the name that was probably meant, or the command that makes it.
pub(crate) fn missing_hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("make it: fluxctl ring create {name} --size 100m"),
    }
}

/// Several rings, one line each.
struct Rings(Vec<Ring>);

impl Report for Rings {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        let header = &[
            "NAME",
            ">SIZE",
            "MODE",
            "STATE",
            "ON",
            ">PUBLISHED",
            ">KERNEL DROPS",
            "PRODUCER",
            ">READERS",
        ];
        vec![Block::Rows(header, self.0.iter().map(ring_row).collect())]
    }
}

fn ring_row(ring: &Ring) -> Vec<String> {
    let spec = ring.spec.unwrap_or_default();
    let none = RingStatus::default();
    let status = ring.status.as_ref().unwrap_or(&none);
    vec![
        ring.name.clone(),
        format_size(spec.size_bytes),
        names::ring_mode(spec.mode).to_owned(),
        names::state(status.state).to_owned(),
        status.backing.clone(),
        count(status.published_frames),
        count(status.kernel_dropped_frames),
        producer(status),
        status
            .readers
            .iter()
            .filter(|reader| reader.live)
            .count()
            .to_string(),
    ]
}

fn producer(status: &RingStatus) -> String {
    match (status.producer.as_str(), status.producer_live) {
        ("", _) => "-".to_owned(),
        (holder, true) => holder.to_owned(),
        (holder, false) => format!("{holder} (gone)"),
    }
}

/// One ring with everything about it.
struct OneRing(Ring);

impl Report for OneRing {
    fn json(&self) -> Value {
        names::json(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        let none = RingStatus::default();
        let status = self.0.status.as_ref().unwrap_or(&none);
        let mut blocks = vec![Block::Facts(ring_facts(&self.0, status))];
        if !status.sources.is_empty() {
            blocks.push(sources_table(status));
        }
        if !status.readers.is_empty() {
            blocks.push(readers_table(status));
        }
        blocks
    }
}

fn ring_facts(ring: &Ring, status: &RingStatus) -> Vec<(&'static str, String)> {
    let spec = ring.spec.unwrap_or_default();
    let created = UNIX_EPOCH + Duration::from_nanos(status.created_ns);
    vec![
        ("name", ring.name.clone()),
        ("size", format_size(spec.size_bytes)),
        ("mode", names::ring_mode(spec.mode).to_owned()),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("on", status.backing.clone()),
        ("memory", format_size(status.footprint_bytes)),
        ("epoch", status.epoch.to_string()),
        (
            "created",
            humantime::format_rfc3339_seconds(created).to_string(),
        ),
        ("producer", producer(status)),
        ("published frames", count(status.published_frames)),
        ("published bytes", count(status.published_bytes)),
        ("kernel drops", count(status.kernel_dropped_frames)),
        ("not published", by_reason(&status.dropped_frames)),
    ]
}

fn sources_table(status: &RingStatus) -> Block {
    let header = &[
        "SOURCE",
        ">KERNEL",
        ">KERNEL DROPS",
        ">RECEIVED",
        ">PUBLISHED",
        ">MISSED",
        ">UNCERTAIN",
    ];
    let row = |source: &fluxcap_proto::v1::Source| {
        let numbers = [
            source.kernel_frames,
            source.kernel_dropped_frames,
            source.received_frames,
            source.published_frames,
            source.missed_frames,
            source.uncertain,
        ];
        std::iter::once(source.name.clone())
            .chain(numbers.map(count))
            .collect()
    };
    Block::Rows(header, status.sources.iter().map(row).collect())
}

fn readers_table(status: &RingStatus) -> Block {
    let header = &[
        "READER",
        ">PID",
        "LIVE",
        ">LAG",
        ">LAG BYTES",
        ">DELIVERED",
        ">LAPPED",
        ">CORRUPT",
        "OUTCOMES",
    ];
    let row = |reader: &fluxcap_proto::v1::Reader| {
        vec![
            reader.name.clone(),
            reader.pid.to_string(),
            if reader.live { "yes" } else { "no" }.to_owned(),
            count(reader.lag_frames),
            format_size(reader.lag_bytes),
            count(reader.delivered_frames),
            count(reader.lapped_frames),
            count(reader.corrupt_frames),
            by_reason(&reader.outcomes),
        ]
    };
    Block::Rows(header, status.readers.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::render;
    use fluxcap_proto::v1::{Reader, Source, State};
    use serde_json::json;

    fn cisco() -> Ring {
        let source = Source {
            name: "eth1".into(),
            received_frames: 5,
            ..Default::default()
        };
        let outcomes = [("sent".to_owned(), 4), ("oversize".to_owned(), 1)].into();
        let reader = Reader {
            name: "cisco-eth2".into(),
            pid: 7,
            live: true,
            outcomes,
            ..Default::default()
        };
        let status = RingStatus {
            state: State::Running.into(),
            backing: "ramfs".into(),
            published_frames: 1_234_567,
            producer: "rxd cisco-eth1".into(),
            producer_live: true,
            sources: vec![source],
            readers: vec![reader],
            ..Default::default()
        };
        Ring {
            name: "cisco".into(),
            spec: Some(RingSpec {
                size_bytes: 100 << 20,
                mode: 0,
            }),
            status: Some(status),
        }
    }

    #[test]
    fn a_ring_is_one_line_of_the_list() {
        let text = render(&Rings(vec![cisco()]).blocks());
        let line = text.lines().nth(1).unwrap();
        for part in [
            "cisco",
            "100 MiB",
            "overwrite",
            "running",
            "ramfs",
            "1,234,567",
            "rxd cisco-eth1",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn a_shown_ring_has_its_sources_and_readers() {
        let text = render(&OneRing(cisco()).blocks());
        for part in [
            "SOURCE",
            "eth1",
            "READER",
            "cisco-eth2",
            "oversize 1, sent 4",
            "1970-01-01T00:00:00Z",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_ring_in_json_has_the_shape_of_the_api() {
        let value = OneRing(cisco()).json();
        assert_eq!(value["spec"]["size_bytes"], 100 << 20);
        assert_eq!(value["status"]["state"], "running");
        assert_eq!(value["status"]["readers"][0]["outcomes"]["sent"], 4);
    }

    #[test]
    fn a_missing_ring_is_made_or_was_meant_otherwise() {
        assert_eq!(missing_hint("csico", ["cisco"]), "did you mean cisco?");
        assert_eq!(
            missing_hint("dell", ["cisco"]),
            "make it: fluxctl ring create dell --size 100m"
        );
    }

    #[test]
    fn deletions_are_told() {
        let deleted = Deleted {
            noun: "ring",
            names: vec!["a".into(), "b".into()],
        };
        assert_eq!(
            render(&deleted.blocks()),
            "deleted ring a\ndeleted ring b\n"
        );
        assert_eq!(deleted.json(), json!({"deleted": ["a", "b"]}));
    }
}
