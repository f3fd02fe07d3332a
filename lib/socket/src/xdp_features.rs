//! What a driver can do with XDP: the family "netdev" of generic netlink (Documentation/netlink/specs/netdev.yaml).

use crate::Error;
use crate::generic::Family;
use crate::netlink;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// What the driver of an interface can do with XDP, now: a veth can do less while its other end has neither GRO on nor an XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    const NDO_XMIT: u64 = 4;

    /// Of the interface with this index, in the network namespace of the calling thread. `None` when the kernel does not tell (before
    /// 6.3).
    ///
    /// # Errors
    /// [`Error::System`] when there is no such interface.
    pub fn of(ifindex: u32) -> Result<Option<XdpFeatures>, Error> {
        let Some(mut family) = Family::open(LOOKUP, "netdev")? else {
            return Ok(None);
        };
        let mut request = Vec::new();
        netlink::append_attribute(&mut request, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
        let mut features = None;
        family.ask(NETDEV_CMD_DEV_GET, &request, |kind, value| {
            if kind == NETDEV_A_DEV_XDP_FEATURES {
                features = value.try_into().ok().map(u64::from_ne_bytes);
            }
        })?;
        Ok(features.map(XdpFeatures))
    }

    /// Whether it sends frames that XDP programs redirect to it. Frames for one that does not are lost, and nobody counts them.
    #[must_use]
    pub fn takes_redirected(self) -> bool {
        self.0 & XdpFeatures::NDO_XMIT != 0
    }
}

const LOOKUP: &str = "ask what the driver can do with XDP";
