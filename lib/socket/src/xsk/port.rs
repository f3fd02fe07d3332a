//! One interface of an AF_XDP transmitter: its socket, its chunks, and what becomes of each frame.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::ring::{Descriptor, Producing};
use super::socket::{Socket, Use};
use super::umem::Umem;
use crate::mmsg::RETRY_PAUSES;
use crate::{Error, Fate, LinkWatch, Outgoing, SendReport, sys};

/// Bytes of a chunk, and with that of the longest frame.
pub(super) const CHUNK: usize = 4096;
/// Chunks of an interface, a power of two: so many frames can be on their way.
const CHUNKS: u32 = 2048;
/// Frames that are handed to the kernel at a time.
const RUN: usize = 256;
/// Memory of the kernel's for frames on their way.
const SEND_BUFFER: libc::c_int = 16 << 20;
/// Frames that the kernel copies in one system call, and so many are put into the ring at a time: the fewer there are, the
/// fewer have to be withdrawn when it stops (TX_BATCH_SIZE in net/xdp/xsk.c).
const BUDGET: usize = 32;
/// How long one call waits for the kernel, which has all chunks or refuses to go on.
const PATIENCE: Duration = Duration::from_millis(100);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_micros(50);
/// Ethernet header, a tag.
const ETHERNET: usize = 14;
const TAG: usize = 4;
/// A descriptor that the kernel skips, and counts: it leads out of its chunk.
const WITHDRAWN: Descriptor = Descriptor {
    addr: u64::MAX,
    len: u32::MAX,
    options: 0,
};

/// What belongs to one call of [`crate::Transmitter::send`] and one interface.
pub(super) struct Call<'c> {
    pub(super) report: &'c mut SendReport,
    links: Option<&'c mut LinkWatch>,
    /// How long it has waited for the kernel to go on.
    waited: Duration,
    /// Pauses that were made before a lost frame was tried again.
    retries: usize,
    /// A frame was lost.
    careful: bool,
}

impl<'c> Call<'c> {
    pub(super) fn new(report: &'c mut SendReport, links: Option<&'c mut LinkWatch>) -> Call<'c> {
        Call {
            report,
            links,
            waited: Duration::ZERO,
            retries: 0,
            careful: false,
        }
    }

    fn sent(&mut self, frames: &[Staged]) {
        for frame in frames {
            self.report.add_sent(frame.len.into());
        }
    }

    fn refuse(&mut self, frames: &[Staged], errno: i32) {
        for frame in frames {
            self.report.refuse(frame.place, errno);
        }
    }

    /// Whether to ask the kernel once more, after a pause.
    fn waits(&mut self) -> bool {
        if self.waited >= PATIENCE {
            return false;
        }
        let since = Instant::now();
        std::thread::sleep(PAUSE);
        self.waited += since.elapsed();
        self.report.retries += 1;
        true
    }
}

/// A frame in a chunk.
#[derive(Debug, Clone, Copy)]
struct Staged {
    /// Its place in the call.
    place: usize,
    chunk: u32,
    len: u32,
}

/// An interface.
#[derive(Debug)]
pub(super) struct Port {
    ifindex: u32,
    /// None after a driver without copies refused to go on: nobody knows which frames it has taken.
    socket: Option<Socket>,
    /// Why there is none.
    errno: i32,
    /// The MTU, as far as it is known.
    mtu: usize,
    /// Chunks that are ours, and not in the run.
    free: Vec<u32>,
    /// Frames to be handed over, copied into chunks of ours.
    run: Vec<Staged>,
    /// There may be withdrawn frames in the ring.
    withdrawn: bool,
}

impl Port {
    /// Opens the socket; the errors are those of [`Socket::open`].
    pub(super) fn open(ifindex: u32, links: &mut LinkWatch) -> Result<Port, Error> {
        let failed = |operation| move |source| Error::interface(operation, ifindex, source);
        let link = links.find_index(ifindex)?;
        let link = link.ok_or(Error::NoInterface { ifindex })?;
        let umem =
            Umem::new(CHUNK, CHUNKS as usize).map_err(failed("reserve memory for AF_XDP"))?;
        let socket = Socket::open(ifindex, 0, umem, Use::Transmit(CHUNKS))?;
        sys::set_send_buffer(socket.as_fd(), SEND_BUFFER).map_err(failed("set the send buffer"))?;
        Ok(Port {
            ifindex,
            socket: Some(socket),
            errno: 0,
            mtu: link.mtu as usize,
            free: (0..CHUNKS).rev().collect(),
            run: Vec::with_capacity(RUN),
            withdrawn: false,
        })
    }

