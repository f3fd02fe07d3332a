//! The options of a tunnel as the command line takes them.

use super::{IdArgs, MapArg, Network, parse_mac};
use crate::transmit::parse_merge_window;
use crate::{EditArgs, SchedulingArgs, TunnelIo, UsageError, parse_start};
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{ErspanDirection, InnerProtocol, MtuPolicy, Start};
use fluxcap_service::parse_size;
use std::str::FromStr;

/// Options of both directions.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Tunnel, as in ip-link(8)")]
pub struct TunnelArgs {
    /// Own address: source of what is sent, destination of what is received; '' clears [default: the route's; any]
    #[arg(long, value_name = "ADDR")]
    pub local: Option<String>,

    /// Interface that outer packets leave and arrive by; '' clears [default: as routed]
    #[arg(long, value_name = "IFACE")]
    pub dev: Option<String>,

    /// Identifier.
    #[command(flatten)]
    pub ids: IdArgs,

    /// UDP port of the receiving end; 0 is the default [default: vxlan 4789, geneve 6081, gue 6080, tzsp 37008]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u32).range(0..=65535))]
    pub dport: Option<u32>,

    /// What gue and fou carry: IP as a link of type ipip or sit does, or IP or Ethernet in GRE; gue is received with any [default: ip]
    #[arg(long, value_name = "ip|gre|gretap", hide_possible_values = true)]
    pub inner: Option<InnerArg>,

    /// GRE checksums: send them, or refuse packets without
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub csum: Option<bool>,

    /// GRE sequence numbers: send them, or refuse packets without, and those that come out of order
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub seq: Option<bool>,
}

/// Options of a tunnel that sends.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Sending")]
pub struct EncapArgs {
    /// TTL or hop limit of outer packets, 1 to 255, or that of each inner packet [default: 64]
    #[arg(long, value_name = "N|inherit", value_parser = parse_ttl)]
    pub ttl: Option<FieldArg>,

    /// TOS or traffic class of outer packets, 0 to 255 or 0x00 to 0xff, or that of each inner packet [default: 0]
    #[arg(long, value_name = "N|inherit", value_parser = parse_tos)]
    pub tos: Option<FieldArg>,

    /// Frames whose outer packet is longer than the path's MTU: sent in IP fragments, cut, or dropped; all counted [default: fragment]
    #[arg(
        long,
        value_name = "fragment|truncate|drop",
        hide_possible_values = true
    )]
    pub mtu_policy: Option<MtuPolicyArg>,

    /// Don't-fragment bit of outer IPv4 packets [default: set unless the policy is fragment]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub df: Option<bool>,

    /// UDP source port, or one for each inner flow, from 49152 to 65535 [default: auto]
    #[arg(long, value_name = "auto|PORT", value_parser = parse_sport)]
    pub sport: Option<u32>,

    /// UDP checksums [default: over IPv6 only]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub udp_csum: Option<bool>,

    /// ERSPAN: 0, 1 or 2 for types I, II or III [default: 1]
    #[arg(long, value_name = "0|1|2", value_parser = clap::value_parser!(u32).range(0..=2))]
    pub erspan_ver: Option<u32>,

    /// ERSPAN type II: index, 0 to 1048575
    #[arg(long, visible_alias = "erspan", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=0xf_ffff))]
    pub index: Option<u32>,

    /// ERSPAN type III: direction, or that which the ring knows of each frame [default: auto]
    #[arg(long, value_name = "auto|ingress|egress", hide_possible_values = true)]
    pub erspan_dir: Option<ErspanDirArg>,

    /// ERSPAN type III: hardware identifier, 0 to 63
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=63))]
    pub erspan_hwid: Option<u32>,

    /// GUE: 0 with a header, 1 with IP directly in UDP [default: 0]
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u32).range(0..=1))]
    pub variant: Option<u32>,

    /// Geneve: put wire length and timestamp of each frame into an option; frames that were cut have it always
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub metadata: Option<bool>,

    /// How packets are handed to the kernel: the fastest way that is safe and works (auto), or one by name [default: auto]
    #[arg(
        long,
        value_name = "auto|live|tc|af_xdp|sendmmsg|ip",
        hide_possible_values = true
    )]
    pub io: Option<TunnelIo>,

    /// With several rings: how long a frame is held back for an earlier one from another ring [default: 2ms]
    #[arg(long, value_name = "TIME", value_parser = parse_merge_window)]
    pub merge_window: Option<u32>,

    /// Accept a way out through an interface that feeds one of the rings
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_loop: Option<bool>,
}

/// Options of a tunnel that receives.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Receiving")]
pub struct DecapArgs {
    /// Ring of the packets with this key, VNI or session, or with none; may be repeated
    #[arg(long, value_name = "ID=RING", value_delimiter = ',')]
    pub map: Vec<MapArg>,

    /// Ring of all other packets; '' counts and drops them
    #[arg(long, value_name = "RING")]
    pub default_ring: Option<String>,

    /// Destination address of the Ethernet header that IP packets get; '' is the default [default: 02:00:00:00:00:02]
    #[arg(long, value_name = "MAC", value_parser = parse_mac_arg)]
    pub mac_destination: Option<String>,

    /// Source address of the Ethernet header that IP packets get; '' is the default [default: 02:00:00:00:00:01]
    #[arg(long, value_name = "MAC", value_parser = parse_mac_arg)]
    pub mac_source: Option<String>,

    /// Accept UDP over IPv6 without a checksum
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub udp6zerocsumrx: Option<bool>,

    /// Kernel buffer of each socket; 0 is the default [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffer: Option<u64>,
}

