//! What a mirror into a ring does so that no frame goes round. Its programs refuse what that ring was sent with; the mirror waits while
//! frames would come back in another way.

use std::time::{Duration, Instant};

use fluxcap_datapath::SourceGuard;
use fluxcap_proto::v1::MirrorSpec;
use fluxcap_ring::RingDir;
use fluxcap_service::Refusal;
use fluxcap_socket::Link;

use crate::error::Error;
use crate::events::{Events, holder};

/// Time between two looks for loops that others may have made.
const LOOK: Duration = Duration::from_secs(5);
/// The same while the mirror waits because of one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What keeps frames from going round; none for mirrors into no ring.
pub(crate) fn guard(dir: &RingDir, mirror: &str, spec: &MirrorSpec) -> Option<SourceGuard> {
    (!spec.ring.is_empty()).then(|| SourceGuard {
        dir: dir.clone(),
        ring: spec.ring.clone(),
        holder: holder(mirror),
        interface: spec.interface.clone(),
        direction: spec.direction(),
        allowed: spec.allow_loop,
    })
}

fn look(guard: &SourceGuard, ifindex: u32) -> Option<String> {
    let looped = guard.look(ifindex)?;
    Some(format!(
        "{looped}; copy into another ring, or say --allow-loop if nothing comes back"
    ))
}

/// Refuses a mirror by which frames would go round.
pub(crate) fn admit(dir: &RingDir, mirror: &str, spec: &MirrorSpec) -> Result<(), Refusal> {
    match guard(dir, mirror, spec).and_then(|guard| look(&guard, 0)) {
        Some(looped) => Err(Refusal::Precondition(looped)),
        None => Ok(()),
    }
}

/// Looks for loops through a running mirror.
#[derive(Debug, Default)]
pub(crate) struct LoopWatch {
    /// What was looked at last: the interface, the generation of the spec, and whether others could see the mirror by then.
    looked: Option<(u32, u64, bool)>,
    at: Option<Instant>,
    found: Option<String>,
}

impl LoopWatch {
    /// Has others see the mirror from its ring, unless it waits.
    pub(crate) fn note(&self, guard: Option<SourceGuard>, link: &Link, events: &mut Events) {
        let guard = guard.filter(|_| self.found.is_none());
        events.set_place(guard.map(|guard| guard.place(link.index)));
    }

    /// Has others see the mirror, unless frames would go round.
    ///
    /// # Errors
    /// They would: nothing may be copied.
    pub(crate) fn check(
        &mut self,
        guard: Option<SourceGuard>,
        link: &Link,
        generation: u64,
        events: Option<&mut Events>,
    ) -> Result<(), Error> {
        let Some(guard) = guard else { return Ok(()) };
        let pause = if self.found.is_some() {
            LOOK_AGAIN
        } else {
            LOOK
        };
        let noted = events.as_ref().is_some_and(|events| events.is_noted());
        let key = Some((link.index, generation, noted));
        if key != self.looked || self.at.is_none_or(|at| at.elapsed() >= pause) {
            (self.looked, self.at) = (key, Some(Instant::now()));
            self.found = look(&guard, link.index);
        }
        if let Some(events) = events {
            self.note(Some(guard), link, events);
        }
        match &self.found {
            Some(found) => Err(Error::Unsuitable(found.clone())),
            None => Ok(()),
        }
    }
}
