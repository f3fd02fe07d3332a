//! From the buffer of the programs into the ring.
//!
//! What stands in the buffer comes from our own programs, but the buffer is shared memory: lengths are checked all the same. A frame is
//! taken out of the buffer before it is published; what is in flight when mirrord is killed is lost, never doubled, and counted in
//! the next life (`killed`).

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, RingBuf};
use fluxcap_datapath::ring_advice;
use fluxcap_headers::{VlanTag, WireFrame, complete_checksum, has_partial_checksum};
use fluxcap_proto::v1::MirrorSpec;
use fluxcap_ring::{
    Burst, Direction, DropReason, Flags, Meta, Place, Producer, RingDir, RingName, record_size,
};
use fluxcap_service::realtime_ns;

use crate::counters::{Books, Drained, array};
use crate::error::Error;
use crate::pins::Folder;
use crate::program::boottime_ns;

/// Bytes reserved in the ring at a time.
const BURST_BYTES: usize = 256 << 10;
/// Frames taken in one turn, so that the rest of the mirror's work has its turn, too.
const TURN: u64 = 4096;
/// `struct event` of `bpf/mirror.h`.
const HEADER_LEN: usize = 40;
/// Longest copy of a frame, a tag included.
const LONGEST: usize = 65_600 + 4;
/// An Ethernet header, for frames that have none.
const ETHERNET_LEN: usize = 14;
/// Bytes of a LOSS record.
const LOSS_RECORD: usize = 48;
/// Longest wait for the consumers of a ring in wait mode.
const WAIT: Duration = Duration::from_millis(10);
/// Time between two looks for frames while they come.
const NAP: Duration = Duration::from_millis(1);
/// How long it is looked for more.
const AWAKE: Duration = Duration::from_millis(20);
/// Most time between a program's look at the clock and its place in the buffer.
const OVERLAP_NS: u64 = 10_000_000;
const EVENT_GSO: u8 = 1;
const EVENT_NO_CSUM: u8 = 2;

/// What stands in front of a frame in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event<'b> {
    time_ns: u64,
    lost: u64,
    wire_len: u32,
    tag: Option<VlanTag>,
    direction: Direction,
    flags: u8,
    frame: &'b [u8],
}

impl<'b> Event<'b> {
    /// `None`: it makes no sense.
    fn parse(record: &'b [u8]) -> Option<Event<'b>> {
        let (header, rest) = record.split_at_checked(HEADER_LEN)?;
        let long = |at: usize| Some(u64::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let captured = usize::try_from(word(20)?).ok()?;
        let tpid = half(28)?;
        Some(Event {
            time_ns: long(0)?,
            lost: long(8)?,
            wire_len: word(16)?,
            tag: (tpid != 0).then_some(VlanTag {
                tpid,
                tci: half(30)?,
            }),
            direction: match header.get(32)? {
                0 => Direction::In,
                _ => Direction::Out,
            },
            flags: *header.get(33)?,
            frame: rest.get(..captured)?,
        })
    }
}

/// The way from the buffer into a ring.
pub(crate) struct Events {
    buffer: Buffer,
    doorbell: Array<MapData, u32>,
    /// When frames came last.
    busy: Instant,
    /// The programs ring when the next frame comes.
    armed: bool,
    books: Books,
    drained: Drained,
    dir: RingDir,
    ring: Option<(Producer, u16)>,
    /// The interface as the ring shall have it; none while nothing comes from there.
    place: Option<Place>,
    /// Why there is no ring.
    pub(crate) absent: String,
    name: String,
    label: String,
    source: String,
    snaplen: u32,
    /// Frames of the interface begin with an Ethernet header.
    ethernet: bool,
    /// Time of the frame before.
    latest_ns: u64,
    scratch: Vec<u8>,
}

/// The name under which rings know a mirror.
pub(crate) fn holder(mirror: &str) -> String {
    format!("mirrord {mirror}")
}

/// A ring buffer; the loader's own type cannot be printed.
struct Buffer(RingBuf<MapData>);

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}

/// What one turn did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Frames taken.
    pub(crate) frames: u64,
    /// There may be more.
    pub(crate) more: bool,
}

