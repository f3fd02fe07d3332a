//! The way that the host takes to an address (rtnetlink, RTM_GETROUTE).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NlaBuffer, NlasIterator};

use crate::netlink::{self, Message, Requests};
use crate::{Error, LinkWatch};

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteKind {
    /// Sends them to a gateway, or to the destination on the same link.
    Unicast,
    /// The destination is the host itself.
    Local,
    /// The destination is everybody on a link (IPv4).
    Broadcast,
    /// The destination is a group.
    Multicast,
    /// There is no route, or one that says so.
    Unreachable,
    /// The host's administrator does not want it.
    Prohibited,
    /// Packets vanish by the administrator's wish.
    Blackhole,
    /// Something that this version does not know.
    Other,
}

/// Where packets to one address go at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What becomes of packets. The other fields mean something for the first four kinds only.
    pub kind: RouteKind,
    /// The interface that they leave by; 0 when there is none.
    pub ifindex: u32,
    /// The next router; none when the destination is on the link. May be of another IP version than the destination (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The source address that the host would choose.
    pub source: Option<IpAddr>,
    /// The longest IP packet that arrives, in bytes, as far as the host knows: what routers have said of the path, else what the
    /// route says, else the MTU of the interface; 0 when there is none.
    pub mtu: u32,
}

const LOOKUP: &str = "look up a route";
/// `struct rtmsg`: family, prefix lengths of destination and source, TOS, table, protocol, scope, type, flags (4).
const HEADER_LEN: usize = 12;
const TYPE_AT: usize = 7;
/// The metric that is an MTU (`RTAX_MTU`, linux/rtnetlink.h).
const RTAX_MTU: u16 = 2;

impl Route {
    /// Asks for the route to `destination`, of packets from `source` and through the interface `device` if these are given, in the
    /// network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::NoInterface`] and [`Error::NoAddress`] when the device or the source do not exist here, else [`Error::System`] or
    /// [`Error::Netlink`] when the kernel does not answer as it should. That there is no route is not an error.
    pub fn lookup(
        destination: IpAddr,
        source: Option<IpAddr>,
        device: Option<u32>,
    ) -> Result<Route, Error> {
        let mut requests = Requests::open().map_err(|e| Error::system(LOOKUP, e))?;
        // The kernel says of a source that it does not have that there is no route, or with IPv6 nothing.
        if let Some(address) = source
            && ask(&mut requests, address, None, None)?.kind != RouteKind::Local
        {
            return Err(Error::NoAddress { address });
        }
        let mut route = ask(&mut requests, destination, source, device)?;
        if route.mtu == 0 && route.ifindex != 0 {
            let link = LinkWatch::open()?.find_index(route.ifindex)?;
            route.mtu = link.map_or(0, |link| link.mtu);
        }
        Ok(route)
    }

    /// Where the next hop is: the gateway, or the destination itself.
    pub fn next_hop(&self, destination: IpAddr) -> IpAddr {
        self.gateway.unwrap_or(destination)
    }

    fn none(kind: RouteKind) -> Route {
        Route {
            kind,
            ifindex: 0,
            gateway: None,
            source: None,
            mtu: 0,
        }
    }

    /// Reads the payload of RTM_NEWROUTE.
    fn parse(payload: &[u8]) -> Option<Route> {
        let mut route = Route::none(kind(*payload.get(TYPE_AT)?));
        let attributes = NlasIterator::new(payload.get(HEADER_LEN..)?);
        for attribute in attributes.map_while(Result::ok) {
            route.take(&attribute);
        }
        Some(route)
    }

    fn take(&mut self, attribute: &NlaBuffer<&[u8]>) {
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_OIF => self.ifindex = netlink::word(value).unwrap_or(0),
            libc::RTA_GATEWAY => self.gateway = netlink::address(value),
            // `struct rtvia`: family (2), then the address.
            libc::RTA_VIA => self.gateway = value.get(2..).and_then(netlink::address),
            libc::RTA_PREFSRC => self.source = netlink::address(value),
            libc::RTA_METRICS => {
                let mut metrics = NlasIterator::new(value).map_while(Result::ok);
                let mtu = metrics.find(|metric| metric.kind() == RTAX_MTU);
                self.mtu = mtu.and_then(|mtu| netlink::word(mtu.value())).unwrap_or(0);
            }
            _ => {}
        }
    }
}

fn ask(
    requests: &mut Requests,
    destination: IpAddr,
    source: Option<IpAddr>,
    device: Option<u32>,
) -> Result<Route, Error> {
    let mut answer = None;
    let request = request(destination, source, device);
    requests.ask(LOOKUP, request, |message, _| {
        match message {
            Message::NewRoute(payload) => answer = Route::parse(payload),
            Message::Error(code) => answer = Some(refusal(*code, device)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    answer.ok_or(Error::Netlink {
        operation: LOOKUP,
        detail: "a route is cut short",
    })
}

fn request(destination: IpAddr, source: Option<IpAddr>, device: Option<u32>) -> Vec<u8> {
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut body = vec![0; HEADER_LEN];
    body[0] = netlink::family(destination);
    body[1] = bits(destination);
    body[2] = source.map_or(0, bits);
    netlink::append_address(&mut body, libc::RTA_DST, destination);
    if let Some(source) = source {
        netlink::append_address(&mut body, libc::RTA_SRC, source);
    }
    if let Some(device) = device {
        netlink::append_attribute(&mut body, libc::RTA_OIF, &device.to_ne_bytes());
    }
    netlink::request(libc::RTM_GETROUTE, NLM_F_REQUEST, &body)
}

/// What the errno of a lookup says of the route.
fn refusal(code: i32, device: Option<u32>) -> Result<Route, Error> {
    match code {
        libc::ENETUNREACH | libc::EHOSTUNREACH => Ok(Route::none(RouteKind::Unreachable)),
        libc::EACCES => Ok(Route::none(RouteKind::Prohibited)),
        libc::EINVAL => Ok(Route::none(RouteKind::Blackhole)),
        libc::ENODEV => Err(Error::NoInterface {
            ifindex: device.unwrap_or(0),
        }),
        _ => Err(Error::system(LOOKUP, io::Error::from_raw_os_error(code))),
    }
}

fn kind(value: u8) -> RouteKind {
    match value {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_BROADCAST => RouteKind::Broadcast,
        libc::RTN_MULTICAST | libc::RTN_ANYCAST => RouteKind::Multicast,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_PROHIBIT => RouteKind::Prohibited,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        _ => RouteKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_payload_is_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Route::parse(&bytes);
        }
    }

    #[test]
    fn gateway_of_the_other_ip_version_is_read() {
        let mut payload = vec![0; HEADER_LEN];
        payload[TYPE_AT] = libc::RTN_UNICAST;
        let gateway = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 7]);
        let mut via = 10_u16.to_ne_bytes().to_vec();
        via.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        netlink::append_attribute(&mut payload, libc::RTA_VIA, &via);
        netlink::append_attribute(&mut payload, libc::RTA_OIF, &3_u32.to_ne_bytes());
        let route = Route::parse(&payload).unwrap();
        assert_eq!((route.kind, route.ifindex), (RouteKind::Unicast, 3));
        assert_eq!(route.next_hop(IpAddr::from([192, 0, 2, 1])), gateway);
    }
}
