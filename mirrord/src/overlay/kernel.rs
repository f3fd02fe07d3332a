//! What a relay has in the kernel: an interface of its own to be cloned to, and the program at its egress.
//!
//! The interface stays down: programs at its egress see what is sent to it nevertheless (`sch_handle_egress` in `net/core/dev.c` runs before
//! anything asks), and without the program everything sent to it is dropped.

use super::cutter::{self, Cutter};
use super::program::{Orders, RelayMaps, RelayProgram, Task, fingerprints};
use crate::counters;
use crate::error::{Error, errno};
use crate::pins::Folder;
use crate::program::hash;
use crate::target::Home;
use aya::maps::{Array, HashMap, Map, MapData};
use fluxcap_proto::v1::Attach;
use fluxcap_socket::{
    BpfLink, Link, LinkHook, LinkKind, LinkOrder, LinkWatch, TcFilter, TcHook, TrafficControl,
    create_link, delete_link, set_alias,
};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

/// What every name of ours begins with.
const PREFIX: &str = "fxm";
/// What every description of ours begins with.
const ALIAS: &str = "fluxcap mirror ";
/// Pin of the program's link.
const LINK: &str = "relay";
/// Bytes of `struct tunnel` in `bpf/mirror.h`.
const TUNNEL_BYTES: usize = 24;
/// Priority and handle of the program as a filter, where it is one: nobody else has a reason to be at this interface.
const PRIORITY: u16 = 1;
const HANDLE: u32 = 1;

/// An own tunnel, as the programs of all mirrors know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TunnelKey([u8; TUNNEL_BYTES]);

impl TunnelKey {
    /// Packets of this IP protocol to that address, and of UDP to this port.
    pub(crate) fn new(protocol: u8, destination: IpAddr, port: u16) -> TunnelKey {
        let mut bytes = [0; TUNNEL_BYTES];
        bytes[1] = protocol;
        bytes[2..4].copy_from_slice(&port.to_ne_bytes());
        match destination {
            IpAddr::V4(v4) => {
                bytes[0] = 4;
                bytes[8..12].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes[0] = 6;
                bytes[8..].copy_from_slice(&v6.octets());
            }
        }
        TunnelKey(bytes)
    }
}

/// What is noted in the kernel about a relay, for the next life of mirrord.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Note {
    /// Of the program and what it was told, and of its task.
    fingerprints: [u64; 2],
    /// Identifiers of the maps that it counts in.
    counters: [u64; 2],
    tunnel: Option<[u8; TUNNEL_BYTES]>,
}

impl Note {
    fn read(folder: &Folder) -> Result<Note, Error> {
        if !folder.has("relay_meta") {
            return Ok(Note::default());
        }
        let map: Array<MapData, [u64; 16]> = counters::array(folder, "relay_meta")?;
        let words = map.get(&0, 0).map_err(unusable)?;
        let mut tunnel = [0; TUNNEL_BYTES];
        for (bytes, word) in tunnel.chunks_exact_mut(8).zip(&words[4..]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Note {
            fingerprints: [words[0], words[1]],
            counters: [words[2], words[3]],
            tunnel: Some(tunnel).filter(|tunnel| tunnel[0] != 0),
        })
    }

