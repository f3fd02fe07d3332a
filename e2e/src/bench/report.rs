//! The results as files: bench.json, bench.md, cpu.svg, rate.svg.

mod replication;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::bench::frame::MIXES;
use crate::bench::plan::FIXED_RATE;
use crate::bench::plot::{Line, chart};
use crate::bench::production::ALONE;
use crate::bench::results::{Case, Results, Summary, figure};
use crate::bench::run::{SOAK_SHARE, short};
use crate::bench::targets::verdicts;
use crate::bench::tunnel::LOOP;

/// What others are compared with, the first that was measured.
const REFERENCES: [&str; 3] = ["fluxcap 3.2", "daemonlogger", "tc mirred"];

/// Writes all files into a folder, which is made, and returns the text.
///
/// # Errors
/// When a file cannot be written.
pub fn write(results: &Results, folder: &Path) -> Result<String> {
    fs::create_dir_all(folder)?;
    let text = markdown(results);
    fs::write(
        folder.join("bench.json"),
        serde_json::to_string_pretty(results)?,
    )?;
    fs::write(folder.join("bench.md"), &text)?;
    let kind = "1 input, 2 outputs, XDP peers";
    for (file, title, unit, name) in [
        ("cpu.svg", "CPU per frame", "ns", figure::CPU),
        (
            "rate.svg",
            "Highest rate without loss",
            "frames/s",
            figure::RATE,
        ),
    ] {
        let places = MIXES.map(|mix| mix.name);
        // A mix is not a size among others.
        let sizes = MIXES.iter().filter(|mix| mix.lengths.len() == 1).count();
        let title = format!("{title}: {kind}");
        let svg = chart(&title, unit, &places, sizes, &lines(results, name));
        fs::write(folder.join(file), svg)?;
    }
    Ok(text)
}

/// Whether nothing of fluxcap failed, no frame was harmed, and, when asked to be strict, no target missed.
#[must_use]
pub fn is_well(results: &Results, strict: bool) -> bool {
    let own = results.samples.iter().filter(|sample| {
        sample.case.system.starts_with("fluxcap ") && sample.case.system != REFERENCES[0]
    });
    let harmed = [
        figure::BAD,
        figure::CHECK_LOST,
        figure::FAULTS,
        figure::SOAK_LOST,
    ];
    let is_good = |sample: &super::results::Sample| {
        let none = |name: &&str| sample.figures.get(*name).is_none_or(|count| *count == 0.0);
        sample.error.is_none() && harmed.iter().all(none)
    };
    let missed = verdicts(results)
        .iter()
        .any(|verdict| verdict.met == Some(false));
    own.into_iter().all(is_good) && !(strict && missed)
}

/// Runs the ring's own benchmark and returns its last table, which puts the ring in proportion to memcpy.
///
/// # Errors
/// When it fails.
pub fn ring(program: &Path) -> Result<String> {
    eprintln!("the ring alone, against memcpy");
    // The name matches no group, so only the table at the end is made.
    let output = Command::new(program)
        .args(["--bench", "no-such-group"])
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} ended with {}", program.display(), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let table = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("size"));
    Ok(table.collect::<Vec<_>>().join("\n"))
}

/// Lines of a chart: each system over all sizes.
fn lines(results: &Results, name: &str) -> Vec<Line> {
    let cases = results.cases_with(name);
    let here = cases
        .iter()
        .filter(|case| case.shape == "1->2" && case.peer == "xdp");
    let systems: BTreeSet<&Case> = here.collect();
    let mut names: Vec<String> = systems.iter().map(|case| case.system.clone()).collect();
    names.dedup();
    names.sort();
    names.dedup();
    let line = |system: String| Line {
        points: MIXES
            .iter()
            .map(|mix| results.summary(&place("xdp", mix.name, &system), name))
            .collect(),
        name: system,
    };
    names.into_iter().map(line).collect()
}

fn place(peer: &str, size: &str, system: &str) -> Case {
    Case {
        shape: "1->2".to_owned(),
        peer: peer.to_owned(),
        size: size.to_owned(),
        system: system.to_owned(),
    }
}

