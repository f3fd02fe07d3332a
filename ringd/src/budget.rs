//! How much memory rings may take.
//!
//! The pages of a ring belong to nobody and are never reclaimed: what was given to rings is gone for everyone else. So
//! there is a total for all of them. Whether the machine has the memory at this moment is looked at when a ring is made.

use crate::args::MemoryBudget;
use anyhow::Context;
use fluxcap_service::{Refusal, format_size};
use std::fs;

/// The memory that all rings together may take, in bytes.
#[derive(Debug)]
pub(crate) struct Budget(u64);

/// A need for memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    /// The ring it is for.
    pub(crate) ring: &'a str,
    /// All bytes that the ring will take.
    pub(crate) footprint: u64,
    /// Bytes that the other rings take.
    pub(crate) others: u64,
}

impl Budget {
    /// A percentage is of what the machine has.
    pub(crate) fn new(budget: MemoryBudget) -> anyhow::Result<Budget> {
        let percent = match budget {
            MemoryBudget::Bytes(bytes) => return Ok(Budget(bytes)),
            MemoryBudget::Percent(percent) => percent,
        };
        let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let total = total_memory(&meminfo)
            .context("no MemTotal in /proc/meminfo; give --memory-budget as a size")?;
        Ok(Budget(total / 100 * percent))
    }

    /// Bytes that are left beside so many.
    pub(crate) fn left(&self, taken: u64) -> u64 {
        self.0.saturating_sub(taken)
    }

    /// Refuses what goes beyond the budget, with numbers and what to do.
    pub(crate) fn check(&self, need: Need<'_>) -> Result<(), Refusal> {
        let left = self.0.saturating_sub(need.others);
        if need.footprint <= left {
            return Ok(());
        }
        Err(Refusal::Exhausted(format!(
            "ring {} needs {}, but {} is left: the other rings take {} of the memory budget of {}; delete or shrink a \
             ring, ask for less, or start ringd with a larger --memory-budget",
            need.ring,
            format_size(need.footprint),
            format_size(left),
            format_size(need.others),
            format_size(self.0),
        )))
    }
}

/// MemTotal in bytes from the text of /proc/meminfo, see proc_meminfo(5).
fn total_memory(meminfo: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = 1 << 30;

    fn need(footprint: u64, others: u64) -> Need<'static> {
        Need {
            ring: "cisco",
            footprint,
            others,
        }
    }

    #[test]
    fn the_sum_of_all_rings_stays_within_the_budget() {
        let budget = Budget(4 * G);
        budget.check(need(G, 3 * G)).expect("exactly full");
        let refusal = budget
            .check(need(G + 1, 3 * G))
            .expect_err("one byte over")
            .to_string();
        for part in [
            "cisco",
            "1 GiB is left",
            "3 GiB of the memory budget of 4 GiB",
            "--memory-budget",
        ] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert!(
            budget.check(need(1, 5 * G)).is_err(),
            "already over the budget"
        );
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            total_memory("MemFree: 1 kB\nMemTotal:       24683316 kB\n"),
            Some(24_683_316 * 1024)
        );
        for text in [
            "",
            "MemTotal: x kB",
            "MemTotal: 1",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(total_memory(text), None, "{text}");
        }
        assert!(Budget::new(MemoryBudget::Percent(50)).expect("budget").0 > 0);
    }
}
