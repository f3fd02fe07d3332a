//! The options that say what a capture, a transmit, a tunnel or a mirror does, as `fluxctl rx|tx|mirror add|set`, `fluxctl tunnel send|recv|set`
//! and the daemons' own command lines (`rxd --capture eth1:cisco --vlan-push 100`) take them. One definition, so that both spell and mean the same.
//!
//! ```text
//! text on the command line -- clap --> EditArgs, SchedulingArgs, CaptureArgs, TransmitArgs, TunnelSetArgs, MirrorArgs
//!                                      |  to_edits(), to_specs(): messages of fluxcap.v1 for Create, or to run at once
//!                                      '- changed_fields(), changes(): the update mask for Update; only options that were given
//! ```
//!
//! An option that is not given is `None` or empty, never a default: defaults belong to the daemons, and `set` must be
//! able to tell "not given" from "given". A value that is empty (`--filter ''`) or zero clears what was set.
//!
//! The daemons take the same way on from there: [`compile_edits`] checks a message's edits and makes them ready to run;
//! [`validate_interfaces`], [`validate_scheduling`], [`validate_threads`], [`validate_tunnel`], [`validate_mirror`], [`CaptureIo::from_spec`] and
//! [`TransmitIo::from_spec`] check the rest; [`encap_spec`] and [`decap_spec`] make a tunnel's spec ready to run.
//!
//! This crate knows clap, the protocol, and the edits and tunnels of `fluxcap-headers`; no rings or sockets.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        reason = "a test that panics has failed, as it should"
    )
)]

mod capture;
mod compile;
mod edits;
mod filter;
mod given;
mod io;
mod mirror;
mod scheduling;
mod spec;
mod start;
mod tag;
mod transmit;
mod tunnel;
mod work;

pub use capture::{
    CaptureArgs, DirectionArg, MERGE_WINDOW_LOW_US, MERGE_WINDOW_US, validate_merge_window,
    validate_threads,
};
pub use compile::{compile_edits, compile_filter, vlan_tag};
pub use edits::EditArgs;
pub use filter::{FilterArgs, FilterVlanArg, SampleArg, SampleArgs, SampleByArg};
pub use io::{CaptureIo, TransmitIo, TunnelIo};
pub use mirror::{
    AttachArg, BoundArgs, ClassicArgs, HookArg, MAX_DEVICES, MAX_RULES, MirrorArgs,
    MirrorTargetArgs, MirrorWork, OverlayArg, OverlayMtuArg, ProgramArgs, RateArg, RuleArg,
    RulesFileArg, SelectionArgs, TargetArg, default_mirror_name, mirror_filter, parse_rule,
    parse_rules, rate_text, rule_text, validate_mirror,
};
pub use scheduling::{CpuList, LatencyArg, SchedulingArgs, ThreadArgs, validate_scheduling};
pub use spec::{SpecError, validate_interfaces};
pub use start::parse_start;
pub use tag::{TagArg, VlanPushArg};
pub use transmit::{MAX_MERGE_WINDOW_US, OversizeArg, TransmitArgs};
pub use tunnel::{
    DecapArgs, EncapArgs, IdArg, IdArgs, MapArg, MapIdArg, Network, ReceiveWork, SendWork,
    TunnelArgs, TunnelKindArg, TunnelReceiveArgs, TunnelSendArgs, TunnelSetArgs, bare_address,
    decap_spec, encap_spec, parse_mac, remote_address, tunnel_kind_word, validate_tunnel,
};
pub use work::{CaptureWork, TransmitWork, default_name, each_with_its_name, numbered};

/// Why options or their values cannot be used. The text is for the person who typed them and says what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// The VLAN tag cannot be read.
    #[error(
        "VLAN tag '{text}': {problem}; write VID or TPID:VID[:PCP[:DEI]], for instance 100 or 88a8:100:5:1"
    )]
    Tag {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two tags for the same frames.
    #[error("--vlan-push is given twice for {target}; give each interface one tag")]
    DuplicatePush {
        /// The interface, or "every interface".
        target: String,
    },
    /// `--vlan-push IFACE=TAG` names an interface that is not captured.
    #[error("--vlan-push {interface}=...: {interface} is not among the interfaces ({known})")]
    UnknownInterface {
        /// The interface named in the option.
        interface: String,
        /// The interfaces that are captured.
        known: String,
    },
    /// `--vlan-push IFACE=TAG` on a transmit or a tunnel, where all frames go the same way.
    #[error("--vlan-push {interface}=... is for captures; here it is --vlan-push TAG")]
    PushPerInterface {
        /// The interface named in the option.
        interface: String,
    },
    /// The sampling ratio cannot be read.
    #[error(
        "sample '{text}': write 1/N with N from 1 to 4294967295, for instance 1/10, K/N with K up to N, or 75%"
    )]
    Sample {
        /// What was given.
        text: String,
    },
    /// A mirror that copies to nowhere.
    #[error("say where the copies go: --to ring:NAME, --to dev:IFACE, --to gue:ADDRESS")]
    NoTarget,
    /// The start position cannot be read.
    #[error(
        "start '{text}': write newest, oldest, seq:N or time:RFC3339, for instance seq:1000 or time:2026-01-31T12:00:00Z"
    )]
    Start {
        /// What was given.
        text: String,
    },
    /// The value is outside of what the option can take.
    #[error("{option} {text}: {problem}")]
    Range {
        /// The option's name, with dashes.
        option: &'static str,
        /// What was given.
        text: String,
        /// What would do.
        problem: &'static str,
    },
    /// The rate cannot be read.
    #[error(
        "rate '{text}': {problem}; write for instance 10kpps, 100Mbit, or both with a comma between"
    )]
    Rate {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The rule of a mirror cannot be read.
    #[error("rule '{text}': {problem}")]
    Rule {
        /// What was given.
        text: String,
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// The target of a mirror cannot be read.
    #[error("target '{text}': {problem}")]
    Target {
        /// What was given.
        text: String,
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// The value of an option cannot be used.
    #[error("{option} '{text}': {problem}")]
    Value {
        /// The option's name, with dashes.
        option: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The option is for something else.
    #[error("{option} is not for {what}: {problem}")]
    Unsuited {
        /// The option's name, or the field that it sets.
        option: String,
        /// What it was given for.
        what: String,
        /// What would do.
        problem: String,
    },
    /// `--capture`, `--transmit`, `--send` or `--recv` on a daemon's command line cannot be read.
    #[error("'{text}': {problem}")]
    Work {
        /// What was given.
        text: String,
        /// What would do.
        problem: &'static str,
    },
}
