//! The gRPC service of rxd: messages in, registry calls, messages out.

use crate::capture::CaptureJob;
use crate::stats::CaptureLive;
use fluxcap_proto::v1::{self, capture_service_server::CaptureService};
use fluxcap_service::{
    Registry, WatchStream, Watches, Worker, apply_mask, blocking, interval_stream, realtime_ns,
};
use tonic::{Request, Response, Status};

/// `fluxcap.v1.CaptureService` over the captures of this daemon.
#[derive(Debug)]
pub(crate) struct CaptureApi {
    captures: Registry<CaptureJob>,
    watches: Watches,
}

impl CaptureApi {
    /// Serves these captures.
    pub(crate) fn new(captures: Registry<CaptureJob>, watches: Watches) -> CaptureApi {
        CaptureApi { captures, watches }
    }
}

fn to_message(worker: &Worker<v1::CaptureSpec, CaptureLive>) -> v1::Capture {
    let (state, reason) = worker.state();
    v1::Capture {
        name: worker.name().to_owned(),
        spec: Some(v1::CaptureSpec::clone(&worker.spec())),
        status: Some(v1::CaptureStatus {
            state: v1::State::from(state).into(),
            reason,
            ..worker.live().to_status()
        }),
    }
}

#[tonic::async_trait]
impl CaptureService for CaptureApi {
    async fn create_capture(
        &self,
        request: Request<v1::CreateCaptureRequest>,
    ) -> Result<Response<v1::CreateCaptureResponse>, Status> {
        let (captures, request) = (self.captures.clone(), request.into_inner());
        let worker = blocking(move || {
            captures.create(
                &request.name,
                request.spec.unwrap_or_default(),
                request.validate_only,
            )
        })
        .await?;
        Ok(Response::new(v1::CreateCaptureResponse {
            capture: Some(to_message(&worker)),
        }))
    }

    async fn get_capture(
        &self,
        request: Request<v1::GetCaptureRequest>,
    ) -> Result<Response<v1::GetCaptureResponse>, Status> {
        let worker = self.captures.get(&request.into_inner().name)?;
        Ok(Response::new(v1::GetCaptureResponse {
            capture: Some(to_message(&worker)),
        }))
    }

    async fn list_captures(
        &self,
        _request: Request<v1::ListCapturesRequest>,
    ) -> Result<Response<v1::ListCapturesResponse>, Status> {
        let captures = self
            .captures
            .list()
            .iter()
            .map(|worker| to_message(worker))
            .collect();
        Ok(Response::new(v1::ListCapturesResponse { captures }))
    }

    async fn update_capture(
        &self,
        request: Request<v1::UpdateCaptureRequest>,
    ) -> Result<Response<v1::UpdateCaptureResponse>, Status> {
        let (captures, request) = (self.captures.clone(), request.into_inner());
        let worker = blocking(move || {
            let (new, paths) = (
                request.spec.unwrap_or_default(),
                request.update_mask.unwrap_or_default().paths,
            );
            let change = |spec: &mut v1::CaptureSpec| {
                *spec = apply_mask(spec, &new, &paths)?;
                Ok(())
            };
            captures.update(&request.name, change, request.validate_only)
        })
        .await?;
        Ok(Response::new(v1::UpdateCaptureResponse {
            capture: Some(to_message(&worker)),
        }))
    }

    async fn delete_capture(
        &self,
        request: Request<v1::DeleteCaptureRequest>,
    ) -> Result<Response<v1::DeleteCaptureResponse>, Status> {
        let (captures, name) = (self.captures.clone(), request.into_inner().name);
        blocking(move || captures.delete(&name)).await?;
        Ok(Response::new(v1::DeleteCaptureResponse {}))
    }

    type WatchCapturesStream = WatchStream<v1::WatchCapturesResponse>;

    async fn watch_captures(
        &self,
        request: Request<v1::WatchCapturesRequest>,
    ) -> Result<Response<Self::WatchCapturesStream>, Status> {
        let (captures, request) = (self.captures.clone(), request.into_inner());
        let report = move || {
            let workers = captures.list();
            let wanted = workers.iter().filter(|w| {
                request.names.is_empty() || request.names.iter().any(|n| n == w.name())
            });
            Ok(v1::WatchCapturesResponse {
                time_ns: realtime_ns(),
                captures: wanted.map(|worker| to_message(worker)).collect(),
            })
        };
        Ok(Response::new(interval_stream(
            request.interval_ms,
            &self.watches,
            report,
        )?))
    }
}
