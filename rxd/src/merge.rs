//! The data path of several sockets that one thread reads: their frames go into the ring in the order of their times.
//!
//! Blocks of the kernel's stay open, each with a cursor before its next frame, so nothing is copied twice; a block goes back
//! when its last frame is published. As in [`crate::datapath`], nothing here allocates or logs for a frame, and the ring is
//! locked once a burst.

use crate::datapath::{BURST_BYTES, Pumped, TAG_BYTES, Tally};
use crate::order::Order;
use crate::ring::SharedRing;
use crate::stats::CaptureLive;
use crate::tap::Tap;
use fluxcap_ring::{Burst, record_size};
use fluxcap_service::realtime_ns;
use std::time::Duration;

/// Bursts before there is a look at what else is to be done.
const BURSTS_PER_TURN: usize = 16;

/// Moves frames of all sockets into the ring, as far as they may go by now: see [`Order`]. Without a window, all that are at
/// hand. `stop` ends the wait for the consumers of a ring in wait mode; the frames left are counted as `paused`.
///
/// # Errors
/// When the ring cannot be written to any more.
pub(crate) fn turn(
    order: &mut Order,
    taps: &mut [Tap],
    shared: &SharedRing,
    live: &CaptureLive,
    window: Option<Duration>,
    stop: impl Fn() -> bool,
) -> Result<Pumped, fluxcap_ring::Error> {
    // To hold frames back while the kernel runs out of room for more would lose them for the sake of their order.
    let window = window.filter(|_| !taps.iter().any(Tap::is_pressed));
    // Before the looks: what is not there then is younger than this says.
    order.begin(taps.len(), realtime_ns(), window);
    for (at, tap) in taps.iter_mut().enumerate() {
        note(order, at, tap);
    }
    let mut pumped = Pumped::default();
    for _ in 0..BURSTS_PER_TURN {
        let Some(first) = order.due() else { break };
        pumped.frames += publish(order, taps, first, shared, live, &stop)?;
    }
    for tap in taps {
        pumped.losing |= tap.settle_notes(shared, live);
    }
    Ok(pumped)
}

/// Tells the order of the next frame of a socket, if there is one.
fn note(order: &mut Order, at: usize, tap: &mut Tap) {
    let head = tap.head();
    order.set(at, head.map(|head| head.timestamp_ns), tap.hand_over());
}

/// One burst, which begins with the frame of `first`. How many frames were taken.
fn publish(
    order: &mut Order,
    taps: &mut [Tap],
    first: usize,
    shared: &SharedRing,
    live: &CaptureLive,
    stop: &impl Fn() -> bool,
) -> Result<u64, fluxcap_ring::Error> {
    let turn = shared.lock();
    let (longest, usual) = (turn.max_frame(), BURST_BYTES.min(turn.max_burst()));
    let Some(tap) = taps.get_mut(first) else {
        return Ok(0);
    };
    let len = tap.last_head().map_or(0, |head| head.len);
    let room = usual.max(needs(len, longest));
    let (mut ring, has_room) = shared.wait_room(turn, room, stop)?;
    let mut tally = Tally::default();
    let mut frames = 0;
    if has_room && let Some(mut burst) = ring.reserve(room)? {
        fill(order, taps, &mut burst, longest, &mut tally);
        for tap in taps {
            // Before they are published: a successor must never find more published than received.
            frames += tap.settle(|source, frames| burst.add_received(source, frames));
        }
        live.received.add(frames);
        live.late.add(burst.late());
        live.published.add(burst.commit());
    } else {
        tap.pass_over(&mut tally);
        frames = tap.settle(|source, frames| ring.source(source).add_received(frames));
        live.received.add(frames);
        note(order, first, tap);
    }
    tally.settle(&ring, live);
    Ok(frames)
}

/// Fills a burst with the frames that may go.
fn fill(
    order: &mut Order,
    taps: &mut [Tap],
    burst: &mut Burst<'_>,
    longest: usize,
    tally: &mut Tally,
) {
    while let Some(first) = order.due()
        && let Some(tap) = taps.get_mut(first)
    {
        let limit = order.limit();
        let mut next = tap.last_head();
        // Those that come before the first one of all others, without asking them.
        while let Some(head) = next
            && head.timestamp_ns <= limit
            && burst.room() >= needs(head.len, longest)
        {
            tap.publish_next(burst, longest, tally);
            next = tap.head();
        }
        let time = next.map(|head| head.timestamp_ns);
        order.set(first, time, tap.hand_over());
        if next.is_some_and(|head| burst.room() < needs(head.len, longest)) {
            return;
        }
    }
}

/// Room in the ring for a frame of that length, with the tags that it may get.
fn needs(len: usize, longest: usize) -> usize {
    record_size(len.saturating_add(TAG_BYTES).min(longest))
}
