//! The way from this host to a collector, as it is at a moment.

use fluxcap_datapath::{Closed, Contact, Hop, Remote};
use fluxcap_proto::v1::MirrorOverlay;
use fluxcap_socket::LinkWatch;
use std::net::IpAddr;

/// Follows the way to a collector.
#[derive(Debug)]
pub(super) struct Path {
    remote: Remote,
    local: Option<IpAddr>,
    device: String,
    hop: Result<Hop, Closed>,
    /// The next host has not answered, and not been heard of since.
    silent: bool,
}

impl Path {
    /// The way of a spec that was checked.
    pub(super) fn new(overlay: &MirrorOverlay) -> Path {
        let local: Option<IpAddr> = overlay.local.parse().ok();
        Path {
            remote: Remote::new(&overlay.remote, local.map(|local| local.is_ipv6())),
            local,
            device: overlay.device.clone(),
            hop: Err(Closed::new(fluxcap_ring::Outcome::NoRoute, "")),
            silent: false,
        }
    }

    /// Looks at it.
    pub(super) fn look(&mut self, links: &mut LinkWatch) {
        self.remote.follow(self.problem().is_some());
        self.hop = match self.remote.address() {
            Some(address) => Hop::find(links, address, self.local, &self.device).and_then(leaves),
            None => Err(Closed::new(
                fluxcap_ring::Outcome::NoRoute,
                self.remote.problem(),
            )),
        };
        self.silent = match self.hop.as_ref().map(Hop::contact) {
            Ok(Contact::Silent) => true,
            // The kernel asks again.
            Ok(Contact::Asking | Contact::Unknown) => self.silent,
            _ => false,
        };
    }

    /// The way, while there is one.
    pub(super) fn hop(&self) -> Option<&Hop> {
        self.hop.as_ref().ok()
    }

    /// Where packets go, as far as that is known.
    pub(super) fn destination(&self) -> Option<IpAddr> {
        self.remote.address()
    }

    /// The next host does not answer.
    pub(super) fn silent(&self) -> bool {
        self.silent
    }

    /// Why nothing arrives, if that is so.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.hop {
            Err(closed) => Some(closed.reason.clone()),
            Ok(hop) if self.silent => {
                let (next, device) = (hop.next, &hop.link.name);
                Some(format!("nobody answers for {next} on {device}"))
            }
            Ok(_) => None,
        }
    }
}

/// What the kernel does for copies ends at interfaces: they cannot go to this host itself.
fn leaves(hop: Hop) -> Result<Hop, Closed> {
    if hop.local {
        let reason = format!(
            "{} is an address of this host: copies for this host go into a ring",
            hop.destination
        );
        return Err(Closed::new(fluxcap_ring::Outcome::NoRoute, reason));
    }
    Ok(hop)
}
