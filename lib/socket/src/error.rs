//! Why a socket cannot be had, or cannot go on.

use std::io;

/// A failed operation on a socket or an interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused a call.
    #[error("cannot {operation} (interface index {ifindex})")]
    Interface {
        /// What was tried.
        operation: &'static str,
        /// On which interface.
        ifindex: u32,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system refused a call that concerns no interface.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A capability is missing.
    #[error("no permission to {operation}: {capability} is needed")]
    Permission {
        /// What was tried.
        operation: &'static str,
        /// The capability, see capabilities(7).
        capability: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// An option is out of its range.
    #[error("{option} is {value}: {advice}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What would do.
        advice: &'static str,
    },
    /// There is no such interface (any more) in this network namespace.
    #[error("interface index {ifindex} does not exist")]
    NoInterface {
        /// The index that was asked for.
        ifindex: u32,
    },
    /// The interface is administratively down.
    #[error("interface index {ifindex} is down")]
    LinkDown {
        /// The interface.
        ifindex: u32,
    },
    /// The address is none of this host's.
    #[error("address {address} is not configured on this host")]
    NoAddress {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Somebody else receives on this port.
    #[error("UDP port {port} is in use by another socket or tunnel interface of this host")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The kernel's answer is not what rtnetlink(7) says.
    #[error("unexpected netlink answer to {operation}: {detail}")]
    Netlink {
        /// What was asked.
        operation: &'static str,
        /// What is wrong with the answer.
        detail: &'static str,
    },
}

impl Error {
    /// The last system error, as one of `operation` on an interface.
    pub(crate) fn interface(operation: &'static str, ifindex: u32, source: io::Error) -> Error {
        match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Error::NoInterface { ifindex },
            Some(libc::ENETDOWN) => Error::LinkDown { ifindex },
            Some(libc::EPERM | libc::EACCES) => Error::Permission {
                operation,
                capability: "CAP_NET_RAW",
                source,
            },
            _ => Error::Interface {
                operation,
                ifindex,
                source,
            },
        }
    }

    pub(crate) fn system(operation: &'static str, source: io::Error) -> Error {
        Error::System { operation, source }
    }
}
