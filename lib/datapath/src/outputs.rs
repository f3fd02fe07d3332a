//! The interfaces of a sender, and the transmitters that serve them.

use crate::choice::{self, Backends, Io, Memory};
use crate::device::Device;
use crate::guard::LoopGuard;
use crate::loops::Edge;
use crate::output::Output;
use fluxcap_options::TransmitIo;
use fluxcap_ring::ReaderOutput;
use fluxcap_socket::{
    Error, FarEnd, Fate, LinkEvent, LinkWatch, MAX_OUTPUTS, Origin, Outgoing, SendReport,
};
use std::time::{Duration, Instant};

/// Time between two attempts to open an output that is there but cannot be opened.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two looks at how the other ends of outputs take frames: nobody tells when that changes.
const LOOK_FAR: Duration = Duration::from_secs(3);
/// Frames of a call below which live frames are not used, and a try of them tells nothing.
const MANY: usize = 16;
/// Time between two looks for loops that others may have made.
const LOOK_FOR_LOOPS: Duration = Duration::from_secs(5);
/// The same while an output is closed because of one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// All outputs of a sender. The place of an output in the list is its bit in [`Outgoing::outputs`].
#[derive(Debug)]
pub struct Outputs {
    wanted: TransmitIo,
    links: LinkWatch,
    list: Vec<Output>,
    memories: Vec<Memory>,
    backends: Backends,
    reports: [SendReport; MAX_OUTPUTS],
    tried: Instant,
    looked_far: Instant,
    /// Frames have gone out since then.
    busy: bool,
    guard: Option<LoopGuard>,
    guarded: Instant,
}

impl Outputs {
    /// Looks for `interfaces`, the first [`MAX_OUTPUTS`] of them. `wanted` is the way asked for; `qdisc_bypass` is for packet sockets.
    ///
    /// # Errors
    /// When interfaces cannot be watched.
    pub fn new(
        interfaces: &[String],
        wanted: TransmitIo,
        qdisc_bypass: bool,
    ) -> Result<Outputs, Error> {
        let mut outputs = Outputs {
            wanted,
            links: LinkWatch::open()?,
            list: interfaces
                .iter()
                .take(MAX_OUTPUTS)
                .map(|name| Output::new(name))
                .collect(),
            memories: vec![Memory::default(); interfaces.len().min(MAX_OUTPUTS)],
            backends: Backends::new(wanted, qdisc_bypass),
            reports: Default::default(),
            tried: Instant::now(),
            looked_far: Instant::now(),
            busy: false,
            guard: None,
            guarded: Instant::now(),
        };
        outputs.find();
        Ok(outputs)
    }

    /// Sends nothing from now on that would go round, and has frames tell from which ring they are.
    pub fn set_guard(&mut self, guard: LoopGuard) {
        self.backends.set_origin(guard.origin());
        self.guard = Some(guard);
        self.look_for_loops();
    }

    /// Has frames tell from which ring they are.
    pub fn set_origin(&mut self, origin: Origin) {
        self.backends.set_origin(origin);
    }

    /// What the rings are to note: the interfaces that are sent to, there or not.
    pub fn notes(&self) -> Vec<ReaderOutput> {
        let Some(guard) = &self.guard else {
            return Vec::new();
        };
        let sent = self.list.iter().filter(|output| output.looped.is_none());
        sent.map(|output| {
            let index = output.link.as_ref().map_or(0, |link| link.index);
            guard.note(&output.name, index)
        })
        .collect()
    }

    /// Looks for loops. True when an output is closed because of one now, or not any more.
    pub fn look_for_loops(&mut self) -> bool {
        self.guarded = Instant::now();
        let Some(guard) = &self.guard else {
            return false;
        };
        self.backends.set_origin(guard.origin());
        let mut changed = false;
        for place in 0..self.list.len() {
            changed |= self.look_for_loop(place);
        }
        changed
    }

    fn look_for_loop(&mut self, place: usize) -> bool {
        let (Some(guard), Some(output)) = (&self.guard, self.list.get_mut(place)) else {
            return false;
        };
        let Some(link) = &output.link else {
            return output.looped.take().is_some();
        };
        let edge = Edge::output(&output.name, link.index);
        let looped = guard.look(edge).map(|looped| {
            format!(
                "{looped}; send to another interface, or say --allow-loop if nothing comes back"
            )
        });
        if looped == output.looped {
            return false;
        }
        if let Some(reason) = &looped {
            tracing::warn!(interface = %output.name, %reason, "nothing is sent");
        }
        output.looped = looped;
        self.choose(place);
        true
    }

    /// The outputs, in the order given.
    pub fn list(&self) -> &[Output] {
        &self.list
    }

    /// What became of the frames of the last [`Outputs::send`], for each output.
    pub fn reports(&self) -> &[SendReport] {
        &self.reports
    }

