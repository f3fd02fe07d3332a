//! An interface, as rtnetlink(7) describes it.

use netlink_packet_core::{NlaBuffer, NlasIterator};

/// `struct ifinfomsg`: family, pad, type (2), index (4), flags (4), change mask (4).
const HEADER_LEN: usize = 16;

/// What is known of a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its network namespace, never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Further names.
    pub altnames: Vec<String>,
    /// What somebody has noted about it (`ip link set alias`).
    pub alias: String,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// The host asks for and answers to hardware addresses there (not IFF_NOARP).
    pub arp: bool,
    /// The host may send and join multicast there (IFF_MULTICAST).
    pub multicast: bool,
    /// Index of the interface that has this one as a port (bridge, bond, VRF...); 0: none.
    pub master: u32,
    /// Index of the interface that this one hangs on; of a veth, the other end. 0: none.
    pub linked: u32,
    /// That one is in another network namespace, and the index is the one that it has there.
    pub linked_elsewhere: bool,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Hardware address; zero when it has none of six bytes.
    pub mac: [u8; 6],
    /// Frames begin with an Ethernet header (Ethernet itself, and the loopback interface).
    pub ethernet: bool,
    /// What is sent through it arrives there.
    pub loopback: bool,
    /// What kind of virtual interface it is ("veth", "bridge", "tun"...); empty for hardware.
    pub kind: String,
    /// How many users have asked for promiscuous mode.
    pub promiscuity: u32,
    /// Identifier of the XDP program that is attached to it; 0: none, or several.
    pub xdp_program: u32,
    /// That program runs behind the driver and not in it.
    pub xdp_generic: bool,
    /// Frames received, as the driver counts.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames dropped on receipt. Also counts frames for which nobody but a capture had a use: not loss.
    pub rx_dropped: u64,
    /// Frames lost for want of buffers in the hardware.
    pub rx_missed: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames dropped on their way out.
    pub tx_dropped: u64,
}

impl Link {
    /// Whether this interface answers to `name`.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.altnames.iter().any(|alias| alias == name)
    }

    /// Parses the payload of RTM_NEWLINK or RTM_DELLINK.
    ///
    /// Only the attributes of interest are looked at, so that one that a newer kernel has changed does
    /// not hide the interface. `None` for messages that are not about an interface as such: those of a
    /// bridge about its ports, and those without a name.
    pub(crate) fn parse(payload: &[u8]) -> Option<Link> {
        let (header, attributes) = payload.split_first_chunk::<HEADER_LEN>()?;
        let &[family, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = header;
        if i32::from(family) != libc::AF_UNSPEC {
            return None;
        }
        let kind = u16::from_ne_bytes([t0, t1]);
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let mut link = Link {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            arp: flags & IFF_NOARP == 0,
            multicast: flags & IFF_MULTICAST != 0,
            loopback: kind == libc::ARPHRD_LOOPBACK,
            ethernet: matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK),
            ..Link::default()
        };
        for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
            link.take(&attribute);
        }
        (link.index != 0 && !link.name.is_empty()).then_some(link)
    }

    fn take(&mut self, attribute: &NlaBuffer<&[u8]>) {
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => self.name = text(value),
            libc::IFLA_IFALIAS => self.alias = text(value),
            libc::IFLA_MTU => self.mtu = word(value, 0),
            libc::IFLA_MASTER => self.master = word(value, 0),
            libc::IFLA_LINK => self.linked = word(value, 0),
            libc::IFLA_LINK_NETNSID => self.linked_elsewhere = true,
            libc::IFLA_PROMISCUITY => self.promiscuity = word(value, 0),
            libc::IFLA_ADDRESS => self.mac = value.try_into().unwrap_or_default(),
            libc::IFLA_LINKINFO => {
                let mut info = NlasIterator::new(value).map_while(Result::ok);
                let kind = info.find(|part| part.kind() == libc::IFLA_INFO_KIND);
                self.kind = kind.map(|kind| text(kind.value())).unwrap_or_default();
            }
            libc::IFLA_XDP => self.take_xdp(value),
            libc::IFLA_STATS64 => self.take_statistics(value),
            libc::IFLA_PROP_LIST => {
                let names = NlasIterator::new(value).map_while(Result::ok);
                self.altnames = names
                    .filter(|property| property.kind() == libc::IFLA_ALT_IFNAME)
                    .map(|property| text(property.value()))
                    .collect();
            }
            _ => {}
        }
    }

    fn take_xdp(&mut self, value: &[u8]) {
        for part in NlasIterator::new(value).map_while(Result::ok) {
            match part.kind() {
                IFLA_XDP_ATTACHED => self.xdp_generic = part.value() == [XDP_ATTACHED_SKB],
                IFLA_XDP_PROG_ID => self.xdp_program = word(part.value(), 0),
                _ => {}
            }
        }
    }

    /// `struct rtnl_link_stats64`.
    fn take_statistics(&mut self, value: &[u8]) {
        self.rx_packets = counter(value, 0);
        self.tx_packets = counter(value, 1);
        self.rx_bytes = counter(value, 2);
        self.tx_bytes = counter(value, 3);
        self.rx_dropped = counter(value, 6);
        self.tx_dropped = counter(value, 7);
        self.rx_missed = counter(value, 15);
    }
}

const IFLA_XDP_ATTACHED: u16 = 2;
const XDP_ATTACHED_SKB: u8 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 1 << 7;
const IFF_MULTICAST: u32 = 1 << 12;
const IFF_LOWER_UP: u32 = 1 << 16;

/// The number of the network namespace of the calling thread; 0 when it cannot be had.
pub fn network_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |it| it.ino())
}

/// A C string; bytes that are not UTF-8 are replaced.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn word(value: &[u8], at: usize) -> u32 {
    let bytes = value.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn counter(value: &[u8], index: usize) -> u64 {
    let bytes = value.get(index * 8..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests;
