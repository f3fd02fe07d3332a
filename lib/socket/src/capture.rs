//! Capture from one interface through a TPACKET_V3 ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::block::{Block, COUNTS_OFFSET, Cursor, FrameHead, Packet, STATUS_OFFSET};
use crate::mapping::Mapping;
use crate::{Error, sys};

/// The kernel divides blocks by this number to check a request; TPACKET_V3 packs frames regardless of it.
const NOMINAL_FRAME: u32 = 2048;
/// A block must hold the largest frame of most interfaces (65,535 B) and its headers.
const MIN_BLOCK: u32 = 128 * 1024;

/// Most memory for one capture: over three seconds at 10 Gb/s.
const MAX_BUFFER: u64 = 4 << 30;

/// An instruction of a socket filter, as in `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Constant.
    pub k: u32,
}

/// How to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Memory for frames that wait to be read, in bytes; at least two blocks, at most 4 GiB. 32 MiB by default.
    pub buffer_bytes: u64,
    /// Bytes of a block, a power of two from 128 KiB. No frame longer than this less 128 B is captured
    /// whole. 256 KiB by default.
    pub block_bytes: u32,
    /// After this time the kernel hands over a block that is not full. Whole milliseconds, at least one;
    /// 1 ms by default.
    pub block_retire: Duration,
    /// Asks the interface for frames to other stations too, as long as the socket is open.
    pub promiscuous: bool,
    /// Leaves out what this host sends through the interface (Linux 4.20).
    pub ignore_outgoing: bool,
    /// As [`PacketCapture::set_stamped`], from the first frame on.
    pub stamped: bool,
    /// Only frames that this program accepts; it sees them without the tag in [`crate::Packet::vlan`]. Those of which it keeps one byte
    /// are [`crate::Packet::is_refused`].
    pub filter: Option<Vec<SockFilter>>,
}

impl Default for CaptureOptions {
    fn default() -> CaptureOptions {
        CaptureOptions {
            buffer_bytes: 32 << 20,
            block_bytes: 256 << 10,
            block_retire: Duration::from_millis(1),
            promiscuous: true,
            ignore_outgoing: true,
            stamped: false,
            filter: None,
        }
    }
}

impl CaptureOptions {
    /// Blocks of the ring.
    fn blocks(&self) -> Result<u32, Error> {
        let block = self.block_bytes;
        if !block.is_power_of_two() || block < MIN_BLOCK.max(sys::page_size()) {
            return Err(Error::Option {
                option: "block size",
                value: block.into(),
                advice: "use a power of two of at least 128 KiB",
            });
        }
        let count = self.buffer_bytes / u64::from(block);
        // The kernel would take a mistyped size from memory that cannot be swapped, others' included.
        if count < 2 || self.buffer_bytes > MAX_BUFFER {
            return Err(Error::Option {
                option: "capture buffer size",
                value: self.buffer_bytes,
                advice: "use at least two blocks, and at most 4 GiB",
            });
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn retire_milliseconds(&self) -> u32 {
        // 0 would mean "the kernel's choice", 8 ms and more.
        u32::try_from(self.block_retire.as_millis().max(1)).unwrap_or(u32::MAX)
    }
}

/// What the kernel counted since the last call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureStatistics {
    /// Frames that passed the filter, dropped ones included.
    pub packets: u64,
    /// Of these, frames dropped because no block was free.
    pub drops: u64,
    /// Times that the kernel ran out of blocks.
    pub freezes: u64,
}

/// What came up while frames were taken one at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureNotes {
    /// The kernel has, or may have, dropped frames since the statistics were last read.
    pub losing: bool,
    /// Frames that were handed over and cannot be read.
    pub unreadable: u64,
}

