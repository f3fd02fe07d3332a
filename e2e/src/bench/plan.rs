//! What is measured, as data.

use std::time::Duration;

use crate::bench::bed::Shape;
use crate::bench::frame::{MIXES, Mix};
use crate::bench::sink::Peer;
use crate::bench::system::System;

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
    /// The ring alone against memcpy.
    Ring,
}

/// All parts.
pub const PARTS: [Part; 7] = [
    Part::Rate,
    Part::Shapes,
    Part::Latency,
    Part::Overload,
    Part::Check,
    Part::Idle,
    Part::Ring,
];

/// A bed, what is sent through it, and the systems that take turns in it.
#[derive(Clone, Debug)]
pub struct Cell {
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
    /// Rounds of interleaved cells.
    pub rounds: usize,
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
    rounds: 3,
    short: Duration::from_millis(300),
    long: Duration::from_millis(1200),
    fixed: Duration::from_millis(1000),
    latency: Duration::from_millis(3000),
    stress: Duration::from_millis(3000),
    idle: Duration::from_millis(3000),
    close: 1.05,
};

/// `--quick`.
pub const QUICK: Effort = Effort {
    rounds: 1,
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
const LOW: System = System::Fluxcap {
    io: "auto",
    one_each: false,
    low: true,
};
const ONE_EACH: System = System::Fluxcap {
    io: "auto",
    one_each: true,
    low: false,
};
/// Ways of sending that can be chosen by name.
const WAYS: [System; 4] = [
    System::fluxcap("live"),
    System::fluxcap("tc"),
    System::fluxcap("af_xdp"),
    System::fluxcap("sendmmsg"),
];

/// The cells of the parts that are wanted.
#[must_use]
pub fn plan(parts: &[Part], quick: bool) -> Vec<Cell> {
    let rounds = if quick { QUICK.rounds } else { FULL.rounds };
    let [short, _, long, _] = MIXES;
    let ends = if quick {
        vec![short]
    } else {
        vec![short, long]
    };
    let all = if quick {
        vec![short, long]
    } else {
        MIXES.to_vec()
    };
    let two = Shape {
        inputs: 1,
        outputs: 2,
    };
    let cell = |shape, peer, mixes: &[Mix], systems: &[System], measures: &[Measure]| Cell {
        shape,
        peer,
        mixes: mixes.to_vec(),
        systems: systems.to_vec(),
        measures: measures.to_vec(),
        rounds: 1,
    };
    let mut cells = Vec::new();
    for part in parts {
        match part {
            Part::Rate => cells.extend(rates(two, &all, &ends, rounds)),
            Part::Shapes => cells.extend(shapes(&ends, rounds.min(2))),
            Part::Latency => cells.push(cell(
                two,
                Peer::Xdp,
                &[short],
                &[AUTO, LOW, System::FluxcapC, System::Mirred],
                &[Measure::Latency],
            )),
            Part::Overload => {
                let systems = if quick {
                    vec![AUTO]
                } else {
                    [&[AUTO], &WAYS[..]].concat()
                };
                cells.push(cell(
                    two,
                    Peer::Xdp,
                    &[short],
                    &systems,
                    &[Measure::Rate, Measure::Overload],
                ));
            }
            Part::Check => {
                for peer in [Peer::Xdp, Peer::Gro, Peer::Plain] {
                    let ways: Vec<System> =
                        WAYS.into_iter().filter(|way| serves(*way, peer)).collect();
                    if peer == Peer::Xdp || !quick {
                        cells.push(cell(two, peer, &[MIXES[3]], &ways, &[Measure::Check]));
                    }
                }
            }
            Part::Idle => cells.push(cell(
                two,
                Peer::Xdp,
                &[short],
                &[AUTO, LOW],
                &[Measure::Idle],
            )),
            Part::Ring => {}
        }
    }
    cells
}

/// Live frames do not reach a plain peer.
fn serves(system: System, peer: Peer) -> bool {
    peer != Peer::Plain || system != System::fluxcap("live")
}

/// The main table: 1 -> 2.
fn rates(two: Shape, all: &[Mix], ends: &[Mix], rounds: usize) -> Vec<Cell> {
    let main = Cell {
        shape: two,
        peer: Peer::Xdp,
        mixes: all.to_vec(),
        // What auto takes here is live.
        systems: [&[AUTO], &WAYS[1..], &[System::FluxcapC, System::Mirred]].concat(),
        measures: vec![Measure::Rate, Measure::Fixed],
        rounds,
    };
    let other = |peer| Cell {
        peer,
        mixes: ends.to_vec(),
        systems: vec![AUTO, System::FluxcapC, System::Mirred],
        rounds: rounds.min(2),
        ..main.clone()
    };
    vec![main.clone(), other(Peer::Gro), other(Peer::Plain)]
}

fn shapes(mixes: &[Mix], rounds: usize) -> Vec<Cell> {
    let shape = |inputs, outputs, systems: &[System]| Cell {
        shape: Shape { inputs, outputs },
        peer: Peer::Xdp,
        mixes: mixes.to_vec(),
        systems: systems.to_vec(),
        measures: vec![Measure::Rate],
        rounds,
    };
    let peers = [System::FluxcapC, System::Mirred];
    vec![
        shape(
            1,
            1,
            &[
                &[AUTO],
                &peers[..],
                &[System::Daemonlogger, System::Tcpbridge],
            ]
            .concat(),
        ),
        shape(1, 4, &[&[AUTO, ONE_EACH], &peers[..]].concat()),
        shape(2, 1, &[&[AUTO], &peers[..]].concat()),
    ]
}
