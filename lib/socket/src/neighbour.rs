//! Who is next on the link: hardware addresses of neighbours (rtnetlink, RTM_GETNEIGH).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NlasIterator};

use crate::Error;
use crate::netlink::{self, Message, Requests};

/// How sure the kernel is of a neighbour (`NUD_*`, arp(7), RFC 4861 7.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourState {
    /// It has answered a moment ago, or is set by hand, or the link needs no addresses.
    Reachable,
    /// It has answered once; nobody has asked since.
    Stale,
    /// The kernel is asking again, with the address known.
    Verifying,
    /// The kernel is asking for the first time.
    Incomplete,
    /// It does not answer.
    Failed,
}

/// A neighbour as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address; none when it is not known, or not of six bytes.
    pub mac: Option<[u8; 6]>,
    /// How sure that is.
    pub state: NeighbourState,
}

const LOOKUP: &str = "look up a neighbour";
/// `struct ndmsg`: family, pad (3), interface (4), state (2), flags, type.
const HEADER_LEN: usize = 12;
const IFINDEX_AT: usize = 4;
const STATE_AT: usize = 8;

impl Neighbour {
    /// Asks for the neighbour with this address on an interface; `None` when the kernel knows nothing of it. Nothing is sent:
    /// a packet of the host's own to that address makes the kernel find out.
    ///
    /// # Errors
    /// [`Error::NoInterface`]; [`Error::System`] or [`Error::Netlink`] when the kernel does not answer as it should.
    pub fn lookup(ifindex: u32, address: IpAddr) -> Result<Option<Neighbour>, Error> {
        let mut requests = Requests::open().map_err(|e| Error::system(LOOKUP, e))?;
        let mut body = vec![0; HEADER_LEN];
        body[0] = netlink::family(address);
        body[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&ifindex.to_ne_bytes());
        netlink::append_address(&mut body, libc::NDA_DST, address);
        let request = netlink::request(libc::RTM_GETNEIGH, NLM_F_REQUEST, &body);
        let mut answer = None;
        requests.ask(LOOKUP, request, |message, _| {
            match message {
                Message::NewNeighbour(payload) => answer = Neighbour::parse(payload),
                Message::Error(0 | libc::ENOENT) => {}
                Message::Error(libc::ENODEV) => return Err(Error::NoInterface { ifindex }),
                Message::Error(code) => {
                    return Err(Error::system(LOOKUP, io::Error::from_raw_os_error(*code)));
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(answer)
    }

    /// Reads the payload of RTM_NEWNEIGH; `None` for an entry that says nothing.
    fn parse(payload: &[u8]) -> Option<Neighbour> {
        let state = payload.get(STATE_AT..)?.first_chunk()?;
        let state = state_of(u16::from_ne_bytes(*state))?;
        let attributes = NlasIterator::new(payload.get(HEADER_LEN..)?);
        let mac = attributes
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == libc::NDA_LLADDR)
            .and_then(|attribute| attribute.value().try_into().ok());
        Some(Neighbour { mac, state })
    }
}

fn state_of(bits: u16) -> Option<NeighbourState> {
    match bits {
        libc::NUD_REACHABLE | libc::NUD_PERMANENT | libc::NUD_NOARP => {
            Some(NeighbourState::Reachable)
        }
        libc::NUD_STALE => Some(NeighbourState::Stale),
        libc::NUD_DELAY | libc::NUD_PROBE => Some(NeighbourState::Verifying),
        libc::NUD_INCOMPLETE => Some(NeighbourState::Incomplete),
        libc::NUD_FAILED => Some(NeighbourState::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_payload_is_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Neighbour::parse(&bytes);
        }
    }
}
