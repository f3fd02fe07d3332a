//! What is measured, as data.

use std::time::Duration;

use crate::bench::bed::Shape;
use crate::bench::frame::{MIXES, Mix};
use crate::bench::sink::Peer;
use crate::bench::system::{Setup, System};
use crate::bench::tunnel::packets::Kind;
use crate::bench::tunnel::{self, Way};

/// What is measured of a system in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The highest rate without loss, CPU and memory there.
    Rate,
    /// CPU at a rate that all systems can do.
    Fixed,
    /// Latency at a low and at a high rate.
    Latency,
    /// Twice the highest rate: what is delivered, the books, gRPC, SIGTERM.
    Overload,
    /// Every byte of every frame at all outputs.
    Check,
    /// CPU without traffic.
    Idle,
    /// So long below the highest rate: loss, and memory.
    Soak(Duration),
}

/// A part of the bench that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Rates, CPU and memory, 1 -> 2, for each way of sending and each kind of peer.
    Rate,
    /// The same for other shapes.
    Shapes,
    /// Latency.
    Latency,
    /// Overload.
    Overload,
    /// Every byte at all outputs.
    Check,
    /// Idle daemons.
    Idle,
    /// CPU of tunnels, beside a loop of sendto(2).
    Tunnel,
    /// Mirrors: replication beside tc mirred, and what they cost those whose traffic they copy.
    Mirror,
    /// The ring alone against memcpy.
    Ring,
}

/// A bed, what is sent through it, and the systems that take turns in it.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The part of which it is one.
    pub part: Part,
    /// Inputs and outputs.
    pub shape: Shape,
    /// Kind of the far ends.
    pub peer: Peer,
    /// Sizes of frames.
    pub mixes: Vec<Mix>,
    /// Systems.
    pub systems: Vec<System>,
    /// What is measured of each.
    pub measures: Vec<Measure>,
    /// How often all systems have their turn.
    pub rounds: usize,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A trial that searches.
    pub short: Duration,
    /// A trial that proves.
    pub long: Duration,
    /// A trial at the fixed rate.
    pub fixed: Duration,
    /// A trial of latency.
    pub latency: Duration,
    /// A trial of overload, or of every byte.
    pub stress: Duration,
    /// A look at idle daemons.
    pub idle: Duration,
    /// Ratio of good and bad rate at which a search ends.
    pub close: f64,
}

/// The full bench.
pub const FULL: Effort = Effort {
    short: Duration::from_millis(200),
    long: Duration::from_millis(1000),
    fixed: Duration::from_millis(1000),
    latency: Duration::from_millis(1500),
    stress: Duration::from_millis(2000),
    idle: Duration::from_millis(2000),
    close: 1.05,
};

/// `--quick`.
pub const QUICK: Effort = Effort {
    short: Duration::from_millis(200),
    long: Duration::from_millis(500),
    fixed: Duration::from_millis(500),
    latency: Duration::from_millis(1000),
    stress: Duration::from_millis(1000),
    idle: Duration::from_millis(1000),
    close: 1.1,
};

/// Frames per second at which CPU is compared at the same rate.
pub const FIXED_RATE: f64 = 150_000.0;
/// Frames per second at which latency is taken, with the names of its figures.
pub const LATENCY_RATES: [(f64, &str); 2] = [(1_000.0, "1k"), (100_000.0, "100k")];

const AUTO: System = System::fluxcap("auto");
const LIVE: System = System::fluxcap("live");
const TC: System = System::fluxcap("tc");
const AF_XDP: System = System::fluxcap("af_xdp");
const SENDMMSG: System = System::fluxcap("sendmmsg");
/// The low-latency profile.
const LOW: System = System::Fluxcap(Setup {
    low: true,
    ..Setup::of("auto")
});
/// A transmit for each output.
const ONE_EACH: System = System::Fluxcap(Setup {
    one_each: true,
    ..Setup::of("auto")
});
/// The same by packet sockets, which is how fluxcap 3.2 does it.
const SENDMMSG_EACH: System = System::Fluxcap(Setup {
    one_each: true,
    ..Setup::of("sendmmsg")
});
/// Captures by AF_XDP, so that no socket buffer is ever made: the fastest, where the host itself needs none of the frames.
const RX_XDP: System = System::Fluxcap(Setup {
    rx_xdp: true,
    ..Setup::of("auto")
});
/// Capture and transmit have CPUs of their own, and run before everything else there.
const PINNED: System = System::Fluxcap(Setup {
    pinned: true,
    ..Setup::of("auto")
});
const C: System = System::FluxcapC;
const MIRRED: System = System::Mirred;
/// Replication in the driver's receive path.
const MIRROR: System = System::Mirror { xdp: true };
/// Copies at traffic control, beside the host's own use of the frames.
const MIRROR_TC: System = System::Mirror { xdp: false };

