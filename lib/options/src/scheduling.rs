//! How the threads that move frames are run: the same for captures and transmits.

use crate::given::Given;
use crate::{SpecError, UsageError};
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{Latency, Scheduling};
use fluxcap_service::parse_duration;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Highest number of a CPU: what `cpu_set_t` of sched_setaffinity(2) holds.
const MAX_CPU: u32 = 1023;
/// Highest priority under `SCHED_FIFO`, sched(7).
const MAX_PRIORITY: u32 = 99;
/// Longest time to look for work before a sleep, in microseconds.
const MAX_SPIN_US: u32 = 1000;

/// What the threads that move frames may take, and what for.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Threads that move the frames")]
pub struct SchedulingArgs {
    /// Many frames at a time (normal), or each as soon as it is there, at the price of CPU time (low) [default: normal]
    #[arg(long, value_name = "low|normal", hide_possible_values = true)]
    pub latency: Option<LatencyArg>,

    /// Threads.
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// What the threads may take.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Threads that move the frames")]
pub struct ThreadArgs {
    /// CPUs to run on, in turn when there are several threads, for instance 0,2-3; '' clears [default: any]
    #[arg(long, value_name = "LIST")]
    pub cpu: Option<CpuList>,

    /// Real-time priority (SCHED_FIFO), 1 to 99; needs CAP_SYS_NICE or RLIMIT_RTPRIO; 0 clears
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_PRIORITY)))]
    pub priority: Option<u32>,

    /// How long to look for work before sleeping, at most 1ms; 0ms is the default
    #[arg(long, value_name = "TIME", value_parser = parse_spin)]
    pub spin: Option<u32>,
}

/// `--latency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LatencyArg {
    /// Each frame at once.
    Low,
    /// Many at a time.
    Normal,
}

impl From<LatencyArg> for Latency {
    fn from(arg: LatencyArg) -> Self {
        match arg {
            LatencyArg::Low => Latency::Low,
            LatencyArg::Normal => Latency::Normal,
        }
    }
}

/// CPUs as text: numbers and ranges, `0,2-3`; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(
    /// Their numbers, in the order in which they are given to threads.
    pub Vec<u32>,
);

impl FromStr for CpuList {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = |problem| UsageError::Range {
            option: "--cpu",
            text: format!("'{text}'"),
            problem,
        };
        let number = |digits: &str| {
            digits
                .parse::<u32>()
                .map_err(|_| bad("write numbers and ranges, for instance 0,2-3"))
        };
        let mut cpus = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last > MAX_CPU {
                return Err(bad("CPUs are numbered from 0 to 1023"));
            }
            if first > last {
                return Err(bad("a range goes from the lower number to the higher one"));
            }
            if (first..=last).any(|cpu| cpus.contains(&cpu)) {
                return Err(bad("a CPU is named twice"));
            }
            cpus.extend(first..=last);
        }
        Ok(CpuList(cpus))
    }
}

impl fmt::Display for CpuList {
    /// The shortest text that gives the same list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        for (index, run) in runs.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl SchedulingArgs {
    /// `latency` of a spec.
    #[must_use]
    pub fn to_latency(&self) -> Latency {
        self.latency.map_or(Latency::Unspecified, Latency::from)
    }

    /// `scheduling` of a spec; `None` when none of it was given.
    #[must_use]
    pub fn to_scheduling(&self) -> Option<Scheduling> {
        let mut scheduling = None;
        self.threads.apply(&mut scheduling, &mut Given::default());
        scheduling
    }

    /// Fields of a spec that were given, for an update mask.
    #[must_use]
    pub fn changed_fields(&self) -> Vec<&'static str> {
        let mut given = Given::default();
        let latency = self.latency.map(|_| ());
        given.put("latency", &mut (), latency);
        self.threads.apply(&mut None, &mut given);
        given.0
    }
}

impl ThreadArgs {
    /// Puts what was given into the scheduling of a spec.
    pub(crate) fn apply(&self, scheduling: &mut Option<Scheduling>, given: &mut Given) {
        if *self == ThreadArgs::default() {
            return;
        }
        let into = scheduling.get_or_insert_default();
        let cpus = self.cpu.clone().map(|list| list.0);
        given.put("scheduling.cpus", &mut into.cpus, cpus);
        given.put("scheduling.priority", &mut into.priority, self.priority);
        given.put("scheduling.spin_us", &mut into.spin_us, self.spin);
    }
}

