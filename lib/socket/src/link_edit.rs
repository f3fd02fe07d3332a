//! Making and removing virtual interfaces, and routes to one host (rtnetlink).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use crate::Error;
use crate::netlink::{self, Message, Requests};

/// What kind of interface to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// Swallows what is sent.
    Dummy,
    /// Turns what is sent into what is received.
    Ifb,
    /// A pair of interfaces; this is the name of the other one.
    Veth(String),
    /// The kernel's end of a tunnel.
    Tunnel(TunnelLink),
}

/// The kernel's end of a tunnel of IP packets in GUE, as `ip link add ... encap gue` makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelLink {
    /// Source address; none: the route's.
    pub local: Option<IpAddr>,
    /// The other end. Behind IPv4 go IPv4 packets (ipip), behind IPv6 those of both versions (ip6tnl).
    pub remote: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Destination port of the GUE packets.
    pub port: u16,
    /// Their source port; 0: by flow.
    pub source_port: u16,
}

const MAKE: &str = "make an interface";
const REMOVE: &str = "remove an interface";
const CHANGE: &str = "change an interface";
const ROUTE: &str = "change the route to a host";
/// `struct ifinfomsg`, and where it has its index and flags.
const IFINFO_LEN: usize = 16;
const INDEX_AT: usize = 4;
const FLAGS_AT: usize = 8;
const CHANGE_AT: usize = 12;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 1 << 7;
const IFF_MULTICAST: u32 = 1 << 12;
/// An attribute of attributes.
const NESTED: u16 = 1 << 15;

impl LinkKind {
    /// The name of the kind.
    pub fn as_str(&self) -> &'static str {
        match self {
            LinkKind::Dummy => "dummy",
            LinkKind::Ifb => "ifb",
            LinkKind::Veth(_) => "veth",
            LinkKind::Tunnel(tunnel) if tunnel.remote.is_ipv4() => "ipip",
            LinkKind::Tunnel(_) => "ip6tnl",
        }
    }

    /// What `ip link add` puts behind the kind (IFLA_INFO_DATA).
    fn data(&self) -> Vec<u8> {
        match self {
            LinkKind::Dummy | LinkKind::Ifb => Vec::new(),
            LinkKind::Veth(peer) => {
                let mut body = vec![0; IFINFO_LEN];
                append_text(&mut body, libc::IFLA_IFNAME, peer);
                let mut data = Vec::new();
                netlink::append_attribute(&mut data, VETH_INFO_PEER, &body);
                data
            }
            LinkKind::Tunnel(tunnel) => tunnel.data(),
        }
    }
}

const VETH_INFO_PEER: u16 = 1;
/// `TUNNEL_ENCAP_GUE` (`linux/if_tunnel.h`).
const ENCAP_GUE: u16 = 2;

impl TunnelLink {
    /// `IFLA_IPTUN_*`.
    fn data(&self) -> Vec<u8> {
        const LOCAL: u16 = 2;
        const REMOTE: u16 = 3;
        const TTL: u16 = 4;
        const TOS: u16 = 5;
        const ENCAP_LIMIT: u16 = 6;
        const FLOWINFO: u16 = 7;
        const FLAGS: u16 = 8;
        const PROTO: u16 = 9;
        const ENCAP_TYPE: u16 = 15;
        const ENCAP_FLAGS: u16 = 16;
        const ENCAP_SPORT: u16 = 17;
        const ENCAP_DPORT: u16 = 18;
        /// `IP6_TNL_F_IGN_ENCAP_LIMIT` (`linux/ip6_tunnel.h`): no option between the headers.
        const NO_ENCAP_LIMIT: u32 = 1;
        let mut data = Vec::new();
        if let Some(local) = self.local {
            netlink::append_address(&mut data, LOCAL, local);
        }
        netlink::append_address(&mut data, REMOTE, self.remote);
        netlink::append_attribute(&mut data, TTL, &[self.ttl]);
        if self.remote.is_ipv6() {
            netlink::append_attribute(&mut data, FLOWINFO, &self.flow_info());
            netlink::append_attribute(&mut data, ENCAP_LIMIT, &[0]);
            netlink::append_attribute(&mut data, FLAGS, &NO_ENCAP_LIMIT.to_ne_bytes());
            // Both versions.
            netlink::append_attribute(&mut data, PROTO, &[0]);
        } else {
            netlink::append_attribute(&mut data, TOS, &[self.tos]);
        }
        let flags: u16 = 0;
        netlink::append_attribute(&mut data, ENCAP_TYPE, &ENCAP_GUE.to_ne_bytes());
        netlink::append_attribute(&mut data, ENCAP_FLAGS, &flags.to_ne_bytes());
        netlink::append_attribute(&mut data, ENCAP_SPORT, &self.source_port.to_be_bytes());
        netlink::append_attribute(&mut data, ENCAP_DPORT, &self.port.to_be_bytes());
        data
    }

