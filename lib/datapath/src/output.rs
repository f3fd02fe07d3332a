//! One interface that frames are sent to: found by name, followed while nobody else has the name, lost and found again.

use crate::choice::{self, Io};
use crate::device::Device;
use crate::outcome::OutcomeLive;
use fluxcap_proto::v1;
use fluxcap_ring::Outcome;
use fluxcap_service::State;
use fluxcap_socket::{FarEnd, Link};
use std::sync::Arc;

/// Length of an Ethernet header (IEEE 802.3), which the MTU does not count.
const ETHERNET_HEADER: usize = 14;
/// Length of a VLAN tag, which the kernel allows on top of the MTU for one tag (`packet_snd` in `net/packet/af_packet.c`).
const VLAN_TAG: usize = 4;

/// An output, there or not.
#[derive(Debug)]
pub struct Output {
    pub(crate) name: String,
    /// The interface, while there is one.
    pub(crate) link: Option<Link>,
    pub(crate) device: Device,
    /// The way in which frames are sent, and why; `None` while there is none.
    pub(crate) io: Option<Io>,
    pub(crate) io_reason: String,
    /// Why there is none.
    pub(crate) problem: String,
    /// That frames would go round if they were sent here, and what to do.
    pub(crate) looped: Option<String>,
    /// Index of the interface for which the way was chosen, and whether that was fit for live frames by its MTU.
    pub(crate) chosen_for: Option<(u32, bool)>,
    /// How the other end takes frames, if it is one of a veth and the kernel tells.
    pub(crate) far_end: Option<FarEnd>,
    /// What to run at the other end, so that it takes live frames as they are.
    pub(crate) advice: String,
    /// It was given live frames, asked for by name, and took none of the last ones.
    pub(crate) refused: bool,
    /// The way that the last frames took.
    pub(crate) took: Option<&'static str>,
    /// Whether a better way was not ready yet when this one was chosen.
    pub(crate) provisional: bool,
    /// Its counters.
    pub live: Arc<OutcomeLive>,
}

impl Output {
    /// An output of that name, which is not looked for yet.
    pub(crate) fn new(name: &str) -> Output {
        Output {
            name: name.to_owned(),
            link: None,
            device: Device::default(),
            io: None,
            io_reason: String::new(),
            problem: String::new(),
            looped: None,
            chosen_for: None,
            far_end: None,
            advice: String::new(),
            refused: false,
            took: None,
            provisional: false,
            live: Arc::default(),
        }
    }

    /// The name by which the interface is looked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface, while there is one.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Whether nothing has changed since the way was chosen, and there is one if there is an interface.
    pub(crate) fn is_settled(&self) -> bool {
        let now = self.link.as_ref().map(choice::fitness);
        now == self.chosen_for && (now.is_none() || self.io.is_some())
    }

    /// Whether it is closed because of a loop, and was so when it was looked at last.
    pub(crate) fn waits_for_a_way_out(&self) -> bool {
        let index = self.link.as_ref().map(|link| link.index);
        self.looped.is_some() && self.chosen_for.map(|(index, _)| index) == index
    }

    /// The outcome that frames have while nothing can be sent; `None` when it can.
    pub fn closed(&self) -> Option<Outcome> {
        match &self.link {
            None => Some(Outcome::NoInterface),
            Some(_) if self.looped.is_some() => Some(Outcome::LoopGuard),
            Some(link) if !link.up => Some(Outcome::LinkDown),
            Some(link) if !link.carrier => Some(Outcome::NoCarrier),
            Some(_) if self.io.is_none() => Some(Outcome::NoInterface),
            Some(_) => None,
        }
    }

    /// Why nothing can be sent; `None` when it can.
    pub fn reason(&self) -> Option<String> {
        let name = &self.name;
        match &self.link {
            None => Some(format!("interface {name} does not exist")),
            Some(_) if self.io.is_none() => Some(self.problem.clone()),
            Some(link) if !link.up => Some(format!(
                "interface {} is down: ip link set {0} up",
                link.name
            )),
            Some(link) if !link.carrier => Some(format!("interface {} has no carrier", link.name)),
            Some(_) => None,
        }
    }

    /// What else is to be said of an output that works.
    pub fn remark(&self) -> Option<String> {
        let link = self.link.as_ref()?;
        if !link.is_called(&self.name) {
            return Some(format!("{} is renamed to {}", self.name, link.name));
        }
        Some(self.device.remark().to_owned()).filter(|remark| !remark.is_empty())
    }

    /// What the user should know of an output that changes what a sensor sees.
    pub fn warning(&self) -> Option<String> {
        (self.far_end == Some(FarEnd::Gro)).then(|| {
            format!(
                "{}: GRO is on at the other end, so a sensor there sees frames of a flow joined to ones of up to 64 KiB; {}",
                self.name, self.advice
            )
        })
    }

    /// Why it is served in this way.
    fn why(&self) -> String {
        let deaf = self.refused || self.far_end == Some(FarEnd::Plain);
        match (self.io, self.far_end) {
            (Some(Io::Live), _) if deaf => {
                format!(
                    "the other end takes no live frames: {}, or use --io auto",
                    self.advice
                )
            }
            (Some(_), Some(FarEnd::Gro)) => {
                format!(
                    "{}; GRO is on at the other end and joins frames: {}",
                    self.io_reason, self.advice
                )
            }
            _ => self.io_reason.clone(),
        }
    }

    /// What is shown of it, without counters.
    pub fn status(&self) -> v1::TransmitInterfaceStatus {
        let (ifindex, mtu) = self
            .link
            .as_ref()
            .map_or((0, 0), |link| (link.index, link.mtu));
        let reason = self.reason();
        let state = match reason {
            None => State::Running,
            Some(_) => State::Waiting,
        };
        v1::TransmitInterfaceStatus {
            name: self.name.clone(),
            state: v1::State::from(state).into(),
            reason: reason.or_else(|| self.remark()).unwrap_or_default(),
            ifindex,
            mtu,
            io: self.io.map_or("", Io::as_str).to_owned(),
            io_reason: self.why(),
            last_io: self.took.unwrap_or_default().to_owned(),
            far_end: match self.far_end {
                Some(FarEnd::Plain) => "plain",
                Some(FarEnd::Gro) => "gro",
                Some(FarEnd::Program) => "program",
                None => "",
            }
            .to_owned(),
            device_changes: self.device.changes(),
            ..Default::default()
        }
    }

    /// Longest frame that the interface takes, in bytes; one tag comes on top of the MTU. Without an interface, length is not
    /// what keeps a frame from being sent.
    pub fn longest(&self, tagged: bool) -> usize {
        let Some(link) = &self.link else {
            return usize::MAX;
        };
        link.mtu as usize + ETHERNET_HEADER + if tagged { VLAN_TAG } else { 0 }
    }
}
