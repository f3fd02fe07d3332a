//! `fluxctl ring`: rings, through ringd.

use crate::connect::{Globals, block_on};
use crate::exit::Failure;
use crate::output::{Block, Deleted, by_reason, count, note, print, printable};
use crate::resource::{self, Kind, Listed, Shown};
use crate::{complete, names};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use fluxcap_proto::v1::ring_service_client::RingServiceClient;
use fluxcap_proto::v1::{
    CreateRingRequest, DeleteRingRequest, GetRingRequest, ListRingsRequest, Ring, RingMode,
    RingSpec, RingStatus, UpdateRingRequest,
};
use fluxcap_service::{format_size, parse_size};
use std::io::{IsTerminal, Read};
use std::time::{Duration, UNIX_EPOCH};

/// As long as ringd itself takes its time for a ring of hundreds of gigabytes.
const LONG: Duration = Duration::from_secs(30 * 60);
/// Time between two words on how far a ring is.
const TELL: Duration = Duration::from_secs(3);
/// What ringd says of a ring that it does not delete because of those who work with it.
const IN_USE: &str = " is in use: ";

/// `fluxctl ring ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make rings
    Create(Create),
    /// List all rings
    #[command(visible_alias = "ls")]
    List,
    /// Show rings, all unless some are named: producer, sources, readers
    Show {
        /// Names of the rings
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::rings))]
        names: Vec<String>,
    },
    /// Delete rings; workers wait for a new one of that name
    #[command(visible_aliases = ["rm", "del"])]
    Delete {
        /// Names of the rings
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::rings))]
        names: Vec<String>,

        /// Also while somebody works with them, without asking
        #[arg(long, short)]
        force: bool,
    },
    /// Change the size of a ring: a new epoch takes its place and the workers follow by themselves
    Resize(Resize),
}

/// `fluxctl ring create`
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Names: 1 to 63 of A-Z a-z 0-9 _ . -; after `shm:` for a ring in POSIX shared memory
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Size of the data area of each: 64K, 100M, 1G are powers of 1024
    #[arg(long, short, value_parser = parse_size)]
    size: u64,

    /// What happens when a ring is full: the oldest frames are overwritten, or the producer waits for the slowest reader
    #[arg(long, value_enum, default_value_t = Mode::Overwrite, value_name = "overwrite|wait", hide_possible_values = true)]
    mode: Mode,

    /// Put it in the place of the ring of that name: a new epoch, which the workers follow to
    #[arg(long)]
    replace: bool,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,
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
        match command {
            Command::Create(args) => create(globals, args).await,
            Command::List => resource::list::<Ring>(globals).await,
            Command::Show { names } => resource::show::<Ring>(globals, names).await,
            Command::Delete { names, force } => delete(globals, names, *force).await,
            Command::Resize(args) => resize(globals, args).await,
        }
    })
}

async fn create(globals: &Globals, args: &Create) -> Result<(), Failure> {
    let globals = &globals.patient(LONG);
    let mut client = resource::connect::<Ring>(globals).await?;
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
        let created = Ring::create(&mut client, request);
        let created = match with_progress(globals, name, created).await {
            Ok(ring) => resource::answer(ring),
            Err(status) => Err(resource::failure::<Ring>(name, &status)),
        };
        match created {
            Ok(ring) => made.push(ring),
            Err(failure) => failures.push(failure),
        }
    }
    match (&args.names[..], made.pop()) {
        (_, None) => {}
        ([_], Some(ring)) => resource::changed(globals, ring)?,
        (_, Some(last)) => {
            made.push(last);
            if !globals.quiet {
                print(globals.output, &Listed(made))?;
            }
        }
    }
    Failure::all(failures)
}

/// Waits for a ring to be made. Where that takes long, it is told now and then how far it is.
async fn with_progress<T>(globals: &Globals, name: &str, made: impl Future<Output = T>) -> T {
    let mut made = std::pin::pin!(made);
    loop {
        if let Ok(made) = tokio::time::timeout(TELL, &mut made).await {
            return made;
        }
        // How far it is stands in its reason, or in the remarks on the ring that it is to replace.
        if let Ok(ring) = resource::get::<Ring>(globals, name).await {
            let status = ring.status.unwrap_or_default();
            let telling = [status.reason].into_iter().chain(status.remarks);
            let telling: Vec<_> = telling.filter(|it| it.contains("being made")).collect();
            note(&format!("ring {name} {}", telling.join("; ")));
        }
    }
}

