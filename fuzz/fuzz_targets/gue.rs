//! The decoder of GUE, both variants and every payload.

#![no_main]

use fluxcap_headers::tunnel::{GueVariant, TunnelKind, UdpPayload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    fluxcap_fuzz::decode(
        TunnelKind::Gue {
            payload: UdpPayload::Ip,
            variant: GueVariant::Zero,
        },
        packet,
    );
});
