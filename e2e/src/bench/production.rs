//! What a mirror costs those whose traffic it copies: how much of it gets through, and what each frame costs, with no mirror, with one that
//! selects nothing, and with one to each kind of target.
//!
//! ```text
//!   namespace "near"            namespace "host"                            namespace "far"
//!   +--------------+     +----------------------------------+     +--------------------------+
//!   | live frames -|-----|- in0 ------- bridge ------- out0 -|-----|-wire0  Counter           |
//!   +--------------+     |   \ ingress            egress /   |     +--------------------------+
//!                        |    mirror: ring, dev, overlay     |     namespace "monitor"
//!                        |                            mon0 --|-----|-wire0  Counter           |
//!                        +----------------------------------+     +--------------------------+
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fluxcap_proto::v1::{
    Direction, MirrorDevice, MirrorOverlay, MirrorRule, MirrorSpec, PortRange, TunnelKind,
};

use crate::bench::machine::{busy, others};
use crate::bench::plan::FIXED_RATE;
use crate::bench::results::{Case, Sample, figure};
use crate::bench::run::{guarded, line};
use crate::bench::sink::Peer;
use crate::bench::source::Sent;
use crate::bench::system::begin;
use crate::bench::tunnel::bed::Counter;
use crate::bench::tunnel::load::{self, Load};
use crate::bench::tunnel::packets::frames;
use crate::ctl::Fluxctl;
use crate::daemon::{Daemon, Dirs};
use crate::link::Veth;
use crate::mirrord::Mirrord;
use crate::netns::Netns;

/// Name of the row that others are compared with.
pub const ALONE: &str = "no mirror";
/// Shape of these cases.
pub const SHAPE: &str = "production";
/// More than gets through.
const FLOOD: f64 = 1_500_000.0;
/// Length of the frames: "64" with the FCS.
const LEN: usize = 60;
/// Overlays need room in front of the frames.
const MTU: u32 = 1600;
const RING: &str = "256m";
const QUIET: Duration = Duration::from_millis(60);
/// Ends of the overlays.
const LOCAL: &str = "10.9.0.1";
const REMOTE: &str = "10.9.0.2";
const REMOTE_MAC: &str = "02:00:00:00:09:02";

/// Where copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A rule selects nothing; what it would select goes to a device.
    NoMatch,
    /// A ring.
    Ring,
    /// An interface.
    Device,
    /// An overlay.
    Overlay(TunnelKind),
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 7] = [
        Target::NoMatch,
        Target::Ring,
        Target::Device,
        Target::Overlay(TunnelKind::Gue),
        Target::Overlay(TunnelKind::Vxlan),
        Target::Overlay(TunnelKind::Geneve),
        Target::Overlay(TunnelKind::Gretap),
    ];

    fn name(self) -> &'static str {
        match self {
            Target::NoMatch => "nothing",
            Target::Ring => "ring",
            Target::Device => "dev",
            Target::Overlay(TunnelKind::Gue) => "gue",
            Target::Overlay(TunnelKind::Vxlan) => "vxlan",
            Target::Overlay(TunnelKind::Geneve) => "geneve",
            Target::Overlay(_) => "gretap",
        }
    }

    fn spec(self, direction: Direction) -> MirrorSpec {
        let mut spec = MirrorSpec {
            interface: match direction {
                Direction::Out => "out0".to_owned(),
                _ => "in0".to_owned(),
            },
            direction: direction.into(),
            ephemeral: true,
            ..MirrorSpec::default()
        };
        match self {
            Target::Ring => spec.ring = "copies".to_owned(),
            Target::Overlay(kind) => {
                spec.overlay = Some(MirrorOverlay {
                    kind: kind.into(),
                    remote: REMOTE.to_owned(),
                    id: match kind {
                        TunnelKind::Vxlan | TunnelKind::Geneve => Some(42),
                        _ => None,
                    },
                    ..MirrorOverlay::default()
                });
            }
            Target::NoMatch | Target::Device => spec.devices.push(MirrorDevice {
                name: "mon0".to_owned(),
                vlan_push: None,
            }),
        }
        if self == Target::NoMatch {
            // Nearly: the frames are UDP to port 9.
            spec.rules.push(MirrorRule {
                sources: vec!["198.18.0.0/16".to_owned()],
                destination_ports: vec![PortRange {
                    first: 10,
                    last: 99,
                }],
                protocols: vec![17],
                ..MirrorRule::default()
            });
        }
        spec
    }
}

