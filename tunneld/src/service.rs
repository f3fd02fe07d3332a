//! What the API tells of a tunnel, and what of one cannot be changed.

use crate::job::{TunnelJob, same_way};
use fluxcap_proto::v1;
use fluxcap_service::{Refusal, Registry, Resource, WorkerOf, apply_mask, resource_service};

resource_service! {
    TunnelApi(TunnelJob): TunnelService, tunnel_service_server::TunnelServiceServer, tunnel, tunnels;
    create_tunnel(CreateTunnelRequest) -> CreateTunnelResponse;
    get_tunnel(GetTunnelRequest) -> GetTunnelResponse;
    list_tunnels(ListTunnelsRequest) -> ListTunnelsResponse;
    update_tunnel(UpdateTunnelRequest) -> UpdateTunnelResponse;
    delete_tunnel(DeleteTunnelRequest) -> DeleteTunnelResponse;
    watch_tunnels(WatchTunnelsRequest) -> WatchTunnelsResponse, WatchTunnelsStream;
}

impl Resource for TunnelJob {
    type Message = v1::Tunnel;

    fn message(worker: &WorkerOf<Self>) -> v1::Tunnel {
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

    fn change(
        _tunnels: &Registry<Self>,
        _name: &str,
        old: &v1::TunnelSpec,
        new: &v1::TunnelSpec,
        paths: &[String],
    ) -> Result<v1::TunnelSpec, Refusal> {
        let spec = apply_mask(old, new, paths)?;
        if same_way(old, &spec) {
            return Ok(spec);
        }
        Err(Refusal::Precondition(
            "kind and direction of a tunnel cannot be changed; delete it and make another"
                .to_owned(),
        ))
    }
}
