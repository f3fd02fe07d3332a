//! The interface that a transmit sends to: found by name, followed by its index, lost and found again.

use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use fluxcap_socket::{Link, LinkEvent, LinkWatch, Sendmmsg, Transmitter};

/// Length of an Ethernet header (IEEE 802.3), which the MTU does not count.
const ETHERNET_HEADER: usize = 14;
/// Length of a VLAN tag, which the kernel allows on top of the MTU for one tag (`packet_snd` in `net/packet/af_packet.c`).
const VLAN_TAG: usize = 4;

/// An output, there or not.
#[derive(Debug)]
pub(crate) struct Output {
    name: String,
    qdisc_bypass: bool,
    links: LinkWatch,
    link: Option<Link>,
    backend: Option<Box<dyn Transmitter>>,
    /// Why the backend could not be opened.
    problem: String,
}

impl Output {
    /// Looks for the interface of the spec.
    ///
    /// # Errors
    /// When interfaces cannot be watched.
    pub(crate) fn new(spec: &v1::TransmitSpec) -> Result<Output, fluxcap_socket::Error> {
        let mut output = Output {
            name: spec.interfaces.first().cloned().unwrap_or_default(),
            qdisc_bypass: spec.qdisc_bypass,
            links: LinkWatch::open()?,
            link: None,
            backend: None,
            problem: String::new(),
        };
        output.find();
        Ok(output)
    }

    /// The backend; the outcome that frames have while there is none, or while the link is down.
    pub(crate) fn ready(&mut self) -> Result<&mut dyn Transmitter, Outcome> {
        match (&self.link, &mut self.backend) {
            (None, _) => Err(Outcome::NoInterface),
            (Some(link), _) if !link.up => Err(Outcome::LinkDown),
            (Some(link), _) if !link.carrier => Err(Outcome::NoCarrier),
            (Some(_), Some(backend)) => Ok(&mut **backend),
            (Some(_), None) => Err(Outcome::NoInterface),
        }
    }

    /// Why nothing can be sent; `None` when it can.
    pub(crate) fn reason(&self) -> Option<String> {
        let name = &self.name;
        match &self.link {
            None => Some(format!("interface {name} does not exist")),
            Some(_) if self.backend.is_none() => Some(self.problem.clone()),
            Some(link) if !link.up => Some(format!(
                "interface {} is down: ip link set {0} up",
                link.name
            )),
            Some(link) if !link.carrier => Some(format!("interface {} has no carrier", link.name)),
            Some(_) => None,
        }
    }

    /// How it is, without counters.
    pub(crate) fn status(&self) -> v1::TransmitInterfaceStatus {
        let reason = self.reason().unwrap_or_default();
        let (ifindex, mtu) = self
            .link
            .as_ref()
            .map_or((0, 0), |link| (link.index, link.mtu));
        let io = self.backend.as_ref().map_or("", |backend| backend.name());
        v1::TransmitInterfaceStatus {
            name: self.name.clone(),
            state: match reason.as_str() {
                "" => v1::State::Running.into(),
                _ => v1::State::Waiting.into(),
            },
            reason,
            ifindex,
            mtu,
            io: io.to_owned(),
            io_reason: match io {
                "" => String::new(),
                _ => "works on every interface".to_owned(),
            },
            ..Default::default()
        }
    }

    /// Longest frame that the interface takes, in bytes; one tag comes on top of the MTU. Without an interface, length is not
    /// what keeps a frame from being sent.
    pub(crate) fn longest(&self, tagged: bool) -> usize {
        let Some(link) = &self.link else {
            return usize::MAX;
        };
        link.mtu as usize + ETHERNET_HEADER + if tagged { VLAN_TAG } else { 0 }
    }

    /// Takes note of links that came, went or changed. True when that may matter.
    pub(crate) fn follow(&mut self) -> bool {
        let (mut changed, mut lost_events) = (false, false);
        let (name, link, backend) = (&self.name, &mut self.link, &mut self.backend);
        let drained = self.links.drain(|event| match event {
            LinkEvent::Changed(seen) => match link {
                Some(known) if known.index == seen.index => (*known, changed) = (seen, true),
                None if seen.is_called(name) => lost_events = true,
                _ => {}
            },
            LinkEvent::Removed { index, .. } => {
                if link.as_ref().is_some_and(|known| known.index == index) {
                    (*link, *backend, changed) = (None, None, true);
                }
            }
            LinkEvent::Overrun => lost_events = true,
        });
        if lost_events || drained.is_err() {
            self.find();
        }
        changed || lost_events
    }

    /// Looks for the interface among all that there are, and opens a backend on it.
    pub(crate) fn find(&mut self) {
        let links = match self.links.links() {
            Ok(links) => links,
            Err(error) => {
                return tracing::warn!(interface = %self.name, %error, "cannot list interfaces");
            }
        };
        let index = self.link.as_ref().map(|link| link.index);
        let known = links.iter().find(|link| Some(link.index) == index);
        let named = || links.iter().find(|link| link.is_called(&self.name));
        let found = known.or_else(named).cloned();
        if found.as_ref().map(|link| link.index) != index {
            self.backend = None;
        }
        self.link = found;
        self.open();
    }

    fn open(&mut self) {
        let Some(link) = &self.link else { return };
        if self.backend.is_some() {
            return;
        }
        if !link.ethernet {
            self.problem = format!("interface {} is not an Ethernet interface", link.name);
            return;
        }
        match Sendmmsg::open(link.index, self.qdisc_bypass) {
            Ok(backend) => {
                tracing::info!(interface = %link.name, ifindex = link.index, io = backend.name(), "transmitting");
                self.backend = Some(Box::new(backend));
            }
            Err(error) => self.problem = format!("cannot transmit on {}: {error}", link.name),
        }
    }
}
