//! Logs go to standard error; a panic is logged and ends the process.

use crate::{Error, LogFormat, ServiceArgs};
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{IsTerminal, stderr},
    panic, process, thread,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Checks `--log-level`. A word that is no level would be taken for the name of a module, and silence all others.
pub(crate) fn level(text: &str) -> Result<String, Error> {
    let known = |part: &str| part.contains('=') || part.parse::<LevelFilter>().is_ok();
    match text {
        // A variable that is empty.
        "" => Ok("info".to_owned()),
        _ if text.split(',').all(known) => Ok(text.to_owned()),
        _ => Err(Error::LogLevel {
            text: text.to_owned(),
        }),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_rather_than_silence_the_log() {
        for text in ["info", "debug", "warn,rxd=trace", "off"] {
            assert_eq!(level(text).ok().as_deref(), Some(text));
        }
        assert_eq!(level("").ok().as_deref(), Some("info"));
        for text in ["bogus", "infoo", "warn,bogus"] {
            assert!(level(text).is_err(), "{text}");
        }
    }
}
