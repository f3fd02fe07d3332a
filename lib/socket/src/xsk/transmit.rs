//! Sending through AF_XDP sockets, one for each interface, on its queue 0.

use super::port::{CHUNK, Call, Port};
use crate::sendmmsg::{DRAIN, SETTLE};
use crate::{
    Error, Fate, LinkWatch, MAX_OUTPUTS, Origin, Outgoing, SendReport, Sendmmsg, Transmitter,
};

/// Bytes of an Ethernet header.
const SHORTEST: usize = 14;

/// A transmitter on AF_XDP sockets.
///
/// Where the driver can, it reads frames from memory that is shared with it; else the kernel copies each once. Frames longer than
/// 4096 bytes, or than the MTU allows, go through packet sockets, in order. No queueing discipline sees the frames.
///
/// An interface whose frames do not come back for 100 ms is [`Fate::Unreachable`] until they do.
#[derive(Debug)]
pub struct Xsk {
    /// None at places that are free.
    ports: Vec<Option<Port>>,
    long: Sendmmsg,
    links: Option<LinkWatch>,
}

impl Xsk {
    /// A transmitter without interfaces.
    pub fn new() -> Xsk {
        Xsk {
            ports: Vec::new(),
            long: Sendmmsg::new(false),
            links: None,
        }
    }

    /// Whether all drivers read the frames from our memory.
    pub fn is_zero_copy(&self) -> bool {
        self.ports.iter().flatten().all(Port::is_zero_copy)
    }
}

impl Default for Xsk {
    fn default() -> Xsk {
        Xsk::new()
    }
}

impl Transmitter for Xsk {
    fn name(&self) -> &'static str {
        "af_xdp"
    }

    fn mode(&self) -> &'static str {
        if self.is_zero_copy() {
            "read by the driver without copies"
        } else {
            "copied by the kernel"
        }
    }

    fn set_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), Error> {
        let mut links = LinkWatch::open()?;
        let ifindexes = ifindexes.get(..MAX_OUTPUTS).unwrap_or(ifindexes);
        let known = |ifindex| self.ports.iter().flatten().any(|port| port.is(ifindex));
        let opened: Result<Vec<Port>, Error> = ifindexes
            .iter()
            .filter(|ifindex| **ifindex != 0 && !known(**ifindex))
            .map(|ifindex| Port::open(*ifindex, &mut links))
            .collect();
        let opened = opened?;
        self.long.set_interfaces(ifindexes)?;
        let mut ports: Vec<Port> = self.ports.drain(..).flatten().chain(opened).collect();
        for ifindex in ifindexes {
            let at = ports.iter().position(|port| port.is(*ifindex));
            self.ports.push(at.map(|at| ports.swap_remove(at)));
        }
        ports.iter_mut().for_each(|port| port.settle(DRAIN));
        self.links = Some(links);
        Ok(())
    }

    fn send(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        for (output, (port, report)) in self.ports.iter_mut().zip(reports).enumerate() {
            let Some(port) = port else { continue };
            report.clear();
            let mut call = Call::new(report, self.links.as_mut());
            port.collect();
            for (place, frame) in frames.iter().enumerate() {
                if !frame.goes_to(output) {
                    continue;
                }
                if frame.len() < SHORTEST {
                    port.flush(&mut call);
                    call.report.fail(place, Fate::Malformed);
                } else if port.is_long(frame) {
                    port.flush(&mut call);
                    port.settle(SETTLE);
                    let until = frames.get(..=place).unwrap_or_default();
                    self.long.send_alone(output, until, call.report);
                    if frame.len() <= CHUNK {
                        // Longer than the MTU was: is it still?
                        port.look(&mut call);
                    }
                } else {
                    port.take(place, frame, &mut call);
                }
            }
            port.flush(&mut call);
        }
    }

    fn set_origin(&mut self, origin: Origin) {
        // All others pass neither packet taps nor traffic control.
        self.long.set_origin(origin);
    }

    fn settle_down(&mut self) {
        let ports = self.ports.iter_mut().flatten();
        ports.for_each(|port| port.settle(DRAIN));
        self.long.settle_down();
    }

    fn max_frame(&self) -> usize {
        self.long.max_frame()
    }
}
