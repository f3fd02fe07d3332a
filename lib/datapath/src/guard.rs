//! What keeps frames from going round, for those who send rings and for those who fill them. There are two layers: nobody begins what would
//! make a loop, as far as the graph shows it ([`Graph`]); and beneath, frames tell from which ring they are, and are not taken
//! into that one ([`Origin`]), whatever anybody knew.

use crate::loops::{Edge, Graph, Loop};
use fluxcap_proto::v1::Direction;
use fluxcap_ring::{Place, ReaderOutput, RingDir, RingName};
use fluxcap_socket::Origin;

/// What a reader of rings asks and notes, so that nothing goes round through it.
#[derive(Debug, Clone)]
pub struct LoopGuard {
    /// Where the rings are.
    pub dir: RingDir,
    /// The name under which rings know the reader.
    pub reader: String,
    /// The rings that it reads.
    pub rings: Vec<String>,
    /// It was told that frames may go round.
    pub allowed: bool,
}

impl LoopGuard {
    /// What would go round if frames were sent to an interface.
    pub fn look(&self, output: Edge) -> Option<Loop> {
        if self.allowed {
            return None;
        }
        read(&self.dir)?.loop_by_outputs(&self.reader, &self.rings, &[output])
    }

    /// An interface as the rings shall have it; `ifindex` is 0 while there is none.
    pub fn note(&self, name: &str, ifindex: u32) -> ReaderOutput {
        let edge = Edge::output(name, ifindex).allowed(self.allowed);
        ReaderOutput {
            name: edge.name,
            place: edge.place,
        }
    }

    /// What frames tell of their origin when they leave.
    pub fn origin(&self) -> Origin {
        match self.rings.as_slice() {
            _ if self.allowed => Origin::UNKNOWN,
            [ring] => ring_origin(&self.dir, ring),
            _ => Origin::SEVERAL,
        }
    }
}

/// What one asks and notes who fills a ring from an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceGuard {
    /// Where the rings are.
    pub dir: RingDir,
    /// The ring.
    pub ring: String,
    /// The name under which it knows who fills it.
    pub holder: String,
    /// The interface, by the name by which it is looked for.
    pub interface: String,
    /// Which of its frames; not set: those that arrive.
    pub direction: Direction,
    /// Frames may go round.
    pub allowed: bool,
}

impl SourceGuard {
    /// What would go round if frames of the interface came into the ring. `ifindex` is 0 when it is to be looked for.
    pub fn look(&self, ifindex: u32) -> Option<Loop> {
        if self.allowed {
            return None;
        }
        read(&self.dir)?.loop_by_source(&self.ring, &self.holder, self.edge(ifindex))
    }

    /// The interface as the ring shall have it.
    pub fn place(&self, ifindex: u32) -> Place {
        self.edge(ifindex).place
    }

    fn edge(&self, ifindex: u32) -> Edge {
        let inward = self.direction != Direction::Out;
        let outward = matches!(self.direction, Direction::Out | Direction::Both);
        Edge::source(&self.interface, ifindex, inward, outward).allowed(self.allowed)
    }

    /// What frames tell that must not come into the ring; [`Origin::UNKNOWN`]: all may.
    pub fn origin(&self) -> Origin {
        match self.allowed {
            true => Origin::UNKNOWN,
            false => ring_origin(&self.dir, &self.ring),
        }
    }
}

fn read(dir: &RingDir) -> Option<Graph> {
    Graph::read(dir)
        .inspect_err(|error| tracing::warn!(%error, "cannot look for loops"))
        .ok()
}

/// What frames tell that were sent from this ring.
fn ring_origin(dir: &RingDir, ring: &str) -> Origin {
    RingName::parse(ring).map_or(Origin::SEVERAL, |ring| Origin::ring(dir.fingerprint(&ring)))
}
