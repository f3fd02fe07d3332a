//! `fluxctl rx`: captures from interfaces into rings, through rxd.

use crate::add::{self, AddArgs};
use crate::connect::{Globals, block_on};
use crate::exit::Failure;
use crate::lists::Change;
use crate::output::{Block, by_reason, count};
use crate::resource::{self, Kind};
use crate::words::tag_text;
use crate::{complete, edits, names, scheduling, tx};
use clap::{Args, Subcommand};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use fluxcap_options::{CaptureArgs, CaptureWork, MERGE_WINDOW_LOW_US, MERGE_WINDOW_US};
use fluxcap_proto::v1::capture_service_client::CaptureServiceClient;
use fluxcap_proto::v1::{
    Capture, CaptureInterface, CaptureSpec, CaptureStatus, CreateCaptureRequest,
    DeleteCaptureRequest, GetCaptureRequest, Latency, ListCapturesRequest, UpdateCaptureRequest,
};
use fluxcap_service::format_size;

/// `fluxctl rx ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture interfaces into a ring
    Add(Add),
    /// List all captures
    #[command(visible_alias = "ls")]
    List,
    /// Show captures, all unless some are named: interfaces, edits, counters
    Show {
        /// Names of the captures
        #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Capture>))]
        names: Vec<String>,
    },
    /// Change a running capture without losing a frame; options not given stay as they are
    Set(Set),
    /// Stop captures and forget them
    #[command(visible_aliases = ["rm", "del"])]
    Delete {
        /// Names of the captures
        #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::known::<Capture>))]
        names: Vec<String>,
    },
}

/// `fluxctl rx add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Interfaces, several with commas between
    #[arg(value_name = "IFACE[,IFACE...]", add = ArgValueCompleter::new(complete::interface_list))]
    interfaces: String,

    /// Ring that gets the frames
    #[arg(add = ArgValueCandidates::new(complete::rings))]
    ring: String,

    #[command(flatten)]
    add: AddArgs,

    #[command(flatten)]
    options: CaptureArgs,
}

/// `fluxctl rx set`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name of the capture
    #[arg(add = ArgValueCandidates::new(complete::known::<Capture>))]
    name: String,

    /// Check only
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Interfaces from now on
    #[arg(long, value_name = "IFACE[,IFACE...]", value_delimiter = ',', conflicts_with_all = ["interfaces_add", "interfaces_remove"])]
    interfaces: Vec<String>,

    /// Capture these interfaces, too
    #[arg(
        long,
        alias = "interfaces+",
        value_name = "IFACE[,IFACE...]",
        value_delimiter = ','
    )]
    interfaces_add: Vec<String>,

    /// Capture these interfaces no longer
    #[arg(
        long,
        alias = "interfaces-",
        value_name = "IFACE[,IFACE...]",
        value_delimiter = ','
    )]
    interfaces_remove: Vec<String>,

    /// Ring that gets the frames from now on
    #[arg(long, value_name = "RING", add = ArgValueCandidates::new(complete::rings))]
    ring: Option<String>,

    #[command(flatten)]
    options: CaptureArgs,
}

impl Set {
    fn interfaces(&self) -> Change<'_, String> {
        Change {
            option: "--interfaces",
            whole: &self.interfaces,
            add: &self.interfaces_add,
            remove: &self.interfaces_remove,
        }
    }

    /// Whether the list of interfaces changes: the tags of single ones are inside of it.
    fn changes_interfaces(&self) -> Result<bool, Failure> {
        let pushes = self.options.edits.interface_pushes()?;
        Ok(self.interfaces().is_given() || !pushes.is_empty())
    }
}

/// Runs the command. What is wrong with the command line is said before rxd is asked.
pub(crate) fn run(globals: &Globals, command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Add(args) => {
                let (name, spec) = wanted(args)?;
                add::add::<Capture>(globals, &args.add, &name, spec).await
            }
            Command::List => resource::list::<Capture>(globals).await,
            Command::Show { names } => resource::show::<Capture>(globals, names).await,
            Command::Set(args) => set(globals, args).await,
            Command::Delete { names } => resource::delete::<Capture>(globals, names).await,
        }
    })
}

