//! The command line.

use clap::Parser;
use fluxcap_proto::v1::{RingMode, RingSpec};
use fluxcap_ring::RingName;
use fluxcap_service::{ServiceArgs, parse_size};
use std::str::FromStr;

const EXAMPLES: &str = "\
Examples:
  ringd                                       serve; rings come and go by `fluxctl ring`
  ringd --create cisco:100m --create dell:1g  make two rings, unless they exist, and serve
  ringd --create replay:64m:wait              a ring whose producer waits for its slowest consumer
  ringd --create shm:web:64m                  a ring in POSIX shared memory
  ringd --memory-budget 75%                   let rings take three quarters of the memory

Sizes: K, M, G and T are powers of 1024. Rings outlive ringd: stopping it takes no frame from anyone.
Exit status: 0 after SIGTERM or SIGINT, 1 when something failed, 2 for a wrong command line.";

/// Creates, resizes, watches and retires rings
#[derive(Debug, Parser)]
#[command(name = "ringd", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Make this ring unless it exists: NAME:SIZE, or NAME:SIZE:wait for one whose producer waits; may be repeated
    #[arg(long, value_name = "NAME:SIZE[:MODE]")]
    pub(crate) create: Vec<WantedRing>,
    /// Put the rings of --create in the place of different ones that have their names
    #[arg(long, requires = "create")]
    pub(crate) replace: bool,
    /// Memory that all rings together may take: a size, or a percentage of what the machine has
    #[arg(
        long,
        env = "FLUXCAP_MEMORY_BUDGET",
        value_name = "SIZE|PERCENT",
        default_value = "50%"
    )]
    pub(crate) memory_budget: MemoryBudget,
    /// Take the ring directory as it is, mount nothing there
    #[arg(long)]
    pub(crate) no_mount: bool,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

/// A ring asked for on the command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WantedRing {
    pub(crate) name: RingName,
    pub(crate) spec: RingSpec,
}

impl FromStr for WantedRing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, mode) = match text.rsplit_once(':') {
            Some((rest, "wait")) => (rest, RingMode::Wait),
            Some((rest, "overwrite")) => (rest, RingMode::Overwrite),
            _ => (text, RingMode::Overwrite),
        };
        // The size is last, because a name may begin with `shm:`.
        let (name, size) = rest
            .rsplit_once(':')
            .ok_or("write NAME:SIZE, for instance cisco:100m")?;
        Ok(WantedRing {
            name: RingName::parse(name).map_err(|error| error.to_string())?,
            spec: RingSpec {
                size_bytes: parse_size(size).map_err(|error| error.to_string())?,
                mode: mode.into(),
            },
        })
    }
}

/// How much memory rings may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryBudget {
    /// Of all memory of the machine, 1 to 100.
    Percent(u64),
    Bytes(u64),
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else {
            return parse_size(text)
                .map(MemoryBudget::Bytes)
                .map_err(|error| error.to_string());
        };
        match number.trim().parse() {
            Ok(percent @ 1..=100) => Ok(MemoryBudget::Percent(percent)),
            _ => Err("a percentage goes from 1% to 100%".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn rings_are_written_as_name_size_and_mode() {
        for (text, name, size_bytes, mode) in [
            ("cisco:100m", "cisco", 100 << 20, RingMode::Overwrite),
            ("a:1g:wait", "a", 1 << 30, RingMode::Wait),
            ("a:4096:overwrite", "a", 4096, RingMode::Overwrite),
            ("shm:web:64m", "shm:web", 64 << 20, RingMode::Overwrite),
            ("shm:web:64m:wait", "shm:web", 64 << 20, RingMode::Wait),
        ] {
            let wanted: WantedRing = text.parse().expect(text);
            assert_eq!(wanted.name.as_str(), name);
            assert_eq!(
                wanted.spec,
                RingSpec {
                    size_bytes,
                    mode: mode.into()
                }
            );
        }
        for text in [
            "",
            "cisco",
            "cisco:",
            ":1m",
            "cisco:1m:block",
            ".cisco:1m",
            "a:64KB",
            "a/b:1m",
        ] {
            assert!(text.parse::<WantedRing>().is_err(), "{text}");
        }
    }

    #[test]
    fn budgets_are_sizes_or_percentages() {
        assert_eq!("50%".parse(), Ok(MemoryBudget::Percent(50)));
        assert_eq!("2g".parse(), Ok(MemoryBudget::Bytes(2 << 30)));
        for text in ["0%", "101%", "%", "-5%", "half", ""] {
            assert!(text.parse::<MemoryBudget>().is_err(), "{text}");
        }
    }
}
