//! What a transmit is told besides its rings and its interfaces.

use crate::{EditArgs, SchedulingArgs, TransmitIo, TransmitWork, UsageError, parse_start};
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{OversizePolicy, Start, TransmitSpec};
use fluxcap_service::parse_duration;

/// Longest merge window that makes sense, in microseconds: a ring at full rate must hold it.
pub const MAX_MERGE_WINDOW_US: u32 = 10_000_000;

/// Options of a transmit.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TransmitArgs {
    /// How frames are handed to the kernel: the fastest way that is safe and works (auto), or one by name [default: auto]
    #[arg(
        long,
        value_name = "auto|live|tc|af_xdp|sendmmsg",
        hide_possible_values = true
    )]
    pub io: Option<TransmitIo>,

    /// Bypass the interfaces' queueing discipline; for sendmmsg
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub qdisc_bypass: Option<bool>,

    /// What becomes of frames longer than the MTU allows: skipped, or cut; both are counted [default: drop]
    #[arg(long, value_name = "drop|truncate", hide_possible_values = true)]
    pub oversize: Option<OversizeArg>,

    /// Where to begin: newest, oldest, seq:N or time:RFC3339 [default: newest]
    #[arg(long, value_name = "START", value_parser = parse_start)]
    pub from: Option<Start>,

    /// With several rings: how long a frame is held back for an earlier one from another ring [default: 2ms]
    #[arg(long, value_name = "TIME", value_parser = parse_merge_window)]
    pub merge_window: Option<u32>,

    /// Accept an interface by which frames come back into one of the rings
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_loop: Option<bool>,

    /// Threads.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    /// Edits.
    #[command(flatten)]
    pub edits: EditArgs,
}

/// `--oversize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OversizeArg {
    /// Skipped.
    Drop,
    /// Cut.
    Truncate,
}

impl From<OversizeArg> for OversizePolicy {
    fn from(arg: OversizeArg) -> Self {
        match arg {
            OversizeArg::Drop => OversizePolicy::Drop,
            OversizeArg::Truncate => OversizePolicy::Truncate,
        }
    }
}

impl TransmitArgs {
    /// The spec of each transmit in `works`, in that order, all with these options.
    pub fn to_specs(&self, works: &[TransmitWork]) -> Result<Vec<TransmitSpec>, UsageError> {
        self.check()?;
        let edits = self.edits.to_edits()?;
        let spec = |work: &TransmitWork| TransmitSpec {
            rings: work.rings.clone(),
            interfaces: work.interfaces.clone(),
            edits: Some(edits.clone()),
            io: self.io.map_or(String::new(), |io| io.as_str().to_owned()),
            qdisc_bypass: self.qdisc_bypass.unwrap_or(false),
            oversize: self
                .oversize
                .map_or(OversizePolicy::Unspecified, OversizePolicy::from)
                .into(),
            start: self.from,
            merge_window_us: self.merge_window.unwrap_or(0),
            allow_loop: self.allow_loop.unwrap_or(false),
            latency: self.scheduling.to_latency().into(),
            scheduling: self.scheduling.to_scheduling(),
        };
        Ok(works.iter().map(spec).collect())
    }

    /// Fields of `TransmitSpec` that were given, for an update mask.
    #[must_use]
    pub fn changed_fields(&self) -> Vec<&'static str> {
        [
            (self.io.is_some(), "io"),
            (self.qdisc_bypass.is_some(), "qdisc_bypass"),
            (self.oversize.is_some(), "oversize"),
            (self.from.is_some(), "start"),
            (self.merge_window.is_some(), "merge_window_us"),
            (self.allow_loop.is_some(), "allow_loop"),
        ]
        .into_iter()
        .filter_map(|(given, field)| given.then_some(field))
        .chain(self.scheduling.changed_fields())
        .chain(self.edits.changed_fields())
        .collect()
    }

    fn check(&self) -> Result<(), UsageError> {
        match self.edits.interface_pushes()?.first() {
            Some((interface, _)) => Err(UsageError::PushPerInterface {
                interface: (*interface).to_owned(),
            }),
            None => Ok(()),
        }
    }
}

