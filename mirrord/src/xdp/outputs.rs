//! The outputs of an XDP mirror: which of them take frames, and what the programs know of that (`bpf/xdp.bpf.c`).
//!
//! The kernel tells nobody when it hands no copy to an output. So an output that takes none is taken out of the devmap, and the program
//! counts what it would have got. Between the two, and while mirrord does not know yet that an output has changed, copies are counted by
//! nobody but in the sum: [`super::status`] has what is missing there.

use aya::Ebpf;
use aya::maps::{Array, DevMap, MapData};
use aya::programs::Xdp;
use fluxcap_datapath::Device;
use fluxcap_proto::v1::{self, MirrorDevice, MirrorOutput};
use fluxcap_socket::{Link, LinkWatch, XdpFeatures};

use crate::error::Error;
use crate::target::MAX_DEVICES;

/// What a frame may have beyond an MTU: the Ethernet header and a tag (`xdp_ok_fwd_dev` in `include/linux/filter.h`).
const BEYOND_MTU: u32 = 14 + 4;

/// Why an output does not get a frame: numbers of `enum drop` in `bpf/mirror.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
enum Refusal {
    LinkDown = 4,
    #[default]
    NoInterface = 5,
    /// It gets what is short enough.
    Oversize = 12,
    NotTaken = 16,
}

/// Words of `struct limits`: the least of all, one that is unused, and for each output the longest frame, and why it gets no longer one.
const WORDS: usize = 2 + 2 * MAX_DEVICES;
type Limits = [u32; WORDS];

/// What an output is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// 0: it gets nothing.
    ifindex: u32,
    longest: u32,
    refusal: Refusal,
    /// Why it gets nothing, or what else is to be said.
    reason: String,
}

/// The outputs of one generation of programs.
pub(super) struct Outputs {
    names: Vec<String>,
    devices: Vec<Device>,
    places: Vec<Place>,
    ports: DevMap<MapData>,
    limits: Array<MapData, Limits>,
}

impl Outputs {
    /// Takes the maps out of a loaded object. No output gets anything yet.
    pub(super) fn new(devices: &[MirrorDevice], ebpf: &mut Ebpf) -> Result<Outputs, Error> {
        let ports = super::program::take(ebpf, "ports")?;
        let limits = super::program::take(ebpf, "limits")?;
        let failed = |error| Error::kernel("use a map", error);
        Ok(Outputs {
            names: devices.iter().map(|device| device.name.clone()).collect(),
            devices: vec![Device::default(); devices.len()],
            places: vec![Place::default(); devices.len()],
            ports: DevMap::try_from(ports).map_err(failed)?,
            limits: Array::try_from(limits).map_err(failed)?,
        })
    }

    /// Looks at all interfaces and follows what has changed. `ebpf` has the programs of the outputs.
    pub(super) fn refresh(
        &mut self,
        links: &mut LinkWatch,
        input: &Link,
        generic: bool,
        ebpf: &Ebpf,
    ) -> Result<(), Error> {
        let mut places = Vec::with_capacity(self.names.len());
        for (name, device) in self.names.iter().zip(&mut self.devices) {
            let found = device.look(name, links)?;
            let takes = |link: &Link| match generic {
                // Behind the driver frames are sent as everybody's are.
                true => Some(true),
                false => XdpFeatures::of(link.index)
                    .ok()?
                    .map(XdpFeatures::takes_redirected),
            };
            places.push(judge(name, found.as_ref(), input, takes)?);
        }
        if places != self.places {
            self.set(places, ebpf)?;
        }
        Ok(())
    }

    /// Copies that go out between the steps are counted once at most: what is missing shows, what is too much would not.
    fn set(&mut self, places: Vec<Place>, ebpf: &Ebpf) -> Result<(), Error> {
        let failed = |error| Error::kernel("say where copies go", error);
        let changed = |n: usize, new: &Place| self.places[n].ifindex != new.ifindex;
        let changed: Vec<usize> = (0..places.len())
            .filter(|n| changed(*n, &places[*n]))
            .collect();
        for n in &changed {
            self.ports.set(index(*n), 0, None, 0).map_err(failed)?;
        }
        let limits = limits(&places);
        self.limits
            .set(0, limits, 0)
            .map_err(|error| Error::kernel("use a map", error))?;
        for n in changed {
            let ifindex = places[n].ifindex;
            if ifindex == 0 {
                continue;
            }
            let program: &Xdp = super::program::find(ebpf, &program_of(n))?;
            let fd = program
                .fd()
                .map_err(|error| Error::kernel("use a program", error))?;
            if let Err(error) = self.ports.set(index(n), ifindex, Some(fd), 0) {
                // It went away a moment ago, or it is one that cannot have a program.
                self.places.clone_from(&places);
                self.places[n] = Place::default();
                return Err(failed(error));
            }
        }
        self.places = places;
        Ok(())
    }

