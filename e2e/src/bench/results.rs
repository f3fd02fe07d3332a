//! Figures, as they were measured and as they are summed up.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::bench::machine::Machine;

/// Names of figures. Times are in nanoseconds, sizes in bytes, rates in frames per second, unless the name says otherwise.
pub mod figure {
    /// The highest rate without loss.
    pub const RATE: &str = "rate";
    /// 1 when the sources could not offer more than that.
    pub const SOURCE_LIMIT: &str = "source_limit";
    /// CPU per frame at that rate.
    pub const CPU: &str = "cpu";
    /// CPU per frame at that rate, the making of socket buffers at the input included.
    pub const CPU_WIRE: &str = "cpu_wire";
    /// CPU per frame at the fixed rate.
    pub const CPU_FIXED: &str = "cpu_fixed";
    /// CPU per frame of a tunnel, or of the loop that it is compared with, at the fixed rate.
    pub const CPU_TUNNEL: &str = "cpu_tunnel";
    /// CPU per frame that passes a bridge, of the whole machine, at the fixed rate.
    pub const CPU_PRODUCTION: &str = "cpu_production";
    /// Frames per second that pass a bridge when more are offered.
    pub const RATE_PRODUCTION: &str = "rate_production";
    /// Memory of all processes (PSS).
    pub const MEMORY: &str = "memory";
    /// Share of a CPU that the busiest of idle daemons uses.
    pub const IDLE: &str = "idle_share";
    /// Frames compared byte for byte.
    pub const CHECKED: &str = "checked";
    /// Of these, frames that were not as they were sent.
    pub const BAD: &str = "bad";
    /// Of these, frames that did not arrive.
    pub const CHECK_LOST: &str = "check_lost";
    /// Frames per second offered under overload.
    pub const OFFERED: &str = "overload_offered";
    /// Frames per second delivered then.
    pub const DELIVERED: &str = "overload_delivered";
    /// Delivered under overload, as a share of the highest rate without loss.
    pub const DELIVERED_SHARE: &str = "overload_share";
    /// Frames duplicated, reordered or damaged under overload.
    pub const FAULTS: &str = "overload_faults";
    /// 1 when the audit closes after overload.
    pub const AUDIT: &str = "overload_audit";
    /// Frames of which the daemons tell something else than sources and sinks.
    pub const UNACCOUNTED: &str = "overload_unaccounted";
    /// Slowest answer by gRPC under overload.
    pub const ANSWER: &str = "overload_answer";
    /// Slowest end after SIGTERM under overload.
    pub const TERM: &str = "overload_term";
    /// Frames sent in a soak.
    pub const SOAKED: &str = "soak_frames";
    /// Frames lost in a soak.
    pub const SOAK_LOST: &str = "soak_lost";
    /// Memory after the first tenth of a soak.
    pub const SOAK_MEMORY_FIRST: &str = "soak_memory_first";
    /// Most memory after that.
    pub const SOAK_MEMORY_MOST: &str = "soak_memory_most";
    /// CPUs that were busy with processes that have nothing to do with the bench.
    pub const OTHERS: &str = "others";
    /// Latency that a share of the frames did not exceed: `latency_1k_p99`.
    #[must_use]
    pub fn latency(rate: &str, share: &str) -> String {
        format!("latency_{rate}_{share}")
    }
}

/// What is measured where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Case {
    /// `1->2`.
    pub shape: String,
    /// `xdp`, `prepared`, `gro`, `plain`.
    pub peer: String,
    /// Name of the size.
    pub size: String,
    /// Name of the system.
    pub system: String,
}

/// The figures of one turn of a system.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Of what.
    pub case: Case,
    /// Which turn.
    pub round: usize,
    /// By name.
    pub figures: BTreeMap<String, f64>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Why there are no or fewer figures.
    pub error: Option<String>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Version of the bench.
    pub version: &'static str,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// How long it took, in seconds.
    pub took: f64,
    /// The command line.
    pub arguments: Vec<String>,
    /// On what.
    pub machine: Machine,
    /// Systems that were not there, and why.
    pub missing: BTreeMap<String, String>,
    /// All turns.
    pub samples: Vec<Sample>,
    /// What the ring's own benchmark printed.
    pub ring: Option<String>,
}

/// Median and range of a figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub least: f64,
    /// The highest.
    pub most: f64,
}

impl Summary {
    /// Of these numbers; `None` when there are none.
    #[must_use]
    pub fn of(mut numbers: Vec<f64>) -> Option<Summary> {
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let upper = *numbers.get(middle)?;
        let median = match numbers.len() % 2 {
            0 => f64::midpoint(upper, *numbers.get(middle - 1)?),
            _ => upper,
        };
        Some(Summary {
            median,
            least,
            most,
        })
    }
}

impl Results {
    /// A figure of a case over all rounds.
    #[must_use]
    pub fn summary(&self, case: &Case, figure: &str) -> Option<Summary> {
        let samples = self.samples.iter().filter(|sample| sample.case == *case);
        Summary::of(
            samples
                .filter_map(|sample| sample.figures.get(figure).copied())
                .collect(),
        )
    }

    /// The median of a figure of a case.
    #[must_use]
    pub fn median(&self, case: &Case, figure: &str) -> Option<f64> {
        self.summary(case, figure).map(|summary| summary.median)
    }

    /// All cases that have a figure, sorted.
    #[must_use]
    pub fn cases_with(&self, figure: &str) -> BTreeSet<Case> {
        let samples = self.samples.iter();
        samples
            .filter(|sample| sample.figures.contains_key(figure))
            .map(|sample| sample.case.clone())
            .collect()
    }

    /// The median of a figure of another system in the same place.
    #[must_use]
    pub fn of_other(&self, case: &Case, system: &str, figure: &str) -> Option<f64> {
        let other = Case {
            system: system.to_owned(),
            ..case.clone()
        };
        self.median(&other, figure)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results with these samples: system, figure, number.
    pub(crate) fn results(samples: &[(&str, &str, f64)]) -> Results {
        let sample = |(system, figure, number): &(&str, &str, f64)| Sample {
            case: case(system),
            round: 0,
            figures: BTreeMap::from([((*figure).to_owned(), *number)]),
            notes: Vec::new(),
            error: None,
        };
        Results {
            version: "test",
            began: 0,
            took: 1.0,
            arguments: Vec::new(),
            machine: Machine::this(),
            missing: BTreeMap::new(),
            samples: samples.iter().map(sample).collect(),
            ring: None,
        }
    }

    /// A system in 1 -> 2 with XDP peers at 64 bytes.
    pub(crate) fn case(system: &str) -> Case {
        Case {
            shape: "1->2".to_owned(),
            peer: "xdp".to_owned(),
            size: "64".to_owned(),
            system: system.to_owned(),
        }
    }

    #[test]
    fn a_summary_has_the_middle_and_the_ends() {
        let summary =
            |numbers: &[f64]| Summary::of(numbers.to_vec()).map(|s| (s.median, s.least, s.most));
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(summary(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
    }

    #[test]
    fn rounds_of_a_case_are_summed_up_and_others_are_not() {
        let results = results(&[
            ("a", "rate", 1.0),
            ("a", "rate", 3.0),
            ("b", "rate", 9.0),
            ("a", "cpu", 5.0),
        ]);
        assert_eq!(results.median(&case("a"), "rate"), Some(2.0));
        assert_eq!(results.of_other(&case("a"), "b", "rate"), Some(9.0));
        assert_eq!(results.median(&case("b"), "cpu"), None);
        assert_eq!(results.cases_with("rate").len(), 2);
    }
}
