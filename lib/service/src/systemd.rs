//! What systemd is told (sd_notify(3)); without NOTIFY_SOCKET all of it does nothing.

use crate::{Jobs, reserve};
use sd_notify::NotifyState;
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// A worker that has not turned its loop for so long hangs. With WatchdogSec=10 the restart comes within 15 s.
const STALL_LIMIT: Duration = Duration::from_secs(5);
const STATUS_PERIOD: Duration = Duration::from_secs(1);

pub(crate) fn notify(states: &[NotifyState<'_>]) {
    // It takes a socket for each; the watchdog does not ask whether there was a descriptor left.
    if let Err(error) = reserve::lend(1, || sd_notify::notify(states)) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Tries again what could not begin, keeps systemd's status line true and feeds its watchdog as long as no worker hangs. Never returns.
pub(crate) async fn report(jobs: Arc<dyn Jobs>) {
    let watchdog = sd_notify::watchdog_enabled();
    let mut ticks =
        interval(watchdog.map_or(STATUS_PERIOD, |period| (period / 2).min(STATUS_PERIOD)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::new();
    loop {
        ticks.tick().await;
        jobs.retry();
        reserve::fill();
        let counts = jobs.counts();
        let status = format!(
            "{} running, {} waiting, {} failed",
            counts.running, counts.waiting, counts.failed
        );
        if status != last {
            notify(&[NotifyState::Status(&status)]);
            last = status;
        }
        if watchdog.is_some() {
            match jobs.stalled(STALL_LIMIT) {
                None => notify(&[NotifyState::Watchdog]),
                Some(who) => tracing::error!(%who, "hangs; not feeding the watchdog"),
            }
        }
    }
}