    fn write(&self, folder: &Folder) -> Result<(), Error> {
        let mut words = [0; 16];
        words[..2].copy_from_slice(&self.fingerprints);
        words[2..4].copy_from_slice(&self.counters);
        let tunnel = self.tunnel.unwrap_or_default();
        for (word, bytes) in words[4..].iter_mut().zip(tunnel.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let mut map: Array<MapData, [u64; 16]> = counters::array(folder, "relay_meta")?;
        map.set(0, words, 0).map_err(unusable)
    }
}

/// What a relay has in the kernel.
pub(super) struct Kernel {
    folder: Folder,
    /// The interface to clone to.
    pub(super) ifindex: u32,
    /// The link of TCX; none where it is a filter.
    link: Option<BpfLink>,
    pub(super) maps: RelayMaps,
    /// Or why there is none.
    cutter: Result<Cutter, String>,
    tunnels: HashMap<MapData, [u8; TUNNEL_BYTES], u8>,
    note: Note,
}

impl Kernel {
    /// Makes what is not there, and takes over what is.
    pub(super) fn install(
        home: &Home,
        links: &mut LinkWatch,
        orders: Orders,
        attach: Attach,
    ) -> Result<Kernel, Error> {
        let root = Folder::open(&home.bpffs)?;
        let folder = root.of_mirror(&home.name)?;
        let own = Own::new(&root, &home.name)?;
        own.remove_former(links, &folder)?;
        let mut ifindex = helper(links, &own)?;
        let note = Note::read(&folder)?;
        let wanted = fingerprints(orders);
        let mut link = adopt(&folder, ifindex)?;
        let linked = links_at(ifindex)?;
        if link.is_none() && linked.is_some_and(|links| links > 0) {
            // Its name is not found; with the interface it goes.
            delete_link(ifindex)?;
            ifindex = helper(links, &own)?;
        }
        let as_filter = match attach {
            Attach::Tcx => false,
            Attach::Clsact => true,
            Attach::Unspecified => linked.is_none(),
        };
        let attached = match as_filter {
            false => link.is_some(),
            true => link.is_none() && has_filter(ifindex)?,
        };
        let same = note.fingerprints == wanted && note.counters == counters_in_use(&folder);
        let cuts = matches!(orders.task, Task::Encapsulate(_));
        let mut cutter = match cuts && same && attached {
            true => Cutter::adopt(&folder, links, &own.helper, as_filter)?.ok_or_else(String::new),
            false => Err(String::new()),
        };
        if cuts && cutter.is_err() || !same || !attached || !root.has("tunnels") {
            // A program that does something else meets none of the old settings.
            if note.fingerprints[1] != wanted[1]
                && let Ok(mut maps) = RelayMaps::open(&folder)
            {
                maps.set_way(&Default::default())?;
            }
            let mut relay = RelayProgram::load(orders, Some((&root, &folder)))?;
            link = attach_to(&folder, &mut relay, as_filter, ifindex, link)?;
            if cuts {
                let (names, kept) = ((&*own.helper, &*own.alias), home.persistent);
                cutter = Cutter::make(&folder, links, names, &mut relay, as_filter, kept)
                    .map_err(|error| error.to_string());
            }
        }
        if let Err(problem) = &cutter
            && cuts
        {
            tracing::warn!(
                mirror = home.name,
                problem,
                "packets in tunnels that the kernel has joined (GSO) cannot be encapsulated"
            );
        }
        if let Some(link) = &link {
            hold(&folder, LINK, link, home.persistent)?;
        }
        let kernel = Kernel {
            maps: RelayMaps::open(&folder)?,
            tunnels: tunnels(&root)?,
            note: Note {
                fingerprints: wanted,
                counters: counters_in_use(&folder),
                ..note
            },
            folder,
            ifindex,
            link,
            cutter,
        };
        kernel.note.write(&kernel.folder)?;
        Ok(kernel)
    }

    /// Whether everything is still there and right.
    pub(super) fn lives(&self, links: &mut LinkWatch) -> Result<bool, Error> {
        // The mirror begins to count anew when its maps or its targets have changed.
        let counts = self.note.counters == counters_in_use(&self.folder);
        if !counts || links.find_index(self.ifindex)?.is_none() {
            return Ok(false);
        }
        if let Ok(cutter) = &self.cutter
            && !cutter.lives(links)?
        {
            return Ok(false);
        }
        match &self.link {
            Some(link) => Ok(link.info()?.ifindex == self.ifindex),
            None => has_filter(self.ifindex),
        }
    }

    /// The interface that cuts giants; 0 when there is none.
    pub(super) fn cutter(&self) -> u32 {
        self.cutter.as_ref().map_or(0, |cutter| cutter.entrance)
    }

    /// What somebody should know who mirrors by this relay.
    pub(super) fn remark(&self) -> Option<String> {
        let problem = self.cutter.as_ref().err().filter(|it| !it.is_empty())?;
        Some(format!(
            "packets that are in a tunnel of this host already, and that the kernel has joined (GSO), are dropped as not_segmented: {problem}"
        ))
    }

