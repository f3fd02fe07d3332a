//! What the API tells of a mirror, and what is done when one is made, changed or deleted.

use crate::job::{
    MirrorJob, MirrorWorker, fill_in, is_over, same_place, same_request, start_lifetime,
};
use crate::mirror;
use fluxcap_proto::v1;
use fluxcap_service::{Job, Refusal, Registry, Resource, State, apply_mask, resource_service};
use std::{sync::Arc, time::Duration};

/// How long whoever makes or changes a mirror waits until its programs are in place: several times what the verifier takes for the largest.
const IN_PLACE: Duration = Duration::from_secs(2);

resource_service! {
    MirrorApi(MirrorJob): MirrorService, mirror_service_server::MirrorServiceServer, mirror, mirrors;
    create_mirror(CreateMirrorRequest) -> CreateMirrorResponse;
    get_mirror(GetMirrorRequest) -> GetMirrorResponse;
    list_mirrors(ListMirrorsRequest) -> ListMirrorsResponse;
    update_mirror(UpdateMirrorRequest) -> UpdateMirrorResponse;
    delete_mirror(DeleteMirrorRequest) -> DeleteMirrorResponse;
    watch_mirrors(WatchMirrorsRequest) -> WatchMirrorsResponse, WatchMirrorsStream;
}

impl Resource for MirrorJob {
    type Message = v1::Mirror;

    /// A mirror whose change is not in place yet is starting: what else there is to say of it would be about what it was.
    fn message(worker: &MirrorWorker) -> v1::Mirror {
        let generation = worker.generation();
        let pending = !worker.live().is_done(generation);
        let (mut state, mut reason) = worker.state();
        if pending && matches!(state, State::Running | State::Waiting) {
            state = State::Starting;
            "pending: the programs that work are still those of before the change"
                .clone_into(&mut reason);
        }
        v1::Mirror {
            name: worker.name().to_owned(),
            spec: Some(v1::MirrorSpec::clone(&worker.spec())),
            status: Some(v1::MirrorStatus {
                state: v1::State::from(state).into(),
                reason,
                ..worker.live().to_status()
            }),
        }
    }

    /// The time of its end begins now, unless there is such a mirror already; one whose time is over begins again.
    fn create(
        mirrors: &Registry<Self>,
        name: &str,
        mut spec: v1::MirrorSpec,
        validate_only: bool,
    ) -> Result<Arc<MirrorWorker>, Refusal> {
        fill_in(&mut spec);
        if let Ok(existing) = mirrors.get(name) {
            let kept = existing.spec();
            if !same_request(&kept, &spec) {
                // It differs, and is refused.
                return mirrors.create(name, spec, validate_only);
            }
            if !is_over(&kept) {
                return Ok(existing);
            }
            let again = |spec: &mut v1::MirrorSpec| {
                start_lifetime(spec);
                Ok(())
            };
            return mirrors.update(name, again, validate_only);
        }
        start_lifetime(&mut spec);
        check(mirrors, name, &spec)?;
        mirrors.create(name, spec, validate_only)
    }

    /// The time of its end begins again when it is among the fields.
    fn change(
        mirrors: &Registry<Self>,
        name: &str,
        old: &v1::MirrorSpec,
        new: &v1::MirrorSpec,
        paths: &[String],
    ) -> Result<v1::MirrorSpec, Refusal> {
        let mut spec = apply_mask(old, new, paths)?;
        fill_in(&mut spec);
        if !same_place(old, &spec) {
            return Err(Refusal::Precondition(
                "interface, hook and kind of target of a mirror cannot be changed; delete it and make another"
                    .to_owned(),
            ));
        }
        spec.expires_ns = old.expires_ns;
        spec.expires_boottime_ns = old.expires_boottime_ns;
        spec.boot_id.clone_from(&old.boot_id);
        if paths.is_empty() || paths.iter().any(|path| path == "lifetime_ms") {
            start_lifetime(&mut spec);
        }
        check(mirrors, name, &spec)?;
        Ok(spec)
    }

    fn settle(worker: &MirrorWorker) {
        worker.live().wait_done(worker.generation(), IN_PLACE);
    }

    fn delete(mirrors: &Registry<Self>, name: &str) -> Result<(), Refusal> {
        mirrors.get(name)?;
        mirror::check_removable(mirrors.job(), name)?;
        mirrors.delete(name)
    }
}

/// What the spec says wrong comes first, then what the kernel has against it.
fn check(mirrors: &Registry<MirrorJob>, name: &str, spec: &v1::MirrorSpec) -> Result<(), Refusal> {
    mirrors.job().validate(name, spec, &[])?;
    mirror::check(mirrors.job(), name, spec)
}

#[cfg(test)]
mod tests;
