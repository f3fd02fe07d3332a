//! rxd, a ring and txd, told what to do by fluxctl.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::bench::bed::Bed;
use crate::ctl::{Fluxctl, Output, counts};
use crate::daemon::{Daemon, Dirs};

/// Size of the ring.
const RING: &str = "64m";
/// SCHED_FIFO of capture and transmit with CPUs of their own: above the sources, which here are on the same machine.
const PRIORITY: &str = "20";

/// How captures and transmits are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setup {
    /// `--io` of the transmit.
    pub io: &'static str,
    /// A transmit for each output, instead of one for all.
    pub one_each: bool,
    /// `--latency low` on both sides, and `--io af_xdp` of the capture.
    pub low: bool,
    /// `--io af_xdp` of the capture, without low latency.
    pub rx_xdp: bool,
    /// `--cpu` and `--priority` on both sides: the last CPUs are theirs.
    pub pinned: bool,
}

impl Setup {
    /// One transmit for all outputs, and defaults but for its `--io`.
    #[must_use]
    pub const fn of(io: &'static str) -> Setup {
        Setup {
            io,
            one_each: false,
            low: false,
            rx_xdp: false,
            pinned: false,
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup {
            io,
            one_each,
            low,
            rx_xdp,
            pinned,
        } = self;
        let each = if *one_each { " one-each" } else { "" };
        let low = if *low { " low" } else { "" };
        let rx = if *rx_xdp { " rx-af_xdp" } else { "" };
        let pinned = if *pinned { " pinned" } else { "" };
        write!(f, "{io}{each}{low}{rx}{pinned}")
    }
}

/// The daemons of this project at work.
#[derive(Debug)]
pub struct Fluxcap {
    /// The ring daemon.
    pub ringd: Daemon,
    /// The capture daemon.
    pub rxd: Daemon,
    /// The transmit daemon.
    pub txd: Daemon,
    fluxctl: Fluxctl,
    _dirs: Dirs,
}

impl Fluxcap {
    pub(super) fn start(bed: &Bed, setup: Setup) -> Result<Fluxcap> {
        let dirs = Dirs::new();
        let start = |name| Daemon::start(name, &bed.host, &dirs, &[]);
        let fluxcap = Fluxcap {
            ringd: start("ringd"),
            rxd: start("rxd"),
            txd: start("txd"),
            fluxctl: Fluxctl::new(&dirs),
            _dirs: dirs,
        };
        let latency: &[&str] = if setup.low {
            &["--latency", "low"]
        } else {
            &[]
        };
        let [rx_cpu, tx_cpu] = last_cpus();
        let place = |cpu| match setup.pinned {
            true => vec!["--cpu", cpu, "--priority", PRIORITY],
            false => Vec::new(),
        };
        let (inputs, outputs) = (bed.shape.input_names(), bed.shape.output_names());
        fluxcap.ctl(&["ring", "create", "tap", "--size", RING])?;
        let io: &[&str] = if setup.rx_xdp || setup.low {
            &["--io", "af_xdp"]
        } else {
            &[]
        };
        let rx = ["rx", "add", &inputs.join(","), "tap"];
        fluxcap.ctl(&[&rx, io, latency, &place(&rx_cpu)].concat())?;
        let groups = if setup.one_each {
            outputs
        } else {
            vec![outputs.join(",")]
        };
        for group in groups {
            let tx = ["tx", "add", "tap", &group, "--io", setup.io];
            fluxcap.ctl(&[&tx, latency, &place(&tx_cpu)].concat())?;
        }
        Ok(fluxcap)
    }

    fn ctl(&self, args: &[&str]) -> Result<Output> {
        let output = self.fluxctl.try_run(args);
        if output.code != 0 {
            bail!(
                "fluxctl {}: {}{}",
                args.join(" "),
                output.stdout,
                output.stderr
            );
        }
        Ok(output)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        [&self.ringd, &self.rxd, &self.txd]
            .map(Daemon::pid)
            .to_vec()
    }

