//! Logs go to standard error; a panic is logged and ends the process.

use crate::{Error, LogFormat, ServiceArgs};
use rustix::fs::fstat;
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal, Write, stderr},
    panic, process, thread,
};
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::MakeWriter};

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
    let journal = is_journal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines { journal })
        .with_target(false)
        .with_ansi(stderr().is_terminal());
    let result = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        // The journal has a time of its own for each line.
        LogFormat::Text if journal => builder.without_time().try_init(),
        LogFormat::Text => builder.try_init(),
    };
    if result.is_err() {
        tracing::debug!("a log subscriber is already set");
    }
    Ok(())
}

/// Whether standard error goes to the journal: systemd names its device and inode. A program whose error output was led elsewhere
/// inherits the variable all the same.
fn is_journal() -> bool {
    let named = env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(stderr()).is_ok_and(|it| named == format!("{}:{}", it.st_dev, it.st_ino))
}

/// Standard error. In the journal each line begins with its priority, as sd-daemon(3) has it.
struct Lines {
    journal: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(None)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line(self.journal.then(|| priority(*meta.level())))
    }
}

/// Where one event is written to, as a whole.
struct Line(Option<&'static str>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0 {
            Some(priority) => stderr().write_all(&each_line(priority, bytes))?,
            None => stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// The lines of one event, each with the priority in front: for the journal each is an entry of its own.
fn each_line(priority: &str, bytes: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes.len() + priority.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        lines.extend_from_slice(priority.as_bytes());
        lines.extend_from_slice(line);
    }
    lines
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
    fn each_line_in_the_journal_has_its_priority() {
        let lines = each_line(priority(Level::ERROR), b"a panic\n  at main\n");
        assert_eq!(lines, b"<3>a panic\n<3>  at main\n");
        assert_eq!(
            each_line(priority(Level::INFO), b"started\n"),
            b"<6>started\n"
        );
    }

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
