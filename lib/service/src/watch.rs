//! Streams for the Watch methods.

use crate::Refusal;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

/// Watch streams that may be open at the same time in one daemon.
const MAX_STREAMS: usize = 64;
const DEFAULT_INTERVAL_MS: u32 = 1000;
const INTERVALS_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// The answer of a Watch method.
pub type WatchStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The Watch streams of a daemon: bounds their number and ends them at shutdown. Clones share the bound.
#[derive(Clone)]
pub struct Watches {
    free: Arc<Semaphore>,
    ended: Arc<watch::Sender<bool>>,
}

impl Default for Watches {
    fn default() -> Self {
        Watches {
            free: Arc::new(Semaphore::new(MAX_STREAMS)),
            ended: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches")
            .field("free", &self.free.available_permits())
            .finish_non_exhaustive()
    }
}

impl Watches {
    /// Ends all streams; new ones are refused.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }
}

/// Calls `next` now and every `interval_ms` milliseconds (100 to 60000; 0 means 1000), and streams what it returns; an
/// error ends the stream.
///
/// A client that reads too slowly misses reports; nothing is queued for it but one. `next` runs on a control thread: it
/// must not block.
pub fn interval_stream<T, F>(
    interval_ms: u32,
    watches: &Watches,
    next: F,
) -> Result<WatchStream<T>, Refusal>
where
    T: Send + 'static,
    F: FnMut() -> Result<T, Status> + Send + 'static,
{
    let interval_ms = match interval_ms {
        0 => DEFAULT_INTERVAL_MS,
        given if INTERVALS_MS.contains(&given) => given,
        _ => {
            return Err(Refusal::invalid(
                "interval_ms",
                "must be from 100 to 60000, or 0 for 1000",
            ));
        }
    };
    let permit = Arc::clone(&watches.free).try_acquire_owned().map_err(|_| {
        Refusal::Exhausted(format!(
            "{MAX_STREAMS} watch streams are open, no more are served; close one"
        ))
    })?;
    let ended = watches.ended.subscribe();
    if *ended.borrow() {
        return Err(Refusal::Unavailable(
            "the daemon is stopping; try again when it runs again".to_owned(),
        ));
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(feed(
        Duration::from_millis(interval_ms.into()),
        sender,
        ended,
        permit,
        next,
    ));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn feed<T, F>(
    period: Duration,
    sender: mpsc::Sender<Result<T, Status>>,
    mut ended: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
    mut next: F,
) where
    F: FnMut() -> Result<T, Status>,
{
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let reports = async {
        loop {
            ticks.tick().await;
            // Waits for room first, so that the report is made when it can go out and not before.
            let Ok(room) = sender.reserve().await else {
                return;
            };
            let report = next();
            let failed = report.is_err();
            room.send(report);
            if failed {
                return;
            }
        }
    };
    tokio::select! {
        () = reports => {}
        () = sender.closed() => {}
        _ = ended.wait_for(|ended| *ended) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn count() -> impl FnMut() -> Result<u32, Status> + Send + 'static {
        let mut n = 0;
        move || {
            n += 1;
            Ok(n)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_misses_reports_and_gets_no_backlog() {
        let watches = Watches::default();
        let mut stream = interval_stream(100, &watches, count()).expect("stream");
        assert_eq!(stream.next().await.expect("item").expect("report"), 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(stream.next().await.expect("item").expect("report") <= 3);
        assert!(stream.next().await.expect("item").expect("report") <= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_daemon_ends_streams() {
        let watches = Watches::default();
        let mut stream = interval_stream(60_000, &watches, count()).expect("stream");
        assert!(stream.next().await.is_some());
        watches.end();
        assert!(stream.next().await.is_none());
        assert!(matches!(
            interval_stream(0, &watches, count()),
            Err(Refusal::Unavailable(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_streams_is_bounded_and_closed_ones_make_room() {
        let watches = Watches::default();
        let open: Vec<_> = (0..MAX_STREAMS)
            .map(|_| interval_stream(0, &watches, count()).expect("stream"))
            .collect();
        assert!(matches!(
            interval_stream(0, &watches, count()),
            Err(Refusal::Exhausted(_))
        ));
        drop(open);
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(interval_stream(0, &watches, count()).expect("room again"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_ends_the_stream() {
        let watches = Watches::default();
        let mut stream = interval_stream::<u32, _>(0, &watches, || Err(Status::not_found("gone")))
            .expect("stream");
        assert!(stream.next().await.expect("item").is_err());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn senseless_intervals_are_refused() {
        for interval in [1, 99, 60_001, u32::MAX] {
            assert!(interval_stream(interval, &Watches::default(), count()).is_err());
        }
    }
}
