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
