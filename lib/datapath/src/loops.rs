//! Whether frames could go round: the graph of rings, of interfaces that fill them and of interfaces that they are sent to.
//!
//! Daemons do not know each other. Whoever fills a ring notes in the ring's table which interfaces its sources are, and
//! whoever reads one notes in its slot which interfaces it sends to; both also while they wait or are stopped, for they come back.
//! From these notes anybody can see the whole. Who begins something asks first, notes it, and asks again: of two that begin at the
//! same time, at least one sees the other.
//!
//! ```text
//!   ring "d" --txd--> eth1 ~~ VLAN, bond, bridge, veth of this namespace ~~> eth1 --rxd, mirrord--> ring "d"
//! ```
//! Interfaces are the same when their index and network namespace are, whatever they are called. One that does not exist yet goes by
//! its name.

use fluxcap_ring::{Observer, Place, RingDir, RingName};
use fluxcap_socket::{Error, Link, LinkWatch, network_namespace};

/// An interface that fills a ring, or that a ring is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The name by which it is looked for.
    pub name: String,
    /// What is known of it.
    pub place: Place,
}

impl Edge {
    /// An interface that a ring is sent to. `ifindex` is 0 when there is none.
    pub fn output(name: &str, ifindex: u32) -> Edge {
        Edge {
            name: name.to_owned(),
            place: Place {
                ifindex,
                namespace: namespace(),
                ..Place::default()
            },
        }
    }

    /// An interface whose frames fill a ring: those that arrive, those that the host sends, or both.
    pub fn source(name: &str, ifindex: u32, inward: bool, outward: bool) -> Edge {
        let mut edge = Edge::output(name, ifindex);
        (edge.place.inward, edge.place.outward) = (inward, outward);
        edge
    }

    /// The same of which somebody has said that frames may go round.
    #[must_use]
    pub fn allowed(mut self, allowed: bool) -> Edge {
        self.place.loop_allowed = allowed;
        self
    }
}

/// The network namespace, as rings note it.
fn namespace() -> u32 {
    let [a, b, c, ..] = network_namespace().to_le_bytes();
    u32::from_le_bytes([a, b, c, 0])
}

/// A ring and an interface.
#[derive(Debug, Clone)]
struct Tie {
    ring: String,
    /// Who has noted it.
    by: String,
    edge: Edge,
}

/// What all rings of a directory tell of interfaces.
#[derive(Debug, Default)]
pub struct Graph {
    links: Vec<Link>,
    namespace: u32,
    sources: Vec<Tie>,
    outputs: Vec<Tie>,
}

/// Where a frame comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pass {
    ifindex: u32,
    inward: bool,
}

/// Most interfaces that a frame is followed through.
const MOST_PASSES: usize = 256;

impl Graph {
    /// Looks at the rings and at the interfaces. A ring that cannot be read has nothing to tell.
    ///
    /// # Errors
    /// When the interfaces cannot be listed.
    pub fn read(dir: &RingDir) -> Result<Graph, Error> {
        let mut links = LinkWatch::open()?.links()?;
        for link in links.iter_mut().filter(|link| link.linked_elsewhere) {
            // The number means another interface there.
            link.linked = 0;
        }
        let mut graph = Graph {
            links,
            namespace: namespace(),
            ..Graph::default()
        };
        for name in dir.list().unwrap_or_default() {
            graph.take(dir, &name);
        }
        Ok(graph)
    }

    fn take(&mut self, dir: &RingDir, name: &RingName) {
        let observer = Observer::open(dir, name);
        let Ok(stats) = observer.and_then(|observer| observer.stats()) else {
            return;
        };
        let ring = name.as_str();
        let holder = stats.producer.map(|producer| producer.holder);
        let holder = holder.unwrap_or_default();
        for source in stats.sources {
            if let Some(place) = source.place {
                let edge = Edge {
                    name: source.name,
                    place,
                };
                self.sources.push(self.tie(ring, &holder, edge));
            }
        }
        for reader in stats.readers {
            for output in reader.outputs {
                let edge = Edge {
                    name: output.name,
                    place: output.place,
                };
                self.outputs.push(self.tie(ring, &reader.label, edge));
            }
        }
    }

