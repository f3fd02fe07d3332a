//! Socket addresses of IPv4 and IPv6, as the system calls want them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use crate::sys;

/// An address for bind(2), sendmsg(2) and the like.
#[derive(Clone, Copy)]
pub(crate) enum SocketAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SocketAddress {
    /// An address and a port, which raw sockets want to be 0. `scope` is the interface of a link-local address, else of no meaning.
    pub(crate) fn new(address: IpAddr, port: u16, scope: u32) -> SocketAddress {
        match address {
            IpAddr::V4(address) => SocketAddress::V4(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: port.to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                sin_zero: [0; 8],
            }),
            IpAddr::V6(address) => SocketAddress::V6(libc::sockaddr_in6 {
                sin6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                sin6_port: port.to_be(),
                sin6_scope_id: if address.is_unicast_link_local() {
                    scope
                } else {
                    0
                },
                ..ANY
            }),
        }
    }

    /// Pointer and length, to be read by the kernel while `self` stays where it is.
    pub(crate) fn as_raw(&self) -> (*const libc::c_void, libc::socklen_t) {
        match self {
            SocketAddress::V4(v4) => (std::ptr::from_ref(v4).cast(), sys::size_of_c_value(v4)),
            SocketAddress::V6(v6) => (std::ptr::from_ref(v6).cast(), sys::size_of_c_value(v6)),
        }
    }

    /// bind(2).
    pub(crate) fn bind(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            SocketAddress::V4(v4) => sys::bind(fd, v4),
            SocketAddress::V6(v6) => sys::bind(fd, v6),
        }
    }
}

/// The address domain of sockets for an IP version (AF_INET, AF_INET6).
pub(crate) fn domain(v6: bool) -> i32 {
    if v6 { libc::AF_INET6 } else { libc::AF_INET }
}

/// Room for an address of either version, which the kernel fills in.
pub(crate) const ANY: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: family(libc::AF_INET6),
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// The address and the port that the kernel has filled in.
#[inline]
pub(crate) fn read(room: &libc::sockaddr_in6) -> (IpAddr, u16) {
    let port = u16::from_be(room.sin6_port);
    if i32::from(room.sin6_family) == libc::AF_INET {
        // A sockaddr_in has its address where this structure has the flow label.
        let octets = room.sin6_flowinfo.to_ne_bytes();
        return (Ipv4Addr::from(octets).into(), port);
    }
    (Ipv6Addr::from(room.sin6_addr.s6_addr).into(), port)
}

#[expect(clippy::cast_possible_truncation, reason = "both families are small")]
const fn family(domain: i32) -> libc::sa_family_t {
    domain as libc::sa_family_t
}
