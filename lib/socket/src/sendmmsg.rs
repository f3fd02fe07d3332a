//! Sending through sendmmsg(2) on a packet socket: works on every interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::{Error, Outgoing, SendReport, Transmitter, sys};

/// Frames in one system call.
const BATCH: usize = 64;
/// Pieces of a frame.
const PIECES: usize = 3;
/// Memory for frames that wait in a queue of the interface: a full batch of 64 KiB frames. The default of a host may be less.
const SEND_BUFFER: libc::c_int = 8 << 20;
/// Pauses before a frame that met a full queue is tried again; once each in a call, below 1 ms together.
pub(crate) const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_micros(50),
    Duration::from_micros(150),
    Duration::from_micros(400),
];
/// How long the kernel gets to pass on what is in the queues between two ways to the same peer.
pub(crate) const SETTLE: Duration = Duration::from_millis(1);
/// How long a call waits for room in the socket's own queue.
const QUEUE_TIMEOUT_MS: libc::c_int = 100;
/// How long a socket that is to be closed is waited for.
pub(crate) const DRAIN: Duration = Duration::from_millis(5);
/// The largest MTU of Linux, Ethernet header and two tags.
const MAX_FRAME: usize = 65_535 + 14 + 8;

/// A transmitter on packet sockets that receive nothing, one for each interface.
///
/// An interface without carrier takes frames and drops them without telling, unless queueing disciplines
/// are bypassed; only [`crate::Link::tx_dropped`] counts them. Look at [`crate::Link::carrier`] first.
pub struct Sendmmsg {
    qdisc_bypass: bool,
    sockets: Vec<Option<Socket>>,
    messages: Box<[libc::mmsghdr; BATCH]>,
    pieces: Box<[[libc::iovec; PIECES]; BATCH]>,
}

/// A packet socket bound to an interface.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    ifindex: u32,
}

// SAFETY: the pointers in `messages` lead to `pieces`, which moves with them on the heap, and those in
// `pieces` are only followed by the system call within `send`, while the frames are borrowed.
unsafe impl Send for Sendmmsg {}

impl std::fmt::Debug for Sendmmsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sendmmsg")
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

impl Sendmmsg {
    /// A transmitter without interfaces.
    ///
    /// `qdisc_bypass` hands frames to the driver without queueing disciplines: faster, but what the driver
    /// then drops is not always reported.
    pub fn new(qdisc_bypass: bool) -> Sendmmsg {
        Sendmmsg {
            qdisc_bypass,
            sockets: Vec::new(),
            messages: Box::new([EMPTY_MESSAGE; BATCH]),
            pieces: Box::new([[EMPTY_PIECE; PIECES]; BATCH]),
        }
    }

    /// A transmitter for one interface.
    ///
    /// # Errors
    /// As [`Transmitter::set_interfaces`]: [`Error::Permission`] (CAP_NET_RAW), [`Error::NoInterface`], [`Error::Interface`].
    pub fn open(ifindex: u32, qdisc_bypass: bool) -> Result<Sendmmsg, Error> {
        let mut transmit = Sendmmsg::new(qdisc_bypass);
        transmit.set_interfaces(&[ifindex])?;
        Ok(transmit)
    }

