//! What tunnels cost: CPU for each frame that is sent from a ring or received into one, beside a loop of sendto(2) on a raw socket.
//!
//! All at the same rate, which every one of them can do. What it takes to offer the load is measured without a tunnel and taken off: the
//! frames published in a ring that nobody reads; a loop that sends nothing; packets that arrive for another host.

pub mod bed;
pub mod load;
pub mod packets;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use self::bed::{Bed, INPUT, RECEIVED, SENT};
use self::load::Load;
use self::packets::{Kind, ethernet, frames};
use crate::bench::machine::{busy, others};
use crate::bench::plan::FIXED_RATE;
use crate::bench::results::{Case, Sample, figure};
use crate::bench::run::{guarded, line};
use crate::bench::sink::Peer;
use crate::bench::source::Sent;
use crate::ctl::{Fluxctl, counts};
use crate::daemon::{Daemon, Dirs};
use crate::ring::{RingWriter, published};

/// Name of the loop of sendto(2).
pub const LOOP: &str = "sendto";
/// Ethernet address of nobody.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// Room for the frames of a second.
const RING: &str = "256m";
/// How long a tunnel may take until frames come through.
const PATIENCE: Duration = Duration::from_secs(8);
/// When no more has arrived for so long, what is missing is lost.
const QUIET: Duration = Duration::from_millis(60);

/// Who moves frames, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A loop of sendto(2) on a raw socket, of packets made beforehand.
    Loop,
    /// tunneld from a ring, with this `--io`.
    Send(&'static str),
    /// tunneld into a ring.
    Receive,
}

impl Way {
    /// As reports and the command line call it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Way::Loop => LOOP.to_owned(),
            Way::Send(io) => format!("fluxcap {io}"),
            Way::Receive => "fluxcap recv".to_owned(),
        }
    }
}

/// What is measured in one bed.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Kind of the far end.
    pub peer: Peer,
    /// Formats.
    pub kinds: Vec<Kind>,
    /// Names and lengths of frames.
    pub sizes: Vec<(&'static str, usize)>,
    /// Who takes turns.
    pub ways: Vec<Way>,
    /// How often all have their turn.
    pub rounds: usize,
}

/// Measures a cell. What fails is noted, and the rest is measured.
pub fn measure(cell: &Cell, duration: Duration, samples: &mut Vec<Sample>) {
    let load = Load {
        rate: FIXED_RATE,
        duration,
    };
    let stage = match guarded(|| Stage::new(cell.peer, load)) {
        Ok(stage) => stage,
        Err(error) => return eprintln!("tunnels, {}: {error:#}", cell.peer.name()),
    };
    for &(size, len) in &cell.sizes {
        for &kind in &cell.kinds {
            for round in 0..cell.rounds {
                for &way in &cell.ways {
                    let begin = Instant::now();
                    let sample = stage.sample(kind, (size, len), way, round);
                    eprintln!("{} {:.1} s", line(&sample), begin.elapsed().as_secs_f64());
                    samples.push(sample);
                }
            }
        }
    }
}

/// A bed with daemons in it.
struct Stage {
    _ringd: Daemon,
    _tunneld: Daemon,
    fluxctl: Fluxctl,
    dirs: Dirs,
    bed: Bed,
    load: Load,
}

/// What a turn came to.
struct Turn {
    /// CPU time for a frame, in nanoseconds.
    cpu_ns: f64,
    notes: Vec<String>,
}

impl Stage {
    fn new(peer: Peer, load: Load) -> Result<Stage> {
        let (bed, dirs) = (Bed::new(peer)?, Dirs::new());
        let start = |name| Daemon::start(name, &bed.host, &dirs, &[]);
        Ok(Stage {
            _ringd: start("ringd"),
            _tunneld: start("tunneld"),
            fluxctl: Fluxctl::new(&dirs),
            dirs,
            bed,
            load,
        })
    }

