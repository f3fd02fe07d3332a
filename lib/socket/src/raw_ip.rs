//! Sending whole IP packets, for which the kernel finds route and neighbour (raw(7), IPPROTO_RAW).

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::address::{SocketAddress, domain};
use crate::mmsg::Messages;
use crate::sendmmsg::{DRAIN, SEND_BUFFER};
use crate::{Error, Outgoing, SendReport, SockFilter, sys};

/// A raw socket that sends to one address and receives nothing.
///
/// The kernel completes some fields of an IPv4 header: total length, header checksum, source address and identification where
/// these are zero. Fragments must therefore come with an identification. A packet that is longer than the route takes is refused
/// ([`crate::Fate::Oversize`]) and never fragmented.
pub struct RawIp {
    fd: OwnedFd,
    destination: IpAddr,
    messages: Messages,
}

impl std::fmt::Debug for RawIp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawIp")
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

const OPEN: &str = "open a raw IP socket";
/// The least memory for incoming packets, of which there are none but the kernel's notes of refused ones.
const RECEIVE_BUFFER: libc::c_int = 0;

impl RawIp {
    /// Opens a socket that sends to `destination`, through the interface `device` if that is given, in the network namespace of the
    /// calling thread. A `source` decides on the route where the host has rules for that; it need not be an address of the host.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_RAW), [`Error::NoInterface`], [`Error::System`].
    pub fn open(
        destination: IpAddr,
        source: Option<IpAddr>,
        device: Option<u32>,
    ) -> Result<RawIp, Error> {
        let failed = |source| Error::interface(OPEN, device.unwrap_or(0), source);
        let v6 = destination.is_ipv6();
        let fd = sys::socket(domain(v6), libc::SOCK_RAW, libc::IPPROTO_RAW).map_err(failed)?;
        receive_nothing(&fd).map_err(failed)?;
        sys::set_send_buffer(fd.as_fd(), SEND_BUFFER).map_err(failed)?;
        // Without this option the kernel keeps silent about full queues.
        let set = |level, name| sys::set_option(fd.as_fd(), level, name, &1_i32);
        if v6 {
            set(libc::IPPROTO_IPV6, libc::IPV6_HDRINCL).map_err(failed)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR).map_err(failed)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_FREEBIND).map_err(failed)?;
        } else {
            set(libc::IPPROTO_IP, libc::IP_HDRINCL).map_err(failed)?;
            set(libc::IPPROTO_IP, libc::IP_RECVERR).map_err(failed)?;
            set(libc::IPPROTO_IP, libc::IP_FREEBIND).map_err(failed)?;
        }
        let scope = device.unwrap_or(0);
        if let Some(ifindex) = device {
            sys::bind_to_device(fd.as_fd(), ifindex).map_err(failed)?;
        }
        if let Some(source) = source.filter(|source| source.is_ipv6() == v6) {
            let source = SocketAddress::new(source, 0, scope);
            source.bind(fd.as_fd()).map_err(failed)?;
        }
        Ok(RawIp {
            fd,
            destination,
            messages: Messages::new(Some(SocketAddress::new(destination, 0, scope))),
        })
    }

    /// Where packets go, whatever their headers say.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Waits, not for long, until what was sent has left the queues of the host, as far as the kernel knows: what is sent in another way
    /// from then on must not overtake it. Packets that wait for a neighbour count as such too.
    pub fn settle_down(&self) {
        let end = Instant::now() + DRAIN;
        while sys::unsent_bytes(self.fd.as_fd()).is_ok_and(|bytes| bytes > 0)
            && Instant::now() < end
        {
            std::thread::yield_now();
        }
    }

    /// Sends the packets that go to output 0, whose bytes begin with an IP header, and says in `report` what became of each. The
    /// call may wait for room in a queue, up to 100 ms.
    ///
    /// When there is no way to the destination, the rest of the call is counted as such without being tried.
    pub fn send(&mut self, packets: &[Outgoing<'_>], report: &mut SendReport) {
        report.clear();
        self.messages.send(self.fd.as_fd(), 0, packets, 0, report);
    }
}

/// Refuses all packets: the kernel would give the socket those of protocol 255.
fn receive_nothing(fd: &OwnedFd) -> std::io::Result<()> {
    SockFilter::attach(&SockFilter::NOTHING, fd.as_fd())?;
    sys::set_option(
        fd.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUF,
        &RECEIVE_BUFFER,
    )
}
