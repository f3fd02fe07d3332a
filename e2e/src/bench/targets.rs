//! What the project promises, and whether it was kept in this run.

use crate::bench::results::{Case, Results, figure};
use crate::bench::run::short;
use crate::bench::tunnel::LOOP;

/// Fluxcap with its defaults.
const AUTO: &str = "fluxcap auto";
/// The tool that it is to take the place of.
const C: &str = "fluxcap 3.2";
/// Replication in the kernel.
const MIRROR: &str = "fluxcap mirror xdp";
const MIRRED: &str = "tc mirred";

/// On which side of a bound a figure has to be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};

impl Bound {
    fn holds(self, number: f64) -> bool {
        match self {
            AtMost(most) => number <= most,
            AtLeast(least) => number >= least,
        }
    }
}

/// How a figure is written.
#[derive(Clone, Copy, Debug)]
enum Unit {
    /// Of the figure of fluxcap 3.2 in the same place.
    OfC,
    /// Of the figure of tc mirred in the same place.
    OfMirred,
    /// Of the figure of the loop of sendto(2) in the same place.
    OfLoop,
    Milliseconds,
    Megabytes,
    Percent,
    Number,
}

impl Unit {
    fn write(self, number: f64) -> String {
        match self {
            Unit::OfC | Unit::OfMirred | Unit::OfLoop => format!("{number:.2} x"),
            Unit::Milliseconds => format!("{:.2} ms", number / 1e6),
            Unit::Megabytes => format!("{:.0} MB", number / 1e6),
            Unit::Percent => format!("{:.2} %", number * 100.0),
            Unit::Number => short(number),
        }
    }
}

/// One promise.
#[derive(Clone, Copy, Debug)]
struct Target {
    what: &'static str,
    /// Inputs and outputs, or the kind of tunnel.
    shape: &'static str,
    system: &'static str,
    peer: &'static str,
    size: &'static str,
    figure: &'static str,
    bound: Bound,
    unit: Unit,
}

