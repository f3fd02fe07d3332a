//! How much memory a new ring may take.
//!
//! Pages of a ring cannot be given back by the kernel, so running short later would kill
//! somebody. The answer is therefore asked for before the first page is touched.

use std::path::Path;

use crate::error::{Error, IoContext};
use crate::name::Backing;

/// Bytes that a ring in `place` may occupy now: the least of what the machine, the control group,
/// the file system and `limit` allow.
pub(crate) fn available(place: &Path, limit: Option<u64>) -> Result<u64, Error> {
    let stat = rustix::fs::statfs(place).at("examine the file system of", place)?;
    let backing = Backing::from_magic(stat.f_type);
    let mut least = limit.unwrap_or(u64::MAX);
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    if backing == Backing::Hugetlbfs {
        least = least.min(free_huge_pages(block)?.saturating_mul(block));
    } else {
        let free = meminfo("MemAvailable")?;
        // A tenth stays free for everybody else.
        least = least.min(free - free / 10);
        if let Some(group) = control_group() {
            least = least.min(group);
        }
    }
    // ramfs has no limit of its own and says so by zero blocks.
    if stat.f_blocks != 0 && backing != Backing::Hugetlbfs {
        least = least.min(stat.f_bavail.saturating_mul(block));
    }
    Ok(least)
}

/// A value of proc_meminfo(5) in bytes.
fn meminfo(field: &str) -> Result<u64, Error> {
    let path = Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).at("read", path)?;
    let value = text.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix(':')?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    value
        .map(|kib| kib.saturating_mul(1024))
        .ok_or(std::io::ErrorKind::InvalidData)
        .at("find MemAvailable in", path)
}

/// Huge pages of that size which nobody uses or has reserved.
fn free_huge_pages(size: u64) -> Result<u64, Error> {
    let dir = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size / 1024);
    let read = |file: &str| {
        let path = Path::new(&dir).join(file);
        let text = std::fs::read_to_string(&path).at("read", &path)?;
        text.trim()
            .parse::<u64>()
            .map_err(|_| std::io::ErrorKind::InvalidData)
            .at("parse", &path)
    };
    Ok(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?))
}

/// What the control group of this process has left, when it has a limit: cgroups(7), version 1 or 2.
fn control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            let (root, limit, usage) = if controllers.is_empty() {
                ("/sys/fs/cgroup", "memory.max", "memory.current")
            } else if controllers.split(',').any(|c| c == "memory") {
                (
                    "/sys/fs/cgroup/memory",
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                )
            } else {
                return None;
            };
            let number = |file: &str| {
                // In a container the group is the root of what can be seen.
                let own = Path::new(root).join(path).join(file);
                let text = std::fs::read_to_string(own)
                    .or_else(|_| std::fs::read_to_string(Path::new(root).join(file)));
                text.ok()?.trim().parse::<u64>().ok()
            };
            Some(number(limit)?.saturating_sub(number(usage)?))
        })
        .min()
}
