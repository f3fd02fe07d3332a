//! Features of an interface by the kernel's names, as `ethtool -k` lists and `ethtool -K` sets them: the family "ethtool" of generic
//! netlink (Documentation/networking/ethtool-netlink.rst).

use std::collections::BTreeMap;

use netlink_packet_core::NlasIterator;

use crate::Error;
use crate::generic::Family;
use crate::netlink;

const FAMILY: &str = "ethtool";
const READ: &str = "read the features of an interface (Linux 5.7)";
const CHANGE: &str = "change the features of an interface";

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
/// `ETHTOOL_A_FEATURES_*`.
const HEADER: u16 = 1;
const HW: u16 = 2;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
/// `ETHTOOL_A_HEADER_*`.
const HEADER_DEV_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
/// ETHTOOL_FLAG_OMIT_REPLY.
const OMIT_REPLY: u32 = 2;
/// `ETHTOOL_A_BITSET_*`.
const BITSET_NOMASK: u16 = 1;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
/// An attribute of attributes.
const NESTED: u16 = 1 << 15;

/// One feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Feature {
    /// It is at work.
    pub active: bool,
    /// It can be switched.
    pub changeable: bool,
}

/// The features of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features(BTreeMap<String, Feature>);

impl Features {
    /// Of the interface with this index, in the network namespace of the calling thread. `None` when the kernel does not tell (before 5.7).
    ///
    /// # Errors
    /// [`Error::System`] when there is no such interface.
    pub fn of(ifindex: u32) -> Result<Option<Features>, Error> {
        let Some(mut family) = Family::open(READ, FAMILY)? else {
            return Ok(None);
        };
        let mut features = Features::default();
        let request = header(ifindex, 0);
        family.ask(
            ETHTOOL_MSG_FEATURES_GET,
            &request,
            |kind, value| match kind {
                HW => features.take(value, |feature| feature.changeable = true),
                ACTIVE => features.take(value, |feature| feature.active = true),
                _ => {}
            },
        )?;
        Ok(Some(features))
    }

    fn take(&mut self, bitset: &[u8], mut set: impl FnMut(&mut Feature)) {
        for name in names(bitset) {
            set(self.0.entry(name).or_default());
        }
    }

    /// The one of this name (`rx-gro`, `tx-tcp-segmentation`); off for ever when there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> Feature {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// Switches features of an interface on and off. What a driver has its own mind about stays as it is without an error: look again.
///
/// # Errors
/// [`Error::Permission`] (CAP_NET_ADMIN), [`Error::System`].
pub fn set_features<'n>(
    ifindex: u32,
    wanted: impl IntoIterator<Item = (&'n str, bool)>,
) -> Result<(), Error> {
    let mut family = Family::open(CHANGE, FAMILY)?
        .ok_or_else(|| Error::system(CHANGE, std::io::ErrorKind::Unsupported.into()))?;
    let mut bits = Vec::new();
    for (name, on) in wanted {
        let mut bit = Vec::new();
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        netlink::append_attribute(&mut bit, BIT_NAME, &text);
        if on {
            netlink::append_attribute(&mut bit, BIT_VALUE, &[]);
        }
        netlink::append_attribute(&mut bits, BITS_BIT | NESTED, &bit);
    }
    let mut bitset = Vec::new();
    netlink::append_attribute(&mut bitset, BITSET_BITS | NESTED, &bits);
    let mut request = header(ifindex, OMIT_REPLY);
    netlink::append_attribute(&mut request, WANTED | NESTED, &bitset);
    family.change(ETHTOOL_MSG_FEATURES_SET, &request)
}

fn header(ifindex: u32, flags: u32) -> Vec<u8> {
    let mut header = Vec::new();
    netlink::append_attribute(&mut header, HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
    if flags != 0 {
        netlink::append_attribute(&mut header, HEADER_FLAGS, &flags.to_ne_bytes());
    }
    let mut request = Vec::new();
    netlink::append_attribute(&mut request, HEADER | NESTED, &header);
    request
}

/// The names of the bits that are set.
fn names(bitset: &[u8]) -> Vec<String> {
    let parts = || NlasIterator::new(bitset).map_while(Result::ok);
    // A list that has no mask has the bits that are set and no other.
    let all = parts().any(|part| part.kind() == BITSET_NOMASK);
    let mut names = Vec::new();
    for list in parts().filter(|part| part.kind() == BITSET_BITS) {
        for bit in NlasIterator::new(list.value()).map_while(Result::ok) {
            let fields = || NlasIterator::new(bit.value()).map_while(Result::ok);
            let set = all || fields().any(|field| field.kind() == BIT_VALUE);
            let name = fields().find(|field| field.kind() == BIT_NAME);
            if let Some(name) = name.filter(|_| set) {
                let text = String::from_utf8_lossy(name.value());
                names.push(text.trim_end_matches('\0').to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bit(name: &str, set: bool) -> Vec<u8> {
        let mut bit = Vec::new();
        netlink::append_attribute(&mut bit, BIT_NAME, format!("{name}\0").as_bytes());
        if set {
            netlink::append_attribute(&mut bit, BIT_VALUE, &[]);
        }
        let mut list = Vec::new();
        netlink::append_attribute(&mut list, BITS_BIT | NESTED, &bit);
        list
    }

    #[test]
    fn with_a_mask_the_bits_that_are_set_are_marked() {
        let bits = [bit("rx-gro", true), bit("rx-lro", false)].concat();
        let mut masked = Vec::new();
        netlink::append_attribute(&mut masked, BITSET_BITS | NESTED, &bits);
        assert_eq!(names(&masked), ["rx-gro"]);
        netlink::append_attribute(&mut masked, BITSET_NOMASK, &[]);
        assert_eq!(names(&masked), ["rx-gro", "rx-lro"]);
    }

    proptest! {
        #[test]
        fn any_bitset_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            names(&bytes);
        }
    }
}
