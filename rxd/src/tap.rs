//! What one thread reads of one interface.

use crate::datapath::{Path, Pumped};
use crate::ring::SharedRing;
use crate::stats::{CaptureLive, InterfaceCounts};
use fluxcap_ring::{DropReason, Producer};
use fluxcap_socket::Receiver;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an interface that is let go is still read, at most.
const DRAIN: Duration = Duration::from_millis(500);
/// Bytes of a LOSS record.
const LOSS_RECORD: usize = 48;

/// An open capture of an interface, or of a part of its flows, and its way into the ring.
#[derive(Debug)]
pub(crate) struct Tap {
    /// The interface's place in the spec.
    pub(crate) input: usize,
    pub(crate) path: Path,
    socket: Receiver,
    counts: Arc<InterfaceCounts>,
    /// Frames that the kernel has counted as taken, less those that it handed over. Below 0 between two looks at the
    /// kernel's counters.
    waiting: i64,
    /// Frames counted by the kernel for which the books of no ring have been charged yet.
    owed: u64,
}

/// Frames that the kernel has counted and not handed over yet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Backlog {
    /// Goes into this ring, later.
    ComesHere,
    /// Goes into the next ring, whose books shall have it.
    GoesElsewhere,
    /// Goes away with the socket: lost in the kernel.
    IsLost,
}

impl Tap {
    pub(crate) fn new(
        input: usize,
        socket: Receiver,
        path: Path,
        counts: Arc<InterfaceCounts>,
    ) -> Tap {
        Tap {
            input,
            path,
            socket,
            counts,
            waiting: 0,
            owed: 0,
        }
    }

    pub(crate) fn socket(&self) -> &Receiver {
        &self.socket
    }

    /// Whether frames are ready that no block of the kernel's has gathered.
    pub(crate) fn has_unblocked_frames(&self) -> bool {
        matches!(self.socket, Receiver::Xdp(_)) && self.socket.is_ready()
    }

    /// The descriptor to poll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Moves frames that are ready into the ring.
    pub(crate) fn pump(
        &mut self,
        ring: &SharedRing,
        live: &CaptureLive,
        stop: impl Fn() -> bool,
    ) -> Result<Pumped, fluxcap_ring::Error> {
        let pumped = self.path.pump(&mut self.socket, ring, live, stop)?;
        self.waiting -= signed(pumped.frames);
        if pumped.frames == 0 {
            // "Network is down" stays until it is read, and keeps poll from sleeping.
            self.socket.take_error();
        } else {
            self.counts.add_received(pumped.frames);
        }
        Ok(pumped)
    }

    /// Reads the kernel's counters, which it forgets by that, and puts a loss into the ring at this place.
    pub(crate) fn count(&mut self, ring: &mut Producer, live: &CaptureLive, backlog: Backlog) {
        let read = match self.socket.statistics() {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel's counters");
                return;
            }
        };
        let (taken, mut drops) = (read.packets, read.drops);
        self.waiting += signed(taken.saturating_sub(drops));
        let waiting = u64::try_from(self.waiting).unwrap_or(0);
        let mut packets = taken + std::mem::take(&mut self.owed);
        match backlog {
            Backlog::ComesHere => {}
            Backlog::GoesElsewhere => {
                self.owed = waiting.min(packets);
                packets -= self.owed;
            }
            Backlog::IsLost => drops += waiting,
        }
        ring.source(self.path.source).add_kernel(packets, drops);
        self.counts.add_kernel(taken, drops, read.freezes);
        live.kernel_dropped.add(drops);
        if drops > 0 {
            publish_loss(ring, self.path.source, drops);
        }
    }

    /// Lets no more frames in: it is to be closed, and would be read for ever while frames pour in.
    pub(crate) fn take_no_more(&self) {
        if let Err(error) = self.socket.take_no_more() {
            tracing::warn!(%error, "frames come in until the socket is closed");
        }
    }

    /// Takes what the socket still holds, bounded in time, and counts the rest as lost: it is to be closed.
    pub(crate) fn detach(&mut self, ring: &SharedRing, live: &CaptureLive) {
        self.take_no_more();
        self.drain(ring, live, Instant::now() + DRAIN);
        self.count(&mut ring.lock(), live, Backlog::IsLost);
    }

    /// Takes what the socket holds, until then.
    pub(crate) fn drain(&mut self, ring: &SharedRing, live: &CaptureLive, end: Instant) {
        while Instant::now() < end
            && self
                .pump(ring, live, || true)
                .is_ok_and(|pumped| pumped.frames > 0)
        {}
    }

    /// Closes the socket while there is no ring. What it still holds is counted, there is nowhere to put it.
    pub(crate) fn close(mut self, live: &CaptureLive) {
        while let Some(block) = self.socket.next_burst() {
            live.received.add(block.len() as u64);
            live.add_drop(DropReason::RingAbsent, block.len() as u64);
        }
    }
}

fn signed(frames: u64) -> i64 {
    i64::try_from(frames).unwrap_or(i64::MAX)
}

/// Puts a LOSS record into the ring; a ring in wait mode that is full goes without, the counters have it anyway.
fn publish_loss(ring: &mut Producer, source: u16, frames: u64) {
    let now = fluxcap_service::realtime_ns();
    if let Ok(Some(mut burst)) = ring.reserve(LOSS_RECORD) {
        burst.push_loss(source, frames, now);
        burst.commit();
    }
}
