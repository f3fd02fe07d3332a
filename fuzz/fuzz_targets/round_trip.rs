//! Whatever a tunnel sends, its far end takes, and gets the bytes that went in.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    fluxcap_fuzz::round_trip(input);
});
