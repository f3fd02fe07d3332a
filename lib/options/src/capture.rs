//! What a capture is told besides its interfaces and its ring.

use crate::transmit::{MAX_MERGE_WINDOW_US, parse_merge_window};
use crate::{CaptureIo, CaptureWork, EditArgs, SchedulingArgs, SpecError, UsageError};
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{CaptureInterface, CaptureSpec, Direction};
use fluxcap_service::{parse_duration, parse_size};

/// Most threads that read an interface.
const MAX_THREADS: u32 = 16;

/// Checks `threads` of a spec.
///
/// # Errors
/// When they are too many.
pub fn validate_threads(threads: u32) -> Result<(), SpecError> {
    match threads {
        0..=MAX_THREADS => Ok(()),
        _ => Err(SpecError::new(
            "threads",
            format!("must be 1 to {MAX_THREADS}"),
        )),
    }
}

/// How long frames of several sockets are held back for earlier ones, unless the spec says otherwise, in microseconds.
pub const MERGE_WINDOW_US: u32 = 2000;
/// The same with low latency.
pub const MERGE_WINDOW_LOW_US: u32 = 200;

/// Checks `merge_window_us` of a spec.
///
/// # Errors
/// When it is too long.
pub fn validate_merge_window(us: Option<u32>) -> Result<(), SpecError> {
    match us {
        Some(us) if us > MAX_MERGE_WINDOW_US => {
            Err(SpecError::new("merge_window_us", "must be at most 10 s"))
        }
        _ => Ok(()),
    }
}

/// Options of a capture.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct CaptureArgs {
    /// Which frames: those that arrive, those that this host sends, or both [default: in]
    #[arg(long, value_name = "in|out|both", hide_possible_values = true)]
    pub direction: Option<DirectionArg>,

    /// How frames are taken from the kernel: the way that leaves them to the host (auto), or one by name; af_xdp takes them from the host [default: auto]
    #[arg(long, value_name = "auto|packet|af_xdp", hide_possible_values = true)]
    pub io: Option<CaptureIo>,

    /// With --io af_xdp: also where the host has addresses, the interface is a port of a bridge or bond, or others capture it: they get nothing any more
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exclusive: Option<bool>,

    /// Threads that read each interface, 1 to 16; the frames of a flow go through the same one [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_THREADS)))]
    pub threads: Option<u32>,

    /// Leave the interfaces' promiscuous mode alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_promiscuous: Option<bool>,

    /// Take frames that come back from this very ring, and interfaces by which they do
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_loop: Option<bool>,

    /// Kernel buffer for each interface and thread; 0 is the default [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffer: Option<u64>,

    /// Block of that buffer, a power of two; it bounds the longest frame; 0 is the default [default: 256K]
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size)]
    pub block_size: Option<u32>,

    /// Longest time that a frame waits in a block that is not full, in whole milliseconds [default: 1ms]
    #[arg(long, value_name = "TIME", value_parser = parse_block_retire)]
    pub block_retire: Option<u32>,

    /// With several interfaces or threads: how long a frame waits for an earlier one of another; 0: it does not wait [default: 2ms, 200us with --latency low]
    #[arg(long, value_name = "TIME", value_parser = parse_window)]
    pub merge_window: Option<u32>,

    /// Threads.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    /// Edits.
    #[command(flatten)]
    pub edits: EditArgs,
}

/// `--direction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DirectionArg {
    /// Frames that arrive.
    #[value(alias = "ingress")]
    In,
    /// Frames that this host sends.
    #[value(alias = "egress")]
    Out,
    /// Both.
    Both,
}

impl From<DirectionArg> for Direction {
    fn from(arg: DirectionArg) -> Self {
        match arg {
            DirectionArg::In => Direction::In,
            DirectionArg::Out => Direction::Out,
            DirectionArg::Both => Direction::Both,
        }
    }
}

