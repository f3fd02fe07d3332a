//! Capture from one interface through AF_XDP sockets, one for each receive queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::program::{QUEUES, Redirect};
use super::ring::{Consuming, Descriptor};
use super::socket::{Socket, Use};
use super::umem::Umem;
use crate::offloads::receive_queues;
use crate::{
    CaptureNotes, CaptureOptions, CaptureStatistics, Error, FrameHead, Link, LinkWatch, Packet, sys,
};

/// Frames that are handed out at a time.
const BATCH: u32 = 256;
/// What the kernel leaves free before each frame (XDP_PACKET_HEADROOM).
const HEADROOM: usize = 256;
/// Ethernet header and two tags.
const LINK_HEADER: usize = 22;
/// Chunk sizes of the kernel that are of use.
const CHUNKS: [usize; 2] = [2048, 4096];
/// Chunks for each socket: at least as many as a driver keeps to itself.
const MIN_CHUNKS: usize = 1024;

/// A capture of receive queues of one interface.
///
/// It takes frames out of the driver before the host sees them: the host does not get them. Tags and checksums that the
/// hardware has taken out or left open are lost; what the host itself sends is not captured.
#[derive(Debug)]
pub struct XdpCapture {
    // Fields are dropped in this order: sockets while the program is still there, which passes on what has no socket.
    queues: Vec<Queue>,
    /// Polls all sockets.
    poll: OwnedFd,
    redirect: Arc<Redirect>,
    // Shared by the parts.
    _promiscuous: Option<Arc<OwnedFd>>,
    ifindex: u32,
    /// The queue to look at first.
    turn: usize,
    /// The burst of which frames are taken one at a time.
    reading: Option<Reading>,
    notes: CaptureNotes,
}

/// A place in a burst.
#[derive(Debug, Clone, Copy)]
struct Reading {
    queue: usize,
    /// Frames of it that were taken.
    taken: usize,
    timestamp_ns: u64,
}

/// A socket, and what was read of it last.
#[derive(Debug)]
struct Queue {
    socket: Socket,
    number: u32,
    chunks: u32,
    /// The frames of the present burst, in chunks of ours.
    burst: Vec<Frame>,
    /// The kernel's number of received frames, and its drops, when the statistics were read last.
    produced: u32,
    drops: u64,
    starved: u64,
}

/// A received frame: place in the UMEM, checked.
#[derive(Debug, Clone, Copy)]
struct Frame {
    chunk: u32,
    /// Where it begins in the chunk.
    offset: u64,
    len: u32,
}

impl XdpCapture {
    /// Opens a capture of all receive queues of an interface, in the network namespace of the calling thread, and divides the queues
    /// among `parts` captures, at most as many as there are queues, to be read by a thread each.
    ///
    /// Of the options, block sizes and times mean nothing here, a filter is not possible, and `ignore_outgoing` cannot be
    /// false. The buffer is divided among the queues.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_RAW, CAP_BPF, CAP_NET_ADMIN), [`Error::NoInterface`], [`Error::Option`] when the
    /// interface's MTU or its number of queues is too large; else what the kernel refuses, for instance because the interface has
    /// an XDP program.
    pub fn open(
        ifindex: u32,
        options: &CaptureOptions,
        parts: usize,
    ) -> Result<Vec<XdpCapture>, Error> {
        let link = LinkWatch::open()?.find_index(ifindex)?;
        let link = link.ok_or(Error::NoInterface { ifindex })?;
        let chunk = chunk_for(&link)?;
        let queues = count_queues(&link)?;
        let promiscuous = options
            .promiscuous
            .then(|| promiscuous(ifindex).map(Arc::new))
            .transpose()?;
        let redirect = Redirect::attach(ifindex)?;
        let share = usize::try_from(options.buffer_bytes / u64::from(queues)).unwrap_or(0);
        let chunks = (share / chunk).max(MIN_CHUNKS);
        // Not more than asked for: downwards to a power of two.
        let chunks = 1_u32 << chunks.min(1 << 20).ilog2();
        let parts = parts.clamp(1, queues as usize);
        let mut sets: Vec<Vec<Queue>> = (0..parts).map(|_| Vec::new()).collect();
        for number in 0..queues {
            let queue = Queue::open(ifindex, number, chunk, chunks)?;
            redirect.set(number, queue.socket.as_fd())?;
            if let Some(set) = sets.get_mut(number as usize % parts) {
                set.push(queue);
            }
        }
        let redirect = Arc::new(redirect);
        let capture = |queues: Vec<Queue>| {
            Ok(XdpCapture {
                poll: poll_all(&queues)
                    .map_err(|source| Error::interface("poll the queues", ifindex, source))?,
                queues,
                redirect: Arc::clone(&redirect),
                _promiscuous: promiscuous.clone(),
                ifindex,
                turn: 0,
                reading: None,
                notes: CaptureNotes::default(),
            })
        };
        sets.into_iter().map(capture).collect()
    }

