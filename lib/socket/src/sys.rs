//! System calls in the shape that this crate needs: owned descriptors, errors as values.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The size of a C structure as the socket calls want it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of the few structures passed here are far below 4 GiB"
)]
pub(crate) const fn size_of_c<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// The same of a value.
pub(crate) const fn size_of_c_value<T>(_: &T) -> libc::socklen_t {
    size_of_c::<T>()
}

/// Turns the -1 of a system call into its error.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A new socket, closed on exec and non-blocking.
pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let flags = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes plain integers.
    let fd = check(unsafe { libc::socket(domain, flags, protocol) })?;
    // SAFETY: the call just returned this descriptor; nobody else knows or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A bpffs that is mounted nowhere: its root. It goes with the last descriptor.
pub(crate) fn mount_bpffs() -> io::Result<OwnedFd> {
    /// `FSOPEN_CLOEXEC`, `FSMOUNT_CLOEXEC` and `FSCONFIG_CMD_CREATE` (`linux/mount.h`).
    const CLOEXEC: libc::c_long = 1;
    const CREATE: libc::c_long = 6;
    const NONE: libc::c_long = 0;
    let owned = |fd: libc::c_long| {
        let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the call just returned this descriptor; nobody else knows or closes it.
        Ok::<OwnedFd, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: fsopen(2) reads the string, which is there for ever.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), CLOEXEC) })?;
    let fd = libc::c_long::from(context.as_raw_fd());
    // SAFETY: fsconfig(2) takes integers with this command; key and value are null.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, fd, CREATE, NONE, NONE, NONE) };
    check(libc::c_int::try_from(made).unwrap_or(-1))?;
    // SAFETY: fsmount(2) takes plain integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOEXEC, NONE) })
}

/// setsockopt(2) with a plain C value.
pub(crate) fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which the call only reads. Callers pass C structures
    // and integers; a kernel pointer within one (sock_fprog) points to memory that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_c::<T>(),
        )
    };
    check(result).map(drop)
}

/// getsockopt(2) of a C structure or an integer. `value` is what it is before the kernel fills it in, as far as that knows it.
pub(crate) fn get_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    mut value: T,
) -> io::Result<T> {
    let mut length = size_of_c::<T>();
    // SAFETY: pointer and length describe `value`; the kernel writes at most `length` bytes. Callers pass structures of
    // integers, which are valid with any bytes.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut length,
        )
    };
    check(result).map(|_| value)
}

/// Whether an interface is up (SIOCGIFNAME, SIOCGIFFLAGS; netdevice(7)), in the network namespace of the socket.
pub(crate) fn is_up(fd: BorrowedFd<'_>, ifindex: u32) -> io::Result<bool> {
    // SAFETY: an ifreq is plain bytes, integers and pointers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = i32::try_from(ifindex).unwrap_or(0);
    // SAFETY: both calls read and write one ifreq. The first reads the index and writes the name, the second
    // reads the name and writes the flags, which are then the member in use.
    let flags = unsafe {
        check(libc::ioctl(
            fd.as_raw_fd(),
            libc::SIOCGIFNAME,
            &raw mut request,
        ))?;
        check(libc::ioctl(
            fd.as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags
    };
    Ok(i32::from(flags) & libc::IFF_UP != 0)
}

/// Bytes that a socket has sent and the kernel has not let go of yet (SIOCOUTQ).
pub(crate) fn unsent_bytes(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int, to `value`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut value) }).map(|_| value)
}

/// The counters of a TPACKET_V3 socket since the last call.
pub(crate) fn packet_statistics(fd: BorrowedFd<'_>) -> io::Result<libc::tpacket_stats_v3> {
    let none = libc::tpacket_stats_v3 {
        tp_packets: 0,
        tp_drops: 0,
        tp_freeze_q_cnt: 0,
    };
    get_option(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, none)
}

/// Binds a packet socket to an interface; `protocol` in host byte order, 0 receives nothing.
pub(crate) fn bind_packet(fd: BorrowedFd<'_>, ifindex: u32, protocol: u16) -> io::Result<()> {
    let family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let address = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    bind(fd, &address)
}

/// bind(2) with a socket address of any family.
pub(crate) fn bind<T: Copy>(fd: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: pointer and length describe `address`, which the call only reads.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of_c::<T>(),
        )
    };
    check(result).map(drop)
}

