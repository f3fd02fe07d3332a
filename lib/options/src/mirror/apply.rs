//! From the options of a mirror to its spec. Each option is put into its field at one place, which also names that field for an
//! update mask.

use super::args::{BoundArgs, MirrorArgs, MirrorTargetArgs, ProgramArgs, SelectionArgs};
use super::classic::ClassicArgs;
use super::target::{OverlayArg, TargetArg};
use crate::given::Given;
use crate::{UsageError, default_name, tunnel_kind_word};
use fluxcap_proto::v1::{
    Attach, Direction, Hook, InnerProtocol, MirrorDevice, MirrorOverlay, MirrorSpec, MtuPolicy,
};

impl MirrorArgs {
    /// The spec of a mirror of `interface`. `target`, if there is one, is that of the daemon's command line.
    ///
    /// # Errors
    /// Options that make no sense for the target, or no target.
    pub fn to_spec(
        &self,
        interface: &str,
        target: Option<&TargetArg>,
        classic: &ClassicArgs,
    ) -> Result<MirrorSpec, UsageError> {
        let mut spec = MirrorSpec {
            interface: interface.to_owned(),
            ..Default::default()
        };
        let mut given = Given::default();
        let old = classic.target()?;
        let targets: Vec<&TargetArg> = target
            .into_iter()
            .chain(&self.target.to)
            .chain(&old)
            .collect();
        if targets.is_empty() {
            return Err(UsageError::NoTarget);
        }
        place(&mut spec, &targets, &mut given)?;
        self.apply(&mut spec, &mut given)?;
        spec.rules.extend(classic.rule()?);
        classic.lead(&mut spec);
        Ok(spec)
    }

    /// The spec of a running mirror with what was given changed, and the names of the changed fields for an update mask.
    ///
    /// # Errors
    /// Options that make no sense for the mirror.
    pub fn changes(
        &self,
        current: &MirrorSpec,
    ) -> Result<(MirrorSpec, Vec<&'static str>), UsageError> {
        let (mut spec, mut given) = (current.clone(), Given::default());
        let targets: Vec<&TargetArg> = self.target.to.iter().collect();
        place(&mut spec, &targets, &mut given)?;
        self.apply(&mut spec, &mut given)?;
        given.0.sort_unstable();
        given.0.dedup();
        Ok((spec, given.0))
    }

    fn apply(&self, spec: &mut MirrorSpec, given: &mut Given) -> Result<(), UsageError> {
        self.target.apply(spec, given)?;
        self.selection.apply(spec, given);
        self.bounds.apply(spec, given);
        self.programs.apply(spec, given);
        self.threads.apply(&mut spec.scheduling, given);
        Ok(())
    }
}

/// The name that a mirror gets when none is given: `eth0-cisco`, `eth0-gue-192-0-2-9`.
#[must_use]
pub fn default_mirror_name(spec: &MirrorSpec) -> String {
    let overlay = spec.overlay.iter();
    let overlay = overlay.flat_map(|it| [tunnel_kind_word(it.kind()), &it.remote]);
    let ring = Some(spec.ring.as_str()).filter(|ring| !ring.is_empty());
    let devices = spec.devices.iter().map(|device| device.name.as_str());
    default_name(
        [spec.interface.as_str()]
            .into_iter()
            .chain(ring)
            .chain(devices)
            .chain(overlay),
    )
}

/// Puts the targets into the spec: those of one kind take the place of those that were there.
fn place(
    spec: &mut MirrorSpec,
    targets: &[&TargetArg],
    given: &mut Given,
) -> Result<(), UsageError> {
    let old = std::mem::take(&mut spec.devices);
    let (mut rings, mut overlays) = (0, 0);
    for target in targets {
        match target {
            TargetArg::Ring(ring) => {
                rings += 1;
                given.put("ring", &mut spec.ring, Some(ring.clone()));
            }
            TargetArg::Devices(names) => {
                // An interface that stays keeps its tag.
                let known = |name: &String| old.iter().find(|it| it.name == *name).cloned();
                let device = |name: &String| {
                    known(name).unwrap_or_else(|| MirrorDevice {
                        name: name.clone(),
                        vlan_push: None,
                    })
                };
                spec.devices.extend(names.iter().map(device));
                given.0.push("devices");
            }
            TargetArg::Overlay(arg) => {
                overlays += 1;
                place_overlay(spec, arg, given);
            }
        }
    }
    if spec.devices.is_empty() {
        spec.devices = old;
    }
    match (rings, overlays) {
        (0 | 1, 0 | 1) => Ok(()),
        _ => Err(UsageError::Unsuited {
            option: "--to".to_owned(),
            what: "two rings or two collectors".to_owned(),
            problem: "make a mirror for each".to_owned(),
        }),
    }
}

