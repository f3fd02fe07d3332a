//! Which captures take interfaces from everybody, by AF_XDP: whom others have to blame for getting nothing.

use fluxcap_socket::{Link, LinkWatch, interface_addresses};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names of captures by the index of the interface.
static TAKERS: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

fn takers() -> MutexGuard<'static, BTreeMap<u32, String>> {
    TAKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An interface that a capture takes from all others, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken(u32);

impl Taken {
    pub(crate) fn by(capture: &str, ifindex: u32) -> Taken {
        takers().insert(ifindex, capture.to_owned());
        Taken(ifindex)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        takers().remove(&self.0);
    }
}

/// The capture that takes this interface from all others.
pub(crate) fn taker(ifindex: u32) -> Option<String> {
    takers().get(&ifindex).cloned()
}

/// Who would get nothing any more if all frames of an interface were taken from the host: an excuse not to do so.
pub(crate) fn victim(link: &Link) -> Option<String> {
    // Every interface gives itself one of these.
    let common = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let found = interface_addresses(link.index).unwrap_or_default();
    if let Some(address) = found.iter().find(|address| !common(address)) {
        return Some(format!("this host has an address there ({address})"));
    }
    if link.master != 0 {
        let master = LinkWatch::open().and_then(|mut links| links.find_index(link.master));
        let name = master
            .ok()
            .flatten()
            .map_or_else(|| "another interface".to_owned(), |it| it.name);
        return Some(format!("it is a port of {name}"));
    }
    None
}
