//! `fluxctl audit`: proves from shared memory that nothing was lost unseen.
//!
//! ```text
//!             upstream                  = downstream           + named drops
//!  I1 kernel  frames that the kernel saw = received by rxd      + kernel drops
//!  I2 rxd     received                   = published by source  + drops by reason
//!  I3 ring    published by source        = sequence numbers
//!  I4 reader  frames passed              = delivered            + lapped + corrupt + skipped
//!  I5 output  delivered + copied         = sent or written      + drops by outcome
//! ```
//!
//! Two looks are taken, and what lies downstream comes from the first: frames that move on in between make a residual
//! positive, never negative. While traffic flows it has to be within what can be in flight; once the ring is still it has
//! to be zero. A negative one is a frame that was counted twice.

mod identity;

use crate::complete;
use crate::connect::Globals;
use crate::exit::{Code, Failure};
use crate::observe;
use crate::output::{Block, Report, count, print};
use clap::Args;
use clap_complete::ArgValueCandidates;
use fluxcap_ring::{RingDir, RingName, RingStats};
use fluxcap_service::parse_duration;
use identity::{Line, Moment, Verdict};
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Time between two looks.
const STEP: Duration = Duration::from_millis(100);
/// A ring without change for so long has nothing in flight.
const STILL: Duration = Duration::from_secs(1);

/// `fluxctl audit`
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Rings to audit [default: all]
    #[arg(value_name = "RING", add = ArgValueCandidates::new(complete::rings))]
    rings: Vec<RingName>,

    /// Longest time to wait for the traffic to pause, so that residuals have to be zero
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    wait: Duration,
}

/// Runs the command.
pub(crate) fn run(globals: &Globals, args: &Audit) -> Result<(), Failure> {
    let dir = globals.rings();
    let names = observe::names(&dir, &args.rings)?;
    let account = account(&dir, &names, args.wait)?;
    print(globals.output, &account)?;
    account.verdict()
}

/// Looks again and again until everything adds up or is still, or `wait` is over.
fn account(dir: &RingDir, names: &[RingName], wait: Duration) -> Result<Account, Failure> {
    let begun = Instant::now();
    let mut first = look(dir, names)?;
    let mut still_since = begun;
    loop {
        std::thread::sleep(STEP);
        let second = look(dir, names)?;
        if !same(&first, &second) {
            still_since = Instant::now();
        }
        let quiet = still_since.elapsed() >= STILL;
        let moment = if quiet { Moment::Still } else { Moment::Moving };
        let lines: Vec<Line> = first
            .iter()
            .zip(&second)
            .flat_map(|(a, b)| identity::lines(a, b, moment))
            .collect();
        // A pause in which all residuals are zero proves as much as a long one.
        let closed = still_since.elapsed() >= STEP && lines.iter().all(|line| line.residual == 0);
        if quiet || closed || begun.elapsed() >= wait {
            return Ok(Account {
                quiet: quiet || closed,
                waited_seconds: begun.elapsed().as_secs_f64(),
                stages: lines,
            });
        }
        first = second;
    }
}

fn look(dir: &RingDir, names: &[RingName]) -> Result<Vec<RingStats>, Failure> {
    names.iter().map(|name| observe::stats(dir, name)).collect()
}

/// Whether no counter moved between two looks.
fn same(first: &[RingStats], second: &[RingStats]) -> bool {
    first.iter().zip(second).all(|(a, b)| {
        (a.info.epoch, a.published_frames, &a.drops, &a.sources)
            == (b.info.epoch, b.published_frames, &b.drops, &b.sources)
            && a.readers == b.readers
    })
}

/// All stages of all rings.
#[derive(Debug, Serialize)]
struct Account {
    /// Whether everything was still, so that residuals have to be zero.
    quiet: bool,
    waited_seconds: f64,
    stages: Vec<Line>,
}

impl Account {
    /// A failure for the first stage that does not add up.
    fn verdict(&self) -> Result<(), Failure> {
        let Some(bad) = self
            .stages
            .iter()
            .find(|line| line.verdict == Verdict::Failed)
        else {
            return Ok(());
        };
        let what = match bad.residual {
            residual if residual < 0 => format!(
                "{} frames too many came out",
                count(residual.unsigned_abs())
            ),
            residual => format!("{} frames are missing", count(residual.unsigned_abs())),
        };
        let sum = format!(
            "{} in, {} out, {} dropped by name",
            count(bad.upstream),
            count(bad.downstream),
            count(bad.drops)
        );
        let message = format!(
            "{} of ring {} ({}): {what}: {sum}",
            bad.stage, bad.ring, bad.object
        );
        Err(Failure::new(Code::Failed, message).hint(format!(
            "this is a defect of fluxcap: please report it with the output of fluxctl ring show {} -o json",
            bad.ring
        )))
    }
}

impl Report for Account {
    fn json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        let failed = self
            .stages
            .iter()
            .any(|line| line.verdict == Verdict::Failed);
        value["verdict"] = Value::from(if failed { "failed" } else { "ok" });
        value
    }

    fn blocks(&self) -> Vec<Block> {
        let header = &[
            "STAGE",
            "RING",
            "OBJECT",
            ">UPSTREAM",
            ">DOWNSTREAM",
            ">DROPS",
            ">RESIDUAL",
            "VERDICT",
            "NOTE",
        ];
        let row = |line: &Line| {
            vec![
                line.stage.to_owned(),
                line.ring.clone(),
                line.object.clone(),
                count(line.upstream),
                count(line.downstream),
                count(line.drops),
                line.residual.to_string(),
                line.verdict.as_str().to_owned(),
                line.note.clone(),
            ]
        };
        let mut blocks = vec![Block::Rows(header, self.stages.iter().map(row).collect())];
        let failed = self
            .stages
            .iter()
            .any(|line| line.verdict == Verdict::Failed);
        blocks.push(Block::Line(match (failed, self.quiet) {
            (true, _) => "the account does not close".to_owned(),
            (false, true) => "the account closes: no frame was lost unseen".to_owned(),
            (false, false) => {
                "traffic did not pause: residuals are within what can be in flight".to_owned()
            }
        }));
        blocks
    }
}

#[cfg(test)]
mod tests;
