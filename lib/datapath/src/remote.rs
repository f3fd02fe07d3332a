//! The address of the far end. A name is asked for on a thread of its own: that can take half a minute.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// A name that is known is asked for again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// The same while it is not known, or nothing gets to the address.
const AGAIN_SOON: Duration = Duration::from_secs(2);

/// How a name is asked for. Tests have another way than the system's.
type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

/// The far end of a tunnel.
#[derive(Debug)]
pub struct Remote {
    host: String,
    /// Whether it is a name, and not an address.
    named: bool,
    /// Only addresses of this family are of use; none: all are.
    v6: Option<bool>,
    address: Option<IpAddr>,
    asked: Option<Instant>,
    answer: Option<Receiver<io::Result<Vec<IpAddr>>>>,
    problem: String,
    lookup: Lookup,
}

impl Remote {
    /// A host, by name or address. `v6` is the family that it has to be of, if that matters.
    pub fn new(host: &str, v6: Option<bool>) -> Remote {
        Remote::with(host, v6, system)
    }

    fn with(host: &str, v6: Option<bool>, lookup: Lookup) -> Remote {
        let address = host.parse().ok();
        Remote {
            host: host.to_owned(),
            named: address.is_none(),
            v6,
            address,
            asked: None,
            answer: None,
            problem: format!("asking for the address of {host}"),
            lookup,
        }
    }

    /// Its address, while that is known. It stays known when a later question is not answered.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Why it is not known.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// Asks when that is due, earlier when sending is `failing`, and takes an answer that has come. True when the address is another one.
    pub fn follow(&mut self, failing: bool) -> bool {
        if !self.named {
            return false;
        }
        if let Some(answer) = &self.answer {
            match answer.try_recv() {
                Err(TryRecvError::Empty) => return false,
                Ok(found) => {
                    self.answer = None;
                    return self.take(found, failing);
                }
                Err(TryRecvError::Disconnected) => self.answer = None,
            }
        }
        let again = if failing || self.address.is_none() {
            AGAIN_SOON
        } else {
            AGAIN
        };
        if self.asked.is_none_or(|asked| asked.elapsed() >= again) {
            self.ask();
        }
        false
    }

    fn ask(&mut self) {
        self.asked = Some(Instant::now());
        let (sender, receiver) = channel();
        let (host, lookup) = (self.host.clone(), self.lookup);
        let ask = move || {
            // Nobody waits any more when the tunnel has ended.
            let _ = sender.send(lookup(&host));
        };
        let thread = std::thread::Builder::new().name("resolve".to_owned());
        match thread.spawn(ask) {
            Ok(_) => self.answer = Some(receiver),
            Err(error) => self.problem = format!("cannot ask for {}: {error}", self.host),
        }
    }

    fn take(&mut self, found: io::Result<Vec<IpAddr>>, failing: bool) -> bool {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.problem = format!("cannot resolve {}: {error}", self.host);
                return false;
            }
        };
        let fits = |address: &&IpAddr| self.v6.is_none_or(|v6| address.is_ipv6() == v6);
        let mut fitting = found.iter().filter(fits).copied();
        let known = self.address.filter(|known| found.contains(known));
        // Names with several addresses come in any order: only one that does not work is left for another.
        let new = match known {
            Some(known) if !failing => Some(known),
            Some(known) => fitting.find(|address| *address != known).or(Some(known)),
            None => fitting.next(),
        };
        let Some(new) = new else {
            let family = if self.v6 == Some(true) {
                "IPv6"
            } else {
                "IPv4"
            };
            self.problem = format!("{} has no {family} address", self.host);
            return false;
        };
        let changed = self.address != Some(new);
        if changed {
            tracing::info!(host = %self.host, address = %new, "resolved the far end of a tunnel");
        }
        self.address = Some(new);
        changed
    }
}

/// getaddrinfo(3).
fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    let found = (host, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn follow_until(remote: &mut Remote, failing: bool, done: impl Fn(&Remote) -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        while !done(remote) {
            assert!(Instant::now() < end, "no answer: {remote:?}");
            // As if time had passed.
            if remote.answer.is_none() {
                remote.asked = None;
            }
            remote.follow(failing);
            std::thread::yield_now();
        }
    }

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn an_address_is_known_at_once_and_never_asked_for() {
        let mut remote = Remote::with("192.0.2.9", None, |_| panic!("asked"));
        assert!(!remote.follow(true));
        assert_eq!(remote.address(), address("192.0.2.9"));
    }

    #[test]
    fn a_name_is_asked_for_again_and_a_failure_keeps_the_address() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        fn lookup(_: &str) -> io::Result<Vec<IpAddr>> {
            match CALLS.fetch_add(1, Relaxed) {
                0 => Err(io::Error::other("no such host")),
                1 => Ok(vec![IpAddr::from([192, 0, 2, 1])]),
                2 => Err(io::Error::other("no answer")),
                _ => Ok(vec![IpAddr::from([192, 0, 2, 2])]),
            }
        }
        let mut remote = Remote::with("far", None, lookup);
        assert_eq!(remote.address(), None);
        follow_until(&mut remote, false, |r| r.problem().contains("no such host"));
        follow_until(&mut remote, false, |r| r.address().is_some());
        assert_eq!(remote.address(), address("192.0.2.1"));
        follow_until(&mut remote, false, |r| r.problem().contains("no answer"));
        assert_eq!(remote.address(), address("192.0.2.1"));
        follow_until(&mut remote, false, |r| r.address() == address("192.0.2.2"));
    }

    #[test]
    fn of_several_addresses_one_is_kept_while_it_works() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        fn lookup(_: &str) -> io::Result<Vec<IpAddr>> {
            let mut both = vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
            both.rotate_left(CALLS.fetch_add(1, Relaxed) % 2);
            Ok(both)
        }
        let mut remote = Remote::with("far", None, lookup);
        follow_until(&mut remote, false, |r| r.address().is_some());
        let first = remote.address();
        for calls in 2..6 {
            follow_until(&mut remote, false, |r| {
                CALLS.load(Relaxed) >= calls && r.answer.is_none()
            });
            assert_eq!(remote.address(), first);
        }
        follow_until(&mut remote, true, |r| r.address() != first);
    }

    #[test]
    fn addresses_of_the_wrong_family_are_of_no_use() {
        let lookup: Lookup = |_| Ok(vec![IpAddr::from([192, 0, 2, 1])]);
        let mut remote = Remote::with("far", Some(true), lookup);
        follow_until(&mut remote, false, |r| r.problem().contains("no IPv6"));
        assert_eq!(remote.address(), None);
    }
}
