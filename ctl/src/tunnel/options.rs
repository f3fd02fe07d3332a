//! What a tunnel was told, written back as the options that say it.

use crate::names;
use fluxcap_proto::v1::{ErspanDirection, MtuPolicy, TunnelKind, TunnelSpec};
use fluxcap_service::format_size;

/// What is not default, written back as the options that ask for it.
pub(super) fn options(spec: &TunnelSpec) -> String {
    let mut parts = Vec::new();
    let mut text = |option: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{option} {value}"));
        }
    };
    let number = |value: u32| match value {
        0 => String::new(),
        value => value.to_string(),
    };
    text("--local", &spec.local);
    text("--dev", &spec.device);
    text("--dport", &number(spec.port));
    if let Some(send) = &spec.send {
        let id = send.id.map_or(String::new(), |id| id.to_string());
        text(id_option(spec), &id);
        let inherit = |inherit: bool, value| match inherit {
            true => "inherit".to_owned(),
            false => number(value),
        };
        text("--ttl", &inherit(send.ttl_inherit, send.ttl));
        text("--tos", &inherit(send.tos_inherit, send.tos));
        text("--sport", &number(send.source_port));
        text("--index", &number(send.erspan_index));
        if send.erspan_direction() != ErspanDirection::Unspecified {
            text(
                "--erspan-dir",
                names::erspan_direction(send.erspan_direction),
            );
        }
        text("--erspan-hwid", &number(send.erspan_hwid));
        text("--variant", &number(send.gue_variant));
        if send.mtu_policy() != MtuPolicy::Unspecified {
            text("--mtu-policy", names::mtu_policy(send.mtu_policy));
        }
    }
    if let Some(receive) = &spec.receive {
        text("--mac-destination", &receive.mac_destination);
        text("--mac-source", &receive.mac_source);
        if receive.buffer_bytes != 0 {
            text(
                "--buffer",
                &format_size(receive.buffer_bytes).replace(' ', ""),
            );
        }
    }
    parts.extend(flags(spec));
    parts.join(" ")
}

fn flags(spec: &TunnelSpec) -> Vec<String> {
    let send = spec.send.clone().unwrap_or_default();
    let receive = spec.receive.clone().unwrap_or_default();
    let given = |flag: bool| flag.then_some(true);
    [
        ("--csum", given(spec.checksum)),
        ("--seq", given(spec.sequence)),
        ("--df", send.df),
        ("--udp-csum", send.udp_checksum),
        ("--metadata", given(send.metadata)),
        ("--allow-loop", given(send.allow_loop)),
        ("--udp6zerocsumrx", given(receive.zero_udp6_checksum)),
    ]
    .into_iter()
    .filter_map(|(option, value)| match value? {
        true => Some(option.to_owned()),
        false => Some(format!("{option}=false")),
    })
    .collect()
}

/// The option for the identifier of a sender.
fn id_option(spec: &TunnelSpec) -> &'static str {
    match spec.kind() {
        TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => "--vni",
        TunnelKind::Erspan => "--session",
        _ => "--key",
    }
}
