//! The benchmark: what the machine can do with taps, through fluxcap and through others, side by side.
//!
//! ```text
//!   namespace "near"              namespace "host"                            namespace "far"
//!   +---------------+      +---------------------------------+      +--------------------------+
//!   | Source  wire0-|------|-in0 --> system under test -> out0|-----|-wire0  Sink (XDP or tc)  |
//!   | live frames   |      |                          -> out1|-----|-wire1  Sink              |
//!   +---------------+      +---------------------------------+      +--------------------------+
//! ```
//!
//! What is measured is data ([`plan`]): cells of a shape, a peer and frame sizes, with the systems that take turns there. One function makes
//! one trial ([`trial`]), a search finds the highest rate without loss ([`search`]), and a report is made of all figures ([`report`]).

pub mod bed;
pub mod checker;
pub mod frame;
pub mod histogram;
pub mod machine;
pub mod options;
pub mod plan;
pub mod plot;
pub mod production;
pub mod report;
pub mod results;
pub mod run;
pub mod search;
pub mod sink;
pub mod source;
pub mod stress;
pub mod system;
pub mod targets;
pub mod trial;
pub mod tunnel;
