//! Several packet sockets that share the frames of one interface (PACKET_FANOUT of packet(7)).

use std::os::fd::{AsFd, BorrowedFd};

use crate::{CaptureOptions, Error, PacketCapture, SockFilter, sys};

const PACKET_FANOUT: i32 = 18;
/// By the flow: addresses and ports, the same for both directions. Fragments are not put together, that would change frames.
const PACKET_FANOUT_HASH: u32 = 0;
/// The kernel chooses a group that nobody has, Linux 4.12.
const FLAG_UNIQUEID: u32 = 0x2000;
/// What PACKET_IGNORE_OUTGOING says is said by the group, Linux 5.18.
const FLAG_IGNORE_OUTGOING: u32 = 0x4000;

impl PacketCapture {
    /// Opens `count` captures of the interface that share its frames: all frames of a flow, of both directions, come by the same one.
    /// Each has a buffer of the size given: blocks are handed over each millisecond, however few frames are in them, so it is a
    /// matter of time more than of frames.
    ///
    /// # Errors
    /// As [`PacketCapture::open`]; and [`Error::LinkDown`]: several captures need an interface that is up to begin with.
    pub fn open_group(
        ifindex: u32,
        options: &CaptureOptions,
        count: usize,
    ) -> Result<Vec<PacketCapture>, Error> {
        if count <= 1 {
            return PacketCapture::open(ifindex, options).map(|capture| vec![capture]);
        }
        // Until all of them are in the group, each would get all frames.
        let closed = CaptureOptions {
            filter: Some(SockFilter::NOTHING.to_vec()),
            ..options.clone()
        };
        let mut group = None;
        let captures: Result<Vec<PacketCapture>, Error> = (0..count)
            .map(|_| {
                let capture = PacketCapture::open(ifindex, &closed)?;
                let fd = capture.as_fd();
                if let Some(error) = capture.take_error()
                    && error.raw_os_error() == Some(libc::ENETDOWN)
                {
                    return Err(Error::LinkDown { ifindex });
                }
                group = Some(join(fd, group, options.ignore_outgoing).map_err(|source| {
                    Error::interface("share the interface among packet sockets", ifindex, source)
                })?);
                Ok(capture)
            })
            .collect();
        let captures = captures?;
        for capture in &captures {
            capture.set_filter(options.filter.as_deref())?;
        }
        Ok(captures)
    }
}

/// Joins a group, or founds one; what to join it by.
fn join(fd: BorrowedFd<'_>, group: Option<u32>, ignore_outgoing: bool) -> std::io::Result<u32> {
    let set = |value: &u32| sys::set_option(fd, libc::SOL_PACKET, PACKET_FANOUT, value);
    if let Some(group) = group {
        return set(&group).map(|()| group);
    }
    let flags = PACKET_FANOUT_HASH
        | if ignore_outgoing {
            FLAG_IGNORE_OUTGOING
        } else {
            0
        };
    let found = |flags: u32| set(&((flags | FLAG_UNIQUEID) << 16)).map(|()| flags);
    // A kernel that does not know the flag hands over outgoing frames, which say what they are.
    let flags = found(flags).or_else(|_| found(PACKET_FANOUT_HASH))?;
    let group = sys::get_option(fd, libc::SOL_PACKET, PACKET_FANOUT, 0_u32)?;
    Ok(flags << 16 | group & 0xffff)
}
