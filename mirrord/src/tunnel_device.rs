//! A tunnel device of the kernel's as the target: made for a mirror, and removed with it.
//!
//! The same as `ip link add NAME type ipip remote ... encap gue ...`, and `ip route add COLLECTOR via GATEWAY dev DEVICE`. Behind IPv4 the
//! kernel carries IPv4 packets only. No port is opened: this end only sends.

use crate::error::{Error, errno};
use crate::overlay::{Own, TunnelKey, guard, unguard};
use crate::pins::Folder;
use crate::program::hash;
use crate::target::{Home, Outlet, Target};
use fluxcap_datapath::Remote;
use fluxcap_proto::v1::{self, MirrorOutput, MirrorOverlay};
use fluxcap_socket::{
    HostRoute, Link, LinkKind, LinkWatch, Route, TunnelLink, create_link, delete_link, load_gue,
    set_alias, set_up,
};
use prost::Message;
use std::net::IpAddr;

const UDP: u8 = 17;
/// The UDP port of GUE.
const GUE_PORT: u16 = 6080;

/// The target.
pub(crate) struct TunnelDevice {
    overlay: MirrorOverlay,
    /// None: it is only to be asked whether it can be.
    home: Option<Home>,
    remote: Remote,
    problem: Option<String>,
}

impl TunnelDevice {
    /// The device of a spec that was checked.
    pub(crate) fn new(overlay: &MirrorOverlay, home: Option<Home>) -> TunnelDevice {
        let local: Option<IpAddr> = overlay.local.parse().ok();
        TunnelDevice {
            overlay: overlay.clone(),
            home,
            remote: Remote::new(&overlay.remote, local.map(|local| local.is_ipv6())),
            problem: None,
        }
    }

    fn key(&self, remote: IpAddr) -> TunnelKey {
        TunnelKey::new(UDP, remote, self.port())
    }

    fn port(&self) -> u16 {
        match u16::try_from(self.overlay.port) {
            Ok(0) | Err(_) => GUE_PORT,
            Ok(port) => port,
        }
    }

    /// What the device's description says: whose it is, and of what it was made.
    fn alias(&self, home: &Home, remote: IpAddr) -> Result<String, Error> {
        let made_of = [
            self.overlay.encode_to_vec(),
            remote.to_string().into_bytes(),
        ]
        .concat();
        Ok(format!("{} {:016x}", own(home)?.alias, hash(&made_of)))
    }

    /// The device, made or made anew if need be.
    fn device(&self, home: &Home, links: &mut LinkWatch, remote: IpAddr) -> Result<Link, Error> {
        let name = &self.overlay.tunnel_device;
        let wanted = self.alias(home, remote)?;
        if let Some(link) = links.find(name)? {
            if link.alias == wanted {
                return Ok(link);
            }
            if !is_of(&link, home)? {
                return Err(Error::Unsuitable(format!(
                    "there is an interface {name} already, for something else: give the device another name"
                )));
            }
            delete_link(link.index)?;
        }
        load_gue().map_err(explained)?;
        create_link(name, &LinkKind::Tunnel(self.tunnel(remote))).map_err(explained)?;
        let link = links.find(name)?;
        let link = link.ok_or_else(|| Error::NoInterface(name.clone()))?;
        set_alias(link.index, &wanted)?;
        tracing::info!(
            mirror = home.name,
            interface = name,
            kind = link.kind,
            "made a tunnel device"
        );
        Ok(link)
    }

    fn tunnel(&self, remote: IpAddr) -> TunnelLink {
        let small = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        TunnelLink {
            local: self.overlay.local.parse().ok(),
            remote,
            ttl: match self.overlay.ttl {
                0 => 64,
                ttl => small(ttl),
            },
            tos: small(self.overlay.tos),
            port: self.port(),
            source_port: u16::try_from(self.overlay.source_port).unwrap_or_default(),
        }
    }

    /// The route to the collector that the spec asks for, if it does.
    fn route(&self, links: &mut LinkWatch, remote: IpAddr) -> Result<Option<HostRoute>, Error> {
        let Ok(gateway) = self.overlay.gateway.parse() else {
            return Ok(None);
        };
        let device = &self.overlay.gateway_device;
        let link = links.find(device)?;
        let link = link.ok_or_else(|| Error::NoInterface(device.clone()))?;
        Ok(Some(HostRoute {
            destination: remote,
            gateway,
            ifindex: link.index,
        }))
    }

