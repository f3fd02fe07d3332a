//! What the API tells of a capture.

use crate::capture::CaptureJob;
use fluxcap_proto::v1;
use fluxcap_service::{Resource, WorkerOf, resource_service};

resource_service! {
    CaptureApi(CaptureJob): CaptureService, capture_service_server::CaptureServiceServer, capture, captures;
    create_capture(CreateCaptureRequest) -> CreateCaptureResponse;
    get_capture(GetCaptureRequest) -> GetCaptureResponse;
    list_captures(ListCapturesRequest) -> ListCapturesResponse;
    update_capture(UpdateCaptureRequest) -> UpdateCaptureResponse;
    delete_capture(DeleteCaptureRequest) -> DeleteCaptureResponse;
    watch_captures(WatchCapturesRequest) -> WatchCapturesResponse, WatchCapturesStream;
}

impl Resource for CaptureJob {
    type Message = v1::Capture;

    fn message(worker: &WorkerOf<Self>) -> v1::Capture {
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
}
