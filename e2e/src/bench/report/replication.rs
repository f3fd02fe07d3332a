//! What replication can do: rates and CPU, latency, overload.

use std::collections::BTreeSet;

use crate::bench::frame::MIXES;
use crate::bench::plan::{FIXED_RATE, LATENCY_RATES};
use crate::bench::report::{REFERENCES, ranged, section};
use crate::bench::results::{Case, Results, figure};
use crate::bench::run::{OVERLOAD, short};

/// A table for each shape and kind of peer: rate, CPU, and what they are of the reference.
pub(super) fn rates(results: &Results) -> String {
    let mut text = String::new();
    let cases = results.cases_with(figure::RATE);
    let places: BTreeSet<(&str, &str)> = cases
        .iter()
        .map(|case| (&*case.shape, &*case.peer))
        .collect();
    for (shape, peer) in places {
        let mut rows = Vec::new();
        for mix in MIXES {
            let of_size: Vec<&Case> = cases
                .iter()
                .filter(|case| (&*case.shape, &*case.peer, &*case.size) == (shape, peer, mix.name))
                .collect();
            let reference = REFERENCES
                .iter()
                .find(|name| of_size.iter().any(|case| case.system == **name));
            for case in of_size {
                rows.push(rate_row(results, case, reference.copied()));
            }
        }
        text += &section(
            &format!("{shape}, {peer} peers"),
            "",
            &[
                "size",
                "system",
                "kpps without loss",
                "of reference",
                "CPU ns/frame",
                "of reference",
                &format!("CPU ns at {} kpps", FIXED_RATE / 1e3),
                "of reference",
                "CPU from the wire on",
                "of reference",
                "memory MB",
            ],
            rows,
        );
    }
    text
}

fn rate_row(results: &Results, case: &Case, reference: Option<&str>) -> Vec<String> {
    let limited = results
        .median(case, figure::SOURCE_LIMIT)
        .is_some_and(|limited| limited > 0.0);
    let ratio = |name: &str| {
        let other = reference.and_then(|reference| results.of_other(case, reference, name));
        let own = results.median(case, name);
        own.zip(other)
            .map_or(String::new(), |(own, other)| format!("{:.2}", own / other))
    };
    let range = |name: &str, scale: f64| {
        results
            .summary(case, name)
            .map_or(String::new(), |summary| ranged(summary, scale))
    };
    vec![
        case.size.clone(),
        case.system.clone(),
        format!(
            "{}{}",
            if limited { ">= " } else { "" },
            range(figure::RATE, 1e3)
        ),
        ratio(figure::RATE),
        range(figure::CPU, 1.0),
        ratio(figure::CPU),
        range(figure::CPU_FIXED, 1.0),
        ratio(figure::CPU_FIXED),
        range(figure::CPU_WIRE, 1.0),
        ratio(figure::CPU_WIRE),
        results
            .median(case, figure::MEMORY)
            .map_or(String::new(), |bytes| format!("{:.0}", bytes / 1e6)),
    ]
}

/// Percentiles of the latency of each system, at each rate.
pub(super) fn latencies(results: &Results) -> String {
    let cases = results.cases_with(&figure::latency(LATENCY_RATES[0].1, "p50"));
    let rows = cases.iter().map(|case| {
        let mut row = vec![case.system.clone()];
        for (_, rate) in LATENCY_RATES {
            for share in ["p50", "p99", "p99.9"] {
                let ns = results.median(case, &figure::latency(rate, share));
                row.push(ns.map_or(String::new(), |ns| format!("{:.0}", ns / 1e3)));
            }
        }
        row
    });
    section(
        "Latency, µs",
        "1 -> 2, XDP peers, 64 B, from the source's clock to the sink's program; at 100 kpps in bursts of 20.",
        &[
            "system",
            "1 kpps p50",
            "p99",
            "p99.9",
            "100 kpps p50",
            "p99",
            "p99.9",
        ],
        rows.collect(),
    )
}

/// What each system does when it is offered more than it can carry.
pub(super) fn overloads(results: &Results) -> String {
    let cases = results.cases_with(figure::DELIVERED);
    let rows = cases.iter().map(|case| {
        let get = |name: &str| results.median(case, name).unwrap_or(f64::NAN);
        vec![
            case.system.clone(),
            short(get(figure::RATE)),
            short(get(figure::OFFERED)),
            short(get(figure::DELIVERED)),
            format!("{:.2}", get(figure::DELIVERED_SHARE)),
            short(get(figure::FAULTS)),
            short(get(figure::UNACCOUNTED)),
            if get(figure::AUDIT) > 0.0 {
                "closes"
            } else {
                "**does not close**"
            }
            .to_owned(),
            format!("{:.0}", get(figure::ANSWER) / 1e6),
            format!("{:.0}", get(figure::TERM) / 1e6),
        ]
    });
    section(
        "Overload",
        &format!(
            "Offered {OVERLOAD} times the rate without loss, or what the source can do; 1 -> 2, XDP peers, 64 B."
        ),
        &[
            "system",
            "without loss",
            "offered",
            "delivered",
            "share",
            "harmed frames",
            "unaccounted",
            "audit",
            "slowest gRPC, ms",
            "slowest SIGTERM, ms",
        ],
        rows.collect(),
    )
}
