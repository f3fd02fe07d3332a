//! `fluxctl audit`: proves that nothing was lost unseen: from shared memory, and for what tunnels receive and mirrors copy by what
//! their daemons tell.
//!
//! ```text
//!             upstream                  = downstream           + named drops
//!  I1 kernel  frames that the kernel saw = received by rxd      + kernel drops
//!  I2 rxd     received by a producer     = published by source  + drops by reason
//!  I3 ring    published by source        = sequence numbers
//!  I4 reader  frames passed              = delivered            + lapped + corrupt + skipped
//!  I5 output  delivered + copied         = sent or written      + drops by outcome
//!  I6 decap   packets that a tunnel got  = published in rings   + drops by reason
//!  I7 encap   delivered to a tunnel      = sent                 + drops by outcome
//!  I8 mirror  seen + further copies      = mirrored             + not wanted + drops by reason
//!  order      frames that stand in a ring behind later ones: for information, nothing is lost by it
//! ```
//!
//! Two looks are taken, and what lies downstream comes from the first: frames that move on in between make a residual
//! positive, never negative. While traffic flows it has to be within what can be in flight; once the ring is still it has
//! to be zero. A negative one is a frame that was counted twice.

mod identity;

use crate::complete;
use crate::connect::{Globals, block_on, is_there};
use crate::exit::{Code, Failure};
use crate::json;
use crate::observe;
use crate::output::{Block, Report, count, print};
use crate::resource::{self, Kind};
use clap::Args;
use clap_complete::ArgValueCandidates;
use fluxcap_proto::v1::{Mirror, Tunnel};
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
    let books = Books {
        globals,
        dir,
        names,
        all: args.rings.is_empty(),
    };
    let account = account(&books, args.wait)?;
    print(globals.output, &account)?;
    account.verdict()
}

/// Looks again and again until everything adds up or is still, or `wait` is over.
fn account(books: &Books, wait: Duration) -> Result<Account, Failure> {
    let begun = Instant::now();
    let mut first = books.look()?;
    let mut still_since = begun;
    loop {
        std::thread::sleep(STEP);
        let second = books.look()?;
        if !same(&first, &second) {
            still_since = Instant::now();
        }
        let quiet = still_since.elapsed() >= STILL;
        let moment = if quiet { Moment::Still } else { Moment::Moving };
        let lines = lines(&first, &second, moment);
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

/// Where to look.
struct Books<'a> {
    globals: &'a Globals,
    dir: RingDir,
    names: Vec<RingName>,
    /// Whether all rings are looked at, and with them all tunnels and mirrors.
    all: bool,
}

/// One look.
struct Look {
    rings: Vec<RingStats>,
    /// Of each ring the epochs that readers have not passed yet, oldest first.
    past: Vec<Vec<RingStats>>,
    /// Those that receive into one of the rings.
    tunnels: Vec<Tunnel>,
    /// Those that copy into one of the rings; all when all rings are looked at.
    mirrors: Vec<Mirror>,
}

impl Books<'_> {
    fn look(&self) -> Result<Look, Failure> {
        // Before the rings of today: a reader that moves on meanwhile takes its books along, and is in both rather than in none.
        let past = self.names.iter();
        let past = past.map(|name| observe::past(&self.dir, name)).collect();
        let rings: Result<_, Failure> = self
            .names
            .iter()
            .map(|name| observe::stats(&self.dir, name))
            .collect();
        let mut tunnels = self.ask::<Tunnel>()?;
        tunnels.retain(|tunnel| self.all || self.feeds(tunnel));
        let mut mirrors = self.ask::<Mirror>()?;
        mirrors.retain(|mirror| {
            let ring = mirror.spec.as_ref().map_or("", |spec| &spec.ring);
            self.all || self.wants(ring)
        });
        Ok(Look {
            rings: rings?,
            past,
            tunnels,
            mirrors,
        })
    }

    /// All that a daemon has. Without the daemon there is nothing to ask, and nothing that it did.
    fn ask<K: Kind>(&self) -> Result<Vec<K>, Failure> {
        if !is_there(&self.globals.socket(K::DAEMON)) {
            return Ok(Vec::new());
        }
        let all = block_on(async {
            let mut client = resource::connect::<K>(self.globals).await?;
            resource::all::<K>(&mut client).await
        });
        match all {
            // A socket that a killed daemon has left behind.
            Err(failure) if failure.code == Code::Unreachable => Ok(Vec::new()),
            all => all,
        }
    }

    fn feeds(&self, tunnel: &Tunnel) -> bool {
        let spec = tunnel.spec.as_ref();
        let Some(receive) = spec.and_then(|spec| spec.receive.as_ref()) else {
            return false;
        };
        self.wants(&receive.default_ring) || receive.map.iter().any(|it| self.wants(&it.ring))
    }

    fn wants(&self, ring: &str) -> bool {
        self.names.iter().any(|name| name.as_str() == ring)
    }
}

/// All stages of all rings, of all tunnels that receive and of all mirrors.
fn lines(first: &Look, second: &Look, moment: Moment) -> Vec<Line> {
    let rings = first.rings.iter().zip(&second.rings).zip(&second.past);
    let rings = rings.flat_map(|((a, b), past)| identity::lines(a, b, past, moment));
    let tunnels = second.tunnels.iter().filter_map(|later| {
        let mut earlier = first.tunnels.iter();
        let earlier = earlier.find(|tunnel| tunnel.name == later.name)?;
        identity::decap(earlier, later, moment)
    });
    let mirrors = second.mirrors.iter().filter_map(|later| {
        let mut earlier = first.mirrors.iter();
        let earlier = earlier.find(|mirror| mirror.name == later.name)?;
        identity::mirror(earlier, later, moment)
    });
    rings.chain(tunnels).chain(mirrors).collect()
}

/// Whether no counter moved between two looks.
fn same(first: &Look, second: &Look) -> bool {
    let received = |tunnel: &Tunnel| {
        let status = tunnel.status.as_ref();
        let receive = status.and_then(|it| it.receive.as_ref());
        (tunnel.name.clone(), receive.map(|it| it.received_packets))
    };
    let rings = first.rings.iter().zip(&second.rings);
    let tunnels = |look: &Look| look.tunnels.iter().map(received).collect::<Vec<_>>();
    let seen = |mirror: &Mirror| {
        let status = mirror.status.as_ref();
        (mirror.name.clone(), status.map(|it| it.seen_frames))
    };
    let mirrors = |look: &Look| look.mirrors.iter().map(seen).collect::<Vec<_>>();
    tunnels(first) == tunnels(second)
        && mirrors(first) == mirrors(second)
        && first.past == second.past
        && rings.into_iter().all(|(a, b)| {
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
        // What a tunnel received or a mirror copied is no ring's.
        let (whose, show) = match bad.ring.as_str() {
            "" => {
                let show = match bad.object.split_once(' ') {
                    Some(("mirrord", mirror)) => format!("mirror show {mirror}"),
                    Some((_, tunnel)) => format!("tunnel show {tunnel}"),
                    None => "status".to_owned(),
                };
                (String::new(), show)
            }
            ring => (format!(" of ring {ring}"), format!("ring show {ring}")),
        };
        let message = format!("{}{whose} ({}): {what}: {sum}", bad.stage, bad.object);
        Err(Failure::new(Code::Failed, message).hint(format!(
            "this is a defect of fluxcap: please report it with the output of fluxctl {show} -o json",
        )))
    }
}

impl Report for Account {
    fn json(&self) -> Value {
        let mut value = json::value(self);
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
