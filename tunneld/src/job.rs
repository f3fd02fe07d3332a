//! A tunnel as a worker: what its spec has to be, and which of the two ways it goes.

use crate::stats::TunnelLive;
use crate::{receive, send};
use fluxcap_datapath::{Edge, Graph, LoopGuard, validate_rings};
use fluxcap_options::validate_tunnel;
use fluxcap_proto::v1::{TunnelReceive, TunnelSend, TunnelSpec};
use fluxcap_ring::{RingDir, RingName};
use fluxcap_service::{Job, Refusal, Registry, State, Worker};
use fluxcap_socket::{LinkWatch, Route, RouteKind};
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
        others: &[(String, TunnelSpec)],
    ) -> Result<(), Refusal> {
        validate_tunnel(spec).map_err(|error| Refusal::invalid(error.field, error.problem))?;
        if let Some(send) = &spec.send {
            validate_rings("send.rings", &send.rings)?;
        }
        spec.receive.as_ref().map_or(Ok(()), validate_mapping)?;
        refuse_own_tunnel(spec, others)
    }

    /// A packet that leaves by the interface from which its ring is filled could be captured and sent again, for ever.
    fn admit(&self, name: &str, spec: &TunnelSpec) -> Result<(), Refusal> {
        let Some(send) = spec.send.as_ref().filter(|send| !send.allow_loop) else {
            return Ok(());
        };
        let (Some(device), Ok(graph)) = (way_out(spec, send), Graph::read(&self.rings)) else {
            return Ok(());
        };
        match graph.loop_by_outputs(&reader(name), &send.rings, &[Edge::output(&device, 0)]) {
            None => Ok(()),
            Some(looped) => Err(Refusal::Precondition(format!("{looped}; {ADVICE}"))),
        }
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

/// What to do about a loop.
pub(crate) const ADVICE: &str =
    "use another way with --dev, or --allow-loop, which drops own packets found in the ring";

/// The name under which the rings know a tunnel.
pub(crate) fn reader(tunnel: &str) -> String {
    format!("tunneld {tunnel}")
}

impl TunnelJob {
    /// What keeps the packets of a tunnel from going round.
    pub(crate) fn guard(&self, name: &str, send: &TunnelSend) -> LoopGuard {
        LoopGuard {
            dir: self.rings.clone(),
            reader: reader(name),
            rings: send.rings.clone(),
            allowed: send.allow_loop,
        }
    }
}

/// A tunnel to this host itself, whose packets another tunnel of this daemon puts into a ring that it sends.
fn refuse_own_tunnel(spec: &TunnelSpec, others: &[(String, TunnelSpec)]) -> Result<(), Refusal> {
    let pair = others.iter().find_map(|(name, other)| {
        let ring = own_ring(spec, other).or_else(|| own_ring(other, spec))?;
        Some((name, ring))
    });
    match pair {
        None => Ok(()),
        Some((other, ring)) => Err(Refusal::Precondition(format!(
            "with tunnel \"{other}\" this would make a loop: ring {ring} is sent to this host, and received into ring {ring}; \
             use another ring, or --allow-loop at the one that sends"
        ))),
    }
}

/// The ring that `sender` sends to this host and that `receiver` fills with it.
fn own_ring<'s>(sender: &'s TunnelSpec, receiver: &TunnelSpec) -> Option<&'s str> {
    let (send, receive) = (sender.send.as_ref()?, receiver.receive.as_ref()?);
    if send.allow_loop || sender.kind != receiver.kind || sender.port != receiver.port {
        return None;
    }
    let fills = |ring: &&String| {
        let mapped = receive.map.iter().any(|mapping| mapping.ring == **ring);
        mapped || receive.default_ring == **ring
    };
    let ring = send.rings.iter().find(fills)?;
    // A name may not be resolved here, where clients wait.
    let remote: IpAddr = send.remote.parse().ok()?;
    let route = Route::lookup(remote, sender.local.parse().ok(), None).ok()?;
    (route.kind == RouteKind::Local).then_some(ring.as_str())
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
