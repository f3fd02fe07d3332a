//! The decoder of FOU, for each of the payloads that its ends can agree upon.

#![no_main]

use fluxcap_headers::tunnel::{TunnelKind, UdpPayload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    for payload in [UdpPayload::Ip, UdpPayload::Gre, UdpPayload::Gretap] {
        fluxcap_fuzz::decode(TunnelKind::Fou { payload }, packet);
    }
});
