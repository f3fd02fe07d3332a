//! Tunnels: the options, what a daemon's command line says, and the way from a spec to what encodes and decodes.
//!
//! ```text
//!  fluxctl tunnel send RINGS KIND REMOTE   TunnelSendArgs    --\
//!  fluxctl tunnel recv KIND RING           TunnelReceiveArgs ---> TunnelSpec -- validate_tunnel, encap_spec, decap_spec
//!  fluxctl tunnel set NAME, tunneld        TunnelSetArgs     --/
//! ```

mod address;
mod apply;
mod args;
mod compile;
mod id;
mod work;

pub use address::{Network, parse_mac, remote_address};
pub(crate) use args::parse_sport;
pub use args::{
    DecapArgs, EncapArgs, TunnelArgs, TunnelReceiveArgs, TunnelSendArgs, TunnelSetArgs,
};
pub use compile::{decap_spec, encap_spec, validate_tunnel};
pub use id::{IdArg, IdArgs, MapArg, MapIdArg};
pub use work::{ReceiveWork, SendWork, bare_address};

use clap::ValueEnum;
use fluxcap_proto::v1::TunnelKind;

/// `KIND`: the format of a tunnel. The names that ip-link(8) has for the same over IPv6 are taken too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TunnelKindArg {
    /// IP packets in GRE.
    #[value(alias = "ip6gre")]
    Gre,
    /// Ethernet frames in GRE.
    #[value(alias = "ip6gretap")]
    Gretap,
    /// Ethernet frames in GRE with a virtual subnet.
    Nvgre,
    /// Ethernet frames in ERSPAN.
    #[value(alias = "ip6erspan")]
    Erspan,
    /// Ethernet frames in VXLAN.
    Vxlan,
    /// Ethernet frames in Geneve.
    Geneve,
    /// Generic UDP encapsulation.
    Gue,
    /// Something in UDP without a header of its own.
    Fou,
    /// IP packets in IP.
    #[value(aliases = ["sit", "ip6tnl"])]
    Ipip,
    /// Frames from a TZSP sniffer.
    Tzsp,
}

impl From<TunnelKindArg> for TunnelKind {
    fn from(arg: TunnelKindArg) -> Self {
        match arg {
            TunnelKindArg::Gre => TunnelKind::Gre,
            TunnelKindArg::Gretap => TunnelKind::Gretap,
            TunnelKindArg::Nvgre => TunnelKind::Nvgre,
            TunnelKindArg::Erspan => TunnelKind::Erspan,
            TunnelKindArg::Vxlan => TunnelKind::Vxlan,
            TunnelKindArg::Geneve => TunnelKind::Geneve,
            TunnelKindArg::Gue => TunnelKind::Gue,
            TunnelKindArg::Fou => TunnelKind::Fou,
            TunnelKindArg::Ipip => TunnelKind::Ipip,
            TunnelKindArg::Tzsp => TunnelKind::Tzsp,
        }
    }
}

/// The word for a kind on the command line.
#[must_use]
pub fn tunnel_kind_word(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Unspecified => "unknown",
        TunnelKind::Gre => "gre",
        TunnelKind::Gretap => "gretap",
        TunnelKind::Nvgre => "nvgre",
        TunnelKind::Erspan => "erspan",
        TunnelKind::Vxlan => "vxlan",
        TunnelKind::Geneve => "geneve",
        TunnelKind::Gue => "gue",
        TunnelKind::Fou => "fou",
        TunnelKind::Ipip => "ipip",
        TunnelKind::Tzsp => "tzsp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found_by_its_word() {
        for arg in TunnelKindArg::value_variants() {
            let word = tunnel_kind_word((*arg).into());
            assert_eq!(TunnelKindArg::from_str(word, false), Ok(*arg));
        }
    }

    #[test]
    fn the_names_of_ip_link_for_ipv6_mean_the_same_kinds() {
        for (name, arg) in [
            ("ip6gretap", TunnelKindArg::Gretap),
            ("sit", TunnelKindArg::Ipip),
            ("ip6tnl", TunnelKindArg::Ipip),
            ("ip6erspan", TunnelKindArg::Erspan),
        ] {
            assert_eq!(TunnelKindArg::from_str(name, false), Ok(arg));
        }
    }
}