    /// An interface that is not there, or no longer, may be there by name.
    fn tie(&self, ring: &str, by: &str, mut edge: Edge) -> Tie {
        let place = &mut edge.place;
        if place.namespace == self.namespace {
            let is_there = |link: &&Link| link.index == place.ifindex;
            let named = |link: &&Link| link.is_called(&edge.name);
            let links = || self.links.iter();
            let link = links().find(is_there).or_else(|| links().find(named));
            place.ifindex = link.map_or(0, |link| link.index);
        }
        Tie {
            ring: ring.to_owned(),
            by: by.to_owned(),
            edge,
        }
    }

    /// What would go round if `source` filled `ring`; `holder` is who would. None: nothing.
    pub fn loop_by_source(&self, ring: &str, holder: &str, source: Edge) -> Option<Loop> {
        if source.place.loop_allowed {
            return None;
        }
        let new = self.tie(ring, holder, source);
        let old = |tie: &&Tie| tie.ring == ring && tie.edge.name == new.edge.name;
        let others = self.sources.iter().filter(|tie| !old(tie));
        let sources: Vec<&Tie> = others.chain([&new]).collect();
        let outputs: Vec<&Tie> = self.outputs.iter().collect();
        let ends = sources.len() - 1;
        (outputs.iter().enumerate()).find_map(|(at, _)| self.close(&outputs, &sources, at, ends))
    }

    /// What would go round if the reader `reader` sent `rings` to `outputs`; none: nothing.
    pub fn loop_by_outputs(
        &self,
        reader: &str,
        rings: &[String],
        outputs: &[Edge],
    ) -> Option<Loop> {
        let wanted = outputs.iter().filter(|edge| !edge.place.loop_allowed);
        let new: Vec<Tie> = wanted
            .flat_map(|edge| {
                rings
                    .iter()
                    .map(|ring| self.tie(ring, reader, edge.clone()))
            })
            .collect();
        let others = self.outputs.iter().filter(|tie| tie.by != reader);
        let outputs: Vec<&Tie> = new.iter().chain(others).collect();
        let sources: Vec<&Tie> = self.sources.iter().collect();
        (0..new.len()).find_map(|at| {
            (0..sources.len()).find_map(|end| self.close(&outputs, &sources, at, end))
        })
    }

    /// The loop that leads from the ring of an output through that, a source, and then back to the ring.
    fn close(&self, outputs: &[&Tie], sources: &[&Tie], at: usize, end: usize) -> Option<Loop> {
        let (output, source) = (outputs.get(at)?, sources.get(end)?);
        if !self.leads(output, source) {
            return None;
        }
        let first = Step::new(output, source);
        let mut paths = vec![vec![first]];
        let mut seen = vec![source.ring.as_str()];
        while let Some(path) = paths.pop() {
            let here = path.last().map_or("", |step| step.into.as_str());
            if here == output.ring {
                return Some(Loop { steps: path });
            }
            for output in outputs.iter().filter(|tie| tie.ring == here) {
                for source in sources {
                    if !seen.contains(&source.ring.as_str()) && self.leads(output, source) {
                        seen.push(&source.ring);
                        let next = Step::new(output, source);
                        paths.push(path.iter().cloned().chain([next]).collect());
                    }
                }
            }
        }
        None
    }

