//! The end of a command that runs until it is told to end.

use crate::connect::block_on;
use crate::exit::{Code, Failure};
use crate::output::note;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// Whether the program was told to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Whether it was by now.
    pub(crate) fn is_asked_for(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is.
    pub(crate) fn wait(&self) {
        let (asked, asking) = &*self.0;
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = asking.wait_while(asked, |asked| !*asked);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes note that it was; whether it had been before.
    fn ask(&self) -> bool {
        let (asked, asking) = &*self.0;
        let before = std::mem::replace(
            &mut *asked.lock().unwrap_or_else(PoisonError::into_inner),
            true,
        );
        asking.notify_all();
        before
    }
}

/// Listens to Ctrl-C, SIGTERM and hang-ups from now on; a second one ends the program where it stands, for an output that hangs.
pub(crate) fn stop() -> Stop {
    let stop = Stop::default();
    let flag = stop.clone();
    let (listening, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let listen = block_on(async {
            let listen =
                |kind| signal(kind).map_err(|error| Failure::from_io("listen to signals", &error));
            let mut interrupt = listen(SignalKind::interrupt())?;
            let mut terminate = listen(SignalKind::terminate())?;
            let mut hangup = listen(SignalKind::hangup())?;
            // Nobody waits for it any more only when this program is ending.
            let _ = listening.send(());
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if flag.ask() {
                    std::process::exit(Code::Failed as i32);
                }
            }
            Ok(())
        });
        if let Err(failure) = listen {
            note(&format!("warning: {}", failure.message));
        }
    });
    // An error just means that nothing listens; it was told.
    let _ = listens.recv();
    stop
}
