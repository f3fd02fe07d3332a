//! From the options of a tunnel to its spec. Each option is put into its field at one place, which also names that field for an
//! update mask.

use super::args::{
    DecapArgs, EncapArgs, FieldArg, FromArg, TunnelArgs, TunnelReceiveArgs, TunnelSendArgs,
    TunnelSetArgs,
};
use super::{IdArg, MapArg, ReceiveWork, SendWork, tunnel_kind_word};
use crate::UsageError;
use crate::given::Given;
use fluxcap_proto::v1::{
    ErspanDirection, InnerProtocol, MtuPolicy, TunnelKind, TunnelMapping, TunnelReceive,
    TunnelSend, TunnelSpec,
};

impl TunnelArgs {
    fn apply(&self, spec: &mut TunnelSpec, given: &mut Given) {
        given.put("local", &mut spec.local, self.local.clone());
        given.put("device", &mut spec.device, self.dev.clone());
        given.put("port", &mut spec.port, self.dport);
        let inner = self.inner.map(|it| InnerProtocol::from(it).into());
        given.put("inner", &mut spec.inner, inner);
        given.put("checksum", &mut spec.checksum, self.csum);
        given.put("sequence", &mut spec.sequence, self.seq);
    }
}

impl EncapArgs {
    fn apply(&self, send: &mut TunnelSend, given: &mut Given) {
        if let Some(ttl) = self.ttl {
            given.0.extend(["send.ttl", "send.ttl_inherit"]);
            (send.ttl, send.ttl_inherit) = ttl.split();
        }
        if let Some(tos) = self.tos {
            given.0.extend(["send.tos", "send.tos_inherit"]);
            (send.tos, send.tos_inherit) = tos.split();
        }
        let policy = self.mtu_policy.map(|it| MtuPolicy::from(it).into());
        given.put("send.mtu_policy", &mut send.mtu_policy, policy);
        given.put("send.df", &mut send.df, self.df.map(Some));
        given.put("send.source_port", &mut send.source_port, self.sport);
        let checksum = self.udp_csum.map(Some);
        given.put("send.udp_checksum", &mut send.udp_checksum, checksum);
        let version = self.erspan_ver.map(Some);
        given.put("send.erspan_version", &mut send.erspan_version, version);
        given.put("send.erspan_index", &mut send.erspan_index, self.index);
        let direction = self.erspan_dir.map(|it| ErspanDirection::from(it).into());
        given.put(
            "send.erspan_direction",
            &mut send.erspan_direction,
            direction,
        );
        given.put("send.erspan_hwid", &mut send.erspan_hwid, self.erspan_hwid);
        given.put("send.gue_variant", &mut send.gue_variant, self.variant);
        given.put("send.metadata", &mut send.metadata, self.metadata);
        let io = self.io.map(|io| io.as_str().to_owned());
        given.put("send.io", &mut send.io, io);
        given.put(
            "send.merge_window_us",
            &mut send.merge_window_us,
            self.merge_window,
        );
        given.put("send.allow_loop", &mut send.allow_loop, self.allow_loop);
    }
}

impl DecapArgs {
    fn apply(&self, receive: &mut TunnelReceive, given: &mut Given) {
        let map: Vec<TunnelMapping> = self.map.iter().map(MapArg::to_message).collect();
        let map = Some(map).filter(|map| !map.is_empty());
        given.put("receive.map", &mut receive.map, map);
        let ring = self.default_ring.clone();
        given.put("receive.default_ring", &mut receive.default_ring, ring);
        let mac = self.mac_destination.clone();
        given.put("receive.mac_destination", &mut receive.mac_destination, mac);
        let mac = self.mac_source.clone();
        given.put("receive.mac_source", &mut receive.mac_source, mac);
        given.put(
            "receive.zero_udp6_checksum",
            &mut receive.zero_udp6_checksum,
            self.udp6zerocsumrx,
        );
        given.put(
            "receive.buffer_bytes",
            &mut receive.buffer_bytes,
            self.buffer,
        );
    }
}

impl TunnelSendArgs {
    /// The spec of the tunnel.
    ///
    /// # Errors
    /// Options that make no sense for the kind.
    pub fn to_spec(&self, work: &SendWork) -> Result<TunnelSpec, UsageError> {
        let args = self.clone();
        let all = TunnelSetArgs {
            tunnel: args.tunnel,
            encap: args.encap,
            decap: DecapArgs::default(),
            from: args.from.map(FromArg::Start).into_iter().collect(),
            scheduling: args.scheduling,
            edits: args.edits,
        };
        all.send_spec(work)
    }
}

