//! A capture, by whichever way the frames come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::{
    Block, CaptureNotes, CaptureStatistics, Error, FrameHead, Packet, PacketCapture, Packets,
    SockFilter, XdpBurst, XdpCapture, XdpPackets,
};

/// A capture of one interface, or of a part of its traffic.
#[derive(Debug)]
pub enum Receiver {
    /// By a packet socket.
    Packet(PacketCapture),
    /// By AF_XDP sockets.
    Xdp(XdpCapture),
}

impl Receiver {
    /// The name under which this way of receiving is chosen and shown.
    pub fn name(&self) -> &'static str {
        match self {
            Receiver::Packet(_) => "packet",
            Receiver::Xdp(_) => "af_xdp",
        }
    }

    /// The next frames, if there are any.
    #[inline]
    pub fn next_burst(&mut self) -> Option<Received<'_>> {
        match self {
            Receiver::Packet(capture) => capture.next_block().map(Received::Block),
            Receiver::Xdp(capture) => capture.next_burst().map(Received::Xdp),
        }
    }

    /// Whether [`Receiver::next_burst`] has something. No system call.
    #[inline]
    pub fn is_ready(&self) -> bool {
        match self {
            Receiver::Packet(capture) => capture.is_ready(),
            Receiver::Xdp(capture) => capture.is_ready(),
        }
    }

    /// The next frame, to be taken by [`Receiver::take`]; [`Receiver::next_burst`] has what was not taken. No system call.
    #[inline]
    pub fn head(&mut self) -> Option<FrameHead> {
        match self {
            Receiver::Packet(capture) => capture.head(),
            Receiver::Xdp(capture) => capture.head(),
        }
    }

    /// Takes the frame of which [`Receiver::head`] told. `None`: it cannot be read.
    #[inline]
    pub fn take(&mut self) -> Option<Packet<'_>> {
        match self {
            Receiver::Packet(capture) => capture.take(),
            Receiver::Xdp(capture) => capture.take(),
        }
    }

    /// What came up in [`Receiver::head`] and [`Receiver::take`] since the last call.
    pub fn take_notes(&mut self) -> CaptureNotes {
        match self {
            Receiver::Packet(capture) => capture.take_notes(),
            Receiver::Xdp(capture) => capture.take_notes(),
        }
    }

    /// Whether so many frames wait to be read that the kernel may soon have no room for more.
    #[inline]
    pub fn is_pressed(&self) -> bool {
        match self {
            Receiver::Packet(capture) => capture.is_pressed(),
            Receiver::Xdp(capture) => capture.is_pressed(),
        }
    }

    /// What it proves that there is no frame to be read: none that is older than this is still to come. The frames of AF_XDP
    /// have the time at which they are read.
    pub fn hand_over(&self) -> Duration {
        match self {
            Receiver::Packet(capture) => capture.hand_over(),
            Receiver::Xdp(_) => Duration::ZERO,
        }
    }

    /// What the kernel counted since the last call.
    ///
    /// # Errors
    /// [`Error::Interface`] if the system refuses.
    pub fn statistics(&mut self) -> Result<CaptureStatistics, Error> {
        match self {
            Receiver::Packet(capture) => capture.statistics(),
            Receiver::Xdp(capture) => capture.statistics(),
        }
    }

    /// The pending error, if there is one; clears it.
    pub fn take_error(&self) -> Option<io::Error> {
        match self {
            Receiver::Packet(capture) => capture.take_error(),
            Receiver::Xdp(capture) => capture.take_error(),
        }
    }

    /// Replaces or removes the kernel's filter; whether it has one now. There is none for AF_XDP.
    ///
    /// # Errors
    /// As [`PacketCapture::set_filter`].
    pub fn set_filter(&self, filter: Option<&[SockFilter]>) -> Result<bool, Error> {
        match self {
            Receiver::Packet(capture) => capture.set_filter(filter).map(|()| filter.is_some()),
            Receiver::Xdp(_) => Ok(false),
        }
    }

    /// Has frames carry a time that is the same for all sockets. Those of AF_XDP come to one socket only.
    ///
    /// # Errors
    /// As [`PacketCapture::set_stamped`].
    pub fn set_stamped(&self, on: bool) -> Result<(), Error> {
        match self {
            Receiver::Packet(capture) => capture.set_stamped(on),
            Receiver::Xdp(_) => Ok(()),
        }
    }

    /// Takes no frame from now on; those that wait can still be read. AF_XDP leaves them to the host.
    ///
    /// # Errors
    /// As [`PacketCapture::take_no_more`] and [`XdpCapture::take_no_more`].
    pub fn take_no_more(&self) -> Result<(), Error> {
        match self {
            Receiver::Packet(capture) => capture.take_no_more(),
            Receiver::Xdp(capture) => capture.take_no_more(),
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Receiver::Packet(capture) => capture.as_fd(),
            Receiver::Xdp(capture) => capture.as_fd(),
        }
    }
}

/// Frames that the kernel has handed over. Dropping it gives their memory back.
#[derive(Debug)]
pub enum Received<'a> {
    /// Of a packet socket.
    Block(Block<'a>),
    /// Of an AF_XDP socket.
    Xdp(XdpBurst<'a>),
}

impl Received<'_> {
    /// Frames in it, as the kernel says. [`Received::packets`] gives fewer if it is damaged.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Received::Block(block) => block.len(),
            Received::Xdp(burst) => burst.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the kernel has, or may have, dropped frames since the statistics were last read.
    #[inline]
    pub fn losing(&self) -> bool {
        match self {
            Received::Block(block) => block.losing(),
            Received::Xdp(burst) => burst.losing(),
        }
    }

    /// The frames, in the order of arrival.
    #[inline]
    pub fn packets(&mut self) -> ReceivedPackets<'_> {
        match self {
            Received::Block(block) => ReceivedPackets::Block(block.packets()),
            Received::Xdp(burst) => ReceivedPackets::Xdp(burst.packets()),
        }
    }
}

/// Walks the frames.
#[derive(Debug)]
pub enum ReceivedPackets<'a> {
    /// Of a packet socket.
    Block(Packets<'a>),
    /// Of an AF_XDP socket.
    Xdp(XdpPackets<'a>),
}

impl ReceivedPackets<'_> {
    /// Frames that the walk has not reached: after the end, those that cannot be read.
    pub fn left(&self) -> usize {
        match self {
            ReceivedPackets::Block(packets) => packets.left(),
            ReceivedPackets::Xdp(packets) => packets.left(),
        }
    }
}

impl<'a> Iterator for ReceivedPackets<'a> {
    type Item = Packet<'a>;

    #[inline]
    fn next(&mut self) -> Option<Packet<'a>> {
        match self {
            ReceivedPackets::Block(packets) => packets.next(),
            ReceivedPackets::Xdp(packets) => packets.next(),
        }
    }
}