    /// Traffic class, as part of a flow label.
    fn flow_info(&self) -> [u8; 4] {
        (u32::from(self.tos) << 20).to_be_bytes()
    }
}

/// Has the kernel load what GUE takes, if it has that as a module: asked for the family of netlink messages by which FOU ports are managed
/// (genetlink, CTRL_CMD_GETFAMILY), it does so. No port is opened.
///
/// # Errors
/// [`Error::System`]: ENOENT when the kernel has no GUE.
pub fn load_gue() -> Result<(), Error> {
    const OPERATION: &str = "use GUE, which this kernel does not have (CONFIG_NET_FOU)";
    /// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME` (`linux/genetlink.h`).
    const CONTROL: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_NAME: u16 = 2;
    let mut body = vec![GET_FAMILY, 1, 0, 0];
    append_text(&mut body, FAMILY_NAME, "fou");
    let mut requests = Requests::open_generic().map_err(|error| Error::system(OPERATION, error))?;
    let request = netlink::request(CONTROL, NLM_F_REQUEST, &body);
    requests.ask(OPERATION, request, |message, _| match message {
        Message::Error(0) => Ok(false),
        Message::Error(code) => {
            let source = io::Error::from_raw_os_error(*code);
            Err(Error::system(OPERATION, source))
        }
        _ => Ok(true),
    })
}

/// Makes an interface, which is down.
///
/// # Errors
/// [`Error::Permission`] (CAP_NET_ADMIN), [`Error::System`]: EOPNOTSUPP when the kernel does not have this kind, EEXIST when the
/// name is taken.
pub fn create_link(name: &str, kind: &LinkKind) -> Result<(), Error> {
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    change(
        MAKE,
        netlink::request(libc::RTM_NEWLINK, flags, &creation(name, kind)),
    )
}

fn creation(name: &str, kind: &LinkKind) -> Vec<u8> {
    let mut info = Vec::new();
    append_text(&mut info, libc::IFLA_INFO_KIND, kind.as_str());
    let data = kind.data();
    if !data.is_empty() {
        netlink::append_attribute(&mut info, libc::IFLA_INFO_DATA | NESTED, &data);
    }
    let mut body = vec![0; IFINFO_LEN];
    append_text(&mut body, libc::IFLA_IFNAME, name);
    netlink::append_attribute(&mut body, libc::IFLA_LINKINFO | NESTED, &info);
    body
}

/// Says in an interface's description (`ip link set alias`) what it is for.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn set_alias(ifindex: u32, alias: &str) -> Result<(), Error> {
    let mut body = link_body(ifindex);
    append_text(&mut body, libc::IFLA_IFALIAS, alias);
    set_link(ifindex, &body)
}

/// Sets an interface up.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn set_up(ifindex: u32) -> Result<(), Error> {
    set_flag(ifindex, IFF_UP, true)
}

/// Says whether an interface has multicast (`ip link set multicast`): without, the host sends none by itself. What a capture sees stays.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn set_multicast(ifindex: u32, on: bool) -> Result<(), Error> {
    set_flag(ifindex, IFF_MULTICAST, on)
}