impl Events {
    /// Opens the buffer that is pinned, and goes on where an earlier life ended.
    pub(crate) fn open(
        folder: &Folder,
        books: Books,
        dir: &RingDir,
        mirror: &str,
    ) -> Result<Events, Error> {
        let failed = |error| Error::kernel("open the buffer of a mirror", error);
        let data = MapData::from_pin(folder.path("events")).map_err(failed)?;
        let buffer = Buffer(RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?);
        Ok(Events {
            buffer,
            doorbell: array(folder, "doorbell")?,
            busy: Instant::now(),
            armed: false,
            drained: books.drained()?,
            books,
            dir: dir.clone(),
            ring: None,
            place: None,
            absent: String::new(),
            name: String::new(),
            label: holder(mirror),
            source: String::new(),
            snaplen: 0,
            ethernet: true,
            latest_ns: 0,
            scratch: Vec::with_capacity(LONGEST + ETHERNET_LEN),
        })
    }

    /// Takes what the spec says: ring, length of copies.
    pub(crate) fn apply(&mut self, spec: &MirrorSpec, ethernet: bool) {
        if self.name != spec.ring || self.source != spec.interface {
            self.set_place(None);
            self.leave_ring();
            self.name.clone_from(&spec.ring);
            self.source.clone_from(&spec.interface);
        }
        self.snaplen = spec.snaplen;
        self.ethernet = ethernet;
    }

    /// Readable when there is something in the buffer.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.buffer.0.as_fd()
    }

    /// Gets the ring, or the one that took its place; whether there is one.
    pub(crate) fn open_ring(&mut self) -> bool {
        if let Some((ring, _)) = &self.ring {
            if ring.retired().is_none() {
                return true;
            }
            self.leave_ring();
        }
        let opened = RingName::parse(&self.name).and_then(|name| {
            let mut ring = Producer::open(&self.dir, &name, &self.label)?;
            let source = ring.register_source(&self.source)?;
            Ok((ring, source))
        });
        match opened {
            Ok(ring) => {
                ring.0.source(ring.1).set_place(self.place);
                tracing::info!(ring = %self.name, epoch = ring.0.info().epoch, "writing to ring");
                self.absent.clear();
                self.ring = Some(ring);
                true
            }
            Err(error) => {
                self.absent = ring_advice(&self.name, &error);
                false
            }
        }
    }

    /// Notes in the ring which interface fills it, for those who look for loops.
    pub(crate) fn set_place(&mut self, place: Option<Place>) {
        if self.place == place {
            return;
        }
        self.place = place;
        if let Some((ring, source)) = &self.ring {
            ring.source(*source).set_place(place);
        }
    }

    /// Whether others can see from the ring which interface fills it.
    pub(crate) fn is_noted(&self) -> bool {
        self.ring.is_some() && self.place.is_some()
    }

    fn leave_ring(&mut self) {
        if let Some((ring, _)) = self.ring.take() {
            ring.close();
        }
    }

    /// How long to sleep when there are no frames, `longest` at most. The programs do not wake anybody for each frame, which would cost the
    /// traffic more than the copy does: while frames come it is looked for them again and again, and then they are asked to.
    pub(crate) fn rest(&mut self, longest: Duration) -> Result<Duration, Error> {
        if self.busy.elapsed() < AWAKE {
            return Ok(longest.min(NAP));
        }
        if self.armed {
            return Ok(longest);
        }
        self.doorbell
            .set(0, 1, 0)
            .map_err(|error| Error::kernel("write a map of the mirror", error))?;
        self.armed = true;
        // One that has come just before this is found soon.
        Ok(longest.min(NAP))
    }

    /// Moves frames into the ring; without one they are counted as `ring_absent`.
    pub(crate) fn pump(&mut self) -> Result<Turn, Error> {
        let before = self.drained;
        let turn = match self.ring.take() {
            Some((mut ring, source)) => {
                let turn = self.publish(&mut ring, source);
                self.ring = Some((ring, source));
                turn.map_err(|error| Error::Unsuitable(error.to_string()))
            }
            None => Ok(self.discard()),
        };
        if self.drained != before {
            (self.busy, self.armed) = (Instant::now(), false);
            self.books.set_drained(&self.drained)?;
        }
        turn
    }

    fn discard(&mut self) -> Turn {
        let mut turn = Turn::default();
        while turn.frames < TURN
            && let Some(record) = self.buffer.0.next()
        {
            let bytes = Event::parse(&record).map_or(0, |event| {
                self.drained.told_lost = self.drained.told_lost.max(event.lost);
                u64::from(event.wire_len)
            });
            self.drained.taken += 1;
            self.drained.drop_frames(DropReason::RingAbsent, 1, bytes);
            turn.frames += 1;
        }
        turn.more = turn.frames == TURN;
        turn
    }

    /// One burst after another.
    fn publish(&mut self, ring: &mut Producer, source: u16) -> Result<Turn, fluxcap_ring::Error> {
        let longest = ring.max_frame().min(LONGEST + ETHERNET_LEN);
        // Room for any frame, and a mark of loss in front of it.
        let most = record_size(longest) + LOSS_RECORD;
        let room = BURST_BYTES.max(most).min(ring.max_burst());
        let offset = clock_offset();
        let mut turn = Turn::default();
        let mut empty = false;
        while turn.frames < TURN && !empty {
            let counters = ring.source(source);
            let Some(mut burst) = ring.reserve(room)? else {
                ring.wait_space(WAIT)?;
                turn.more = true;
                return Ok(turn);
            };
            let before = self.drained;
            while burst.room() >= most {
                let Some(record) = self.buffer.0.next() else {
                    empty = true;
                    break;
                };
                // Before it is published: a successor must never find more published than received.
                counters.add_received(1);
                self.drained.taken += 1;
                turn.frames += 1;
                let path = Path {
                    source,
                    offset,
                    longest,
                    snaplen: self.snaplen,
                    ethernet: self.ethernet,
                };
                path.publish(
                    &record,
                    &mut burst,
                    &mut self.drained,
                    &mut self.latest_ns,
                    &mut self.scratch,
                );
            }
            let lost = self.drained.told_lost - before.told_lost;
            let taken = self.drained.taken - before.taken;
            if taken > 0 {
                self.drained.published += burst.commit();
                counters.add_kernel(taken + lost, lost);
            }
        }
        turn.more = !empty;
        Ok(turn)
    }

    /// Puts a loss behind which no frame has come into the ring, and counts what a killed predecessor had in flight. For when the buffer
    /// is empty: `mirrored` is what the programs had counted before that was found out.
    pub(crate) fn settle(&mut self, mirrored: u64) -> Result<(), Error> {
        let before = self.drained;
        let killed = mirrored.saturating_sub(self.drained.taken);
        self.drained.taken += killed;
        self.drained.drop_frames(DropReason::Killed, killed, 0);
        let lost = self.books.limits()?.lost;
        let more = lost.saturating_sub(self.drained.told_lost);
        if more > 0
            && let Some((ring, source)) = &mut self.ring
        {
            if let Ok(Some(mut burst)) = ring.reserve(LOSS_RECORD) {
                burst.push_loss(*source, more, realtime_ns());
                burst.commit();
            }
            ring.source(*source).add_kernel(more, more);
        }
        self.drained.told_lost = self.drained.told_lost.max(lost);
        if self.drained != before {
            self.books.set_drained(&self.drained)?;
        }
        Ok(())
    }

    /// Ends in order.
    pub(crate) fn close(mut self) {
        self.leave_ring();
    }
}

