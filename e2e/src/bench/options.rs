//! The command line of the bench.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::bench::plan::{Cell, Effort, FULL, PRODUCTION_ROUNDS, Part, QUICK, plan, soak, tunnels};
use crate::bench::{production, tunnel};

/// Measures fluxcap and others side by side, in network namespaces of its own. Writes bench.json, bench.md, cpu.svg and rate.svg.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Examples:\n  deploy/bench                       everything, 10 minutes\n  deploy/bench --quick               the same in less than 2 minutes, roughly\n  \
    FLUXCAP_C=./fluxcap deploy/bench   with fluxcap 3.2 beside it\n  deploy/bench --only overload\n  \
    deploy/bench --only rate --sizes 64 --systems 'fluxcap auto,tc mirred'\n  deploy/bench --soak 10m            10 minutes at 80 % of the highest rate without loss"
)]
pub struct Options {
    /// Fewer sizes, systems and rounds, shorter trials.
    #[arg(long)]
    pub quick: bool,
    /// Folder for the results.
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    pub out: PathBuf,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub only: Vec<Part>,
    /// Only these shapes, such as 1->2, and kinds of tunnels, such as gretap.
    #[arg(long, value_delimiter = ',', value_name = "SHAPE")]
    pub shapes: Vec<String>,
    /// Only these sizes: 64, 512, 1400 (tunnels), 1514, IMIX.
    #[arg(long, value_delimiter = ',', value_name = "SIZE")]
    pub sizes: Vec<String>,
    /// Only these kinds of far ends: xdp, prepared, gro, plain.
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    pub peers: Vec<String>,
    /// Only these systems, such as 'fluxcap auto'.
    #[arg(long, value_delimiter = ',', value_name = "SYSTEM")]
    pub systems: Vec<String>,
    /// So many rounds.
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// Nothing but a soak of so long: with a CPU and priority for capture and transmit, unless --systems has 'fluxcap auto'.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub soak: Option<Duration>,
    /// Program of the ring's own benchmark, which deploy/bench builds.
    #[arg(long, value_name = "FILE", hide = true)]
    pub ring_bench: Option<PathBuf>,
    /// Exit with 1 when a target was measured and missed.
    #[arg(long)]
    pub strict: bool,
}

impl Options {
    /// How long things take.
    #[must_use]
    pub fn effort(&self) -> Effort {
        if self.quick { QUICK } else { FULL }
    }

    /// Whether a part is wanted.
    #[must_use]
    pub fn wants(&self, part: Part) -> bool {
        self.soak.is_none() && (self.only.is_empty() || self.only.contains(&part))
    }

    /// The cells that are wanted.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        if let Some(duration) = self.soak {
            let mut cell = soak(duration, |system| is_in(&self.systems, system));
            if self.systems.is_empty() {
                cell.systems.truncate(1);
            }
            return vec![cell];
        }
        let mut cells = plan(self.quick, self.only.contains(&Part::Mirror));
        for cell in &mut cells {
            cell.systems
                .retain(|system| is_in(&self.systems, &system.to_string()));
            cell.mixes.retain(|mix| is_in(&self.sizes, mix.name));
            cell.rounds = self.rounds.unwrap_or(cell.rounds);
        }
        cells.retain(|cell| {
            self.wants(cell.part)
                && is_in(&self.shapes, &cell.shape.to_string())
                && is_in(&self.peers, cell.peer.name())
                && !cell.systems.is_empty()
                && !cell.mixes.is_empty()
        });
        cells
    }

    /// How often is measured what mirrors cost those whose traffic they copy: only when mirrors are asked for.
    #[must_use]
    pub fn production_rounds(&self) -> usize {
        let wanted = self.only.contains(&Part::Mirror)
            && is_in(&self.shapes, production::SHAPE)
            && [&self.sizes, &self.peers, &self.systems]
                .iter()
                .all(|list| list.is_empty());
        if wanted {
            self.rounds.unwrap_or(PRODUCTION_ROUNDS)
        } else {
            0
        }
    }

    /// The cells of tunnels that are wanted. Their shape is the kind of tunnel.
    #[must_use]
    pub fn tunnels(&self) -> Vec<tunnel::Cell> {
        if !self.wants(Part::Tunnel) {
            return Vec::new();
        }
        let mut cells = tunnels(self.quick, self.only.contains(&Part::Tunnel));
        for cell in &mut cells {
            cell.kinds.retain(|kind| is_in(&self.shapes, kind.name()));
            cell.sizes.retain(|(size, _)| is_in(&self.sizes, size));
            cell.ways.retain(|way| is_in(&self.systems, &way.name()));
            cell.rounds = self.rounds.unwrap_or(cell.rounds);
        }
        cells.retain(|cell| {
            let empty = cell.kinds.is_empty() || cell.sizes.is_empty() || cell.ways.is_empty();
            is_in(&self.peers, cell.peer.name()) && !empty
        });
        cells
    }
}