/// Has a socket send and receive through one interface only (SO_BINDTOIFINDEX, Linux 5.1), which must exist: the kernel does
/// not look.
pub(crate) fn bind_to_device(fd: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    is_up(fd, ifindex)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &index)
}

/// The pending error of a socket, which this clears.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    match get_option(fd, libc::SOL_SOCKET, libc::SO_ERROR, 0) {
        Ok(0) => None,
        Ok(code) => Some(io::Error::from_raw_os_error(code)),
        Err(error) => Some(error),
    }
}

/// recvfrom(2) on a netlink socket: bytes of the message, and the port of its sender (0: the kernel).
/// The count may exceed the buffer; the message was then cut.
pub(crate) fn receive_netlink(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, u32)> {
    let mut address = MaybeUninit::<libc::sockaddr_nl>::zeroed();
    let mut length = size_of_c::<libc::sockaddr_nl>();
    // SAFETY: buffer and address are valid for writes of the lengths given.
    let count = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            address.as_mut_ptr().cast(),
            &mut length,
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed at first, and a sockaddr_nl of integers is valid with any bytes.
    let address = unsafe { address.assume_init() };
    Ok((count, address.nl_pid))
}

/// recvfrom(2) on an IP socket: bytes in the buffer, and the sender.
pub(crate) fn receive_from(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, libc::sockaddr_in6)> {
    let mut sender = crate::address::ANY;
    let mut length = size_of_c_value(&sender);
    // SAFETY: buffer and sender are valid for writes of the lengths given; a sockaddr_in6 of integers is valid with any bytes.
    let count = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            std::ptr::from_mut(&mut sender).cast(),
            &mut length,
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok((count, sender))
}

/// send(2) of one message.
pub(crate) fn send(fd: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `message`, which the call only reads.
    let count = unsafe { libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// sendto(2) of no bytes: the socket looks at its transmit ring.
pub(crate) fn send_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are given.
    let count = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// recvfrom(2) of no bytes: the socket looks at its fill ring.
pub(crate) fn receive_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are given.
    let count = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A new epoll(7) instance.
pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes a flag.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the call just returned this descriptor; nobody else knows or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `epoll` readable while `fd` is.
pub(crate) fn epoll_add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    // SAFETY: the event is valid for the call.
    let result = unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            fd.as_raw_fd(),
            &mut event,
        )
    };
    check(result).map(drop)
}

/// Has a socket ask its interface for frames to other stations too, by membership: that ends with the socket, other than the
/// interface's flag.
pub(crate) fn join_promiscuous(fd: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: i32::try_from(ifindex)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?,
        mr_type: u16::try_from(libc::PACKET_MR_PROMISC).unwrap_or_default(),
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Memory for frames that wait to leave, beyond the host's limit when the capability allows it.
pub(crate) fn set_send_buffer(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes))
}

/// Memory for datagrams that wait to be read, beyond the host's limit when the capability allows it; the bytes that it became. The
/// kernel counts its own overhead in, and doubles what is asked for.
pub(crate) fn set_receive_buffer(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<u64> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))?;
    let got: libc::c_int = get_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
    Ok(u64::try_from(got).unwrap_or(0))
}

/// Datagrams that a socket has dropped since it was opened, modulo 2^32 (SO_MEMINFO).
pub(crate) fn socket_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const FIELDS: usize = 9;
    let memory = get_option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, [0_u32; FIELDS])?;
    Ok(memory[FIELDS - 1])
}

/// Bytes of a memory page.
pub(crate) fn page_size() -> u32 {
    // SAFETY: sysconf(3) takes an integer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(4096)
}

/// By how much a timer of whole milliseconds can be late: nothing where the kernel uses high-resolution timers for blocks of frames
/// (Linux 6.18), else two ticks.
pub(crate) fn timer_slack() -> Duration {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release) >= (6, 18) {
        return Duration::ZERO;
    }
    let mut tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    // SAFETY: the place for the answer is valid for the call. The coarse clock advances once a tick.
    unsafe { libc::clock_getres(libc::CLOCK_REALTIME_COARSE, &mut tick) };
    2 * Duration::from_nanos(u64::try_from(tick.tv_nsec).unwrap_or(0))
}

/// Major and minor number of a release like `6.1.0-18-amd64`; zeros for what is none.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(kernel_version("6.1.0-18-amd64\n"), (6, 1));
        assert_eq!(kernel_version("6.18.44-x"), (6, 18));
        assert!(kernel_version("10.2") > (6, 18));
        assert_eq!(kernel_version(""), (0, 0));
    }
}