impl CaptureArgs {
    /// The spec of each capture in `works`, in that order, all with these options.
    ///
    /// Fails when a tag is for an interface that none of them captures.
    pub fn to_specs(&self, works: &[CaptureWork]) -> Result<Vec<CaptureSpec>, UsageError> {
        let edits = self.edits.to_edits()?;
        let pushes = self.edits.interface_pushes()?;
        let known: Vec<&str> = works
            .iter()
            .flat_map(|work| &work.interfaces)
            .map(String::as_str)
            .collect();
        if let Some((interface, _)) = pushes
            .iter()
            .find(|(interface, _)| !known.contains(interface))
        {
            return Err(UsageError::UnknownInterface {
                interface: (*interface).to_owned(),
                known: known.join(", "),
            });
        }
        let interface = |name: &String| CaptureInterface {
            name: name.clone(),
            vlan_push: pushes
                .iter()
                .find(|(interface, _)| interface == name)
                .and_then(|(_, tag)| *tag),
        };
        let spec = |work: &CaptureWork| CaptureSpec {
            interfaces: work.interfaces.iter().map(interface).collect(),
            ring: work.ring.clone(),
            direction: self
                .direction
                .map_or(Direction::Unspecified, Direction::from)
                .into(),
            no_promiscuous: self.no_promiscuous.unwrap_or(false),
            allow_loop: self.allow_loop.unwrap_or(false),
            edits: Some(edits.clone()),
            buffer_bytes: self.buffer.unwrap_or(0),
            block_bytes: self.block_size.unwrap_or(0),
            block_retire_us: self.block_retire.unwrap_or(0),
            exclusive: self.exclusive.unwrap_or(false),
            io: self.io.map_or(String::new(), |io| io.as_str().to_owned()),
            latency: self.scheduling.to_latency().into(),
            threads: self.threads.unwrap_or(0),
            scheduling: self.scheduling.to_scheduling(),
            merge_window_us: self.merge_window,
        };
        Ok(works.iter().map(spec).collect())
    }

    /// Fields of `CaptureSpec` that were given, for an update mask.
    ///
    /// Tags for single interfaces are inside of the list `interfaces` and therefore not named here: who updates them
    /// sends the whole list (see [`EditArgs::interface_pushes`]).
    #[must_use]
    pub fn changed_fields(&self) -> Vec<&'static str> {
        [
            (self.direction.is_some(), "direction"),
            (self.io.is_some(), "io"),
            (self.exclusive.is_some(), "exclusive"),
            (self.threads.is_some(), "threads"),
            (self.no_promiscuous.is_some(), "no_promiscuous"),
            (self.allow_loop.is_some(), "allow_loop"),
            (self.buffer.is_some(), "buffer_bytes"),
            (self.block_size.is_some(), "block_bytes"),
            (self.block_retire.is_some(), "block_retire_us"),
            (self.merge_window.is_some(), "merge_window_us"),
        ]
        .into_iter()
        .filter_map(|(given, field)| given.then_some(field))
        .chain(self.scheduling.changed_fields())
        .chain(self.edits.changed_fields())
        .collect()
    }
}

fn parse_window(text: &str) -> Result<u32, UsageError> {
    match text {
        "0" => Ok(0),
        text => parse_merge_window(text),
    }
}

fn parse_block_size(text: &str) -> Result<u32, UsageError> {
    parse_size(text)
        .ok()
        .and_then(|bytes| u32::try_from(bytes).ok())
        .filter(|bytes| *bytes == 0 || bytes.is_power_of_two())
        .ok_or_else(|| UsageError::Range {
            option: "--block-size",
            text: text.to_owned(),
            problem: "must be a power of two below 4G, for instance 256K",
        })
}