/// A capture of one interface.
///
/// The ring needs no system call as long as it holds frames; [`crate::poll`] waits for the next block.
#[derive(Debug)]
pub struct PacketCapture {
    // Fields are dropped in this order: the mapping before the socket.
    mapping: Mapping,
    socket: OwnedFd,
    ifindex: u32,
    block_bytes: usize,
    blocks: usize,
    next: usize,
    /// In the block at `next`, while its frames are taken one at a time.
    cursor: Option<Cursor>,
    notes: CaptureNotes,
    hand_over: Duration,
}

impl PacketCapture {
    /// Opens a capture of the interface `ifindex`, in the network namespace of the calling thread.
    ///
    /// The socket is bound last: no frame of another interface ever gets in. An interface that is down
    /// can be opened; [`PacketCapture::take_error`] says so once, and frames come when it is up.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Permission`] (CAP_NET_RAW), [`Error::NoInterface`], and
    /// [`Error::Interface`] when the kernel has no memory for the ring or refuses the filter.
    pub fn open(ifindex: u32, options: &CaptureOptions) -> Result<PacketCapture, Error> {
        let failed = |operation| move |source| Error::interface(operation, ifindex, source);
        let blocks = options.blocks()?;
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
            .map_err(failed("open a packet socket"))?;
        let fd = socket.as_fd();
        set(fd, libc::PACKET_VERSION, &TPACKET_V3).map_err(failed("use TPACKET_V3"))?;
        set(
            fd,
            libc::PACKET_IGNORE_OUTGOING,
            &i32::from(options.ignore_outgoing),
        )
        .map_err(failed("leave out outgoing frames"))?;
        set(fd, libc::PACKET_RX_RING, &ring_request(options, blocks))
            .map_err(failed("reserve the capture buffer"))?;
        let block_bytes = options.block_bytes as usize;
        let mapping = Mapping::of_fd(fd, block_bytes * blocks as usize)
            .map_err(failed("map the capture buffer"))?;
        let capture = PacketCapture {
            mapping,
            socket,
            ifindex,
            block_bytes,
            blocks: blocks as usize,
            next: 0,
            cursor: None,
            notes: CaptureNotes::default(),
            hand_over: options.block_retire + sys::timer_slack(),
        };
        if options.stamped {
            capture.set_stamped(true)?;
        }
        if options.filter.is_some() {
            capture.set_filter(options.filter.as_deref())?;
        }
        if options.promiscuous {
            sys::join_promiscuous(capture.as_fd(), ifindex)
                .map_err(failed("ask for promiscuous mode"))?;
        }
        sys::bind_packet(capture.as_fd(), ifindex, ETH_P_ALL)
            .map_err(failed("bind the packet socket"))?;
        Ok(capture)
    }

    /// The interface that was opened.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Where the next block begins, if the kernel has handed it over.
    #[inline]
    fn ready(&self) -> Option<NonNull<u8>> {
        self.handed_over(self.next)
    }

    /// Where a block begins, if the kernel has handed it over.
    #[inline]
    fn handed_over(&self, number: usize) -> Option<NonNull<u8>> {
        let at = number.checked_mul(self.block_bytes)?;
        let block = self.mapping.at(at, self.block_bytes)?;
        // SAFETY: the word is within the mapping, which lives as long as `self`, and aligned, because
        // blocks are page-aligned. The kernel accesses it atomically, and so do we.
        let status: &AtomicU32 = unsafe { block.add(STATUS_OFFSET).cast().as_ref() };
        // SYNC POINT: block hand-over, the kernel's to ours. Acquire: what the kernel wrote before it set
        // the bit is visible after (smp_wmb in prb_flush_block, net/packet/af_packet.c).
        (status.load(Ordering::Acquire) & libc::TP_STATUS_USER != 0).then_some(block)
    }