    /// Waits, not for long, until all has arrived that was sent through sockets that are to be closed: what is sent in another way
    /// from then on must not overtake it.
    fn drain(&self, closing: impl Fn(&Socket) -> bool) {
        let end = Instant::now() + DRAIN;
        let full = |socket: &Socket| sys::unsent_bytes(socket.fd.as_fd()).is_ok_and(|n| n > 0);
        let waits = || self.sockets.iter().flatten().any(|s| closing(s) && full(s));
        while waits() && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    /// Whether everything that was sent to an interface has left its queues and those of its peer, as far as the kernel knows.
    pub(crate) fn is_drained(&self, output: usize) -> bool {
        let Some(Some(socket)) = self.sockets.get(output) else {
            return true;
        };
        sys::unsent_bytes(socket.fd.as_fd()).is_ok_and(|bytes| bytes == 0)
    }

    /// Whether an interface is down, or gone.
    #[cold]
    pub(crate) fn is_down(&self, output: usize) -> bool {
        let Some(Some(socket)) = self.sockets.get(output) else {
            return false;
        };
        !sys::is_up(socket.fd.as_fd(), socket.ifindex).unwrap_or(false)
    }

    /// Sends the last of `frames` to one output behind frames that went another way and have arrived, and waits until it has
    /// left the queues too, at most 1 ms: they may not be those that later frames will be in.
    pub(crate) fn send_alone(
        &mut self,
        output: usize,
        frames: &[Outgoing<'_>],
        report: &mut SendReport,
    ) {
        self.send_to(output, frames, frames.len().saturating_sub(1), report);
        let end = Instant::now() + SETTLE;
        while !self.is_drained(output) && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    /// Sends the frames of one output, beginning at place `from` of the call.
    pub(crate) fn send_to(
        &mut self,
        output: usize,
        frames: &[Outgoing<'_>],
        from: usize,
        report: &mut SendReport,
    ) {
        let Some(Some(socket)) = self.sockets.get(output) else {
            return;
        };
        let fd = socket.fd.as_raw_fd();
        let mut patience = Patience::default();
        let mut places = [0_usize; BATCH];
        let mut wanted = (from..).zip(frames.get(from..).unwrap_or_default());
        loop {
            let mut count = 0;
            for (place, frame) in wanted.by_ref().filter(|(_, frame)| frame.goes_to(output)) {
                places[count] = place;
                self.fill(count, frame);
                count += 1;
                if count == BATCH {
                    break;
                }
            }
            if count == 0 {
                return;
            }
            if let Err(errno) = self.send_batch(fd, frames, &places[..count], &mut patience, report)
            {
                let rest = wanted.filter(|(_, frame)| frame.goes_to(output));
                rest.for_each(|(place, _)| report.refuse(place, errno));
                return;
            }
        }
    }

    /// Sends the messages that are filled in. An error means that the interface takes nothing: all are counted then.
    fn send_batch(
        &mut self,
        fd: RawFd,
        frames: &[Outgoing<'_>],
        places: &[usize],
        patience: &mut Patience,
        report: &mut SendReport,
    ) -> Result<(), i32> {
        let mut done = 0;
        while let Some(&place) = places.get(done) {
            match self.send_from(fd, done, places.len()) {
                Ok(count) => {
                    let sent = places.iter().skip(done).take(count);
                    let bytes = sent
                        .filter_map(|place| frames.get(*place))
                        .map(Outgoing::len);
                    report.sent_bytes += bytes.sum::<usize>() as u64;
                    report.sent += count as u64;
                    done += count;
                }
                Err(errno) if patience.try_again(errno, fd, report) => {}
                Err(errno @ (libc::ENETDOWN | libc::ENXIO | libc::ENODEV)) => {
                    let rest = places.iter().skip(done);
                    rest.for_each(|place| report.refuse(*place, errno));
                    return Err(errno);
                }
                Err(errno) => {
                    report.refuse(place, errno);
                    done += 1;
                }
            }
        }
        Ok(())
    }

    /// Points a message to a frame.
    fn fill(&mut self, at: usize, frame: &Outgoing<'_>) {
        let (Some(message), Some(pieces)) = (self.messages.get_mut(at), self.pieces.get_mut(at))
        else {
            return;
        };
        // The kernel looks at each piece once more; one in one piece it copies without ado.
        let filled = frame.pieces.iter().filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slot, piece) in pieces.iter_mut().zip(filled) {
            slot.iov_base = piece.as_ptr().cast_mut().cast();
            slot.iov_len = piece.len();
            count += 1;
        }
        message.msg_hdr.msg_iov = pieces.as_mut_ptr();
        message.msg_hdr.msg_iovlen = count;
    }

    /// One system call for the messages `from..to`: how many were sent, or the errno of the first.
    fn send_from(&mut self, fd: RawFd, from: usize, to: usize) -> Result<usize, i32> {
        let messages = self.messages.get_mut(from..to).unwrap_or_default();
        let count = libc::c_uint::try_from(messages.len()).unwrap_or_default();
        // SAFETY: `messages` are `count` headers that `fill` pointed to pieces of frames; `send_to` borrows
        // these for longer than this call, which only reads them, and writes the lengths in the headers.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        match usize::try_from(sent) {
            // Not to be expected for a batch that is not empty; an error keeps the loop from spinning.
            Ok(0) => Err(libc::EIO),
            Ok(sent) => Ok(sent.min(messages.len())),
            Err(_) => Err(io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)),
        }
    }
}

impl Socket {
    fn open(ifindex: u32, qdisc_bypass: bool) -> Result<Socket, Error> {
        let failed = |operation| move |source| Error::interface(operation, ifindex, source);
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
            .map_err(failed("open a packet socket"))?;
        let fd = socket.as_fd();
        sys::set_send_buffer(fd, SEND_BUFFER).map_err(failed("set the send buffer"))?;
        if qdisc_bypass {
            sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)
                .map_err(failed("bypass queueing disciplines"))?;
        }
        sys::bind_packet(fd, ifindex, 0).map_err(failed("bind the packet socket"))?;
        Ok(Socket {
            fd: socket,
            ifindex,
        })
    }
}

impl Transmitter for Sendmmsg {
    fn name(&self) -> &'static str {
        "sendmmsg"
    }

