use super::*;
use crate::State;
use fluxcap_proto::v1::{
    self, CreateCaptureRequest, DeleteCaptureRequest, GetCaptureRequest, ListCapturesRequest,
    UpdateCaptureRequest, WatchCapturesRequest, capture_service_server::CaptureService,
};
use tonic::{Code, Request};
use tonic_types::StatusExt;

#[derive(Debug, Default)]
pub(crate) struct Idle;

impl Job for Idle {
    const KIND: &'static str = "capture";
    type Spec = v1::CaptureSpec;
    type Live = ();

    fn validate(
        &self,
        _: &str,
        spec: &v1::CaptureSpec,
        _: &[(String, v1::CaptureSpec)],
    ) -> Result<(), Refusal> {
        match spec.threads {
            0..=16 => Ok(()),
            _ => Err(Refusal::invalid("threads", "at most 16")),
        }
    }

    fn run(&self, worker: &WorkerOf<Self>) {
        worker.set_state(State::Ended, "is idle");
    }
}

impl Resource for Idle {
    type Message = v1::Capture;

    fn message(worker: &WorkerOf<Self>) -> v1::Capture {
        v1::Capture {
            name: worker.name().to_owned(),
            spec: Some(v1::CaptureSpec::clone(&worker.spec())),
            status: None,
        }
    }
}

resource_service! {
    IdleApi(Idle): CaptureService, capture_service_server::CaptureServiceServer, capture, captures;
    create_capture(CreateCaptureRequest) -> CreateCaptureResponse;
    get_capture(GetCaptureRequest) -> GetCaptureResponse;
    list_captures(ListCapturesRequest) -> ListCapturesResponse;
    update_capture(UpdateCaptureRequest) -> UpdateCaptureResponse;
    delete_capture(DeleteCaptureRequest) -> DeleteCaptureResponse;
    watch_captures(WatchCapturesRequest) -> WatchCapturesResponse, WatchCapturesStream;
}

fn api() -> (IdleApi, Registry<Idle>) {
    let registry = Registry::new(Idle, None).expect("a registry");
    // The server is only made here, to see that it can be.
    drop(IdleApi::server(registry.clone(), Watches::default()));
    (
        IdleApi(Api::new(registry.clone(), Watches::default())),
        registry,
    )
}

fn create(name: &str, validate_only: bool) -> Request<CreateCaptureRequest> {
    Request::new(CreateCaptureRequest {
        name: name.to_owned(),
        validate_only,
        ..CreateCaptureRequest::default()
    })
}

#[tokio::test]
async fn what_does_not_exist_is_not_found_by_each_method() {
    let (api, _) = api();
    let name = || "nobody".to_owned();
    let get = api.get_capture(Request::new(GetCaptureRequest { name: name() }));
    assert_eq!(get.await.expect_err("get").code(), Code::NotFound);
    let update = api.update_capture(Request::new(UpdateCaptureRequest {
        name: name(),
        ..UpdateCaptureRequest::default()
    }));
    assert_eq!(update.await.expect_err("update").code(), Code::NotFound);
    let delete = api.delete_capture(Request::new(DeleteCaptureRequest { name: name() }));
    assert_eq!(delete.await.expect_err("delete").code(), Code::NotFound);
    let watch = api.watch_captures(Request::new(WatchCapturesRequest {
        names: vec![name()],
        interval_ms: 0,
    }));
    assert_eq!(watch.await.err().expect("watch").code(), Code::NotFound);
}

#[tokio::test]
async fn validate_only_changes_nothing() {
    let (api, registry) = api();
    let answer = api.create_capture(create("a", true)).await.expect("valid");
    assert_eq!(answer.into_inner().capture.expect("a picture").name, "a");
    assert!(registry.list().is_empty());
    api.create_capture(create("a", false)).await.expect("made");
    let update = |threads, validate_only| {
        Request::new(UpdateCaptureRequest {
            name: "a".to_owned(),
            spec: Some(v1::CaptureSpec {
                threads,
                ..v1::CaptureSpec::default()
            }),
            update_mask: None,
            validate_only,
        })
    };
    let picture = api.update_capture(update(5, true)).await.expect("valid");
    let spec = picture.into_inner().capture.and_then(|it| it.spec);
    assert_eq!(spec.expect("a spec").threads, 5);
    let threads = || registry.get("a").expect("there").spec().threads;
    assert_eq!(threads(), 0);
    let refused = api.update_capture(update(17, true)).await.expect_err("17");
    let details = refused.get_details_bad_request().expect("details");
    assert_eq!(details.field_violations[0].field, "spec.threads");
    assert_eq!(refused.message(), "threads: at most 16");
    api.update_capture(update(5, false)).await.expect("changed");
    assert_eq!(threads(), 5);
}

#[tokio::test]
async fn all_pages_together_are_the_list() {
    let (api, _) = api();
    for name in ["c", "a", "b"] {
        api.create_capture(create(name, false)).await.expect("made");
    }
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let page_size = 2;
        let request = Request::new(ListCapturesRequest {
            page_size,
            page_token,
        });
        let page = api
            .list_captures(request)
            .await
            .expect("a page")
            .into_inner();
        names.extend(page.captures.into_iter().map(|capture| capture.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
}
