//! Where packets to the far end leave the host, and who takes them there.

use fluxcap_ring::Outcome;
use fluxcap_socket::{Error, Link, LinkWatch, Neighbour, NeighbourState, Route, RouteKind};
use std::net::IpAddr;

/// Why nothing can be sent: what becomes of frames, and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What becomes of frames.
    pub outcome: Outcome,
    /// What is said of it.
    pub reason: String,
}

impl Closed {
    /// No way out.
    pub fn new(outcome: Outcome, reason: impl Into<String>) -> Closed {
        let reason = reason.into();
        Closed { outcome, reason }
    }
}

/// The way from this host to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Source of packets.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// The router, or the destination itself.
    pub next: IpAddr,
    /// The interface that packets leave by.
    pub link: Link,
    /// Longest IP packet, as far as this host knows.
    pub mtu: u32,
    /// Whether the next host has an Ethernet address to be known.
    pub ethernet: bool,
    /// Whether the destination is this host.
    pub local: bool,
}

impl Hop {
    /// Asks the kernel for the way to `destination`. `local` and `device` are what the tunnel insists on; the interface goes by name.
    ///
    /// # Errors
    /// Why there is no way.
    pub fn find(
        links: &mut LinkWatch,
        destination: IpAddr,
        local: Option<IpAddr>,
        device: &str,
    ) -> Result<Hop, Closed> {
        let unknown = |error: Error| Closed::new(Outcome::NoRoute, error.to_string());
        let device = match device {
            "" => None,
            name => match links.find(name).map_err(unknown)? {
                Some(link) => Some(link.index),
                None => return Err(absent(name)),
            },
        };
        let route = match Route::lookup(destination, local, device) {
            Ok(route) => route,
            Err(Error::NoAddress { address }) => {
                let reason = format!("this host has no address {address}");
                return Err(Closed::new(Outcome::NoRoute, reason));
            }
            Err(error) => return Err(unknown(error)),
        };
        if !matches!(route.kind, RouteKind::Unicast | RouteKind::Local) {
            return Err(Closed::new(
                Outcome::NoRoute,
                no_way(route.kind, destination),
            ));
        }
        let link = links.find_index(route.ifindex).map_err(unknown)?;
        let link = link.ok_or_else(|| absent(&format!("with index {}", route.ifindex)))?;
        let Some(source) = local.or(route.source) else {
            let reason = format!("interface {} has no address to send from", link.name);
            return Err(Closed::new(Outcome::NoRoute, reason));
        };
        usable(&link)?;
        Ok(Hop {
            source,
            destination,
            next: route.next_hop(destination),
            mtu: route.mtu.min(link.mtu),
            ethernet: link.ethernet && route.kind == RouteKind::Unicast,
            local: route.kind == RouteKind::Local,
            link,
        })
    }

    /// What the kernel knows of the next host.
    pub fn contact(&self) -> Contact {
        if !self.ethernet {
            return Contact::Direct;
        }
        match Neighbour::lookup(self.link.index, self.next) {
            Ok(Some(neighbour)) => Contact::of(&neighbour),
            Ok(None) => Contact::Unknown,
            // The interface has gone; the next look at the route will tell.
            Err(_) => Contact::Unknown,
        }
    }

    /// The same but for counters.
    pub fn is_like(&self, other: &Hop) -> bool {
        let key = |hop: &Hop| (hop.source, hop.destination, hop.next, hop.mtu, hop.ethernet);
        let link = |hop: &Hop| (hop.link.index, hop.link.mac);
        key(self) == key(other) && link(self) == link(other) && self.link.name == other.link.name
    }
}

fn usable(link: &Link) -> Result<(), Closed> {
    let name = &link.name;
    match link {
        Link { up: false, .. } => Err(Closed::new(
            Outcome::LinkDown,
            format!("interface {name} is down: ip link set {name} up"),
        )),
        Link { carrier: false, .. } => Err(Closed::new(
            Outcome::NoCarrier,
            format!("interface {name} has no carrier"),
        )),
        _ => Ok(()),
    }
}

fn absent(name: &str) -> Closed {
    Closed::new(
        Outcome::NoInterface,
        format!("interface {name} does not exist"),
    )
}

fn no_way(kind: RouteKind, destination: IpAddr) -> String {
    match kind {
        RouteKind::Prohibited => {
            format!("the routes of this host prohibit packets to {destination}")
        }
        RouteKind::Blackhole => format!("a route of this host has packets to {destination} vanish"),
        RouteKind::Broadcast | RouteKind::Multicast => {
            format!("{destination} is not the address of one host")
        }
        _ => format!("there is no route to {destination}: ip route get {destination}"),
    }
}

/// What is known of the next host on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// There is no Ethernet address to know: the kernel delivers by itself.
    Direct,
    /// Its address, and whether that was not confirmed for long.
    Known {
        /// The address.
        mac: [u8; 6],
        /// How sure that is.
        state: NeighbourState,
    },
    /// The kernel knows nothing, and does not ask.
    Unknown,
    /// The kernel asks.
    Asking,
    /// The kernel has asked and got no answer.
    Silent,
}

impl Contact {
    fn of(neighbour: &Neighbour) -> Contact {
        match (neighbour.state, neighbour.mac) {
            (NeighbourState::Failed, _) => Contact::Silent,
            (NeighbourState::Incomplete, _) => Contact::Asking,
            (state, Some(mac)) => Contact::Known { mac, state },
            // It needs none.
            (_, None) => Contact::Direct,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Contact::Direct => "not needed",
            Contact::Known { state, .. } => match state {
                NeighbourState::Reachable => "reachable",
                NeighbourState::Stale => "stale",
                NeighbourState::Verifying => "being verified",
                NeighbourState::Incomplete | NeighbourState::Failed => "unknown",
            },
            Contact::Unknown => "unknown",
            Contact::Asking => "being asked for",
            Contact::Silent => "no answer",
        }
    }
}
