//! A program at an interface: by a link of TCX, or as a filter of traffic control where the kernel has no TCX (before 6.6).

use fluxcap_proto::v1::{Attach, MirrorSpec};
use fluxcap_socket::{BpfLink, Link, LinkHook, LinkOrder, TcFilter, TcHook, TrafficControl};

use crate::error::{Error, errno};
use crate::known::KnownLinks;
use crate::pins::Folder;
use crate::program::{Generation, Way, hash};

/// Priority of our filters: behind those that somebody has put first on purpose, before all for which the kernel chose one.
const PRIORITY: u16 = 41;

/// What is said where links are asked for and cannot be.
const NO_TCX: &str = "this kernel has no TCX links (Linux 6.6): leave --attach tcx and --order out";

impl Way {
    /// The place of links.
    pub(crate) fn tcx(self) -> LinkHook {
        match self {
            Way::In => LinkHook::TcxIngress,
            Way::Out => LinkHook::TcxEgress,
        }
    }

    fn tc(self) -> TcHook {
        match self {
            Way::In => TcHook::Ingress,
            Way::Out => TcHook::Egress,
        }
    }
}

/// What holds a program at its interface.
#[derive(Debug)]
enum Hold {
    Link(BpfLink),
    Filter(TcFilter),
}

/// A program at an interface.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) way: Way,
    pub(crate) ifindex: u32,
    pub(crate) program_id: u32,
    pub(crate) link_id: u32,
    hold: Hold,
}

/// Where and how programs of one mirror are attached.
pub(crate) struct Site<'a> {
    pub(crate) name: &'a str,
    pub(crate) spec: &'a MirrorSpec,
    pub(crate) folder: &'a Folder,
    pub(crate) known: &'a KnownLinks,
    pub(crate) tc: &'a mut TrafficControl,
    /// Links get names, and so stay when mirrord ends.
    pub(crate) persistent: bool,
    pub(crate) ifindex: u32,
}