/// Says whether an interface has ARP (`ip link set arp`): without, the host asks nobody and answers nobody there.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn set_arp(ifindex: u32, on: bool) -> Result<(), Error> {
    set_flag(ifindex, IFF_NOARP, !on)
}

fn set_flag(ifindex: u32, flag: u32, on: bool) -> Result<(), Error> {
    let mut body = link_body(ifindex);
    let value = if on { flag } else { 0 };
    body[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&value.to_ne_bytes());
    body[CHANGE_AT..CHANGE_AT + 4].copy_from_slice(&flag.to_ne_bytes());
    set_link(ifindex, &body)
}

/// Sets the longest packet of an interface, and has the kernel give it no IPv6 addresses by itself, for which it would send packets.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn set_carrier_only(ifindex: u32, mtu: u32) -> Result<(), Error> {
    /// `IFLA_INET6_ADDR_GEN_MODE` and its `IN6_ADDR_GEN_MODE_NONE` (`linux/if_link.h`).
    const ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let mut body = link_body(ifindex);
    netlink::append_attribute(&mut body, libc::IFLA_MTU, &mtu.to_ne_bytes());
    set_link(ifindex, &body)?;
    let (mut mode, mut families) = (Vec::new(), Vec::new());
    netlink::append_attribute(&mut mode, ADDR_GEN_MODE, &[NONE]);
    let inet6 = u16::try_from(libc::AF_INET6).unwrap_or_default();
    netlink::append_attribute(&mut families, inet6 | NESTED, &mode);
    let mut body = link_body(ifindex);
    netlink::append_attribute(&mut body, libc::IFLA_AF_SPEC | NESTED, &families);
    // A kernel without IPv6 refuses, and sends nothing either.
    match set_link(ifindex, &body) {
        Err(Error::System { .. }) => Ok(()),
        done => done,
    }
}

/// Removes an interface.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Permission`], [`Error::System`].
pub fn delete_link(ifindex: u32) -> Result<(), Error> {
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let request = netlink::request(libc::RTM_DELLINK, flags, &link_body(ifindex));
    change(REMOVE, request).map_err(|error| absent(error, ifindex))
}

fn link_body(ifindex: u32) -> Vec<u8> {
    let mut body = vec![0; IFINFO_LEN];
    body[INDEX_AT..INDEX_AT + 4].copy_from_slice(&ifindex.to_ne_bytes());
    body
}

fn set_link(ifindex: u32, body: &[u8]) -> Result<(), Error> {
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let request = netlink::request(libc::RTM_NEWLINK, flags, body);
    change(CHANGE, request).map_err(|error| absent(error, ifindex))
}

/// Who added a route: not one of the numbers that routing daemons have (`/etc/iproute2/rt_protos`), so that ours is told from
/// somebody else's.
const ROUTE_PROTOCOL: u8 = 41;
/// `struct rtmsg`.
const ROUTE_LEN: usize = 12;

/// A route to one host by a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRoute {
    /// The host.
    pub destination: IpAddr,
    /// The next router, of the same IP version.
    pub gateway: IpAddr,
    /// The interface where it is.
    pub ifindex: u32,
}