/// A target says all of who gets the copies, and what its options name of how; the rest stays.
fn place_overlay(spec: &mut MirrorSpec, arg: &OverlayArg, given: &mut Given) {
    let new = arg.overlay.clone();
    given.0.extend([
        "overlay.kind",
        "overlay.remote",
        "overlay.port",
        "overlay.id",
    ]);
    given.0.extend(&arg.given);
    let Some(overlay) = &mut spec.overlay else {
        spec.overlay = Some(new);
        return;
    };
    let named = |field: &str| arg.given.contains(&field);
    let old = overlay.clone();
    *overlay = MirrorOverlay {
        inner: pick(named("overlay.inner"), new.inner, old.inner),
        local: pick(named("overlay.local"), new.local, old.local),
        device: pick(named("overlay.device"), new.device, old.device),
        source_port: pick(
            named("overlay.source_port"),
            new.source_port,
            old.source_port,
        ),
        ttl: pick(named("overlay.ttl"), new.ttl, old.ttl),
        tos: pick(named("overlay.tos"), new.tos, old.tos),
        mtu_policy: pick(named("overlay.mtu_policy"), new.mtu_policy, old.mtu_policy),
        tunnel_device: old.tunnel_device,
        gateway: old.gateway,
        gateway_device: old.gateway_device,
        kind: new.kind,
        remote: new.remote,
        port: new.port,
        id: new.id,
    };
}

fn pick<T>(new_one: bool, new: T, old: T) -> T {
    if new_one { new } else { old }
}

impl MirrorTargetArgs {
    fn apply(&self, spec: &mut MirrorSpec, given: &mut Given) -> Result<(), UsageError> {
        let mut fields = Given::default();
        let overlay = spec.overlay.is_some();
        let mut none = MirrorOverlay::default();
        let into = spec.overlay.as_mut().unwrap_or(&mut none);
        self.apply_overlay(into, &mut fields);
        if let (false, Some(field)) = (overlay, fields.0.first()) {
            return Err(UsageError::Unsuited {
                option: (*field).to_owned(),
                what: "a mirror without a collector".to_owned(),
                problem: "leave it out, or use --to gue:REMOTE and the like".to_owned(),
            });
        }
        given.0.append(&mut fields.0);
        self.push_tags(spec, given)
    }

    fn apply_overlay(&self, overlay: &mut MirrorOverlay, given: &mut Given) {
        let inner = self.l2.map(|l2| match l2 {
            true => InnerProtocol::Gretap.into(),
            false => InnerProtocol::Unspecified.into(),
        });
        given.put("overlay.inner", &mut overlay.inner, inner);
        given.put("overlay.local", &mut overlay.local, self.local.clone());
        given.put("overlay.device", &mut overlay.device, self.dev.clone());
        given.put("overlay.ttl", &mut overlay.ttl, self.ttl);
        given.put("overlay.tos", &mut overlay.tos, self.tos);
        given.put("overlay.source_port", &mut overlay.source_port, self.sport);
        let policy = self.mtu_policy.map(|it| MtuPolicy::from(it).into());
        given.put("overlay.mtu_policy", &mut overlay.mtu_policy, policy);
        let device = self.device.clone();
        given.put("overlay.tunnel_device", &mut overlay.tunnel_device, device);
    }

