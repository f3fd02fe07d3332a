//! The benchmark; `deploy/bench` builds what it needs and runs it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use fluxcap_e2e::bench::machine::Machine;
use fluxcap_e2e::bench::options::Options;
use fluxcap_e2e::bench::plan::Part;
use fluxcap_e2e::bench::production;
use fluxcap_e2e::bench::report;
use fluxcap_e2e::bench::results::Results;
use fluxcap_e2e::bench::run::Runner;
use fluxcap_e2e::bench::tunnel;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports. Whether all went well.
fn run(options: &Options) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("run this as root: it makes network namespaces");
    }
    let begin = Instant::now();
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut cells = options.cells();
    let mut missing = BTreeMap::new();
    for cell in &mut cells {
        let shape = cell.shape;
        cell.systems.retain(|system| match system.missing() {
            Some(reason) => {
                missing.insert(system.to_string(), reason);
                false
            }
            None => system.can(shape),
        });
    }
    for (system, reason) in &missing {
        eprintln!("without {system}: {reason}");
    }
    let mut runner = Runner::new(options.effort());
    for cell in &cells {
        runner.cell(cell);
    }
    for cell in options.tunnels() {
        tunnel::measure(&cell, options.effort().fixed, &mut runner.samples);
    }
    let rounds = options.production_rounds();
    if rounds > 0 {
        production::measure(rounds, options.effort().fixed, &mut runner.samples);
    }
    let ring = match &options.ring_bench {
        Some(program) if options.wants(Part::Ring) => Some(report::ring(program)?),
        _ => None,
    };
    let results = Results {
        version: env!("CARGO_PKG_VERSION"),
        began,
        took: begin.elapsed().as_secs_f64(),
        arguments: std::env::args().skip(1).collect(),
        machine: Machine::this(),
        missing,
        samples: runner.samples,
        ring,
    };
    let text = report::write(&results, &options.out)
        .with_context(|| format!("cannot write to {}", options.out.display()))?;
    println!("{text}");
    eprintln!("written to {}", options.out.display());
    Ok(report::is_well(&results, options.strict))
}