impl TunnelReceiveArgs {
    /// The spec of the tunnel.
    ///
    /// # Errors
    /// Options that make no sense for the kind, or no ring.
    pub fn to_spec(&self, work: &ReceiveWork) -> Result<TunnelSpec, UsageError> {
        let args = self.clone();
        let all = TunnelSetArgs {
            tunnel: args.tunnel,
            encap: EncapArgs::default(),
            decap: args.decap,
            from: args.from.into_iter().map(FromArg::Network).collect(),
            scheduling: args.scheduling,
            edits: args.edits,
        };
        all.receive_spec(work)
    }
}

impl TunnelSetArgs {
    /// The specs of tunnels that send and of others that receive, in that order. What is for one direction only goes to
    /// the tunnels of that direction.
    ///
    /// # Errors
    /// Options that make no sense for one of the tunnels, or for none of them.
    pub fn to_specs(
        &self,
        sends: &[SendWork],
        receives: &[ReceiveWork],
    ) -> Result<Vec<TunnelSpec>, UsageError> {
        let (mut to_send, mut to_receive) = (self.clone(), self.clone());
        if !sends.is_empty() && !receives.is_empty() {
            let start = |from: &FromArg| matches!(from, FromArg::Start(_));
            to_send.decap = DecapArgs::default();
            to_send.from.retain(start);
            to_receive.encap = EncapArgs::default();
            to_receive.from.retain(|from| !start(from));
        }
        let sends = sends.iter().map(|work| to_send.send_spec(work));
        let receives = receives.iter().map(|work| to_receive.receive_spec(work));
        sends.chain(receives).collect()
    }

    /// The spec of a running tunnel with what was given changed, and the names of the changed fields for an update mask.
    ///
    /// # Errors
    /// Options that make no sense for the tunnel.
    pub fn changes(
        &self,
        current: &TunnelSpec,
    ) -> Result<(TunnelSpec, Vec<&'static str>), UsageError> {
        let mut spec = current.clone();
        let mut given = self.apply(&mut spec)?;
        match (self.tunnel.ids.given(&spec)?, spec.send.as_mut()) {
            (None, _) => {}
            (Some(id), Some(send)) => given.put("send.id", &mut send.id, Some(own_id(id)?)),
            (Some(_), None) => {
                return Err(unsuited(
                    "--key, --vni, --session",
                    "a tunnel that is there and receives",
                    "use --map ID=RING and --default-ring RING",
                ));
            }
        }
        Ok((spec, given.0))
    }

