//! The gRPC service of tunneld: messages in, registry calls, messages out.

use crate::job::{TunnelJob, TunnelWorker, same_way};
use fluxcap_proto::v1::{self, tunnel_service_server::TunnelService};
use fluxcap_service::{
    Refusal, Registry, WatchStream, Watches, apply_mask, blocking, interval_stream, realtime_ns,
};
use tonic::{Request, Response, Status};

/// `fluxcap.v1.TunnelService` over the tunnels of this daemon.
#[derive(Debug)]
pub(crate) struct TunnelApi {
    tunnels: Registry<TunnelJob>,
    watches: Watches,
}

impl TunnelApi {
    /// Serves these tunnels.
    pub(crate) fn new(tunnels: Registry<TunnelJob>, watches: Watches) -> TunnelApi {
        TunnelApi { tunnels, watches }
    }
}

fn to_message(worker: &TunnelWorker) -> v1::Tunnel {
    let (state, reason) = worker.state();
    v1::Tunnel {
        name: worker.name().to_owned(),
        spec: Some(v1::TunnelSpec::clone(&worker.spec())),
        status: Some(v1::TunnelStatus {
            state: v1::State::from(state).into(),
            reason,
            ..worker.live().to_status()
        }),
    }
}

#[tonic::async_trait]
impl TunnelService for TunnelApi {
    async fn create_tunnel(
        &self,
        request: Request<v1::CreateTunnelRequest>,
    ) -> Result<Response<v1::CreateTunnelResponse>, Status> {
        let (tunnels, request) = (self.tunnels.clone(), request.into_inner());
        let worker = blocking(move || {
            tunnels.create(
                &request.name,
                request.spec.unwrap_or_default(),
                request.validate_only,
            )
        })
        .await?;
        Ok(Response::new(v1::CreateTunnelResponse {
            tunnel: Some(to_message(&worker)),
        }))
    }

    async fn get_tunnel(
        &self,
        request: Request<v1::GetTunnelRequest>,
    ) -> Result<Response<v1::GetTunnelResponse>, Status> {
        let worker = self.tunnels.get(&request.into_inner().name)?;
        Ok(Response::new(v1::GetTunnelResponse {
            tunnel: Some(to_message(&worker)),
        }))
    }

    async fn list_tunnels(
        &self,
        _request: Request<v1::ListTunnelsRequest>,
    ) -> Result<Response<v1::ListTunnelsResponse>, Status> {
        let tunnels = self
            .tunnels
            .list()
            .iter()
            .map(|worker| to_message(worker))
            .collect();
        Ok(Response::new(v1::ListTunnelsResponse { tunnels }))
    }

    async fn update_tunnel(
        &self,
        request: Request<v1::UpdateTunnelRequest>,
    ) -> Result<Response<v1::UpdateTunnelResponse>, Status> {
        let (tunnels, request) = (self.tunnels.clone(), request.into_inner());
        let worker = blocking(move || {
            let (new, paths) = (
                request.spec.unwrap_or_default(),
                request.update_mask.unwrap_or_default().paths,
            );
            let change = |spec: &mut v1::TunnelSpec| {
                let changed = apply_mask(spec, &new, &paths)?;
                if !same_way(spec, &changed) {
                    return Err(Refusal::Precondition(
                        "kind and direction of a tunnel cannot be changed; delete it and make another"
                            .to_owned(),
                    ));
                }
                *spec = changed;
                Ok(())
            };
            tunnels.update(&request.name, change, request.validate_only)
        })
        .await?;
        Ok(Response::new(v1::UpdateTunnelResponse {
            tunnel: Some(to_message(&worker)),
        }))
    }

    async fn delete_tunnel(
        &self,
        request: Request<v1::DeleteTunnelRequest>,
    ) -> Result<Response<v1::DeleteTunnelResponse>, Status> {
        let (tunnels, name) = (self.tunnels.clone(), request.into_inner().name);
        blocking(move || tunnels.delete(&name)).await?;
        Ok(Response::new(v1::DeleteTunnelResponse {}))
    }

    type WatchTunnelsStream = WatchStream<v1::WatchTunnelsResponse>;

    async fn watch_tunnels(
        &self,
        request: Request<v1::WatchTunnelsRequest>,
    ) -> Result<Response<Self::WatchTunnelsStream>, Status> {
        let (tunnels, request) = (self.tunnels.clone(), request.into_inner());
        let report = move || {
            let workers = tunnels.list();
            let wanted = workers.iter().filter(|w| {
                request.names.is_empty() || request.names.iter().any(|n| n == w.name())
            });
            Ok(v1::WatchTunnelsResponse {
                time_ns: realtime_ns(),
                tunnels: wanted.map(|worker| to_message(worker)).collect(),
            })
        };
        Ok(Response::new(interval_stream(
            request.interval_ms,
            &self.watches,
            report,
        )?))
    }
}
