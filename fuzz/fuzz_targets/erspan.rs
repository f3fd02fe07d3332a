//! The decoder of ERSPAN, all types.

#![no_main]

use fluxcap_headers::tunnel::{ErspanType, TunnelKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    fluxcap_fuzz::decode(TunnelKind::Erspan(ErspanType::II), packet);
});