    fn send_spec(&self, work: &SendWork) -> Result<TunnelSpec, UsageError> {
        let mut spec = TunnelSpec {
            kind: TunnelKind::from(work.kind).into(),
            send: Some(TunnelSend {
                rings: work.rings.clone(),
                remote: work.remote.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.apply(&mut spec)?;
        if let Some(id) = self.tunnel.ids.given(&spec)?
            && let Some(send) = &mut spec.send
        {
            send.id = own_id(id)?;
        }
        Ok(spec)
    }

    fn receive_spec(&self, work: &ReceiveWork) -> Result<TunnelSpec, UsageError> {
        let mut spec = TunnelSpec {
            kind: TunnelKind::from(work.kind).into(),
            receive: Some(TunnelReceive::default()),
            ..Default::default()
        };
        self.apply(&mut spec)?;
        let id = self.tunnel.ids.given(&spec)?;
        let kind = spec.kind();
        if let Some(receive) = &mut spec.receive {
            place(kind, work.ring.as_deref(), id, receive)?;
        }
        Ok(spec)
    }

    /// Puts everything but the identifier into the spec.
    fn apply(&self, spec: &mut TunnelSpec) -> Result<Given, UsageError> {
        let mut given = Given::default();
        self.tunnel.apply(spec, &mut given);
        let mut other = Given::default();
        if let Some(send) = &mut spec.send {
            self.encap.apply(send, &mut given);
            self.decap.apply(&mut TunnelReceive::default(), &mut other);
            self.apply_start(send, &mut given)?;
        } else if let Some(receive) = &mut spec.receive {
            self.decap.apply(receive, &mut given);
            self.encap.apply(&mut TunnelSend::default(), &mut other);
            self.apply_senders(receive, &mut given)?;
        }
        if let Some(field) = other.0.first() {
            let (only, this) = match spec.send {
                Some(_) => ("receive", "sends"),
                None => ("send", "receives"),
            };
            return Err(unsuited(
                field,
                &format!("a tunnel that {this}"),
                &format!("leave it out; it is for tunnels that {only}"),
            ));
        }
        if let Some((interface, _)) = self.edits.interface_pushes()?.first() {
            return Err(UsageError::PushPerInterface {
                interface: (*interface).to_owned(),
            });
        }
        spec.latency = self.scheduling.to_latency().into();
        spec.scheduling = self.scheduling.to_scheduling();
        spec.edits = Some(self.edits.to_edits()?);
        given.0.extend(self.scheduling.changed_fields());
        given.0.extend(self.edits.changed_fields());
        Ok(given)
    }

    fn apply_start(&self, send: &mut TunnelSend, given: &mut Given) -> Result<(), UsageError> {
        match &self.from[..] {
            [] => {}
            [FromArg::Start(start)] => given.put("send.start", &mut send.start, Some(Some(*start))),
            _ => {
                return Err(unsuited(
                    "--from",
                    "a tunnel that sends",
                    "write one of newest, oldest, seq:N and time:RFC3339",
                ));
            }
        }
        Ok(())
    }

    fn apply_senders(
        &self,
        receive: &mut TunnelReceive,
        given: &mut Given,
    ) -> Result<(), UsageError> {
        let mut from = Vec::new();
        for arg in &self.from {
            match arg {
                FromArg::Anyone => {}
                FromArg::Network(network) => from.push(network.to_string()),
                FromArg::Start(_) => {
                    return Err(unsuited(
                        "--from",
                        "a tunnel that receives",
                        "write the addresses or networks of senders, for instance 192.0.2.0/24",
                    ));
                }
            }
        }
        let from = Some(from).filter(|_| !self.from.is_empty());
        given.put("receive.from", &mut receive.from, from);
        Ok(())
    }
}

impl FieldArg {
    /// Value and "inherit" as a spec has them.
    fn split(self) -> (u32, bool) {
        match self {
            FieldArg::Inherit => (0, true),
            FieldArg::Fixed(value) => (value, false),
        }
    }
}

/// The ring that is named without an identifier: gets the packets of the one given by option, or of those that come
/// without a key, or of all of a kind that always has an identifier or never has one.
fn place(
    kind: TunnelKind,
    ring: Option<&str>,
    id: Option<IdArg>,
    receive: &mut TunnelReceive,
) -> Result<(), UsageError> {
    let Some(ring) = ring else {
        return match id {
            None if receive.map.is_empty() && receive.default_ring.is_empty() => Err(unsuited(
                tunnel_kind_word(kind),
                "this",
                "name the RING that gets the frames, or several by --map ID=RING",
            )),
            None => Ok(()),
            Some(_) => Err(unsuited(
                "--key, --vni, --session",
                "a tunnel without RING",
                "name the RING, or use --map ID=RING",
            )),
        };
    };
    let keyed = matches!(
        kind,
        TunnelKind::Gre | TunnelKind::Gretap | TunnelKind::Gue | TunnelKind::Fou
    );
    let id = match id {
        Some(IdArg::Number(id)) => Some(id),
        Some(IdArg::None) => None,
        None if keyed => None,
        Some(IdArg::Any) | None if receive.default_ring.is_empty() => {
            ring.clone_into(&mut receive.default_ring);
            return Ok(());
        }
        Some(IdArg::Any) | None => {
            return Err(unsuited(
                "--default-ring",
                "this",
                "RING is the one for all packets without another; name one of the two",
            ));
        }
    };
    receive.map.push(TunnelMapping {
        id,
        ring: ring.to_owned(),
    });
    Ok(())
}

fn own_id(id: IdArg) -> Result<Option<u32>, UsageError> {
    match id {
        IdArg::Number(id) => Ok(Some(id)),
        IdArg::None => Ok(None),
        IdArg::Any => Err(unsuited("any", "a tunnel that sends", "write a number")),
    }
}

fn unsuited(option: &str, what: &str, problem: &str) -> UsageError {
    UsageError::Unsuited {
        option: option.to_owned(),
        what: what.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests;