/// What is to be added, and the name that it gets when none is given.
fn wanted(args: &Add) -> Result<(String, CaptureSpec), Failure> {
    let work: CaptureWork = format!("{}:{}", args.interfaces, args.ring).parse()?;
    let spec = args.options.to_specs(std::slice::from_ref(&work))?.pop();
    Ok((work.default_name(), spec.unwrap_or_default()))
}

fn nothing_to_change(args: &Set) -> Result<(), Failure> {
    let options = args.options.changed_fields();
    if options.is_empty() && !args.changes_interfaces()? && args.ring.is_none() {
        return Err(resource::nothing_to_change::<Capture>(&args.name));
    }
    Ok(())
}

async fn set(globals: &Globals, args: &Set) -> Result<(), Failure> {
    nothing_to_change(args)?;
    // The list of interfaces is sent as a whole.
    let interfaces = match args.changes_interfaces()? {
        false => Vec::new(),
        true => {
            let capture: Capture = resource::get(globals, &args.name).await?;
            capture.spec.unwrap_or_default().interfaces
        }
    };
    let request = set_request(args, interfaces)?;
    resource::set::<Capture>(globals, &args.name, request).await
}

/// The update for `args`; `interfaces` are those that the capture has now.
fn set_request(
    args: &Set,
    interfaces: Vec<CaptureInterface>,
) -> Result<UpdateCaptureRequest, Failure> {
    let untagged = |name: &String| CaptureInterface {
        name: name.clone(),
        vlan_push: None,
    };
    let is = |one: &CaptureInterface, name: &String| one.name == *name;
    let interfaces = args
        .interfaces()
        .apply(&interfaces, untagged, is, String::clone)?;
    let work = CaptureWork {
        interfaces: interfaces.iter().map(|one| one.name.clone()).collect(),
        ring: args.ring.clone().unwrap_or_default(),
    };
    let mut spec = args.options.to_specs(&[work])?.pop().unwrap_or_default();
    let mut fields = args.options.changed_fields();
    let pushes = args.options.edits.interface_pushes()?;
    if args.changes_interfaces()? {
        for (wanted, current) in spec.interfaces.iter_mut().zip(interfaces) {
            if !pushes.iter().any(|(name, _)| *name == current.name) {
                *wanted = current;
            }
        }
        fields.push("interfaces");
    }
    fields.extend(args.ring.as_ref().map(|_| "ring"));
    Ok(UpdateCaptureRequest {
        name: args.name.clone(),
        spec: Some(spec),
        update_mask: resource::mask(&fields),
        validate_only: args.dry_run,
    })
}

impl Kind for Capture {
    const NOUN: &'static str = "capture";
    const COMMAND: &'static str = "rx";
    const DAEMON: &'static str = "rxd";
    const HEADER: &'static [&'static str] = &[
        "NAME",
        "INTERFACES",
        "RING",
        "STATE",
        "IO",
        ">RECEIVED",
        ">PUBLISHED",
        ">KERNEL DROPS",
        "DROPS",
        "REASON",
    ];

    resource::calls! {
        CaptureServiceClient, capture, captures, CaptureSpec,
        create_capture(CreateCaptureRequest), update_capture(UpdateCaptureRequest),
        list_captures(ListCapturesRequest), get_capture(GetCaptureRequest), delete_capture(DeleteCaptureRequest),
    }

    fn same_work(one: &CaptureSpec, other: &CaptureSpec) -> bool {
        let work = |spec: &CaptureSpec| {
            let names = spec.interfaces.iter().map(|it| it.name.clone());
            (names.collect::<Vec<_>>(), spec.ring.clone())
        };
        work(one) == work(other)
    }

    fn filter(&self) -> &str {
        let edits = self.spec.as_ref().and_then(|spec| spec.edits.as_ref());
        edits.map_or("", |edits| &edits.filter)
    }

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let interfaces: Vec<&str> = spec
            .interfaces
            .iter()
            .map(|interface| interface.name.as_str())
            .collect();
        vec![
            self.name.clone(),
            interfaces.join(","),
            spec.ring,
            names::state(status.state).to_owned(),
            names::distinct(status.interfaces.iter().map(|it| it.io.as_str())),
            count(status.received_frames),
            count(status.published_frames),
            count(status.kernel_dropped_frames),
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
        ]
    }
}

