//! rxd, a ring and txd, told what to do by fluxctl.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::bench::bed::Bed;
use crate::ctl::{Fluxctl, Output};
use crate::daemon::{Daemon, Dirs};

/// Size of the ring.
const RING: &str = "64m";

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
    pub(super) fn start(bed: &Bed, io: &str, one_each: bool, low: bool) -> Result<Fluxcap> {
        let dirs = Dirs::new();
        let start = |name| Daemon::start(name, &bed.host, &dirs, &[]);
        let fluxcap = Fluxcap {
            ringd: start("ringd"),
            rxd: start("rxd"),
            txd: start("txd"),
            fluxctl: Fluxctl::new(&dirs),
            _dirs: dirs,
        };
        let latency: &[&str] = if low { &["--latency", "low"] } else { &[] };
        let (inputs, outputs) = (bed.shape.input_names(), bed.shape.output_names());
        fluxcap.ctl(&["ring", "create", "tap", "--size", RING])?;
        fluxcap.ctl(&[&["rx", "add", &inputs.join(","), "tap"], latency].concat())?;
        let groups = if one_each {
            outputs
        } else {
            vec![outputs.join(",")]
        };
        for group in groups {
            fluxcap.ctl(&[&["tx", "add", "tap", &group, "--io", io], latency].concat())?;
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
        let mut reasons = self.strings("rx", "reason");
        reasons.extend(self.strings("tx", "reason"));
        reasons.join("; ")
    }

    /// The ways of sending that the transmits have chosen.
    #[must_use]
    pub fn ways(&self) -> Vec<String> {
        let mut ways = self.strings("tx", "io");
        // What was asked for is among what is.
        if ways.len() > 1 {
            ways.retain(|way| way != "auto");
        }
        ways
    }

    /// All different strings under a key in a list of captures or transmits.
    fn strings(&self, kind: &str, key: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Ok(output) = self.ctl(&[kind, "list", "-o", "json"])
            && let Ok(value) = serde_json::from_str(&output.stdout)
        {
            collect(key, &value, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|text| !text.is_empty());
        found
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

/// All strings under a key, wherever it is.
fn collect(key: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    _ => collect(key, value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(key, value, found)),
        _ => {}
    }
}