    /// Indexes of the interfaces in the order of the spec; 0: none.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> {
        self.places.iter().map(|place| place.ifindex)
    }

    /// Outputs that get nothing.
    pub(super) fn idle(&self) -> impl Iterator<Item = &str> {
        let idle = self.places.iter().filter(|place| place.ifindex == 0);
        idle.map(|place| place.reason.as_str())
    }

    /// What is shown, without counters.
    pub(super) fn shown(&self) -> Vec<MirrorOutput> {
        (self.names.iter().zip(&self.places))
            .map(|(name, place)| MirrorOutput {
                name: name.clone(),
                state: match place.ifindex {
                    0 => v1::State::Waiting.into(),
                    _ => v1::State::Running.into(),
                },
                reason: place.reason.clone(),
                ..MirrorOutput::default()
            })
            .collect()
    }
}

/// Name of the program that runs for the copies of an output.
pub(super) fn program_of(n: usize) -> String {
    format!("output{n}")
}

fn index(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn limits(places: &[Place]) -> Limits {
    let mut limits = [0; WORDS];
    limits[0] = places.iter().map(|place| place.longest).min().unwrap_or(0);
    for (words, place) in limits[2..].chunks_exact_mut(2).zip(places) {
        words.copy_from_slice(&[place.longest, place.refusal as u32]);
    }
    limits
}

/// What an output is. `takes` says whether its driver takes redirected frames, when the kernel tells that.
fn judge(
    name: &str,
    found: Option<&Link>,
    input: &Link,
    takes: impl FnOnce(&Link) -> Option<bool>,
) -> Result<Place, Error> {
    let refused = |refusal, reason: String| Place {
        refusal,
        reason,
        ..Place::default()
    };
    let Some(link) = found else {
        let reason = format!("interface {name} does not exist");
        return Ok(refused(Refusal::NoInterface, reason));
    };
    if link.index == input.index {
        return Err(Error::Unsuitable(format!(
            "{name} is the interface that is replicated: it cannot be an output"
        )));
    }
    if !link.ethernet {
        return Err(Error::Unsuitable(format!(
            "frames of {name} have no Ethernet header"
        )));
    }
    if !link.up {
        let reason = format!("{name} is down: ip link set {name} up");
        return Ok(refused(Refusal::LinkDown, reason));
    }
    let takes = takes(link);
    if takes == Some(false) {
        let reason = match link.kind.as_str() {
            "veth" => format!(
                "{name} takes no redirected frames before its other end is prepared; where that is: fluxctl output prepare IFACE"
            ),
            _ => format!("the driver of {name} takes no redirected frames"),
        };
        return Ok(refused(Refusal::NotTaken, reason));
    }
    let reason = match (takes, link.carrier) {
        (_, false) => format!("{name} has no carrier"),
        (None, true) => "this kernel does not tell whether it takes redirected frames".to_owned(),
        (Some(_), true) => String::new(),
    };
    Ok(Place {
        ifindex: link.index,
        longest: link.mtu.saturating_add(BEYOND_MTU),
        refusal: Refusal::Oversize,
        reason,
    })
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
            mtu: 1500,
            ..Link::default()
        }
    }

    fn place(link: Option<&Link>, takes: Option<bool>) -> Place {
        judge("eth2", link, &self::link(1), |_| takes).expect("it may be an output")
    }

    #[test]
    fn only_what_takes_frames_gets_any() {
        let good = place(Some(&link(2)), Some(true));
        assert_eq!((good.ifindex, good.longest, &*good.reason), (2, 1518, ""));
        let veth = Link {
            kind: "veth".to_owned(),
            ..link(2)
        };
        let deaf = place(Some(&veth), Some(false));
        assert_eq!((deaf.ifindex, deaf.refusal), (0, Refusal::NotTaken));
        assert!(deaf.reason.contains("output prepare"), "{}", deaf.reason);
        let down = Link {
            up: false,
            ..link(2)
        };
        assert_eq!(place(Some(&down), Some(true)).refusal, Refusal::LinkDown);
        assert_eq!(place(None, None).refusal, Refusal::NoInterface);
        assert_eq!(place(Some(&link(2)), None).ifindex, 2);
    }

    #[test]
    fn neither_the_input_itself_nor_an_interface_without_headers_is_an_output() {
        assert!(judge("tap", Some(&link(1)), &link(1), |_| Some(true)).is_err());
        let tun = Link {
            ethernet: false,
            ..link(2)
        };
        assert!(judge("tun0", Some(&tun), &link(1), |_| Some(true)).is_err());
    }

    #[test]
    fn a_frame_that_fits_all_outputs_is_looked_at_once() {
        let places = [place(Some(&link(2)), Some(true)), place(None, None)];
        assert_eq!(limits(&places[..1])[0], 1518);
        assert_eq!(limits(&places)[..6], [0, 0, 1518, 12, 0, 5]);
    }
}
