//! Receiving the packets of a tunnel: UDP datagrams to a port, or IP packets of some protocols.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::address::{self, SocketAddress, domain};
use crate::{Error, sys};

mod batch;

use batch::Batch;
pub use batch::{Datagram, Datagrams};

/// What carries a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// UDP to this port.
    Udp {
        /// The port.
        port: u16,
        /// Also take datagrams over IPv6 that have no checksum (RFC 6935).
        zero_checksum: bool,
    },
    /// IP packets of these protocols.
    Ip(Vec<u8>),
}

/// What to receive, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelOptions {
    /// What carries the tunnel.
    pub transport: Transport,
    /// The address of this host that packets come to; any of both IP versions when not given.
    pub local: Option<IpAddr>,
    /// The interface that packets come by; any when not given.
    pub device: Option<u32>,
    /// Memory for packets that wait to be read, in bytes with the kernel's overhead, for each socket.
    pub buffer_bytes: u32,
    /// Take several datagrams of a flow in one piece from the kernel where it offers that (UDP_GRO). They are handed out one by one.
    pub gro: bool,
}

/// Receives the packets of a tunnel through one or several sockets. What it hands out begins behind the outer headers: the kernel
/// has put together fragments and verified UDP checksums.
#[derive(Debug)]
pub struct TunnelReceiver {
    sockets: Vec<Socket>,
    /// Polls all sockets.
    poll: OwnedFd,
    batch: Batch,
    /// The socket to look at first.
    turn: usize,
}

/// What is known of one of the sockets of a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSocket {
    /// The address that it listens on; unspecified for any of its IP version.
    pub local: IpAddr,
    /// The IP protocol that it listens for: 17 for UDP.
    pub protocol: u8,
    /// The memory that the kernel gives it, with its overhead: at most twice what `net.core.rmem_max` says without CAP_NET_ADMIN.
    pub buffer_bytes: u64,
    /// As in [`TunnelReceiver::kernel_drops`].
    pub kernel_drops: u64,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    local: IpAddr,
    /// What its packets begin with.
    begin: Begin,
    buffer_bytes: u64,
    /// The kernel's count of drops when it was read last, and their sum.
    seen_drops: u32,
    drops: u64,
}

/// What the kernel puts before what it hands over, and what that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Udp,
    /// An IPv4 header, then this protocol.
    Ipv4(u8),
    /// Nothing; this protocol over IPv6.
    Ipv6(u8),
}

const OPEN: &str = "open a tunnel socket";
const UDP: u8 = 17;
/// Takes datagrams without checksum over IPv6 (linux/udp.h).
const UDP_NO_CHECK6_RX: i32 = 102;
/// Hands over datagrams of a flow in one piece (linux/udp.h).
const UDP_GRO: i32 = 104;

impl TunnelReceiver {
    /// Opens the sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::PortInUse`], [`Error::NoAddress`], [`Error::NoInterface`], [`Error::Permission`] (CAP_NET_RAW for IP protocols),
    /// [`Error::System`].
    pub fn open(options: &TunnelOptions) -> Result<TunnelReceiver, Error> {
        let mut sockets = Vec::new();
        let begins: Vec<Begin> = match &options.transport {
            Transport::Udp { .. } => vec![Begin::Udp],
            Transport::Ip(protocols) => protocols.iter().map(|p| Begin::Ipv4(*p)).collect(),
        };
        for v6 in [false, true] {
            if options.local.is_some_and(|local| local.is_ipv6() != v6) {
                continue;
            }
            for begin in &begins {
                match Socket::open(options, begin.over(v6), v6) {
                    Ok(socket) => sockets.push(socket),
                    // A host without IPv6.
                    Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && v6 => {}
                    Err(error) => return Err(options.explain(error)),
                }
            }
        }
        Ok(TunnelReceiver {
            poll: poll_all(&sockets).map_err(|source| Error::system(OPEN, source))?,
            batch: Batch::new(),
            sockets,
            turn: 0,
        })
    }

