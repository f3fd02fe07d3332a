//! Where a system under test lies: its host, and the wires to sources and sinks.

use std::fmt;

use anyhow::{Context as _, Result};

use crate::bench::sink::{Peer, Sink};
use crate::bench::source::Source;
use crate::link::Veth;
use crate::netns::Netns;

/// MTU of all wires.
const MTU: u32 = 1500;

/// How many inputs lead to how many outputs. Every output gets the frames of all inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Interfaces `in0`, `in1`, ... of the host.
    pub inputs: usize,
    /// Interfaces `out0`, `out1`, ... of the host.
    pub outputs: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.inputs, self.outputs)
    }
}

impl Shape {
    /// So many inputs and outputs.
    #[must_use]
    pub const fn new(inputs: usize, outputs: usize) -> Shape {
        Shape { inputs, outputs }
    }

    /// Names of the inputs.
    #[must_use]
    pub fn input_names(&self) -> Vec<String> {
        (0..self.inputs).map(|n| format!("in{n}")).collect()
    }

    /// Names of the outputs.
    #[must_use]
    pub fn output_names(&self) -> Vec<String> {
        (0..self.outputs).map(|n| format!("out{n}")).collect()
    }
}

/// Namespaces, wires, sources and sinks. Everything goes away on drop.
#[derive(Debug)]
pub struct Bed {
    /// What it looks like.
    pub shape: Shape,
    /// How the far ends take frames.
    pub peer: Peer,
    /// One for each input.
    pub sources: Vec<Source>,
    /// One for each output.
    pub sinks: Vec<Sink>,
    /// Where the system under test is.
    pub host: Netns,
    /// Where the sinks are, at `wire0`, `wire1`, ...
    pub far: Netns,
    _near: Netns,
    runs: u16,
}

impl Bed {
    /// Makes everything, but no system.
    ///
    /// # Errors
    /// When the kernel has not what sources and sinks need.
    pub fn new(shape: Shape, peer: Peer) -> Result<Bed> {
        let (near, host, far) = (Netns::new(), Netns::new(), Netns::new());
        let mut sources = Vec::new();
        for (stream, input) in (0_u16..).zip(shape.input_names()) {
            let wire = format!("wire{stream}");
            Veth::pair((&near, &wire), (&host, &input), MTU);
            // Live frames reach a veth whose other end has GRO; there is nothing in the frames that it could merge.
            Veth::gro(&host, &input, true);
            let source = Source::new(&near, &wire, stream);
            sources.push(source.with_context(|| format!("cannot send to {input}"))?);
        }
        let mut sinks = Vec::new();
        for (n, output) in shape.output_names().iter().enumerate() {
            let wire = format!("wire{n}");
            Veth::pair((&host, output), (&far, &wire), MTU);
            Veth::gro(&far, &wire, peer == Peer::Gro);
            sinks.push(Sink::attach(&far, &wire, peer)?);
        }
        Ok(Bed {
            shape,
            peer,
            sources,
            sinks,
            host,
            far,
            _near: near,
            runs: 0,
        })
    }

    /// The number of a new run.
    pub(crate) fn next_run(&mut self) -> u16 {
        self.runs = self.runs.checked_add(1).unwrap_or(1);
        self.runs
    }
}