/// The time of a frame that has its place in the buffer behind one of the time `latest_ns`. The programs of both directions run on
/// several CPUs and read the clock just before they get a place: their places tell the order in which frames passed, because each
/// program has ended before its frame goes on, and the times follow.
fn in_place(time_ns: u64, latest_ns: &mut u64) -> u64 {
    let behind = latest_ns.saturating_sub(time_ns);
    // By more than that the clock was set back.
    if behind > OVERLAP_NS {
        *latest_ns = time_ns;
    }
    *latest_ns = time_ns.max(*latest_ns);
    *latest_ns
}

/// From CLOCK_BOOTTIME to CLOCK_REALTIME. Who is interrupted between two looks at clocks is wrong by as much: of some, the closest.
fn clock_offset() -> u64 {
    let look = || {
        let (before, now, after) = (boottime_ns(), realtime_ns(), boottime_ns());
        let took = after.saturating_sub(before);
        (took, now.wrapping_sub(before.saturating_add(took / 2)))
    };
    let looks = [look(), look(), look()];
    let closest = looks.into_iter().min_by_key(|(took, _)| *took);
    closest.map_or(0, |(_, offset)| offset)
}

/// What all frames of a burst have in common.
#[derive(Debug, Clone, Copy)]
struct Path {
    source: u16,
    /// From CLOCK_BOOTTIME to CLOCK_REALTIME.
    offset: u64,
    longest: usize,
    snaplen: u32,
    ethernet: bool,
}

