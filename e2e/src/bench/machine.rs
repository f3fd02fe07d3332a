//! What the machine and single processes have used.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Units of /proc/stat per second; USER_HZ is 100 on all platforms that Linux runs on today.
const USER_HZ: u64 = 100;

/// Time that all CPUs together have been busy since the machine was started: everything but idle, waiting for disks, time stolen by
/// other guests of the host, and the processes of others. Exact to 10 ms.
///
/// # Errors
/// When /proc cannot be read.
pub fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let uptime = Duration::from_nanos(super::source::now_ns());
    let busy = parse_busy(&stat, uptime).context("understand /proc/stat")?;
    Ok(busy.saturating_sub(others()?))
}

/// CPU time of all processes but this one, its children, and threads of the kernel; ended ones are counted with those that
/// waited for them.
///
/// # Errors
/// When /proc cannot be read.
pub fn others() -> Result<Duration> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").context("read /proc")?.flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let stats = names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let others = stats
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|stat| Process::parse(&stat))
        .filter(|process| process.pid != own && process.parent != own && !process.is_kernel);
    let ticks: u64 = others.map(|process| process.ticks).sum();
    Ok(Duration::from_millis(ticks * 1000 / USER_HZ))
}

/// A process in `/proc/PID/stat`, proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    is_kernel: bool,
    /// With the children that it has waited for.
    ticks: u64,
}

impl Process {
    /// PF_KTHREAD of the kernel's `linux/sched.h`.
    const KERNEL: u32 = 0x0020_0000;

    fn parse(stat: &str) -> Option<Process> {
        let (head, tail) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        let flags: u32 = fields.get(6)?.parse().ok()?;
        let ticks = fields
            .get(11..15)?
            .iter()
            .map(|field| field.parse::<u64>().unwrap_or(0));
        Some(Process {
            pid: head.split(' ').next()?.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            is_kernel: flags & Process::KERNEL != 0,
            ticks: ticks.sum(),
        })
    }
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
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a) b (c)) S 7 42 42 0 -1 2097152 1 2 3 4 10 20 30 40 20 0 1 0";
        let process = Process {
            pid: 42,
            parent: 7,
            is_kernel: true,
            ticks: 100,
        };
        assert_eq!(Process::parse(stat), Some(process));
        assert_eq!(Process::parse("42 (cut off) S 7"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_machine() {
        let own = std::process::id();
        assert!(memory_of(own).is_some_and(|bytes| bytes > 100_000));
        assert!(cpu_of(own).is_some() && busy().is_ok());
        assert!(Machine::this().cpus > 0 && Machine::this().memory > 0);
    }
}
