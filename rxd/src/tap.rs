//! What one thread reads of one interface.

use crate::datapath::{Change, Path, Pumped, Tally};
use crate::ring::SharedRing;
use crate::stats::{CaptureLive, InterfaceCounts};
use crate::succession::{Memory, Seen};
use fluxcap_ring::{Burst, DropReason, Producer};
use fluxcap_socket::{FrameHead, Receiver};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an interface that is let go is still read, at most.
const DRAIN: Duration = Duration::from_millis(500);
/// Pause between two looks at frames that the kernel still gathers.
const STEP: Duration = Duration::from_micros(300);
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
    /// The next frame when they are taken one at a time.
    head: Option<FrameHead>,
    /// Frames taken one at a time that are not in the books yet.
    taken: u64,
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
            head: None,
            taken: 0,
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
            self.counts.take_back(pumped.doubled);
        }
        Ok(pumped)
    }

    /// See [`Receiver::is_pressed`].
    #[inline]
    pub(crate) fn is_pressed(&self) -> bool {
        self.socket.is_pressed()
    }

    /// See [`Receiver::hand_over`].
    #[inline]
    pub(crate) fn hand_over(&self) -> Duration {
        self.socket.hand_over()
    }

    /// The next frame, to be taken by [`Tap::publish_next`] or [`Tap::pass_over`].
    #[inline]
    pub(crate) fn head(&mut self) -> Option<FrameHead> {
        self.head = self.socket.head();
        self.head
    }

    /// What [`Tap::head`] gave last.
    #[inline]
    pub(crate) fn last_head(&self) -> Option<FrameHead> {
        self.head
    }

    /// Takes the next frame into the burst.
    #[inline]
    pub(crate) fn publish_next(
        &mut self,
        burst: &mut Burst<'_>,
        longest: usize,
        tally: &mut Tally,
    ) {
        if let Some(mut packet) = self.socket.take() {
            self.path.publish(&mut packet, burst, longest, tally);
            self.taken += 1;
        }
    }

    /// Takes the next frame, for which there is no place.
    pub(crate) fn pass_over(&mut self, tally: &mut Tally) {
        if self.socket.take().is_some() {
            tally.paused += 1;
            self.taken += 1;
        }
    }

    /// Enters frames that were taken one at a time into the books; `enter` does so for the ring. How many.
    pub(crate) fn settle(&mut self, enter: impl FnOnce(u16, u64)) -> u64 {
        let taken = std::mem::take(&mut self.taken);
        if taken > 0 {
            enter(self.path.source, taken);
            self.counts.add_received(taken);
            self.waiting -= signed(taken);
        }
        taken
    }

    /// What the socket had to tell besides frames taken one at a time: enters those that cannot be read into the books. Whether the
    /// kernel said that it loses frames.
    pub(crate) fn settle_notes(&mut self, ring: &SharedRing, live: &CaptureLive) -> bool {
        let notes = self.socket.take_notes();
        if notes.unreadable > 0 {
            let ring = ring.lock();
            self.taken = notes.unreadable;
            let source = |source, frames| ring.source(source).add_received(frames);
            live.received.add(self.settle(source));
            ring.add_drop(DropReason::Malformed, notes.unreadable);
            live.add_drop(DropReason::Malformed, notes.unreadable);
        }
        notes.losing
    }

    /// Has the socket forget an error that keeps poll from sleeping: "network is down" stays until it is read.
    pub(crate) fn take_error(&self) {
        self.socket.take_error();
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
        self.watch(ring);
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

    /// Notes that the interface is watched.
    pub(crate) fn watch(&self, ring: &Producer) {
        let source = ring.source(self.path.source);
        source.set_watched(fluxcap_service::realtime_ns());
    }

    /// Frames that the kernel has for the socket, as far as they have been counted.
    pub(crate) fn waiting(&self) -> u64 {
        u64::try_from(self.waiting).unwrap_or(0)
    }

    /// Begins to remember frames, for a successor that is being opened.
    pub(crate) fn remember(&mut self) {
        self.path.change = Change::Remember(Memory::new());
        self.set_stamped(true);
    }

    /// Ends to remember them; what there was.
    pub(crate) fn memory(&mut self) -> Option<Memory> {
        self.set_stamped(false);
        match std::mem::take(&mut self.path.change) {
            Change::Remember(memory) => Some(memory),
            _ => None,
        }
    }

    fn set_stamped(&self, on: bool) {
        if let Err(error) = self.socket.set_stamped(on) {
            tracing::warn!(%error, "frames that two sockets have are known by their bytes");
        }
    }

    /// Takes what the kernel has for the socket by now, also what it still gathers; it may take until `end`.
    pub(crate) fn catch_up(&mut self, ring: &SharedRing, live: &CaptureLive, end: Instant) {
        self.count(&mut ring.lock(), live, Backlog::ComesHere);
        let mut missing = self.waiting;
        while missing > 0 && Instant::now() < end {
            match self.pump(ring, live, || true) {
                Ok(pumped) if pumped.frames > 0 => missing -= signed(pumped.frames),
                Ok(_) => std::thread::sleep(STEP),
                Err(_) => return,
            }
        }
    }

    /// Lets no more frames in, and takes what there is.
    pub(crate) fn come_to_an_end(&mut self, ring: &SharedRing, live: &CaptureLive, end: Instant) {
        self.take_no_more();
        self.catch_up(ring, live, end);
        // One that another CPU was about to hand over.
        std::thread::sleep(STEP);
        self.catch_up(ring, live, end);
        self.count(&mut ring.lock(), live, Backlog::IsLost);
    }

    /// Takes what the socket has by now, and passes over what those before it had; which may be of use to another part of it.
    pub(crate) fn begin(
        &mut self,
        seen: Seen,
        ring: &SharedRing,
        live: &CaptureLive,
        end: Instant,
    ) -> Seen {
        self.path.change = Change::PassOver(seen);
        self.catch_up(ring, live, end);
        self.set_stamped(false);
        match std::mem::take(&mut self.path.change) {
            Change::PassOver(seen) => seen,
            _ => Seen::default(),
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
