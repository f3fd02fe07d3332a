//! An AF_XDP socket for one queue of an interface (Documentation/networking/af_xdp.rst).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::ring::{Consuming, Descriptor, Producing};
use super::umem::Umem;
use crate::{Error, sys};

/// Pauses before the queue is asked for again while a socket that was closed still has it: the kernel takes it away from that
/// later, on its own time. Together 0.75 s.
const BUSY_PAUSES_MS: [u64; 10] = [10, 20, 40, 80, 100, 100, 100, 100, 100, 100];

/// A bound socket with its UMEM and those of its rings that it uses.
#[derive(Debug)]
pub(crate) struct Socket {
    // Fields are dropped in this order: the rings before the socket, which the kernel lets go of after the last of them.
    pub(crate) fill: Producing<u64>,
    pub(crate) completion: Consuming<u64>,
    /// For a receiving socket.
    pub(crate) receive: Option<Consuming<Descriptor>>,
    /// For a sending socket.
    pub(crate) transmit: Option<Producing<Descriptor>>,
    fd: OwnedFd,
    pub(crate) umem: Umem,
    zero_copy: bool,
}

/// What a socket is for, and how many entries its rings have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    Receive(u32),
    Transmit(u32),
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread. The numbers of entries are powers of two.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_RAW), [`Error::NoInterface`], [`Error::LinkDown`], [`Error::Interface`]: also when another
    /// socket has the queue.
    pub(crate) fn open(ifindex: u32, queue: u32, umem: Umem, what: Use) -> Result<Socket, Error> {
        let failed = |operation| move |source| Error::interface(operation, ifindex, source);
        let socket = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0)
            .map_err(failed("open an AF_XDP socket"))?;
        let fd = socket.as_fd();
        set(fd, libc::XDP_UMEM_REG, &umem.registration()).map_err(no_memory(ifindex))?;
        // The kernel wants fill and completion ring in any case.
        let (fill, completion) = match what {
            Use::Receive(entries) => (entries, 1),
            Use::Transmit(entries) => (1, entries),
        };
        let made = set(fd, libc::XDP_UMEM_FILL_RING, &fill)
            .and_then(|()| set(fd, libc::XDP_UMEM_COMPLETION_RING, &completion))
            .and_then(|()| match what {
                Use::Receive(entries) => set(fd, libc::XDP_RX_RING, &entries),
                Use::Transmit(entries) => set(fd, libc::XDP_TX_RING, &entries),
            });
        made.map_err(failed("make the rings of an AF_XDP socket"))?;
        let map = || {
            let at = offsets(fd)?;
            let (mut receive, mut transmit) = (None, None);
            match what {
                Use::Receive(len) => {
                    receive = Some(Consuming::map(fd, RECEIVE, &at.rx, len)?);
                }
                Use::Transmit(len) => {
                    transmit = Some(Producing::map(fd, TRANSMIT, &at.tx, len)?);
                }
            }
            let fill = Producing::map(fd, FILL, &at.fr, fill)?;
            let completion = Consuming::map(fd, COMPLETION, &at.cr, completion)?;
            io::Result::Ok((fill, completion, receive, transmit))
        };
        let (fill, completion, receive, transmit) =
            map().map_err(failed("map the rings of an AF_XDP socket"))?;
        bind(fd, ifindex, queue).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => failed("bind the AF_XDP socket, another one has the queue")(error),
            _ => failed("bind the AF_XDP socket")(error),
        })?;
        let options = libc::xdp_options { flags: 0 };
        let options = sys::get_option(fd, libc::SOL_XDP, libc::XDP_OPTIONS, options)
            .map_err(failed("ask how the AF_XDP socket works"))?;
        Ok(Socket {
            fill,
            completion,
            receive,
            transmit,
            fd: socket,
            umem,
            zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
        })
    }

    /// Whether the driver reads and writes the UMEM itself.
    pub(crate) fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The kernel's counters since the socket was opened. Reading does not reset them.
    pub(crate) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        let none = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        sys::get_option(self.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, none)
    }

    /// Has the kernel look at the transmit ring; the errno when it stopped before the end.
    pub(crate) fn kick_transmit(&self) -> Result<(), i32> {
        let kicked = sys::send_nothing(self.as_fd());
        kicked.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Has the driver look at the fill ring, when it waits for that.
    #[inline]
    pub(crate) fn kick_fill(&self) {
        if self.fill.needs_wakeup() {
            // What keeps the driver from it, a link that is down, ends it by itself when that is over.
            let _ = sys::receive_nothing(self.as_fd());
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The memory is locked, so its size is limited.
fn no_memory(ifindex: u32) -> impl FnOnce(io::Error) -> Error {
    let operation = "lock memory for AF_XDP";
    move |source| match source.raw_os_error() {
        Some(libc::ENOBUFS) => Error::Permission {
            operation,
            capability: "CAP_IPC_LOCK, or a higher limit (ulimit -l),",
            source,
        },
        _ => Error::interface(operation, ifindex, source),
    }
}

/// Which ring a mapping is of.
const RECEIVE: libc::off_t = libc::XDP_PGOFF_RX_RING;
const TRANSMIT: libc::off_t = libc::XDP_PGOFF_TX_RING;
const FILL: libc::off_t = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
const COMPLETION: libc::off_t = libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t;

fn set<T: Copy>(fd: BorrowedFd<'_>, name: i32, value: &T) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_XDP, name, value)
}

fn offsets(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset {
        // Beyond any mapping: a kernel before 5.4, which knows no flags, is refused by that.
        producer: u64::MAX,
        consumer: u64::MAX,
        desc: u64::MAX,
        flags: u64::MAX,
    };
    let value = libc::xdp_mmap_offsets {
        rx: none(),
        tx: none(),
        fr: none(),
        cr: none(),
    };
    sys::get_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, value)
}

/// Binds to a queue, without copies where the driver can: the kernel itself tries that first.
fn bind(fd: BorrowedFd<'_>, ifindex: u32, queue: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).unwrap_or_default(),
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    for pause in BUSY_PAUSES_MS {
        match sys::bind(fd, &address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result,
        }
        std::thread::sleep(Duration::from_millis(pause));
    }
    sys::bind(fd, &address)
}
