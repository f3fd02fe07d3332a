//! A tunnel as a worker: what its spec has to be, and which of the two ways it goes.

use crate::stats::TunnelLive;
use crate::{receive, send};
use fluxcap_datapath::{find_loop, validate_rings};
use fluxcap_options::validate_tunnel;
use fluxcap_proto::v1::{TunnelReceive, TunnelSend, TunnelSpec};
use fluxcap_ring::{RingDir, RingName};
use fluxcap_service::{Job, Refusal, Registry, State, Worker};
use fluxcap_socket::{LinkWatch, Route};
use std::net::IpAddr;

/// The worker of a tunnel.
pub(crate) type TunnelWorker = Worker<TunnelSpec, TunnelLive>;

/// The work of tunneld.
#[derive(Debug)]
pub(crate) struct TunnelJob {
    /// Where the rings are.
    pub(crate) rings: RingDir,
}

impl Job for TunnelJob {
    const KIND: &'static str = "tunnel";
    type Spec = TunnelSpec;
    type Live = TunnelLive;

    fn validate(
        &self,
        _name: &str,
        spec: &TunnelSpec,
        _others: &[(String, TunnelSpec)],
    ) -> Result<(), Refusal> {
        validate_tunnel(spec).map_err(|error| Refusal::invalid(error.field, error.problem))?;
        if let Some(send) = &spec.send {
            validate_rings("send.rings", &send.rings)?;
            self.refuse_loop(spec, send)?;
        }
        spec.receive.as_ref().map_or(Ok(()), validate_mapping)
    }

    fn run(&self, worker: &TunnelWorker) {
        let spec = worker.spec();
        match (&spec.send, &spec.receive) {
            (Some(_), _) => send::run(self, worker),
            (None, Some(_)) => receive::run(self, worker),
            // Refused by `validate`.
            (None, None) => worker.set_state(State::Failed, "neither sends nor receives"),
        }
    }
}

impl TunnelJob {
    /// A packet that leaves by the interface from which its ring is filled could be captured and sent again, for ever.
    fn refuse_loop(&self, spec: &TunnelSpec, send: &TunnelSend) -> Result<(), Refusal> {
        if send.allow_loop {
            return Ok(());
        }
        let Some(device) = way_out(spec, send) else {
            return Ok(());
        };
        let devices = [device];
        match find_loop(&self.rings, &send.rings, &devices) {
            None => Ok(()),
            Some((ring, device)) => Err(Refusal::Precondition(format!(
                "interface {device}, by which the tunnel would leave, feeds ring {ring}, so what is sent there could \
                 come back in; use another way with --dev, or --allow-loop, which drops own packets found in the ring"
            ))),
        }
    }
}

/// The interface by which the tunnel's packets leave, as far as that is known before they do.
fn way_out(spec: &TunnelSpec, send: &TunnelSend) -> Option<String> {
    if !spec.device.is_empty() {
        return Some(spec.device.clone());
    }
    // A name may not be resolved here, where clients wait.
    let remote: IpAddr = send.remote.parse().ok()?;
    let route = Route::lookup(remote, spec.local.parse().ok(), None).ok()?;
    let link = LinkWatch::open().ok()?.find_index(route.ifindex).ok()??;
    Some(link.name)
}

/// Whether two specs are of the same kind and go the same way: what cannot be changed in a running tunnel.
pub(crate) fn same_way(a: &TunnelSpec, b: &TunnelSpec) -> bool {
    a.kind == b.kind && a.send.is_some() == b.send.is_some()
}

/// Starts a tunnel that the command line asks for. One of the same name is given this spec, or makes room.
pub(crate) fn put(
    tunnels: &Registry<TunnelJob>,
    name: &str,
    spec: TunnelSpec,
) -> Result<(), Refusal> {
    if let Ok(existing) = tunnels.get(name)
        && !same_way(&existing.spec(), &spec)
    {
        tunnels.delete(name)?;
    }
    tunnels.put(name, spec).map(|_| ())
}

fn validate_mapping(receive: &TunnelReceive) -> Result<(), Refusal> {
    for mapping in &receive.map {
        validate_ring("receive.map", &mapping.ring)?;
    }
    match receive.default_ring.as_str() {
        "" => Ok(()),
        ring => validate_ring("receive.default_ring", ring),
    }
}

fn validate_ring(field: &str, ring: &str) -> Result<(), Refusal> {
    RingName::parse(ring)
        .map(|_| ())
        .map_err(|error| Refusal::invalid(field, error.to_string()))
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::{TunnelKind, TunnelMapping};

    fn job() -> TunnelJob {
        TunnelJob {
            rings: RingDir::new("/nowhere"),
        }
    }

    fn refusal(spec: &TunnelSpec) -> String {
        let refusal = job().validate("a", spec, &[]).err();
        refusal.map(|it| it.to_string()).unwrap_or_default()
    }

    fn sending(rings: &[&str]) -> TunnelSpec {
        TunnelSpec {
            kind: TunnelKind::Gretap.into(),
            send: Some(TunnelSend {
                rings: rings.iter().map(|&ring| ring.to_owned()).collect(),
                remote: "192.0.2.9".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn receiving(ring: &str, default_ring: &str) -> TunnelSpec {
        let map = vec![TunnelMapping {
            id: Some(5),
            ring: ring.into(),
        }];
        TunnelSpec {
            kind: TunnelKind::Gretap.into(),
            receive: Some(TunnelReceive {
                map,
                default_ring: default_ring.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn rings_that_are_not_there_are_no_reason_to_refuse() {
        assert_eq!(refusal(&sending(&["cisco", "shm:dell"])), "");
        assert_eq!(refusal(&receiving("cisco", "shm:rest")), "");
    }

    #[test]
    fn rings_have_names_that_rings_can_have() {
        assert!(refusal(&sending(&["cisco", "a/b"])).starts_with("rings: "));
        assert!(refusal(&sending(&["a", "a"])).contains("named twice"));
        assert!(refusal(&receiving("", "")).starts_with("map: "));
        assert!(refusal(&receiving("a", "A!")).starts_with("default-ring: "));
    }

    #[test]
    fn what_the_spec_says_wrong_is_refused_with_the_field() {
        let mut spec = sending(&["cisco"]);
        spec.port = 5;
        assert_eq!(refusal(&spec), "port: gretap has no dport");
    }

    #[test]
    fn kind_and_direction_are_what_a_tunnel_keeps() {
        let (send, receive) = (sending(&["a"]), receiving("a", ""));
        assert!(same_way(&send, &sending(&["b"])) && !same_way(&send, &receive));
        let gre = TunnelSpec {
            kind: TunnelKind::Gre.into(),
            ..send.clone()
        };
        assert!(!same_way(&send, &gre));
    }

    #[test]
    fn a_tunnel_of_the_command_line_takes_the_place_of_a_kept_one() {
        let tunnels = Registry::new(job(), None).unwrap();
        put(&tunnels, "a", sending(&["a"])).unwrap();
        put(&tunnels, "a", receiving("b", "")).unwrap();
        put(&tunnels, "a", receiving("c", "")).unwrap();
        assert_eq!(*tunnels.get("a").unwrap().spec(), receiving("c", ""));
    }
}
