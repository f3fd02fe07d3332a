//! Compiling with a bound in time.
//!
//! libpcap takes seconds for some legal expressions, and as long as the resolver for names of hosts, and nothing ends it.
//! So it works on a thread of its own; who waits for it does not wait for ever. What was compiled is remembered for a
//! while, because the same expression is needed again at once: to check a spec, and where the filter runs.

use super::{Instruction, libpcap_program};
use crate::Error;
use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long is waited. Clients wait for five seconds, unless they say otherwise.
const LIMIT: Duration = Duration::from_secs(3);
/// Threads that compile at the same time; those that nobody waits for any more are among them.
const THREADS: usize = 2;
/// Expressions that are remembered, and for how long: the addresses of a host may change.
const REMEMBERED: usize = 16;
const MEMORY: Duration = Duration::from_secs(60);

static COMPILED: Mutex<VecDeque<Compiled>> = Mutex::new(VecDeque::new());
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

struct Compiled {
    expression: String,
    program: Vec<Instruction>,
    at: Instant,
}

/// libpcap's program for an expression, within [`LIMIT`].
pub(super) fn in_time(expression: &str) -> Result<Vec<Instruction>, Error> {
    if let Some(program) = remembered(expression) {
        return Ok(program);
    }
    let deadline = Instant::now() + LIMIT;
    let too_slow = || Error::TooSlow {
        bytes: expression.len(),
        seconds: LIMIT.as_secs(),
    };
    let place = Place::take(deadline).ok_or_else(too_slow)?;
    let (sender, receiver) = sync_channel(1);
    let text = expression.to_owned();
    let compile = move || {
        let compiled = libpcap_program(&text);
        if let Ok(program) = &compiled {
            remember(text, program.clone());
        }
        drop(place);
        // Nobody waits any more when it has taken too long.
        let _ = sender.send(compiled);
    };
    match thread::Builder::new()
        .name("filter".to_owned())
        .spawn(compile)
    {
        Ok(_) => {}
        // Without a thread there is no bound, but an answer.
        Err(_) => return libpcap_program(expression),
    }
    let left = deadline.saturating_duration_since(Instant::now());
    receiver
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(too_slow()))
}

/// One of the threads that may compile.
struct Place;

impl Place {
    fn take(deadline: Instant) -> Option<Place> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = ENDED.wait_timeout_while(lock(&RUNNING), left, |running| *running >= THREADS);
        let (mut running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *running >= THREADS {
            return None;
        }
        *running += 1;
        Some(Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&RUNNING) -= 1;
        ENDED.notify_one();
    }
}

fn remembered(expression: &str) -> Option<Vec<Instruction>> {
    let compiled = lock(&COMPILED);
    let known = compiled
        .iter()
        .find(|known| known.expression == expression && known.at.elapsed() < MEMORY);
    known.map(|known| known.program.clone())
}

fn remember(expression: String, program: Vec<Instruction>) {
    let mut compiled = lock(&COMPILED);
    compiled.retain(|known| known.expression != expression);
    if compiled.len() >= REMEMBERED {
        compiled.pop_front();
    }
    compiled.push_back(Compiled {
        expression,
        program,
        at: Instant::now(),
    });
}

/// Nothing here is half done when a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_that_takes_long_is_refused_in_time_and_says_so() {
        let ports: Vec<String> = (1..=350).map(|port| format!("port {port}")).collect();
        let begun = Instant::now();
        // A fast machine may manage it; what may not be is that nobody knows for how long.
        match in_time(&ports.join(" or ")) {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("portrange"), "{error}"),
        }
        assert!(begun.elapsed() < 3 * LIMIT, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_was_compiled_is_remembered_with_its_program() {
        let first = in_time("udp port 4711").unwrap();
        let known = remembered("udp port 4711");
        assert_eq!(known.as_ref(), Some(&first));
        assert!(remembered("udp port 4712").is_none());
        assert!(in_time("udp port").is_err() && remembered("udp port").is_none());
    }
}