/// Checks the scheduling of a spec. Whether the machine has the CPUs, and the daemon the right to the priority, shows when a
/// thread asks for them.
///
/// # Errors
/// The first field that cannot be used.
pub fn validate_scheduling(scheduling: &Scheduling) -> Result<(), SpecError> {
    let refuse = |field, problem: &str| Err(SpecError::new(field, problem));
    let cpus = &scheduling.cpus;
    if cpus.iter().any(|cpu| *cpu > MAX_CPU) {
        return refuse("scheduling.cpus", "CPUs are numbered from 0 to 1023");
    }
    if (1..cpus.len()).any(|index| cpus[..index].contains(&cpus[index])) {
        return refuse("scheduling.cpus", "a CPU is named twice");
    }
    if scheduling.priority > MAX_PRIORITY {
        return refuse("scheduling.priority", "must be 1 to 99, or 0 for none");
    }
    if scheduling.spin_us > MAX_SPIN_US {
        return refuse("scheduling.spin_us", "must be at most 1000 (1 ms)");
    }
    Ok(())
}

fn parse_spin(text: &str) -> Result<u32, UsageError> {
    let micros = |time: Duration| {
        let us = u32::try_from(time.as_micros()).ok()?;
        (Duration::from_micros(us.into()) == time).then_some(us)
    };
    parse_duration(text)
        .ok()
        .and_then(micros)
        .filter(|us| *us <= MAX_SPIN_US)
        .ok_or_else(|| UsageError::Range {
            option: "--spin",
            text: text.to_owned(),
            problem: "must be a time in whole microseconds, at most 1ms, for instance 50us",
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: SchedulingArgs,
    }

    fn parse(args: &[&str]) -> Result<SchedulingArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_not_given_leave_defaults_to_the_daemon() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.to_latency(), Latency::Unspecified);
        assert_eq!(args.to_scheduling(), None);
        assert!(args.changed_fields().is_empty());
    }

    #[test]
    fn every_option_arrives_in_its_field_and_in_the_mask() {
        let args = [
            "--latency",
            "low",
            "--cpu",
            "0,2-3",
            "--priority",
            "10",
            "--spin",
            "50us",
        ];
        let args = parse(&args).unwrap();
        assert_eq!(args.to_latency(), Latency::Low);
        let scheduling = args.to_scheduling().unwrap();
        assert_eq!(scheduling.cpus, [0, 2, 3]);
        assert_eq!((scheduling.priority, scheduling.spin_us), (10, 50));
        assert_eq!(validate_scheduling(&scheduling), Ok(()));
        let mask = [
            "latency",
            "scheduling.cpus",
            "scheduling.priority",
            "scheduling.spin_us",
        ];
        assert_eq!(args.changed_fields(), mask);
    }

    #[test]
    fn nothing_or_zero_clears() {
        let args = parse(&["--cpu", "", "--priority", "0", "--spin", "0ms"]).unwrap();
        assert_eq!(args.to_scheduling(), Some(Scheduling::default()));
        assert_eq!(args.changed_fields().len(), 3);
    }

    #[test]
    fn a_list_of_cpus_is_written_as_it_can_be_read() {
        for text in ["", "0", "1023", "0,2-3", "3,1", "4-6,0-1", "2,1,0"] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(list.to_string(), text);
        }
        assert_eq!("0-2".parse(), Ok(CpuList(vec![0, 1, 2])));
    }

    #[test]
    fn values_without_sense_are_refused_with_what_would_do() {
        for (args, part) in [
            (["--cpu", "a"], "0,2-3"),
            (["--cpu", "1,"], "0,2-3"),
            (["--cpu", "-1"], "0,2-3"),
            (["--cpu", "1-"], "0,2-3"),
            (["--cpu", "0-4294967295"], "0 to 1023"),
            (["--cpu", "3-1"], "lower number"),
            (["--cpu", "0-3,2"], "twice"),
            (["--priority", "100"], "0..=99"),
            (["--spin", "2ms"], "50us"),
            (["--spin", "100ns"], "50us"),
            (["--spin", "1"], "50us"),
            (["--latency", "high"], "normal"),
        ] {
            let (option, value) = (args[0], args[1]);
            let error = parse(&[&format!("{option}={value}")]).unwrap_err();
            assert!(error.contains(part), "{option} {value}: {error}");
        }
    }

    #[test]
    fn a_spec_from_elsewhere_is_held_to_the_same_bounds() {
        let field = |scheduling| validate_scheduling(&scheduling).unwrap_err().field;
        let cpus = |cpus| Scheduling {
            cpus,
            ..Default::default()
        };
        assert_eq!(field(cpus(vec![1024])), "scheduling.cpus");
        assert_eq!(field(cpus(vec![1, 0, 1])), "scheduling.cpus");
        let priority = Scheduling {
            priority: 100,
            ..Default::default()
        };
        assert_eq!(field(priority), "scheduling.priority");
        let spin = Scheduling {
            spin_us: 1001,
            ..Default::default()
        };
        assert_eq!(field(spin), "scheduling.spin_us");
    }
}
