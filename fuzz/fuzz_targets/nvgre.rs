//! The decoder of NVGRE.

#![no_main]

use fluxcap_headers::tunnel::TunnelKind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    fluxcap_fuzz::decode(TunnelKind::Nvgre, packet);
});