    /// Whether what is sent to `output` comes to `source`.
    fn leads(&self, output: &Tie, source: &Tie) -> bool {
        let (out, from) = (&output.edge.place, &source.edge.place);
        if out.loop_allowed || from.loop_allowed || out.namespace != from.namespace {
            return false;
        }
        let same = match (out.ifindex, from.ifindex) {
            (0, 0) => output.edge.name == source.edge.name,
            (out, from) => out == from,
        };
        if same {
            // What is sent to a wire may come back from it, when it is the same ring that would get it. With several rings that is how
            // two interfaces are joined.
            return from.outward || output.ring == source.ring;
        }
        if out.namespace != self.namespace || out.ifindex == 0 || from.ifindex == 0 {
            return false;
        }
        self.passes(out.ifindex).iter().any(|pass| {
            let wanted = if pass.inward {
                from.inward
            } else {
                from.outward
            };
            pass.ifindex == from.ifindex && wanted
        })
    }

    /// All interfaces of this host by which a frame comes that is sent to one.
    fn passes(&self, ifindex: u32) -> Vec<Pass> {
        let mut passes = vec![Pass {
            ifindex,
            inward: false,
        }];
        let mut next = 0;
        while let Some(pass) = passes.get(next).copied() {
            next += 1;
            for more in self.next(pass) {
                if !passes.contains(&more) && passes.len() < MOST_PASSES {
                    passes.push(more);
                }
            }
        }
        passes
    }

    fn next(&self, pass: Pass) -> Vec<Pass> {
        let Some(link) = self.links.iter().find(|link| link.index == pass.ifindex) else {
            return Vec::new();
        };
        let out = |ifindex| Pass {
            ifindex,
            inward: false,
        };
        let arrives = |ifindex| Pass {
            ifindex,
            inward: true,
        };
        let ports = |of: u32| {
            let ports = self.links.iter().filter(move |port| port.master == of);
            ports.map(|port| port.index)
        };
        let mut next = Vec::new();
        if pass.inward {
            // To what stands on it, and through a bridge out of its other ports.
            let stands = |upper: &&Link| upper.linked == link.index && upper.kind != "veth";
            next.extend(self.links.iter().filter(stands).map(|it| arrives(it.index)));
            if link.master != 0 {
                next.push(arrives(link.master));
                let master = self.links.iter().find(|it| it.index == link.master);
                if master.is_some_and(|master| master.kind == "bridge") {
                    next.extend(ports(link.master).filter(|it| *it != link.index).map(out));
                }
            }
            return next;
        }
        if link.kind == "veth" && link.linked != 0 {
            next.push(arrives(link.linked));
        } else if link.linked != 0 && link.linked != link.index {
            next.push(out(link.linked));
        }
        if link.loopback {
            next.push(arrives(link.index));
        }
        next.extend(ports(link.index).map(out));
        next
    }
}

/// From a ring to an interface, and from there into a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    from: String,
    by: String,
    output: String,
    source: String,
    into: String,
}

impl Step {
    fn new(output: &Tie, source: &Tie) -> Step {
        Step {
            from: output.ring.clone(),
            by: output.by.clone(),
            output: output.edge.name.clone(),
            source: source.edge.name.clone(),
            into: source.ring.clone(),
        }
    }
}

/// Rings and interfaces through which frames would go round for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    steps: Vec<Step>,
}

impl std::fmt::Display for Loop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(first) = self.steps.first() else {
            return Ok(());
        };
        write!(
            f,
            "interface {} feeds ring {}, so what is sent to {} could come back in: ring {}",
            first.source, first.into, first.output, first.from
        )?;
        for step in &self.steps {
            write!(f, " -> {}", step.output)?;
            if step.source != step.output {
                write!(f, " -> {}", step.source)?;
            }
            write!(f, " -> ring {}", step.into)?;
        }
        let mut by: Vec<&str> = self.steps.iter().map(|step| step.by.as_str()).collect();
        by.dedup();
        let by: Vec<&str> = by.into_iter().filter(|by| !by.is_empty()).collect();
        match by.as_slice() {
            [] => Ok(()),
            by => write!(f, " (sent by {})", by.join(", ")),
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]
mod tests;