impl Site<'_> {
    /// Attaches a program. Whether that took a clsact qdisc of our own.
    pub(crate) fn attach(
        &mut self,
        generation: &Generation,
        way: Way,
    ) -> Result<(Attachment, bool), Error> {
        if self.spec.attach() == Attach::Clsact {
            return self.attach_filter(generation, way);
        }
        match self.attach_link(generation, way) {
            Err(Error::Socket(error)) if errno(&error) == Some(libc::EINVAL) => {
                // A kernel without TCX knows no such place.
                if (self.spec.attach(), order(&self.spec.order))
                    == (Attach::Unspecified, LinkOrder::Last)
                {
                    return self.attach_filter(generation, way);
                }
                Err(Error::Unsuitable(NO_TCX.to_owned()))
            }
            done => done.map(|link| (link, false)),
        }
    }

    fn attach_link(&self, generation: &Generation, way: Way) -> Result<Attachment, Error> {
        let (program, program_id) = generation.program(way)?;
        check_order(self.spec, self.ifindex, way)?;
        let link = BpfLink::attach(program, self.ifindex, way.tcx(), order(&self.spec.order))?;
        let link_id = link.info()?.id;
        if self.persistent {
            self.known.add(self.ifindex, link_id);
            self.folder.remove(way.name())?;
            link.pin(&self.folder.path(way.name()))?;
        }
        Ok(Attachment {
            way,
            ifindex: self.ifindex,
            program_id,
            link_id,
            hold: Hold::Link(link),
        })
    }

    fn attach_filter(
        &mut self,
        generation: &Generation,
        way: Way,
    ) -> Result<(Attachment, bool), Error> {
        let (program, program_id) = generation.program(way)?;
        let added = self.tc.add_clsact(self.ifindex)?;
        let filter = TcFilter {
            program_id,
            ..filter(self.name)
        };
        let set = self.tc.set_filter(self.ifindex, way.tc(), &filter, program);
        if let Err(error) = set {
            if added {
                self.remove_clsact()?;
            }
            return Err(error.into());
        }
        let attachment = Attachment {
            way,
            ifindex: self.ifindex,
            program_id,
            link_id: 0,
            hold: Hold::Filter(filter),
        };
        Ok((attachment, added))
    }

    /// Finds what an earlier life has left at the interface: a link by its name or by what was noted, a filter by its number.
    pub(crate) fn adopt(&mut self, way: Way) -> Result<Option<Attachment>, Error> {
        let link = match self.named(way)? {
            Some(link) => Some(link),
            None => self.known.find(self.ifindex, way)?,
        };
        if let Some(link) = link {
            let info = link.info()?;
            return Ok(Some(Attachment {
                way,
                ifindex: self.ifindex,
                program_id: info.program_id,
                link_id: info.id,
                hold: Hold::Link(link),
            }));
        }
        let filter = self.find_filter(way)?;
        Ok(filter.map(|filter| Attachment {
            way,
            ifindex: self.ifindex,
            program_id: filter.program_id,
            link_id: 0,
            hold: Hold::Filter(filter),
        }))
    }

    /// The link that has a name, if it is at this interface.
    fn named(&self, way: Way) -> Result<Option<BpfLink>, Error> {
        if !self.folder.has(way.name()) {
            return Ok(None);
        }
        let link = BpfLink::open(&self.folder.path(way.name()))?;
        if link.info()?.ifindex == self.ifindex {
            return Ok(Some(link));
        }
        self.folder.remove(way.name())?;
        Ok(None)
    }

    /// Says so when a link is at the interface that can not be adopted.
    pub(crate) fn look_for_hidden(&self, way: Way) -> Result<(), Error> {
        match self.named(way)? {
            Some(_) => Ok(()),
            None => self.known.find(self.ifindex, way).map(drop),
        }
    }

    fn find_filter(&mut self, way: Way) -> Result<Option<TcFilter>, Error> {
        let (ours, filters) = (filter(self.name), self.tc.filters(self.ifindex, way.tc())?);
        Ok(filters.into_iter().find(|filter| is_same(filter, &ours)))
    }

    /// Gives an attachment another program in place: each frame meets the one or the other.
    pub(crate) fn replace(
        &mut self,
        attachment: &mut Attachment,
        generation: &Generation,
    ) -> Result<(), Error> {
        let (program, program_id) = generation.program(attachment.way)?;
        match &mut attachment.hold {
            Hold::Link(link) => {
                link.replace(program)?;
                let (name, pinned) = (
                    attachment.way.name(),
                    self.folder.has(attachment.way.name()),
                );
                if self.persistent && !pinned {
                    self.known.add(attachment.ifindex, attachment.link_id);
                    link.pin(&self.folder.path(name))?;
                } else if !self.persistent && pinned {
                    self.folder.remove(name)?;
                }
            }
            Hold::Filter(filter) => {
                self.tc
                    .set_filter(attachment.ifindex, attachment.way.tc(), filter, program)?;
                filter.program_id = program_id;
            }
        }
        attachment.program_id = program_id;
        Ok(())
    }

    /// Whether the program is still where it was attached.
    pub(crate) fn lives(&mut self, attachment: &Attachment) -> Result<bool, Error> {
        if attachment.ifindex != self.ifindex {
            return Ok(false);
        }
        match &attachment.hold {
            Hold::Link(link) => Ok(link.info()?.ifindex == self.ifindex),
            Hold::Filter(filter) => {
                let now = self.find_filter(attachment.way)?;
                Ok(now.is_some_and(|now| now.program_id == filter.program_id))
            }
        }
    }

    /// The programs and filters that a frame meets before this attachment, in that order. `own` are programs of other mirrors, which end
    /// nobody's way.
    pub(crate) fn before(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        own: &[u32],
    ) -> Result<Vec<String>, Error> {
        let mut before = Vec::new();
        if attachment.way == Way::In && link.xdp_program != 0 {
            before.push(format!("XDP program {}", link.xdp_program));
        }
        let programs = match BpfLink::attached(self.ifindex, attachment.way.tcx()) {
            // A kernel without TCX.
            Err(error) if errno(&error) == Some(libc::EINVAL) => Vec::new(),
            done => done?,
        };
        let programs = programs.iter().map(|it| it.program_id);
        let earlier = programs.take_while(|id| *id != attachment.program_id);
        let others = earlier.filter(|id| !own.contains(id));
        before.extend(others.map(|id| format!("TCX program {id}")));
        if let Hold::Filter(ours) = &attachment.hold {
            let filters = self.tc.filters(self.ifindex, attachment.way.tc())?;
            let earlier = filters.iter().take_while(|filter| !is_same(filter, ours));
            let others = earlier.filter(|filter| !own.contains(&filter.program_id));
            before.extend(
                others
                    .map(|filter| format!("{} filter with pref {}", filter.kind, filter.priority)),
            );
        }
        Ok(before)
    }

    /// Takes a program off its interface.
    pub(crate) fn detach(&mut self, attachment: &Attachment) -> Result<(), Error> {
        match &attachment.hold {
            Hold::Link(link) => {
                // It may be gone already; what counts is that nothing of it stays.
                let _ = link.detach();
                self.folder.remove(attachment.way.name())
            }
            Hold::Filter(filter) => {
                Ok(self
                    .tc
                    .remove_filter(attachment.ifindex, attachment.way.tc(), filter)?)
            }
        }
    }

    /// Takes the clsact qdisc away, which was made for this mirror, unless others have filters there.
    pub(crate) fn remove_clsact(&mut self) -> Result<(), Error> {
        for way in Way::ALL {
            if !self.tc.filters(self.ifindex, way.tc())?.is_empty() {
                return Ok(());
            }
        }
        Ok(self.tc.remove_clsact(self.ifindex)?)
    }
}

