//! What every way of sending frames has in common.

use crate::Error;

/// Sends bursts of frames out of one interface.
///
/// Frames leave in the order given. A frame is three pieces that are sent one behind the other; any of
/// them may be empty.
pub trait Transmitter: Send {
    /// The name under which this way of sending is chosen and shown.
    fn name(&self) -> &'static str;

    /// Sends `frames` and adds what became of each of them to `report`: after the call, also after a
    /// failed one, `report.total()` has grown by exactly `frames.len()`.
    ///
    /// A frame that cannot be sent is counted by its reason and does not keep the others from being sent.
    /// The call may wait for room in a queue, up to 100 ms.
    ///
    /// # Errors
    /// [`Error::LinkDown`] or [`Error::NoInterface`] when the interface is down or gone. The frames that were
    /// not sent are then counted under that reason.
    fn send(&mut self, frames: &[[&[u8]; 3]], report: &mut SendReport) -> Result<(), Error>;

    /// The longest frame that this way of sending can carry, in bytes from the destination MAC address on.
    /// The MTU of the interface may allow less.
    fn max_frame(&self) -> usize;
}

/// What became of the frames that were handed to a [`Transmitter`]. Counts add up over calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Frames that the kernel took.
    pub sent: u64,
    /// Bytes of these frames.
    pub sent_bytes: u64,
    /// No room in a queue of the interface or of its peer, also after retrying (ENOBUFS, EAGAIN).
    pub enobufs: u64,
    /// Longer than the interface takes (EMSGSIZE).
    pub oversize: u64,
    /// Shorter than a link header (EINVAL).
    pub malformed: u64,
    /// The interface is down (ENETDOWN).
    pub link_down: u64,
    /// The interface is gone (ENXIO, ENODEV).
    pub no_interface: u64,
    /// Refused for another reason.
    pub other: u64,
    /// The errno of the last frame in `other`; 0 if there was none.
    pub last_errno: i32,
    /// Times that a frame was tried again for want of room. Not a count of frames.
    pub retries: u64,
}

impl SendReport {
    /// All frames counted here.
    pub fn total(&self) -> u64 {
        self.sent + self.refused()
    }

    /// Frames that were not sent.
    pub fn refused(&self) -> u64 {
        self.enobufs
            + self.oversize
            + self.malformed
            + self.link_down
            + self.no_interface
            + self.other
    }

    /// Counts `frames` that were refused with `errno`.
    pub(crate) fn refuse(&mut self, errno: i32, frames: u64) {
        let counter = match errno {
            libc::ENOBUFS | libc::EAGAIN => &mut self.enobufs,
            libc::EMSGSIZE => &mut self.oversize,
            libc::EINVAL => &mut self.malformed,
            libc::ENETDOWN => &mut self.link_down,
            libc::ENXIO | libc::ENODEV => &mut self.no_interface,
            _ => {
                self.last_errno = errno;
                &mut self.other
            }
        };
        *counter += frames;
    }
}
