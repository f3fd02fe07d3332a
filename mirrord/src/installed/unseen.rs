//! What of the traffic a mirror does not see, and why.

use std::time::{Duration, Instant};

use fluxcap_proto::v1::MirrorSpec;
use fluxcap_socket::{BpfLink, Link};

use super::Installed;
use crate::error::Error;
use crate::pins::unescape;
use crate::program::Way;

/// Time between two looks at what runs before a mirror.
const LOOK_BEFORE: Duration = Duration::from_secs(1);

impl Installed {
    /// Looks whether the mirror sees what passes the interface.
    pub(crate) fn watch(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        let seen = self.books()?.totals()?;
        for way in Way::ALL {
            match self.has(way) {
                true => self.sight.look(way, link, seen.seen(way)),
                false => self.sight.forget(way),
            }
        }
        let due = |at: Instant| at.elapsed() >= LOOK_BEFORE;
        if self.looked_before.is_none_or(due) {
            self.looked_before = Some(Instant::now());
            self.look_before(spec, link)?;
        }
        Ok(())
    }

    fn look_before(&mut self, spec: &MirrorSpec, link: &Link) -> Result<(), Error> {
        let own = self.programs_of_others()?;
        self.before = Default::default();
        for attachment in std::mem::take(&mut self.attachments) {
            let before = self.site(spec, link).before(&attachment, link, &own);
            let way = attachment.way as usize;
            self.attachments.push(attachment);
            self.before[way] = before?;
        }
        Ok(())
    }

    /// Programs of other mirrors of this folder.
    fn programs_of_others(&self) -> Result<Vec<u32>, Error> {
        let mut programs = Vec::new();
        for (mirror, is_folder) in self.root.names()? {
            if !is_folder || unescape(&mirror) == self.name {
                continue;
            }
            for way in Way::ALL {
                let path = self.root.path(&mirror).join(way.name());
                // One that goes away meanwhile is none.
                let info = BpfLink::open(&path).and_then(|link| link.info());
                programs.extend(info.map(|info| info.program_id));
            }
        }
        Ok(programs)
    }

    /// What to say about frames that pass the interface and that the mirror does not see: why it waits, or else what is worth knowing.
    pub(crate) fn unseen(&self, spec: &MirrorSpec) -> (Vec<String>, Vec<String>) {
        let (mut waits, mut remarks) = (Vec::new(), Vec::new());
        for way in self.sight.blind() {
            let interface = &spec.interface;
            let verb = match way {
                Way::In => "receives",
                Way::Out => "sends",
            };
            let before = &self.before[way as usize];
            if before.is_empty() {
                remarks.push(format!(
                    "sees none of the frames that {interface} {verb}: they do not come by here, as those that XDP or AF_XDP moves, or a hook of nftables drops them first"
                ));
                continue;
            }
            let before = before.join(", ");
            let advice: &str = match before.starts_with("XDP") {
                true => "it is before every mirror: mirror another interface, or take it off",
                false => &format!(
                    "to put the mirror before it: fluxctl mirror set {} --attach tcx --order first",
                    self.name
                ),
            };
            waits.push(format!(
                "sees none of the frames that {interface} {verb}: {before} runs before it and lets none go on; {advice}"
            ));
        }
        (waits, remarks)
    }
}