const fn target(
    what: &'static str,
    (system, peer, size): (&'static str, &'static str, &'static str),
    figure: &'static str,
    bound: Bound,
    unit: Unit,
) -> Target {
    Target {
        what,
        shape: "1->2",
        system,
        peer,
        size,
        figure,
        bound,
        unit,
    }
}

/// Tunnels: what, `--io`, of which share of the loop's CPU at most. For each kind and size.
const TUNNELS: [(&str, &str, f64); 2] = [
    ("CPU per frame sent, best way", AUTO, 0.3),
    ("CPU per frame sent, sendmmsg only", "fluxcap sendmmsg", 0.7),
];

fn tunnel_targets() -> impl Iterator<Item = Target> {
    let places = ["gretap", "vxlan", "gue"]
        .into_iter()
        .flat_map(|kind| ["64", "512", "1400"].map(|size| (kind, size)));
    places.flat_map(|(shape, size)| {
        TUNNELS.map(|(what, system, most)| Target {
            shape,
            ..target(
                what,
                (system, "xdp", size),
                figure::CPU_TUNNEL,
                AtMost(most),
                Unit::OfLoop,
            )
        })
    })
}

fn mirror_targets() -> impl Iterator<Item = Target> {
    let what = "CPU per frame, replication in the kernel";
    let of =
        |size, most, unit| target(what, (MIRROR, "xdp", size), figure::CPU, AtMost(most), unit);
    ["64", "512", "1514"]
        .into_iter()
        .flat_map(move |size| [of(size, 0.1, Unit::OfC), of(size, 0.5, Unit::OfMirred)])
}

/// All are of 1 -> 2.
const TARGETS: &[Target] = &[
    target(
        "CPU per frame, XDP peers",
        (AUTO, "xdp", "64"),
        figure::CPU,
        AtMost(0.25),
        Unit::OfC,
    ),
    target(
        "CPU per frame, XDP peers",
        (AUTO, "xdp", "512"),
        figure::CPU,
        AtMost(0.25),
        Unit::OfC,
    ),
    target(
        "CPU per frame, XDP peers",
        (AUTO, "xdp", "1514"),
        figure::CPU,
        AtMost(0.33),
        Unit::OfC,
    ),
    target(
        "rate without loss, XDP peers",
        (AUTO, "xdp", "64"),
        figure::RATE,
        AtLeast(4.0),
        Unit::OfC,
    ),
    target(
        "rate without loss, XDP peers",
        (AUTO, "xdp", "1514"),
        figure::RATE,
        AtLeast(2.6),
        Unit::OfC,
    ),
    target(
        "CPU per frame, GRO peers",
        (AUTO, "gro", "64"),
        figure::CPU,
        AtMost(0.25),
        Unit::OfC,
    ),
    target(
        "CPU per frame, GRO peers",
        (AUTO, "gro", "1514"),
        figure::CPU,
        AtMost(0.33),
        Unit::OfC,
    ),
    target(
        "rate without loss, GRO peers",
        (AUTO, "gro", "64"),
        figure::RATE,
        AtLeast(4.0),
        Unit::OfC,
    ),
    target(
        "rate without loss, GRO peers",
        (AUTO, "gro", "1514"),
        figure::RATE,
        AtLeast(2.6),
        Unit::OfC,
    ),
    target(
        "CPU per frame, plain peers",
        (AUTO, "plain", "64"),
        figure::CPU,
        AtMost(0.42),
        Unit::OfC,
    ),
    target(
        "CPU per frame, plain peers",
        (AUTO, "plain", "1514"),
        figure::CPU,
        AtMost(0.42),
        Unit::OfC,
    ),
    target(
        "rate without loss, plain peers",
        (AUTO, "plain", "64"),
        figure::RATE,
        AtLeast(2.3),
        Unit::OfC,
    ),
    target(
        "CPU per frame, sendmmsg only",
        ("fluxcap sendmmsg", "xdp", "64"),
        figure::CPU,
        AtMost(0.7),
        Unit::OfC,
    ),
    target(
        "rate without loss, sendmmsg only",
        ("fluxcap sendmmsg", "xdp", "64"),
        figure::RATE,
        AtLeast(1.4),
        Unit::OfC,
    ),
    target(
        "rate without loss, sendmmsg only, a transmit for each output",
        ("fluxcap sendmmsg one-each", "xdp", "64"),
        figure::RATE,
        AtLeast(1.4),
        Unit::OfC,
    ),
    target(
        "latency p99 at 1 kpps",
        (AUTO, "xdp", "64"),
        "latency_1k_p99",
        AtMost(1.2e6),
        Unit::Milliseconds,
    ),
    target(
        "latency p99 at 1 kpps, low",
        ("fluxcap auto low", "xdp", "64"),
        "latency_1k_p99",
        AtMost(0.3e6),
        Unit::Milliseconds,
    ),
    target(
        "memory, 64 MiB ring",
        (AUTO, "xdp", "64"),
        figure::MEMORY,
        AtMost(140e6),
        Unit::Megabytes,
    ),
    target(
        "overload: delivered of the rate without loss",
        (AUTO, "xdp", "64"),
        figure::DELIVERED_SHARE,
        AtLeast(0.85),
        Unit::Percent,
    ),
    target(
        "overload: torn, duplicated, reordered frames",
        (AUTO, "xdp", "64"),
        figure::FAULTS,
        AtMost(0.0),
        Unit::Number,
    ),
    target(
        "overload: the audit closes",
        (AUTO, "xdp", "64"),
        figure::AUDIT,
        AtLeast(1.0),
        Unit::Number,
    ),
    target(
        "overload: frames not accounted for",
        (AUTO, "xdp", "64"),
        figure::UNACCOUNTED,
        AtMost(0.0),
        Unit::Number,
    ),
    target(
        "overload: slowest gRPC answer",
        (AUTO, "xdp", "64"),
        figure::ANSWER,
        AtMost(200e6),
        Unit::Milliseconds,
    ),
    target(
        "overload: slowest end after SIGTERM",
        (AUTO, "xdp", "64"),
        figure::TERM,
        AtMost(1e9),
        Unit::Milliseconds,
    ),
    target(
        "idle daemon, of a CPU",
        (AUTO, "xdp", "64"),
        figure::IDLE,
        AtMost(0.003),
        Unit::Percent,
    ),
];

/// A target and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is promised.
    pub what: String,
    /// Of which size.
    pub size: String,
    /// The bound.
    pub wanted: String,
    /// The figure of this run.
    pub measured: Option<String>,
    /// Whether it keeps to the bound, when there is a figure.
    pub met: Option<bool>,
}

/// All targets.
#[must_use]
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    let targets = TARGETS.iter().copied();
    let targets = targets.chain(mirror_targets()).chain(tunnel_targets());
    let mut verdicts: Vec<Verdict> = targets.map(|target| verdict(results, &target)).collect();
    verdicts.extend(ring_verdicts(results.ring.as_deref().unwrap_or_default()));
    verdicts
}

