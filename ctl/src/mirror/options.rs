//! What a mirror was told, written back as the options that say it.

use crate::names;
use crate::words::{Words, tag_text};
use fluxcap_options::rate_text;
use fluxcap_proto::v1::{
    Attach, Hook, InnerProtocol, MirrorOverlay, MirrorSpec, MtuPolicy, TunnelKind,
};
use std::net::Ipv6Addr;
use std::time::Duration;

/// The target as `--to` takes it: "gue:192.0.2.9:7080", "dev:a,b". With hook xdp a ring stands behind the interfaces.
pub(super) fn target(spec: &MirrorSpec) -> String {
    let devices: Vec<&str> = spec.devices.iter().map(|it| it.name.as_str()).collect();
    let devices = Some(format!("dev:{}", devices.join(","))).filter(|_| !spec.devices.is_empty());
    let ring = Some(format!("ring:{}", spec.ring)).filter(|_| !spec.ring.is_empty());
    let overlay = spec.overlay.as_ref().map(overlay_text);
    let all = devices.into_iter().chain(ring).chain(overlay);
    all.collect::<Vec<_>>().join(" ")
}

fn overlay_text(overlay: &MirrorOverlay) -> String {
    let kind = fluxcap_options::tunnel_kind_word(overlay.kind());
    let v6 = overlay.remote.parse::<Ipv6Addr>().is_ok();
    let mut text = match (overlay.port, v6) {
        (0, _) => format!("{kind}:{}", overlay.remote),
        (port, true) => format!("{kind}:[{}]:{port}", overlay.remote),
        (port, false) => format!("{kind}:{}:{port}", overlay.remote),
    };
    if let Some(id) = overlay.id {
        let name = match overlay.kind() {
            TunnelKind::Gretap => "key",
            _ => "vni",
        };
        text = format!("{text},{name}={id}");
    }
    text
}

/// What else there is and is not default.
pub(super) fn options(spec: &MirrorSpec) -> String {
    let mut words = Words::default();
    if let Some(overlay) = &spec.overlay {
        overlay_options(&mut words, overlay);
    }
    for device in &spec.devices {
        let tag = device.vlan_push.as_ref().map(tag_text);
        let push = tag.map(|tag| format!("{}={tag}", device.name));
        words.text("--vlan-push", &push.unwrap_or_default());
    }
    words.filter(&spec.filter, spec.filter_vlan);
    words.sample(spec.sample.as_ref());
    words.number("--snaplen", spec.snaplen);
    bounds(&mut words, spec);
    if spec.hook() == Hook::Xdp {
        words.text("--hook", "xdp");
    }
    if spec.attach() != Attach::Unspecified {
        words.text("--attach", names::attach(spec.attach));
    }
    words.text("--order", &spec.order);
    if spec.mark != 0 {
        words.text("--mark", &format!("{:#x}", spec.mark));
    }
    words.size("--buffer", spec.buffer_bytes.into());
    words.flag("--allow-loop", spec.allow_loop);
    words.flag("--ephemeral", spec.ephemeral);
    words.line()
}

fn overlay_options(words: &mut Words, overlay: &MirrorOverlay) {
    let frames = overlay.inner() == InnerProtocol::Gretap && overlay.kind() == TunnelKind::Gue;
    words.flag("--l2", frames);
    words.text("--local", &overlay.local);
    words.text("--dev", &overlay.device);
    words.number("--ttl", overlay.ttl);
    words.number("--tos", overlay.tos);
    words.number("--sport", overlay.source_port);
    if overlay.mtu_policy() == MtuPolicy::Drop {
        words.text("--mtu-policy", "drop");
    }
    words.text("--device", &overlay.tunnel_device);
    words.text("--gtw-address", &overlay.gateway);
    words.text("--redirect-to", &overlay.gateway_device);
}

fn bounds(words: &mut Words, spec: &MirrorSpec) {
    if let Some(rate) = &spec.rate {
        let text = rate_text(rate.frames_per_second, rate.bits_per_second);
        words.text("--rate", &text);
        words.time("--burst", Duration::from_millis(rate.burst_ms.into()));
    }
    if let Some(fuse) = &spec.fuse {
        words.number("--fuse-errors", fuse.errors_per_second);
        let text = rate_text(fuse.frames_per_second, fuse.bits_per_second);
        words.text("--fuse-rate", &text);
    }
    words.time("--for", Duration::from_millis(spec.lifetime_ms));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use fluxcap_options::{ClassicArgs, MirrorArgs};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: MirrorArgs,
        #[command(flatten)]
        classic: ClassicArgs,
    }

    fn spec(text: &str) -> MirrorSpec {
        let words = ["x"].into_iter().chain(text.split_whitespace());
        let cli = Cli::try_parse_from(words).unwrap();
        cli.options.to_spec("eth0", None, &cli.classic).unwrap()
    }

    #[test]
    fn a_mirror_is_shown_by_the_options_that_make_it() {
        for (to, rest) in [
            (
                "ring:shm:x",
                "--filter 'tcp' --filter-vlan exact --snaplen 96 --mark 0x100 --buffer 16MiB --allow-loop",
            ),
            (
                "dev:a,b",
                "--vlan-push a=5 --vlan-push b=88a8:7 --sample 1/10 --sample-by flow --seed 7 --hook xdp",
            ),
            (
                "gue:192.0.2.9:7080",
                "--l2 --local 192.0.2.1 --dev eth1 --ttl 9 --tos 8 --sport 5 --mtu-policy drop",
            ),
            ("gue:192.0.2.9", "--device gue1"),
            (
                "vxlan:[2001:db8::9]:4790,vni=5",
                "--rate 10kpps,1Gbit --burst 50ms --fuse-errors 3 --fuse-rate 1Mpps --for 1h30m",
            ),
            ("geneve:2001:db8::9,vni=0", "--attach clsact"),
            ("gretap:192.0.2.9,key=0", "--attach tcx --order before:7"),
            ("gretap:192.0.2.9", ""),
        ] {
            let spec = spec(&format!("--to {to} {}", rest.replace('\'', "")));
            assert_eq!(
                (target(&spec).as_str(), options(&spec).as_str()),
                (to, rest)
            );
        }
    }
}
