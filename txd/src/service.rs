//! The gRPC service of txd: messages in, registry calls, messages out.

use crate::stats::TransmitLive;
use crate::transmit::TransmitJob;
use fluxcap_proto::v1::{self, transmit_service_server::TransmitService};
use fluxcap_service::{
    Registry, WatchStream, Watches, Worker, apply_mask, blocking, interval_stream, realtime_ns,
};
use tonic::{Request, Response, Status};

/// `fluxcap.v1.TransmitService` over the transmits of this daemon.
#[derive(Debug)]
pub(crate) struct TransmitApi {
    transmits: Registry<TransmitJob>,
    watches: Watches,
}

impl TransmitApi {
    /// Serves these transmits.
    pub(crate) fn new(transmits: Registry<TransmitJob>, watches: Watches) -> TransmitApi {
        TransmitApi { transmits, watches }
    }
}

fn to_message(worker: &Worker<v1::TransmitSpec, TransmitLive>) -> v1::Transmit {
    let (state, reason) = worker.state();
    v1::Transmit {
        name: worker.name().to_owned(),
        spec: Some(v1::TransmitSpec::clone(&worker.spec())),
        status: Some(v1::TransmitStatus {
            state: v1::State::from(state).into(),
            reason,
            ..worker.live().to_status()
        }),
    }
}

#[tonic::async_trait]
impl TransmitService for TransmitApi {
    async fn create_transmit(
        &self,
        request: Request<v1::CreateTransmitRequest>,
    ) -> Result<Response<v1::CreateTransmitResponse>, Status> {
        let (transmits, request) = (self.transmits.clone(), request.into_inner());
        let worker = blocking(move || {
            transmits.create(
                &request.name,
                request.spec.unwrap_or_default(),
                request.validate_only,
            )
        })
        .await?;
        Ok(Response::new(v1::CreateTransmitResponse {
            transmit: Some(to_message(&worker)),
        }))
    }

    async fn get_transmit(
        &self,
        request: Request<v1::GetTransmitRequest>,
    ) -> Result<Response<v1::GetTransmitResponse>, Status> {
        let worker = self.transmits.get(&request.into_inner().name)?;
        Ok(Response::new(v1::GetTransmitResponse {
            transmit: Some(to_message(&worker)),
        }))
    }

    async fn list_transmits(
        &self,
        _request: Request<v1::ListTransmitsRequest>,
    ) -> Result<Response<v1::ListTransmitsResponse>, Status> {
        let transmits = self
            .transmits
            .list()
            .iter()
            .map(|worker| to_message(worker))
            .collect();
        Ok(Response::new(v1::ListTransmitsResponse { transmits }))
    }

    async fn update_transmit(
        &self,
        request: Request<v1::UpdateTransmitRequest>,
    ) -> Result<Response<v1::UpdateTransmitResponse>, Status> {
        let (transmits, request) = (self.transmits.clone(), request.into_inner());
        let worker = blocking(move || {
            let (new, paths) = (
                request.spec.unwrap_or_default(),
                request.update_mask.unwrap_or_default().paths,
            );
            let change = |spec: &mut v1::TransmitSpec| {
                *spec = apply_mask(spec, &new, &paths)?;
                Ok(())
            };
            transmits.update(&request.name, change, request.validate_only)
        })
        .await?;
        Ok(Response::new(v1::UpdateTransmitResponse {
            transmit: Some(to_message(&worker)),
        }))
    }

    async fn delete_transmit(
        &self,
        request: Request<v1::DeleteTransmitRequest>,
    ) -> Result<Response<v1::DeleteTransmitResponse>, Status> {
        let (transmits, name) = (self.transmits.clone(), request.into_inner().name);
        blocking(move || transmits.delete(&name)).await?;
        Ok(Response::new(v1::DeleteTransmitResponse {}))
    }

    type WatchTransmitsStream = WatchStream<v1::WatchTransmitsResponse>;

    async fn watch_transmits(
        &self,
        request: Request<v1::WatchTransmitsRequest>,
    ) -> Result<Response<Self::WatchTransmitsStream>, Status> {
        let (transmits, request) = (self.transmits.clone(), request.into_inner());
        let report = move || {
            let workers = transmits.list();
            let wanted = workers.iter().filter(|w| {
                request.names.is_empty() || request.names.iter().any(|n| n == w.name())
            });
            Ok(v1::WatchTransmitsResponse {
                time_ns: realtime_ns(),
                transmits: wanted.map(|worker| to_message(worker)).collect(),
            })
        };
        Ok(Response::new(interval_stream(
            request.interval_ms,
            &self.watches,
            report,
        )?))
    }
}