fn markdown(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "# fluxcap {}: benchmark\n\n{} CPUs ({}), Linux {}, {:.0} GB of memory; {:.0} s; arguments: `{}`\n\n",
        results.version,
        machine.cpus,
        machine.model,
        machine.kernel,
        bytes_of(machine.memory) / 1e9,
        results.took,
        results.arguments.join(" ")
    );
    for (system, reason) in &results.missing {
        let _ = writeln!(text, "Not measured: {system} ({reason}).");
    }
    text += &disturbance(results);
    text += &targets(results);
    text += &replication::rates(results);
    text += &tunnels(results);
    text += &production(results);
    text += &replication::latencies(results);
    text += &replication::overloads(results);
    text += &others(results);
    text += &failures(results);
    text + &method()
}

/// A warning when the machine was not the bench's alone.
fn disturbance(results: &Results) -> String {
    /// Of a CPU: what a quiet machine does.
    const QUIET: f64 = 0.05;
    let shares = results
        .samples
        .iter()
        .filter_map(|sample| sample.figures.get(figure::OTHERS).copied());
    match Summary::of(shares.collect()) {
        Some(summary) if summary.most > QUIET => format!(
            "\n**Other processes kept {:.2} CPUs busy meanwhile (median of all turns; at most {:.2}).** Their time is taken off CPU figures, but rates and latencies \
            are worse for it.\n",
            summary.median, summary.most
        ),
        _ => String::new(),
    }
}

fn targets(results: &Results) -> String {
    let verdicts = verdicts(results);
    let measured = verdicts.iter().filter_map(|verdict| {
        let met = if verdict.met? { "met" } else { "**missed**" };
        Some(vec![
            verdict.what.clone(),
            verdict.size.clone(),
            verdict.wanted.clone(),
            verdict.measured.clone()?,
            met.to_owned(),
        ])
    });
    let rows: Vec<_> = measured.collect();
    let without = match verdicts.len() - rows.len() {
        0 => String::new(),
        count => format!(" {count} more were not measured in this run."),
    };
    section(
        "Targets",
        &format!("All of 1 -> 2, but for tunnels.{without}"),
        &["what", "size", "target", "measured", ""],
        rows,
    )
}

/// CPU of tunnels, and what that is of the loop in the same place.
fn tunnels(results: &Results) -> String {
    let cases = results.cases_with(figure::CPU_TUNNEL);
    let mut cases: Vec<&Case> = cases.iter().collect();
    cases.sort_by_key(|case| (&case.shape, &case.peer, case.size.parse::<u32>().ok()));
    let rows = cases.iter().map(|case| {
        let own = results.summary(case, figure::CPU_TUNNEL);
        let ratio = own
            .zip(results.of_other(case, LOOP, figure::CPU_TUNNEL))
            .map(|(own, of_loop)| format!("{:.2}", own.median / of_loop));
        vec![
            case.shape.clone(),
            case.peer.clone(),
            case.size.clone(),
            case.system.clone(),
            own.map_or(String::new(), |own| ranged(own, 1.0)),
            ratio.unwrap_or_default(),
        ]
    });
    section(
        "Tunnels",
        &format!(
            "At {} kpps, each frame of another flow than the one before. `{LOOP}` is a loop that sends packets of the same length, made beforehand, \
            by one sendto(2) each on a raw socket.",
            FIXED_RATE / 1e3
        ),
        &[
            "tunnel",
            "peers",
            "size",
            "system",
            "CPU ns/frame",
            "of the loop",
        ],
        rows.collect(),
    )
}