fn verdict(results: &Results, target: &Target) -> Verdict {
    let case = Case {
        shape: target.shape.to_owned(),
        peer: target.peer.to_owned(),
        size: target.size.to_owned(),
        system: target.system.to_owned(),
    };
    let own = results.median(&case, target.figure);
    let of = |other| {
        let other = results.of_other(&case, other, target.figure);
        own.zip(other).map(|(own, other)| own / other)
    };
    let number = match target.unit {
        Unit::OfC => of(C),
        Unit::OfMirred => of(MIRRED),
        Unit::OfLoop => of(LOOP),
        _ => own,
    };
    let what = match target.unit {
        Unit::OfLoop => format!("{}, {}", target.shape, target.what),
        _ => target.what.to_owned(),
    };
    row(&what, target.size, target.bound, number, target.unit)
}

fn row(what: &str, size: &str, bound: Bound, number: Option<f64>, unit: Unit) -> Verdict {
    let (sign, limit) = match bound {
        AtMost(limit) => ("<=", limit),
        AtLeast(limit) => (">=", limit),
    };
    let of = match unit {
        Unit::OfC => " fluxcap 3.2",
        Unit::OfMirred => " tc mirred",
        Unit::OfLoop => " sendto",
        _ => "",
    };
    Verdict {
        what: what.to_owned(),
        size: size.to_owned(),
        wanted: format!("{sign} {}{of}", unit.write(limit)),
        measured: number.map(|number| unit.write(number)),
        met: number.map(|number| bound.holds(number)),
    }
}

/// Targets of the ring, from the last table of its own benchmark. The last columns are Mpps, ns, GB/s, share of memcpy of the same frames
/// in and out, share of memcpy in memory; the last one is what the target is about.
fn ring_verdicts(table: &str) -> Vec<Verdict> {
    let find = |size: &str, what: &str, column_from_end: usize| {
        let of_size = |line: &&str| line.split_whitespace().next() == Some(size);
        let line = table.lines().filter(of_size).find(|l| l.contains(what))?;
        line.split_whitespace()
            .nth_back(column_from_end)?
            .parse::<f64>()
            .ok()
    };
    let cores = [
        ("one core", "publish+consume"),
        ("two cores", "threads, 1 consumers"),
    ];
    let mut verdicts = Vec::new();
    for (cores, what) in cores {
        let rate = format!("ring, publish + consume, {cores}, Mpps");
        let mpps = find("64", what, 4);
        verdicts.push(row(&rate, "64", AtLeast(60.0), mpps, Unit::Number));
        for size in ["512", "1514"] {
            let bandwidth = format!("ring, {cores}, against memcpy");
            let share = find(size, what, 0);
            verdicts.push(row(&bandwidth, size, AtLeast(0.9), share, Unit::Number));
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::results;

    #[test]
    fn a_ratio_is_judged_only_when_both_figures_are_there() {
        let of = |samples: &[(&str, &str, f64)]| {
            let verdicts = verdicts(&results(samples));
            verdicts
                .into_iter()
                .next()
                .map(|verdict| (verdict.measured, verdict.met))
        };
        assert_eq!(of(&[(AUTO, "cpu", 100.0)]), Some((None, None)));
        let both = |own| of(&[(AUTO, "cpu", own), (C, "cpu", 1000.0)]);
        assert_eq!(both(200.0), Some((Some("0.20 x".to_owned()), Some(true))));
        assert_eq!(both(400.0), Some((Some("0.40 x".to_owned()), Some(false))));
    }

    #[test]
    fn the_table_of_the_ring_is_understood() {
        let table = "  size  Mpps ns/frame GB/s ratio of memory\n     - memcpy of 64 MiB - - 9.0 - 1.00\n\
                     \x20   64 memcpy in and out 90.0 1 2 1.00 3.0\n    64 publish+consume 61.5 16 4 0.7 0.6\n\
                     \x20  512 publish+consume 20 50 9 1.2 0.88\n   512 threads, 1 consumers 30 33 15 0.8 1.2\n";
        let met: Vec<_> = ring_verdicts(table)
            .into_iter()
            .map(|verdict| verdict.met)
            .collect();
        assert_eq!(met, [Some(true), Some(false), None, None, Some(true), None]);
    }
}
