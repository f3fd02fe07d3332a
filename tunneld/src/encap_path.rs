//! The data path of a tunnel that sends: frames from the rings -> edits -> outer packets -> one burst to the path -> an outcome for
//! each frame. Nothing here logs or locks, and nothing is allocated once the buffers have grown to hold a burst. A frame is copied
//! once, from its private copy behind its headers.

use crate::path::{LINK_HEADER, Path, Way};
use crate::stats::SendLive;
use fluxcap_datapath::{Feed, MAX_LANES, Outcomes, Pick, outcome_of, recycle};
use fluxcap_headers::tunnel::{Direction, Encap, Fragmenter, FrameFacts, Skip};
use fluxcap_headers::{Edited, Edits, WireFrame, flow_hash};
use fluxcap_proto::v1::MtuPolicy;
use fluxcap_ring::{Frame, Outcome};
use fluxcap_socket::{Fate, Outgoing, SendReport};
use std::ops::Range;

/// Turns frames into outer packets.
#[derive(Debug)]
pub(crate) struct Packer {
    /// What is changed before.
    pub(crate) edits: Edits,
    /// None while the addresses of the outer packets are not known.
    pub(crate) encap: Option<Encap>,
    /// For packets that are longer than the path takes.
    pub(crate) fragmenter: Fragmenter,
    /// What becomes of these.
    pub(crate) policy: MtuPolicy,
}

/// Memory for bursts, used over and over.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Packets, each behind room for an Ethernet header.
    arena: Vec<u8>,
    /// Where in the arena they are.
    packets: Vec<Range<usize>>,
    entries: Vec<Entry>,
    outgoing: Vec<Outgoing<'static>>,
    /// A packet that is to be cut.
    long: Vec<u8>,
}

/// A frame in the shape of packets.
#[derive(Debug)]
struct Entry {
    feed: usize,
    /// Bytes of the outer packet, before it was cut.
    bytes: usize,
    /// Several when it was cut.
    packets: Range<usize>,
}

/// What the packets of a burst have in common.
struct Course {
    header: [u8; LINK_HEADER],
    mtu: usize,
    closed: Option<Outcome>,
}

/// Edits, encapsulates and sends the picked frames, in order, and settles what became of each; but for the one of [`Way::Probe`], whose
/// feed is returned: the path knows later.
pub(crate) fn send(
    picks: &[Pick],
    feeds: &mut [Feed],
    packer: &mut Packer,
    path: &mut Path,
    way: Way,
    buffers: &mut Buffers,
    live: &SendLive,
) -> Option<usize> {
    let mut outcomes = [Outcomes::default(); MAX_LANES];
    let course = Course {
        header: path.link_header(packer.encap.as_ref().map_or(0, Encap::ether_type)),
        mtu: path.mtu(),
        closed: match way {
            Way::Closed(outcome) => Some(outcome),
            _ => None,
        },
    };
    for pick in picks {
        let tally = &mut outcomes[pick.feed];
        if let Err(outcome) = packer.pack(pick, feeds, &course, buffers, tally) {
            tally.add(outcome);
        }
    }
    let mut unknown = None;
    if !buffers.entries.is_empty() {
        let from = if way == Way::Link { 0 } else { LINK_HEADER };
        let mut outgoing: Vec<Outgoing<'_>> = std::mem::take(&mut buffers.outgoing);
        outgoing.extend(buffers.packets.iter().map(|place| Outgoing {
            pieces: [&buffers.arena[place.start + from..place.end], &[], &[]],
            outputs: 1,
        }));
        let report = path.send(way, &mut outgoing);
        unknown = count(&buffers.entries, report, way, &mut outcomes, live);
        buffers.outgoing = recycle(outgoing);
    }
    buffers.clear();
    settle(picks, feeds, &outcomes, live);
    unknown
}

impl Packer {
    /// Puts one frame into the burst; or says how it ended.
    fn pack(
        &mut self,
        pick: &Pick,
        feeds: &[Feed],
        course: &Course,
        buffers: &mut Buffers,
        tally: &mut Outcomes,
    ) -> Result<(), Outcome> {
        let feed = feeds.get(pick.feed);
        let frame = feed
            .and_then(|feed| feed.frame(pick.frame))
            .ok_or(Outcome::Other)?;
        let whole = WireFrame::new(frame.data, frame.meta.wire_len);
        let edited = match self.edits.apply(whole) {
            Edited::Keep(frame) => frame,
            Edited::Filtered => return Err(Outcome::Filtered),
            Edited::SampledOut => return Err(Outcome::SampledOut),
            Edited::Malformed => return Err(Outcome::Malformed),
        };
        if let Some(outcome) = course.closed {
            return Err(outcome);
        }
        let encap = self.encap.as_mut().ok_or(Outcome::NoRoute)?;
        if encap.is_own(&whole) {
            return Err(Outcome::LoopGuard);
        }
        let limit = match self.policy {
            MtuPolicy::Truncate => course.mtu,
            _ => usize::MAX,
        };
        let start = buffers.arena.len();
        buffers.arena.extend_from_slice(&course.header);
        let facts = facts(&frame, &edited, encap);
        let done = encap.encapsulate(&edited, &facts, limit, &mut buffers.arena);
        let done = done.map_err(|skip| {
            buffers.arena.truncate(start);
            outcome_of_skip(skip)
        })?;
        if done.truncated {
            tally.add(Outcome::Truncated);
        }
        self.place(pick.feed, start, course, buffers)
    }

