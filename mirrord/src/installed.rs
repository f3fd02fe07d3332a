//! What a mirror has in the kernel: maps, a generation of programs, and the places where these are attached.
//!
//! Whatever is there is taken over by the next life of mirrord, when it is what the spec asks for; else it is replaced in place. At every
//! moment there is at most one program of a mirror for each way of an interface: a link that has no name yet ends with the process
//! that made it, a link with a name and a filter are found by that.

mod unseen;

use std::time::Instant;

use aya::maps::{Array, MapData};
use fluxcap_proto::v1::{self, Direction, MirrorAttachment, MirrorSpec};
use fluxcap_ring::RingDir;
use fluxcap_socket::{Link, LinkWatch, TrafficControl};
use prost::Message;

use crate::attach::{Attachment, Site};
use crate::counters::{self, Books};
use crate::error::Error;
use crate::job::MirrorJob;
use crate::known::KnownLinks;
use crate::loops;
use crate::pins::Folder;
use crate::program::{self, Generation, OWN, Places, Plan, Way, hash, own_pin};
use crate::sight::Sight;
use crate::target::Outlet;

/// Version of the maps' layouts: maps of another one are not taken over.
pub(crate) const LAYOUT: u64 = 2;

/// What is noted in the kernel about the programs that are attached; `struct notes meta` of `bpf/mirror.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) layout: u64,
    /// Fingerprints: of spec and programs together, and of parts of the spec.
    whole: u64,
    place: u64,
    pub(crate) rules: u64,
    pub(crate) devices: u64,
    pub(crate) buffer: u64,
    ifindex: u64,
    /// Number of the maps of the generation.
    slot: u64,
    /// The interface has its clsact qdisc from us.
    clsact: u64,
    /// Number of the state directory of the mirrord that has this mirror; 0: nobody said.
    pub(crate) owner: u64,
}

impl Meta {
    /// What a generation for this spec at this interface is noted as.
    pub(crate) fn new(spec: &MirrorSpec, link: &Link, owner: u64, origin: u32) -> Meta {
        let of_kernel = MirrorSpec {
            scheduling: None,
            lifetime_ms: 0,
            ..spec.clone()
        };
        let parts = |part: MirrorSpec| hash(&part.encode_to_vec());
        Meta {
            layout: LAYOUT,
            whole: parts(of_kernel) ^ program::object_hash() ^ hash(&origin.to_ne_bytes()),
            place: parts(MirrorSpec {
                attach: spec.attach,
                order: spec.order.clone(),
                ..MirrorSpec::default()
            }),
            rules: parts(MirrorSpec {
                rules: spec.rules.clone(),
                ..MirrorSpec::default()
            }),
            devices: parts(MirrorSpec {
                devices: spec.devices.clone(),
                overlay: spec.overlay.clone(),
                ..MirrorSpec::default()
            }),
            buffer: u64::from(program::buffer_bytes(spec)),
            ifindex: u64::from(link.index),
            owner,
            ..Meta::default()
        }
    }

    /// Whether the same programs serve.
    fn serves(&self, wanted: &Meta) -> bool {
        let key = |meta: &Meta| (meta.layout, meta.whole, meta.ifindex);
        key(self) == key(wanted)
    }

    /// What is noted; nothing when there is no note.
    pub(crate) fn read(folder: &Folder) -> Result<Meta, Error> {
        if !folder.has("meta") {
            return Ok(Meta::default());
        }
        let map: Array<MapData, [u64; 16]> = counters::array(folder, "meta")?;
        let words = map
            .get(&0, 0)
            .map_err(|error| Error::kernel("read a map of the mirror", error))?;
        let [
            layout,
            whole,
            place,
            rules,
            devices,
            buffer,
            ifindex,
            slot,
            clsact,
            owner,
            ..,
        ] = words;
        Ok(Meta {
            layout,
            whole,
            place,
            rules,
            devices,
            buffer,
            ifindex,
            slot,
            clsact,
            owner,
        })
    }

    /// Notes it.
    pub(crate) fn write(&self, folder: &Folder) -> Result<(), Error> {
        let mut words = [0; 16];
        words[..10].copy_from_slice(&[
            self.layout,
            self.whole,
            self.place,
            self.rules,
            self.devices,
            self.buffer,
            self.ifindex,
            self.slot,
            self.clsact,
            self.owner,
        ]);
        let mut map: Array<MapData, [u64; 16]> = counters::array(folder, "meta")?;
        map.set(0, words, 0)
            .map_err(|error| Error::kernel("write a map of the mirror", error))
    }