    /// Tells all mirrors of the own tunnel. Cheap when they know it already.
    pub(super) fn guard(&mut self, key: TunnelKey) -> Result<(), Error> {
        if self.note.tunnel != Some(key.0) {
            if let Some(old) = self.note.tunnel.replace(key.0) {
                let _ = self.tunnels.remove(&old);
            }
            self.note.write(&self.folder)?;
        }
        // Another mirror with the same collector takes it away when it ends.
        if self.tunnels.get(&key.0, 0).is_err() {
            self.tunnels.insert(key.0, 1, 0).map_err(unusable)?;
        }
        Ok(())
    }
}

/// Removes what the relay of a mirror has in the kernel, if it has one, but for its pins.
pub(crate) fn remove(home: &Home) -> Result<(), Error> {
    let mut links = LinkWatch::open()?;
    let root = Folder::open(&home.bpffs)?;
    let folder = root.of_mirror(&home.name)?;
    let own = Own::new(&root, &home.name)?;
    own.remove_former(&mut links, &folder)?;
    if let Some(link) = links.find(&own.helper)?
        && is_helper(&link)
        && link.alias == own.alias
    {
        cutter::remove(&mut links, &own.helper, &own.alias)?;
        delete_link(link.index)?;
    }
    if let Some(key) = Note::read(&folder)?.tunnel
        && root.has("tunnels")
    {
        let _ = tunnels(&root)?.remove(&key);
    }
    folder.remove(LINK)
}

/// Removes the interfaces of mirrors that are not known (any more): those to clone to, and tunnel devices. Ours is what has kind, name and
/// description as this mirrord makes them, with the number of its own folder in a bpffs; a description alone anybody may write.
pub(crate) fn sweep(bpffs: &Path, known: impl Fn(&str) -> bool) -> Result<(), Error> {
    let root = Folder::open(bpffs)?;
    let mut links = LinkWatch::open()?;
    for link in links.links()? {
        let Some(mirror) = mirror_of(&link) else {
            continue;
        };
        let own = Own::new(&root, mirror)?;
        let is_ours = match link.kind.as_str() {
            "ipip" | "ip6tnl" => link
                .alias
                .strip_prefix(&own.alias)
                .is_some_and(|rest| rest.starts_with(' ')),
            _ => is_helper(&link) && link.alias == own.alias && link.name.starts_with(&own.helper),
        };
        if is_ours && !known(mirror) {
            tracing::info!(
                interface = link.name,
                mirror,
                "removing what a mirror has left"
            );
            match delete_link(link.index) {
                // Half of a pair, and gone with the other half.
                Err(fluxcap_socket::Error::NoInterface { .. }) => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// The mirror that the description of an interface names.
fn mirror_of(link: &Link) -> Option<&str> {
    link.alias.strip_prefix(ALIAS)?.split(' ').next()
}

fn is_helper(link: &Link) -> bool {
    ["dummy", "ifb", "veth"].contains(&link.kind.as_str())
}

/// Tells all mirrors of an own tunnel, when they have loaded their programs.
pub(crate) fn guard(home: &Home, key: TunnelKey) -> Result<(), Error> {
    let root = Folder::open(&home.bpffs)?;
    if root.has("tunnels") {
        tunnels(&root)?.insert(key.0, 1, 0).map_err(unusable)?;
    }
    Ok(())
}

/// The opposite.
pub(crate) fn unguard(home: &Home, key: TunnelKey) -> Result<(), Error> {
    let root = Folder::open(&home.bpffs)?;
    if root.has("tunnels") {
        let _ = tunnels(&root)?.remove(&key.0);
    }
    Ok(())
}

/// What the interfaces of a mirror are called, and what their descriptions say: another mirrord in this namespace, with another folder, may
/// have a mirror of the same name.
pub(crate) struct Own {
    mirror: String,
    helper: String,
    /// More may follow behind a space.
    pub(crate) alias: String,
    /// What it was before it told instances apart.
    pub(crate) former: String,
}

impl Own {
    pub(crate) fn new(root: &Folder, mirror: &str) -> Result<Own, Error> {
        let instance = root.instance()?;
        Ok(Own {
            mirror: mirror.to_owned(),
            helper: helper_name(&format!("{mirror} {instance:016x}")),
            alias: format!("{ALIAS}{mirror} {instance:016x}"),
            former: format!("{ALIAS}{mirror}"),
        })
    }

    /// Removes the interface of a version that did not tell instances apart: that to which the link is attached that is pinned.
    fn remove_former(&self, links: &mut LinkWatch, folder: &Folder) -> Result<(), Error> {
        if let Some(link) = links.find(&helper_name(&self.mirror))?
            && is_helper(&link)
            && link.alias == self.former
            && adopt(folder, link.index)?.is_some()
        {
            delete_link(link.index)?;
        }
        Ok(())
    }
}

fn helper_name(seed: &str) -> String {
    format!("{PREFIX}{:08x}", hash(seed.as_bytes()) & 0xffff_ffff)
}

/// Gives a link its name, if it is to outlive the process.
pub(super) fn hold(folder: &Folder, pin: &str, link: &BpfLink, kept: bool) -> Result<(), Error> {
    if kept && !folder.has(pin) {
        link.pin(&folder.path(pin))?;
    }
    Ok(())
}

/// Finds or makes the interface to clone to: of the first kind that this kernel has.
fn helper(links: &mut LinkWatch, own: &Own) -> Result<u32, Error> {
    let (name, alias) = (&own.helper, &own.alias);
    if let Some(link) = links.find(name)? {
        if is_helper(&link) && link.alias == *alias {
            return Ok(link.index);
        }
        if !is_helper(&link) || !link.alias.is_empty() {
            return Err(Error::Unsuitable(format!(
                "there is an interface {name} already, for something else: ip link delete {name}"
            )));
        }
        // One that was just made when its maker ended.
        set_alias(link.index, alias)?;
        return Ok(link.index);
    }
    let peer = format!("{name}p");
    let kinds = [LinkKind::Dummy, LinkKind::Ifb, LinkKind::Veth(peer)];
    let mut problem = None;
    for kind in kinds {
        match create_link(name, &kind) {
            Ok(()) => {
                problem = None;
                break;
            }
            Err(error) if errno(&error) == Some(libc::EOPNOTSUPP) => problem = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(error) = problem {
        return Err(error.into());
    }
    let link = links.find(name)?;
    let link = link.ok_or_else(|| Error::NoInterface(name.clone()))?;
    set_alias(link.index, alias)?;
    tracing::info!(
        mirror = own.mirror,
        interface = name,
        kind = link.kind,
        "made an interface to clone to"
    );
    Ok(link.index)
}

/// The link that an earlier life has pinned, if it is at this interface.
fn adopt(folder: &Folder, ifindex: u32) -> Result<Option<BpfLink>, Error> {
    if !folder.has(LINK) {
        return Ok(None);
    }
    let link = BpfLink::open(&folder.path(LINK))?;
    if link.info()?.ifindex == ifindex {
        return Ok(Some(link));
    }
    folder.remove(LINK)?;
    Ok(None)
}

/// How many programs are attached to the interface by links; `None` by a kernel without TCX.
fn links_at(ifindex: u32) -> Result<Option<usize>, Error> {
    match BpfLink::attached(ifindex, LinkHook::TcxEgress) {
        Err(error) if errno(&error) == Some(libc::EINVAL) => Ok(None),
        done => Ok(Some(done?.len())),
    }
}

/// Attaches a program, in place of what is there. None: as a filter.
fn attach_to(
    folder: &Folder,
    relay: &mut RelayProgram,
    as_filter: bool,
    ifindex: u32,
    link: Option<BpfLink>,
) -> Result<Option<BpfLink>, Error> {
    let program = relay.program()?;
    let fd = program
        .fd()
        .map_err(|error| Error::kernel("use the relay program", error))?;
    if as_filter {
        let mut tc = TrafficControl::open()?;
        tc.add_clsact(ifindex)?;
        tc.set_filter(ifindex, TcHook::Egress, &filter(), fd.as_fd())?;
        // The link decides until it is gone, and then the filter does.
        if let Some(link) = link {
            link.detach()?;
            folder.remove(LINK)?;
        }
        return Ok(None);
    }
    let link = match link {
        Some(link) => link.replace(fd.as_fd()).map(|()| link),
        None => BpfLink::attach(fd.as_fd(), ifindex, LinkHook::TcxEgress, LinkOrder::Last),
    }?;
    // With the qdisc goes a filter, which gets nothing any more.
    TrafficControl::open()?.remove_clsact(ifindex)?;
    Ok(Some(link))
}

fn filter() -> TcFilter {
    TcFilter {
        priority: PRIORITY,
        handle: HANDLE,
        kind: "bpf".to_owned(),
        name: "fluxcap relay".to_owned(),
        program_id: 0,
    }
}

fn has_filter(ifindex: u32) -> Result<bool, Error> {
    let ours = filter();
    let filters = TrafficControl::open()?.filters(ifindex, TcHook::Egress)?;
    Ok(filters.iter().any(|filter| filter.name == ours.name))
}

/// Identifiers of the mirror's maps that a relay counts in; 0 for one that is not there.
fn counters_in_use(folder: &Folder) -> [u64; 2] {
    ["counters", "output_frames"].map(|name| {
        let info = MapData::from_pin(folder.path(name)).and_then(|map| map.info());
        info.map_or(0, |info| u64::from(info.id()))
    })
}

fn tunnels(root: &Folder) -> Result<HashMap<MapData, [u8; TUNNEL_BYTES], u8>, Error> {
    let data = MapData::from_pin(root.path("tunnels")).map_err(unusable)?;
    Map::HashMap(data).try_into().map_err(unusable)
}

fn unusable(error: aya::maps::MapError) -> Error {
    Error::kernel("use a map of a relay", error)
}
