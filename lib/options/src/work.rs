//! A capture or a transmit on a daemon's command line, and the names of those that were not given one.

use crate::UsageError;
use fluxcap_service::MAX_NAME;
use std::str::FromStr;

/// What `rxd --capture IFACE[,IFACE...]:RING` says.
///
/// The first colon parts interfaces from ring: an interface's name has none, a ring's may (`eth1:shm:cisco`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureWork {
    /// At least one interface, none empty.
    pub interfaces: Vec<String>,
    /// The ring, not yet checked.
    pub ring: String,
}

impl CaptureWork {
    /// The name that the capture gets when none is given: `cisco-eth1`.
    #[must_use]
    pub fn default_name(&self) -> String {
        default_name(
            [self.ring.as_str()]
                .into_iter()
                .chain(self.interfaces.iter().map(String::as_str)),
        )
    }
}

impl FromStr for CaptureWork {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = || UsageError::Work {
            text: text.to_owned(),
            problem: "write IFACE[,IFACE...]:RING, for instance eth1:cisco",
        };
        let (interfaces, ring) = text.split_once(':').ok_or_else(bad)?;
        let interfaces = split_list(interfaces)
            .filter(|_| !ring.is_empty())
            .ok_or_else(bad)?;
        Ok(CaptureWork {
            interfaces,
            ring: ring.to_owned(),
        })
    }
}

/// What `txd --transmit RING[,RING...]:IFACE[,IFACE...]` says.
///
/// The last colon parts rings from interfaces (`shm:cisco,dell:eth3,eth4`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransmitWork {
    /// At least one ring, not yet checked.
    pub rings: Vec<String>,
    /// At least one interface, none empty.
    pub interfaces: Vec<String>,
}

impl TransmitWork {
    /// The name that the transmit gets when none is given: `cisco-eth2`.
    #[must_use]
    pub fn default_name(&self) -> String {
        default_name(
            self.rings
                .iter()
                .map(String::as_str)
                .chain(self.interfaces.iter().map(String::as_str)),
        )
    }
}

impl FromStr for TransmitWork {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = || UsageError::Work {
            text: text.to_owned(),
            problem: "write RING[,RING...]:IFACE[,IFACE...], for instance cisco:eth2",
        };
        let (rings, interfaces) = text.rsplit_once(':').ok_or_else(bad)?;
        Ok(TransmitWork {
            rings: split_list(rings).ok_or_else(bad)?,
            interfaces: split_list(interfaces).ok_or_else(bad)?,
        })
    }
}

/// What a daemon's command line asks for, by name: of several with one name that differ, all but the first get a number. What is
/// there twice is once in the result.
pub fn each_with_its_name<S: PartialEq>(works: Vec<(String, S)>) -> Vec<(String, S)> {
    let mut named: Vec<(String, S)> = Vec::new();
    for (base, spec) in works {
        let mut names = (1..).map(|number| numbered(&base, number));
        let free = names.find(|name| named.iter().all(|it| it.0 != *name || it.1 == spec));
        let name = free.unwrap_or(base);
        if named.iter().all(|it| it.0 != name) {
            named.push((name, spec));
        }
    }
    named
}

/// The first, second, third... of the names NAME, NAME-2, NAME-3, none longer than a name may be.
#[must_use]
pub fn numbered(name: &str, number: u32) -> String {
    if number < 2 {
        return name.to_owned();
    }
    let suffix = format!("-{number}");
    let room = MAX_NAME.saturating_sub(suffix.len());
    let kept: String = name.chars().take(room).collect();
    kept + &suffix
}

/// The parts of a comma separated list; `None` when one is empty.
pub(crate) fn split_list(text: &str) -> Option<Vec<String>> {
    let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
    parts.iter().all(|part| !part.is_empty()).then_some(parts)
}

/// A resource name made of others, joined by dashes: lower case, what a name may not hold becomes a dash, at most 56
/// characters, as many as a name may have.
pub fn default_name<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let joined = parts
        .into_iter()
        .collect::<Vec<_>>()
        .join("-")
        .to_lowercase();
    let clean = joined.chars().map(|c| match c {
        'a'..='z' | '0'..='9' | '_' | '-' => c,
        _ => '-',
    });
    clean
        .skip_while(|c| matches!(c, '-' | '_'))
        .take(MAX_NAME)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_is_split_at_the_first_colon() {
        let work: CaptureWork = "eth1,eth2:shm:cisco".parse().unwrap();
        assert_eq!(work.interfaces, ["eth1", "eth2"]);
        assert_eq!(work.ring, "shm:cisco");
        assert_eq!(work.default_name(), "shm-cisco-eth1-eth2");
    }

    #[test]
    fn a_transmit_is_split_at_the_last_colon() {
        let work: TransmitWork = "shm:a,b:eth3".parse().unwrap();
        assert_eq!(work.rings, ["shm:a", "b"]);
        assert_eq!(work.interfaces, ["eth3"]);
        assert_eq!(work.default_name(), "shm-a-b-eth3");
        let work: TransmitWork = "shm:a:eth3,eth4".parse().unwrap();
        assert_eq!(work.rings, ["shm:a"]);
        assert_eq!(work.interfaces, ["eth3", "eth4"]);
        assert_eq!(work.default_name(), "shm-a-eth3-eth4");
    }

    #[test]
    fn incomplete_work_is_refused_with_the_form() {
        for text in ["", "eth1", ":cisco", "eth1:", "eth1,:cisco", ",eth1:cisco"] {
            assert!(
                text.parse::<CaptureWork>()
                    .is_err_and(|error| error.to_string().contains("eth1:cisco")),
                "{text}"
            );
        }
        for text in ["", "cisco", ":eth1", "cisco:", "a,,b:eth1", "cisco:eth1,"] {
            assert!(
                text.parse::<TransmitWork>()
                    .is_err_and(|error| error.to_string().contains("cisco:eth2")),
                "{text}"
            );
        }
    }

    #[test]
    fn names_that_clash_get_a_number() {
        let works =
            |specs: &[(&str, u32)]| specs.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect();
        let named = |specs: &[(&str, u32)]| -> Vec<String> {
            each_with_its_name(works(specs))
                .into_iter()
                .map(|it| it.0)
                .collect()
        };
        assert_eq!(
            named(&[("r-eth1-5", 1), ("r-eth1-5", 2), ("a", 3)]),
            ["r-eth1-5", "r-eth1-5-2", "a"]
        );
        assert_eq!(
            named(&[("a", 1), ("a", 1), ("a", 2), ("a", 2)]),
            ["a", "a-2"]
        );
        assert_eq!(
            named(&[("a-2", 1), ("a", 2), ("a", 3)]),
            ["a-2", "a", "a-3"]
        );
        let long = "x".repeat(MAX_NAME);
        assert_eq!(numbered(&long, 12).len(), MAX_NAME);
        assert!(numbered(&long, 12).ends_with("x-12"));
    }

    #[test]
    fn default_names_are_legal_names() {
        assert_eq!(default_name(["cisco", "Eth0.100"]), "cisco-eth0-100");
        assert_eq!(default_name(["_x", "é"]), "x--");
        assert_eq!(default_name(["a".repeat(70).as_str(), "b"]).len(), 56);
    }
}