/// Options of `fluxctl tunnel send`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TunnelSendArgs {
    /// Tunnel.
    #[command(flatten)]
    pub tunnel: TunnelArgs,

    /// Sending.
    #[command(flatten)]
    pub encap: EncapArgs,

    /// Where to begin: newest, oldest, seq:N or time:RFC3339 [default: newest]
    #[arg(long, value_name = "START", value_parser = parse_start)]
    pub from: Option<Start>,

    /// Threads.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    /// Edits.
    #[command(flatten)]
    pub edits: EditArgs,
}

/// Options of `fluxctl tunnel recv`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TunnelReceiveArgs {
    /// Tunnel.
    #[command(flatten)]
    pub tunnel: TunnelArgs,

    /// Receiving.
    #[command(flatten)]
    pub decap: DecapArgs,

    /// Senders to listen to, all others are dropped and counted; may be repeated [default: any]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub from: Vec<Network>,

    /// Threads.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    /// Edits.
    #[command(flatten)]
    pub edits: EditArgs,
}

/// Options of `fluxctl tunnel set` and of tunneld's own command line: those of both directions.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TunnelSetArgs {
    /// Tunnel.
    #[command(flatten)]
    pub tunnel: TunnelArgs,

    /// Sending.
    #[command(flatten)]
    pub encap: EncapArgs,

    /// Receiving.
    #[command(flatten)]
    pub decap: DecapArgs,

    /// To send: where to begin (newest, oldest, seq:N, time:RFC3339). To receive: senders to listen to, '' for all
    #[arg(long, value_name = "START|CIDR", value_delimiter = ',')]
    pub from: Vec<FromArg>,

    /// Threads.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,

    /// Edits.
    #[command(flatten)]
    pub edits: EditArgs,
}

/// A field of the outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldArg {
    /// As in each inner packet.
    Inherit,
    /// This value.
    Fixed(u32),
}

/// `--from`, which means one thing to a sender and another to a receiver.
#[derive(Debug, Clone, PartialEq)]
pub enum FromArg {
    /// Nobody in particular.
    Anyone,
    /// Where to begin.
    Start(Start),
    /// Whom to listen to.
    Network(Network),
}

/// `--inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InnerArg {
    /// IP packets.
    Ip,
    /// IP packets in GRE.
    Gre,
    /// Ethernet frames in GRE.
    Gretap,
}

/// `--mtu-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MtuPolicyArg {
    /// In IP fragments.
    Fragment,
    /// Cut.
    Truncate,
    /// Not at all.
    Drop,
}

/// `--erspan-dir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ErspanDirArg {
    /// What the ring knows.
    Auto,
    /// Always ingress.
    Ingress,
    /// Always egress.
    Egress,
}

impl From<InnerArg> for InnerProtocol {
    fn from(arg: InnerArg) -> Self {
        match arg {
            InnerArg::Ip => InnerProtocol::Ip,
            InnerArg::Gre => InnerProtocol::Gre,
            InnerArg::Gretap => InnerProtocol::Gretap,
        }
    }
}

impl From<MtuPolicyArg> for MtuPolicy {
    fn from(arg: MtuPolicyArg) -> Self {
        match arg {
            MtuPolicyArg::Fragment => MtuPolicy::Fragment,
            MtuPolicyArg::Truncate => MtuPolicy::Truncate,
            MtuPolicyArg::Drop => MtuPolicy::Drop,
        }
    }
}

impl From<ErspanDirArg> for ErspanDirection {
    fn from(arg: ErspanDirArg) -> Self {
        match arg {
            ErspanDirArg::Auto => ErspanDirection::Unspecified,
            ErspanDirArg::Ingress => ErspanDirection::Ingress,
            ErspanDirArg::Egress => ErspanDirection::Egress,
        }
    }
}

impl FromStr for FromArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        if text.is_empty() {
            return Ok(FromArg::Anyone);
        }
        let network = text.parse().map(FromArg::Network);
        network.or_else(|_| parse_start(text).map(FromArg::Start))
    }
}

fn parse_ttl(text: &str) -> Result<FieldArg, UsageError> {
    let number = text.parse().ok().filter(|ttl| (1..=255).contains(ttl));
    field(text, number, "--ttl", "write 1 to 255 or inherit")
}

fn parse_tos(text: &str) -> Result<FieldArg, UsageError> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => text.parse::<u8>().ok(),
    };
    let number = number.map(u32::from);
    field(
        text,
        number,
        "--tos",
        "write 0 to 255, 0x00 to 0xff or inherit",
    )
}

fn field(
    text: &str,
    number: Option<u32>,
    option: &'static str,
    problem: &'static str,
) -> Result<FieldArg, UsageError> {
    if text == "inherit" {
        return Ok(FieldArg::Inherit);
    }
    number
        .map(FieldArg::Fixed)
        .ok_or_else(|| UsageError::Range {
            option,
            text: format!("'{text}'"),
            problem,
        })
}

/// A source port; 0 for one of each flow.
pub(crate) fn parse_sport(text: &str) -> Result<u32, UsageError> {
    if text == "auto" {
        return Ok(0);
    }
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    port.map(u32::from).ok_or_else(|| UsageError::Range {
        option: "--sport",
        text: format!("'{text}'"),
        problem: "write 1 to 65535 or auto",
    })
}

fn parse_mac_arg(text: &str) -> Result<String, UsageError> {
    if text.is_empty() || parse_mac(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(UsageError::Range {
        option: "--mac-source, --mac-destination",
        text: format!("'{text}'"),
        problem: "write six bytes in hexadecimal, for instance 02:00:00:00:00:01",
    })
}
