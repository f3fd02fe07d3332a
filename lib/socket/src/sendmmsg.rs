//! Sending through sendmmsg(2) on a packet socket: works on every interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::{Error, SendReport, Transmitter, sys};

/// Frames in one system call.
const BATCH: usize = 64;
/// Pieces of a frame.
const PIECES: usize = 3;
/// Memory for frames that wait in a queue of the interface: a full batch of 64 KiB frames.
const SEND_BUFFER: libc::c_int = 8 << 20;
/// Pauses before a frame that met a full queue is tried again; once each in a call, below 1 ms together.
const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_micros(50),
    Duration::from_micros(150),
    Duration::from_micros(400),
];
/// How long a call waits for room in the socket's own queue.
const QUEUE_TIMEOUT_MS: libc::c_int = 100;
/// The largest MTU of Linux, Ethernet header and two tags.
const MAX_FRAME: usize = 65_535 + 14 + 8;

/// A transmitter on a packet socket that receives nothing.
///
/// An interface without carrier takes frames and drops them without telling, unless queueing disciplines
/// are bypassed; only [`crate::Link::tx_dropped`] counts them. Look at [`crate::Link::carrier`] first.
pub struct Sendmmsg {
    socket: OwnedFd,
    ifindex: u32,
    messages: Box<[libc::mmsghdr; BATCH]>,
    pieces: Box<[[libc::iovec; PIECES]; BATCH]>,
}

// SAFETY: the pointers in `messages` lead to `pieces`, which moves with them on the heap, and those in
// `pieces` are only followed by the system call within `send`, while the frames are borrowed.
unsafe impl Send for Sendmmsg {}

impl std::fmt::Debug for Sendmmsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sendmmsg")
            .field("socket", &self.socket)
            .field("ifindex", &self.ifindex)
            .finish_non_exhaustive()
    }
}

impl Sendmmsg {
    /// Opens a transmitter for the interface `ifindex`, in the network namespace of the calling thread.
    ///
    /// `qdisc_bypass` hands frames to the driver without queueing disciplines: faster, but what the driver
    /// then drops is not always reported.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_RAW), [`Error::NoInterface`], [`Error::Interface`].
    pub fn open(ifindex: u32, qdisc_bypass: bool) -> Result<Sendmmsg, Error> {
        let failed = |operation| move |source| Error::interface(operation, ifindex, source);
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
            .map_err(failed("open a packet socket"))?;
        let fd = socket.as_fd();
        set_send_buffer(fd).map_err(failed("set the send buffer"))?;
        if qdisc_bypass {
            sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)
                .map_err(failed("bypass queueing disciplines"))?;
        }
        sys::bind_packet(fd, ifindex, 0).map_err(failed("bind the packet socket"))?;
        Ok(Sendmmsg {
            socket,
            ifindex,
            messages: Box::new([EMPTY_MESSAGE; BATCH]),
            pieces: Box::new([[EMPTY_PIECE; PIECES]; BATCH]),
        })
    }

    /// Sends at most [`BATCH`] frames. Counts those that it is done with.
    fn send_batch(
        &mut self,
        frames: &[[&[u8]; PIECES]],
        patience: &mut Patience,
        report: &mut SendReport,
    ) -> Result<(), Error> {
        self.fill(frames);
        let mut done = 0;
        while done < frames.len() {
            match self.send_from(done, frames.len()) {
                Ok(count) => {
                    let sent = frames.iter().skip(done).take(count);
                    report.sent_bytes += sent.map(|f| frame_len(f) as u64).sum::<u64>();
                    report.sent += count as u64;
                    done += count;
                }
                Err(errno) if patience.try_again(errno, self.as_fd(), report) => {}
                Err(errno @ (libc::ENETDOWN | libc::ENXIO | libc::ENODEV)) => {
                    let source = io::Error::from_raw_os_error(errno);
                    return Err(Error::interface("send frames", self.ifindex, source));
                }
                Err(errno) => {
                    report.refuse(errno, 1);
                    done += 1;
                }
            }
        }
        Ok(())
    }

    /// Points the messages to the frames.
    fn fill(&mut self, frames: &[[&[u8]; PIECES]]) {
        let slots = self.messages.iter_mut().zip(self.pieces.iter_mut());
        for (frame, (message, pieces)) in frames.iter().zip(slots) {
            for (slot, piece) in pieces.iter_mut().zip(frame) {
                slot.iov_base = piece.as_ptr().cast_mut().cast();
                slot.iov_len = piece.len();
            }
            message.msg_hdr.msg_iov = pieces.as_mut_ptr();
            message.msg_hdr.msg_iovlen = PIECES;
        }
    }

    /// One system call for the messages `from..to`: how many were sent, or the errno of the first.
    fn send_from(&mut self, from: usize, to: usize) -> Result<usize, i32> {
        let messages = self.messages.get_mut(from..to).unwrap_or_default();
        let count = libc::c_uint::try_from(messages.len()).unwrap_or_default();
        // SAFETY: `messages` are `count` headers that `fill` pointed to pieces of frames; `send` borrows
        // these for longer than this call, which only reads them, and writes the lengths in the headers.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
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

impl Transmitter for Sendmmsg {
    fn name(&self) -> &'static str {
        "sendmmsg"
    }

    fn send(&mut self, frames: &[[&[u8]; 3]], report: &mut SendReport) -> Result<(), Error> {
        report.clear();
        let mut patience = Patience::default();
        for batch in frames.chunks(BATCH) {
            if let Err(error) = self.send_batch(batch, &mut patience, report) {
                let errno = if matches!(error, Error::LinkDown { .. }) {
                    libc::ENETDOWN
                } else {
                    libc::ENODEV
                };
                report.refuse(errno, frames.len() as u64 - report.total());
                return Err(error);
            }
        }
        Ok(())
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }
}

impl AsFd for Sendmmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Sendmmsg {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
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
    fn try_again(&mut self, errno: i32, fd: BorrowedFd<'_>, report: &mut SendReport) -> bool {
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
fn wait_writable(fd: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, valid for the call.
    unsafe { libc::poll(&mut entry, 1, QUEUE_TIMEOUT_MS) == 1 }
}

/// Explicit, because the default of a host may be too small for a batch; beyond the host's limit when
/// the capability allows it.
fn set_send_buffer(fd: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)
        .or_else(|_| sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER))
}

fn frame_len(frame: &[&[u8]; PIECES]) -> usize {
    frame.iter().map(|piece| piece.len()).sum()
}

const EMPTY_PIECE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Without address: the socket is bound to its interface.
// SAFETY: msghdr is integers and pointers, all of which may be zero (it has private padding on some
// targets, so it cannot be written out).
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };
