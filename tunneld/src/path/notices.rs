//! What routers and the far end say about the packets, and what follows from it.

use fluxcap_socket::{Error, IcmpReason, IcmpWatch};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long nothing is sent after a router has said that it knows no way.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a path MTU holds that a router has told: the way may be another one by then (RFC 1191, 6.3).
const MTU_LIFETIME: Duration = Duration::from_secs(600);

/// ICMP messages about the packets of a tunnel. Anybody can forge them: they only ever pause sending for a moment, or make packets
/// smaller.
#[derive(Debug, Default)]
pub(super) struct Notices {
    watches: Vec<IcmpWatch>,
    counts: BTreeMap<&'static str, u64>,
    /// When a router said that it knows no way, and which one.
    lost: Option<(Instant, IpAddr)>,
    /// The MTU that a router has told, and when.
    mtu: Option<(u32, Instant)>,
}

impl Notices {
    /// Watches for messages about packets to another far end. The counts go on.
    pub(super) fn watch(
        &mut self,
        remote: IpAddr,
        protocols: &[u8],
        port: Option<u16>,
    ) -> Result<(), Error> {
        (self.lost, self.mtu) = (None, None);
        self.watches.clear();
        let open = |protocol: &u8| IcmpWatch::open(remote, *protocol, port);
        let watches: Result<Vec<_>, Error> = protocols.iter().map(open).collect();
        self.watches = watches?;
        Ok(())
    }

    /// Reads what has come. True when that changes how packets are sent.
    pub(super) fn drain(&mut self) -> bool {
        let mut news = Vec::new();
        for watch in &mut self.watches {
            if let Err(error) = watch.drain(|event| news.push(event)) {
                tracing::debug!(%error, "cannot read ICMP messages");
            }
        }
        let mut changed = self.expire();
        for event in news {
            changed |= self.take(event.reason, event.from);
        }
        changed
    }

    fn take(&mut self, reason: IcmpReason, from: IpAddr) -> bool {
        *self.counts.entry(word(reason)).or_default() += 1;
        match reason {
            IcmpReason::NetOrHost => {
                self.lost = Some((Instant::now(), from));
                true
            }
            IcmpReason::TooBig(mtu) => {
                let news = self.mtu.is_none_or(|(known, _)| mtu < known);
                if news || self.mtu.is_some_and(|(known, _)| mtu == known) {
                    self.mtu = Some((mtu, Instant::now()));
                }
                news
            }
            // A receiver that only listens in, such as a sniffer, has its kernel say so while all is well.
            IcmpReason::Protocol | IcmpReason::Port | IcmpReason::Prohibited => false,
        }
    }

    fn expire(&mut self) -> bool {
        let paused = self.lost.is_some_and(|(at, _)| at.elapsed() >= PAUSE);
        if paused {
            self.lost = None;
        }
        let old = self.mtu.is_some_and(|(_, at)| at.elapsed() >= MTU_LIFETIME);
        if old {
            self.mtu = None;
        }
        paused || old
    }

    /// Who said a moment ago that there is no way.
    pub(super) fn lost_by(&self) -> Option<IpAddr> {
        self.lost.map(|(_, from)| from)
    }

    /// The longest IP packet that arrives, as far as routers have told.
    pub(super) fn mtu(&self) -> Option<u32> {
        self.mtu.map(|(mtu, _)| mtu)
    }

    /// How many messages there were of each kind.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter();
        counts.map(|(word, n)| ((*word).to_owned(), *n)).collect()
    }
}

fn word(reason: IcmpReason) -> &'static str {
    match reason {
        IcmpReason::NetOrHost => "host",
        IcmpReason::Protocol => "protocol",
        IcmpReason::Port => "port",
        IcmpReason::Prohibited => "prohibited",
        IcmpReason::TooBig(_) => "too_big",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn only_a_smaller_mtu_is_news() {
        let mut notices = Notices::default();
        assert!(notices.take(IcmpReason::TooBig(1400), ROUTER));
        assert!(!notices.take(IcmpReason::TooBig(1400), ROUTER));
        assert!(!notices.take(IcmpReason::TooBig(1450), ROUTER));
        assert!(notices.take(IcmpReason::TooBig(1300), ROUTER));
        assert_eq!(notices.mtu(), Some(1300));
        assert_eq!(notices.counts()["too_big"], 4);
    }

    #[test]
    fn a_closed_port_is_counted_and_changes_nothing() {
        let mut notices = Notices::default();
        assert!(!notices.take(IcmpReason::Port, ROUTER));
        assert!(!notices.take(IcmpReason::Protocol, ROUTER));
        assert_eq!((notices.lost_by(), notices.mtu()), (None, None));
        assert_eq!(notices.counts()["port"], 1);
    }

    #[test]
    fn a_router_without_a_way_stops_it_for_a_moment() {
        let mut notices = Notices::default();
        assert!(notices.take(IcmpReason::NetOrHost, ROUTER));
        assert_eq!(notices.lost_by(), Some(ROUTER));
        notices.lost = Some((Instant::now() - PAUSE, ROUTER));
        assert!(notices.drain());
        assert_eq!(notices.lost_by(), None);
    }
}
