//! What the machine and single processes have used.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Units of /proc/stat per second; USER_HZ is 100 on all platforms that Linux runs on today.
const USER_HZ: u64 = 100;

/// Time that all CPUs together have been busy since the machine was started: everything but idle, waiting for disks, and time stolen by
/// other guests of the host. Exact to 10 ms.
///
/// # Errors
/// When /proc/stat cannot be read.
pub fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let uptime = Duration::from_nanos(super::source::now_ns());
    parse_busy(&stat, uptime).context("understand /proc/stat")
}

/// The columns of work are counted by timer ticks, which work that follows timers escapes; those of idleness by the clock. So what is
/// not idle is work.
fn parse_busy(stat: &str, uptime: Duration) -> Option<Duration> {
    let cpus = stat
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    let mut columns = stat.lines().next()?.split_ascii_whitespace().skip(1);
    let columns: Vec<u64> = columns
        .by_ref()
        .map_while(|text| text.parse().ok())
        .collect();
    let (idle, iowait, steal) = (columns.get(3)?, columns.get(4)?, columns.get(7)?);
    let away = Duration::from_millis((idle + iowait + steal) * 1000 / USER_HZ);
    Some((uptime * u32::try_from(cpus).ok()?).saturating_sub(away))
}

/// CPU time of the threads of a process, to the nanosecond.
#[must_use]
pub fn cpu_of(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let times = threads.filter_map(|thread| -> Option<u64> {
        let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse().ok()
    });
    Some(Duration::from_nanos(times.sum()))
}

/// Memory of a process in bytes, what it shares with others divided among them (PSS).
#[must_use]
pub fn memory_of(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// What the figures were measured on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Their name.
    pub model: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Bytes of memory.
    pub memory: u64,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.trim_end_matches("kB").trim().parse::<u64>();
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            model: after(&read("/proc/cpuinfo"), "model name"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory: memory.unwrap_or(0) << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_left_of_the_clock() {
        let stat = "cpu  1 2 3 500 50 7 8 50 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n";
        let busy = parse_busy(stat, Duration::from_secs(10));
        assert_eq!(busy, Some(Duration::from_secs(14)));
    }

    #[test]
    fn this_process_has_memory_and_a_machine() {
        let own = std::process::id();
        assert!(memory_of(own).is_some_and(|bytes| bytes > 100_000));
        assert!(cpu_of(own).is_some() && busy().is_ok());
        assert!(Machine::this().cpus > 0 && Machine::this().memory > 0);
    }
}