/// Whether a name is in a list; an empty one has all.
fn is_in(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
}

/// `90s`, `10m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("say it like 90s, 10m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "say it like 90s, 10m or 1h")?;
    Ok(Duration::from_secs(number * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(args: &[&str]) -> Vec<Cell> {
        Options::parse_from([&["bench"], args].concat()).cells()
    }

    #[test]
    fn what_is_asked_for_is_what_is_planned() {
        assert!(cells(&[]).len() > cells(&["--only", "rate"]).len());
        let one = cells(&[
            "--only",
            "rate",
            "--sizes",
            "64",
            "--systems",
            "fluxcap auto",
            "--peers",
            "gro",
            "--rounds",
            "5",
        ]);
        assert_eq!(one.len(), 1);
        assert_eq!(
            (one[0].systems.len(), one[0].mixes.len(), one[0].rounds),
            (1, 1, 5)
        );
        assert_eq!(cells(&["--soak", "10m"]).len(), 1);
        assert!(cells(&["--shapes", "3->3"]).is_empty());
    }

    #[test]
    fn tunnels_are_chosen_in_the_same_way() {
        let tunnels = |args: &[&str]| Options::parse_from([&["bench"], args].concat()).tunnels();
        assert!(!tunnels(&[]).is_empty());
        assert!(tunnels(&["--only", "rate"]).is_empty());
        let one = tunnels(&[
            "--shapes",
            "gue",
            "--sizes",
            "64",
            "--peers",
            "xdp",
            "--systems",
            "sendto",
        ]);
        assert_eq!(
            (
                one.len(),
                one[0].kinds.len(),
                one[0].sizes.len(),
                one[0].ways.len()
            ),
            (1, 1, 1, 1)
        );
    }

    #[test]
    fn mirrors_are_measured_in_full_only_when_they_are_asked_for() {
        let parse = |args: &[&str]| Options::parse_from([&["bench"], args].concat());
        let rounds = |args: &[&str]| parse(args).production_rounds();
        assert_eq!(rounds(&[]), 0);
        assert_eq!(rounds(&["--only", "mirror"]), PRODUCTION_ROUNDS);
        assert_eq!(rounds(&["--only", "mirror", "--sizes", "64"]), 0);
        let sizes = |args: &[&str]| {
            let cells = cells(args).into_iter();
            let mut mirrors = cells.filter(|cell| cell.part == Part::Mirror);
            mirrors.next().map_or(0, |cell| cell.mixes.len())
        };
        assert_eq!([sizes(&[]), sizes(&["--only", "mirror"])], [2, 3]);
        let only = [
            "--only",
            "mirror",
            "--shapes",
            "production",
            "--rounds",
            "2",
        ];
        assert_eq!((rounds(&only), cells(&only).len()), (2, 0));
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert!(time("10").is_err() && time("m").is_err());
    }
}
