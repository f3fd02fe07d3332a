//! What routers and receivers say about packets of ours that did not arrive (ICMP, ICMPv6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::address::{self, domain};
use crate::{Error, sys};

/// Why a packet did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpReason {
    /// No way to the network or the host; may end by itself.
    NetOrHost,
    /// The host does not know the protocol. A receiver that only listens in says so by its kernel.
    Protocol,
    /// Nobody has opened the UDP port. A receiver that only listens in says so by its kernel.
    Port,
    /// A firewall on the way refuses it.
    Prohibited,
    /// It is longer than a link on the way takes, this many bytes from the IP header on; at least what Linux believes: 552 for
    /// IPv4, 1280 for IPv6.
    TooBig(u32),
}

/// A message about a packet of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpEvent {
    /// Why it did not arrive.
    pub reason: IcmpReason,
    /// Who says so.
    pub from: IpAddr,
}

/// Which packets are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ours {
    remote: IpAddr,
    protocol: u8,
    port: Option<u16>,
}

/// Watches for messages about packets of one protocol to one address.
///
/// Anybody who knows the address, the protocol and the port can forge such messages: they are hints.
#[derive(Debug)]
pub struct IcmpWatch {
    fd: OwnedFd,
    ours: Ours,
}

/// Longest part of a message that matters: two IP headers with options, and the head of what follows.
const BUFFER: usize = 256;
/// Messages in one [`IcmpWatch::drain`]: a flood must not hold up the caller.
const MOST: usize = 64;

impl IcmpWatch {
    /// Watches for messages about packets to `remote` of this IP protocol, and to this UDP port if one is given, in the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_RAW), [`Error::System`].
    pub fn open(remote: IpAddr, protocol: u8, port: Option<u16>) -> Result<IcmpWatch, Error> {
        let failed = |source| Error::interface("open a raw ICMP socket", 0, source);
        let v6 = remote.is_ipv6();
        let icmp = if v6 {
            libc::IPPROTO_ICMPV6
        } else {
            libc::IPPROTO_ICMP
        };
        let fd = sys::socket(domain(v6), libc::SOCK_RAW, icmp).map_err(failed)?;
        let filtered = if v6 {
            // A set bit keeps a type out.
            let mut filter = [u32::MAX; 8];
            filter[0] &= !(1 << V6_UNREACHABLE | 1 << V6_TOO_BIG | 1 << V6_PARAMETER);
            sys::set_option(fd.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)
        } else {
            let filter = !(1_u32 << V4_UNREACHABLE);
            sys::set_option(fd.as_fd(), libc::SOL_RAW, ICMP_FILTER, &filter)
        };
        filtered.map_err(failed)?;
        let ours = Ours {
            remote,
            protocol,
            port,
        };
        Ok(IcmpWatch { fd, ours })
    }

    /// Reports what has come, oldest first; does not wait. What is left after 64 messages is for the next call.
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses to read.
    pub fn drain(&mut self, mut report: impl FnMut(IcmpEvent)) -> Result<(), Error> {
        let mut buffer = [0; BUFFER];
        for _ in 0..MOST {
            match sys::receive_from(self.fd.as_fd(), &mut buffer) {
                Ok((length, sender)) => {
                    let message = buffer.get(..length).unwrap_or(&buffer);
                    if let Some(reason) = self.ours.reason(message) {
                        let (from, _) = address::read(&sender);
                        report(IcmpEvent { reason, from });
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(Error::system("read ICMP messages", error)),
                },
            }
        }
        Ok(())
    }
}

impl AsFd for IcmpWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Types (RFC 792, RFC 4443).
const V4_UNREACHABLE: u8 = 3;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_PARAMETER: u8 = 4;
/// Options of raw sockets (linux/icmp.h, linux/icmpv6.h).
const ICMP_FILTER: i32 = 1;
const ICMPV6_FILTER: i32 = 1;
/// Bytes of an ICMP header, before the packet that it is about.
const ICMP_HEADER: usize = 8;
/// What a router that does not say its MTU is believed to mean: any host must take this (RFC 1191 3).
const V4_UNTOLD_MTU: u32 = 576;
/// Less is not believed (`net.ipv4.route.min_pmtu`; RFC 8200 5).
const V4_LEAST_MTU: u32 = 552;
const V6_LEAST_MTU: u32 = 1280;

impl Ours {
    /// What a message says, when it is about a packet of ours. Total: any bytes are a message or none.
    fn reason(&self, message: &[u8]) -> Option<IcmpReason> {
        match self.remote {
            IpAddr::V4(remote) => self.reason_v4(message, remote),
            IpAddr::V6(remote) => self.reason_v6(message, remote),
        }
    }

