//! Requests to rtnetlink and generic netlink, and the frame of their answers.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};

use crate::{Error, poll, sys};

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct ifinfomsg`.
const IFINFO_LEN: usize = 16;

/// The kernel cuts dumps into datagrams of at most 32 KiB.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;
/// An answer of the kernel takes microseconds; this bounds what a broken one can cost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The netlink port of the kernel.
pub(crate) const KERNEL: u32 = 0;

/// Which interfaces to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    All,
    Index(u32),
    Name(&'a str),
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// RTM_NEWLINK and its payload.
    NewLink(&'a [u8]),
    /// RTM_DELLINK and its payload.
    DelLink(&'a [u8]),
    /// RTM_NEWROUTE and its payload.
    NewRoute(&'a [u8]),
    /// RTM_NEWNEIGH and its payload.
    NewNeighbour(&'a [u8]),
    /// RTM_NEWADDR and its payload.
    NewAddress(&'a [u8]),
    /// RTM_NEWTFILTER and its payload.
    NewFilter(&'a [u8]),
    /// A message of a family of generic netlink, from its `struct genlmsghdr` on.
    Generic(&'a [u8]),
    /// The end of a dump.
    Done,
    /// An errno, positive; 0 is a confirmation.
    Error(i32),
    /// Nothing of interest.
    Other,
}

/// A socket for requests, which the kernel answers at once.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
    /// What the type of a message means, which each protocol says in its own way.
    classify: Classify,
}

type Classify = for<'a> fn(&NetlinkBuffer<&'a [u8]>) -> Message<'a>;

impl Requests {
    /// For rtnetlink(7).
    pub(crate) fn open() -> io::Result<Requests> {
        Ok(Requests::on(socket(0)?, classify))
    }

    /// For generic netlink.
    pub(crate) fn open_generic() -> io::Result<Requests> {
        let socket = bound(libc::NETLINK_GENERIC, 0)?;
        Ok(Requests::on(socket, |message| match classify(message) {
            Message::Done => Message::Done,
            Message::Error(code) => Message::Error(code),
            // The numbers of families are those that rtnetlink has given to other things.
            _ => Message::Generic(message.payload()),
        }))
    }

    fn on(socket: OwnedFd, classify: Classify) -> Requests {
        Requests {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER_BYTES].into(),
            classify,
        }
    }

    /// Sends a request and hands the messages of the answer to `take` until that says that the answer is complete. The flag
    /// beside a message says that a change has interrupted the dump which it is part of.
    pub(crate) fn ask(
        &mut self,
        operation: &'static str,
        mut request: Vec<u8>,
        mut take: impl FnMut(&Message<'_>, bool) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        if let Some(field) = request.get_mut(SEQUENCE_AT..SEQUENCE_AT + 4) {
            field.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        sys::send(self.socket.as_fd(), &request).map_err(|e| Error::system(operation, e))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let length = self.receive(operation, deadline)?;
            let datagram = self.buffer.get(..length).ok_or(Error::Netlink {
                operation,
                detail: "a message is larger than 64 KiB",
            })?;
            let mut complete = false;
            for message in frames(datagram) {
                // Others belong to a request that was given up.
                if message.sequence_number() == self.sequence {
                    complete |= take(&(self.classify)(&message), is_interrupted(&message))?;
                }
            }
            if complete {
                return Ok(());
            }
        }
    }

    /// Waits for the next datagram of the kernel.
    fn receive(&mut self, operation: &'static str, deadline: Instant) -> Result<usize, Error> {
        loop {
            match sys::receive_netlink(self.socket.as_fd(), &mut self.buffer) {
                Ok((length, KERNEL)) => return Ok(length),
                Ok(_) => continue,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    _ => return Err(Error::system(operation, error)),
                },
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::system(operation, io::ErrorKind::TimedOut.into()));
            }
            poll(&[self.socket.as_fd()], left)?;
        }
    }
}

/// A socket of rtnetlink that gets the messages of these groups (RTMGRP_*).
pub(crate) fn socket(groups: i32) -> io::Result<OwnedFd> {
    bound(libc::NETLINK_ROUTE, groups)
}

fn bound(protocol: i32, groups: i32) -> io::Result<OwnedFd> {
    let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
    // SAFETY: sockaddr_nl is integers, all of which may be zero (its padding is private).
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or_default();
    address.nl_groups = u32::try_from(groups).unwrap_or_default();
    sys::bind(socket.as_fd(), &address)?;
    Ok(socket)
}

/// An RTM_GETLINK request. `None`: a name that no interface can have.
pub(crate) fn link_request(wanted: Wanted<'_>) -> Option<Vec<u8>> {
    let (flags, index) = match wanted {
        Wanted::All => (NLM_F_REQUEST | NLM_F_DUMP, 0),
        Wanted::Index(index) => (NLM_F_REQUEST, index),
        Wanted::Name(_) => (NLM_F_REQUEST, 0),
    };
    let mut body = vec![0; IFINFO_LEN];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Wanted::Name(name) = wanted {
        append_name(&mut body, name)?;
    }
    Some(request(libc::RTM_GETLINK, flags, &body))
}

/// A request with this body; [`Requests::ask`] gives it its number.
pub(crate) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Where a request has its number (`nlmsg_seq`).
const SEQUENCE_AT: usize = 8;

/// Appends an attribute (`struct rtattr`) to the body of a request.
pub(crate) fn append_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds an IP address.
pub(crate) fn append_address(body: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => append_attribute(body, kind, &address.octets()),
        IpAddr::V6(address) => append_attribute(body, kind, &address.octets()),
    }
}

/// The IP address in an attribute, of the version that its length says.
pub(crate) fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// The native-endian u32 in an attribute.
pub(crate) fn word(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The address family of an IP address, as it lies in the first byte of a body.
pub(crate) fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or_default()
}

/// The kernel looks up both kinds of names in both attributes, but checks the length of each.
fn append_name(body: &mut Vec<u8>, name: &str) -> Option<()> {
    const MAX_ALTNAME: usize = 127;
    if name.is_empty() || name.len() > MAX_ALTNAME || name.contains('\0') {
        return None;
    }
    let kind = if name.len() < libc::IFNAMSIZ {
        libc::IFLA_IFNAME
    } else {
        libc::IFLA_ALT_IFNAME
    };
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    append_attribute(body, kind, &text);
    Some(())
}

/// The messages of a datagram of rtnetlink, each with its sequence number and whether a dump was interrupted by a
/// change. A message with an impossible length ends the walk.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, bool, Message<'_>)> {
    frames(datagram).map(|message| {
        let number = message.sequence_number();
        (number, is_interrupted(&message), classify(&message))
    })
}

fn frames(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        if length < HEADER_LEN {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest.get(..length)?).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn is_interrupted(message: &NetlinkBuffer<&[u8]>) -> bool {
    message.flags() & NLM_F_DUMP_INTR != 0
}

fn classify<'a>(message: &NetlinkBuffer<&'a [u8]>) -> Message<'a> {
    let payload = message.payload();
    match message.message_type() {
        libc::RTM_NEWLINK => Message::NewLink(payload),
        libc::RTM_DELLINK => Message::DelLink(payload),
        libc::RTM_NEWROUTE => Message::NewRoute(payload),
        libc::RTM_NEWNEIGH => Message::NewNeighbour(payload),
        libc::RTM_NEWADDR => Message::NewAddress(payload),
        libc::RTM_NEWTFILTER => Message::NewFilter(payload),
        NLMSG_DONE => Message::Done,
        NLMSG_ERROR => {
            let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
            Message::Error(code.saturating_neg())
        }
        _ => Message::Other,
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
