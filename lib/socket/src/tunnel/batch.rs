//! A batch of received datagrams: recvmmsg(2) into buffers that are allocated once.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Begin, UDP, UDP_GRO, address};

/// Messages in one system call.
const BATCH: usize = 64;
const BATCH_C: libc::c_uint = 64;
const _: () = assert!(BATCH == BATCH_C as usize);
/// Longest message: an IP packet, or what the kernel joins. Memory that no message has needed is not touched.
const MESSAGE: usize = 65_536;
/// Room for control messages: a time and a segment size, 56 bytes in all.
const CONTROL: usize = 96;

/// Buffers and headers of one system call, reused.
pub(super) struct Batch {
    /// `BATCH` buffers of `MESSAGE` bytes.
    bytes: Box<[u8]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
    pieces: Box<[libc::iovec; BATCH]>,
    names: Box<[libc::sockaddr_in6; BATCH]>,
    controls: Box<[Control; BATCH]>,
    /// Headers that are to be set up anew: those that the kernel has used.
    used: usize,
}

/// Aligned as control messages want it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

// SAFETY: the pointers in `headers` and `pieces` lead to memory of the batch itself, on the heap, which moves with it.
unsafe impl Send for Batch {}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            bytes: vec![0; BATCH * MESSAGE].into(),
            headers: Box::new([EMPTY_MESSAGE; BATCH]),
            pieces: Box::new([EMPTY_PIECE; BATCH]),
            names: Box::new([address::ANY; BATCH]),
            controls: Box::new([Control([0; CONTROL]); BATCH]),
            used: BATCH,
        }
    }

    /// Receives what has come, without waiting: how many messages.
    pub(super) fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.point();
        // SAFETY: `point` has set up `BATCH` headers with pointers to buffers of the lengths given, all of which live in `self`
        // and are borrowed by nobody; the kernel writes within these lengths.
        let count = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH_C,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(count) {
            Ok(count) => {
                self.used = count.min(BATCH);
                Ok(self.used)
            }
            Err(_) => {
                // The first one may have been touched.
                self.used = 1;
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                    _ => Err(error),
                }
            }
        }
    }

    /// The first `count` messages that [`Batch::fill`] has received.
    pub(super) fn datagrams(&self, count: usize, begin: Begin, socket: usize) -> Datagrams<'_> {
        Datagrams {
            batch: self,
            socket,
            count,
            begin,
            next: 0,
            joined: None,
        }
    }

    /// Sets up the headers whose lengths the kernel has changed; at first all of them.
    fn point(&mut self) {
        let buffers = self.bytes.chunks_exact_mut(MESSAGE);
        let memory = buffers.zip(self.names.iter_mut().zip(self.controls.iter_mut()));
        let headers = self.headers.iter_mut().zip(self.pieces.iter_mut());
        for ((header, piece), (buffer, (name, control))) in headers.zip(memory).take(self.used) {
            piece.iov_base = buffer.as_mut_ptr().cast();
            piece.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_iov = piece;
            header.msg_iovlen = 1;
            header.msg_namelen = crate::sys::size_of_c_value(name);
            header.msg_name = std::ptr::from_mut(name).cast();
            header.msg_controllen = CONTROL;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_flags = 0;
        }
    }

    /// The message at this place, not yet cut into its segments.
    fn message(&self, at: usize, begin: Begin) -> Option<Joined<'_>> {
        let header = self.headers.get(at)?;
        let buffer = self.bytes.get(at * MESSAGE..(at + 1) * MESSAGE)?;
        let bytes = buffer.get(..header.msg_len as usize).unwrap_or(buffer);
        let (source, source_port) = address::read(self.names.get(at)?);
        let control = &self.controls.get(at)?.0;
        let used = header.msg_hdr.msg_controllen;
        let notes = Notes::parse(control.get(..used).unwrap_or(control));
        let (rest, protocol) = match begin {
            Begin::Udp => (bytes, UDP),
            Begin::Ipv4(protocol) => (behind_ipv4(bytes), protocol),
            Begin::Ipv6(protocol) => (bytes, protocol),
        };
        let whole = Datagram {
            source,
            source_port,
            protocol,
            bytes: rest,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            timestamp_ns: notes.timestamp_ns,
        };
        Some(Joined {
            whole,
            segment: notes.segment.filter(|_| begin == Begin::Udp),
        })
    }
}

/// What is behind the IPv4 header, options included; nothing if it makes no sense, which a kernel does not hand over.
fn behind_ipv4(packet: &[u8]) -> &[u8] {
    let length = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    packet.get(length.max(20)..).unwrap_or_default()
}

