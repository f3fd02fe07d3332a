//! The options of a mirror as the command line takes them.

use super::{RateArg, RuleArg, RulesFileArg, TargetArg};
use crate::{DirectionArg, FilterArgs, SampleArgs, ThreadArgs, UsageError, VlanPushArg};
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{Attach, Hook, MtuPolicy};
use fluxcap_service::{parse_duration, parse_size};
use std::time::Duration;

/// Options of `fluxctl mirror add|set` and of mirrord's own command line.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct MirrorArgs {
    /// Where to.
    #[command(flatten)]
    pub target: MirrorTargetArgs,

    /// What.
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Bounds.
    #[command(flatten)]
    pub bounds: BoundArgs,

    /// Programs.
    #[command(flatten)]
    pub programs: ProgramArgs,

    /// Threads.
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// Where copies go.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Where copies go")]
pub struct MirrorTargetArgs {
    /// Target.
    // The help stands apart because rustdoc would take its brackets for links.
    #[arg(
        long,
        value_name = "TARGET",
        help = "ring:NAME, dev:IFACE[,IFACE...], gue:REMOTE[:PORT], vxlan:REMOTE,vni=N, geneve:REMOTE,vni=N or gretap:REMOTE[,key=N]"
    )]
    pub to: Vec<TargetArg>,

    /// Keep the Ethernet header in GUE; the other kinds always do
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub l2: Option<bool>,

    /// Source address of outer packets; '' clears [default: the route's]
    #[arg(long, value_name = "ADDR")]
    pub local: Option<String>,

    /// Interface that outer packets leave by; '' clears [default: as routed]
    #[arg(long, value_name = "IFACE")]
    pub dev: Option<String>,

    /// TTL or hop limit of outer packets; 0 is the default [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=255))]
    pub ttl: Option<u32>,

    /// TOS or traffic class of outer packets, 0 to 255 or 0x00 to 0xff [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_tos)]
    pub tos: Option<u32>,

    /// UDP source port, or one for each inner flow, from 49152 to 65535 [default: auto]
    #[arg(long, value_name = "auto|PORT", value_parser = crate::tunnel::parse_sport)]
    pub sport: Option<u32>,

    /// Copies whose outer packet is longer than the path's MTU: cut, or dropped; both counted [default: truncate]
    #[arg(long, value_name = "truncate|drop", hide_possible_values = true)]
    pub mtu_policy: Option<OverlayMtuArg>,

    /// Have the kernel encapsulate, by a tunnel device of this name that mirrord makes and removes; '' clears
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// With --hook xdp: put a VLAN tag on what leaves by all interfaces, or by one; '' clears
    #[arg(
        long,
        value_name = "[IFACE=]TAG",
        value_delimiter = ',',
        help = "With --hook xdp: VLAN tag put on what leaves by all interfaces, or by one (IFACE=TAG): VID or TPID:VID[:PCP[:DEI]]; '' clears"
    )]
    pub vlan_push: Vec<VlanPushArg>,
}

/// What is copied.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "What is copied")]
pub struct SelectionArgs {
    /// Frames that arrive, that this host sends, or both [default: both]
    #[arg(long, value_name = "ingress|egress|both", hide_possible_values = true)]
    pub direction: Option<DirectionArg>,

    /// Rule, for instance 'accept src 10.0.0.0/8 dport 80,443 proto tcp'; the first that matches decides; may be repeated; '' clears all
    #[arg(long, value_name = "RULE")]
    pub rule: Vec<RuleArg>,

    /// File with one rule on each line; they go behind those of --rule
    #[arg(long, value_name = "FILE")]
    pub rules_file: Vec<RulesFileArg>,

    /// By a filter, as well as by rules.
    #[command(flatten)]
    pub filter: FilterArgs,

    /// How many of them.
    #[command(flatten)]
    pub sample: SampleArgs,

    /// Copy at most this many bytes of each frame; 0 copies all
    #[arg(long, value_name = "BYTES")]
    pub snaplen: Option<u32>,
}

/// Bounds of a mirror.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Bounds")]
pub struct BoundArgs {
    /// Most copies: 10kpps, 100Mbit, or both with a comma between; what is beyond is counted; 0 clears
    #[arg(long, value_name = "RATE")]
    pub rate: Option<RateArg>,

    /// How much of that rate may come at once, 1ms to 10s; 0ms is the default [default: 100ms]
    #[arg(long, value_name = "TIME", value_parser = parse_burst)]
    pub burst: Option<u32>,

    /// Switch the mirror off when so many copies failed within a second; 0 clears
    #[arg(long, value_name = "N")]
    pub fuse_errors: Option<u32>,

    /// Switch the mirror off when it copies more than this: 1Mpps, 1Gbit, or both; 0 clears
    #[arg(long, value_name = "RATE")]
    pub fuse_rate: Option<RateArg>,

    /// End the mirror after this time, for instance 10m; 0s clears
    #[arg(long = "for", value_name = "TIME", value_parser = parse_lifetime)]
    pub lifetime: Option<u64>,
}

/// The programs in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Programs in the kernel")]
pub struct ProgramArgs {
    /// Beside the normal traffic (tc), or in the driver of an interface that only a tap feeds (xdp) [default: tc]
    #[arg(long, value_name = "tc|xdp", hide_possible_values = true)]
    pub hook: Option<HookArg>,

    /// How programs for tc are attached; auto is tcx where the kernel has it [default: auto]
    #[arg(long, value_name = "auto|tcx|clsact", hide_possible_values = true)]
    pub attach: Option<AttachArg>,

    /// Place among other programs at the interface; ID is a program's number as bpftool shows it [default: last]
    #[arg(long, value_name = "first|last|before:ID|after:ID")]
    pub order: Option<String>,

    /// Bit of the packets' mark by which copies are told from originals; 0 is the default [default: 0x40000000]
    #[arg(long, value_name = "BIT", value_parser = parse_mark)]
    pub mark: Option<u32>,

    /// Copy into a ring what was sent from that very ring, too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_loop: Option<bool>,

    /// Buffer between the kernel and a ring, a power of two; 0 is the default [default: 8M]
    #[arg(long, value_name = "SIZE", value_parser = parse_buffer)]
    pub buffer: Option<u32>,
}

/// `--mtu-policy` of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverlayMtuArg {
    /// Cut.
    Truncate,
    /// Not at all.
    Drop,
}

/// `--hook`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookArg {
    /// Traffic control.
    Tc,
    /// The driver.
    Xdp,
}

/// `--attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttachArg {
    /// The better that there is.
    Auto,
    /// A TCX link.
    Tcx,
    /// A filter at the clsact qdisc.
    Clsact,
}

impl From<OverlayMtuArg> for MtuPolicy {
    fn from(arg: OverlayMtuArg) -> Self {
        match arg {
            OverlayMtuArg::Truncate => MtuPolicy::Truncate,
            OverlayMtuArg::Drop => MtuPolicy::Drop,
        }
    }
}

impl From<HookArg> for Hook {
    fn from(arg: HookArg) -> Self {
        match arg {
            HookArg::Tc => Hook::Tc,
            HookArg::Xdp => Hook::Xdp,
        }
    }
}

impl From<AttachArg> for Attach {
    fn from(arg: AttachArg) -> Self {
        match arg {
            AttachArg::Auto => Attach::Unspecified,
            AttachArg::Tcx => Attach::Tcx,
            AttachArg::Clsact => Attach::Clsact,
        }
    }
}

fn range(option: &'static str, text: &str, problem: &'static str) -> UsageError {
    UsageError::Range {
        option,
        text: format!("'{text}'"),
        problem,
    }
}

/// A number in decimal or, behind 0x, in hexadecimal digits.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_tos(text: &str) -> Result<u32, UsageError> {
    let tos = number(text).filter(|tos| *tos <= 255);
    tos.ok_or_else(|| range("--tos", text, "write 0 to 255 or 0x00 to 0xff"))
}

fn parse_mark(text: &str) -> Result<u32, UsageError> {
    let mark = number(text).filter(|mark| mark.count_ones() <= 1);
    mark.ok_or_else(|| range("--mark", text, "write one bit, for instance 0x40000000"))
}

fn parse_buffer(text: &str) -> Result<u32, UsageError> {
    let bytes = parse_size(text).ok().and_then(|it| it.try_into().ok());
    bytes.ok_or_else(|| {
        let problem = "write a size up to 1G that is a power of two, for instance 8M";
        range("--buffer", text, problem)
    })
}

fn whole_milliseconds(text: &str) -> Option<u64> {
    let time = parse_duration(text).ok()?;
    let ms = u64::try_from(time.as_millis()).ok()?;
    (Duration::from_millis(ms) == time).then_some(ms)
}

fn parse_burst(text: &str) -> Result<u32, UsageError> {
    let ms = whole_milliseconds(text).and_then(|ms| u32::try_from(ms).ok());
    ms.filter(|ms| *ms <= super::validate::MAX_BURST_MS)
        .ok_or_else(|| {
            let problem = "must be a time in whole milliseconds, 1ms to 10s";
            range("--burst", text, problem)
        })
}

fn parse_lifetime(text: &str) -> Result<u64, UsageError> {
    let ms = whole_milliseconds(text).filter(|ms| *ms <= super::validate::MAX_LIFETIME_MS);
    ms.ok_or_else(|| {
        let problem =
            "must be a time in whole milliseconds, at most 10 years, for instance 90s, 10m or 2h";
        range("--for", text, problem)
    })
}
