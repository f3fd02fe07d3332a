//! What a driver does to frames before a capture sees them (`linux/ethtool.h`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Error, sys};

/// Offloads of an interface that change what a capture sees. One that the driver does not know is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Generic receive offload: received frames of a flow are joined.
    pub gro: bool,
    /// Large receive offload: the same, in hardware.
    pub lro: bool,
    /// Generic segmentation offload: local senders hand down super-frames.
    pub gso: bool,
    /// TCP segmentation offload: the same, split by the hardware.
    pub tso: bool,
    /// Checksums are verified by the hardware.
    pub rx_checksum: bool,
    /// Checksums of local senders are left to the hardware.
    pub tx_checksum: bool,
    /// The outermost VLAN tag is taken out by the hardware.
    pub rx_vlan: bool,
    /// The outermost VLAN tag is put in by the hardware.
    pub tx_vlan: bool,
}

const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GGSO: u32 = 0x23;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETH_FLAG_TXVLAN: u32 = 1 << 7;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// The offloads of the interface `name`, in the network namespace of the calling thread.
///
/// # Errors
/// [`Error::System`] when there is no such interface.
pub fn offloads(name: &str) -> Result<Offloads, Error> {
    let failed = |source| Error::system("read the offloads of the interface", source);
    // Any socket will do; this kind is one that a sandboxed daemon may always open.
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(failed)?;
    let fd = socket.as_fd();
    let flags = query(fd, name, ETHTOOL_GFLAGS).map_err(failed)?;
    let on = |command| {
        query(fd, name, command)
            .map(|value| value != 0)
            .map_err(failed)
    };
    Ok(Offloads {
        gro: on(ETHTOOL_GGRO)?,
        lro: flags & ETH_FLAG_LRO != 0,
        gso: on(ETHTOOL_GGSO)?,
        tso: on(ETHTOOL_GTSO)?,
        rx_checksum: on(ETHTOOL_GRXCSUM)?,
        tx_checksum: on(ETHTOOL_GTXCSUM)?,
        rx_vlan: flags & ETH_FLAG_RXVLAN != 0,
        tx_vlan: flags & ETH_FLAG_TXVLAN != 0,
    })
}

/// Has the kernel make all checksums before it gives frames to the driver of the interface `name`, and with that cut what it has joined (GSO).
///
/// # Errors
/// [`Error::System`] when there is no such interface, or its driver cannot do without.
pub fn make_checksums_in_software(name: &str) -> Result<(), Error> {
    const OPERATION: &str = "turn off tx-checksumming of the interface";
    let failed = |source| Error::system(OPERATION, source);
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(failed)?;
    let mut value = EthtoolValue {
        command: ETHTOOL_STXCSUM,
        data: 0,
    };
    ask(socket.as_fd(), name, &mut value).map_err(failed)?;
    let Offloads {
        tso, tx_checksum, ..
    } = offloads(name)?;
    match tso || tx_checksum {
        false => Ok(()),
        true => Err(failed(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))),
    }
}

/// How many receive queues the interface `name` uses. Drivers that do not say have one.
///
/// # Errors
/// [`Error::System`] when there is no such interface.
pub(crate) fn receive_queues(name: &str) -> Result<u32, Error> {
    let failed = |source| Error::system("read the channels of the interface", source);
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(failed)?;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_GCHANNELS,
        max: [0; 4],
        rx: 0,
        tx: 0,
        other: 0,
        combined: 0,
    };
    ask(socket.as_fd(), name, &mut channels).map_err(failed)?;
    Ok(channels.rx.saturating_add(channels.combined).max(1))
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`.
#[repr(C)]
struct EthtoolChannels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// What the commands of ethtool read and write: C structures of integers, which begin with the command.
trait Parameter {}
impl Parameter for EthtoolValue {}
impl Parameter for EthtoolChannels {}

/// `struct ifreq` with a pointer in its union.
#[repr(C)]
struct EthtoolRequest<T> {
    name: [u8; libc::IFNAMSIZ],
    value: *mut T,
    /// The rest of the union, which is as large as `struct ifmap`.
    padding: [u8; 16],
}

const _: () = assert!(size_of::<EthtoolRequest<EthtoolValue>>() >= size_of::<libc::ifreq>());

/// One value; 0 when the driver does not know the command.
fn query(fd: BorrowedFd<'_>, name: &str, command: u32) -> std::io::Result<u32> {
    let mut value = EthtoolValue { command, data: 0 };
    ask(fd, name, &mut value).map(|()| value.data)
}

/// Asks for what `value` says, which stays as it is when the driver does not know the command.
fn ask<T: Parameter>(fd: BorrowedFd<'_>, name: &str, value: &mut T) -> std::io::Result<()> {
    let mut request = EthtoolRequest {
        name: [0; libc::IFNAMSIZ],
        value: std::ptr::from_mut(value),
        padding: [0; 16],
    };
    // The last byte stays 0. A name that does not fit is the name of no interface.
    let Some(slot) = request
        .name
        .get_mut(..name.len())
        .filter(|s| s.len() < libc::IFNAMSIZ)
    else {
        return Err(std::io::Error::from_raw_os_error(libc::ENODEV));
    };
    slot.copy_from_slice(name.as_bytes());
    // SAFETY: SIOCETHTOOL reads an ifreq, which `request` is at least as large as, and reads and writes the
    // structure that it points to, as large as the command in it says; both live until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    match sys::check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => Err(error),
        _ => Ok(()),
    }
}
