//! `fluxctl io`: live rates, drops, lag and loss, straight from the rings' shared memory. No daemon is asked.
//!
//! ```text
//!   Observer --stats--> [before, after] --rates()--> RingRates --> one-shot table or JSON
//!                                                        '-------> screen (io/screen.rs), redrawn twice a second
//! ```

mod rates;
mod screen;

use crate::complete;
use crate::connect::Globals;
use crate::exit::Failure;
use crate::json;
use crate::observe;
use crate::output::{Block, Format, Report, Series, print};
use clap::Args;
use clap_complete::ArgValueCandidates;
use fluxcap_ring::{RingDir, RingName, RingStats};
use fluxcap_service::parse_duration;
use rates::RingRates;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// `fluxctl io`
#[derive(Debug, Args)]
pub(crate) struct Io {
    /// Rings to watch [default: all]
    #[arg(value_name = "RING", add = ArgValueCandidates::new(complete::rings))]
    rings: Vec<RingName>,

    /// Measure once and end, also on a terminal
    #[arg(long, short = '1', conflicts_with = "count")]
    once: bool,

    /// Measure this many times and end; as JSON an array with an element for each time
    #[arg(long, short = 'c', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Time over which rates are measured [default: 500ms on the screen, else 1s]
    #[arg(long, short, value_name = "TIME", value_parser = parse_interval)]
    interval: Option<Duration>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).map_err(|error| error.to_string())?;
    match interval {
        _ if interval < Duration::from_millis(10) => {
            Err("the shortest interval is 10ms".to_owned())
        }
        _ if interval > Duration::from_secs(3600) => Err("the longest interval is 1h".to_owned()),
        _ => Ok(interval),
    }
}

/// Runs the command.
pub(crate) fn run(globals: &Globals, args: &Io) -> Result<(), Failure> {
    let mut watch = Watch::new(globals.rings(), args.rings.clone());
    watch.check()?;
    let on_screen = std::io::stdout().is_terminal() && globals.output == Format::Table;
    if on_screen && !args.once && args.count.is_none() {
        return screen::run(
            &mut watch,
            args.interval.unwrap_or(Duration::from_millis(500)),
        );
    }
    watch.tick()?;
    let interval = args.interval.unwrap_or(Duration::from_secs(1));
    let mut measure = || {
        std::thread::sleep(interval);
        watch.tick().map(Rates)
    };
    let Some(count) = args.count else {
        return print(globals.output, &measure()?);
    };
    let mut series = Series::new(globals.output);
    for _ in 0..count {
        series.print(&measure()?)?;
    }
    series.end()
}

/// Rings under observation.
#[derive(Debug)]
struct Watch {
    dir: RingDir,
    /// Empty for all rings that there are.
    wanted: Vec<RingName>,
    seen: BTreeMap<RingName, Seen>,
}

/// What is known of a ring.
#[derive(Debug)]
struct Seen {
    at: Instant,
    stats: RingStats,
}

impl Watch {
    fn new(dir: RingDir, wanted: Vec<RingName>) -> Watch {
        Watch {
            dir,
            wanted,
            seen: BTreeMap::new(),
        }
    }

    /// Whether there is anything to watch.
    fn check(&self) -> Result<(), Failure> {
        observe::names(&self.dir, &self.wanted).map(|_| ())
    }

    /// Measures all rings. One that is gone is left out; one that was replaced is followed.
    fn tick(&mut self) -> Result<Vec<RingRates>, Failure> {
        let names = match self.wanted.is_empty() {
            true => observe::list(&self.dir)?,
            false => self.wanted.clone(),
        };
        self.seen.retain(|name, _| names.contains(name));
        let mut rates = Vec::new();
        for name in names {
            // A ring that has just been deleted is no failure of the others.
            if let Ok(ring) = self.measure(&name) {
                rates.push(ring);
            }
        }
        Ok(rates)
    }

    fn measure(&mut self, name: &RingName) -> Result<RingRates, Failure> {
        let stats = observe::stats(&self.dir, name)?;
        let now = Instant::now();
        let rates = match self.seen.get(name) {
            Some(before) if before.stats.info.epoch == stats.info.epoch => {
                rates::rates(&before.stats, &stats, now.duration_since(before.at))
            }
            _ => rates::rates(&stats, &stats, Duration::ZERO),
        };
        self.seen.insert(name.clone(), Seen { at: now, stats });
        Ok(rates)
    }
}

/// One measurement of all rings.
struct Rates(Vec<RingRates>);

impl Report for Rates {
    fn json(&self) -> Value {
        json::value(&self.0)
    }

    fn blocks(&self) -> Vec<Block> {
        rates::blocks(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_bounds() {
        assert_eq!(parse_interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_interval("5"), Ok(Duration::from_secs(5)));
        for text in ["1ms", "2h", "0.001", ""] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
