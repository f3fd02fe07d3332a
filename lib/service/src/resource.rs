//! The gRPC service of a daemon whose resources are the workers of a [`Registry`]: create, get, list, update, delete and
//! watch, written once. A daemon says by [`Resource`] what differs, and by [`resource_service!`] what its generated
//! service is called.

use crate::{
    Job, Refusal, Registry, WatchStream, Watches, Worker, apply_mask, blocking, interval_stream,
    page, realtime_ns, still_wanted,
};
use prost::Message;
use std::{fmt, sync::Arc};
use tonic::Status;

/// A worker of a job.
pub type WorkerOf<J> = Worker<<J as Job>::Spec, <J as Job>::Live>;

/// A job whose workers clients make, look at and change.
pub trait Resource: Job<Spec: Default> + Sized {
    /// What the API tells of one.
    type Message: Message + Default;

    /// What there is to tell of a worker. It runs on a control thread: it must not block.
    fn message(worker: &WorkerOf<Self>) -> Self::Message;

    /// Makes one; as [`Registry::create`] unless more is to be done.
    fn create(
        registry: &Registry<Self>,
        name: &str,
        spec: Self::Spec,
        validate_only: bool,
    ) -> Result<Arc<WorkerOf<Self>>, Refusal> {
        registry.create(name, spec, validate_only)
    }

    /// What becomes of the spec `old` when a client gives `new` and the names of the fields to take from it.
    fn change(
        registry: &Registry<Self>,
        name: &str,
        old: &Self::Spec,
        new: &Self::Spec,
        paths: &[String],
    ) -> Result<Self::Spec, Refusal> {
        let _ = (registry, name);
        apply_mask(old, new, paths)
    }

    /// Waits, for a bounded time, until what was asked for is in place: the answer tells of that then.
    fn settle(worker: &WorkerOf<Self>) {
        let _ = worker;
    }

    /// Deletes one; as [`Registry::delete`] unless more is to be done.
    fn delete(registry: &Registry<Self>, name: &str) -> Result<(), Refusal> {
        registry.delete(name)
    }
}

/// What the methods of the service do. They are called by the code that [`resource_service!`](crate::resource_service!) writes.
pub struct Api<J: Resource> {
    registry: Registry<J>,
    watches: Watches,
}

impl<J: Resource> fmt::Debug for Api<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl<J: Resource> Api<J> {
    /// Serves the workers of `registry`.
    pub fn new(registry: Registry<J>, watches: Watches) -> Api<J> {
        Api { registry, watches }
    }

    /// Makes one.
    pub async fn create(
        &self,
        name: String,
        spec: Option<J::Spec>,
        validate_only: bool,
    ) -> Result<J::Message, Status> {
        let registry = self.registry.clone();
        blocking(move || {
            let new = !validate_only && registry.get(&name).is_err();
            let worker = J::create(&registry, &name, spec.unwrap_or_default(), validate_only)
                .map_err(Refusal::in_spec)?;
            let message = answer::<J>(&worker, validate_only);
            match still_wanted() {
                // It came to be while nobody waited for it any more, who takes it as not made.
                Err(refusal) if new => {
                    registry.remove(&name)?;
                    Err(refusal)
                }
                _ => Ok(message),
            }
        })
        .await
    }

    /// Tells of one.
    pub fn get(&self, name: &str) -> Result<J::Message, Status> {
        Ok(J::message(&*self.registry.get(name)?))
    }

    /// A page of all of them, by name, and the token of the next page.
    pub fn list(&self, size: u32, token: &str) -> (Vec<J::Message>, String) {
        let workers = self.registry.list();
        let all = workers
            .iter()
            .map(|worker| (worker.name(), || J::message(worker)));
        page(all, size, token)
    }

    /// Changes one.
    pub async fn update(
        &self,
        name: String,
        spec: Option<J::Spec>,
        paths: Vec<String>,
        validate_only: bool,
    ) -> Result<J::Message, Status> {
        let registry = self.registry.clone();
        blocking(move || {
            let new = spec.unwrap_or_default();
            let change = |spec: &mut J::Spec| {
                *spec = J::change(&registry, &name, spec, &new, &paths)?;
                Ok(())
            };
            let worker = registry
                .update(&name, change, validate_only)
                .map_err(Refusal::in_spec)?;
            Ok(answer::<J>(&worker, validate_only))
        })
        .await
    }

    /// Deletes one.
    pub async fn delete(&self, name: String) -> Result<(), Status> {
        let registry = self.registry.clone();
        blocking(move || J::delete(&registry, &name)).await
    }

    /// Reports on those of these names, or on all, again and again. A name that does not exist is refused; one that goes
    /// away later is left out from then on.
    pub fn watch<R: Send + 'static>(
        &self,
        names: Vec<String>,
        interval_ms: u32,
        report: impl Fn(u64, Vec<J::Message>) -> R + Send + 'static,
    ) -> Result<WatchStream<R>, Status> {
        for name in &names {
            self.registry.get(name)?;
        }
        let registry = self.registry.clone();
        let next = move || {
            let workers = registry.list();
            let wanted = workers.iter().filter(|worker| {
                names.is_empty() || names.iter().any(|name| name == worker.name())
            });
            let messages = wanted.map(|worker| J::message(worker)).collect();
            Ok(report(realtime_ns(), messages))
        };
        Ok(interval_stream(interval_ms, &self.watches, next)?)
    }
}

/// A worker that was made or changed just now, or that is only a picture of what would be.
fn answer<J: Resource>(worker: &WorkerOf<J>, only_a_picture: bool) -> J::Message {
    if !only_a_picture {
        J::settle(worker);
    }
    J::message(worker)
}