fn facts(name: &str, spec: &CaptureSpec, status: &CaptureStatus) -> Vec<(&'static str, String)> {
    let size_or_default = |bytes: u64| match bytes {
        0 => "default".to_owned(),
        bytes => format_size(bytes),
    };
    vec![
        ("name", name.to_owned()),
        ("ring", spec.ring.clone()),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("direction", names::direction(spec.direction).to_owned()),
        (
            "promiscuous",
            if spec.no_promiscuous {
                "left alone"
            } else {
                "yes"
            }
            .to_owned(),
        ),
        ("io", names::io(&spec.io).to_owned()),
        (
            "exclusive",
            if spec.exclusive { "yes" } else { "no" }.to_owned(),
        ),
        ("threads", spec.threads.max(1).to_string()),
        (
            "scheduling",
            scheduling::options(spec.latency, spec.scheduling.as_ref()),
        ),
        ("edits", edits::options(spec.edits.as_ref())),
        ("filter runs in", status.filter_at.clone()),
        ("kernel buffer", size_or_default(spec.buffer_bytes)),
        ("block", size_or_default(spec.block_bytes.into())),
        ("merge window", merge_window(spec)),
        ("received frames", count(status.received_frames)),
        ("received bytes", count(status.received_bytes)),
        ("published frames", count(status.published_frames)),
        ("late frames", count(status.late_frames)),
        ("kernel drops", count(status.kernel_dropped_frames)),
        ("truncated frames", count(status.truncated_frames)),
        ("not published", by_reason(&status.dropped_frames)),
    ]
}

/// How long frames wait for earlier ones of other sockets; empty where there is one socket.
fn merge_window(spec: &CaptureSpec) -> String {
    let default = match spec.latency() {
        Latency::Low => MERGE_WINDOW_LOW_US,
        _ => MERGE_WINDOW_US,
    };
    match spec.merge_window_us {
        _ if spec.interfaces.len() < 2 && spec.threads < 2 => String::new(),
        Some(0) => "none: frames come as they are read".to_owned(),
        us => tx::merge_window(2, us.unwrap_or(default)),
    }
}

