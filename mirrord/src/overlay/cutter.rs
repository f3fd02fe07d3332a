//! A pair of interfaces that cuts giants (GSO) which are in a tunnel already, and which the kernel therefore cannot encapsulate once more.
//!
//! ```text
//!   relay --clone--> "fxm...s": no offloads, so the kernel cuts what is sent --> "fxm...r": program `packet` encapsulates, and ends everything else
//! ```

use super::kernel::hold;
use super::program::RelayProgram;
use crate::error::Error;
use crate::pins::Folder;
use fluxcap_socket::{
    BpfLink, Link, LinkHook, LinkKind, LinkOrder, LinkWatch, TcFilter, TcHook, TrafficControl,
    create_link, delete_link, make_checksums_in_software, set_alias, set_carrier_only, set_up,
};
use std::os::fd::AsFd;

/// Pin of the link of the program behind it.
const PIN: &str = "relay_cutter";
/// The longest packet that there is: none is refused.
const MTU: u32 = 65535;

/// The pair, and the program behind it.
pub(super) struct Cutter {
    /// Where giants are sent.
    pub(super) entrance: u32,
    exit: u32,
    /// None: the program is a filter.
    link: Option<BpfLink>,
}

/// Names of both ends.
fn names(helper: &str) -> [String; 2] {
    ["s", "r"].map(|end| format!("{helper}{end}"))
}

fn is_of(link: &Link, alias: &str) -> bool {
    link.kind == "veth" && (link.alias == alias || link.alias.is_empty())
}

impl Cutter {
    /// What an earlier life has left, if all of it is there.
    pub(super) fn adopt(
        folder: &Folder,
        links: &mut LinkWatch,
        helper: &str,
        as_filter: bool,
    ) -> Result<Option<Cutter>, Error> {
        let [entrance, exit] = names(helper);
        let (Some(entrance), Some(exit)) = (links.find(&entrance)?, links.find(&exit)?) else {
            return Ok(None);
        };
        let link = match as_filter {
            true if has_filter(exit.index)? => None,
            false if folder.has(PIN) => {
                let link = BpfLink::open(&folder.path(PIN))?;
                if link.info()?.ifindex != exit.index {
                    return Ok(None);
                }
                Some(link)
            }
            _ => return Ok(None),
        };
        let cutter = Cutter {
            entrance: entrance.index,
            exit: exit.index,
            link,
        };
        Ok((entrance.up && exit.up).then_some(cutter))
    }

    /// Makes the pair anew, with this program behind it.
    pub(super) fn make(
        folder: &Folder,
        links: &mut LinkWatch,
        (helper, alias): (&str, &str),
        relay: &mut RelayProgram,
        as_filter: bool,
        persistent: bool,
    ) -> Result<Cutter, Error> {
        remove(links, helper, alias)?;
        folder.remove(PIN)?;
        let [entrance, exit] = names(helper);
        create_link(&entrance, &LinkKind::Veth(exit.clone()))?;
        let find = |links: &mut LinkWatch, name: &String| {
            let link = links.find(name)?;
            link.ok_or_else(|| Error::NoInterface(name.clone()))
        };
        let (into, out) = (find(links, &entrance)?, find(links, &exit)?);
        for end in [&into, &out] {
            set_alias(end.index, alias)?;
            set_carrier_only(end.index, MTU)?;
        }
        make_checksums_in_software(&entrance)?;
        let program = relay.of_cutter()?;
        let fd = program
            .fd()
            .map_err(|error| Error::kernel("use the relay program", error))?;
        let link = if as_filter {
            let mut tc = TrafficControl::open()?;
            tc.add_clsact(out.index)?;
            tc.set_filter(out.index, TcHook::Ingress, &filter(), fd.as_fd())?;
            None
        } else {
            let (hook, order) = (LinkHook::TcxIngress, LinkOrder::Last);
            let link = BpfLink::attach(fd.as_fd(), out.index, hook, order)?;
            hold(folder, PIN, &link, persistent)?;
            Some(link)
        };
        // Not before: what comes out is for the program and nobody else.
        set_up(out.index)?;
        set_up(into.index)?;
        Ok(Cutter {
            entrance: into.index,
            exit: out.index,
            link,
        })
    }

    /// Whether it is still as it was made.
    pub(super) fn lives(&self, links: &mut LinkWatch) -> Result<bool, Error> {
        let up = links.find_index(self.entrance)?.is_some_and(|link| link.up)
            && links.find_index(self.exit)?.is_some_and(|link| link.up);
        Ok(up
            && match &self.link {
                Some(link) => link.info()?.ifindex == self.exit,
                None => has_filter(self.exit)?,
            })
    }
}

/// Removes the pair, if it is this mirror's.
pub(super) fn remove(links: &mut LinkWatch, helper: &str, alias: &str) -> Result<(), Error> {
    for name in names(helper) {
        // With the one goes the other.
        if let Some(link) = links.find(&name)? {
            if !is_of(&link, alias) {
                return Err(Error::Unsuitable(format!(
                    "there is an interface {name} already, for something else: ip link delete {name}"
                )));
            }
            delete_link(link.index)?;
        }
    }
    Ok(())
}

fn filter() -> TcFilter {
    TcFilter {
        priority: 1,
        handle: 1,
        kind: "bpf".to_owned(),
        name: "fluxcap cutter".to_owned(),
        program_id: 0,
    }
}

fn has_filter(ifindex: u32) -> Result<bool, Error> {
    let ours = filter();
    let filters = TrafficControl::open()?.filters(ifindex, TcHook::Ingress)?;
    Ok(filters.iter().any(|filter| filter.name == ours.name))
}
