//! Which interfaces there are, and what becomes of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::netlink::{
    self, BUFFER_BYTES, KERNEL, Message, Requests, Wanted, link_request, messages,
};
use crate::{Error, Link, sys};

/// Room for the events of a burst of changes, so that it need not be followed by a new dump.
const EVENT_BUFFER: libc::c_int = 1 << 20;
/// Attempts at a dump that changes keep interrupting.
const DUMP_ATTEMPTS: usize = 8;

/// Something that happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or something about it has changed.
    Changed(Link),
    /// It is gone: deleted, or moved to another network namespace.
    Removed {
        /// Its index.
        index: u32,
        /// Its name at that time.
        name: String,
    },
    /// Events were lost: ask for all links again.
    Overrun,
}

/// Watches the interfaces of the network namespace in which it was opened.
#[derive(Debug)]
pub struct LinkWatch {
    events: OwnedFd,
    requests: Requests,
    buffer: Box<[u8]>,
}

impl LinkWatch {
    /// Starts to watch. Changes from now on are reported, those before are seen by [`LinkWatch::links`].
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses a netlink socket.
    pub fn open() -> Result<LinkWatch, Error> {
        let failed = |source| Error::system("watch network interfaces", source);
        let requests = Requests::open().map_err(failed)?;
        let events = netlink::socket(libc::RTMGRP_LINK).map_err(failed)?;
        // Beyond the limit of the host when the capability allows it, else as near as it lets us.
        let set = |name| sys::set_option(events.as_fd(), libc::SOL_SOCKET, name, &EVENT_BUFFER);
        set(libc::SO_RCVBUFFORCE)
            .or_else(|_| set(libc::SO_RCVBUF))
            .map_err(failed)?;
        Ok(LinkWatch {
            events,
            requests,
            buffer: vec![0; BUFFER_BYTES].into(),
        })
    }

    /// All interfaces.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Netlink`] when the kernel does not answer as it should.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            // A change in the middle of a dump can hide an interface.
            if let (links, false) = self.request(Wanted::All)? {
                return Ok(links);
            }
        }
        Err(Error::Netlink {
            operation: LIST,
            detail: "interfaces keep changing",
        })
    }

    /// The interface with this name or alternative name.
    ///
    /// # Errors
    /// As [`LinkWatch::links`]. That there is none is not an error.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let (links, _) = self.request(Wanted::Name(name))?;
        Ok(links.into_iter().find(|link| link.is_called(name)))
    }

    /// The interface with this index.
    ///
    /// # Errors
    /// As [`LinkWatch::links`]. That there is none is not an error.
    pub fn find_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        if index == 0 {
            return Ok(None);
        }
        let (links, _) = self.request(Wanted::Index(index))?;
        Ok(links.into_iter().find(|link| link.index == index))
    }

    /// Reports what has happened since the last call, oldest first; does not wait.
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses to read.
    pub fn drain(&mut self, mut report: impl FnMut(LinkEvent)) -> Result<(), Error> {
        loop {
            let (length, sender) = match sys::receive_netlink(self.events.as_fd(), &mut self.buffer)
            {
                Ok(received) => received,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOBUFS) => {
                        report(LinkEvent::Overrun);
                        continue;
                    }
                    _ => return Err(Error::system("read changes of interfaces", error)),
                },
            };
            let Some(datagram) = self.buffer.get(..length) else {
                report(LinkEvent::Overrun);
                continue;
            };
            if sender == KERNEL {
                messages(datagram)
                    .filter_map(|(_, _, message)| event(&message))
                    .for_each(&mut report);
            }
        }
    }

    /// Asks for links: those found, and whether changes disturbed the answer.
    fn request(&mut self, wanted: Wanted<'_>) -> Result<(Vec<Link>, bool), Error> {
        let dump = matches!(wanted, Wanted::All);
        let (mut links, mut disturbed) = (Vec::new(), false);
        // A name that no interface can have is the name of none.
        if let Some(request) = link_request(wanted) {
            self.requests.ask(LIST, request, |message, interrupted| {
                disturbed |= interrupted;
                take(&mut links, message, dump)
            })?;
        }
        Ok((links, disturbed))
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

/// Takes a message of the answer; says whether the answer is complete.
fn take(links: &mut Vec<Link>, message: &Message<'_>, dump: bool) -> Result<bool, Error> {
    match message {
        Message::NewLink(payload) => {
            links.extend(Link::parse(payload));
            // A single link comes without an end mark.
            Ok(!dump)
        }
        Message::Done | Message::Error(0 | libc::ENODEV) => Ok(true),
        Message::Error(code) => Err(Error::system(LIST, io::Error::from_raw_os_error(*code))),
        _ => Ok(false),
    }
}

fn event(message: &Message<'_>) -> Option<LinkEvent> {
    match message {
        Message::NewLink(payload) => Link::parse(payload).map(LinkEvent::Changed),
        Message::DelLink(payload) => Link::parse(payload).map(|link| LinkEvent::Removed {
            index: link.index,
            name: link.name,
        }),
        _ => None,
    }
}

const LIST: &str = "list network interfaces";