    fn slot(&self) -> u8 {
        u8::from(self.slot != 0)
    }
}

/// The mark of frames that must not come into the ring of a mirror, because they are from there; 0: all may.
pub(crate) fn origin(rings: &RingDir, spec: &MirrorSpec) -> u32 {
    loops::guard(rings, "", spec).map_or(0, |guard| guard.origin().mark())
}

/// How often a program was attached again, and how long there was none.
#[derive(Debug, Default)]
struct History {
    reattached: u64,
    gap_ms: u64,
    /// It was attached once, and is not since then.
    missing: Option<Instant>,
}

/// What a mirror has in the kernel.
#[derive(Debug)]
pub(crate) struct Installed {
    name: String,
    root: Folder,
    folder: Folder,
    known: KnownLinks,
    rings: RingDir,
    tc: TrafficControl,
    persistent: bool,
    /// Of this mirrord, see [`Meta::owner`].
    owner: u64,
    meta: Meta,
    /// What this life has loaded; none while what an earlier one has left serves.
    generation: Option<Generation>,
    attachments: Vec<Attachment>,
    /// By way.
    history: [History; 2],
    outlets: Vec<Outlet>,
    sight: Sight,
    /// By way: what runs before the program there. Looked at now and then.
    before: [Vec<String>; 2],
    looked_before: Option<Instant>,
}

impl Installed {
    /// Opens what is there of the mirror. A mirror that is not persistent begins with nothing.
    pub(crate) fn open(job: &MirrorJob, name: &str, persistent: bool) -> Result<Installed, Error> {
        let root = Folder::open(&job.bpffs)?;
        let folder = root.of_mirror(name)?;
        let meta = Meta::read(&folder)?;
        let mut installed = Installed {
            name: name.to_owned(),
            root,
            folder,
            known: KnownLinks::new(&job.known, name, &job.bpffs),
            rings: job.rings.clone(),
            tc: TrafficControl::open()?,
            persistent,
            owner: job.owner,
            meta,
            generation: None,
            attachments: Vec::new(),
            history: Default::default(),
            outlets: Vec::new(),
            sight: Sight::default(),
            before: Default::default(),
            looked_before: None,
        };
        if !persistent || meta.layout != LAYOUT {
            installed.wipe()?;
        }
        Ok(installed)
    }

    /// The maps that count. There are none before the first [`Installed::ensure`].
    pub(crate) fn books(&self) -> Result<Books, Error> {
        Books::open(&self.folder)
    }

    /// The folder of the mirror's pins.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Refuses to go on when programs of this mirror are at the interface that cannot be reached: others beside them would make each copy twice.
    pub(crate) fn look_for_hidden(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        if !self.attachments.is_empty() {
            return Ok(());
        }
        let site = self.site(spec, link);
        Way::ALL
            .into_iter()
            .try_for_each(|way| site.look_for_hidden(way))
    }

    /// Has the programs of this spec, and no others, at this interface. Cheap when that is so already.
    pub(crate) fn ensure(
        &mut self,
        spec: &MirrorSpec,
        persistent: bool,
        link: &Link,
        outlets: &[Outlet],
        relayed: bool,
    ) -> Result<Change, Error> {
        let wanted = Meta::new(spec, link, self.owner, origin(&self.rings, spec));
        let ways = ways(spec);
        self.persistent = persistent;
        if !self.meta.serves(&wanted) {
            self.swap(spec, link, wanted, outlets, relayed, &ways)?;
            return Ok(Change::Replaced);
        }
        self.update_outlets(outlets)?;
        self.drop_dead(spec, link)?;
        let mut change = Change::None;
        let missing: Vec<Way> = ways.iter().copied().filter(|w| !self.has(*w)).collect();
        for way in missing {
            change = Change::Attached;
            if self.generation.is_none() {
                if let Some(found) = self.site(spec, link).adopt(way)? {
                    self.attachments.push(found);
                    continue;
                }
                // The programs of an earlier life cannot be attached once more.
                self.swap(spec, link, wanted, outlets, relayed, &ways)?;
                return Ok(Change::Attached);
            }
            self.attach(spec, link, way)?;
        }
        Ok(change)
    }