fn interfaces(spec: &CaptureSpec, status: &CaptureStatus) -> Block {
    let header = &[
        "INTERFACE",
        "STATE",
        ">INDEX",
        ">KERNEL",
        ">KERNEL DROPS",
        ">RECEIVED",
        ">FREEZES",
        "TAG",
        "REASON",
        "IO",
        "WHY",
    ];
    let rows = spec.interfaces.iter().map(|interface| {
        let known = status
            .interfaces
            .iter()
            .find(|status| status.name == interface.name);
        let status = known.cloned().unwrap_or_default();
        vec![
            interface.name.clone(),
            names::state(status.state).to_owned(),
            status.ifindex.to_string(),
            count(status.kernel_frames),
            count(status.kernel_dropped_frames),
            count(status.received_frames),
            count(status.kernel_freezes),
            interface
                .vlan_push
                .as_ref()
                .map(tag_text)
                .unwrap_or_default(),
            status.reason,
            status.io,
            status.io_reason,
        ]
    });
    Block::Rows(header, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;
    use crate::output::{Report, assert_shows, render};
    use crate::resource::{Listed as Captures, Shown as OneCapture};
    use clap::Parser;
    use fluxcap_proto::v1::{CaptureInterfaceStatus, State, VlanTag};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn set_args(args: &[&str]) -> Set {
        match Cli::parse_from([&["rx", "set"], args].concat()).command {
            Command::Set(set) => set,
            other => panic!("{other:?}"),
        }
    }

    fn add(args: &[&str]) -> Result<(String, CaptureSpec), Failure> {
        match Cli::parse_from([&["rx", "add"], args].concat()).command {
            Command::Add(add) => wanted(&add),
            other => panic!("{other:?}"),
        }
    }

    fn interface(name: &str, vid: Option<u32>) -> CaptureInterface {
        let vlan_push = vid.map(|vid| VlanTag {
            vid,
            tpid: 0x8100,
            ..Default::default()
        });
        CaptureInterface {
            name: name.to_owned(),
            vlan_push,
        }
    }

    #[test]
    fn the_default_name_is_made_of_ring_and_interfaces() {
        let (name, spec) = add(&["eth1,eth2", "cisco", "--vlan-push", "eth2=7"]).unwrap();
        assert_eq!(name, "cisco-eth1-eth2");
        assert_eq!(
            spec.interfaces,
            [interface("eth1", None), interface("eth2", Some(7))]
        );
    }

    #[test]
    fn only_the_options_given_are_in_the_update() {
        let request = set_request(
            &set_args(&["a", "--snaplen", "64", "--filter", ""]),
            Vec::new(),
        )
        .unwrap();
        assert_eq!(
            request.update_mask.unwrap().paths,
            ["edits.filter", "edits.snaplen"]
        );
        assert_eq!(request.spec.unwrap().edits.unwrap().snaplen, 64);
    }

    #[test]
    fn a_tag_for_one_interface_leaves_the_others_alone() {
        let now = vec![
            interface("eth1", Some(1)),
            interface("eth2", Some(2)),
            interface("eth3", Some(3)),
        ];
        let request = set_request(&set_args(&["a", "--vlan-push", "eth2=20,eth3="]), now).unwrap();
        let expected = [
            interface("eth1", Some(1)),
            interface("eth2", Some(20)),
            interface("eth3", None),
        ];
        assert_eq!(request.spec.unwrap().interfaces, expected);
        assert_eq!(request.update_mask.unwrap().paths, ["interfaces"]);
    }

    #[test]
    fn interfaces_come_and_go_and_keep_their_tags() {
        let now = vec![interface("eth1", Some(1)), interface("eth2", Some(2))];
        let args = [
            "a",
            "--interfaces-add",
            "eth3",
            "--interfaces-remove=eth1",
            "--ring",
            "b",
        ];
        let request = set_request(&set_args(&args), now.clone()).unwrap();
        let spec = request.spec.unwrap();
        let expected = [interface("eth2", Some(2)), interface("eth3", None)];
        assert_eq!((&spec.interfaces[..], &*spec.ring), (&expected[..], "b"));
        assert_eq!(request.update_mask.unwrap().paths, ["interfaces", "ring"]);
        let args = ["a", "--interfaces", "eth4,eth2", "--vlan-push", "eth4=4"];
        let request = set_request(&set_args(&args), now).unwrap();
        let expected = [interface("eth4", Some(4)), interface("eth2", Some(2))];
        assert_eq!(request.spec.unwrap().interfaces, expected);
        let args = ["a", "--interfaces+=eth3", "--interfaces-=eth1"];
        assert_eq!(set_args(&args).interfaces_add, ["eth3"]);
    }

    #[test]
    fn a_change_of_nothing_is_a_mistake() {
        assert_eq!(
            nothing_to_change(&set_args(&["a"])).map_err(|failure| failure.code),
            Err(Code::Usage)
        );
        assert_eq!(
            nothing_to_change(&set_args(&["a", "--vlan-push", "eth1=5"])),
            Ok(())
        );
    }

    #[test]
    fn a_merge_window_is_shown_where_there_is_something_to_merge() {
        let mut spec = CaptureSpec {
            interfaces: vec![interface("eth1", None)],
            ..Default::default()
        };
        assert_eq!(merge_window(&spec), "");
        spec.threads = 2;
        assert_eq!(merge_window(&spec), "2ms");
        spec.latency = Latency::Low.into();
        assert_eq!(merge_window(&spec), "200us");
        spec.merge_window_us = Some(0);
        assert!(merge_window(&spec).starts_with("none"));
        let status = CaptureStatus {
            late_frames: 1234,
            ..Default::default()
        };
        let shown = facts("c", &spec, &status);
        assert!(shown.contains(&("late frames", count(1234))));
    }

    #[test]
    fn a_waiting_capture_says_what_for() {
        let spec = CaptureSpec {
            interfaces: vec![interface("eth1", Some(100))],
            ring: "cisco".into(),
            ..Default::default()
        };
        let tap = CaptureInterfaceStatus {
            name: "eth1".into(),
            io: "packet".into(),
            io_reason: "leaves the host its frames".into(),
            ..Default::default()
        };
        let status = CaptureStatus {
            state: State::Waiting.into(),
            reason: "no interface eth1".into(),
            interfaces: vec![tap],
            ..Default::default()
        };
        let capture = Capture {
            name: "cisco-eth1".into(),
            spec: Some(spec),
            status: Some(status),
        };
        let text = render(&Captures(vec![capture.clone()]).blocks());
        assert_shows(&text, &["waiting", "no interface eth1", "packet"]);
        let text = render(&OneCapture(capture).blocks());
        assert_shows(&text, &["INTERFACE", "100", "leaves the host its frames"]);
    }
}
