//! `fluxctl audit`: proves that nothing was lost unseen: from shared memory, and for what tunnels receive and mirrors copy by what
//! their daemons tell.
//!
//! ```text
//!             upstream                  = downstream           + named drops
//!  I0 wire    frames that passed          = seen by the kernel   + missed
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
//!
//! A stage that cannot be looked at is a line of its own, `unknown`, and then nothing is said to close.

mod daemons;
mod identity;

use crate::complete;
use crate::connect::Globals;
use crate::exit::{Code, Failure};
use crate::json;
use crate::observe;
use crate::output::{Block, Report, count, print};
use clap::Args;
use clap_complete::ArgValueCandidates;
use daemons::{Answers, Daemons};
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
    let all = args.rings.is_empty();
    let names = match all {
        true => observe::list(&dir)?,
        false => observe::names(&dir, &args.rings)?,
    };
    let books = Books {
        globals,
        dir,
        names,
        all,
        daemons: Daemons::default(),
    };
    let account = account(&books, args.wait)?;
    if account.stages.is_empty() {
        return Err(books.nothing());
    }
    print(globals.output, &account)?;
    account.verdict()
}

/// Looks again and again until everything adds up or is still, or `wait` is over.
fn account(books: &Books, wait: Duration) -> Result<Account, Failure> {
    let mut first = books.look()?;
    // Who does not answer has taken a time-out by now.
    let begun = Instant::now();
    let mut still_since = begun;
    loop {
        std::thread::sleep(STEP);
        let second = books.look()?;
        if !same(&first, &second) {
            still_since = Instant::now();
        }
        let quiet = still_since.elapsed() >= STILL;
        let moment = if quiet { Moment::Still } else { Moment::Moving };
        let mut lines = lines(&first, &second, moment, |name| {
            books.daemons.is_silent(name)
        });
        // A pause in which all residuals are zero proves as much as a long one.
        let closed = still_since.elapsed() >= STEP && lines.iter().all(|line| line.residual == 0);
        if quiet || closed || begun.elapsed() >= wait {
            let unknown = books
                .daemons
                .unknown(books.globals, &second.rings, books.all);
            lines.extend(unknown);
            return Ok(Account {
                quiet: quiet || closed,
                waited_seconds: begun.elapsed().as_secs_f64(),
                stages: lines,
                silence: books.daemons.failure(),
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
    daemons: Daemons,
}

/// One look.
#[derive(Default)]
struct Look {
    rings: Vec<RingStats>,
    /// Of each ring the epochs that readers have not passed yet, oldest first.
    past: Vec<Vec<RingStats>>,
    /// Rings that cannot be looked at, and why.
    closed: Vec<(RingName, String)>,
    /// Those that receive into one of the rings.
    tunnels: Vec<Tunnel>,
    /// Those that copy into one of the rings; all when all rings are looked at.
    mirrors: Vec<Mirror>,
}

impl Books<'_> {
    fn look(&self) -> Result<Look, Failure> {
        let mut look = Look::default();
        // Before the rings of today: a reader that moves on meanwhile takes its books along, and is in both rather than in none.
        for name in &self.names {
            let past = observe::past(&self.dir, name);
            match observe::stats(&self.dir, name) {
                Ok(stats) => {
                    look.rings.push(stats);
                    look.past.push(past);
                }
                Err(failure) => look.closed.push((name.clone(), failure.message)),
            }
        }
        let Answers {
            mut tunnels,
            mut mirrors,
        } = self.daemons.ask(self.globals)?;
        tunnels.retain(|tunnel| self.all || self.feeds(tunnel));
        mirrors.retain(|mirror| {
            let ring = mirror.spec.as_ref().map_or("", |spec| &spec.ring);
            self.all || self.wants(ring)
        });
        (look.tunnels, look.mirrors) = (tunnels, mirrors);
        Ok(look)
    }

    /// The failure of an audit that finds nothing.
    fn nothing(&self) -> Failure {
        let dir = self.dir.path().display();
        let message =
            format!("there is nothing to audit: no rings in {dir}, no mirrors, no tunnels");
        Failure::new(Code::NotFound, message).hint(
            "make a ring: fluxctl ring create NAME --size 100m; or say where they are: --ring-dir, --run-dir",
        )
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
fn lines(first: &Look, second: &Look, moment: Moment, silent: impl Fn(&str) -> bool) -> Vec<Line> {
    let rings = second.rings.iter().zip(&second.past);
    let rings = rings.flat_map(|(later, past)| {
        let mut earlier = first.rings.iter();
        let earlier = earlier.find(|ring| ring.info.name == later.info.name);
        identity::lines(earlier.unwrap_or(later), later, past, moment, &silent)
    });
    let closed = second.closed.iter().map(|(name, why)| {
        let object = "all sources".to_owned();
        Line::unknown("I3 ring", name.to_string(), object, why.clone())
    });
    let tunnels = second.tunnels.iter().filter_map(|later| {
        let mut earlier = first.tunnels.iter();
        let earlier = earlier.find(|tunnel| tunnel.name == later.name);
        identity::decap(earlier.unwrap_or(later), later, moment)
    });
    let mirrors = second.mirrors.iter().map(|later| {
        let mut earlier = first.mirrors.iter();
        let earlier = earlier.find(|mirror| mirror.name == later.name);
        identity::mirror(earlier.unwrap_or(later), later, moment)
    });
    rings.chain(closed).chain(tunnels).chain(mirrors).collect()
}

/// Whether no counter moved between two looks.
fn same(first: &Look, second: &Look) -> bool {
    let received = |tunnel: &Tunnel| {
        let status = tunnel.status.as_ref();
        let receive = status.and_then(|it| it.receive.as_ref());
        (tunnel.name.clone(), receive.map(|it| it.received_packets))
    };
    let tunnels = |look: &Look| look.tunnels.iter().map(received).collect::<Vec<_>>();
    let seen = |mirror: &Mirror| {
        let status = mirror.status.as_ref();
        (mirror.name.clone(), status.map(|it| it.seen_frames))
    };
    let mirrors = |look: &Look| look.mirrors.iter().map(seen).collect::<Vec<_>>();
    let same_ring = |a: &RingStats, b: &RingStats| {
        (&a.info.name, a.info.epoch, a.published_frames)
            == (&b.info.name, b.info.epoch, b.published_frames)
            && (&a.drops, &a.sources, &a.readers) == (&b.drops, &b.sources, &b.readers)
    };
    tunnels(first) == tunnels(second)
        && mirrors(first) == mirrors(second)
        && first.past == second.past
        && first.rings.len() == second.rings.len()
        && first
            .rings
            .iter()
            .zip(&second.rings)
            .all(|(a, b)| same_ring(a, b))
}

/// All stages of all rings.
#[derive(Debug, Serialize)]
struct Account {
    /// Whether everything was still, so that residuals have to be zero.
    quiet: bool,
    waited_seconds: f64,
    stages: Vec<Line>,
    /// The first daemon that does not answer.
    #[serde(skip)]
    silence: Option<Failure>,
}

impl Account {
    /// The worst that is said of a stage.
    fn worst(&self) -> Verdict {
        let said = |verdict| self.stages.iter().any(|line| line.verdict == verdict);
        match () {
            () if said(Verdict::Failed) => Verdict::Failed,
            () if said(Verdict::Unknown) => Verdict::Unknown,
            () => Verdict::Ok,
        }
    }

    /// A failure for the first stage that does not add up, or else for the first of which nothing is known.
    fn verdict(&self) -> Result<(), Failure> {
        let first = |verdict| self.stages.iter().find(|line| line.verdict == verdict);
        let Some(bad) = first(Verdict::Failed) else {
            return match first(Verdict::Unknown) {
                Some(unknown) => Err(self.unknown(unknown)),
                None => Ok(()),
            };
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

impl Account {
    /// The failure of an account that has a gap.
    fn unknown(&self, line: &Line) -> Failure {
        let whose = match line.ring.as_str() {
            "" => String::new(),
            ring => format!(" of ring {ring}"),
        };
        let (stage, object, note) = (line.stage, &line.object, &line.note);
        let message = format!("{stage}{whose} ({object}) is unknown: {note}");
        let daemon = object.split(' ').next().unwrap_or_default();
        let told = |line: &Line| line.upstream > 0 || line.stage.starts_with("I0");
        match &self.silence {
            Some(failure) => Failure::new(failure.code, message).hint(&failure.hint),
            None if told(line) => Failure::new(Code::Unreachable, message).hint(
                "everything else of it adds up; a ring that is made anew begins a new account",
            ),
            None => Failure::new(Code::Unreachable, message).hint(format!(
                "see what is there: fluxctl status; start it: systemctl start fluxcap-{daemon}, or {daemon} by hand"
            )),
        }
    }
}

impl Report for Account {
    fn json(&self) -> Value {
        let mut value = json::value(self);
        value["verdict"] = Value::from(match self.worst() {
            Verdict::Failed => "failed",
            Verdict::Unknown => "unknown",
            _ => "ok",
        });
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
            let told = (line.upstream, line.downstream, line.drops) != (0, 0, 0);
            let number = |text: String| match line.verdict {
                Verdict::Unknown if !told => "-".to_owned(),
                _ => text,
            };
            vec![
                line.stage.to_owned(),
                line.ring.clone(),
                line.object.clone(),
                number(count(line.upstream)),
                number(count(line.downstream)),
                number(count(line.drops)),
                number(line.residual.to_string()),
                line.verdict.as_str().to_owned(),
                line.note.clone(),
            ]
        };
        let mut blocks = vec![Block::Rows(header, self.stages.iter().map(row).collect())];
        blocks.push(Block::Line(match (self.worst(), self.quiet) {
            (Verdict::Failed, _) => "the account does not close".to_owned(),
            (Verdict::Unknown, _) => {
                "the account is not whole: what is unknown is not proven".to_owned()
            }
            (_, true) => "the account closes: no frame was lost unseen".to_owned(),
            (_, false) => {
                "traffic did not pause: residuals are within what can be in flight".to_owned()
            }
        }));
        blocks
    }
}

#[cfg(test)]
mod tests;
