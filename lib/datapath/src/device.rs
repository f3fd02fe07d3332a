//! Which device stands behind the name of an interface. One rule for all daemons: the name decides. A device that is renamed is kept as long as no
//! other one has the name; as soon as one has, that is it, and the change is told and counted.

use fluxcap_socket::{Error, Link, LinkWatch};

/// The device behind a name, over time.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// Index of the last one.
    last: Option<u32>,
    changes: u64,
    remark: String,
}

impl Device {
    /// The device among `links` that is meant by `name`, and is taken from now on.
    pub fn find(&mut self, name: &str, links: &[Link]) -> Option<Link> {
        let named = links.iter().find(|link| link.is_called(name));
        let kept = || links.iter().find(|link| Some(link.index) == self.last);
        let link = named.or_else(kept).cloned()?;
        let old_is_there = links.iter().any(|other| Some(other.index) == self.last);
        self.take(name, &link, old_is_there);
        Some(link)
    }

    /// The same, asking the kernel.
    ///
    /// # Errors
    /// As [`LinkWatch::find`].
    pub fn look(&mut self, name: &str, links: &mut LinkWatch) -> Result<Option<Link>, Error> {
        let named = links.find(name)?;
        let last = self.last.filter(|last| match &named {
            Some(link) => link.index != *last,
            None => true,
        });
        let old = match last {
            Some(last) => links.find_index(last)?,
            None => None,
        };
        let old_is_there = old.is_some();
        let Some(link) = named.or(old) else {
            return Ok(None);
        };
        self.take(name, &link, old_is_there);
        Ok(Some(link))
    }

    fn take(&mut self, name: &str, link: &Link, old_is_there: bool) {
        let Some(last) = self.last.replace(link.index) else {
            return;
        };
        if last == link.index {
            return;
        }
        self.changes += 1;
        tracing::warn!(
            interface = name,
            before = last,
            ifindex = link.index,
            "the name is another device's now"
        );
        // That one has gone and another has come is no news to anybody.
        self.remark = match old_is_there {
            true => format!(
                "{name} is another device than before: index {}, not {last}",
                link.index
            ),
            false => String::new(),
        };
    }

    /// Whether another device than the one with this index is meant when `link` is there.
    pub fn is_replaced(name: &str, ifindex: u32, link: &Link) -> bool {
        link.is_called(name) && link.index != ifindex
    }

    /// How often it became another one.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What is to be told of it; often nothing.
    pub fn remark(&self) -> &str {
        &self.remark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            ..Link::default()
        }
    }

    fn found(device: &mut Device, links: &[Link]) -> Option<u32> {
        device.find("eth1", links).map(|link| link.index)
    }

    #[test]
    fn the_name_decides_and_a_change_is_told_and_counted() {
        let mut device = Device::default();
        assert_eq!(
            found(&mut device, &[link(5, "eth1"), link(6, "eth2")]),
            Some(5)
        );
        // Renamed: nobody else has the name.
        assert_eq!(
            found(&mut device, &[link(5, "tmp"), link(6, "eth2")]),
            Some(5)
        );
        assert_eq!((device.changes(), device.remark()), (0, ""));
        // Swapped.
        assert_eq!(
            found(&mut device, &[link(5, "eth2"), link(6, "eth1")]),
            Some(6)
        );
        assert_eq!(device.changes(), 1);
        assert_eq!(
            device.remark(),
            "eth1 is another device than before: index 6, not 5"
        );
        // Made anew.
        assert_eq!(found(&mut device, &[]), None);
        assert_eq!(found(&mut device, &[link(9, "eth1")]), Some(9));
        assert_eq!((device.changes(), device.remark()), (2, ""));
    }
}
