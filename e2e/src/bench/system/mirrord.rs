//! mirrord: copies inside the kernel, without a ring.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use fluxcap_proto::v1::{Direction, Hook, MirrorDevice, MirrorSpec, State};

use crate::bench::bed::Bed;
use crate::daemon::Dirs;
use crate::mirrord::Mirrord;

/// Until a mirror runs.
const PATIENCE: Duration = Duration::from_secs(5);

/// mirrord with a mirror at each input. Programs go with it.
#[derive(Debug)]
pub struct Mirror {
    mirrord: Mirrord,
    names: Vec<String>,
    _dirs: Dirs,
}

impl Mirror {
    pub(super) fn start(bed: &Bed, hook: Hook) -> Result<Mirror> {
        let dirs = Dirs::new();
        let mirror = Mirror {
            mirrord: Mirrord::start(&bed.host, &dirs),
            names: bed.shape.input_names(),
            _dirs: dirs,
        };
        for input in &mirror.names {
            let devices = bed.shape.output_names().into_iter();
            let spec = MirrorSpec {
                interface: input.clone(),
                direction: Direction::In.into(),
                hook: hook.into(),
                devices: devices
                    .map(|name| MirrorDevice {
                        name,
                        vlan_push: None,
                    })
                    .collect(),
                ..MirrorSpec::default()
            };
            begin(&mirror.mirrord, input, &spec)?;
        }
        Ok(mirror)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        vec![self.mirrord.daemon.pid()]
    }

    /// Why mirrors do not run.
    pub(super) fn reasons(&self) -> String {
        let reasons = self
            .names
            .iter()
            .map(|name| self.mirrord.status(name).reason);
        reasons.collect::<Vec<_>>().join("; ")
    }
}

/// Makes a mirror and waits until it runs.
pub(crate) fn begin(mirrord: &Mirrord, name: &str, spec: &MirrorSpec) -> Result<()> {
    mirrord
        .create(name, spec)
        .map_err(|(_, reason)| anyhow!("mirrord refuses: {reason}"))?;
    let begin = Instant::now();
    loop {
        let status = mirrord.status(name);
        if status.state() == State::Running {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            bail!("the mirror does not run: {}", status.reason);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
