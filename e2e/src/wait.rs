//! Waiting for a condition: the only way in which tests pass time.

use std::thread;
use std::time::{Duration, Instant};

/// Time between two looks at a condition.
const STEP: Duration = Duration::from_millis(2);

/// Looks at `condition` until it gives a value, and returns that value; panics after `timeout` with `what` in the message.
#[track_caller]
pub fn wait_for<T>(timeout: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            started.elapsed() < timeout,
            "not within {timeout:?}: {what}"
        );
        thread::sleep(STEP);
    }
}

/// Looks at `condition` until it holds, and returns how long that took; panics after `timeout` with `what` in the message.
#[track_caller]
pub fn wait_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    wait_for(timeout, what, || condition().then(|| started.elapsed()))
}