impl Attachment {
    /// How it is attached, in a word.
    pub(crate) fn how(&self) -> &'static str {
        match &self.hold {
            Hold::Link(_) => "tcx",
            Hold::Filter(_) => "clsact",
        }
    }
}

/// Our filter at any interface: a handle of its own for each mirror, and a name that says whose it is.
fn filter(mirror: &str) -> TcFilter {
    let [a, b, c, d, ..] = hash(mirror.as_bytes()).to_ne_bytes();
    TcFilter {
        priority: PRIORITY,
        handle: u32::from_ne_bytes([a, b, c, d]).max(1),
        kind: "bpf".to_owned(),
        name: format!("fluxcap mirror {mirror}"),
        program_id: 0,
    }
}

fn is_same(a: &TcFilter, b: &TcFilter) -> bool {
    (a.priority, a.handle, &a.name) == (b.priority, b.handle, &b.name)
}

/// The order of a spec, which was validated.
fn order(text: &str) -> LinkOrder {
    let id = |text: &str| text.parse().unwrap_or(0);
    match text.split_once(':') {
        Some(("before", program)) => LinkOrder::Before(id(program)),
        Some(("after", program)) => LinkOrder::After(id(program)),
        _ if text == "first" => LinkOrder::First,
        _ => LinkOrder::Last,
    }
}

/// Says which programs there are when an order is by one that is not among them.
pub(crate) fn check_order(spec: &MirrorSpec, ifindex: u32, way: Way) -> Result<(), Error> {
    let (LinkOrder::Before(id) | LinkOrder::After(id)) = order(&spec.order) else {
        return Ok(());
    };
    let mut there = Vec::new();
    let attached = match BpfLink::attached(ifindex, way.tcx()) {
        Err(error) if errno(&error) == Some(libc::EINVAL) => {
            return Err(Error::Unsuitable(NO_TCX.to_owned()));
        }
        done => done?,
    };
    for attached in attached {
        if attached.program_id == id {
            return Ok(());
        }
        there.push(attached.program_id.to_string());
    }
    let there = match there.as_slice() {
        [] => "none".to_owned(),
        there => there.join(", "),
    };
    Err(Error::Unsuitable(format!(
        "order {}: there is no program {id} at {} {}, but {there}; say another --order, or --direction",
        spec.order,
        spec.interface,
        way.name()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        assert_eq!(order(""), LinkOrder::Last);
        assert_eq!(order("last"), LinkOrder::Last);
        assert_eq!(order("first"), LinkOrder::First);
        assert_eq!(order("before:17"), LinkOrder::Before(17));
        assert_eq!(order("after:4"), LinkOrder::After(4));
    }

    #[test]
    fn filters_of_two_mirrors_are_told_apart() {
        assert!(is_same(&filter("a"), &filter("a")));
        assert!(!is_same(&filter("a"), &filter("b")));
        assert_ne!(filter("a").handle, filter("b").handle);
    }
}
