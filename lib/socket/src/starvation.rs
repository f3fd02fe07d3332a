//! A thread that a busy CPU keeps waiting goes to another one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::thread::Affinity;

/// How this thread fares: time run, time waited for a CPU, turns; nanoseconds (Documentation/scheduler/sched-stats.rst).
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";
/// Time between two looks: several turns of threads that share a CPU, each of which waits while the others have theirs.
const LOOK: Duration = Duration::from_millis(10);
/// Thousandths of the time from which on waiting is more than sharing a CPU with another thread.
const STARVED: u128 = 600;
/// Time after a move in which there is no other one: the scheduler has a say, too.
const STAY: Duration = Duration::from_millis(10);
/// The same at most, after moves that did not help.
const LONGEST_STAY: Duration = Duration::from_secs(1);

/// Watches over the thread that made it.
///
/// What runs before all threads without priority (interrupts and softirqs of a network card, real-time threads) can take most of a
/// CPU, and the scheduler leaves a thread there for tenths of a second while another CPU has nothing to do: it balances by the load of
/// threads like this one. A ring is overwritten in that time.
#[derive(Debug)]
pub struct Starvation {
    /// Gone where the kernel has no such file.
    schedstat: Option<File>,
    looked: Instant,
    waited: Duration,
    moved: Option<Instant>,
    /// Thousandths of the time that were waited for the CPU that was left: the other one has to be better.
    left: Option<u128>,
    stay: Duration,
}

impl Starvation {
    /// For the calling thread.
    pub fn watch() -> Starvation {
        let schedstat = File::open(SCHEDSTAT).ok();
        let waited = schedstat.as_ref().and_then(waited).unwrap_or_default();
        Starvation {
            schedstat,
            looked: Instant::now(),
            waited,
            moved: None,
            left: None,
            stay: STAY,
        }
    }

    /// To be called by that thread between two bursts. Has it run elsewhere for the time being when it waited for its CPU half as long again as
    /// it ran; and, where that is no better, leaves that place again and is the more patient. What it may run on stays the same. True when
    /// it was moved.
    pub fn relieve(&mut self) -> bool {
        let Some(file) = &self.schedstat else {
            return false;
        };
        let elapsed = self.looked.elapsed();
        if elapsed < LOOK {
            return false;
        }
        self.looked += elapsed;
        let now = waited(file).unwrap_or(self.waited);
        let waited = now.saturating_sub(std::mem::replace(&mut self.waited, now));
        let share = waited.as_nanos() * 1000 / elapsed.as_nanos().max(1);
        match self.left.take() {
            // All CPUs are busy; between them this thread would have less than it had.
            Some(before) if share >= before => self.stay = (self.stay * 2).min(LONGEST_STAY),
            Some(_) => {
                self.stay = STAY;
                return false;
            }
            None if share < STARVED || self.moved.is_some_and(|at| at.elapsed() < self.stay) => {
                return false;
            }
            None => self.left = Some(share),
        }
        self.moved = Some(Instant::now());
        let moved = Affinity::of_thread().is_ok_and(|all| all.leave_cpu());
        self.left = self.left.filter(|_| moved);
        moved
    }
}

/// The second number of the file.
fn waited(file: &File) -> Option<Duration> {
    let mut text = [0; 96];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..len)?).ok()?;
    let nanos = text.split(' ').nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::{pin_thread, set_thread_priority};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    fn here() -> i32 {
        // SAFETY: takes nothing.
        unsafe { libc::sched_getcpu() }
    }

    /// Turns until the condition holds, at most five seconds.
    fn turns_until(mut done: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if done() {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_thread_leaves_the_cpu_that_another_one_takes_for_itself() {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if cpus < 2 || set_thread_priority(1).is_err() {
            println!("skipped: needs two CPUs and real-time priority");
            return;
        }
        set_thread_priority(0).unwrap();
        let all = Affinity::of_thread().unwrap();
        let mut starvation = Starvation::watch();
        let cpu = u32::try_from(here()).unwrap();
        pin_thread(cpu).unwrap();
        let over = AtomicBool::new(false);
        let (sender, started) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin_thread(cpu).unwrap();
                set_thread_priority(1).unwrap();
                sender.send(()).unwrap();
                // Nine tenths of the CPU.
                while !over.load(Ordering::Relaxed) {
                    let end = Instant::now() + Duration::from_millis(18);
                    while Instant::now() < end {}
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            started.recv().unwrap();
            // Pinned, there is nowhere to go.
            assert!(turns_until(|| starvation.waited
                > Duration::from_millis(40)
                || starvation.relieve()));
            assert_eq!(u32::try_from(here()), Ok(cpu));
            // Free, and still there by the luck of the scheduler or moved already.
            all.apply().unwrap();
            assert!(turns_until(|| {
                starvation.relieve();
                u32::try_from(here()) != Ok(cpu)
            }));
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(Affinity::of_thread().unwrap().count(), all.count());
    }
}
