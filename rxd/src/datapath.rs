//! The data path of a capture: kernel block -> edits -> ring burst. Everything that happens for each frame is in
//! [`Path::pump`] and [`Path::publish`]; nothing here logs or allocates, the ring is locked once a burst, and it sleeps only
//! for a ring in wait mode.

use crate::ring::SharedRing;
use crate::stats::CaptureLive;
use crate::succession::{Memory, Seen};
use fluxcap_headers::{Edited, Edits, VlanTag, WireFrame, complete_checksum};
use fluxcap_ring::{Burst, Direction, DropReason, Flags, Meta, Producer, record_size};
use fluxcap_socket::{Origin, Packet, Receiver};

/// Bytes reserved in the ring at a time. One burst is published, and its doorbell rung, for about that much.
pub(crate) const BURST_BYTES: usize = 64 * 1024;

/// Blocks taken from one interface before the others have their turn.
const BLOCKS_PER_TURN: usize = 4;

/// What a restored and a pushed VLAN tag can add to a frame.
pub(crate) const TAG_BYTES: usize = 8;

/// Which frames of an interface are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Frames that arrive; the kernel itself withholds the others, as a rule.
    In,
    /// Frames that the host sends.
    Out,
    /// Both.
    Both,
}

/// One interface's way into the ring.
#[derive(Debug)]
pub(crate) struct Path {
    /// Index of the interface in the ring's source table.
    pub(crate) source: u16,
    /// Which direction is kept.
    pub(crate) wanted: Wanted,
    /// Filter, sampling and changes, in their fixed order.
    pub(crate) edits: Edits,
    /// Another socket takes the place of this one, or this one takes another's.
    pub(crate) change: Change,
}

/// What a socket has to do with another one of its interface.
#[derive(Debug, Default)]
pub(crate) enum Change {
    /// Nothing.
    #[default]
    None,
    /// Its successor is being opened, and may have some of its frames.
    Remember(Memory),
    /// It is the successor, and has some frames of those before it.
    PassOver(Seen),
}

/// What happened to the frames of one burst, other than being published.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    bytes: u64,
    truncated: u64,
    filtered: u64,
    sampled_out: u64,
    direction: u64,
    pub(crate) malformed: u64,
    oversize: u64,
    pub(crate) paused: u64,
    doubled: u64,
    loop_guard: u64,
}

/// What [`Path::pump`] did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pumped {
    /// Frames read from the kernel.
    pub(crate) frames: u64,
    /// Of these, frames that the socket before had, too, and that are counted once.
    pub(crate) doubled: u64,
    /// The kernel said that it lost some.
    pub(crate) losing: bool,
}

impl Path {
    /// Moves the blocks that are ready, at most [`BLOCKS_PER_TURN`], from the socket into the ring. `stop` ends the wait for
    /// the consumers of a ring in wait mode; the frames left are counted as `paused`.
    ///
    /// # Errors
    /// What [`Producer::reserve`] says when the ring cannot be used any more.
    pub(crate) fn pump(
        &mut self,
        socket: &mut Receiver,
        shared: &SharedRing,
        live: &CaptureLive,
        stop: impl Fn() -> bool,
    ) -> Result<Pumped, fluxcap_ring::Error> {
        let mut pumped = Pumped::default();
        for _ in 0..BLOCKS_PER_TURN {
            let Some(mut block) = socket.next_burst() else {
                break;
            };
            let frames = block.len() as u64;
            pumped.frames += frames;
            pumped.losing |= block.losing();
            let mut ring = shared.lock();
            // Before the frames are published: a successor must never find more published than received.
            ring.source(self.source).add_received(frames);
            live.received.add(frames);
            let (longest, usual) = (ring.max_frame(), BURST_BYTES.min(ring.max_burst()));
            let mut packets = block.packets();
            let mut next = packets.next();
            while let Some(first) = &next {
                let mut tally = Tally::default();
                let room = usual.max(record_size((first.data.len() + TAG_BYTES).min(longest)));
                let (turn, has_room) = shared.wait_room(ring, room, &stop)?;
                ring = turn;
                if has_room && let Some(mut burst) = ring.reserve(room)? {
                    while let Some(packet) = &mut next {
                        if burst.room() < record_size((packet.data.len() + TAG_BYTES).min(longest))
                        {
                            break;
                        }
                        self.publish(packet, &mut burst, longest, &mut tally);
                        next = packets.next();
                    }
                    live.late.add(burst.late());
                    live.published.add(burst.commit());
                } else {
                    tally.paused += 1;
                    next = packets.next();
                }
                tally.settle(&ring, live);
                if tally.doubled > 0 {
                    ring.source(self.source).take_back(tally.doubled);
                    live.received.add(tally.doubled.wrapping_neg());
                    pumped.doubled += tally.doubled;
                }
                ring = shared.pass(ring);
            }
            // Frames that cannot be reached because the block is damaged.
            let lost = packets.left() as u64;
            Tally {
                malformed: lost,
                ..Tally::default()
            }
            .settle(&ring, live);
        }
        Ok(pumped)
    }

