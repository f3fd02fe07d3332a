//! What went past an interface while nobody captured: the interface counts, too, and what it has counted beyond what the ring's
//! books know was missed. Where that cannot be known, the time is noted instead.

use crate::datapath::Wanted;
use fluxcap_ring::SourceCounters;
use fluxcap_service::realtime_ns;
use fluxcap_socket::Link;

/// Which counter of an interface counts the frames that a socket for this direction has.
pub(crate) fn counter(link: &Link, wanted: Wanted) -> u64 {
    let arriving = u64::from(wanted == Wanted::In || link.loopback);
    arriving << 32 | u64::from(link.index)
}

/// What that counter says. A socket has what the host sends before the driver does, also when that drops it.
pub(crate) fn passed(link: &Link, wanted: Wanted) -> u64 {
    match wanted {
        Wanted::In => link.rx_packets,
        _ if link.loopback => link.rx_packets,
        _ => link
            .rx_packets
            .wrapping_add(link.tx_packets)
            .wrapping_add(link.tx_dropped),
    }
}

/// All frames of an interface that the ring's counters know of.
pub(crate) fn accounted(source: &SourceCounters) -> u64 {
    source
        .received()
        .wrapping_add(source.kernel_drops())
        .wrapping_add(source.missed())
}

/// Since when an interface is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Since {
    /// Others were there before, until now.
    Always,
    /// Not between this time, in nanoseconds since 1970, and now; 0: never before.
    Time(u64),
}

/// What is known at the instant when a capture of an interface begins.
#[derive(Debug)]
pub(crate) struct Missed {
    /// See [`counter`].
    pub(crate) counter: u64,
    /// See [`passed`].
    pub(crate) passed: u64,
    /// Frames that the books know of, with those that wait in the kernel.
    pub(crate) known: u64,
    /// These.
    pub(crate) waiting: u64,
    /// Until when others captured it.
    pub(crate) watched: Since,
    /// What the counter said when this interface was seen first, while another one of its name was captured before.
    pub(crate) sighted: Option<u64>,
}

impl Missed {
    /// Enters into the books what was missed, or for how long nobody knows, and what is to be compared with the next time.
    pub(crate) fn enter(&self, source: &SourceCounters) {
        let now = realtime_ns();
        let missed = match (self.watched, self.missed(source)) {
            (Since::Always | Since::Time(0), _) => 0,
            (Since::Time(_), Some(missed)) => missed,
            (Since::Time(since), None) => {
                source.add_unwatched(now.saturating_sub(since));
                0
            }
        };
        source.add_missed(missed);
        source.set_watched(now);
        let known = self.known.wrapping_add(missed);
        source.set_interface_count(self.counter, self.passed.wrapping_sub(known));
    }

    /// What was missed, if that can be known.
    fn missed(&self, source: &SourceCounters) -> Option<u64> {
        let (counter, base) = source.interface_count();
        // A counter that went backwards belongs to an interface that was made anew.
        let plausible = |missed: &u64| *missed <= u64::MAX / 2;
        let same = (counter == self.counter)
            .then(|| self.passed.wrapping_sub(self.known).wrapping_sub(base))
            .filter(plausible);
        let since_first = |first| self.passed.wrapping_sub(first).wrapping_sub(self.waiting);
        same.or_else(|| self.sighted.map(since_first).filter(plausible))
    }
}