    /// `message` begins with an IPv4 header, as raw sockets give it.
    fn reason_v4(&self, message: &[u8], remote: Ipv4Addr) -> Option<IcmpReason> {
        let icmp = message.get(v4_header(message)?..)?;
        let (header, quoted) = icmp.split_first_chunk::<ICMP_HEADER>()?;
        let behind = quoted.get(v4_header(quoted)?..)?;
        let is_ours = header[0] == V4_UNREACHABLE
            && quoted.get(16..20)? == remote.octets()
            && *quoted.get(9)? == self.protocol;
        let first = u16_at(quoted, 6)? & 0x1fff == 0;
        if !is_ours || (first && !self.is_port(behind)) {
            return None;
        }
        match header[1] {
            0 | 1 | 5..=8 | 11 | 12 => Some(IcmpReason::NetOrHost),
            2 => Some(IcmpReason::Protocol),
            3 => Some(IcmpReason::Port),
            4 => {
                let mtu = match u32::from(u16_at(icmp, 6)?) {
                    0 => V4_UNTOLD_MTU,
                    mtu => mtu.max(V4_LEAST_MTU),
                };
                Some(IcmpReason::TooBig(mtu))
            }
            9 | 10 | 13..=15 => Some(IcmpReason::Prohibited),
            _ => None,
        }
    }

    /// `message` begins with the ICMPv6 header.
    fn reason_v6(&self, message: &[u8], remote: Ipv6Addr) -> Option<IcmpReason> {
        const IPV6_HEADER: usize = 40;
        const FRAGMENT: u8 = 44;
        let (header, quoted) = message.split_first_chunk::<ICMP_HEADER>()?;
        let (mut protocol, mut behind) = (*quoted.get(6)?, quoted.get(IPV6_HEADER..)?);
        let mut first = true;
        if protocol == FRAGMENT {
            protocol = *behind.first()?;
            first = u16_at(behind, 2)? & 0xfff8 == 0;
            behind = behind.get(8..)?;
        }
        let is_ours = quoted.get(24..40)? == remote.octets() && protocol == self.protocol;
        if !is_ours || (first && !self.is_port(behind)) {
            return None;
        }
        match (header[0], header[1]) {
            (V6_UNREACHABLE, 0 | 2 | 3 | 7) => Some(IcmpReason::NetOrHost),
            (V6_UNREACHABLE, 1 | 5 | 6) => Some(IcmpReason::Prohibited),
            (V6_UNREACHABLE, 4) => Some(IcmpReason::Port),
            (V6_PARAMETER, 1) => Some(IcmpReason::Protocol),
            (V6_TOO_BIG, _) => {
                let mtu = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                Some(IcmpReason::TooBig(mtu.max(V6_LEAST_MTU)))
            }
            _ => None,
        }
    }

    /// Whether a UDP header that a message quotes goes to our port; true when there is no port to look for.
    fn is_port(&self, header: &[u8]) -> bool {
        self.port.is_none_or(|port| u16_at(header, 2) == Some(port))
    }
}

/// Bytes of an IPv4 header.
fn v4_header(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let length = usize::from(first & 15) * 4;
    (first >> 4 == 4 && length >= 20).then_some(length)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

#[cfg(test)]
mod tests;