    /// Enters the packet that has just been appended to the arena, in pieces if need be.
    fn place(
        &mut self,
        feed: usize,
        start: usize,
        course: &Course,
        buffers: &mut Buffers,
    ) -> Result<(), Outcome> {
        let first = buffers.packets.len();
        let bytes = buffers.arena.len() - start - LINK_HEADER;
        if bytes <= course.mtu {
            buffers.packets.push(start..buffers.arena.len());
        } else if matches!(self.policy, MtuPolicy::Drop | MtuPolicy::Truncate) {
            buffers.arena.truncate(start);
            return Err(Outcome::Oversize);
        } else {
            buffers.long.clear();
            let packet = &buffers.arena[start + LINK_HEADER..];
            buffers.long.extend_from_slice(packet);
            buffers.arena.truncate(start);
            let (out, pieces) = (&mut buffers.arena, &mut buffers.packets);
            self.fragmenter
                .fragment(&buffers.long, course.mtu, &course.header, out, pieces)
                .map_err(outcome_of_skip)?;
        }
        buffers.entries.push(Entry {
            feed,
            bytes,
            packets: first..buffers.packets.len(),
        });
        Ok(())
    }
}

impl Buffers {
    fn clear(&mut self) {
        self.arena.clear();
        self.packets.clear();
        self.entries.clear();
    }
}

/// What the encoder wants to know of a frame.
fn facts(frame: &Frame<'_>, edited: &WireFrame<'_>, encap: &Encap) -> FrameFacts {
    FrameFacts {
        flow_hash: match frame.meta.flow_hash {
            0 if encap.uses_flow() => flow_hash(edited),
            known => known,
        },
        timestamp_ns: frame.meta.timestamp_ns,
        direction: Some(match frame.meta.direction {
            fluxcap_ring::Direction::In => Direction::Ingress,
            fluxcap_ring::Direction::Out => Direction::Egress,
        }),
    }
}

/// Counts what became of the frames that were sent. A frame that was cut has left when all of its pieces have.
fn count(
    entries: &[Entry],
    report: &SendReport,
    way: Way,
    outcomes: &mut [Outcomes; MAX_LANES],
    live: &SendLive,
) -> Option<usize> {
    let (mut bytes, mut fragmented, mut fragments) = (0, 0, 0);
    let mut unknown = None;
    let clean = report.refused() == 0;
    for entry in entries {
        let refused = || {
            entry
                .packets
                .clone()
                .find_map(|at| refusal(report.fate(at)))
        };
        match if clean { None } else { refused() } {
            Some(outcome) => outcomes[entry.feed].add(outcome),
            None => {
                bytes += entry.bytes as u64;
                if entry.packets.len() > 1 {
                    fragmented += 1;
                    fragments += entry.packets.len() as u64;
                }
                if way == Way::Probe {
                    unknown = Some(entry.feed);
                } else {
                    outcomes[entry.feed].add(Outcome::Sent);
                }
            }
        }
    }
    live.frames.sent_bytes.add(bytes);
    live.fragmented.add(fragmented);
    live.fragments.add(fragments);
    unknown
}

/// What a fate other than "sent" is called.
fn refusal(fate: Fate) -> Option<Outcome> {
    Some(outcome_of(fate)).filter(|outcome| *outcome != Outcome::Sent)
}

/// What a frame that cannot be carried is called.
fn outcome_of_skip(skip: Skip) -> Outcome {
    match skip {
        Skip::NotIp => Outcome::NotIp,
        Skip::Malformed => Outcome::Malformed,
        Skip::TooLong => Outcome::Oversize,
    }
}

/// Adds the burst's figures to the books of each ring and to the live ones.
fn settle(picks: &[Pick], feeds: &mut [Feed], outcomes: &[Outcomes; MAX_LANES], live: &SendLive) {
    for (at, (feed, outcomes)) in feeds.iter_mut().zip(outcomes).enumerate() {
        let picked = picks.iter().filter(|pick| pick.feed == at).count();
        if picked == 0 {
            continue;
        }
        feed.finish(picked);
        for (outcome, n) in outcomes.iter() {
            feed.settle(outcome, n);
            live.frames.add(outcome, n);
        }
    }
}
