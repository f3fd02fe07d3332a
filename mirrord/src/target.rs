//! Where the copies of a mirror go.

use std::path::PathBuf;

use fluxcap_datapath::Device;
use fluxcap_proto::v1::{self, MirrorOutput, MirrorSpec};
use fluxcap_socket::{Link, LinkWatch};

use crate::error::Error;
use crate::overlay::Relay;
use crate::tunnel_device::TunnelDevice;

/// Most devices of a mirror; `MAX_DEVICES` of `bpf/mirror.h`.
pub(crate) const MAX_DEVICES: usize = 16;

/// An interface for the programs to clone to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outlet {
    /// Its index; 0 when there is none.
    pub(crate) ifindex: u32,
    /// Copies are not even made.
    pub(crate) down: bool,
}

/// A kind of target. The thread of the mirror asks it again and again.
pub(crate) trait Target {
    /// Interfaces to clone to, in the order of the outputs, as they are now; none for mirrors into rings. Called several times a second, and
    /// when an interface has changed. `source` is the interface that is mirrored.
    ///
    /// # Errors
    /// The mirror cannot begin, and waits.
    fn refresh(&mut self, links: &mut LinkWatch, source: &Link) -> Result<Vec<Outlet>, Error>;

    /// The only outlet is an interface with a relay program, which counts what it cannot send.
    fn relayed(&self) -> bool {
        false
    }

    /// What somebody should know of it that is no reason to wait.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is shown, without counters.
    fn outputs(&self) -> Vec<MirrorOutput>;

    /// Removes what it has made, for good: the mirror ends.
    fn remove(&mut self) {}
}

/// Where a mirror keeps what outlives this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    /// Folder of all mirrors, in a bpffs.
    pub(crate) bpffs: PathBuf,
    /// Name of the mirror.
    pub(crate) name: String,
    /// Whether anything outlives the process.
    pub(crate) persistent: bool,
}

/// The target that a spec asks for. Without a home it makes nothing.
pub(crate) fn target(spec: &MirrorSpec, home: Option<Home>) -> Box<dyn Target> {
    if let Some(overlay) = spec
        .overlay
        .as_ref()
        .filter(|o| !o.tunnel_device.is_empty())
    {
        return Box::new(TunnelDevice::new(overlay, home));
    }
    if let Some(relay) = Relay::new(spec, home) {
        return Box::new(relay);
    }
    if spec.devices.is_empty() {
        return Box::new(Ring);
    }
    Box::new(Devices::new(spec))
}

/// Whether both specs have the same target.
pub(crate) fn same_target(a: &MirrorSpec, b: &MirrorSpec) -> bool {
    let key = |spec: &MirrorSpec| {
        let MirrorSpec {
            ring,
            devices,
            overlay,
            snaplen,
            ephemeral,
            fuse,
            attach,
            mark,
            ..
        } = spec.clone();
        (
            ring, devices, overlay, snaplen, ephemeral, fuse, attach, mark,
        )
    };
    key(a) == key(b)
}

/// Whether a tunnel device is left behind, or left for: nothing of the old target serves the new one, which would not know of it.
pub(crate) fn other_device(old: &MirrorSpec, new: &MirrorSpec) -> bool {
    let has_device = |spec: &MirrorSpec| {
        let overlay = spec.overlay.as_ref();
        overlay.is_some_and(|overlay| !overlay.tunnel_device.is_empty())
    };
    (has_device(old) || has_device(new)) && old.overlay != new.overlay
}

/// The buffer to user space; the thread of the mirror does the rest.
struct Ring;

impl Target for Ring {
    fn refresh(&mut self, _links: &mut LinkWatch, _source: &Link) -> Result<Vec<Outlet>, Error> {
        Ok(Vec::new())
    }

    fn outputs(&self) -> Vec<MirrorOutput> {
        Vec::new()
    }
}

/// Interfaces of this host.
pub(crate) struct Devices {
    names: Vec<String>,
    devices: Vec<Device>,
    states: Vec<(v1::State, String)>,
}

impl Devices {
    pub(crate) fn new(spec: &MirrorSpec) -> Devices {
        Devices {
            names: spec.devices.iter().map(|d| d.name.clone()).collect(),
            devices: vec![Device::default(); spec.devices.len()],
            states: Vec::new(),
        }
    }
}

