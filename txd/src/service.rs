//! What the API tells of a transmit.

use crate::transmit::TransmitJob;
use fluxcap_proto::v1;
use fluxcap_service::{Resource, WorkerOf, resource_service};

resource_service! {
    TransmitApi(TransmitJob): TransmitService, transmit_service_server::TransmitServiceServer, transmit, transmits;
    create_transmit(CreateTransmitRequest) -> CreateTransmitResponse;
    get_transmit(GetTransmitRequest) -> GetTransmitResponse;
    list_transmits(ListTransmitsRequest) -> ListTransmitsResponse;
    update_transmit(UpdateTransmitRequest) -> UpdateTransmitResponse;
    delete_transmit(DeleteTransmitRequest) -> DeleteTransmitResponse;
    watch_transmits(WatchTransmitsRequest) -> WatchTransmitsResponse, WatchTransmitsStream;
}

impl Resource for TransmitJob {
    type Message = v1::Transmit;

    fn message(worker: &WorkerOf<Self>) -> v1::Transmit {
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
}
