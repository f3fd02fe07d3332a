//! Mirrors: the options, rules and targets as text, and the checks of a spec.
//!
//! ```text
//!  fluxctl mirror add|set, mirrord   MirrorArgs   --\
//!  mirrord --mirror IFACE:TARGET     MirrorWork   ---> MirrorSpec -- validate_mirror
//!  names of the L3AF tool            ClassicArgs  --/
//! ```

mod apply;
mod args;
mod classic;
mod protocol;
mod rate;
mod rule;
mod target;
mod validate;

pub use apply::default_mirror_name;
pub use args::{
    AttachArg, BoundArgs, HookArg, MirrorArgs, MirrorTargetArgs, OverlayMtuArg, ProgramArgs,
    SelectionArgs,
};
pub use classic::ClassicArgs;
pub use rate::{RateArg, rate_text};
pub use rule::{RuleArg, RulesFileArg, parse_rule, parse_rules, rule_text};
pub use target::{MirrorWork, OverlayArg, TargetArg};
pub use validate::{MAX_DEVICES, MAX_RULES, mirror_filter, validate_mirror};