impl HostRoute {
    /// Adds the route, marked as ours.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::System`]: EEXIST when there is one to this host, ENETUNREACH when the gateway is not on the interface.
    pub fn add(&self) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        change(
            ROUTE,
            netlink::request(libc::RTM_NEWROUTE, flags, &self.body()),
        )
    }

    /// Removes the route, if it is ours. That there is none is fine.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::System`].
    pub fn remove(&self) -> Result<(), Error> {
        let request = netlink::request(libc::RTM_DELROUTE, NLM_F_REQUEST | NLM_F_ACK, &self.body());
        match change(ROUTE, request) {
            Err(Error::System { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut body = vec![0; ROUTE_LEN];
        body[0] = netlink::family(self.destination);
        body[1] = if self.destination.is_ipv4() { 32 } else { 128 };
        body[4] = libc::RT_TABLE_MAIN;
        body[5] = ROUTE_PROTOCOL;
        body[6] = libc::RT_SCOPE_UNIVERSE;
        body[7] = libc::RTN_UNICAST;
        netlink::append_address(&mut body, libc::RTA_DST, self.destination);
        netlink::append_address(&mut body, libc::RTA_GATEWAY, self.gateway);
        netlink::append_attribute(&mut body, libc::RTA_OIF, &self.ifindex.to_ne_bytes());
        body
    }
}

fn append_text(body: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    netlink::append_attribute(body, kind, &bytes);
}

/// Sends a request that is answered by a confirmation.
fn change(operation: &'static str, request: Vec<u8>) -> Result<(), Error> {
    let mut requests = Requests::open().map_err(|e| Error::system(operation, e))?;
    requests.ask(operation, request, |message, _| match message {
        Message::Error(0) => Ok(true),
        Message::Error(code) => {
            let source = io::Error::from_raw_os_error(*code);
            Err(match *code {
                libc::EPERM | libc::EACCES => Error::Permission {
                    operation,
                    capability: "CAP_NET_ADMIN",
                    source,
                },
                _ => Error::system(operation, source),
            })
        }
        _ => Ok(false),
    })
}

fn absent(error: Error, ifindex: u32) -> Error {
    match error {
        Error::System { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => {
            Error::NoInterface { ifindex }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NlasIterator;

    /// Kinds and values of attributes, nested ones told from others by the caller.
    fn attributes(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        NlasIterator::new(bytes)
            .map(|attribute| {
                let attribute = attribute.unwrap();
                (attribute.kind(), attribute.value().to_vec())
            })
            .collect()
    }

    /// What `ip link add t0 type ipip local 192.0.2.1 remote 192.0.2.9 ttl 64 tos 0 encap gue encap-sport auto encap-dport 6080` sends, but for what
    /// it states of defaults.
    #[test]
    fn a_tunnel_is_asked_for_as_ip_link_does() {
        let kind = LinkKind::Tunnel(TunnelLink {
            local: Some(IpAddr::from([192, 0, 2, 1])),
            remote: IpAddr::from([192, 0, 2, 9]),
            ttl: 64,
            tos: 0,
            port: 6080,
            source_port: 0,
        });
        let body = creation("t0", &kind);
        let outer = attributes(&body[IFINFO_LEN..]);
        assert_eq!(outer[0], (libc::IFLA_IFNAME, b"t0\0".to_vec()));
        assert_eq!(outer[1].0, libc::IFLA_LINKINFO);
        let info = attributes(&outer[1].1);
        assert_eq!(info[0], (libc::IFLA_INFO_KIND, b"ipip\0".to_vec()));
        let data = attributes(&info[1].1);
        let expected: Vec<(u16, Vec<u8>)> = vec![
            (2, vec![192, 0, 2, 1]),
            (3, vec![192, 0, 2, 9]),
            (4, vec![64]),
            (5, vec![0]),
            (15, vec![2, 0]),
            (16, vec![0, 0]),
            (17, vec![0, 0]),
            (18, vec![0x17, 0xc0]),
        ];
        assert_eq!(data, expected);
    }

    #[test]
    fn a_route_to_a_host_is_marked_as_ours() {
        let route = HostRoute {
            destination: IpAddr::from([192, 0, 2, 9]),
            gateway: IpAddr::from([10, 0, 0, 1]),
            ifindex: 7,
        };
        let body = route.body();
        assert_eq!(body[..8], [2, 32, 0, 0, 254, ROUTE_PROTOCOL, 0, 1]);
        let expected: Vec<(u16, Vec<u8>)> = vec![
            (libc::RTA_DST, vec![192, 0, 2, 9]),
            (libc::RTA_GATEWAY, vec![10, 0, 0, 1]),
            (libc::RTA_OIF, 7_u32.to_ne_bytes().to_vec()),
        ];
        assert_eq!(attributes(&body[ROUTE_LEN..]), expected);
    }
}
