//! Where and how urgently a thread runs.

use std::io;

use crate::{Error, sys};

/// Has the calling thread run on one CPU only, sched_setaffinity(2).
///
/// # Errors
/// [`Error::Option`] when the process may not use that CPU, or there is none of that number.
pub fn pin_thread(cpu: u32) -> Result<(), Error> {
    let no_such_cpu = Error::Option {
        option: "CPU",
        value: cpu.into(),
        advice: "this process may not use it, or there is none of that number",
    };
    // SAFETY: cpu_set_t is integers, all of which may be zero.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu as usize >= size_of::<libc::cpu_set_t>() * 8 {
        return Err(no_such_cpu);
    }
    // SAFETY: the number is below that of the bits.
    unsafe { libc::CPU_SET(cpu as usize, &mut cpus) };
    match set(&cpus) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(no_such_cpu),
        result => result.map_err(|error| Error::system("pin a thread to a CPU", error)),
    }
}

/// The CPUs that a thread may run on.
#[derive(Clone, Copy)]
pub struct Affinity(libc::cpu_set_t);

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Affinity").finish_non_exhaustive()
    }
}

impl Affinity {
    /// Those of the calling thread.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel knows more CPUs than 1024.
    pub fn of_thread() -> Result<Affinity, Error> {
        // SAFETY: cpu_set_t is integers, all of which may be zero.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: pointer and length describe the set, which the call writes; 0 is the calling thread.
        let result =
            unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
        sys::check(result)
            .map(|_| Affinity(set))
            .map_err(|error| Error::system("ask for the CPUs of a thread", error))
    }

    /// Gives them to the calling thread: the way back from [`pin_thread`].
    ///
    /// # Errors
    /// [`Error::System`] when the process may use none of them any more.
    pub fn apply(&self) -> Result<(), Error> {
        set(&self.0).map_err(|error| Error::system("give a thread its CPUs", error))
    }

    /// Has the calling thread, which may run on these CPUs, go to another one than it is on. It may come back. False when there is no other.
    pub(crate) fn leave_cpu(&self) -> bool {
        let mut others = self.0;
        // SAFETY: takes nothing.
        let here = usize::try_from(unsafe { libc::sched_getcpu() });
        let Some(here) = here
            .ok()
            .filter(|cpu| *cpu < size_of::<libc::cpu_set_t>() * 8)
        else {
            return false;
        };
        // SAFETY: the number is below that of the bits.
        unsafe { libc::CPU_CLR(here, &mut others) };
        let gone = set(&others).is_ok();
        // Also when nothing came of it.
        gone & self.apply().is_ok()
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> i32 {
        // SAFETY: the set is only read.
        unsafe { libc::CPU_COUNT(&self.0) }
    }
}

fn set(cpus: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: pointer and length describe the set, which the call only reads; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) };
    sys::check(result).map(drop)
}

/// Has the calling thread run before all that have a lower priority or none, `SCHED_FIFO` of sched(7), or gives that up for 0. Threads
/// that it starts run as usual.
///
/// # Errors
/// [`Error::Permission`] (CAP_SYS_NICE, or a limit RLIMIT_RTPRIO of at least that), [`Error::Option`] for more than 99.
pub fn set_thread_priority(priority: u32) -> Result<(), Error> {
    let (policy, value) = match i32::try_from(priority) {
        Ok(0) => (libc::SCHED_OTHER, 0),
        Ok(value @ 1..=99) => (libc::SCHED_FIFO, value),
        _ => {
            return Err(Error::Option {
                option: "priority",
                value: priority.into(),
                advice: "1 to 99, or 0 for none",
            });
        }
    };
    // SAFETY: sched_param is integers, all of which may be zero (some C libraries have more than one).
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = value;
    // SAFETY: the parameter is valid for the call; 0 is the calling thread.
    let result = unsafe {
        libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    match sys::check(result) {
        Ok(_) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(Error::Permission {
            operation: "run a thread with priority",
            capability: "CAP_SYS_NICE",
            source,
        }),
        Err(error) => Err(Error::system("set the priority of a thread", error)),
    }
}

/// Places the calling thread, one of several with numbers from 0 on: on one of `cpus` in turn, on `any` when there are none, and
/// with a priority. One failing does not keep the other from being done.
///
/// # Errors
/// As [`pin_thread`] and [`set_thread_priority`]; the first of them.
pub fn place_thread(
    number: usize,
    cpus: &[u32],
    any: &Affinity,
    priority: u32,
) -> Result<(), Error> {
    let cpu = cpus.get(number.checked_rem(cpus.len()).unwrap_or(0));
    let pinned = cpu.map_or_else(|| any.apply(), |cpu| pin_thread(*cpu));
    pinned.and(set_thread_priority(priority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_stays_on_the_cpu_that_it_was_given() {
        let here = || {
            // SAFETY: takes nothing.
            u32::try_from(unsafe { libc::sched_getcpu() }).unwrap()
        };
        let (cpu, before) = (here(), Affinity::of_thread().unwrap());
        pin_thread(cpu).unwrap();
        for _ in 0..100 {
            std::thread::yield_now();
            assert_eq!(here(), cpu);
        }
        assert!(pin_thread(1023).is_err());
        before.apply().unwrap();
    }

    #[test]
    fn impossible_cpus_and_priorities_are_refused() {
        for cpu in [1023, 1024, u32::MAX] {
            assert!(matches!(pin_thread(cpu), Err(Error::Option { .. })));
        }
        for priority in [100, u32::MAX] {
            let error = set_thread_priority(priority);
            assert!(matches!(error, Err(Error::Option { .. })));
        }
        set_thread_priority(0).unwrap();
    }
}