    /// The interface that was opened.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// How frames get here, for people.
    pub fn mode(&self) -> &'static str {
        let copied = self.queues.iter().any(|q| !q.socket.is_zero_copy());
        match (self.redirect.is_native(), copied) {
            (true, false) => "in the driver, without copies",
            (true, true) => "in the driver, copied once",
            (false, _) => "behind the driver (generic), copied once",
        }
    }

    /// Frames of this interface that came by a queue without a socket, and went to the host. The same for all parts.
    pub fn passed(&self) -> u64 {
        self.redirect.passed()
    }

    /// Whether a frame waits to be read.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.queues.iter().any(|queue| queue.available() > 0)
    }

    /// The next frames of one of the queues, in turn, at most 256.
    #[inline]
    pub fn next_burst(&mut self) -> Option<XdpBurst<'_>> {
        if let Some(reading) = self.reading.take() {
            return Some(XdpBurst {
                timestamp_ns: reading.timestamp_ns,
                queue: self.queues.get_mut(reading.queue)?,
                taken: reading.taken,
                invalid: 0,
                losing: false,
            });
        }
        let count = self.queues.len();
        let ready = (0..count)
            .map(|step| (self.turn + step) % count)
            .find(|at| self.queues.get(*at).is_some_and(|q| q.available() > 0))?;
        self.turn = (ready + 1) % count;
        let queue = self.queues.get_mut(ready)?;
        let losing = queue.available() >= queue.chunks;
        let invalid = queue.take_burst();
        Some(XdpBurst {
            timestamp_ns: now(),
            queue,
            taken: 0,
            invalid,
            losing,
        })
    }

    /// The next frame, to be taken by [`XdpCapture::take`]. [`XdpCapture::next_burst`] has what was not taken of a burst.
    #[inline]
    pub fn head(&mut self) -> Option<FrameHead> {
        loop {
            let reading = match self.reading {
                Some(reading) => reading,
                None => self.begin()?,
            };
            let burst = self.queues.get(reading.queue).map(|queue| &queue.burst);
            if let Some(frame) = burst.and_then(|burst| burst.get(reading.taken)) {
                return Some(FrameHead {
                    timestamp_ns: reading.timestamp_ns,
                    len: frame.len as usize,
                });
            }
            drop(self.next_burst());
        }
    }

    /// Begins to take the frames of the next burst one at a time.
    fn begin(&mut self) -> Option<Reading> {
        let count = self.queues.len();
        let burst = self.next_burst()?;
        let (timestamp_ns, losing) = (burst.timestamp_ns, burst.losing);
        let unreadable = burst.invalid as u64;
        // Its frames are given back when all of them are taken.
        std::mem::forget(burst);
        self.notes.losing |= losing;
        self.notes.unreadable += unreadable;
        let reading = Reading {
            queue: (self.turn + count - 1) % count.max(1),
            taken: 0,
            timestamp_ns,
        };
        self.reading = Some(reading);
        Some(reading)
    }

    /// Takes the frame of which [`XdpCapture::head`] told. `None`: it cannot be read.
    #[inline]
    pub fn take(&mut self) -> Option<Packet<'_>> {
        let reading = self.reading.as_mut()?;
        let queue = self.queues.get(reading.queue)?;
        let frame = queue.burst.get(reading.taken)?;
        reading.taken += 1;
        let packet = frame.packet(&queue.socket.umem, reading.timestamp_ns);
        if packet.is_none() {
            self.notes.unreadable += 1;
        }
        packet
    }

    /// What came up in [`XdpCapture::head`] and [`XdpCapture::take`] since the last call.
    pub fn take_notes(&mut self) -> CaptureNotes {
        std::mem::take(&mut self.notes)
    }

    /// Whether so many frames wait to be read that the kernel may soon have no room for more.
    #[inline]
    pub fn is_pressed(&self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.available() >= queue.chunks / 2)
    }

    /// What the kernel counted since the last call.
    ///
    /// # Errors
    /// [`Error::Interface`] if the system refuses.
    pub fn statistics(&mut self) -> Result<CaptureStatistics, Error> {
        let mut sum = CaptureStatistics::default();
        for queue in &mut self.queues {
            let ifindex = self.ifindex;
            let new = queue
                .statistics()
                .map_err(|source| Error::interface("read AF_XDP statistics", ifindex, source))?;
            sum.packets += new.packets;
            sum.drops += new.drops;
            sum.freezes += new.freezes;
        }
        Ok(sum)
    }

    /// Leaves all frames to the host from now on. Those that wait can still be read.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel refuses.
    pub fn take_no_more(&self) -> Result<(), Error> {
        let mut queues = self.queues.iter();
        queues.try_for_each(|queue| self.redirect.release(queue.number))
    }

    /// The pending error of the sockets, if there is one; clears it. ENETDOWN: the interface is gone, which poll does not tell.
    /// That it is down is not told at all.
    pub fn take_error(&self) -> Option<io::Error> {
        self.queues
            .iter()
            .find_map(|queue| sys::take_error(queue.socket.as_fd()))
    }
}

