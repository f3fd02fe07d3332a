//! The memory through which frames are handed to the transmit programs: `bpf/frames.h` in Rust.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::MapData;

use crate::mapping::Mapping;
use crate::{Error, MAX_OUTPUTS, Outgoing};

/// Where the frames begin.
const DATA_AT: usize = 4096;
/// Bytes for frames.
const DATA_LEN: usize = 1 << 20;
/// Bytes of `struct frame`.
const FRAME_LEN: usize = 16;
/// Frames times outputs of one run of the live program, at most.
pub(crate) const ATTEMPTS: usize = 1024;
/// Drops that such a run can note.
const EVENTS: usize = 256;
/// Attempts of one run of the tc program.
pub(crate) const RESULTS: usize = 64;

/// Frames that were queued for an output and then dropped by its driver.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Event {
    /// The first of them, counted among the frames that were queued for this output in this run.
    from: u16,
    output: u8,
    count: u8,
    /// A negative errno; 0 for want of room.
    err: i32,
}

impl Event {
    /// Whether it is about the frame that was queued as the `position`-th for this output.
    pub(crate) fn covers(&self, output: usize, position: usize) -> bool {
        let from = usize::from(self.from);
        usize::from(self.output) == output
            && (from..from + usize::from(self.count)).contains(&position)
    }

    /// Why they were dropped, as an errno; 0 for want of room.
    pub(crate) fn errno(&self) -> i32 {
        self.err.saturating_neg()
    }
}

/// `struct header`.
#[repr(C)]
struct Header {
    cursor: u32,
    end: u32,
    turn: u32,
    attempts: u32,
    dead: u32,
    events: u32,
    task: u64,
    ifindex: [u32; MAX_OUTPUTS],
    queued: [u32; MAX_OUTPUTS],
    flushed: [u32; MAX_OUTPUTS],
    refused: [i32; MAX_OUTPUTS],
    results: [i32; RESULTS],
    event: [Event; EVENTS],
}

/// [`MAX_OUTPUTS`] as it is stored.
const PLACES: u8 = 12;
const _: () = assert!(PLACES as usize == MAX_OUTPUTS);
const _: () = assert!(size_of::<Header>() <= DATA_AT && FRAME_LEN == 4 + MAX_OUTPUTS);

/// What a run of the live program came to at one output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Frames that were queued.
    pub(crate) queued: usize,
    /// Of these, frames that reached the driver; what it dropped is in the events.
    pub(crate) flushed: usize,
    /// Why the next one was not queued and no other one was tried: an errno; 0 when all were.
    pub(crate) refused: i32,
}

/// The mapped array of one program. Nobody but the program and its owner knows it, and they take turns.
#[derive(Debug)]
pub(crate) struct Area {
    mapping: Mapping,
    header: NonNull<Header>,
    used: usize,
    attempts: usize,
    _map: MapData,
}

// SAFETY: `header` leads into the mapping, which belongs to this value alone.
unsafe impl Send for Area {}

/// The address of a field of the header, for volatile accesses: the header lies within the mapping, which is page-aligned, and no
/// reference to it is ever made.
macro_rules! field {
    ($area:expr, $($path:tt)+) => {
        (&raw mut (*$area.header.as_ptr()).$($path)+)
    };
}

impl Area {
    /// Maps the array.
    pub(crate) fn new(map: MapData) -> Result<Area, Error> {
        let mapping = Mapping::of_fd(map.fd().as_fd(), DATA_AT + DATA_LEN)
            .map_err(|source| Error::system("map the array of a BPF program", source))?;
        let header = mapping
            .at(0, DATA_AT)
            .ok_or_else(|| {
                Error::system(
                    "map the array of a BPF program",
                    std::io::Error::from_raw_os_error(libc::EFAULT),
                )
            })?
            .cast();
        Ok(Area {
            mapping,
            header,
            used: 0,
            attempts: 0,
            _map: map,
        })
    }

    /// Tells the program the interface of each output.
    pub(crate) fn set_interfaces(&mut self, ifindexes: &[u32]) {
        let mut all = [0; MAX_OUTPUTS];
        all.iter_mut()
            .zip(ifindexes)
            .for_each(|(slot, ifindex)| *slot = *ifindex);
        // SAFETY: see `field`; the program is not running.
        unsafe { field!(self, ifindex).write_volatile(all) };
    }