/// Measures all targets, both ways, so many times. What fails is noted, and the rest is measured.
pub fn measure(rounds: usize, duration: Duration, samples: &mut Vec<Sample>) {
    let stage = match guarded(Stage::new) {
        Ok(stage) => stage,
        Err(error) => return eprintln!("production: {error:#}"),
    };
    for round in 0..rounds {
        let ways = [Direction::In, Direction::Out];
        let mirrors = ways
            .into_iter()
            .flat_map(|way| Target::ALL.map(|target| Some((target, way))));
        for mirror in std::iter::once(None).chain(mirrors) {
            let begin = Instant::now();
            let sample = stage.sample(mirror, duration, round);
            eprintln!("{} {:.1} s", line(&sample), begin.elapsed().as_secs_f64());
            samples.push(sample);
        }
    }
}

/// Namespaces, wires, daemons.
struct Stage {
    mirrord: Mirrord,
    _ringd: Daemon,
    far_counter: Counter,
    _monitored: Counter,
    near: Netns,
    _far: Netns,
    _monitor: Netns,
    _host: Netns,
    _dirs: Dirs,
}

impl Stage {
    fn new() -> Result<Stage> {
        let [near, host, far, monitor] = [(); 4].map(|()| Netns::new());
        for (outside, name) in [(&near, "in0"), (&far, "out0"), (&monitor, "mon0")] {
            Veth::pair((outside, "wire0"), (&host, name), MTU);
        }
        // Live frames reach a veth whose other end has GRO.
        Veth::gro(&host, "in0", true);
        host.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ]);
        for port in ["in0", "out0"] {
            host.ip(&["link", "set", port, "master", "br0"]);
        }
        host.ip(&["link", "set", "br0", "up"]);
        host.ip(&["addr", "add", &format!("{LOCAL}/24"), "dev", "mon0"]);
        let neighbour = ["neigh", "add", REMOTE, "lladdr", REMOTE_MAC, "dev", "mon0"];
        host.ip(&neighbour);
        let dirs = Dirs::new();
        let ringd = Daemon::start("ringd", &host, &dirs, &[]);
        let ring = ["ring", "create", "copies", "--size", RING];
        let made = Fluxctl::new(&dirs).try_run(&ring);
        ensure!(made.code == 0, "fluxctl ring create: {}", made.stderr);
        Ok(Stage {
            mirrord: Mirrord::start(&host, &dirs),
            _ringd: ringd,
            far_counter: Counter::attach(&far, "wire0", Peer::Plain)?,
            // What arrives there has to be cheap.
            _monitored: Counter::attach(&monitor, "wire0", Peer::Plain)?,
            near,
            _far: far,
            _monitor: monitor,
            _host: host,
            _dirs: dirs,
        })
    }

    fn sample(
        &self,
        mirror: Option<(Target, Direction)>,
        duration: Duration,
        round: usize,
    ) -> Sample {
        let mut sample = Sample {
            case: Case {
                shape: SHAPE.to_owned(),
                peer: Peer::Plain.name().to_owned(),
                size: "64".to_owned(),
                system: name(mirror),
            },
            round,
            figures: BTreeMap::new(),
            notes: Vec::new(),
            error: None,
        };
        let done = guarded(|| self.turn(mirror, duration, &mut sample));
        sample.error = done.err().map(|error| format!("{error:#}"));
        sample
    }

    fn turn(
        &self,
        mirror: Option<(Target, Direction)>,
        duration: Duration,
        sample: &mut Sample,
    ) -> Result<()> {
        let running = mirror
            .map(|(target, way)| Running::begin(&self.mirrord, &target.spec(way)))
            .transpose()?;
        let before = (Instant::now(), others()?);
        let steady = self.send(FIXED_RATE, duration)?;
        ensure!(
            steady.arrived == steady.sent.frames,
            "{} of {} frames got through",
            steady.arrived,
            steady.sent.frames
        );
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let cpu = steady.busy.as_secs_f64() * 1e9 / steady.sent.frames.max(1) as f64;
        let flood = self.send(FLOOD, duration / 2)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = flood.arrived as f64 / flood.took.as_secs_f64();
        let others = others()?.saturating_sub(before.1).as_secs_f64();
        let share = others / before.0.elapsed().as_secs_f64();
        let figures = [
            (figure::CPU_PRODUCTION, cpu),
            (figure::RATE_PRODUCTION, rate),
            (figure::OTHERS, share),
        ];
        sample
            .figures
            .extend(figures.map(|(name, value)| (name.to_owned(), value)));
        if let (Some(running), Some((target, _))) = (running, mirror) {
            let frames = steady.sent.frames + flood.passed(&running.spec);
            sample.notes.extend(running.missing(target, frames));
        }
        Ok(())
    }

    /// Sends frames through the bridge, and waits for those that get through.
    fn send(&self, rate: f64, duration: Duration) -> Result<Sending> {
        let frames = frames(LEN);
        let (before, _) = self.far_counter.arrived()?;
        let used = busy()?;
        let sent = load::send_live(Load { rate, duration }, &self.near, "wire0", &frames)?;
        let (mut last, mut since) = (self.far_counter.arrived()?.0, Instant::now());
        while last - before < sent.frames && since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.far_counter.arrived()?.0;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(Sending {
            arrived: last - before,
            took: sent.elapsed.max(Duration::from_millis(1)),
            busy: busy()?.saturating_sub(used),
            sent,
        })
    }
}