pub(crate) fn parse_merge_window(text: &str) -> Result<u32, UsageError> {
    parse_duration(text)
        .ok()
        .filter(|time| time.subsec_nanos().is_multiple_of(1000))
        .and_then(|time| u32::try_from(time.as_micros()).ok())
        .filter(|us| (1..=MAX_MERGE_WINDOW_US).contains(us))
        .ok_or_else(|| UsageError::Range {
            option: "--merge-window",
            text: text.to_owned(),
            problem: "must be a time in whole microseconds, 1us to 10s, for instance 2ms",
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use fluxcap_proto::v1::{Latency, start::At};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: TransmitArgs,
    }

    fn parse(args: &[&str]) -> Result<TransmitArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn several_interfaces_and_any_way_are_taken() {
        for io in ["auto", "live", "tc", "af_xdp", "sendmmsg"] {
            let args = parse(&["--io", io]).unwrap();
            let spec = args.to_specs(&["shm:a:eth3,eth4".parse().unwrap()]);
            let spec = spec.unwrap().remove(0);
            assert_eq!((spec.io.as_str(), spec.interfaces.len()), (io, 2));
        }
        assert!(parse(&["--io", "dpdk"]).is_err_and(|error| error.contains("sendmmsg")));
    }

    fn specs(args: &[&str]) -> Result<Vec<TransmitSpec>, UsageError> {
        parse(args)
            .unwrap()
            .to_specs(&["a,b:eth3".parse().unwrap()])
    }

    #[test]
    fn options_not_given_leave_defaults_to_the_daemon() {
        let spec = TransmitSpec {
            rings: vec!["a".into(), "b".into()],
            interfaces: vec!["eth3".into()],
            edits: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(specs(&[]), Ok(vec![spec]));
    }

    #[test]
    fn every_option_arrives_in_its_field_and_in_the_mask() {
        let args = [
            "--io",
            "sendmmsg",
            "--qdisc-bypass",
            "--oversize",
            "truncate",
            "--from",
            "seq:5",
            "--merge-window",
            "500us",
            "--allow-loop",
            "--latency",
            "low",
            "--spin",
            "50us",
            "--snaplen",
            "60",
        ];
        let spec = specs(&args).unwrap().remove(0);
        assert_eq!(spec.io, "sendmmsg");
        assert!(spec.qdisc_bypass && spec.allow_loop);
        assert_eq!(spec.oversize, i32::from(OversizePolicy::Truncate));
        assert_eq!(
            spec.start,
            Some(Start {
                at: Some(At::Seq(5))
            })
        );
        assert_eq!(spec.merge_window_us, 500);
        assert_eq!(spec.latency, i32::from(Latency::Low));
        assert_eq!(spec.scheduling.map(|it| it.spin_us), Some(50));
        let mask = [
            "io",
            "qdisc_bypass",
            "oversize",
            "start",
            "merge_window_us",
            "allow_loop",
            "latency",
            "scheduling.spin_us",
            "edits.snaplen",
        ];
        assert_eq!(parse(&args).unwrap().changed_fields(), mask);
    }

    #[test]
    fn a_tag_for_one_interface_is_for_captures_only() {
        assert_eq!(
            specs(&["--vlan-push", "eth3=5"]),
            Err(UsageError::PushPerInterface {
                interface: "eth3".into()
            })
        );
    }

    #[test]
    fn a_merge_window_has_an_end() {
        assert!(parse(&["--merge-window", "10s"]).is_ok());
        assert!(parse(&["--merge-window", "0.002"]).is_ok());
        for text in ["11", "0ms", "1500ns", "10001ms", "2h"] {
            assert!(
                parse(&["--merge-window", text]).is_err_and(|error| error.contains("2ms")),
                "{text}"
            );
        }
    }
}
