//! What every way of sending frames has in common.

use crate::{Error, Origin};

/// Most interfaces that one transmitter sends to.
pub const MAX_OUTPUTS: usize = 12;

/// A frame, and where it is to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'f> {
    /// Its bytes from the destination MAC address on, in three pieces that are sent one behind the other; any
    /// of them may be empty.
    pub pieces: [&'f [u8]; 3],
    /// Bit i is set when it goes to the i-th of the transmitter's interfaces.
    pub outputs: u16,
}

impl Outgoing<'_> {
    /// Bytes of the frame.
    #[inline]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it goes to the i-th interface.
    #[inline]
    pub fn goes_to(&self, output: usize) -> bool {
        self.outputs & (1 << output) != 0
    }
}

/// Sends bursts of frames out of one or several interfaces.
///
/// At each interface frames leave in the order given.
pub trait Transmitter: std::fmt::Debug + Send {
    /// The name under which this way of sending is chosen and shown.
    fn name(&self) -> &'static str;

    /// Sends to these interfaces from now on, at most [`MAX_OUTPUTS`], in the network namespace of the calling
    /// thread. An interface that was there before is not disturbed by others that come and go. An index of 0 leaves a place
    /// free: several transmitters can share out the places of one list between them.
    ///
    /// # Errors
    /// When one of the interfaces cannot be sent to in this way; the error names it. The interfaces are then those from before.
    fn set_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), Error>;

    /// Sends `frames` and says in `reports` what became of each of them: the i-th report is about the i-th
    /// interface, and its `total()` is after the call exactly the number of frames that go there. Reports of free places are
    /// left alone, and so are frames that go to such places only.
    ///
    /// A frame that cannot be sent is counted by its reason and does not keep the others from being sent,
    /// and an interface that is down or gone does not keep frames from the others. The call may wait for room in a
    /// queue, up to 100 ms.
    fn send(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]);

    /// Has frames tell from now on which ring they are from, as far as this way of sending passes anybody who might copy them and the
    /// kernel allows it (CAP_NET_RAW, Linux 5.17).
    fn set_origin(&mut self, origin: Origin);

    /// Waits, not for long, until what was sent has left the queues of the interfaces and of their peers, as far as can be told: what is
    /// sent in another way from then on must not overtake it.
    fn settle_down(&mut self);

    /// The way that the frames of the last call took, where that is not always the same one.
    fn last_way(&self) -> &'static str {
        self.name()
    }

    /// What is worth knowing about how it serves its interfaces, for people; empty when there is nothing.
    fn mode(&self) -> &'static str {
        ""
    }

    /// The longest frame that this way of sending can carry, in bytes from the destination MAC address on.
    /// The MTU of the interface may allow less.
    fn max_frame(&self) -> usize;
}

/// The places of a list that have an interface, by bit.
pub(crate) fn places(ifindexes: &[u32]) -> u16 {
    let places = ifindexes.iter().take(MAX_OUTPUTS).enumerate();
    places.fold(0, |all, (place, ifindex)| {
        all | (u16::from(*ifindex != 0) << place)
    })
}

/// Clears the reports of the places given by bits.
pub(crate) fn clear(reports: &mut [SendReport], places: u16) {
    let reports = reports.iter_mut().take(MAX_OUTPUTS).enumerate();
    reports
        .filter(|(place, _)| places & (1 << place) != 0)
        .for_each(|(_, report)| report.clear());
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
    /// This way of sending does not reach the interface, or not any more. The frame did not leave, and neither did a later one,
    /// so that all of them can be sent in another way without loss, in order.
    Unreachable,
    /// There is no way to the destination (ENETUNREACH, EHOSTUNREACH).
    NoRoute,
    /// The host's firewall or policy does not let it out (EPERM, EACCES).
    Denied,
    /// Refused for another reason.
    Other,
}

impl Fate {
    pub(crate) fn of(errno: i32) -> Fate {
        match errno {
            libc::ENOBUFS | libc::EAGAIN => Fate::NoBuffer,
            libc::EMSGSIZE => Fate::Oversize,
            libc::EINVAL => Fate::Malformed,
            libc::ENETDOWN => Fate::LinkDown,
            libc::ENXIO | libc::ENODEV => Fate::NoInterface,
            libc::ENETUNREACH | libc::EHOSTUNREACH => Fate::NoRoute,
            libc::EPERM | libc::EACCES => Fate::Denied,
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
    /// Not sent, because this way of sending does not reach the interface: see [`Fate::Unreachable`].
    pub unreachable: u64,
    /// There is no way to the destination (ENETUNREACH, EHOSTUNREACH).
    pub no_route: u64,
    /// The host's firewall or policy does not let it out (EPERM, EACCES).
    pub denied: u64,
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
            + self.unreachable
            + self.no_route
            + self.denied
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

    /// Counts a frame that was sent.
    #[inline]
    pub(crate) fn add_sent(&mut self, bytes: u64) {
        self.sent += 1;
        self.sent_bytes += bytes;
    }

    /// Counts the frame at this place in the call, beyond all that were counted as not sent before, which was refused with `errno`.
    pub(crate) fn refuse(&mut self, index: usize, errno: i32) {
        let fate = Fate::of(errno);
        if fate == Fate::Other {
            self.last_errno = errno;
        }
        self.fail(index, fate);
    }

    /// The same with the fate itself.
    pub(crate) fn fail(&mut self, index: usize, fate: Fate) {
        let counter = match fate {
            Fate::NoBuffer => &mut self.enobufs,
            Fate::Oversize => &mut self.oversize,
            Fate::Malformed => &mut self.malformed,
            Fate::LinkDown => &mut self.link_down,
            Fate::NoInterface => &mut self.no_interface,
            Fate::Unreachable => &mut self.unreachable,
            Fate::NoRoute => &mut self.no_route,
            Fate::Denied => &mut self.denied,
            Fate::Sent | Fate::Other => &mut self.other,
        };
        *counter += 1;
        self.exceptions.push((index as u64, fate));
    }

    /// This report, with what became of its [`Fate::Unreachable`] frames when they were sent in another way, by a call in which
    /// each frame had the same place.
    pub fn with_retried(mut self, retried: SendReport) -> SendReport {
        self.exceptions
            .retain(|(_, fate)| *fate != Fate::Unreachable);
        self.exceptions.extend(retried.exceptions);
        SendReport {
            sent: self.sent + retried.sent,
            sent_bytes: self.sent_bytes + retried.sent_bytes,
            enobufs: self.enobufs + retried.enobufs,
            oversize: self.oversize + retried.oversize,
            malformed: self.malformed + retried.malformed,
            link_down: self.link_down + retried.link_down,
            no_interface: self.no_interface + retried.no_interface,
            unreachable: retried.unreachable,
            no_route: self.no_route + retried.no_route,
            denied: self.denied + retried.denied,
            other: self.other + retried.other,
            last_errno: retried.last_errno.max(self.last_errno),
            retries: self.retries + retried.retries,
            exceptions: self.exceptions,
        }
    }

    /// Whether the interface cannot be sent to at present: it is down, or gone.
    pub fn interrupted(&self) -> bool {
        self.link_down + self.no_interface > 0
    }
}
