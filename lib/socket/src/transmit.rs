//! What every way of sending frames has in common.

use crate::Error;

/// Sends bursts of frames out of one interface.
///
/// Frames leave in the order given. A frame is three pieces that are sent one behind the other; any of
/// them may be empty.
pub trait Transmitter: std::fmt::Debug + Send {
    /// The name under which this way of sending is chosen and shown.
    fn name(&self) -> &'static str;

    /// Sends `frames` and says in `report`, which is cleared first, what became of each of them: after the
    /// call, also after a failed one, `report.total()` is exactly `frames.len()`.
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

/// What became of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The kernel took it.
    Sent,
    /// No room in a queue (ENOBUFS, EAGAIN).
    NoBuffer,
    /// Longer than the interface takes (EMSGSIZE).
    Oversize,
    /// Shorter than a link header (EINVAL).
    Malformed,
    /// The interface is down (ENETDOWN).
    LinkDown,
    /// The interface is gone (ENXIO, ENODEV).
    NoInterface,
    /// Refused for another reason.
    Other,
}

impl Fate {
    fn of(errno: i32) -> Fate {
        match errno {
            libc::ENOBUFS | libc::EAGAIN => Fate::NoBuffer,
            libc::EMSGSIZE => Fate::Oversize,
            libc::EINVAL => Fate::Malformed,
            libc::ENETDOWN => Fate::LinkDown,
            libc::ENXIO | libc::ENODEV => Fate::NoInterface,
            _ => Fate::Other,
        }
    }
}

/// What became of the frames of one call of [`Transmitter::send`]. Reuse it: it keeps its memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// The frames that were not sent, by their place in the call, ascending.
    exceptions: Vec<(u64, Fate)>,
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

    /// What became of the frame at this place in the call.
    pub fn fate(&self, index: usize) -> Fate {
        let place = |exception: &(u64, Fate)| exception.0;
        match self.exceptions.binary_search_by_key(&(index as u64), place) {
            Ok(at) => self
                .exceptions
                .get(at)
                .map_or(Fate::Other, |exception| exception.1),
            Err(_) => Fate::Sent,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        let exceptions = std::mem::take(&mut self.exceptions);
        *self = SendReport {
            exceptions,
            ..SendReport::default()
        };
        self.exceptions.clear();
    }

    /// Counts the next `frames`, which were refused with `errno`.
    pub(crate) fn refuse(&mut self, errno: i32, frames: u64) {
        let (fate, first) = (Fate::of(errno), self.total());
        self.exceptions
            .extend((first..first + frames).map(|place| (place, fate)));
        let counter = match fate {
            Fate::NoBuffer => &mut self.enobufs,
            Fate::Oversize => &mut self.oversize,
            Fate::Malformed => &mut self.malformed,
            Fate::LinkDown => &mut self.link_down,
            Fate::NoInterface => &mut self.no_interface,
            Fate::Sent | Fate::Other => {
                self.last_errno = errno;
                &mut self.other
            }
        };
        *counter += frames;
    }
}