fn parse_block_retire(text: &str) -> Result<u32, UsageError> {
    parse_duration(text)
        .ok()
        .and_then(|time| u32::try_from(time.as_micros()).ok())
        .filter(|us| *us > 0 && us % 1000 == 0)
        .ok_or_else(|| UsageError::Range {
            option: "--block-retire",
            text: text.to_owned(),
            problem: "must be a time in whole milliseconds, for instance 1ms or 10ms",
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use fluxcap_proto::v1::Latency;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: CaptureArgs,
    }

    fn parse(args: &[&str]) -> Result<CaptureArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.options)
            .map_err(|error| error.to_string())
    }

    fn works(texts: &[&str]) -> Vec<CaptureWork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn options_not_given_leave_defaults_to_the_daemon() {
        let spec = parse(&[])
            .unwrap()
            .to_specs(&works(&["eth1:cisco"]))
            .unwrap()
            .remove(0);
        let interfaces = vec![CaptureInterface {
            name: "eth1".into(),
            vlan_push: None,
        }];
        assert_eq!(
            spec,
            CaptureSpec {
                interfaces,
                ring: "cisco".into(),
                edits: Some(Default::default()),
                ..Default::default()
            }
        );
    }

    #[test]
    fn kernel_buffer_options_take_human_units() {
        let args = [
            "--buffer",
            "64M",
            "--block-size",
            "512K",
            "--block-retire",
            "10ms",
            "--direction",
            "both",
            "--no-promiscuous",
            "--allow-loop",
        ];
        let args = parse(&args).unwrap();
        let spec = args.to_specs(&works(&["eth1:cisco"])).unwrap().remove(0);
        assert_eq!(
            (spec.buffer_bytes, spec.block_bytes, spec.block_retire_us),
            (64 << 20, 512 << 10, 10_000)
        );
        assert_eq!(spec.direction, i32::from(Direction::Both));
        assert!(spec.no_promiscuous && spec.allow_loop);
        let mask = [
            "direction",
            "no_promiscuous",
            "allow_loop",
            "buffer_bytes",
            "block_bytes",
            "block_retire_us",
        ];
        assert_eq!(args.changed_fields(), mask);
    }

    #[test]
    fn threads_and_their_scheduling_arrive_in_spec_and_mask() {
        let args = [
            "--io",
            "af_xdp",
            "--threads",
            "4",
            "--latency",
            "low",
            "--cpu",
            "1-4",
        ];
        let args = parse(&args).unwrap();
        let spec = args.to_specs(&works(&["eth1:cisco"])).unwrap().remove(0);
        assert_eq!((spec.io.as_str(), spec.threads), ("af_xdp", 4));
        assert_eq!(spec.latency, i32::from(Latency::Low));
        assert_eq!(spec.scheduling.unwrap().cpus, [1, 2, 3, 4]);
        let mask = ["io", "threads", "latency", "scheduling.cpus"];
        assert_eq!(args.changed_fields(), mask);
        assert_eq!(validate_threads(16), Ok(()));
        assert!(validate_threads(17).is_err());
    }

    #[test]
    fn a_merge_window_of_nothing_is_not_the_default() {
        let spec = |args: &[&str]| {
            let args = parse(args).unwrap();
            let spec = args.to_specs(&works(&["a,b:c"])).unwrap().remove(0);
            (spec.merge_window_us, args.changed_fields())
        };
        assert_eq!(spec(&[]), (None, vec![]));
        let mask = vec!["merge_window_us"];
        assert_eq!(spec(&["--merge-window", "0"]), (Some(0), mask.clone()));
        assert_eq!(spec(&["--merge-window", "500us"]), (Some(500), mask));
        assert!(parse(&["--merge-window", "11s"]).is_err());
        assert_eq!(validate_merge_window(Some(10_000_000)), Ok(()));
        assert!(validate_merge_window(Some(10_000_001)).is_err());
    }

    #[test]
    fn tags_go_to_their_interface_in_whichever_capture_has_it() {
        let args = parse(&["--vlan-push", "eth1=100,eth3=300"]).unwrap();
        let specs = args.to_specs(&works(&["eth1,eth2:a", "eth3:b"])).unwrap();
        let vids = |spec: &CaptureSpec| {
            spec.interfaces
                .iter()
                .map(|i| i.vlan_push.map(|t| t.vid))
                .collect::<Vec<_>>()
        };
        assert_eq!(vids(&specs[0]), [Some(100), None]);
        assert_eq!(vids(&specs[1]), [Some(300)]);
    }

    #[test]
    fn a_tag_for_an_unknown_interface_is_refused_by_name() {
        let error = parse(&["--vlan-push", "eth9=1"])
            .unwrap()
            .to_specs(&works(&["eth1:a"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("eth9") && error.contains("eth1"), "{error}");
    }

    #[test]
    fn values_that_the_kernel_could_not_take_are_refused() {
        for args in [
            ["--block-size", "3K"],
            ["--block-size", "4G"],
            ["--block-retire", "500us"],
            ["--buffer", "64KB"],
            ["--threads", "0"],
            ["--threads", "17"],
            ["--io", "live"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_flag_can_be_taken_back() {
        assert_eq!(
            parse(&["--no-promiscuous=false"]).map(|args| args.no_promiscuous),
            Ok(Some(false))
        );
    }
}
