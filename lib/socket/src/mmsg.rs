//! Sending many messages through one socket with sendmmsg(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use crate::address::SocketAddress;
use crate::{Outgoing, SendReport};

/// Messages in one system call.
const BATCH: usize = 64;
/// Pieces of a message.
const PIECES: usize = 3;
/// Pauses before a message that met a full queue is tried again; once each in a call, below 1 ms together.
pub(crate) const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_micros(50),
    Duration::from_micros(150),
    Duration::from_micros(400),
];
/// How long a call waits for room in the socket's own queue.
const QUEUE_TIMEOUT_MS: libc::c_int = 100;

/// The messages of one system call, reused.
pub(crate) struct Messages {
    headers: Box<[libc::mmsghdr; BATCH]>,
    pieces: Box<[[libc::iovec; PIECES]; BATCH]>,
    /// Where all of them go, when the socket is not bound or connected to that.
    destination: Option<Box<SocketAddress>>,
}

// SAFETY: the pointers in `headers` lead to `pieces` and `destination`, which move with them on the heap, and those in
// `pieces` are only followed by the system call within `send`, while the frames are borrowed.
unsafe impl Send for Messages {}

impl Messages {
    /// Messages to wherever the socket is bound or connected to, or to `destination`.
    pub(crate) fn new(destination: Option<SocketAddress>) -> Messages {
        Messages {
            headers: Box::new([EMPTY_MESSAGE; BATCH]),
            pieces: Box::new([[EMPTY_PIECE; PIECES]; BATCH]),
            destination: destination.map(Box::new),
        }
    }

    /// Sends those of `frames` that go to one output, beginning at place `from` of the call. Each of them is counted once.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        output: usize,
        frames: &[Outgoing<'_>],
        from: usize,
        report: &mut SendReport,
    ) {
        let fd = fd.as_raw_fd();
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

    /// Sends the messages that are filled in. An error means that nothing gets out at present: all are counted then.
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
                Err(errno) if concerns_all(errno) => {
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
        let (Some(message), Some(pieces)) = (self.headers.get_mut(at), self.pieces.get_mut(at))
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
        if let Some(destination) = &self.destination {
            let (address, length) = destination.as_raw();
            message.msg_hdr.msg_name = address.cast_mut();
            message.msg_hdr.msg_namelen = length;
        }
    }

    /// One system call for the messages `from..to`: how many were sent, or the errno of the first.
    fn send_from(&mut self, fd: RawFd, from: usize, to: usize) -> Result<usize, i32> {
        let messages = self.headers.get_mut(from..to).unwrap_or_default();
        let count = libc::c_uint::try_from(messages.len()).unwrap_or_default();
        // SAFETY: `messages` are `count` headers that `fill` pointed to pieces of frames, and to the destination with its length;
        // `send` borrows the frames for longer than this call, which only reads them, and writes the lengths in the headers.
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

/// Whether an error of one message says that the others will not get out either.
fn concerns_all(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::ENETUNREACH | libc::EHOSTUNREACH
    )
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

/// Without address: the socket is bound to its interface, or `fill` sets one.
// SAFETY: msghdr is integers and pointers, all of which may be zero (it has private padding on some
// targets, so it cannot be written out).
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };
