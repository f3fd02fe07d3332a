//! Logs go to standard error; a panic is logged and ends the process.

use crate::{Error, LogFormat, ServiceArgs};
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{IsTerminal, stderr},
    panic, process, thread,
};
use tracing_subscriber::EnvFilter;

/// Sends events of `--log-level` and above to standard error. Does nothing when a subscriber is there already.
pub(crate) fn init(args: &ServiceArgs) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&args.log_level).map_err(|_| Error::LogLevel {
        text: args.log_level.clone(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_target(false)
        .with_ansi(stderr().is_terminal());
    let result = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        // The journal has a time of its own for each line.
        LogFormat::Text if env::var_os("JOURNAL_STREAM").is_some() => {
            builder.without_time().try_init()
        }
        LogFormat::Text => builder.try_init(),
    };
    if result.is_err() {
        tracing::debug!("a log subscriber is already set");
    }
    Ok(())
}

/// A thread that panicked leaves unknown state behind: the supervisor's restart is safer than going on without it.
pub(crate) fn abort_on_panic() {
    panic::set_hook(Box::new(|info| {
        let backtrace = Backtrace::capture();
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!(thread, "{info}; aborting\n{backtrace}");
        } else {
            tracing::error!(thread, "{info}; aborting (RUST_BACKTRACE=1 shows where)");
        }
        process::abort();
    }));
}