/// Writes the service of a daemon: a type, the generated trait for it, and the server with the limits that all have.
///
/// ```text
/// fluxcap_service::resource_service! {
///     CaptureApi(CaptureJob): CaptureService, capture_service_server::CaptureServiceServer, capture, captures;
///     create_capture(CreateCaptureRequest) -> CreateCaptureResponse;
///     get_capture(GetCaptureRequest) -> GetCaptureResponse;
///     list_captures(ListCapturesRequest) -> ListCapturesResponse;
///     update_capture(UpdateCaptureRequest) -> UpdateCaptureResponse;
///     delete_capture(DeleteCaptureRequest) -> DeleteCaptureResponse;
///     watch_captures(WatchCapturesRequest) -> WatchCapturesResponse, WatchCapturesStream;
/// }
/// ```
///
/// becomes, with five more methods like this one,
///
/// ```text
/// pub(crate) struct CaptureApi(Api<CaptureJob>);
///
/// impl CaptureApi {
///     pub(crate) fn server(captures: Registry<CaptureJob>, watches: Watches) -> CaptureServiceServer<CaptureApi> {
///         CaptureServiceServer::new(CaptureApi(Api::new(captures, watches))).max_decoding_message_size(MAX_MESSAGE_BYTES)
///     }
/// }
///
/// #[tonic::async_trait]
/// impl CaptureService for CaptureApi {
///     async fn get_capture(&self, request: Request<GetCaptureRequest>) -> Result<Response<GetCaptureResponse>, Status> {
///         let capture = self.0.get(&checked(request)?.name)?;
///         Ok(Response::new(GetCaptureResponse { capture: Some(capture) }))
///     }
/// }
/// ```
#[macro_export]
macro_rules! resource_service {
    (
        $api:ident($job:ty): $service:ident, $module:ident::$server:ident, $one:ident, $many:ident;
        $create:ident($create_request:ident) -> $create_response:ident;
        $get:ident($get_request:ident) -> $get_response:ident;
        $list:ident($list_request:ident) -> $list_response:ident;
        $update:ident($update_request:ident) -> $update_response:ident;
        $delete:ident($delete_request:ident) -> $delete_response:ident;
        $watch:ident($watch_request:ident) -> $watch_response:ident, $stream:ident;
    ) => {
        /// The service over the workers of this daemon.
        #[derive(Debug)]
        pub(crate) struct $api($crate::Api<$job>);

        impl $api {
            /// The server, with the limits that every daemon has.
            pub(crate) fn server(
                $many: $crate::Registry<$job>,
                watches: $crate::Watches,
            ) -> fluxcap_proto::v1::$module::$server<$api> {
                fluxcap_proto::v1::$module::$server::new($api($crate::Api::new($many, watches)))
                    .max_decoding_message_size($crate::MAX_MESSAGE_BYTES)
            }
        }

        #[tonic::async_trait]
        impl fluxcap_proto::v1::$module::$service for $api {
            async fn $create(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$create_request>,
            ) -> Result<tonic::Response<fluxcap_proto::v1::$create_response>, tonic::Status> {
                let request = $crate::checked(request)?;
                let $one = self
                    .0
                    .create(request.name, request.spec, request.validate_only)
                    .await?;
                Ok(tonic::Response::new(fluxcap_proto::v1::$create_response {
                    $one: Some($one),
                }))
            }

            async fn $get(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$get_request>,
            ) -> Result<tonic::Response<fluxcap_proto::v1::$get_response>, tonic::Status> {
                let $one = self.0.get(&$crate::checked(request)?.name)?;
                Ok(tonic::Response::new(fluxcap_proto::v1::$get_response {
                    $one: Some($one),
                }))
            }

            async fn $list(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$list_request>,
            ) -> Result<tonic::Response<fluxcap_proto::v1::$list_response>, tonic::Status> {
                let request = $crate::checked(request)?;
                let ($many, next_page_token) = self.0.list(request.page_size, &request.page_token);
                Ok(tonic::Response::new(fluxcap_proto::v1::$list_response {
                    $many,
                    next_page_token,
                }))
            }

            async fn $update(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$update_request>,
            ) -> Result<tonic::Response<fluxcap_proto::v1::$update_response>, tonic::Status> {
                let request = $crate::checked(request)?;
                let paths = request.update_mask.unwrap_or_default().paths;
                let $one = self
                    .0
                    .update(request.name, request.spec, paths, request.validate_only)
                    .await?;
                Ok(tonic::Response::new(fluxcap_proto::v1::$update_response {
                    $one: Some($one),
                }))
            }

            async fn $delete(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$delete_request>,
            ) -> Result<tonic::Response<fluxcap_proto::v1::$delete_response>, tonic::Status> {
                self.0.delete($crate::checked(request)?.name).await?;
                Ok(tonic::Response::new(fluxcap_proto::v1::$delete_response {}))
            }

            type $stream = $crate::WatchStream<fluxcap_proto::v1::$watch_response>;

            async fn $watch(
                &self,
                request: tonic::Request<fluxcap_proto::v1::$watch_request>,
            ) -> Result<tonic::Response<Self::$stream>, tonic::Status> {
                let request = $crate::checked(request)?;
                let report = |time_ns, $many| fluxcap_proto::v1::$watch_response { time_ns, $many };
                let stream = self.0.watch(request.names, request.interval_ms, report)?;
                Ok(tonic::Response::new(stream))
            }
        }
    };
}

#[cfg(test)]
mod tests;
