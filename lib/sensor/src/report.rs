//! What is told of an interface.

use serde::Serialize;

/// How an interface is for a sensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Its index in this network namespace.
    pub ifindex: u32,
    /// What kind of virtual interface it is; empty for hardware.
    pub kind: String,
    /// It was prepared, and not undone.
    pub prepared: bool,
    /// The XDP program and the settings, each with what was before it was prepared.
    pub settings: Vec<Setting>,
    /// What somebody should know.
    pub remarks: Vec<String>,
}

/// One of the things that are minded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// What `ethtool` or `ip link` call it.
    pub name: String,
    /// As it was before it was prepared; none when it is not, or nothing is known.
    pub before: Option<String>,
    /// As it is.
    pub now: String,
}

impl Setting {
    pub(crate) fn switch(name: &str, before: Option<bool>, now: bool) -> Setting {
        let word = |on| if on { "on" } else { "off" }.to_owned();
        Setting {
            name: name.to_owned(),
            before: before.map(word),
            now: word(now),
        }
    }
}