/// What mirrors cost those whose traffic they copy.
fn production(results: &Results) -> String {
    let cases = results.cases_with(figure::CPU_PRODUCTION);
    let alone = |case: &Case, name: &str| results.of_other(case, ALONE, name);
    let rows = cases.iter().map(|case| {
        let get = |name: &str| results.summary(case, name);
        let (cpu, rate) = (get(figure::CPU_PRODUCTION), get(figure::RATE_PRODUCTION));
        let more = cpu.zip(alone(case, figure::CPU_PRODUCTION));
        let share = rate.zip(alone(case, figure::RATE_PRODUCTION));
        vec![
            case.system.clone(),
            cpu.map_or(String::new(), |cpu| ranged(cpu, 1.0)),
            more.map_or(String::new(), |(cpu, alone)| {
                format!("{:+.0}", cpu.median - alone)
            }),
            rate.map_or(String::new(), |rate| ranged(rate, 1e3)),
            share.map_or(String::new(), |(rate, alone)| {
                format!("{:.2}", rate.median / alone)
            }),
        ]
    });
    section(
        "What mirrors cost those whose traffic they copy",
        &format!(
            "64 B, UDP in IPv4, 64 flows, through a bridge with a mirror at its input (ingress) or its output (egress). CPU of the whole machine for each frame at {} kpps, \
            the source and what the collector's end does included; what gets through when more is offered. `to nothing`: a rule with networks, \
            ports and a protocol that selects no frame.",
            FIXED_RATE / 1e3
        ),
        &[
            "mirror",
            "CPU ns/frame",
            "more than none",
            "kpps through",
            "of none",
        ],
        rows.collect(),
    )
}

/// A median, and the range when there were several rounds.
fn ranged(summary: Summary, scale: f64) -> String {
    let [median, least, most] =
        [summary.median, summary.least, summary.most].map(|number| number / scale);
    if least < most {
        format!("{median:.0} ({least:.0} to {most:.0})")
    } else {
        format!("{median:.0}")
    }
}

fn others(results: &Results) -> String {
    let mut rows = Vec::new();
    for case in results.cases_with(figure::CHECKED) {
        let get = |name: &str| results.median(&case, name).unwrap_or(f64::NAN);
        rows.push(vec![
            format!("{}, {} peers", case.system, case.peer),
            format!(
                "every byte of {} frames at all outputs",
                short(get(figure::CHECKED))
            ),
            format!(
                "{} bad, {} lost",
                short(get(figure::BAD)),
                short(get(figure::CHECK_LOST))
            ),
        ]);
    }
    for case in results.cases_with(figure::IDLE) {
        let share = results.median(&case, figure::IDLE).unwrap_or(f64::NAN);
        rows.push(vec![
            case.system.clone(),
            "busiest idle daemon".to_owned(),
            format!("{:.2} % of a CPU", share * 100.0),
        ]);
    }
    for case in results.cases_with(figure::SOAKED) {
        let get = |name: &str| results.median(&case, name).unwrap_or(f64::NAN);
        rows.push(vec![
            case.system.clone(),
            format!(
                "soak at {:.0} % of the rate without loss, {} frames",
                SOAK_SHARE * 100.0,
                short(get(figure::SOAKED))
            ),
            format!(
                "{} lost, {} harmed; memory {:.1} MB after a tenth, at most {:.1} MB later",
                short(get(figure::SOAK_LOST)),
                short(get(figure::FAULTS)),
                get(figure::SOAK_MEMORY_FIRST) / 1e6,
                get(figure::SOAK_MEMORY_MOST) / 1e6
            ),
        ]);
    }
    let mut text = section("Also", "", &["system", "what", "result"], rows);
    if let Some(ring) = &results.ring {
        let _ = write!(text, "\n## The ring alone\n\n```\n{ring}\n```\n");
    }
    text
}

fn failures(results: &Results) -> String {
    let failed = results
        .samples
        .iter()
        .filter_map(|sample| Some((sample, sample.error.as_ref()?)));
    let rows = failed.map(|(sample, error)| {
        let case = &sample.case;
        let reason = error.lines().next().unwrap_or_default();
        let reason: String = reason.chars().filter(|c| *c != '|').take(160).collect();
        vec![
            format!("{} {} {}", case.shape, case.peer, case.size),
            case.system.clone(),
            reason,
        ]
    });
    section(
        "Failed",
        "",
        &["where", "system", "why"],
        failed_rows(rows.collect()),
    )
}

/// Only once what failed in the same way in each round.
fn failed_rows(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let unique: BTreeSet<Vec<String>> = rows.into_iter().collect();
    unique.into_iter().collect()
}