    /// Forgets the frames of the run before.
    pub(crate) fn begin(&mut self) {
        (self.used, self.attempts) = (0, 0);
        // SAFETY: see `field`; the program is not running.
        unsafe {
            field!(self, cursor).write_volatile(0);
            field!(self, turn).write_volatile(0);
            field!(self, attempts).write_volatile(0);
            field!(self, dead).write_volatile(0);
            field!(self, events).write_volatile(0);
            field!(self, queued).write_volatile([0; MAX_OUTPUTS]);
            field!(self, flushed).write_volatile([0; MAX_OUTPUTS]);
            field!(self, refused).write_volatile([0; MAX_OUTPUTS]);
        }
    }

    /// Adds a frame of less than 64 KiB for `outputs`, which is not 0. False when there is no room.
    #[inline]
    pub(crate) fn push(&mut self, frame: &Outgoing<'_>, outputs: u16) -> bool {
        let len = frame.len();
        let (Ok(short), total) = (u16::try_from(len), FRAME_LEN + len.next_multiple_of(8)) else {
            return false;
        };
        if self.used + total > DATA_LEN {
            return false;
        }
        let Some(place) = self.mapping.at(DATA_AT + self.used, total) else {
            return false;
        };
        let mut head = [0_u8; FRAME_LEN];
        let mut count = 0;
        for output in (0..PLACES).filter(|output| outputs & (1 << output) != 0) {
            head[4 + usize::from(count)] = output;
            count += 1;
        }
        head[..2].copy_from_slice(&short.to_ne_bytes());
        head[2] = count;
        // SAFETY: `total` bytes from `place` on are within the mapping; head and pieces are together no longer than that, and
        // lie elsewhere. The program, which also writes the header, is not running.
        unsafe {
            let mut to = place.as_ptr();
            to.copy_from_nonoverlapping(head.as_ptr(), FRAME_LEN);
            to = to.add(FRAME_LEN);
            for piece in &frame.pieces {
                to.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                to = to.add(piece.len());
            }
        }
        self.used += total;
        self.attempts += usize::from(count);
        true
    }

    /// Frames times outputs that were added.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts
    }

    /// To be called before the program is run.
    pub(crate) fn end(&mut self) {
        let end = u32::try_from(self.used).unwrap_or(0);
        // SAFETY: see `field`; the program is not running.
        unsafe { field!(self, end).write_volatile(end) };
    }

    /// Attempts that the program has made.
    pub(crate) fn attempted(&self) -> usize {
        // SAFETY: see `field`.
        let attempted = unsafe { field!(self, attempts).read_volatile() };
        (attempted as usize).min(self.attempts)
    }

    /// What the live program did at an output.
    pub(crate) fn ran(&self, output: usize) -> Ran {
        // SAFETY: see `field`.
        let (queued, flushed, refused) = unsafe {
            (
                field!(self, queued).read_volatile(),
                field!(self, flushed).read_volatile(),
                field!(self, refused).read_volatile(),
            )
        };
        let at = |all: [u32; MAX_OUTPUTS]| all.get(output).map_or(0, |n| *n as usize);
        Ran {
            queued: at(queued),
            flushed: at(flushed),
            refused: refused.get(output).map_or(0, |err| err.saturating_neg()),
        }
    }

    /// Whether the live program made all attempts, every frame was queued, and every queue was taken in full by a driver.
    pub(crate) fn is_clean(&self) -> bool {
        // SAFETY: see `field`.
        unsafe {
            field!(self, events).read_volatile() == 0
                && field!(self, dead).read_volatile() == 0
                && field!(self, queued).read_volatile() == field!(self, flushed).read_volatile()
                && self.attempted() == self.attempts
        }
    }

    /// The drops that were noted, for each output in its order.
    pub(crate) fn events(&self) -> impl Iterator<Item = Event> + Clone + '_ {
        // SAFETY: see `field`.
        let count = unsafe { field!(self, events).read_volatile() } as usize;
        (0..count.min(EVENTS)).map(|at| {
            // SAFETY: see `field`; `at` is within the array.
            unsafe { field!(self, event[at]).read_volatile() }
        })
    }

    /// What became of an attempt of the tc program: 0, a negative errno, or NET_XMIT_* of `linux/netdevice.h`.
    pub(crate) fn result(&self, attempt: usize) -> i32 {
        if attempt >= RESULTS {
            return -libc::EIO;
        }
        // SAFETY: see `field`; the index is within the array.
        unsafe { field!(self, results[attempt]).read_volatile() }
    }
}
