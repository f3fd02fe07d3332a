//! The built ringd, driven over its socket.

mod daemon;
mod lifetime;
mod mount;
mod requests;

use daemon::{Dirs, PATIENCE, Ringd, until};
use fluxcap_proto::v1::{
    CreateRingRequest, DeleteRingRequest, GetRingRequest, Ring, RingMode, RingSpec, State,
    UpdateRingRequest, WatchRingsRequest,
};
use fluxcap_ring::{Batch, Consumer, Direction, Flags, Meta, Producer, RingDir, RingName, Start};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, Instant},
};
use tonic::{Code, Status};

const M: u64 = 1 << 20;

fn spec(size_bytes: u64) -> RingSpec {
    RingSpec {
        size_bytes,
        mode: RingMode::Overwrite.into(),
    }
}

fn request(name: &str, size_bytes: u64) -> CreateRingRequest {
    CreateRingRequest {
        name: name.to_owned(),
        spec: Some(spec(size_bytes)),
        ..CreateRingRequest::default()
    }
}

async fn create(ringd: &Ringd<'_>, request: CreateRingRequest) -> Result<Ring, Status> {
    Ok(ringd
        .client()
        .await
        .create_ring(request)
        .await?
        .into_inner()
        .ring
        .expect("ring"))
}

async fn resize(
    ringd: &Ringd<'_>,
    name: &str,
    spec: RingSpec,
    mask: &[&str],
) -> Result<Ring, Status> {
    let paths = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = UpdateRingRequest {
        name: name.to_owned(),
        spec: Some(spec),
        update_mask: Some(prost_types::FieldMask { paths }),
        validate_only: false,
    };
    Ok(ringd
        .client()
        .await
        .update_ring(request)
        .await?
        .into_inner()
        .ring
        .expect("ring"))
}

async fn delete(ringd: &Ringd<'_>, name: &str) -> Result<Option<String>, Status> {
    let answer = ringd
        .client()
        .await
        .delete_ring(DeleteRingRequest {
            name: name.to_owned(),
            only_unused: false,
        })
        .await?;
    Ok(answer
        .metadata()
        .get("fluxcap-attached")
        .map(|value| value.to_str().expect("text").to_owned()))
}

fn epoch(ring: &Ring) -> u64 {
    ring.status.as_ref().expect("status").epoch
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(
            status.message().contains(part),
            "no \"{part}\" in: {}",
            status.message()
        );
    }
}

fn open_producer(dirs: &Dirs, ring: &str) -> Producer {
    let name = RingName::parse(ring).expect("name");
    Producer::open(&RingDir::new(dirs.rings()), &name, "test").expect("producer")
}

/// Publishes frames of 64 bytes.
fn publish(producer: &mut Producer, frames: usize) {
    let source = producer.register_source("eth1").expect("source");
    let meta = Meta {
        timestamp_ns: 1,
        wire_len: 64,
        source,
        direction: Direction::In,
        vlan_count: 0,
        flow_hash: 0,
        id: 0,
        flags: Flags::default(),
    };
    let bytes = frames * fluxcap_ring::record_size(64);
    let mut burst = producer.reserve(bytes).expect("reserve").expect("room");
    for _ in 0..frames {
        assert!(burst.push(&meta, &[&[0x55; 64]]));
    }
    burst.commit();
}
