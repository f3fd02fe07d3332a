//! Sending through sendmmsg(2) on a packet socket: works on every interface.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::mmsg::Messages;
use crate::{Error, Origin, Outgoing, SendReport, Transmitter, sys};

/// Memory for frames that wait in a queue of the interface: a full batch of 64 KiB frames. The default of a host may be less.
pub(crate) const SEND_BUFFER: libc::c_int = 8 << 20;
/// How long the kernel gets to pass on what is in the queues between two ways to the same peer.
pub(crate) const SETTLE: Duration = Duration::from_millis(1);
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
    origin: Origin,
    sockets: Vec<Option<Socket>>,
    messages: Messages,
}

/// A packet socket bound to an interface.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    ifindex: u32,
}

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
            origin: Origin::UNKNOWN,
            sockets: Vec::new(),
            messages: Messages::new(None),
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

    /// Waits, not for long, until all has arrived that was sent through these sockets.
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
        if let Some(Some(socket)) = self.sockets.get(output) {
            let fd = socket.fd.as_fd();
            self.messages.send(fd, output, frames, from, report);
        }
    }
}

impl Socket {
    fn open(ifindex: u32, qdisc_bypass: bool, origin: Origin) -> Result<Socket, Error> {
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
        let socket = Socket {
            fd: socket,
            ifindex,
        };
        socket.set_origin(origin);
        Ok(socket)
    }

    /// Kernels before 5.17 want CAP_NET_ADMIN for this. Without it frames go out unmarked.
    fn set_origin(&self, origin: Origin) {
        let _ = sys::set_option(
            self.fd.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            &origin.mark(),
        );
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
                new => Socket::open(new, self.qdisc_bypass, self.origin).map(Some),
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

    fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
        let open = self.sockets.iter().flatten();
        open.for_each(|socket| socket.set_origin(origin));
    }

    fn settle_down(&mut self) {
        self.drain(|_| true);
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }
}