    /// Whether it is open on that interface.
    pub(super) fn is(&self, ifindex: u32) -> bool {
        self.ifindex == ifindex && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    pub(super) fn is_zero_copy(&self) -> bool {
        self.socket.as_ref().is_some_and(Socket::is_zero_copy)
    }

    /// Whether a frame goes through packet sockets: because it does not fit into a chunk, or because the kernel, which does
    /// not hold AF_XDP to the MTU, is to say whether it is too long.
    #[inline]
    pub(super) fn is_long(&self, frame: &Outgoing<'_>) -> bool {
        let (len, most) = (frame.len(), self.mtu + ETHERNET);
        len > CHUNK || (len > most && (len > most + TAG || !is_tagged(frame)))
    }

    /// Takes the chunks that the kernel has done with.
    #[inline]
    pub(super) fn collect(&mut self) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let count = socket.completion.available();
        for _ in 0..count {
            let addr = socket.completion.pop();
            if let Some(chunk) = socket.umem.take_back(addr, 0) {
                self.free.push(chunk);
            }
        }
        if count > 0 {
            socket.completion.release();
        }
    }

    /// Waits, at most `patience`, until the kernel has done with all that was sent: what goes another way must not overtake it.
    pub(super) fn settle(&mut self, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            self.collect();
            if !self.is_open() || self.free.len() >= CHUNKS as usize || Instant::now() >= end {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Copies a frame of at most [`CHUNK`] bytes into a chunk, to be sent with others; makes room when there is none.
    #[inline]
    pub(super) fn take(&mut self, place: usize, frame: &Outgoing<'_>, call: &mut Call<'_>) {
        if self.run.len() >= RUN || self.free.is_empty() {
            self.flush(call);
        }
        while self.free.is_empty() && self.is_open() && call.waits() {
            self.collect();
        }
        let Some(socket) = &mut self.socket else {
            return call.report.refuse(place, self.errno);
        };
        let Some(chunk) = self.free.pop() else {
            return call.report.fail(place, Fate::Unreachable);
        };
        let len = frame.len();
        if let Some(to) = socket.umem.bytes(chunk, 0, len) {
            let mut to = to.as_ptr();
            for piece in &frame.pieces {
                // SAFETY: the chunk is ours and the pieces lie elsewhere; together they are `len` bytes long, which is what
                // was asked for.
                unsafe {
                    to.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                    to = to.add(piece.len());
                }
            }
        }
        let len = u32::try_from(len).unwrap_or(0); // at most CHUNK
        self.run.push(Staged { place, chunk, len });
    }

    /// Sends what was taken, and counts it.
    pub(super) fn flush(&mut self, call: &mut Call<'_>) {
        let mut run = std::mem::take(&mut self.run);
        let mut rest = run.as_slice();
        while !rest.is_empty() {
            let done = match &mut self.socket {
                None => {
                    let errno = self.errno;
                    self.give_up(rest, errno, call)
                }
                Some(socket) if socket.is_zero_copy() => self.hand_over(rest, call),
                Some(_) => self.send(rest, call),
            };
            rest = rest.get(done..).unwrap_or_default();
        }
        run.clear();
        self.run = run;
        self.collect();
    }

    /// Has the kernel copy and send frames within the system call; how many of them are dealt with. The chunks of the others
    /// are ours still, or again.
    fn send(&mut self, run: &[Staged], call: &mut Call<'_>) -> usize {
        // After a loss one by one, so that the kernel's answer is about that one.
        let some = if call.careful { 1 } else { BUDGET };
        let some = run.get(..some).unwrap_or(run);
        let Some(socket) = &mut self.socket else {
            return 0;
        };
        if self.withdrawn {
            if let Err(errno) = socket.skip_withdrawn() {
                return self.give_up(run, errno, call);
            }
            self.withdrawn = false;
        }
        let Err(errno) = socket.send(some, call) else {
            call.sent(some);
            return some.len();
        };
        let sent = match (errno, some) {
            (libc::EBUSY, [only]) => std::slice::from_ref(only),
            _ => {
                self.withdrawn = true;
                let left = socket.withdraw(some);
                some.get(..some.len() - left).unwrap_or_default()
            }
        };
        match (errno, sent.split_last()) {
            // The kernel dropped one frame on its way into the interface, and stopped behind it.
            (libc::EBUSY, Some((lost, sent))) => {
                call.careful = true;
                call.sent(sent);
                sent.len() + usize::from(!self.tries_again(lost, call))
            }
            _ => {
                call.sent(sent);
                let left = run.get(sent.len()..).unwrap_or_default();
                sent.len() + self.give_up(left, errno, call)
            }
        }
    }

    /// Counts frames that are not sent because of `errno`, and keeps their chunks; how many they are.
    fn give_up(&mut self, run: &[Staged], errno: i32, call: &mut Call<'_>) -> usize {
        call.refuse(run, errno);
        self.free.extend(run.iter().map(|frame| frame.chunk));
        run.len()
    }

    /// Whether a frame that the kernel dropped is to be sent again; counts it if not.
    fn tries_again(&mut self, lost: &Staged, call: &mut Call<'_>) -> bool {
        let fate = match self.look(call) {
            Some(fate) => fate,
            None if lost.len as usize > self.mtu + ETHERNET + TAG => Fate::Oversize,
            None => Fate::NoBuffer,
        };
        if fate == Fate::NoBuffer
            && let Some(pause) = RETRY_PAUSES.get(call.retries)
        {
            call.retries += 1;
            std::thread::sleep(*pause);
            self.collect();
            // Its chunk is the last that came back, or one of the last.
            let at = self.free.iter().rposition(|chunk| *chunk == lost.chunk);
            if let Some(at) = at {
                self.free.swap_remove(at);
                call.report.retries += 1;
                return true;
            }
        }
        call.report.fail(lost.place, fate);
        false
    }

    /// Looks at the interface again: its MTU, and what keeps frames from leaving.
    pub(super) fn look(&mut self, call: &mut Call<'_>) -> Option<Fate> {
        match call.links.as_mut()?.find_index(self.ifindex) {
            Ok(Some(link)) => {
                self.mtu = link.mtu as usize;
                (!link.up).then_some(Fate::LinkDown)
            }
            Ok(None) => Some(Fate::NoInterface),
            Err(_) => None,
        }
    }

    /// Hands frames to a driver that sends them from their chunks, later; how many of them are dealt with.
    fn hand_over(&mut self, run: &[Staged], call: &mut Call<'_>) -> usize {
        let Some(socket) = &mut self.socket else {
            return 0;
        };
        socket.submit(run);
        match socket.wake_driver() {
            Ok(()) => call.sent(run),
            Err(errno) => {
                let left = run.len().min(socket.unsent());
                let (sent, left) = run.split_at(run.len() - left);
                call.sent(sent);
                call.refuse(left, errno);
                // What it has not taken must not leave later.
                (self.socket, self.errno) = (None, errno);
            }
        }
        run.len()
    }
}

/// The transmit ring of a socket.
impl Socket {
    /// Puts frames into the ring. It has room: there are as many entries as chunks.
    fn submit(&mut self, run: &[Staged]) {
        let Some(ring) = &mut self.transmit else {
            return;
        };
        for frame in run {
            let descriptor = Descriptor {
                addr: self.umem.addr(frame.chunk),
                len: frame.len,
                options: 0,
            };
            if ring.push(descriptor) {
                self.umem.lend(frame.chunk);
            }
        }
        ring.publish();
    }

    /// Entries that the kernel has not taken, as far as it tells.
    fn unsent(&mut self) -> usize {
        self.transmit
            .as_mut()
            .map_or(0, |ring| ring.used() as usize)
    }

    /// Sends frames in copy mode. An errno says why the kernel stopped before the end; EBUSY, that it dropped the frame at
    /// which it stopped (xsk_generic_xmit in net/xdp/xsk.c).
    fn send(&mut self, run: &[Staged], call: &mut Call<'_>) -> Result<(), i32> {
        self.submit(run);
        loop {
            match self.kick_transmit() {
                Ok(()) if self.unsent() == 0 => return Ok(()),
                // No memory, a queue that is stopped, or one that is gone: that may pass.
                Ok(()) | Err(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => {
                    if !call.waits() {
                        return Err(libc::ENOBUFS);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes back what the kernel has not sent; how many frames of the end of the run that is. Not every kernel moves
    /// its number at each end of a system call, but each counts the entries that it skips.
    fn withdraw(&mut self, run: &[Staged]) -> usize {
        let before = self.statistics().map(|counters| counters.tx_invalid_descs);
        if let Some(ring) = &mut self.transmit {
            ring.overwrite(WITHDRAWN);
        }
        let skipped = self.skip_withdrawn();
        let after = self.statistics().map(|counters| counters.tx_invalid_descs);
        let left = match (skipped, before, after) {
            (Ok(()), Ok(before), Ok(after)) => {
                usize::try_from(after.wrapping_sub(before)).unwrap_or(usize::MAX)
            }
            // The interface is down or gone: nothing was sent in the last call.
            _ => self.unsent(),
        };
        let left = left.min(run.len());
        for frame in run.iter().skip(run.len() - left) {
            self.umem.take_back(self.umem.addr(frame.chunk), 0);
        }
        left
    }

    /// Has the kernel skip what was withdrawn, if it has not.
    fn skip_withdrawn(&mut self) -> Result<(), i32> {
        // Depending on the kernel, it skips one or all in a system call, and says so at the beginning of the next one.
        for _ in 0..self.unsent() + 2 {
            if self.unsent() == 0 {
                return Ok(());
            }
            self.kick_transmit()?;
        }
        Err(libc::ENOBUFS)
    }

    /// Has a driver without copies look at the ring, when it waits for that.
    fn wake_driver(&mut self) -> Result<(), i32> {
        if !self.transmit.as_ref().is_some_and(Producing::needs_wakeup) {
            return Ok(());
        }
        match self.kick_transmit() {
            // It is at work.
            Err(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(()),
            result => result,
        }
    }
}

/// Whether a frame of at least 14 bytes has a VLAN tag, for which the kernel allows four bytes beyond the MTU.
fn is_tagged(frame: &Outgoing<'_>) -> bool {
    let mut bytes = frame.pieces.iter().copied().flatten().skip(12);
    matches!(
        (bytes.next(), bytes.next()),
        (Some(0x81), Some(0x00)) | (Some(0x88), Some(0xa8))
    )
}