impl Target for Devices {
    fn refresh(&mut self, links: &mut LinkWatch, source: &Link) -> Result<Vec<Outlet>, Error> {
        let mut outlets = Vec::with_capacity(self.names.len());
        self.states.clear();
        for (name, device) in self.names.iter().zip(&mut self.devices) {
            let found = device.look(name, links)?;
            let (outlet, state) = judge(name, found.as_ref(), source)?;
            outlets.push(outlet);
            self.states.push(state);
        }
        Ok(outlets)
    }

    fn outputs(&self) -> Vec<MirrorOutput> {
        let states = self.states.iter();
        (self.names.iter().zip(states))
            .map(|(name, (state, reason))| MirrorOutput {
                name: name.clone(),
                state: (*state).into(),
                reason: reason.clone(),
                ..MirrorOutput::default()
            })
            .collect()
    }
}

/// What may be sent to an interface, and how it is. What is only missing may come.
fn judge(
    name: &str,
    found: Option<&Link>,
    source: &Link,
) -> Result<(Outlet, (v1::State, String)), Error> {
    let waiting = |reason: String| (v1::State::Waiting, reason);
    let Some(link) = found else {
        let reason = waiting(format!("interface {name} does not exist"));
        return Ok((Outlet::default(), reason));
    };
    if link.index == source.index {
        return Err(Error::Unsuitable(format!(
            "{name} is the interface that is mirrored: copies would be mirrored again"
        )));
    }
    if link.ethernet != source.ethernet {
        return Err(Error::Unsuitable(format!(
            "{} and {name} differ in their headers: one has Ethernet's and the other has none",
            source.name
        )));
    }
    let outlet = Outlet {
        ifindex: link.index,
        down: !link.up,
    };
    let state = match (link.up, link.carrier) {
        (false, _) => waiting(format!("{name} is down: ip link set {name} up")),
        (true, false) => waiting(format!("{name} has no carrier")),
        (true, true) => (v1::State::Running, String::new()),
    };
    Ok((outlet, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            up: true,
            carrier: true,
            ethernet: true,
            ..Link::default()
        }
    }

    #[test]
    fn the_source_itself_is_no_target_whatever_it_is_called() {
        let source = link(1);
        assert!(judge("another-name", Some(&link(1)), &source).is_err());
        let (outlet, (state, _)) = judge("eth2", Some(&link(2)), &source).expect("another one");
        assert_eq!((outlet.ifindex, outlet.down), (2, false));
        assert_eq!(state, v1::State::Running);
    }

    #[test]
    fn what_is_missing_or_down_may_come() {
        let source = link(1);
        let (outlet, (_, reason)) = judge("eth2", None, &source).expect("it may come");
        assert_eq!(outlet.ifindex, 0);
        assert!(reason.contains("does not exist"));
        let down = Link {
            up: false,
            ..link(2)
        };
        let (outlet, (_, reason)) = judge("eth2", Some(&down), &source).expect("it may come up");
        assert!(outlet.down && reason.contains("ip link set eth2 up"));
    }

    #[test]
    fn a_tunnel_device_goes_when_anything_about_it_changes() {
        let spec = |remote: &str, tunnel_device: &str| MirrorSpec {
            overlay: Some(v1::MirrorOverlay {
                remote: remote.to_owned(),
                tunnel_device: tunnel_device.to_owned(),
                ..Default::default()
            }),
            ..MirrorSpec::default()
        };
        let device = spec("192.0.2.9", "gue1");
        assert!(other_device(&device, &spec("192.0.2.9", "gue2")));
        assert!(other_device(&device, &spec("192.0.2.8", "gue1")));
        assert!(other_device(&device, &spec("192.0.2.9", "")));
        assert!(other_device(&spec("192.0.2.9", ""), &device));
        let cut = MirrorSpec {
            snaplen: 96,
            ..device.clone()
        };
        assert!(!other_device(&device, &cut));
        assert!(!other_device(
            &spec("192.0.2.9", ""),
            &spec("192.0.2.8", "")
        ));
    }

    #[test]
    fn interfaces_without_ethernet_headers_are_no_targets_of_others() {
        let tun = Link {
            ethernet: false,
            ..link(2)
        };
        assert!(judge("tun0", Some(&tun), &link(1)).is_err());
    }
}