    /// Sends frames to the outputs that they are for, each of which must be open. False when one of them turned out to be down or gone.
    ///
    /// An output that takes no live frames, or not any more, gets them in another way, unless they were asked for by name.
    pub fn send(&mut self, frames: &mut [Outgoing<'_>]) -> bool {
        self.retry(frames);
        for backend in self.backends.in_use() {
            backend.send(frames, &mut self.reports);
        }
        for place in 0..self.list.len() {
            if self.reports[place].unreachable > 0 && self.list[place].io == Some(Io::Live) {
                self.send_otherwise(frames, place);
            }
        }
        self.note_ways();
        let mut served = self.reports.iter().take(self.list.len());
        !served.any(SendReport::interrupted)
    }

    /// Tries live frames again where it is time to, with frames that would go so.
    fn retry(&mut self, frames: &[Outgoing<'_>]) {
        for place in 0..self.list.len() {
            let due = self.wanted == TransmitIo::Auto && self.memories[place].retry_is_due();
            let many = || {
                frames
                    .iter()
                    .filter(|frame| frame.goes_to(place))
                    .nth(MANY - 1)
            };
            if due && many().is_some() {
                self.memories[place].retry();
                self.choose(place);
            }
        }
    }

    /// Notes which way the frames of the last call took.
    fn note_ways(&mut self) {
        for (place, output) in self.list.iter_mut().enumerate() {
            let (Some(io), report) = (output.io, &self.reports[place]) else {
                continue;
            };
            if report.sent == 0 {
                continue;
            }
            self.busy = true;
            let way = self.backends.get(io).map(|backend| backend.last_way());
            output.took = way;
            if io == Io::Live && way == Some(io.as_str()) && report.unreachable == 0 {
                (output.refused, self.memories[place]) = (false, Memory::default());
            }
        }
    }

    /// Has the output at a place be another interface from now on. Its counters go on.
    pub fn set_interface(&mut self, place: usize, name: &str) {
        let Some(output) = self.list.get_mut(place) else {
            return;
        };
        let live = output.live.clone();
        *output = Output {
            live,
            ..Output::new(name)
        };
        self.backends.release(place);
        self.memories[place] = Memory::default();
        self.find();
    }

    /// Has frames go to these interfaces from now on, the first [`MAX_OUTPUTS`] of them. Those that stay keep their way and their counters.
    /// The list need not be in this order: an interface that stays keeps its place if it can.
    pub fn set_interfaces(&mut self, names: &[String]) {
        let names = &names[..names.len().min(MAX_OUTPUTS)];
        // An interface that has to move is opened anew, and must not be overtaken by what is still in its queue.
        self.settle_down();
        let mut place = 0;
        while let Some(output) = self.list.get(place) {
            if names.contains(&output.name) {
                place += 1;
                continue;
            }
            let known = |name: &&String| self.list.iter().any(|output| output.name == **name);
            if let Some(name) = names.iter().find(|name| !known(name)) {
                self.backends.release(place);
                self.list[place] = Output::new(name);
                self.memories[place] = Memory::default();
                place += 1;
            } else {
                // The last one moves here, and is asked again how it is served best.
                self.backends.release(self.list.len() - 1);
                self.backends.release(place);
                self.list.swap_remove(place);
                self.memories.swap_remove(place);
                if let Some(moved) = self.list.get_mut(place) {
                    (moved.io, moved.chosen_for) = (None, None);
                }
            }
        }
        for name in names {
            if !self.list.iter().any(|output| output.name == *name) {
                self.list.push(Output::new(name));
                self.memories.push(Memory::default());
            }
        }
        self.find();
    }

    /// Waits, not for long, until what was sent has left all queues, as far as can be told: what is sent in another way from then on
    /// must not overtake it.
    pub fn settle_down(&mut self) {
        self.backends
            .in_use()
            .for_each(|backend| backend.settle_down());
    }

    /// Sends what did not reach an output by live frames: the last of the frames that it was to get, so order is kept.
    #[cold]
    fn send_otherwise(&mut self, frames: &mut [Outgoing<'_>], place: usize) {
        let news = self.memories[place].bounce();
        if self.wanted != TransmitIo::Auto {
            self.list[place].refused = true;
            return;
        }
        let report = std::mem::take(&mut self.reports[place]);
        let bit = 1 << place;
        let mut outputs = Vec::with_capacity(frames.len());
        for (at, frame) in frames.iter_mut().enumerate() {
            outputs.push(frame.outputs);
            frame.outputs &= bit;
            if frame.outputs != 0 && report.fate(at) != Fate::Unreachable {
                frame.outputs = 0;
            }
        }
        if news {
            tracing::warn!(interface = %self.list[place].name, "the other end takes no live frames (any more)");
        }
        self.choose(place);
        if let Some(backend) = self.list[place].io.and_then(|io| self.backends.get(io)) {
            let mut reports: [SendReport; MAX_OUTPUTS] = Default::default();
            backend.send(frames, &mut reports);
            self.reports[place] = report.with_retried(std::mem::take(&mut reports[place]));
        } else {
            self.reports[place] = report;
        }
        for (frame, outputs) in frames.iter_mut().zip(outputs) {
            frame.outputs = outputs;
        }
    }

    /// Takes note of links that came, went or changed, and tries again what could not be opened. True when something changed.
    pub fn follow(&mut self) -> bool {
        let (mut changed, mut lost_events) = (false, false);
        let list = &mut self.list;
        let drained = self.links.drain(|event| match event {
            LinkEvent::Changed(seen) => {
                for output in list.iter_mut() {
                    match &mut output.link {
                        Some(known) if known.index == seen.index => {
                            (*known, changed) = (seen.clone(), true);
                        }
                        Some(known) if Device::is_replaced(&output.name, known.index, &seen) => {
                            lost_events = true;
                        }
                        None if seen.is_called(&output.name) => lost_events = true,
                        _ => {}
                    }
                }
            }
            LinkEvent::Removed { index, .. } => {
                let gone = |output: &&mut Output| {
                    let link = output.link.as_ref();
                    link.is_some_and(|known| known.index == index)
                };
                for output in list.iter_mut().filter(gone) {
                    (output.link, changed) = (None, true);
                }
            }
            LinkEvent::Overrun => lost_events = true,
        });
        let idle = self.list.iter().any(|output| output.reason().is_some());
        if lost_events || drained.is_err() || (idle && self.tried.elapsed() >= RETRY) {
            self.find();
            return true;
        }
        let due = self.guarded.elapsed() >= LOOK_FOR_LOOPS;
        let looped = due && self.look_for_loops();
        self.settle() || changed || looped
    }

    /// Looks for the interfaces among all that there are.
    fn find(&mut self) {
        self.tried = Instant::now();
        let links = match self.links.links() {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "cannot list interfaces"),
        };
        for output in &mut self.list {
            output.link = output.device.find(&output.name, &links);
        }
        self.settle();
    }

    /// Chooses a way for each output that has another interface than before, or none that works, or for which a better one
    /// may work by now. True when something was chosen.
    fn settle(&mut self) -> bool {
        let mut chosen = false;
        let news = self.backends.collect();
        let far = self.looked_far.elapsed() >= LOOK_FAR;
        let busy = self.busy;
        if far {
            (self.looked_far, self.busy) = (Instant::now(), false);
        }
        for place in 0..self.list.len() {
            let output = &self.list[place];
            let turned = far && has_turned(output, busy);
            if !output.is_settled() || turned {
                if output.waits_for_a_way_out() && self.guarded.elapsed() < LOOK_AGAIN {
                    continue;
                }
                self.guarded = Instant::now();
                self.memories[place] = Memory::default();
                self.look_for_loop(place);
            } else if !(news && output.provisional) {
                continue;
            }
            self.choose(place);
            chosen = true;
        }
        chosen
    }

    fn choose(&mut self, place: usize) {
        let memory = self.memories[place];
        choice::choose(
            &mut self.list[place],
            place,
            self.wanted,
            memory,
            &mut self.backends,
            &mut self.links,
        );
    }
}

/// Whether the other end of an output takes frames in another way than when the way to it was chosen. The kernel's answer may take its
/// time, so it is not asked while frames go out and tell by themselves.
fn has_turned(output: &Output, busy: bool) -> bool {
    let known_by_frames = busy && output.far_end == Some(FarEnd::Program);
    let link = output.link.as_ref().filter(|_| !known_by_frames);
    link.is_some_and(|link| choice::far_end(link) != output.far_end)
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn interfaces_that_stay_keep_their_counters() {
        // None of them exists, which is no matter here.
        let mut outputs = Outputs::new(&names("x/a x/b x/c"), TransmitIo::Sendmmsg, false).unwrap();
        for (at, output) in outputs.list().iter().enumerate() {
            output.live.sent_bytes.add(at as u64 + 1);
        }
        for (wanted, bytes) in [
            (
                "x/a x/b x/c x/d",
                [("x/a", 1), ("x/b", 2), ("x/c", 3), ("x/d", 0)].as_slice(),
            ),
            ("x/c x/b", &[("x/c", 3), ("x/b", 2)]),
            ("x/b x/e", &[("x/b", 2), ("x/e", 0)]),
            ("x/f", &[("x/f", 0)]),
        ] {
            outputs.set_interfaces(&names(wanted));
            let mut found: Vec<(&str, u64)> = outputs
                .list()
                .iter()
                .map(|output| (output.name(), output.live.sent_bytes.get()))
                .collect();
            let mut expected = bytes.to_vec();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{wanted}");
            assert_eq!(outputs.memories.len(), outputs.list.len());
        }
    }
}
