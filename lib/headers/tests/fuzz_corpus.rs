//! The inputs that the fuzzer starts from, through every decoder, on every run of the tests.

use std::fs;
use std::path::Path;

use fluxcap_headers::tunnel::{
    Decap, DecapSpec, ErspanType, Fragmenter, GueVariant, TunnelKind, UdpPayload,
};

fn decoders() -> Vec<Decap> {
    let mut kinds = vec![
        TunnelKind::Gre,
        TunnelKind::Gretap,
        TunnelKind::Nvgre,
        TunnelKind::Erspan(ErspanType::I),
        TunnelKind::Vxlan,
        TunnelKind::Geneve,
        TunnelKind::Ipip,
        TunnelKind::Tzsp,
        TunnelKind::Gue {
            payload: UdpPayload::Ip,
            variant: GueVariant::Zero,
        },
    ];
    for payload in [UdpPayload::Ip, UdpPayload::Gre, UdpPayload::Gretap] {
        kinds.push(TunnelKind::Fou { payload });
    }
    let decoder = |kind| Decap::new(DecapSpec::new(kind)).expect("can be received");
    kinds.into_iter().map(decoder).collect()
}

#[test]
fn every_input_is_decoded_or_rejected() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let (mut inputs, mut accepted) = (0, 0);
    for target in fs::read_dir(corpus).expect("the corpus is part of the repository") {
        let target = target.expect("readable").path();
        for input in fs::read_dir(&target).expect("a folder for each target") {
            let bytes = fs::read(input.expect("readable").path()).expect("readable");
            inputs += 1;
            for decoder in decoders() {
                if let Ok(decoded) = decoder.decode(&bytes) {
                    assert!(bytes.ends_with(decoded.payload));
                    accepted += 1;
                }
            }
            let (mut out, mut pieces) = (Vec::new(), Vec::new());
            let _ = Fragmenter::new(0).fragment(&bytes, 68, b"", &mut out, &mut pieces);
            assert!(pieces.iter().all(|piece| piece.len() <= 68));
        }
    }
    assert!(inputs > 100, "{inputs} inputs");
    assert!(accepted > 60, "{accepted} packets accepted");
}