    /// What captures and transmits say of why they do not run.
    pub(super) fn reasons(&self) -> String {
        let statuses = [self.statuses("rx"), self.statuses("tx")].concat();
        let reasons = statuses
            .iter()
            .filter_map(|status| status["reason"].as_str());
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// The ways of sending that the transmits have chosen.
    #[must_use]
    pub fn ways(&self) -> Vec<String> {
        let statuses = self.statuses("tx");
        let interfaces = statuses
            .iter()
            .filter_map(|status| status["interfaces"].as_array());
        let ways = interfaces
            .flatten()
            .filter_map(|interface| interface["io"].as_str());
        let ways: BTreeSet<String> = ways.map(str::to_owned).collect();
        ways.into_iter().collect()
    }

    /// What the daemons have counted until now. They show it several times a second.
    #[must_use]
    pub fn books(&self) -> Books {
        let (captures, transmits) = (self.statuses("rx"), self.statuses("tx"));
        let mut books = Books::default();
        for status in captures.iter().chain(&transmits) {
            let named = [
                ("kernel", &status["kernel_dropped_frames"]),
                ("lapped", &status["lapped_frames"]),
            ];
            let dropped = status["dropped_frames"].as_object().into_iter().flatten();
            let dropped = dropped.map(|(name, count)| (name.as_str(), count));
            for (name, count) in named.into_iter().chain(dropped) {
                *books.lost.entry(name.to_owned()).or_default() += count.as_u64().unwrap_or(0);
            }
            books.sent += status["sent_frames"].as_u64().unwrap_or(0);
        }
        let inputs = captures
            .iter()
            .filter_map(|status| status["interfaces"].as_array());
        let taken = inputs
            .flatten()
            .filter_map(|input| input["kernel_frames"].as_u64());
        books.taken = taken.sum();
        books
    }

    /// The status of each capture (`rx`) or transmit (`tx`).
    fn statuses(&self, kind: &str) -> Vec<Value> {
        let output = self.ctl(&[kind, "list", "-o", "json"]);
        let list = output
            .ok()
            .and_then(|output| serde_json::from_str(&output.stdout).ok());
        let mut list: Value = list.unwrap_or_default();
        counts(&mut list);
        let list = list.as_array_mut().map(std::mem::take);
        list.unwrap_or_default()
            .into_iter()
            .map(|mut item| item["status"].take())
            .collect()
    }

    /// Asks whether every frame is accounted for, until it is; what is wrong otherwise.
    ///
    /// # Errors
    /// What the audit says.
    pub fn audit(&self, patience: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.ctl(&["audit"]) {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > patience => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// A CPU for the capture and one for the transmit, with two CPUs the same one: the first is left to everything else.
fn last_cpus() -> [String; 2] {
    let last = thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
    [last, last.saturating_sub(1).max(last.min(1))].map(|cpu| cpu.to_string())
}

/// What the daemons say became of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Frames that the kernel took in at the inputs, with those that it dropped for want of room.
    pub taken: u64,
    /// Frames that went out, at all outputs.
    pub sent: u64,
    /// Frames that were lost, by the name of the reason.
    pub lost: BTreeMap<String, u64>,
}

impl Books {
    /// What has come to it since `before`.
    #[must_use]
    pub fn since(&self, before: &Books) -> Books {
        let lost = self.lost.iter().map(|(name, count)| {
            let earlier = before.lost.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(earlier))
        });
        Books {
            taken: self.taken.saturating_sub(before.taken),
            sent: self.sent.saturating_sub(before.sent),
            lost: lost.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// `kernel 12, lapped 3`.
    #[must_use]
    pub fn losses(&self) -> String {
        let lost = self
            .lost
            .iter()
            .map(|(name, count)| format!("{name} {count}"));
        lost.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_tell_what_is_new() {
        let books = |taken, kernel| Books {
            taken,
            sent: 2 * taken,
            lost: BTreeMap::from([("kernel".to_owned(), kernel), ("lapped".to_owned(), 4)]),
        };
        let new = books(30, 9).since(&books(10, 2));
        assert_eq!(
            (new.taken, new.sent, new.losses()),
            (20, 40, "kernel 7".to_owned())
        );
    }
}