/// What became of frames.
struct Sending {
    sent: Sent,
    arrived: u64,
    took: Duration,
    busy: Duration,
}

impl Sending {
    /// Frames that went past the mirror: what a full queue behind it drops has been copied, what one in front of it drops has not.
    fn passed(&self, spec: &MirrorSpec) -> u64 {
        match spec.direction() {
            Direction::Out => self.arrived,
            _ => self.sent.frames - self.sent.refused,
        }
    }
}

/// A mirror that is deleted on drop.
struct Running<'m> {
    mirrord: &'m Mirrord,
    spec: MirrorSpec,
}

/// Its name.
const MIRROR: &str = "bench";

impl<'m> Running<'m> {
    fn begin(mirrord: &'m Mirrord, spec: &MirrorSpec) -> Result<Running<'m>> {
        let running = Running {
            mirrord,
            spec: spec.clone(),
        };
        begin(mirrord, MIRROR, spec)?;
        Ok(running)
    }

    /// Says what became of the copies when they are not as many as the frames.
    fn missing(&self, target: Target, frames: u64) -> Option<String> {
        let status = self.mirrord.status(MIRROR);
        let wanted = if target == Target::NoMatch { 0 } else { frames };
        let dropped = status.dropped_frames.iter();
        let dropped: Vec<_> = dropped
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let mirrored = status.mirrored_frames;
        (mirrored < wanted).then(|| {
            format!(
                "{mirrored} copies of {wanted} frames; {}",
                dropped.join(", ")
            )
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.mirrord.try_delete(MIRROR);
    }
}

fn name(mirror: Option<(Target, Direction)>) -> String {
    let Some((target, way)) = mirror else {
        return ALONE.to_owned();
    };
    let way = match way {
        Direction::Out => "egress",
        _ => "ingress",
    };
    format!("fluxcap mirror {way} to {}", target.name())
}