    /// One frame: put it back as it was on the wire, edit it, copy it into the burst.
    pub(crate) fn publish(
        &mut self,
        packet: &mut Packet<'_>,
        burst: &mut Burst<'_>,
        longest: usize,
        tally: &mut Tally,
    ) {
        match &mut self.change {
            Change::None => {}
            Change::Remember(memory) => memory.note(packet),
            Change::PassOver(seen) => {
                if seen.meet(packet) {
                    return tally.doubled += 1;
                }
            }
        }
        tally.bytes += u64::from(packet.wire_len);
        if packet.data.len() == Origin::REFUSED_LEN {
            return tally.loop_guard += 1;
        }
        let unwanted = match self.wanted {
            Wanted::In => packet.outgoing,
            Wanted::Out => !packet.outgoing,
            Wanted::Both => false,
        };
        if unwanted {
            return tally.direction += 1;
        }
        // By the filter in the kernel, which leaves a byte of it so that it can be counted.
        if packet.is_refused() {
            return tally.filtered += 1;
        }
        if packet.checksum_partial {
            complete_checksum(packet.data, 0);
        }
        let captured = packet.data.len();
        let mut flags = Flags::default();
        if captured < packet.wire_len as usize {
            flags |= Flags::TRUNCATED;
            tally.truncated += 1;
        }
        if packet.gso {
            flags |= Flags::GSO;
        }
        let frame = on_the_wire(packet);
        let mut frame = match self.edits.apply(frame) {
            Edited::Keep(frame) => frame,
            Edited::Filtered => return tally.filtered += 1,
            Edited::SampledOut => return tally.sampled_out += 1,
            Edited::Malformed => return tally.malformed += 1,
        };
        if frame.len() > longest {
            frame.slice(u32::try_from(longest).unwrap_or(u32::MAX));
            flags |= Flags::TRUNCATED;
            tally.truncated += 1;
        }
        let meta = Meta {
            timestamp_ns: packet.timestamp_ns,
            wire_len: frame.wire_len(),
            source: self.source,
            direction: if packet.outgoing {
                Direction::Out
            } else {
                Direction::In
            },
            vlan_count: frame.vlan_count(),
            flow_hash: 0, // who needs one computes it: most captures do not
            id: 0,        // of tunnels
            flags,
        };
        if !burst.push(&meta, &frame.pieces()) {
            tally.oversize += 1; // cannot be: the room was checked; counted rather than trusted
        }
    }
}

/// The frame with the tag that the kernel took out, which its length on the wire did not count either.
fn on_the_wire<'p>(packet: &'p Packet<'_>) -> WireFrame<'p> {
    let Some((tpid, tci)) = packet.vlan else {
        return WireFrame::new(packet.data, packet.wire_len);
    };
    let mut frame = WireFrame::new(packet.data, packet.wire_len.saturating_add(4));
    frame.restore_tag(VlanTag { tpid, tci });
    frame
}

impl Tally {
    /// Adds the burst's figures to the ring's counters, which outlive the process, and to the live ones.
    pub(crate) fn settle(&self, ring: &Producer, live: &CaptureLive) {
        live.received_bytes.add(self.bytes);
        live.truncated.add(self.truncated);
        for (reason, n) in [
            (DropReason::Filtered, self.filtered),
            (DropReason::SampledOut, self.sampled_out),
            (DropReason::Direction, self.direction),
            (DropReason::Malformed, self.malformed),
            (DropReason::Oversize, self.oversize),
            (DropReason::Paused, self.paused),
            (DropReason::LoopGuard, self.loop_guard),
        ] {
            if n != 0 {
                ring.add_drop(reason, n);
                live.add_drop(reason, n);
            }
        }
    }
}
