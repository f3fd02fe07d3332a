//! Fragments fit and hold the whole payload.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    fluxcap_fuzz::fragment(input);
});
