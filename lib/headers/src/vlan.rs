//! VLAN tags: IEEE 802.1Q, 802.1ad and the older 0x9100.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------------------------------+-----+-+-----------------------+
//! |             TPID              | PCP |D|          VID          |
//! +-------------------------------+-----+-+-----------------------+
//! ```

use crate::error::InvalidVlan;

/// Bytes of one tag in a frame.
pub(crate) const TAG_LEN: usize = 4;

/// A VLAN tag, exactly as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Tag protocol identifier: 0x8100, 0x88a8 or 0x9100.
    pub tpid: u16,
    /// Priority (3 bits), drop eligible (1 bit), VLAN identifier (12 bits).
    pub tci: u16,
}

impl VlanTag {
    /// A tag from its fields: `vid` 0 to 4094 (0 is a priority tag), `pcp` 0 to 7.
    ///
    /// # Errors
    /// [`InvalidVlan`] names the first field that is out of range.
    pub fn new(tpid: u16, vid: u16, pcp: u8, dei: bool) -> Result<VlanTag, InvalidVlan> {
        if !is_tpid(tpid) {
            return Err(InvalidVlan::Tpid(tpid));
        }
        if vid > 4094 {
            return Err(InvalidVlan::Vid(vid));
        }
        if pcp > 7 {
            return Err(InvalidVlan::Pcp(pcp));
        }
        let tci = u16::from(pcp) << 13 | u16::from(dei) << 12 | vid;
        Ok(VlanTag { tpid, tci })
    }

    /// VLAN identifier, 0 to 4095.
    pub fn vid(self) -> u16 {
        self.tci & 0x0fff
    }

    /// Priority code point, 0 to 7.
    pub fn pcp(self) -> u8 {
        self.tci.to_be_bytes()[0] >> 5
    }

    /// Drop eligible indicator.
    pub fn dei(self) -> bool {
        self.tci & 0x1000 != 0
    }

    /// The four bytes that stand in a frame behind the MAC addresses.
    pub fn to_bytes(self) -> [u8; 4] {
        let [a, b] = self.tpid.to_be_bytes();
        let [c, d] = self.tci.to_be_bytes();
        [a, b, c, d]
    }

    /// The tag in four bytes of a frame, whatever its TPID is.
    pub fn from_bytes(bytes: [u8; 4]) -> VlanTag {
        let [a, b, c, d] = bytes;
        VlanTag {
            tpid: u16::from_be_bytes([a, b]),
            tci: u16::from_be_bytes([c, d]),
        }
    }
}

/// Whether an EtherType announces a VLAN tag.
#[inline]
pub fn is_tpid(ether_type: u16) -> bool {
    matches!(ether_type, 0x8100 | 0x88a8 | 0x9100)
}

/// How many complete tags stand at the front of `bytes`, which begin with an EtherType; at most `limit`.
#[inline]
pub(crate) fn inline_tags(bytes: &[u8], limit: usize) -> usize {
    let mut count = 0;
    while count < limit {
        let Some(&[a, b, _, _]) = bytes.get(count * TAG_LEN..count * TAG_LEN + TAG_LEN) else {
            break;
        };
        if !is_tpid(u16::from_be_bytes([a, b])) {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip_through_the_wire_form() {
        for tpid in [0x8100, 0x88a8, 0x9100] {
            for (vid, pcp, dei) in [(0, 0, false), (1, 7, true), (4094, 5, true), (10, 0, true)] {
                let tag = VlanTag::new(tpid, vid, pcp, dei).unwrap();
                assert_eq!((tag.vid(), tag.pcp(), tag.dei()), (vid, pcp, dei));
                assert_eq!(VlanTag::from_bytes(tag.to_bytes()), tag);
            }
        }
        let tag = VlanTag::new(0x88a8, 0x00a, 5, true).unwrap();
        assert_eq!(tag.to_bytes(), [0x88, 0xa8, 0xb0, 0x0a]);
    }

    #[test]
    fn fields_out_of_range_are_refused_by_name() {
        assert_eq!(
            VlanTag::new(0x8100, 4095, 0, false),
            Err(InvalidVlan::Vid(4095))
        );
        assert_eq!(VlanTag::new(0x8100, 1, 8, false), Err(InvalidVlan::Pcp(8)));
        assert_eq!(
            VlanTag::new(0x0800, 1, 0, false),
            Err(InvalidVlan::Tpid(0x0800))
        );
    }
}
