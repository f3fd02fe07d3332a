//! The XDP program that hands frames to sockets: `bpf/xsk.bpf.c`.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::util::KernelVersion;

use crate::Error;
use crate::bpf::{self, LOAD};

/// Queues that the program knows.
pub(crate) const QUEUES: u32 = 256;

/// The program, attached to an interface as long as this value exists, and no longer than the process.
pub(crate) struct Redirect {
    // Its drop detaches the program.
    _ebpf: Ebpf,
    sockets: Mutex<XskMap<MapData>>,
    passed: PerCpuArray<MapData, u64>,
    native: bool,
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redirect")
            .field("native", &self.native)
            .finish_non_exhaustive()
    }
}

impl Redirect {
    /// Loads the program and attaches it: in the driver, or where the driver cannot, behind it.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_BPF, CAP_NET_ADMIN); [`Error::System`], also when another program is attached already.
    pub(crate) fn attach(ifindex: u32) -> Result<Redirect, Error> {
        // Before that, a program would stay attached after the process was killed.
        if KernelVersion::current().is_ok_and(|kernel| kernel < KernelVersion::new(5, 9, 0)) {
            return Err(Error::system(
                "attach an XDP program by a link (Linux 5.9 or later)",
                std::io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            ));
        }
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xsk.bpf.o"));
        let mut ebpf = bpf::load(object, None, LOAD)?;
        let sockets = XskMap::try_from(bpf::map(&mut ebpf, "sockets")?)
            .map_err(bpf::failed("use the map of sockets", LOAD))?;
        let passed = count_of(bpf::map(&mut ebpf, "passed")?)?;
        let program: &mut Xdp = bpf::program(&mut ebpf, "capture")?;
        program
            .load()
            .map_err(bpf::failed("load an XDP program", LOAD))?;
        let native = match program.attach_to_if_index(ifindex, XdpMode::Driver) {
            Ok(_) => true,
            Err(error) if is_taken(&error) => return Err(failed(error)),
            Err(_) => {
                program
                    .attach_to_if_index(ifindex, XdpMode::Skb)
                    .map_err(failed)?;
                false
            }
        };
        Ok(Redirect {
            _ebpf: ebpf,
            sockets: Mutex::new(sockets),
            passed,
            native,
        })
    }

    /// Hands the frames of a queue to a socket, which must be bound to it. That ends with the socket.
    pub(crate) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        use std::os::fd::AsRawFd;
        self.sockets()
            .set(queue, socket.as_raw_fd(), 0)
            .map_err(bpf::failed("hand a queue to its socket", LOAD))
    }

    /// Hands the frames of a queue to the host again; those that its socket has by now stay there.
    pub(crate) fn release(&self, queue: u32) -> Result<(), Error> {
        self.sockets()
            .unset(queue)
            .map_err(bpf::failed("hand a queue to the host again", LOAD))
    }

    fn sockets(&self) -> MutexGuard<'_, XskMap<MapData>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that came by a queue without a socket, and went to the host.
    pub(crate) fn passed(&self) -> u64 {
        let counts = self.passed.get(&0, 0);
        counts.map_or(0, |counts| counts.iter().sum())
    }

    /// Whether it runs in the driver.
    pub(crate) fn is_native(&self) -> bool {
        self.native
    }
}

fn count_of(map: Map) -> Result<PerCpuArray<MapData, u64>, Error> {
    PerCpuArray::try_from(map).map_err(bpf::failed("use the count of frames", LOAD))
}

/// Whether the interface has an XDP program of somebody else.
fn is_taken(error: &ProgramError) -> bool {
    bpf::errno(error) == Some(libc::EBUSY)
}

fn failed(error: ProgramError) -> Error {
    let operation = if is_taken(&error) {
        "attach an XDP program, the interface has one already"
    } else {
        "attach an XDP program"
    };
    bpf::failed(operation, LOAD)(error)
}