    /// Whether there is a next block.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// The next block, if the kernel has handed it over.
    #[inline]
    pub fn next_block(&mut self) -> Option<Block<'_>> {
        let block = self.ready()?;
        // SAFETY: as in `ready`; not borrowed from there, because `next` is borrowed mutably beside it.
        let status: &AtomicU32 = unsafe { block.add(STATUS_OFFSET).cast().as_ref() };
        // SAFETY: this part of the mapping lies behind the status word, so no other reference covers it:
        // `Block` borrows `self` mutably, and the kernel writes here only after `Block` gave it back.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(
                block.add(COUNTS_OFFSET).as_ptr(),
                self.block_bytes - COUNTS_OFFSET,
            )
        };
        Some(Block {
            status,
            bytes,
            next: &mut self.next,
            blocks: self.blocks,
            start: COUNTS_OFFSET,
            cursor: &mut self.cursor,
        })
    }

    /// Everything behind the status word of the next block, if the kernel has handed it over.
    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        let block = self.ready()?;
        // SAFETY: this part of the mapping lies behind the status word. The block is ours until `give_back` or a `Block`, both
        // of which borrow `self` mutably, so nobody writes to it meanwhile.
        Some(unsafe {
            std::slice::from_raw_parts(
                block.add(COUNTS_OFFSET).as_ptr(),
                self.block_bytes - COUNTS_OFFSET,
            )
        })
    }

    /// The next frame that has been handed over, to be taken by [`PacketCapture::take`]. The block of the one before goes back
    /// to the kernel when that was its last. [`PacketCapture::next_block`] has what was not taken.
    #[inline]
    pub fn head(&mut self) -> Option<FrameHead> {
        loop {
            if self.cursor.is_none() {
                self.cursor = Some(Cursor::first(self.bytes()?, COUNTS_OFFSET));
                self.notes.losing |= self.is_losing();
            }
            let cursor = self.cursor?;
            let head = cursor.head(self.bytes()?);
            if head.is_some() {
                return head;
            }
            self.notes.unreadable += cursor.left as u64;
            self.give_back();
        }
    }

    /// Takes the frame of which [`PacketCapture::head`] told. `None`: it cannot be read, nor can those behind it in its block.
    #[inline]
    pub fn take(&mut self) -> Option<Packet<'_>> {
        let block = self.ready()?;
        let cursor = self.cursor.as_mut()?;
        // SAFETY: as in `bytes`; the packet borrows `self` mutably, so there is no other reference into the block.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(
                block.add(COUNTS_OFFSET).as_ptr(),
                self.block_bytes - COUNTS_OFFSET,
            )
        };
        let packet = cursor.take(bytes);
        if packet.is_none() {
            self.notes.unreadable += cursor.left as u64;
            cursor.left = 0;
        }
        packet
    }

    /// Whether the next block says that frames were dropped.
    fn is_losing(&self) -> bool {
        self.ready().is_some_and(|block| {
            // SAFETY: as in `handed_over`.
            let status: &AtomicU32 = unsafe { block.add(STATUS_OFFSET).cast().as_ref() };
            status.load(Ordering::Relaxed) & libc::TP_STATUS_LOSING != 0
        })
    }

    /// Gives the next block back to the kernel, read or not.
    fn give_back(&mut self) {
        drop(self.next_block());
    }

    /// What came up in [`PacketCapture::head`] and [`PacketCapture::take`] since the last call.
    pub fn take_notes(&mut self) -> CaptureNotes {
        std::mem::take(&mut self.notes)
    }

    /// Whether so many blocks wait to be read that the kernel may soon have none; always when there are too few to keep any.
    #[inline]
    pub fn is_pressed(&self) -> bool {
        let half = (self.blocks / 2).saturating_sub(1);
        self.handed_over((self.next + half) % self.blocks.max(1))
            .is_some()
    }

    /// What an empty ring proves: no frame that is older than this is still to come, unless the kernel's timers are late.
    pub fn hand_over(&self) -> Duration {
        self.hand_over
    }

    /// What the kernel counted since the last call; the call resets its counters.
    ///
    /// # Errors
    /// [`Error::Interface`] if the system refuses.
    pub fn statistics(&mut self) -> Result<CaptureStatistics, Error> {
        let stats = sys::packet_statistics(self.as_fd()).map_err(|source| {
            Error::interface("read the packet statistics", self.ifindex, source)
        })?;
        Ok(CaptureStatistics {
            packets: stats.tp_packets.into(),
            drops: stats.tp_drops.into(),
            freezes: stats.tp_freeze_q_cnt.into(),
        })
    }

    /// Replaces or removes the filter. Frames that wait in the ring passed the one before.
    ///
    /// # Errors
    /// [`Error::Option`] for a program of 0 or more than 4096 instructions, [`Error::Interface`] when the
    /// kernel refuses it.
    pub fn set_filter(&self, filter: Option<&[SockFilter]>) -> Result<(), Error> {
        let failed = |source| Error::interface("set the socket filter", self.ifindex, source);
        let Some(filter) = filter else {
            return match sys::set_option(
                self.as_fd(),
                libc::SOL_SOCKET,
                libc::SO_DETACH_FILTER,
                &0i32,
            ) {
                // There was none.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                result => result.map_err(failed),
            };
        };
        if filter.is_empty() || filter.len() > 4096 {
            return Err(Error::Option {
                option: "length of the socket filter",
                value: filter.len() as u64,
                advice: "the kernel takes 1 to 4096 instructions",
            });
        }
        SockFilter::attach(filter, self.as_fd()).map_err(failed)
    }

    /// Takes no frame from now on. Those that wait in the ring can still be read, and only they are in the statistics.
    ///
    /// # Errors
    /// [`Error::Interface`] when the kernel refuses.
    pub fn take_no_more(&self) -> Result<(), Error> {
        self.set_filter(Some(&SockFilter::NOTHING))
    }

    /// Has the kernel note in each frame when it came, which is then its time at all sockets ([`crate::Packet::stamped`]); it begins to do so
    /// a little later. Otherwise each socket looks at the clock for itself.
    ///
    /// # Errors
    /// [`Error::Interface`] when the kernel refuses.
    pub fn set_stamped(&self, on: bool) -> Result<(), Error> {
        let failed = |source| Error::interface("ask for time stamps", self.ifindex, source);
        let (fd, on) = (self.as_fd(), i32::from(on));
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &on).map_err(failed)
    }

    /// The pending error of the socket, if there is one; clears it.
    ///
    /// ENETDOWN comes once when the interface goes down or away. After "down" the socket goes on by itself
    /// when the interface is up again; after "away" it stays silent for ever.
    pub fn take_error(&self) -> Option<io::Error> {
        sys::take_error(self.as_fd())
    }
}