    fn push_tags(&self, spec: &mut MirrorSpec, given: &mut Given) -> Result<(), UsageError> {
        let known: Vec<String> = spec.devices.iter().map(|it| it.name.clone()).collect();
        let mut tagged: Vec<Option<&str>> = Vec::new();
        for push in &self.vlan_push {
            let interface = push.interface.as_deref();
            if tagged.contains(&interface) {
                return Err(UsageError::DuplicatePush {
                    target: interface.unwrap_or("every interface").to_owned(),
                });
            }
            tagged.push(interface);
            if let Some(name) = interface
                && !known.iter().any(|it| it == name)
            {
                return Err(UsageError::UnknownInterface {
                    interface: name.to_owned(),
                    known: known.join(", "),
                });
            }
        }
        // One for an interface goes before the one for all.
        for device in &mut spec.devices {
            let own = |name: Option<&str>| {
                let mut pushes = self.vlan_push.iter();
                pushes.find(|push| push.interface.as_deref() == name)
            };
            let push = own(Some(&device.name)).or_else(|| own(None));
            if let Some(push) = push {
                device.vlan_push = push.tag;
            }
        }
        if !self.vlan_push.is_empty() {
            given.0.push("devices");
        }
        Ok(())
    }
}

impl SelectionArgs {
    fn apply(&self, spec: &mut MirrorSpec, given: &mut Given) {
        let direction = self.direction.map(|it| Direction::from(it).into());
        given.put("direction", &mut spec.direction, direction);
        if !self.rule.is_empty() || !self.rules_file.is_empty() {
            let rules = self.rule.iter().filter_map(|rule| rule.0.clone());
            let files = self.rules_file.iter().flat_map(|file| file.0.clone());
            given.put("rules", &mut spec.rules, Some(rules.chain(files).collect()));
        }
        given.put("filter", &mut spec.filter, self.filter.expression());
        let vlan = self.filter.filter_vlan.map(|_| self.filter.vlan().into());
        given.put("filter_vlan", &mut spec.filter_vlan, vlan);
        let sample = self.sample.sample.map(|_| self.sample.to_sample());
        given.put("sample", &mut spec.sample, sample);
        given.put("snaplen", &mut spec.snaplen, self.snaplen);
    }
}

impl BoundArgs {
    fn apply(&self, spec: &mut MirrorSpec, given: &mut Given) {
        if self.rate.is_some() || self.burst.is_some() {
            let rate = spec.rate.get_or_insert_default();
            let frames = self.rate.map(|it| it.frames);
            given.put(
                "rate.frames_per_second",
                &mut rate.frames_per_second,
                frames,
            );
            let bits = self.rate.map(|it| it.bits);
            given.put("rate.bits_per_second", &mut rate.bits_per_second, bits);
            given.put("rate.burst_ms", &mut rate.burst_ms, self.burst);
        }
        if self.fuse_errors.is_some() || self.fuse_rate.is_some() {
            let fuse = spec.fuse.get_or_insert_default();
            let errors = self.fuse_errors;
            given.put(
                "fuse.errors_per_second",
                &mut fuse.errors_per_second,
                errors,
            );
            let frames = self.fuse_rate.map(|it| it.frames);
            given.put(
                "fuse.frames_per_second",
                &mut fuse.frames_per_second,
                frames,
            );
            let bits = self.fuse_rate.map(|it| it.bits);
            given.put("fuse.bits_per_second", &mut fuse.bits_per_second, bits);
        }
        given.put("lifetime_ms", &mut spec.lifetime_ms, self.lifetime);
    }
}

impl ProgramArgs {
    fn apply(&self, spec: &mut MirrorSpec, given: &mut Given) {
        let hook = self.hook.map(|it| Hook::from(it).into());
        given.put("hook", &mut spec.hook, hook);
        let attach = self.attach.map(|it| Attach::from(it).into());
        given.put("attach", &mut spec.attach, attach);
        given.put("order", &mut spec.order, self.order.clone());
        given.put("mark", &mut spec.mark, self.mark);
        given.put("buffer_bytes", &mut spec.buffer_bytes, self.buffer);
        given.put("allow_loop", &mut spec.allow_loop, self.allow_loop);
    }
}

#[cfg(test)]
mod tests;
