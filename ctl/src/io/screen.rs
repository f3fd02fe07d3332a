//! Rates on the whole screen, until q or Ctrl-C. The terminal is left as it was found, whatever ends the program.

use super::{Watch, rates};
use crate::connect::block_on;
use crate::exit::Failure;
use crate::output::{self, render};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use std::io::{self, IsTerminal, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// Alternate screen, no cursor, no wrapping of long lines.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Shows the rates of `watch` again and again.
pub(super) fn run(watch: &mut Watch, interval: Duration) -> Result<(), Failure> {
    let screen = Screen::enter()?;
    let result = block_on(show(watch, interval, screen.saved.is_some()));
    drop(screen);
    result
}

async fn show(watch: &mut Watch, interval: Duration, keyboard: bool) -> Result<(), Failure> {
    let mut ends = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .into_iter()
    .map(|kind| signal(kind).map_err(|error| Failure::from_io("listen to signals", &error)))
    .collect::<Result<Vec<Signal>, Failure>>()?;
    let [interrupt, terminate, hangup] = &mut ends[..] else {
        return Ok(());
    };
    let quit = quit_key(keyboard);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => draw(watch, interval)?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            () = quit.notified() => return Ok(()),
        }
    }
}

/// Tells when a key that ends the program is pressed. Without a keyboard only signals end it.
fn quit_key(keyboard: bool) -> Arc<Notify> {
    let quit = Arc::new(Notify::new());
    let pressed = Arc::clone(&quit);
    if keyboard {
        // This thread sits in read(2) until the process ends.
        std::thread::spawn(move || {
            let mut keys = io::stdin().lock().bytes();
            // The end of the input is the end of the terminal.
            while keys
                .next()
                .is_some_and(|key| !matches!(key, Ok(b'q' | b'Q' | 4) | Err(_)))
            {}
            pressed.notify_one();
        });
    }
    quit
}

fn draw(watch: &mut Watch, interval: Duration) -> Result<(), Failure> {
    let rings = watch.tick()?;
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    let every = humantime::format_duration(interval);
    let mut text = format!(
        "fluxctl io   {} rings in {}   every {every}   {now}   q quits\n\n",
        rings.len(),
        watch.dir.path().display()
    );
    match rings.is_empty() {
        true => text.push_str("no rings\n"),
        false => text.push_str(&render(&rates::blocks(&rings))),
    }
    output::write(&page(&text, height()))
}

/// The text as one page: each line clears the rest of the old one, and the last one what is below.
fn page(text: &str, height: usize) -> Vec<u8> {
    let lines: Vec<&str> = text.lines().take(height).collect();
    let mut page = b"\x1b[H".to_vec();
    page.extend_from_slice(lines.join("\x1b[K\r\n").as_bytes());
    page.extend_from_slice(b"\x1b[K\x1b[J");
    page
}

fn height() -> usize {
    match termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 => size.ws_row.into(),
        _ => 24,
    }
}

/// The terminal while it is ours.
struct Screen {
    /// How the keyboard was set, when there is one.
    saved: Option<Termios>,
}

impl Screen {
    fn enter() -> Result<Screen, Failure> {
        let screen = Screen {
            saved: raw_keyboard(),
        };
        output::write(ENTER)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout().lock();
        // Nothing can be done about a terminal that has gone.
        let _ = stdout.write_all(LEAVE).and_then(|()| stdout.flush());
        if let Some(saved) = &self.saved {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Keys come one by one and unseen; Ctrl-C stays a signal. Gives the former settings.
fn raw_keyboard() -> Option<Termios> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let saved = termios::tcgetattr(io::stdin()).ok()?;
    let mut raw = saved.clone();
    raw.local_modes
        .remove(LocalModes::ICANON | LocalModes::ECHO);
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
    Some(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_the_screen_and_clears_what_was_there() {
        let text = String::from_utf8(page("a\nb\nc\n", 2)).unwrap();
        assert_eq!(text, "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }
}