impl AsFd for PacketCapture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketCapture {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl SockFilter {
    /// The program that accepts nothing.
    pub(crate) const NOTHING: [SockFilter; 1] = [SockFilter {
        code: 0x06, // BPF_RET | BPF_K
        jt: 0,
        jf: 0,
        k: 0,
    }];

    /// Has a socket of any kind receive only what the program accepts.
    pub(crate) fn attach(program: &[SockFilter], fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut program: Vec<libc::sock_filter> =
            program.iter().copied().map(SockFilter::to_c).collect();
        let program = libc::sock_fprog {
            len: u16::try_from(program.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
            filter: program.as_mut_ptr(),
        };
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn to_c(self) -> libc::sock_filter {
        libc::sock_filter {
            code: self.code,
            jt: self.jt,
            jf: self.jf,
            k: self.k,
        }
    }
}

/// `tpacket_versions::TPACKET_V3` as the integer that the option takes.
const TPACKET_V3: i32 = 2;
/// Every protocol (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 3;

fn set<T: Copy>(fd: BorrowedFd<'_>, name: i32, value: &T) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_PACKET, name, value)
}

fn ring_request(options: &CaptureOptions, blocks: u32) -> libc::tpacket_req3 {
    libc::tpacket_req3 {
        tp_block_size: options.block_bytes,
        tp_block_nr: blocks,
        tp_frame_size: NOMINAL_FRAME,
        tp_frame_nr: options.block_bytes / NOMINAL_FRAME * blocks,
        tp_retire_blk_tov: options.retire_milliseconds(),
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    }
}
