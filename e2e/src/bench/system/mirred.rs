//! Replication by the kernel's traffic control: u32 matches everything, mirred copies it.

use anyhow::Result;

use super::process::must_succeed;
use crate::bench::bed::Bed;
use crate::netns::Netns;

/// Rules at the inputs. They go away on drop.
#[derive(Debug)]
pub struct Mirred {
    namespace: String,
    inputs: Vec<String>,
}

impl Mirred {
    pub(super) fn start(bed: &Bed) -> Result<Mirred> {
        let inputs = bed.shape.input_names();
        let mirred = Mirred {
            namespace: bed.host.name().to_owned(),
            inputs: inputs.clone(),
        };
        let outputs = bed.shape.output_names();
        for input in &inputs {
            tc(&bed.host, &["qdisc", "add", "dev", input, "ingress"])?;
            let mut filter = vec!["filter", "add", "dev", input, "parent", "ffff:"];
            filter.extend([
                "protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0",
            ]);
            for (n, output) in outputs.iter().enumerate() {
                // The last one gets the frame itself, the others copies.
                let what = if n + 1 == outputs.len() {
                    "redirect"
                } else {
                    "mirror"
                };
                filter.extend(["action", "mirred", "egress", what, "dev", output]);
            }
            tc(&bed.host, &filter)?;
        }
        Ok(mirred)
    }
}

impl Drop for Mirred {
    fn drop(&mut self) {
        for input in &self.inputs {
            let args = [
                "-n",
                &self.namespace,
                "qdisc",
                "del",
                "dev",
                input,
                "ingress",
            ];
            let _ = std::process::Command::new("tc").args(args).output();
        }
    }
}

fn tc(netns: &Netns, args: &[&str]) -> Result<()> {
    must_succeed(
        std::process::Command::new("tc")
            .args(["-n", netns.name()])
            .args(args),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::bed::Shape;
    use crate::bench::frame::MIXES;
    use crate::bench::sink::Peer;
    use crate::bench::system::System;
    use crate::bench::trial::{Trial, run};

    /// The kernel's own replication needs nothing of ours: what is lost or harmed here is the bench's fault.
    #[test]
    fn a_bed_brings_every_frame_of_every_input_to_every_output() {
        crate::need_root!();
        for peer in [Peer::Xdp, Peer::Gro, Peer::Plain] {
            let shape = Shape {
                inputs: 2,
                outputs: 2,
            };
            let mut bed = Bed::new(shape, peer).expect("a bed");
            let _running = System::Mirred.start(&mut bed).expect("start");
            let trial = Trial {
                mix: MIXES[3],
                rate: 50_000.0,
                duration: Duration::from_millis(200),
                held_back: Duration::from_millis(500),
            };
            let outcome = run(&mut bed, trial).expect("a trial");
            assert_eq!(outcome.lost() + outcome.faults() + outcome.foreign, 0);
            assert!(outcome.frames > 5_000, "{outcome:?}");
        }
    }
}