fn method() -> String {
    "\n## How it was measured\n\n\
    - Sizes: 64 and 512 count the FCS, which a veth does not have (60 and 508 bytes there); 1514 is the longest frame of an MTU of 1500; IMIX is 7 x 60, 4 x 590, 1 x 1514.\n\
    - The source sends BPF live frames in bursts of the same size every 200 µs, or single frames, and leaves at least a twentieth of its CPU to others; the input's end of the wire makes a socket buffer of each (GRO on, nothing to merge).\n\
    - Peers: `xdp` is an interface whose sensor is a native XDP program; `prepared` is what `fluxctl output prepare` makes of it, for sensors on packet sockets: an XDP program \
    that passes everything, and no GRO; `gro` has GRO on, and would join the frames of a TCP flow (these have none); `plain` has none of this. A small eBPF program at each far end looks at number, order, duplicates, a sum over the \
    frame's fields, and latency, and drops the frame.\n\
    - Rate without loss: RFC 2544 section 26.1, by bisection; a rate holds when every frame arrives at every output, and the last one no later than a tenth of the trial after the end, what the system \
    always holds back apart; that delay counts as time. A trial that loses frames is made again once, since other guests of the machine can be the cause. `>=`: the source could not offer more.\n\
    - CPU per frame: time that all CPUs of the machine are not idle (/proc/stat) nor with processes of others, per input frame, less the same with the same load and no system. It holds capture, copying, sending, the veth \
    and what the far end does; not the source and the way to the input's socket buffer.\n\
    - CPU from the wire on: the same, less the same load dropped by an XDP program at the input. It holds the making of the input's socket buffer, which replication \
    in the kernel spares.\n\
    - Tunnels: CPU per frame as above. Taken off is what the same load costs without the tunnel: frames published in a ring that nobody reads, a loop that \
    sends nothing, packets that arrive for another host. The sent side holds reading the ring, encapsulation, sending, the veth and the far end's program, which counts \
    packets and bytes; the received side holds the host's IP stack, the socket, decapsulation and writing the ring.\n\
    - `pinned`: capture and transmit have the last CPUs of the machine and run before all else there, the sources included (`--cpu`, `--priority 20`; the sources have 10).\n\
    - Memory: PSS of all processes, after the trial. Medians of all rounds, ranges in brackets; systems take turns within a round.\n"
        .to_owned()
}

/// A heading, a sentence and a table; nothing when the table is empty.
fn section(heading: &str, sentence: &str, columns: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("\n## {heading}\n\n");
    if !sentence.is_empty() {
        let _ = writeln!(text, "{sentence}\n");
    }
    let _ = writeln!(text, "| {} |", columns.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a size to show")]
fn bytes_of(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::results;

    #[test]
    fn a_report_shows_medians_ranges_and_ratios() {
        let text = markdown(&results(&[
            ("fluxcap auto", "rate", 1_000_000.0),
            ("fluxcap auto", "rate", 1_200_000.0),
            ("fluxcap 3.2", "rate", 220_000.0),
            ("fluxcap auto", "cpu", 500.0),
            ("fluxcap 3.2", "cpu", 5_000.0),
        ]));
        assert!(
            text.contains("| 64 | fluxcap auto | 1100 (1000 to 1200) | 5.00 | 500 | 0.10 |"),
            "{text}"
        );
        assert!(
            text.contains(
                "| CPU per frame, XDP peers | 64 | <= 0.25 x fluxcap 3.2 | 0.10 x | met |"
            ),
            "{text}"
        );
        assert!(!text.contains("## Failed"));
    }

    #[test]
    fn harm_and_failure_are_not_well() {
        assert!(is_well(
            &results(&[("fluxcap auto", figure::BAD, 0.0)]),
            true
        ));
        assert!(!is_well(
            &results(&[("fluxcap auto", figure::BAD, 1.0)]),
            false
        ));
        let missed = results(&[("fluxcap auto", figure::IDLE, 0.5)]);
        assert!(is_well(&missed, false) && !is_well(&missed, true));
        assert!(is_well(
            &results(&[("fluxcap 3.2", figure::FAULTS, 3.0)]),
            false
        ));
    }
}
