//! What a driver can do with XDP: the family "netdev" of generic netlink (Documentation/netlink/specs/netdev.yaml).

use netlink_packet_core::{NLM_F_REQUEST, NlasIterator};

use crate::Error;
use crate::netlink::{self, Message, Requests};

/// `struct genlmsghdr`: command (1), version (1), reserved (2).
const HEADER_LEN: usize = 4;
/// GENL_ID_CTRL, the family that knows the others.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
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
        let mut requests = Requests::open_generic().map_err(|e| Error::system(LOOKUP, e))?;
        let Some(family) = family(&mut requests)? else {
            return Ok(None);
        };
        let mut request = vec![NETDEV_CMD_DEV_GET, 1, 0, 0];
        netlink::append_attribute(&mut request, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
        let value = ask(&mut requests, family, &request, NETDEV_A_DEV_XDP_FEATURES)?;
        let features = value.and_then(|value| value.try_into().ok());
        Ok(features.map(|bytes| XdpFeatures(u64::from_ne_bytes(bytes))))
    }

    /// Whether it sends frames that XDP programs redirect to it. Frames for one that does not are lost, and nobody counts them.
    #[must_use]
    pub fn takes_redirected(self) -> bool {
        self.0 & XdpFeatures::NDO_XMIT != 0
    }
}

/// The number of the family; `None` when this kernel has none.
fn family(requests: &mut Requests) -> Result<Option<u16>, Error> {
    let mut request = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    netlink::append_attribute(&mut request, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    match ask(requests, CONTROL, &request, CTRL_ATTR_FAMILY_ID) {
        Ok(value) => {
            let id = value.and_then(|value| value.try_into().ok());
            Ok(id.map(u16::from_ne_bytes))
        }
        Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// One attribute of the answer.
fn ask(
    requests: &mut Requests,
    family: u16,
    body: &[u8],
    wanted: u16,
) -> Result<Option<Vec<u8>>, Error> {
    let mut found = None;
    let request = netlink::request(family, NLM_F_REQUEST, body);
    requests.ask(LOOKUP, request, |message, _| match message {
        Message::Generic(payload) => {
            let attributes = payload.get(HEADER_LEN..).unwrap_or_default();
            let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
            let attribute = attributes.find(|attribute| attribute.kind() == wanted);
            found = attribute.map(|attribute| attribute.value().to_vec());
            Ok(true)
        }
        Message::Error(0) | Message::Done => Ok(true),
        Message::Error(code) => Err(Error::system(
            LOOKUP,
            std::io::Error::from_raw_os_error(*code),
        )),
        _ => Ok(false),
    })?;
    Ok(found)
}

const LOOKUP: &str = "ask what the driver can do with XDP";