/// A packet of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'b> {
    /// Who sent it, as the outer IP header says.
    pub source: IpAddr,
    /// From which UDP port; 0 for other protocols.
    pub source_port: u16,
    /// The protocol that the outer IP header says: 17 for UDP.
    pub protocol: u8,
    /// What is behind the outer IP and UDP headers.
    pub bytes: &'b [u8],
    /// It is longer than a message can be (65536 bytes), and cut.
    pub truncated: bool,
    /// When the kernel received it, nanoseconds since 1970; 0 when it does not say.
    pub timestamp_ns: u64,
}

/// A message that holds one datagram, or several of `segment` bytes of which the last may be shorter.
#[derive(Debug, Clone, Copy)]
struct Joined<'b> {
    whole: Datagram<'b>,
    segment: Option<usize>,
}

/// The datagrams of a batch, in the order of arrival.
#[derive(Debug)]
pub struct Datagrams<'b> {
    batch: &'b Batch,
    count: usize,
    begin: Begin,
    socket: usize,
    next: usize,
    /// What is left of the present message when it holds several.
    joined: Option<Joined<'b>>,
}

impl<'b> Datagrams<'b> {
    /// Messages of the batch: at most as many as there are datagrams.
    pub fn messages(&self) -> usize {
        self.count
    }

    /// Whether the batch is full, so that there may well be more in the same socket.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    /// By which socket they came: its place in [`super::TunnelReceiver::sockets`].
    pub fn socket(&self) -> usize {
        self.socket
    }
}

impl<'b> Iterator for Datagrams<'b> {
    type Item = Datagram<'b>;

    #[inline]
    fn next(&mut self) -> Option<Datagram<'b>> {
        let message = match self.joined.take() {
            Some(rest) => rest,
            None if self.next < self.count => {
                let message = self.batch.message(self.next, self.begin)?;
                self.next += 1;
                message
            }
            None => return None,
        };
        let (first, rest) = message.split();
        self.joined = rest;
        Some(first)
    }
}

impl<'b> Joined<'b> {
    /// The first datagram, and what is left.
    #[inline]
    fn split(self) -> (Datagram<'b>, Option<Joined<'b>>) {
        let Some(segment) = self.segment else {
            return (self.whole, None);
        };
        let Some((first, rest)) = self.whole.bytes.split_at_checked(segment) else {
            return (self.whole, None);
        };
        let with = |bytes| Datagram {
            bytes,
            ..self.whole
        };
        let rest = (!rest.is_empty()).then(|| Joined {
            whole: with(rest),
            segment: self.segment,
        });
        (with(first), rest)
    }
}

/// What the kernel says beside a message (cmsg(3)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Notes {
    timestamp_ns: u64,
    /// Bytes of each datagram in the message, more than 0.
    segment: Option<usize>,
}

/// `struct cmsghdr`: length with header (as wide as a pointer), level (4), type (4).
const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();
const WORD: usize = size_of::<usize>();

impl Notes {
    /// Reads control messages; a wrong length ends the walk.
    fn parse(control: &[u8]) -> Notes {
        let mut notes = Notes::default();
        let mut rest = control;
        while let Some((length, level, kind)) = cmsg_header(rest) {
            let Some(data) = rest.get(CMSG_HEADER..length) else {
                break;
            };
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    notes.timestamp_ns = nanoseconds(data).unwrap_or(0);
                }
                (libc::SOL_UDP, UDP_GRO) => {
                    let size = data.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                    notes.segment = usize::try_from(size).ok().filter(|size| *size > 0);
                }
                _ => {}
            }
            rest = rest
                .get(length.next_multiple_of(WORD)..)
                .unwrap_or_default();
        }
        notes
    }
}

fn cmsg_header(rest: &[u8]) -> Option<(usize, i32, i32)> {
    let length = usize::from_ne_bytes(*rest.first_chunk::<WORD>()?);
    let level = i32::from_ne_bytes(*rest.get(WORD..)?.first_chunk()?);
    let kind = i32::from_ne_bytes(*rest.get(WORD + 4..)?.first_chunk()?);
    Some((length, level, kind))
}

/// A `struct timespec` of 64-bit words.
fn nanoseconds(data: &[u8]) -> Option<u64> {
    let seconds = i64::from_ne_bytes(*data.first_chunk()?);
    let rest = i64::from_ne_bytes(*data.get(8..)?.first_chunk()?);
    let total = seconds.checked_mul(1_000_000_000)?.checked_add(rest)?;
    u64::try_from(total).ok()
}

const EMPTY_PIECE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

// SAFETY: msghdr is integers and pointers, all of which may be zero (it has private padding on some
// targets, so it cannot be written out).
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };

#[cfg(test)]
mod tests;