impl Path {
    /// One frame: put it back as it was on the wire, cut it, copy it into the burst.
    fn publish(
        &self,
        record: &[u8],
        burst: &mut Burst<'_>,
        drained: &mut Drained,
        latest_ns: &mut u64,
        scratch: &mut Vec<u8>,
    ) {
        let Some(event) = Event::parse(record) else {
            burst.add_drop(DropReason::Malformed, 1);
            return drained.drop_frames(DropReason::Malformed, 1, 0);
        };
        let time = in_place(event.time_ns.wrapping_add(self.offset), latest_ns);
        if event.lost > drained.told_lost {
            burst.push_loss(self.source, event.lost - drained.told_lost, time);
            drained.told_lost = event.lost;
        }
        let (bytes, wire_len) = self.whole(&event, scratch);
        let mut frame = WireFrame::new(bytes, wire_len);
        if let Some(tag) = event.tag {
            frame.restore_tag(tag);
        }
        let longest = u32::try_from(self.longest).unwrap_or(u32::MAX);
        frame.slice(match self.snaplen {
            0 => longest,
            snaplen => snaplen.min(longest),
        });
        let mut flags = Flags::default();
        if frame.len() < frame.wire_len() as usize {
            flags |= Flags::TRUNCATED;
        }
        if event.flags & EVENT_GSO != 0 {
            flags |= Flags::GSO;
        }
        let meta = Meta {
            timestamp_ns: time,
            wire_len: frame.wire_len(),
            source: self.source,
            direction: event.direction,
            vlan_count: frame.vlan_count(),
            flags,
            ..Meta::default()
        };
        if !burst.push(&meta, &frame.pieces()) {
            burst.add_drop(DropReason::Oversize, 1); // cannot be: the room was checked
            drained.drop_frames(DropReason::Oversize, 1, wire_len.into());
        }
    }

    /// The bytes as they would have been on the wire: with an Ethernet header, and with a checksum that the sender left to the
    /// network card.
    fn whole<'b>(&self, event: &Event<'b>, scratch: &'b mut Vec<u8>) -> (&'b [u8], u32) {
        let unmade = event.flags & EVENT_NO_CSUM != 0;
        if self.ethernet && !(unmade && has_partial_checksum(event.frame)) {
            return (event.frame, event.wire_len);
        }
        scratch.clear();
        let mut wire_len = event.wire_len;
        if !self.ethernet {
            let version = event.frame.first().map_or(0, |byte| byte >> 4);
            let kind: [u8; 2] = if version == 6 { [0x86, 0xdd] } else { [8, 0] };
            scratch.extend([0; ETHERNET_LEN - 2]);
            scratch.extend(kind);
            wire_len = wire_len.saturating_add(14);
        }
        scratch.extend_from_slice(event.frame);
        if unmade && has_partial_checksum(scratch) {
            complete_checksum(scratch, 0);
        }
        (scratch, wire_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(captured: u32, frame: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(5_u64.to_ne_bytes());
        record.extend(7_u64.to_ne_bytes());
        record.extend(1518_u32.to_ne_bytes());
        record.extend(captured.to_ne_bytes());
        record.extend(3_u32.to_ne_bytes());
        record.extend(0x8100_u16.to_ne_bytes());
        record.extend(0x2064_u16.to_ne_bytes());
        record.extend([1, EVENT_GSO, 0, 0, 0, 0, 0, 0]);
        record.extend(frame);
        record
    }

    #[test]
    fn what_the_program_wrote_is_read() {
        let bytes = record(3, b"abcd");
        let event = Event::parse(&bytes).expect("a sound record");
        assert_eq!((event.time_ns, event.lost, event.wire_len), (5, 7, 1518));
        assert_eq!(
            event.tag,
            Some(VlanTag {
                tpid: 0x8100,
                tci: 0x2064
            })
        );
        assert_eq!((event.direction, event.flags), (Direction::Out, EVENT_GSO));
        assert_eq!(event.frame, b"abc");
    }

    #[test]
    fn times_follow_the_order_of_the_buffer_until_the_clock_is_set_back() {
        let mut latest = 0;
        let times = [5_000, 7_000, 6_900, 7_100, 100_000_000_000, 50, 60, 40];
        let placed = times.map(|time| in_place(time, &mut latest));
        assert_eq!(
            placed,
            [5_000, 7_000, 7_000, 7_100, 100_000_000_000, 50, 60, 60]
        );
    }

    #[test]
    fn records_that_are_too_short_for_what_they_say_are_refused() {
        assert_eq!(Event::parse(&record(5, b"abcd")), None);
        assert_eq!(Event::parse(&record(u32::MAX, b"abcd")), None);
        let whole = record(4, b"abcd");
        for length in 0..whole.len() {
            assert_eq!(Event::parse(&whole[..length]), None);
        }
    }
}
