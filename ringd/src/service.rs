//! The methods of `RingService`: parse the request, do it, build the answer.

use crate::rings::{How, Replace, Rings, parse_name};
use fluxcap_proto::v1::{
    CreateRingRequest, CreateRingResponse, DeleteRingRequest, DeleteRingResponse, GetRingRequest,
    GetRingResponse, ListRingsRequest, ListRingsResponse, Ring, UpdateRingRequest,
    UpdateRingResponse, WatchRingsRequest, WatchRingsResponse, ring_service_server::RingService,
};
use fluxcap_ring::{Creation, RingName};
use fluxcap_service::{Refusal, WatchStream, Watches, blocking, checked, interval_stream, page};
use std::{collections::BTreeSet, sync::Arc};
use tonic::{Request, Response, Status, metadata::MetadataValue};

/// In the answer to DeleteRing: who was attached.
const ATTACHED: &str = "fluxcap-attached";

/// A creation is given up when nobody waits for the answer any more: the client is gone, or its time is over. What was answered as
/// failed is not made then.
#[derive(Debug, Default)]
struct Awaited(Arc<Creation>);

impl Awaited {
    fn how(&self, validate_only: bool) -> How {
        How {
            validate_only,
            creation: Arc::clone(&self.0),
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[derive(Debug)]
pub(crate) struct Service {
    rings: Arc<Rings>,
    watches: Watches,
}

impl Service {
    pub(crate) fn new(rings: Arc<Rings>, watches: Watches) -> Service {
        Service { rings, watches }
    }
}

/// The name of a ring that there should be: what cannot be a name is not there.
fn existing_name(name: &str) -> Result<RingName, Refusal> {
    parse_name(name).map_err(|refusal| match refusal {
        Refusal::Invalid { message, .. } => {
            Refusal::NotFound(format!("there is no such ring: {message}"))
        }
        other => other,
    })
}

#[tonic::async_trait]
impl RingService for Service {
    type WatchRingsStream = WatchStream<WatchRingsResponse>;

    async fn create_ring(
        &self,
        request: Request<CreateRingRequest>,
    ) -> Result<Response<CreateRingResponse>, Status> {
        let CreateRingRequest {
            name,
            spec,
            replace,
            validate_only,
        } = checked(request)?;
        let rings = Arc::clone(&self.rings);
        let awaited = Awaited::default();
        let how = awaited.how(validate_only);
        let replace = if replace {
            Replace::Always
        } else {
            Replace::Never
        };
        let ring = blocking(move || {
            rings.create(
                &parse_name(&name)?,
                &spec.unwrap_or_default(),
                replace,
                &how,
            )
        })
        .await?;
        Ok(Response::new(CreateRingResponse { ring: Some(ring) }))
    }

    async fn get_ring(
        &self,
        request: Request<GetRingRequest>,
    ) -> Result<Response<GetRingResponse>, Status> {
        let name = existing_name(&checked(request)?.name)?;
        let rings = Arc::clone(&self.rings);
        let ring = blocking(move || rings.get(&name)).await?;
        Ok(Response::new(GetRingResponse { ring: Some(ring) }))
    }

    async fn list_rings(
        &self,
        request: Request<ListRingsRequest>,
    ) -> Result<Response<ListRingsResponse>, Status> {
        let rings = Arc::clone(&self.rings);
        let ListRingsRequest {
            page_size,
            page_token,
        } = checked(request)?;
        let rings = blocking(move || rings.list()).await?;
        let all = rings
            .iter()
            .map(|ring| (ring.name.as_str(), || ring.clone()));
        let (rings, next_page_token) = page(all, page_size, &page_token);
        Ok(Response::new(ListRingsResponse {
            rings,
            next_page_token,
        }))
    }

    async fn update_ring(
        &self,
        request: Request<UpdateRingRequest>,
    ) -> Result<Response<UpdateRingResponse>, Status> {
        let UpdateRingRequest {
            name,
            spec,
            update_mask,
            validate_only,
        } = checked(request)?;
        let mask = update_mask.unwrap_or_default().paths;
        let rings = Arc::clone(&self.rings);
        let awaited = Awaited::default();
        let how = awaited.how(validate_only);
        let ring = blocking(move || {
            rings.update(
                &existing_name(&name)?,
                &spec.unwrap_or_default(),
                &mask,
                &how,
            )
        })
        .await?;
        Ok(Response::new(UpdateRingResponse { ring: Some(ring) }))
    }

    async fn delete_ring(
        &self,
        request: Request<DeleteRingRequest>,
    ) -> Result<Response<DeleteRingResponse>, Status> {
        let DeleteRingRequest { name, only_unused } = checked(request)?;
        let name = existing_name(&name)?;
        let rings = Arc::clone(&self.rings);
        let attached = blocking(move || rings.delete(&name, only_unused)).await?;
        let mut response = Response::new(DeleteRingResponse {});
        // Labels are free text; one that does not fit into a header is in the log only.
        if !attached.is_empty()
            && let Ok(value) = MetadataValue::try_from(attached)
        {
            response.metadata_mut().insert(ATTACHED, value);
        }
        Ok(response)
    }

    async fn watch_rings(
        &self,
        request: Request<WatchRingsRequest>,
    ) -> Result<Response<Self::WatchRingsStream>, Status> {
        let WatchRingsRequest { names, interval_ms } = checked(request)?;
        for name in &names {
            self.rings.get(&existing_name(name)?)?;
        }
        let names: BTreeSet<String> = names.into_iter().collect();
        let rings = Arc::clone(&self.rings);
        // Reads headers and slots of mapped memory: quick enough for a control thread.
        let next = move || {
            let wanted = |ring: &&Ring| names.is_empty() || names.contains(&ring.name);
            let snapshot = rings.recent()?;
            let rings = snapshot.rings.iter().filter(wanted).cloned().collect();
            Ok(WatchRingsResponse {
                time_ns: snapshot.time_ns,
                rings,
            })
        };
        Ok(Response::new(interval_stream(
            interval_ms,
            &self.watches,
            next,
        )?))
    }
}