const ONE_ONE: Shape = Shape::new(1, 1);
const ONE_TWO: Shape = Shape::new(1, 2);
const ONE_FOUR: Shape = Shape::new(1, 4);
const TWO_ONE: Shape = Shape::new(2, 1);

const B64: Mix = MIXES[0];
const B512: Mix = MIXES[1];
const B1514: Mix = MIXES[2];
const IMIX: Mix = MIXES[3];

/// Rows of a plan: part, shape, peer, sizes, systems, measures, rounds.
type Row = (
    Part,
    Shape,
    Peer,
    &'static [Mix],
    &'static [System],
    &'static [Measure],
    usize,
);

use Measure::{Check, Fixed, Idle, Latency, Overload, Rate};
use Peer::{Gro, Plain, Prepared, Xdp};

/// In 1 -> 2 to XDP peers, auto takes live. What a target is about has three rounds beside the C tool, the rest has one;
/// the rates of tc and af_xdp at 64 bytes come with their overload.
#[rustfmt::skip]
const FULL_PLAN: &[Row] = &[
    (Part::Rate, ONE_TWO, Xdp, &[B64], &[AUTO, SENDMMSG, SENDMMSG_EACH, C], &[Rate], 3),
    (Part::Rate, ONE_TWO, Xdp, &[B64], &[RX_XDP, MIRRED], &[Rate], 1),
    (Part::Rate, ONE_TWO, Xdp, &[B64], &[AUTO, SENDMMSG, C, MIRRED], &[Fixed], 1),
    (Part::Rate, ONE_TWO, Xdp, &[B512, B1514], &[AUTO, C], &[Rate], 3),
    (Part::Rate, ONE_TWO, Xdp, &[B512], &[RX_XDP, MIRRED], &[Rate], 1),
    (Part::Rate, ONE_TWO, Xdp, &[B1514], &[RX_XDP, TC, AF_XDP, SENDMMSG, MIRRED], &[Rate], 1),
    (Part::Rate, ONE_TWO, Xdp, &[IMIX], &[AUTO, C], &[Rate], 1),
    (Part::Rate, ONE_TWO, Gro, &[B64, B1514], &[AUTO, C], &[Rate], 3),
    (Part::Rate, ONE_TWO, Gro, &[B64, B1514], &[RX_XDP], &[Rate], 1),
    (Part::Rate, ONE_TWO, Prepared, &[B64, B1514], &[AUTO], &[Rate], 1),
    (Part::Rate, ONE_TWO, Plain, &[B64, B1514], &[AUTO, C], &[Rate], 3),
    (Part::Shapes, ONE_ONE, Xdp, &[B64], &[AUTO, C, MIRRED, System::Daemonlogger, System::Tcpbridge], &[Rate], 1),
    (Part::Shapes, ONE_FOUR, Xdp, &[B64], &[AUTO, ONE_EACH, C, MIRRED], &[Rate], 1),
    (Part::Shapes, TWO_ONE, Xdp, &[B64], &[AUTO, C, MIRRED], &[Rate], 1),
    (Part::Latency, ONE_TWO, Xdp, &[B64], &[AUTO, LOW, RX_XDP, C, MIRRED], &[Latency], 1),
    (Part::Overload, ONE_TWO, Xdp, &[B64], &[AUTO, TC, AF_XDP, SENDMMSG], &[Rate, Overload], 1),
    (Part::Check, ONE_TWO, Xdp, &[IMIX], &[LIVE, TC, AF_XDP, SENDMMSG], &[Check], 1),
    (Part::Check, ONE_TWO, Gro, &[IMIX], &[LIVE, TC, AF_XDP, SENDMMSG], &[Check], 1),
    (Part::Check, ONE_TWO, Plain, &[IMIX], &[TC, AF_XDP, SENDMMSG], &[Check], 1),
    (Part::Idle, ONE_TWO, Xdp, &[B64], &[AUTO, LOW], &[Idle], 1),
    (Part::Mirror, ONE_TWO, Xdp, &[B64, B1514], &[MIRROR], &[Rate], 1),
];

/// When it is asked for by name. In the whole plan the others are there already.
#[rustfmt::skip]
const MIRROR_PLAN: &[Row] = &[
    (Part::Mirror, ONE_TWO, Xdp, &[B64, B512, B1514], &[MIRROR, MIRRED, C, AUTO], &[Rate], 3),
    (Part::Mirror, ONE_TWO, Xdp, &[B64], &[MIRROR_TC], &[Rate], 1),
];