impl AsFd for XdpCapture {
    /// Readable while a frame waits in one of the queues.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Queue {
    fn open(ifindex: u32, number: u32, chunk: usize, chunks: u32) -> Result<Queue, Error> {
        let umem = Umem::new(chunk, chunks as usize)
            .map_err(|source| Error::interface("reserve memory for AF_XDP", ifindex, source))?;
        // Rings with room for all chunks are never full.
        let mut socket = Socket::open(ifindex, number, umem, Use::Receive(chunks))?;
        for chunk in 0..chunks {
            lend(&mut socket, chunk);
        }
        socket.fill.publish();
        socket.kick_fill();
        Ok(Queue {
            socket,
            number,
            chunks,
            burst: Vec::with_capacity(BATCH as usize),
            produced: 0,
            drops: 0,
            starved: 0,
        })
    }

    /// Frames that wait.
    #[inline]
    fn available(&self) -> u32 {
        let ring = self.socket.receive.as_ref();
        ring.map_or(0, Consuming::available)
    }

    /// Reads the descriptors of the next frames; how many of them made no sense.
    #[inline]
    fn take_burst(&mut self) -> usize {
        self.burst.clear();
        let Some(ring) = &mut self.socket.receive else {
            return 0;
        };
        let mut invalid = 0;
        for _ in 0..ring.available().min(BATCH) {
            let Descriptor { addr, len, .. } = ring.pop();
            let Some(chunk) = self.socket.umem.take_back(addr, len) else {
                invalid += 1;
                continue;
            };
            let offset = addr.wrapping_sub(self.socket.umem.addr(chunk));
            self.burst.push(Frame { chunk, offset, len });
        }
        ring.release();
        invalid
    }

    /// Gives the chunks of the burst to the kernel again.
    #[inline]
    fn give_back(&mut self) {
        for frame in self.burst.drain(..) {
            lend(&mut self.socket, frame.chunk);
        }
        self.socket.fill.publish();
        self.socket.kick_fill();
    }

    fn statistics(&mut self) -> io::Result<CaptureStatistics> {
        let now = self.socket.statistics()?;
        let ring = self.socket.receive.as_ref();
        let produced = ring.map_or(0, Consuming::produced);
        let drops = now.rx_dropped.wrapping_add(now.rx_ring_full);
        let starved = now.rx_fill_ring_empty_descs;
        let kept = produced.wrapping_sub(std::mem::replace(&mut self.produced, produced));
        let dropped = drops.wrapping_sub(std::mem::replace(&mut self.drops, drops));
        Ok(CaptureStatistics {
            packets: u64::from(kept) + dropped,
            drops: dropped,
            freezes: starved.wrapping_sub(std::mem::replace(&mut self.starved, starved)),
        })
    }
}

/// Puts a chunk of ours into the fill ring, to be published.
#[inline]
fn lend(socket: &mut Socket, chunk: u32) {
    if socket.fill.push(socket.umem.addr(chunk)) {
        socket.umem.lend(chunk);
    }
}

