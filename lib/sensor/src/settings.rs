//! The settings of an interface that a sensor minds: read, compared, set.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use fluxcap_socket::{Features, Link, set_arp, set_features, set_multicast};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::report::Setting;

/// What joins received frames, or has them joined, before a packet socket sees them: the kernel's names, and what `ethtool -k` calls them.
const OFFLOADS: [(&str, &str); 5] = [
    ("rx-gro", "gro"),
    ("rx-lro", "lro"),
    ("rx-gro-hw", "rx-gro-hw"),
    ("rx-gro-list", "rx-gro-list"),
    ("rx-udp-gro-forwarding", "rx-udp-gro-forwarding"),
];

/// How they are, or were. An offload that is off for good, and IPv6 in a kernel without, are not in here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// By the kernel's names.
    offloads: BTreeMap<String, bool>,
    multicast: bool,
    arp: bool,
    ipv6: Option<bool>,
}

impl Settings {
    /// How they are.
    pub(crate) fn of(link: &Link) -> Result<Settings, Error> {
        let features = Features::of(link.index).map_err(Error::kernel(&link.name))?;
        let features = features.unwrap_or_default();
        let offloads = OFFLOADS.iter().map(|(name, _)| (name, features.get(name)));
        let present = offloads.filter(|(_, feature)| feature.active || feature.changeable);
        Ok(Settings {
            offloads: present
                .map(|(name, feature)| ((*name).to_owned(), feature.active))
                .collect(),
            multicast: link.multicast,
            arp: link.arp,
            ipv6: ipv6(&link.name)?,
        })
    }

    /// What a sensor wants of an interface that has these.
    pub(crate) fn quiet(&self) -> Settings {
        Settings {
            offloads: self
                .offloads
                .keys()
                .map(|name| (name.clone(), false))
                .collect(),
            multicast: false,
            arp: false,
            ipv6: self.ipv6.map(|_| false),
        }
    }

    /// Sets those that are otherwise now. Look again: drivers have minds of their own.
    pub(crate) fn apply(&self, link: &Link) -> Result<(), Error> {
        let now = Settings::of(link)?;
        let offloads = self.offloads.iter().filter(|(name, on)| {
            // Nothing but what is known here comes out of a file.
            now.offloads.get(*name).is_some_and(|is| is != *on)
        });
        let offloads: Vec<_> = offloads.map(|(name, on)| (name.as_str(), *on)).collect();
        if !offloads.is_empty() {
            set_features(link.index, offloads).map_err(Error::kernel(&link.name))?;
        }
        if self.arp != now.arp {
            set_arp(link.index, self.arp).map_err(Error::kernel(&link.name))?;
        }
        if self.multicast != now.multicast {
            set_multicast(link.index, self.multicast).map_err(Error::kernel(&link.name))?;
        }
        match self.ipv6 {
            Some(on) if now.ipv6.is_some_and(|is| is != on) => set_ipv6(&link.name, on),
            _ => Ok(()),
        }
    }

    /// Whether the host joins frames before a sensor sees them.
    pub(crate) fn glues(&self) -> bool {
        self.offloads.values().any(|on| *on)
    }

    /// Offloads that are on, as `ethtool` calls them.
    pub(crate) fn gluing(&self) -> Vec<&'static str> {
        let on = |name: &str| self.offloads.get(name).copied().unwrap_or(false);
        let names = OFFLOADS.iter().filter(|(name, _)| on(name));
        names.map(|(_, name)| *name).collect()
    }

    /// All of them for people, with what was before.
    pub(crate) fn lines(&self, before: Option<&Settings>) -> Vec<Setting> {
        let was = |pick: &dyn Fn(&Settings) -> Option<bool>| before.and_then(pick);
        let mut lines: Vec<Setting> = OFFLOADS
            .iter()
            .map(|(kernel, name)| {
                let of = |settings: &Settings| settings.offloads.get(*kernel).copied();
                Setting::switch(name, was(&of), of(self).unwrap_or(false))
            })
            .collect();
        lines.extend([
            Setting::switch("ipv6", was(&|s| s.ipv6), self.ipv6.unwrap_or(false)),
            Setting::switch("multicast", was(&|s| Some(s.multicast)), self.multicast),
            Setting::switch("arp", was(&|s| Some(s.arp)), self.arp),
        ]);
        lines
    }
}

fn ipv6_file(name: &str) -> PathBuf {
    // Of the namespace of the calling thread, whichever /proc/sys shows that.
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))
}

/// Whether IPv6 is on; `None` when the kernel has none.
fn ipv6(name: &str) -> Result<Option<bool>, Error> {
    let file = ipv6_file(name);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text.trim() == "0")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", file)(error)),
    }
}

fn set_ipv6(name: &str, on: bool) -> Result<(), Error> {
    let file = ipv6_file(name);
    fs::write(&file, if on { "0" } else { "1" }).map_err(Error::file("write", &file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(gro: bool) -> Settings {
        Settings {
            offloads: [("rx-gro".to_owned(), gro)].into(),
            multicast: true,
            arp: true,
            ipv6: Some(true),
        }
    }

    #[test]
    fn a_sensor_wants_all_of_it_off() {
        let quiet = settings(true).quiet();
        assert!(!quiet.glues() && !quiet.multicast && !quiet.arp);
        assert_eq!(quiet.ipv6, Some(false));
        assert_eq!(Settings::default().quiet().ipv6, None);
    }

    #[test]
    fn what_changed_is_told_with_what_was_before() {
        let lines = settings(true).quiet().lines(Some(&settings(true)));
        let gro = lines.iter().find(|line| line.name == "gro").unwrap();
        assert_eq!((gro.before.as_deref(), &*gro.now), (Some("on"), "off"));
        // This driver has none.
        let lro = lines.iter().find(|line| line.name == "lro").unwrap();
        assert_eq!((lro.before.as_deref(), &*lro.now), (None, "off"));
        assert_eq!(settings(true).gluing(), ["gro"]);
    }
}