#[rustfmt::skip]
const QUICK_PLAN: &[Row] = &[
    (Part::Rate, ONE_TWO, Xdp, &[B64], &[AUTO, TC, SENDMMSG, C, MIRRED], &[Rate, Fixed], 1),
    (Part::Rate, ONE_TWO, Xdp, &[B1514], &[AUTO, C], &[Rate, Fixed], 1),
    (Part::Rate, ONE_TWO, Gro, &[B64], &[AUTO, C], &[Rate], 1),
    (Part::Rate, ONE_TWO, Plain, &[B64], &[AUTO, C], &[Rate], 1),
    (Part::Shapes, ONE_ONE, Xdp, &[B64], &[AUTO, C, MIRRED], &[Rate], 1),
    (Part::Shapes, ONE_FOUR, Xdp, &[B64], &[AUTO], &[Rate], 1),
    (Part::Shapes, TWO_ONE, Xdp, &[B64], &[AUTO], &[Rate], 1),
    (Part::Latency, ONE_TWO, Xdp, &[B64], &[AUTO, LOW, C, MIRRED], &[Latency], 1),
    (Part::Overload, ONE_TWO, Xdp, &[B64], &[AUTO], &[Rate, Overload], 1),
    (Part::Check, ONE_TWO, Xdp, &[IMIX], &[LIVE, TC, AF_XDP, SENDMMSG], &[Check], 1),
    (Part::Idle, ONE_TWO, Xdp, &[B64], &[AUTO], &[Idle], 1),
];

/// All cells; `mirrors`: those of mirrors in full.
#[must_use]
pub fn plan(quick: bool, mirrors: bool) -> Vec<Cell> {
    let rows = if quick { QUICK_PLAN } else { FULL_PLAN };
    let rows = rows
        .iter()
        .filter(|row| !mirrors || row.0 != Part::Mirror)
        .chain(MIRROR_PLAN.iter().filter(|_| mirrors));
    let cell = |&(part, shape, peer, mixes, systems, measures, rounds): &Row| Cell {
        part,
        shape,
        peer,
        mixes: mixes.to_vec(),
        systems: systems.to_vec(),
        measures: measures.to_vec(),
        rounds,
    };
    rows.map(cell).collect()
}

/// Rows of the plan of tunnels: peer, sizes, who takes turns, rounds.
type TunnelRow = (
    Peer,
    &'static [(&'static str, usize)],
    &'static [Way],
    usize,
);

/// Lengths of inner frames; "64" and "512" count the FCS.
const TUNNEL_SIZES: &[(&str, usize)] = &[("64", 60), ("512", 508), ("1400", 1400)];

#[rustfmt::skip]
const TUNNEL_PLAN: &[TunnelRow] = &[
    (Xdp, TUNNEL_SIZES, &[Way::Loop, Way::Send("auto"), Way::Send("sendmmsg")], 2),
    (Xdp, TUNNEL_SIZES, &[Way::Receive], 1),
    (Xdp, &[TUNNEL_SIZES[0]], &[Way::Send("ip")], 1),
    (Gro, &[TUNNEL_SIZES[2]], &[Way::Loop, Way::Send("auto")], 1),
    (Plain, &[TUNNEL_SIZES[2]], &[Way::Loop, Way::Send("auto")], 1),
];

/// Beside everything else.
#[rustfmt::skip]
const SHORT_TUNNEL_PLAN: &[TunnelRow] = &[
    (Xdp, &[TUNNEL_SIZES[0], TUNNEL_SIZES[2]], &[Way::Loop, Way::Send("auto")], 1),
];

#[rustfmt::skip]
const QUICK_TUNNEL_PLAN: &[TunnelRow] = &[
    (Xdp, &[TUNNEL_SIZES[0]], &[Way::Loop, Way::Send("auto"), Way::Send("sendmmsg"), Way::Receive], 1),
];

/// Rounds of what mirrors cost those whose traffic they copy.
pub const PRODUCTION_ROUNDS: usize = 3;

/// All cells of tunnels; `by_name`: in full.
#[must_use]
pub fn tunnels(quick: bool, by_name: bool) -> Vec<tunnel::Cell> {
    let rows = match (quick, by_name) {
        (true, _) => QUICK_TUNNEL_PLAN,
        (false, true) => TUNNEL_PLAN,
        (false, false) => SHORT_TUNNEL_PLAN,
    };
    let cell = |&(peer, sizes, ways, rounds): &TunnelRow| tunnel::Cell {
        peer,
        kinds: vec![Kind::Gretap, Kind::Vxlan, Kind::Gue],
        sizes: sizes.to_vec(),
        ways: ways.to_vec(),
        rounds,
    };
    rows.iter().map(cell).collect()
}

/// The cell of a soak. Who must not lose a frame for hours gives capture and transmit CPUs of their own; others take part when wanted by name.
#[must_use]
pub fn soak(duration: Duration, wanted: impl Fn(&str) -> bool) -> Cell {
    let mut systems = vec![PINNED, AUTO];
    systems.retain(|system| wanted(&system.to_string()));
    Cell {
        part: Part::Overload,
        shape: ONE_TWO,
        peer: Xdp,
        mixes: vec![IMIX],
        systems,
        measures: vec![Rate, Measure::Soak(duration)],
        rounds: 1,
    }
}
