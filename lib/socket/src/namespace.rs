//! Which network namespace this is.

use std::os::fd::AsFd;

use crate::sys;

const SO_NETNS_COOKIE: i32 = 71;

/// The number of the network namespace of the calling thread, which no other one gets before the next boot. `None` when the kernel has
/// none (before 5.14).
#[must_use]
pub fn namespace_cookie() -> Option<u64> {
    let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).ok()?;
    sys::get_option(socket.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, 0_u64).ok()
}
