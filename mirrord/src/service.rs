//! The gRPC service of mirrord: messages in, registry calls, messages out.

use crate::job::{
    MirrorJob, MirrorWorker, fill_in, is_over, same_place, same_request, start_lifetime,
};
use crate::mirror;
use fluxcap_proto::v1::{self, mirror_service_server::MirrorService};
use fluxcap_service::{
    Job, Refusal, Registry, State, WatchStream, Watches, apply_mask, blocking, interval_stream,
    realtime_ns,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long whoever makes or changes a mirror waits until its programs are in place: several times what the verifier takes for the largest.
const IN_PLACE: Duration = Duration::from_secs(2);

/// `fluxcap.v1.MirrorService` over the mirrors of this daemon.
#[derive(Debug)]
pub(crate) struct MirrorApi {
    mirrors: Registry<MirrorJob>,
    watches: Watches,
}

impl MirrorApi {
    /// Serves these mirrors.
    pub(crate) fn new(mirrors: Registry<MirrorJob>, watches: Watches) -> MirrorApi {
        MirrorApi { mirrors, watches }
    }
}

/// A mirror whose change is not in place yet is starting: what else there is to say of it would be about what it was.
fn to_message(worker: &MirrorWorker) -> v1::Mirror {
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

/// A mirror that was made or changed just now: when that is in place, unless it is only a picture of what would be.
fn answer(worker: &MirrorWorker, only_a_picture: bool) -> v1::Mirror {
    if !only_a_picture {
        worker.live().wait_done(worker.generation(), IN_PLACE);
    }
    to_message(worker)
}

/// Makes a mirror. The time of its end begins now, unless there is such a mirror already; one whose time is over begins again.
fn create(
    mirrors: &Registry<MirrorJob>,
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

/// A spec with the fields that `paths` name taken from `new`. The time of its end begins again when it is among them.
fn changed(
    mirrors: &Registry<MirrorJob>,
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
    if paths.is_empty() || paths.iter().any(|path| path == "lifetime_ms") {
        start_lifetime(&mut spec);
    }
    check(mirrors, name, &spec)?;
    Ok(spec)
}

/// What the spec says wrong comes first, then what the kernel has against it.
fn check(mirrors: &Registry<MirrorJob>, name: &str, spec: &v1::MirrorSpec) -> Result<(), Refusal> {
    mirrors.job().validate(name, spec, &[])?;
    mirror::check(mirrors.job(), name, spec)
}

#[tonic::async_trait]
impl MirrorService for MirrorApi {
    async fn create_mirror(
        &self,
        request: Request<v1::CreateMirrorRequest>,
    ) -> Result<Response<v1::CreateMirrorResponse>, Status> {
        let (mirrors, request) = (self.mirrors.clone(), request.into_inner());
        let mirror = blocking(move || {
            let (spec, only) = (request.spec.unwrap_or_default(), request.validate_only);
            let worker = create(&mirrors, &request.name, spec, only)?;
            Ok(answer(&worker, only))
        })
        .await?;
        Ok(Response::new(v1::CreateMirrorResponse {
            mirror: Some(mirror),
        }))
    }

    async fn get_mirror(
        &self,
        request: Request<v1::GetMirrorRequest>,
    ) -> Result<Response<v1::GetMirrorResponse>, Status> {
        let worker = self.mirrors.get(&request.into_inner().name)?;
        Ok(Response::new(v1::GetMirrorResponse {
            mirror: Some(to_message(&worker)),
        }))
    }

    async fn list_mirrors(
        &self,
        _request: Request<v1::ListMirrorsRequest>,
    ) -> Result<Response<v1::ListMirrorsResponse>, Status> {
        let mirrors = self
            .mirrors
            .list()
            .iter()
            .map(|worker| to_message(worker))
            .collect();
        Ok(Response::new(v1::ListMirrorsResponse { mirrors }))
    }

    async fn update_mirror(
        &self,
        request: Request<v1::UpdateMirrorRequest>,
    ) -> Result<Response<v1::UpdateMirrorResponse>, Status> {
        let (mirrors, request) = (self.mirrors.clone(), request.into_inner());
        let mirror = blocking(move || {
            let (new, paths) = (
                request.spec.unwrap_or_default(),
                request.update_mask.unwrap_or_default().paths,
            );
            let change = |spec: &mut v1::MirrorSpec| {
                *spec = changed(&mirrors, &request.name, spec, &new, &paths)?;
                Ok(())
            };
            let worker = mirrors.update(&request.name, change, request.validate_only)?;
            Ok(answer(&worker, request.validate_only))
        })
        .await?;
        Ok(Response::new(v1::UpdateMirrorResponse {
            mirror: Some(mirror),
        }))
    }

    async fn delete_mirror(
        &self,
        request: Request<v1::DeleteMirrorRequest>,
    ) -> Result<Response<v1::DeleteMirrorResponse>, Status> {
        let (mirrors, name) = (self.mirrors.clone(), request.into_inner().name);
        blocking(move || {
            mirrors.get(&name)?;
            mirror::check_removable(mirrors.job(), &name)?;
            mirrors.delete(&name)
        })
        .await?;
        Ok(Response::new(v1::DeleteMirrorResponse {}))
    }

    type WatchMirrorsStream = WatchStream<v1::WatchMirrorsResponse>;

    async fn watch_mirrors(
        &self,
        request: Request<v1::WatchMirrorsRequest>,
    ) -> Result<Response<Self::WatchMirrorsStream>, Status> {
        let (mirrors, request) = (self.mirrors.clone(), request.into_inner());
        let report = move || {
            let workers = mirrors.list();
            let wanted = workers.iter().filter(|w| {
                request.names.is_empty() || request.names.iter().any(|n| n == w.name())
            });
            Ok(v1::WatchMirrorsResponse {
                time_ns: realtime_ns(),
                mirrors: wanted.map(|worker| to_message(worker)).collect(),
            })
        };
        Ok(Response::new(interval_stream(
            request.interval_ms,
            &self.watches,
            report,
        )?))
    }
}

#[cfg(test)]
mod tests;