    /// Takes a batch of what has come; `None` when there is nothing. Does not wait.
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses to read.
    pub fn receive(&mut self) -> Result<Option<Datagrams<'_>>, Error> {
        for _ in 0..self.sockets.len() {
            let turn = self.turn;
            self.turn = (turn + 1) % self.sockets.len();
            let Some(socket) = self.sockets.get(turn) else {
                continue;
            };
            match self.batch.fill(socket.fd.as_fd()) {
                Ok(0) => {}
                Ok(count) => return Ok(Some(self.batch.datagrams(count, socket.begin, turn))),
                Err(source) => return Err(Error::system("receive from a tunnel", source)),
            }
        }
        Ok(None)
    }

    /// Its sockets, in the order of [`Datagrams::socket`].
    pub fn sockets(&mut self) -> impl Iterator<Item = TunnelSocket> {
        self.sockets.iter_mut().map(|socket| TunnelSocket {
            local: socket.local,
            protocol: match socket.begin {
                Begin::Udp => UDP,
                Begin::Ipv4(protocol) | Begin::Ipv6(protocol) => protocol,
            },
            buffer_bytes: socket.buffer_bytes,
            kernel_drops: socket.count_drops(),
        })
    }

    /// Packets that the kernel could not keep for want of room in a socket. Some kernels count datagrams with a wrong checksum
    /// here too; [`crate::NetCounters`] does so always.
    pub fn kernel_drops(&mut self) -> u64 {
        let add = |sum: u64, socket: &mut Socket| sum + socket.count_drops();
        self.sockets.iter_mut().fold(0, add)
    }
}

impl AsFd for TunnelReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Begin {
    /// The same over an IP version.
    fn over(self, v6: bool) -> Begin {
        match self {
            Begin::Ipv4(protocol) if v6 => Begin::Ipv6(protocol),
            other => other,
        }
    }
}

impl TunnelOptions {
    /// An error of [`Socket::open`] in terms of what was asked for.
    fn explain(&self, source: io::Error) -> Error {
        match (source.raw_os_error(), &self.transport, self.local) {
            (Some(libc::EADDRINUSE), Transport::Udp { port, .. }, _) => {
                Error::PortInUse { port: *port }
            }
            (Some(libc::EADDRNOTAVAIL), _, Some(address)) => Error::NoAddress { address },
            (Some(libc::EACCES), Transport::Udp { .. }, _) => Error::Permission {
                operation: "receive on a UDP port below 1024",
                capability: "CAP_NET_BIND_SERVICE",
                source,
            },
            _ => Error::interface(OPEN, self.device.unwrap_or(0), source),
        }
    }
}

impl Socket {
    fn open(options: &TunnelOptions, begin: Begin, v6: bool) -> io::Result<Socket> {
        let (kind, protocol) = match begin {
            Begin::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            Begin::Ipv4(protocol) | Begin::Ipv6(protocol) => (libc::SOCK_RAW, protocol.into()),
        };
        let socket = sys::socket(domain(v6), kind, protocol)?;
        let fd = socket.as_fd();
        let set = |level, name| sys::set_option(fd, level, name, &1_i32);
        let bytes = libc::c_int::try_from(options.buffer_bytes / 2).unwrap_or(libc::c_int::MAX);
        let buffer_bytes = sys::set_receive_buffer(fd, bytes)?;
        set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
        let mut port = 0;
        if let Transport::Udp {
            port: wanted,
            zero_checksum,
        } = options.transport
        {
            port = wanted;
            if v6 {
                set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
            }
            if zero_checksum && v6 {
                set(libc::SOL_UDP, UDP_NO_CHECK6_RX)?;
            }
            if options.gro {
                // Since Linux 5.0; it only saves time.
                let _ = set(libc::SOL_UDP, UDP_GRO);
            }
        }
        if let Some(ifindex) = options.device {
            sys::bind_to_device(fd, ifindex)?;
        }
        let any = if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        let local = options.local.unwrap_or(any);
        SocketAddress::new(local, port, options.device.unwrap_or(0)).bind(fd)?;
        Ok(Socket {
            local,
            begin,
            buffer_bytes,
            seen_drops: sys::socket_drops(fd)?,
            drops: 0,
            fd: socket,
        })
    }

    fn count_drops(&mut self) -> u64 {
        // A socket that cannot be asked keeps its last count.
        if let Ok(drops) = sys::socket_drops(self.fd.as_fd()) {
            self.drops += u64::from(drops.wrapping_sub(self.seen_drops));
            self.seen_drops = drops;
        }
        self.drops
    }
}

/// A descriptor that is readable while one of the sockets is.
fn poll_all(sockets: &[Socket]) -> io::Result<OwnedFd> {
    let poll = sys::epoll()?;
    for socket in sockets {
        sys::epoll_add(poll.as_fd(), socket.fd.as_fd())?;
    }
    Ok(poll)
}