    /// Has the route to the collector.
    fn lead(&self, links: &mut LinkWatch, remote: IpAddr) -> Result<(), Error> {
        let Some(route) = self.route(links, remote)? else {
            return Ok(());
        };
        let now = Route::lookup(remote, None, None)?;
        if (now.gateway, now.ifindex) == (Some(route.gateway), route.ifindex) {
            return Ok(());
        }
        match route.add() {
            Err(error) if errno(&error) == Some(libc::EEXIST) => Err(Error::Unsuitable(format!(
                "there is another route to {remote} already: ip route show {remote}"
            ))),
            Err(error) if errno(&error) == Some(libc::ENETUNREACH) => {
                Err(Error::Unsuitable(format!(
                    "gateway {} is not at {}",
                    route.gateway, self.overlay.gateway_device
                )))
            }
            done => Ok(done?),
        }
    }

    fn set_up(&mut self, home: &Home, links: &mut LinkWatch) -> Result<Outlet, Error> {
        self.remote.follow(self.problem.is_some());
        let Some(remote) = self.remote.address() else {
            return Err(Error::Unsuitable(self.remote.problem().to_owned()));
        };
        let mut link = self.device(home, links, remote)?;
        if !link.up {
            set_up(link.index)?;
            link.up = true;
        }
        guard(home, self.key(remote))?;
        self.lead(links, remote)?;
        Ok(Outlet {
            ifindex: link.index,
            down: !link.up,
        })
    }

    fn try_remove(&self, home: &Home) -> Result<(), Error> {
        let mut links = LinkWatch::open()?;
        if let Some(link) = links.find(&self.overlay.tunnel_device)?
            && is_of(&link, home)?
        {
            delete_link(link.index)?;
        }
        let Some(remote) = self.remote.address() else {
            return Ok(());
        };
        unguard(home, self.key(remote))?;
        match self.route(&mut links, remote) {
            Ok(Some(route)) => Ok(route.remove()?),
            // With the interface the route is gone.
            Ok(None) | Err(Error::NoInterface(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Target for TunnelDevice {
    fn refresh(&mut self, links: &mut LinkWatch, source: &Link) -> Result<Vec<Outlet>, Error> {
        if !source.ethernet {
            return Err(Error::Unsuitable(format!(
                "frames of {} have no Ethernet header",
                source.name
            )));
        }
        let Some(home) = self.home.clone() else {
            load_gue().map_err(explained)?;
            return Ok(vec![Outlet::default()]);
        };
        let done = self.set_up(&home, links);
        self.problem = done.as_ref().err().map(Error::to_string);
        // Without a device the programs stay where they are, and count.
        Ok(vec![done.unwrap_or_default()])
    }

    fn outputs(&self) -> Vec<MirrorOutput> {
        let state = match self.problem {
            None => v1::State::Running,
            Some(_) => v1::State::Waiting,
        };
        vec![MirrorOutput {
            name: self.overlay.tunnel_device.clone(),
            state: state.into(),
            reason: self.problem.clone().unwrap_or_default(),
            ..MirrorOutput::default()
        }]
    }

    fn remove(&mut self) {
        if let Some(home) = &self.home
            && let Err(error) = self.try_remove(home)
        {
            tracing::error!(mirror = home.name, %error, "cannot remove everything of a tunnel device");
        }
    }
}

fn own(home: &Home) -> Result<Own, Error> {
    Own::new(&Folder::open(&home.bpffs)?, &home.name)
}

/// Whether an interface was made for this mirror.
fn is_of(link: &Link, home: &Home) -> Result<bool, Error> {
    let own = own(home)?;
    let is_tunnel = ["ipip", "ip6tnl"].contains(&link.kind.as_str());
    // One word more, the number of what it was made of.
    let is_ours = |alias: &str| {
        let rest = link.alias.strip_prefix(alias);
        rest.is_some_and(|rest| rest.starts_with(' ') && rest.matches(' ').count() == 1)
    };
    Ok(is_tunnel && (is_ours(&own.alias) || is_ours(&own.former)))
}

/// Says what a kernel lacks that has no such tunnels.
fn explained(error: fluxcap_socket::Error) -> Error {
    match errno(&error) {
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL) => Error::Unsuitable(
            "this kernel has no IP tunnels in GUE (CONFIG_NET_FOU_IP_TUNNELS, CONFIG_NET_IPIP): leave the tunnel device out, copies are encapsulated without one"
                .to_owned(),
        ),
        _ => error.into(),
    }
}