/// Deletes rings. One that somebody works with only when that is what the user wants.
async fn delete(globals: &Globals, names: &[String], force: bool) -> Result<(), Failure> {
    let mut client = resource::connect::<Ring>(globals).await?;
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        let mut request = DeleteRingRequest {
            name: name.clone(),
            only_unused: !force,
        };
        let mut answer = client.delete_ring(request.clone()).await;
        if let Err(status) = &answer
            && status.code() == tonic::Code::FailedPrecondition
            && status.message().contains(IN_USE)
        {
            if !agreed(status.message()) {
                let failure = resource::failure::<Ring>(name, status);
                failures.push(failure.hint(
                    "--force deletes it all the same: what is unread in it is lost, and workers wait for a new ring of that name",
                ));
                continue;
            }
            request.only_unused = false;
            answer = client.delete_ring(request).await;
        }
        match answer {
            Ok(_) => deleted.push(name.clone()),
            Err(status) => {
                failures.push(resource::advise::<Ring>(&mut client, name, &status).await);
            }
        }
    }
    if !deleted.is_empty() {
        let (noun, names) = (Ring::NOUN, deleted);
        print(globals.output, &Deleted { noun, names })?;
    }
    Failure::all(failures)
}

/// Asks whoever is at the keyboard; without a terminal nobody can agree.
fn agreed(in_use: &str) -> bool {
    let mut input = std::io::stdin();
    if !input.is_terminal() || !std::io::stderr().is_terminal() {
        return false;
    }
    note(&format!(
        "{}; delete it all the same? [y/N]",
        printable(in_use)
    ));
    let mut answer = [0; 64];
    let length = input.read(&mut answer).unwrap_or(0);
    matches!(answer[..length].first(), Some(b'y' | b'Y'))
}

async fn resize(globals: &Globals, args: &Resize) -> Result<(), Failure> {
    let globals = &globals.patient(LONG);
    let request = UpdateRingRequest {
        name: args.name.clone(),
        spec: Some(RingSpec {
            size_bytes: args.size,
            ..Default::default()
        }),
        update_mask: resource::mask(&["size_bytes"]),
        validate_only: args.dry_run,
    };
    let resized = resource::update(globals, &args.name, request);
    let ring: Ring = with_progress(globals, &args.name, resized).await?;
    match globals.quiet {
        true => Ok(()),
        false => print(globals.output, &Shown(ring)),
    }
}

/// What to do about a ring that is not there: the name that was probably meant, or the command that makes it.
pub(crate) fn missing_hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    resource::missing_hint::<Ring>(name, known)
}

impl Kind for Ring {
    const NOUN: &'static str = "ring";
    const COMMAND: &'static str = "ring";
    const DAEMON: &'static str = "ringd";
    const HEADER: &'static [&'static str] = &[
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

    resource::calls! {
        RingServiceClient, ring, rings, RingSpec,
        create_ring(CreateRingRequest), update_ring(UpdateRingRequest),
        list_rings(ListRingsRequest), get_ring(GetRingRequest), delete_ring(DeleteRingRequest),
        replace: false,
    }

    fn same_work(_one: &RingSpec, _other: &RingSpec) -> bool {
        true
    }

    fn row(&self) -> Vec<String> {
        let spec = self.spec.unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        vec![
            self.name.clone(),
            format_size(spec.size_bytes),
            names::ring_mode(spec.mode).to_owned(),
            names::state(status.state).to_owned(),
            status.backing.clone(),
            count(status.published_frames),
            count(status.kernel_dropped_frames),
            producer(&status),
            status
                .readers
                .iter()
                .filter(|reader| reader.live)
                .count()
                .to_string(),
        ]
    }

    fn blocks(&self) -> Vec<Block> {
        let status = self.status.clone().unwrap_or_default();
        let mut blocks = vec![Block::Facts(ring_facts(self, &status))];
        if !status.sources.is_empty() {
            blocks.push(sources_table(&status));
        }
        if !status.readers.is_empty() {
            blocks.push(readers_table(&status));
        }
        blocks
    }

    fn remedy(name: &str) -> String {
        format!("make it: fluxctl ring create {name} --size 100m")
    }
}

fn producer(status: &RingStatus) -> String {
    match (status.producer.as_str(), status.producer_live) {
        ("", _) => "-".to_owned(),
        (holder, true) => holder.to_owned(),
        (holder, false) => format!("{holder} (gone)"),
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
        ("remarks", status.remarks.join("; ")),
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
    use crate::output::{Report, assert_shows, render};
    use crate::resource::{Listed as Rings, Shown as OneRing};
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
        assert_shows(
            line,
            &[
                "cisco",
                "100 MiB",
                "overwrite",
                "running",
                "ramfs",
                "1,234,567",
                "rxd cisco-eth1",
            ],
        );
    }

    #[test]
    fn a_shown_ring_has_its_sources_and_readers() {
        let text = render(&OneRing(cisco()).blocks());
        assert_shows(
            &text,
            &[
                "SOURCE",
                "eth1",
                "READER",
                "cisco-eth2",
                "oversize 1, sent 4",
                "1970-01-01T00:00:00Z",
            ],
        );
    }

    #[test]
    fn a_ring_in_json_has_the_shape_of_the_api() {
        let value = OneRing(cisco()).json();
        assert_eq!(value["spec"]["size_bytes"], (100 << 20).to_string());
        assert_eq!(value["status"]["state"], "running");
        assert_eq!(value["status"]["readers"][0]["outcomes"]["sent"], "4");
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