    fn set_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), Error> {
        let open = |ifindex: &u32| {
            let known = |socket: &&Socket| socket.ifindex == *ifindex;
            match *ifindex {
                0 => Ok(None),
                _ if self.sockets.iter().flatten().any(|s| known(&s)) => Ok(None),
                new => Socket::open(new, self.qdisc_bypass).map(Some),
            }
        };
        let opened: Result<Vec<Option<Socket>>, Error> = ifindexes.iter().map(open).collect();
        let opened = opened?;
        self.drain(|socket| !ifindexes.contains(&socket.ifindex));
        let mut sockets = std::mem::replace(&mut self.sockets, opened);
        for (place, ifindex) in self.sockets.iter_mut().zip(ifindexes) {
            if place.is_none() {
                let mut old = sockets.iter_mut();
                let known = old.find(|s| s.as_ref().is_some_and(|s| s.ifindex == *ifindex));
                *place = known.and_then(Option::take);
            }
        }
        Ok(())
    }

    fn send(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        for (output, report) in reports.iter_mut().enumerate().take(self.sockets.len()) {
            if self.sockets[output].is_some() {
                report.clear();
                self.send_to(output, frames, 0, report);
            }
        }
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }
}

/// What a call may still wait for.
#[derive(Debug, Default)]
struct Patience {
    pauses: usize,
    waited_for_queue: bool,
    saw_stale_down: bool,
}

impl Patience {
    /// Whether the frame that met `errno` is to be tried again, after the pause taken here.
    fn try_again(&mut self, errno: i32, fd: RawFd, report: &mut SendReport) -> bool {
        match errno {
            libc::EINTR => return true,
            // A pending error of the socket, left from an interface that was down before, is told once.
            libc::ENETDOWN if !self.saw_stale_down => {
                self.saw_stale_down = true;
                return true;
            }
            libc::ENOBUFS => {
                let Some(pause) = RETRY_PAUSES.get(self.pauses) else {
                    return false;
                };
                self.pauses += 1;
                std::thread::sleep(*pause);
            }
            libc::EAGAIN if !self.waited_for_queue => {
                self.waited_for_queue = !wait_writable(fd);
            }
            _ => return false,
        }
        report.retries += 1;
        true
    }
}

/// Whether the socket had room within [`QUEUE_TIMEOUT_MS`].
fn wait_writable(fd: RawFd) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, valid for the call.
    unsafe { libc::poll(&mut entry, 1, QUEUE_TIMEOUT_MS) == 1 }
}

const EMPTY_PIECE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Without address: the socket is bound to its interface.
// SAFETY: msghdr is integers and pointers, all of which may be zero (it has private padding on some
// targets, so it cannot be written out).
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };
