//! What became of frames, in figures.

use fluxcap_ring::Outcome;
use fluxcap_service::Counter;
use fluxcap_socket::Fate;
use std::collections::BTreeMap;

/// What the frames of a burst came to: how many ended in which way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcomes([u32; Outcome::ALL.len()]);

impl Outcomes {
    /// One frame more.
    #[inline]
    pub fn add(&mut self, outcome: Outcome) {
        self.0[outcome.index()] += 1;
    }

    /// How many.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome.index()].into()
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        let all = Outcome::ALL.iter().zip(&self.0);
        all.filter(|(_, n)| **n != 0)
            .map(|(outcome, n)| (*outcome, u64::from(*n)))
    }
}

/// What became of frames, for those who look on while one thread adds up.
#[derive(Debug, Default)]
pub struct OutcomeLive {
    /// Bytes that left.
    pub sent_bytes: Counter,
    outcomes: [Counter; Outcome::ALL.len()],
}

impl OutcomeLive {
    /// Adds `n` frames that ended as `outcome`.
    pub fn add(&self, outcome: Outcome, n: u64) {
        self.outcomes[outcome.index()].add(n);
    }

    /// Frames that ended as `outcome`.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()].get()
    }

    /// Frames that did not leave, by reason; only reasons that occurred.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let is_drop = |o: Outcome| o.is_terminal() && o != Outcome::Sent;
        let counts = Outcome::ALL.iter().map(|o| (*o, self.get(*o)));
        counts
            .filter(|(o, n)| is_drop(*o) && *n != 0)
            .map(|(outcome, n)| (outcome.as_str().to_owned(), n))
            .collect()
    }
}

/// What a frame's fate at an interface is called in the books.
pub fn outcome_of(fate: Fate) -> Outcome {
    match fate {
        Fate::Sent => Outcome::Sent,
        Fate::NoBuffer => Outcome::Enobufs,
        Fate::Oversize => Outcome::Oversize,
        Fate::Malformed => Outcome::Malformed,
        Fate::LinkDown => Outcome::LinkDown,
        Fate::NoInterface => Outcome::NoInterface,
        Fate::NoRoute => Outcome::NoRoute,
        Fate::Unreachable | Fate::Denied | Fate::Other => Outcome::Refused,
    }
}
