//! What a tunnel was told, written back as the options that say it.

use crate::names;
use crate::words::Words;
use fluxcap_proto::v1::{ErspanDirection, MtuPolicy, TunnelKind, TunnelSend, TunnelSpec};

/// What is not default, written back as the options that ask for it.
pub(super) fn options(spec: &TunnelSpec) -> String {
    let mut words = Words::default();
    words.text("--local", &spec.local);
    words.text("--dev", &spec.device);
    words.number("--dport", spec.port);
    if let Some(send) = &spec.send {
        send_options(&mut words, spec, send);
    }
    if let Some(receive) = &spec.receive {
        words.text("--mac-destination", &receive.mac_destination);
        words.text("--mac-source", &receive.mac_source);
        words.size("--buffer", receive.buffer_bytes);
    }
    flags(&mut words, spec);
    words.line()
}

fn send_options(words: &mut Words, spec: &TunnelSpec, send: &TunnelSend) {
    let id = send.id.map_or(String::new(), |id| id.to_string());
    words.text(id_option(spec), &id);
    let mut field = |option: &str, inherit: bool, value: u32| match inherit {
        true => words.text(option, "inherit"),
        false => words.number(option, value),
    };
    field("--ttl", send.ttl_inherit, send.ttl);
    field("--tos", send.tos_inherit, send.tos);
    words.number("--sport", send.source_port);
    words.number("--index", send.erspan_index);
    if send.erspan_direction() != ErspanDirection::Unspecified {
        let word = names::erspan_direction(send.erspan_direction);
        words.text("--erspan-dir", word);
    }
    words.number("--erspan-hwid", send.erspan_hwid);
    words.number("--variant", send.gue_variant);
    if send.mtu_policy() != MtuPolicy::Unspecified {
        words.text("--mtu-policy", names::mtu_policy(send.mtu_policy));
    }
}

fn flags(words: &mut Words, spec: &TunnelSpec) {
    let send = spec.send.clone().unwrap_or_default();
    let receive = spec.receive.clone().unwrap_or_default();
    words.flag("--csum", spec.checksum);
    words.flag("--seq", spec.sequence);
    words.flag("--df", send.df == Some(true));
    words.flag("--df=false", send.df == Some(false));
    words.flag("--udp-csum", send.udp_checksum == Some(true));
    words.flag("--udp-csum=false", send.udp_checksum == Some(false));
    words.flag("--metadata", send.metadata);
    words.flag("--allow-loop", send.allow_loop);
    words.flag("--udp6zerocsumrx", receive.zero_udp6_checksum);
}

/// The option for the identifier of a sender.
fn id_option(spec: &TunnelSpec) -> &'static str {
    match spec.kind() {
        TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => "--vni",
        TunnelKind::Erspan => "--session",
        _ => "--key",
    }
}