    fn sample(&self, kind: Kind, (size, len): (&str, usize), way: Way, round: usize) -> Sample {
        let before = (Instant::now(), others());
        let turn = guarded(|| match way {
            Way::Loop => self.send_in_a_loop(kind, len),
            Way::Send(io) => self.send(kind, len, io),
            Way::Receive => self.receive(kind, len),
        });
        let mut figures = BTreeMap::new();
        if let (Ok(earlier), Ok(now)) = (before.1, others()) {
            let share =
                now.saturating_sub(earlier).as_secs_f64() / before.0.elapsed().as_secs_f64();
            figures.insert(figure::OTHERS.to_owned(), share);
        }
        let (notes, error) = match turn {
            Ok(turn) => {
                figures.insert(figure::CPU_TUNNEL.to_owned(), turn.cpu_ns);
                (turn.notes, None)
            }
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        Sample {
            case: Case {
                shape: kind.name().to_owned(),
                peer: self.bed.peer.name().to_owned(),
                size: size.to_owned(),
                system: way.name(),
            },
            round,
            figures,
            notes,
            error,
        }
    }

    fn send_in_a_loop(&self, kind: Kind, len: usize) -> Result<Turn> {
        let frames = frames(len);
        let packets = (0..)
            .zip(&frames)
            .map(|(flow, frame)| kind.packet(SENT, flow, frame));
        let packets: Vec<_> = packets.collect();
        let send = |to| load::send_each(self.load, &self.bed.host, &packets, to);
        let with = self.sent(kind, len, || send(Some(SENT.1)))?;
        let without = spent(|| send(None))?;
        Ok(Turn::of(&with, &without, Vec::new()))
    }

    fn send(&self, kind: Kind, len: usize, io: &str) -> Result<Turn> {
        let ring = self.ring("out")?;
        let mut writer = RingWriter::open(&self.dirs, "out");
        let remote = SENT.1.to_string();
        let command = [
            "tunnel",
            "send",
            "out",
            kind.name(),
            &remote,
            "--io",
            io,
            "--name",
            "out",
        ];
        let tunnel = Removed::new(
            &self.fluxctl,
            "tunnel",
            "out",
            &[&command, kind.options()].concat(),
        )?;
        let frames = frames(len);
        self.until_it_sends(&mut writer, &frames[0])?;
        let mut publish = || load::publish(self.load, &self.bed.host, &mut writer, &frames);
        let with = self.sent(kind, len, &mut publish)?;
        let path = &tunnel.status()["send"]["path"];
        let notes = path["io"].as_str().map(str::to_owned);
        drop(tunnel);
        let without = spent(publish)?;
        drop(ring);
        Ok(Turn::of(&with, &without, notes.into_iter().collect()))
    }

    fn receive(&self, kind: Kind, len: usize) -> Result<Turn> {
        let ring = self.ring("in")?;
        let command = ["tunnel", "recv", kind.name(), "in", "--name", "in"];
        let tunnel = Removed::new(
            &self.fluxctl,
            "tunnel",
            "in",
            &[&command, kind.options()].concat(),
        )?;
        let inner = frames(len);
        let frames_to = |mac| -> Vec<Vec<u8>> {
            let packets = (0..)
                .zip(&inner)
                .map(|(flow, frame)| kind.packet(RECEIVED, flow, frame));
            packets
                .map(|packet| [ethernet(mac), packet].concat())
                .collect()
        };
        let (ours, others) = (frames_to(INPUT), frames_to(NOBODY));
        let send = |load, frames: &[_]| load::send_live(load, &self.bed.near, "wire0", frames);
        let probe = Load {
            rate: 1_000.0,
            duration: Duration::from_millis(5),
        };
        self.until("received", || {
            send(probe, &ours)?;
            thread::sleep(QUIET);
            Ok(published(&self.dirs, "in") > 0)
        })?;
        let before = published(&self.dirs, "in");
        let with = spent(|| {
            let sent = send(self.load, &ours)?;
            settle(|| Ok(published(&self.dirs, "in")), before + sent.frames)?;
            Ok(sent)
        })?;
        let arrived = published(&self.dirs, "in") - before;
        drop(tunnel);
        let without = spent(|| send(self.load, &others))?;
        drop(ring);
        let notes = lost(with.0.frames, arrived).into_iter().collect();
        Ok(Turn::of(&with, &without, notes))
    }

    fn ring(&self, name: &'static str) -> Result<Removed<'_>> {
        Removed::new(
            &self.fluxctl,
            "ring",
            name,
            &["ring", "create", name, "--size", RING],
        )
    }

    fn until_it_sends(&self, writer: &mut RingWriter, frame: &[u8]) -> Result<()> {
        let (before, _) = self.bed.counter.arrived()?;
        self.until("sent", || {
            writer.publish([frame].into_iter());
            thread::sleep(QUIET);
            Ok(self.bed.counter.arrived()?.0 > before)
        })?;
        // Backends that take longer to open than a packet socket.
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn until(&self, what: &str, mut attempt: impl FnMut() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !attempt()? {
            if begin.elapsed() > PATIENCE {
                let tunnels = self.fluxctl.try_run(&["tunnel", "list"]);
                bail!(
                    "no frame is {what} after {PATIENCE:?}: {}{}",
                    tunnels.stdout,
                    tunnels.stderr
                );
            }
        }
        Ok(())
    }

    /// Sends, and waits for all of it at the far end, which must be whole.
    fn sent(
        &self,
        kind: Kind,
        len: usize,
        send: impl FnOnce() -> Result<Sent>,
    ) -> Result<(Sent, Duration)> {
        let before = self.bed.counter.arrived()?;
        let spent = spent(|| {
            let sent = send()?;
            settle(|| Ok(self.bed.counter.arrived()?.0), before.0 + sent.frames)?;
            Ok(sent)
        })?;
        let after = self.bed.counter.arrived()?;
        let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
        let frame = (packets::ETHERNET + kind.outer_len(len)) as u64;
        ensure!(
            packets == spent.0.frames,
            "{packets} of {} packets arrived",
            spent.0.frames
        );
        ensure!(
            bytes == packets * frame,
            "{packets} packets have {bytes} bytes instead of {frame} each"
        );
        Ok(spent)
    }
}

impl Turn {
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    fn of(with: &(Sent, Duration), without: &(Sent, Duration), notes: Vec<String>) -> Turn {
        let each = |(sent, busy): &(Sent, Duration)| {
            busy.as_secs_f64() * 1e9 / (sent.frames as f64).max(1.0)
        };
        Turn {
            cpu_ns: each(with) - each(without),
            notes,
        }
    }
}

fn lost(frames: u64, arrived: u64) -> Option<String> {
    (frames > arrived).then(|| format!("lost {} of {frames}", frames - arrived))
}

/// What a load comes to, and the CPU time of the machine meanwhile.
fn spent(work: impl FnOnce() -> Result<Sent>) -> Result<(Sent, Duration)> {
    let before = busy()?;
    let sent = work()?;
    Ok((sent, busy()?.saturating_sub(before)))
}

/// Waits until so many have arrived, or no more do.
fn settle(arrived: impl Fn() -> Result<u64>, wanted: u64) -> Result<()> {
    let (mut last, mut since) = (arrived()?, Instant::now());
    while last < wanted && since.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(1));
        let now = arrived()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// A ring or a tunnel that is deleted on drop.
struct Removed<'c> {
    fluxctl: &'c Fluxctl,
    noun: &'static str,
    name: &'static str,
}

impl<'c> Removed<'c> {
    fn new(
        fluxctl: &'c Fluxctl,
        noun: &'static str,
        name: &'static str,
        command: &[&str],
    ) -> Result<Removed<'c>> {
        let output = fluxctl.try_run(command);
        ensure!(
            output.code == 0,
            "fluxctl {}: {}",
            command.join(" "),
            output.stderr
        );
        Ok(Removed {
            fluxctl,
            noun,
            name,
        })
    }

    fn status(&self) -> serde_json::Value {
        let shown = self
            .fluxctl
            .try_run(&[self.noun, "show", self.name, "-o", "json"]);
        let mut shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        counts(&mut shown);
        shown["status"].take()
    }
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _ = self.fluxctl.try_run(&[self.noun, "delete", self.name]);
    }
}
