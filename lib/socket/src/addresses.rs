//! The IP addresses of an interface (rtnetlink, RTM_GETADDR).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};

use crate::Error;
use crate::netlink::{self, Message, Requests};

const LOOKUP: &str = "list the addresses of an interface";
/// `struct ifaddrmsg`: family, prefix length, flags, scope, index (4).
const HEADER_LEN: usize = 8;
const INDEX_AT: usize = 4;

/// The IP addresses that an interface has, in the network namespace of the calling thread.
///
/// # Errors
/// [`Error::System`] or [`Error::Netlink`] when the kernel does not answer as it should.
pub fn interface_addresses(ifindex: u32) -> Result<Vec<IpAddr>, Error> {
    let mut requests = Requests::open().map_err(|e| Error::system(LOOKUP, e))?;
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = netlink::request(libc::RTM_GETADDR, flags, &[0; HEADER_LEN]);
    let mut addresses = Vec::new();
    requests.ask(LOOKUP, request, |message, _| match message {
        Message::NewAddress(payload) => {
            addresses.extend(parse(payload, ifindex));
            Ok(false)
        }
        Message::Done => Ok(true),
        Message::Error(code) => {
            let source = std::io::Error::from_raw_os_error(*code);
            Err(Error::system(LOOKUP, source))
        }
        _ => Ok(false),
    })?;
    Ok(addresses)
}

/// The address in the payload of RTM_NEWADDR, if it is one of that interface.
fn parse(payload: &[u8], ifindex: u32) -> Option<IpAddr> {
    let index = netlink::word(payload.get(INDEX_AT..)?)?;
    let attributes = || NlasIterator::new(payload.get(HEADER_LEN..).unwrap_or_default());
    // Of a point-to-point interface IFA_ADDRESS is the other end's.
    let of = |kind| {
        let mut attributes = attributes().map_while(Result::ok);
        let found = attributes.find(|attribute| attribute.kind() == kind);
        found.and_then(|attribute| netlink::address(attribute.value()))
    };
    (index == ifindex).then(|| of(libc::IFA_LOCAL).or_else(|| of(libc::IFA_ADDRESS)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_payload_is_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes, 7);
        }
    }
}
