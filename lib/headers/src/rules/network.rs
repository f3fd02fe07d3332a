//! A range of addresses.

use std::net::IpAddr;

/// All addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Zero behind the prefix.
    address: IpAddr,
    prefix: u8,
}

/// A prefix that is longer than the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address}/{prefix}: an address has {longest} bits")]
pub struct InvalidNetwork {
    address: IpAddr,
    prefix: u8,
    longest: u8,
}

impl Network {
    /// The addresses whose first `prefix` bits (IPv4: 0 to 32, IPv6: 0 to 128) are those of `address`; its other bits do not count.
    ///
    /// # Errors
    /// A longer prefix.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Network, InvalidNetwork> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(InvalidNetwork {
                address,
                prefix,
                longest,
            });
        }
        let tail = u32::from(longest - prefix);
        let address = match address {
            IpAddr::V4(v4) => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(tail).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(tail).unwrap_or(0)).into())
            }
        };
        Ok(Network { address, prefix })
    }

    /// The lowest address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits in which all its addresses agree.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is part of it. No address is part of none; IPv4 addresses in those of IPv6 stay the latter.
    pub(super) fn has(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|address| {
            address.is_ipv4() == self.address.is_ipv4()
                && Network::new(address, self.prefix).is_ok_and(|network| network == *self)
        })
    }
}