/// Frames of one queue. Dropping it gives them back to the kernel.
#[derive(Debug)]
pub struct XdpBurst<'a> {
    queue: &'a mut Queue,
    timestamp_ns: u64,
    /// Frames that were taken one at a time before.
    taken: usize,
    invalid: usize,
    losing: bool,
}

impl XdpBurst<'_> {
    /// Frames in the burst, with those that cannot be read because the kernel's descriptors make no sense.
    #[inline]
    pub fn len(&self) -> usize {
        self.queue.burst.len().saturating_sub(self.taken) + self.invalid
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all buffers were full, so that frames have been dropped, or the next ones would have been.
    #[inline]
    pub fn losing(&self) -> bool {
        self.losing
    }

    /// The frames, in the order of arrival at this queue.
    #[inline]
    pub fn packets(&mut self) -> XdpPackets<'_> {
        XdpPackets {
            umem: &self.queue.socket.umem,
            frames: self
                .queue
                .burst
                .get(self.taken..)
                .unwrap_or_default()
                .iter(),
            timestamp_ns: self.timestamp_ns,
            invalid: self.invalid,
        }
    }
}

impl Drop for XdpBurst<'_> {
    fn drop(&mut self) {
        self.queue.give_back();
    }
}

/// Walks the frames of a burst.
#[derive(Debug)]
pub struct XdpPackets<'a> {
    umem: &'a Umem,
    frames: std::slice::Iter<'a, Frame>,
    timestamp_ns: u64,
    invalid: usize,
}

impl XdpPackets<'_> {
    /// Frames that the walk has not reached: after the end, those that cannot be read.
    pub fn left(&self) -> usize {
        self.frames.len() + self.invalid
    }
}

impl<'a> Iterator for XdpPackets<'a> {
    type Item = Packet<'a>;

    #[inline]
    fn next(&mut self) -> Option<Packet<'a>> {
        self.frames.next()?.packet(self.umem, self.timestamp_ns)
    }
}

impl Frame {
    /// Its bytes, in the UMEM of the burst that it is of. Each frame of a burst is to be asked once.
    #[inline]
    fn packet<'a>(&self, umem: &'a Umem, timestamp_ns: u64) -> Option<Packet<'a>> {
        let (offset, len) = (usize::try_from(self.offset).ok()?, self.len as usize);
        let place = umem.bytes(self.chunk, offset, len)?;
        // SAFETY: the bytes are within a chunk that the kernel has given back, so it does not touch them before the burst is
        // dropped or read to its end, which takes the UMEM mutably. No two frames of a burst are in the same chunk: it was given
        // back once only.
        let data = unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), len) };
        Some(Packet {
            data,
            wire_len: self.len,
            timestamp_ns,
            vlan: None,
            outgoing: false,
            checksum_partial: false,
            gso: false,
            losing: false,
            stamped: false,
        })
    }
}

/// The smallest size of chunks that holds the frames of an interface.
fn chunk_for(link: &Link) -> Result<usize, Error> {
    let longest = (link.mtu as usize).saturating_add(LINK_HEADER + HEADROOM);
    CHUNKS
        .into_iter()
        .find(|chunk| longest <= *chunk)
        .ok_or(Error::Option {
            option: "MTU of the interface",
            value: link.mtu.into(),
            advice: "AF_XDP takes frames up to 3840 bytes, which is an MTU of 3818",
        })
}

fn count_queues(link: &Link) -> Result<u32, Error> {
    match receive_queues(&link.name)? {
        count @ 1..=QUEUES => Ok(count),
        count => Err(Error::Option {
            option: "number of receive queues",
            value: count.into(),
            advice: "1 to 256 can be captured with AF_XDP: ethtool -L",
        }),
    }
}

/// A socket that receives nothing, and asks for frames to other stations as long as it is open.
fn promiscuous(ifindex: u32) -> Result<OwnedFd, Error> {
    let open = || {
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        sys::join_promiscuous(socket.as_fd(), ifindex)?;
        Ok(socket)
    };
    open().map_err(|source| Error::interface("ask for promiscuous mode", ifindex, source))
}

/// One descriptor to poll for all queues.
fn poll_all(queues: &[Queue]) -> io::Result<OwnedFd> {
    if let [only] = queues {
        return only.socket.as_fd().try_clone_to_owned();
    }
    let poll = sys::epoll()?;
    for queue in queues {
        sys::epoll_add(poll.as_fd(), queue.socket.as_fd())?;
    }
    Ok(poll)
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