    /// Another device has the name: the programs at the one before come off.
    pub(crate) fn leave(
        &mut self,
        spec: &MirrorSpec,
        links: &mut LinkWatch,
        now: &Link,
    ) -> Result<(), Error> {
        let before = u32::try_from(self.meta.ifindex).unwrap_or(0);
        if before == 0 || before == now.index {
            return Ok(());
        }
        if let Some(before) = links.find_index(before)? {
            self.detach(spec, &before)?;
            for way in ways(spec) {
                history(&mut self.history, way)
                    .missing
                    .get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    /// The interface is gone, and the programs with it.
    pub(crate) fn interface_gone(&mut self) {
        for attachment in self.attachments.drain(..) {
            history(&mut self.history, attachment.way)
                .missing
                .get_or_insert_with(Instant::now);
            // A link without interface; its name would only be in the way.
            let _ = self.folder.remove(attachment.way.name());
        }
        self.meta.clsact = 0;
    }

    /// Loads another generation and has it take the place of the present one.
    fn swap(
        &mut self,
        spec: &MirrorSpec,
        link: &Link,
        mut wanted: Meta,
        outlets: &[Outlet],
        relayed: bool,
        ways: &[Way],
    ) -> Result<(), Error> {
        let same_interface = self.meta.ifindex == wanted.ifindex;
        wanted.slot = u64::from(self.meta.slot() ^ 1);
        wanted.clsact = if same_interface { self.meta.clsact } else { 0 };
        for (pin, keep) in [
            ("rule_frames", self.meta.rules == wanted.rules),
            ("events", self.meta.buffer == wanted.buffer),
        ] {
            if !keep {
                self.folder.remove(pin)?;
            }
        }
        // A relay counts in this one already: it stays the same map.
        if self.meta.devices != wanted.devices {
            counters::clear_outputs(&self.folder)?;
        }
        let plan = Plan {
            spec,
            ethernet: link.ethernet,
            outlets,
            relayed,
            origin: origin(&self.rings, spec),
            ways,
        };
        let places = Places {
            root: &self.root,
            folder: &self.folder,
            slot: wanted.slot(),
        };
        let generation = Generation::load(plan, Some(places))?;
        // What is attached before everything is noted is found again: the layout is known, and that it is not complete.
        Meta { whole: 0, ..wanted }.write(&self.folder)?;
        let (old_place, old_slot) = (self.meta.place, self.meta.slot());
        self.generation = Some(generation);
        self.meta = Meta { whole: 0, ..wanted };
        self.drop_dead(spec, link)?;
        self.adopt_rest(spec, link)?;
        self.detach_unless(spec, link, |way| {
            ways.contains(&way) && old_place == wanted.place
        })?;
        for way in ways {
            if self.has(*way) {
                self.replace(spec, link, *way)?;
            } else {
                self.attach(spec, link, *way)?;
            }
        }
        wanted.clsact = self.meta.clsact;
        wanted.write(&self.folder)?;
        self.meta = wanted;
        self.outlets = outlets.to_vec();
        if old_slot != wanted.slot() {
            for name in OWN {
                self.folder.remove(&own_pin(name, old_slot))?;
            }
        }
        self.books()?.mend_fuse()
    }

    /// Finds what an earlier life has attached and this one does not know of yet.
    fn adopt_rest(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        for way in Way::ALL {
            if !self.has(way)
                && let Some(found) = self.site(spec, link).adopt(way)?
            {
                self.attachments.push(found);
            }
        }
        Ok(())
    }

    fn attach(&mut self, spec: &MirrorSpec, link: &Link, way: Way) -> Result<(), Error> {
        let Some(generation) = self.generation.take() else {
            return Ok(());
        };
        let attached = self.site(spec, link).attach(&generation, way);
        self.generation = Some(generation);
        let (attachment, added) = attached?;
        if added {
            self.meta.clsact = 1;
            self.meta.write(&self.folder)?;
        }
        tracing::info!(
            mirror = self.name,
            interface = %link.name,
            ifindex = link.index,
            direction = way.name(),
            how = attachment.how(),
            "attached"
        );
        self.attachments.push(attachment);
        let history = history(&mut self.history, way);
        if let Some(since) = history.missing.take() {
            history.reattached += 1;
            history.gap_ms += u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    fn replace(&mut self, spec: &MirrorSpec, link: &Link, way: Way) -> Result<(), Error> {
        let (Some(generation), Some(at)) = (
            self.generation.take(),
            self.attachments.iter().position(|a| a.way == way),
        ) else {
            return Ok(());
        };
        let mut attachment = self.attachments.swap_remove(at);
        let replaced = self.site(spec, link).replace(&mut attachment, &generation);
        self.generation = Some(generation);
        self.attachments.push(attachment);
        replaced
    }

    /// Forgets attachments that somebody else has removed.
    fn drop_dead(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        let mut kept = Vec::new();
        for attachment in std::mem::take(&mut self.attachments) {
            if self.site(spec, link).lives(&attachment)? {
                kept.push(attachment);
                continue;
            }
            tracing::warn!(
                mirror = self.name,
                interface = %link.name,
                direction = attachment.way.name(),
                "somebody has removed the program"
            );
            history(&mut self.history, attachment.way)
                .missing
                .get_or_insert_with(Instant::now);
            if attachment.link_id != 0 {
                self.folder.remove(attachment.way.name())?;
            } else {
                // The qdisc is somebody else's if there is one again.
                self.meta.clsact = 0;
            }
        }
        self.attachments = kept;
        Ok(())
    }

    fn detach_unless(
        &mut self,
        spec: &MirrorSpec,
        link: &Link,
        keep: impl Fn(Way) -> bool,
    ) -> Result<(), Error> {
        for attachment in std::mem::take(&mut self.attachments) {
            if keep(attachment.way) {
                self.attachments.push(attachment);
            } else {
                self.site(spec, link).detach(&attachment)?;
            }
        }
        Ok(())
    }

    fn update_outlets(&mut self, outlets: &[Outlet]) -> Result<(), Error> {
        if self.outlets != outlets {
            program::set_outlets(&self.folder, self.meta.slot(), outlets)?;
            self.outlets = outlets.to_vec();
        }
        Ok(())
    }

    /// Takes the programs off the interface; the counters stay.
    pub(crate) fn detach(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        self.adopt_rest(spec, link)?;
        self.detach_unless(spec, link, |_| false)?;
        if std::mem::take(&mut self.meta.clsact) != 0 {
            self.site(spec, link).remove_clsact()?;
        }
        self.generation = None;
        // What comes next has to be attached anew.
        self.meta.whole = 0;
        if self.folder.has("meta") {
            self.meta.write(&self.folder)?;
        }
        Ok(())
    }

    /// Takes everything out of the kernel, and goes on with nothing.
    fn wipe(&mut self) -> Result<(), Error> {
        self.detach_all()?;
        for (name, _) in self.folder.names()? {
            self.folder.remove(&name)?;
        }
        self.meta = Meta::default();
        Ok(())
    }

    /// Takes all programs off the interface that they were attached to last.
    fn detach_all(&mut self) -> Result<(), Error> {
        let link = Link {
            index: u32::try_from(self.meta.ifindex).unwrap_or(0),
            ..Link::default()
        };
        if link.index == 0 {
            return Ok(());
        }
        self.detach(&MirrorSpec::default(), &link)
    }

    /// Takes everything out of the kernel, for good.
    pub(crate) fn remove(mut self) -> Result<(), Error> {
        self.wipe()?;
        self.root.remove_mirror(&self.name)?;
        self.known.detach_all()
    }

    /// What is attached, for the status.
    pub(crate) fn show(&self, spec: &MirrorSpec) -> Vec<MirrorAttachment> {
        let show = |way: Way| {
            let history = &self.history[way as usize];
            let mut shown = MirrorAttachment {
                direction: direction(way).into(),
                reattached: history.reattached,
                gap_ms: history.gap_ms,
                ..MirrorAttachment::default()
            };
            if let Some(found) = self.attachments.iter().find(|a| a.way == way) {
                shown.ifindex = found.ifindex;
                shown.how = found.how().to_owned();
                shown.program_id = found.program_id;
                shown.link_id = found.link_id;
                shown.before = self.before[way as usize].clone();
            }
            shown
        };
        ways(spec).into_iter().map(show).collect()
    }

    fn has(&self, way: Way) -> bool {
        self.attachments.iter().any(|a| a.way == way)
    }

    fn site<'a>(&'a mut self, spec: &'a MirrorSpec, link: &Link) -> Site<'a> {
        Site {
            name: &self.name,
            spec,
            folder: &self.folder,
            known: &self.known,
            tc: &mut self.tc,
            persistent: self.persistent,
            ifindex: link.index,
        }
    }
}

/// What [`Installed::ensure`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// Programs that were there have been taken over, or attached again.
    Attached,
    /// There are other programs, and perhaps other maps.
    Replaced,
}

/// The ways that a spec wants.
pub(crate) fn ways(spec: &MirrorSpec) -> Vec<Way> {
    match spec.direction() {
        Direction::In => vec![Way::In],
        Direction::Out => vec![Way::Out],
        _ => Way::ALL.to_vec(),
    }
}

fn direction(way: Way) -> v1::Direction {
    match way {
        Way::In => v1::Direction::In,
        Way::Out => v1::Direction::Out,
    }
}

fn history(all: &mut [History; 2], way: Way) -> &mut History {
    &mut all[way as usize]
}
