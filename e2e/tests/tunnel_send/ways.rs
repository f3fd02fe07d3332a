//! Every kind by every way of sending, and changes on the fly.

use crate::bed::{Bed, FAR, QUIET, SOON, arrivals, assert_each_once, frame};
use fluxcap_e2e::need_root;
use fluxcap_headers::tunnel::{ErspanType, GueVariant, TunnelKind, UdpPayload};

const GUE: fn(UdpPayload, GueVariant) -> TunnelKind =
    |payload, variant| TunnelKind::Gue { payload, variant };

/// What `fluxctl tunnel send` is told, what that is for a receiver, and the identifier.
fn kinds() -> [(&'static str, TunnelKind, Option<u32>); 16] {
    use TunnelKind::{Erspan, Fou, Geneve, Gre, Gretap, Ipip, Nvgre, Vxlan};
    use UdpPayload::{Gre as InGre, Gretap as InGretap, Ip};
    [
        ("gre", Gre, None),
        ("gre --key 0", Gre, Some(0)),
        (
            "gretap --key 10.0.0.7 --csum --seq",
            Gretap,
            Some(0x0a00_0007),
        ),
        ("gretap", Gretap, None),
        ("nvgre --vni 5000", Nvgre, Some(5000)),
        ("erspan --erspan-ver 0", Erspan(ErspanType::I), None),
        (
            "erspan --session 17 --index 3",
            Erspan(ErspanType::II),
            Some(17),
        ),
        (
            "erspan --session 1023 --erspan-ver 2 --erspan-hwid 9",
            Erspan(ErspanType::III),
            Some(1023),
        ),
        ("vxlan --vni 16777215", Vxlan, Some(16_777_215)),
        ("geneve --vni 42", Geneve, Some(42)),
        ("geneve --vni 42 --metadata", Geneve, Some(42)),
        ("gue", GUE(Ip, GueVariant::Zero), None),
        ("gue --variant 1", GUE(Ip, GueVariant::One), None),
        (
            "gue --inner gretap --key 9",
            GUE(InGretap, GueVariant::Zero),
            Some(9),
        ),
        (
            "fou --dport 5555 --inner gre --key 9",
            Fou { payload: InGre },
            Some(9),
        ),
        ("ipip", Ipip, None),
    ]
}

/// Frames for each: enough for bursts that live frames pay for.
const FRAMES: u64 = 300;
const SIZES: [usize; 3] = [90, 600, 1400];

/// Sends by a tunnel and compares what arrives.
fn check(words: &str, kind: TunnelKind, id: Option<u32>, outer: usize) {
    let mut bed = Bed::new(1500);
    let (kind_word, options) = words.split_once(' ').unwrap_or((words, ""));
    let words = format!("{kind_word} {} {options}", FAR[outer]);
    let sink = bed.sink();
    bed.tunnel(words.trim());
    let each = FRAMES / SIZES.len() as u64;
    SIZES.iter().for_each(|size| bed.publish(each, *size));
    bed.wait_done(FRAMES);
    sink.wait_quiet(QUIET);
    let arrived = arrivals(&sink.stop(), kind);
    assert_each_once(&words, &arrived, FRAMES);
    for (arrival, seq) in arrived.iter().zip(0..) {
        let sent = frame(seq, SIZES[usize::try_from(seq / each).expect("few")]);
        let skip = if kind.carries_ip() { 14 } else { 0 };
        assert!(
            arrival.inner == sent[skip..],
            "{words}: frame {seq} differs"
        );
        assert_eq!((arrival.id, arrival.ttl), (id, 64), "{words}");
    }
    let status = bed.status();
    let bytes: u64 = arrived.iter().map(|arrival| arrival.length as u64).sum();
    assert_eq!(
        status["send"]["sent_bytes"].as_u64(),
        Some(bytes),
        "{words}: {status:#}"
    );
}

#[test]
fn every_kind_arrives_whole_and_in_order() {
    need_root!();
    for (words, kind, id) in kinds() {
        [0, 1]
            .into_iter()
            .for_each(|outer| check(words, kind, id, outer));
    }
}

#[test]
fn every_way_of_sending_delivers_whole_and_in_order() {
    need_root!();
    for io in ["live", "tc", "af_xdp", "sendmmsg", "ip"] {
        for outer in [0, 1] {
            check(
                &format!("gretap --key 7 --io {io}"),
                TunnelKind::Gretap,
                Some(7),
                outer,
            );
            check(
                &format!("vxlan --vni 7 --io {io}"),
                TunnelKind::Vxlan,
                Some(7),
                outer,
            );
        }
    }
}

#[test]
fn changes_on_the_fly_lose_no_frame_and_send_none_twice() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("gretap 10.0.0.2 --key 7");
    let sink = bed.sink();
    let stream = bed.stream(300);
    for words in [
        "--ttl 9",
        "--key 8",
        "--io sendmmsg",
        "--io ip",
        "--tos 16",
        "--io tc",
        "--io live",
        "--key none --seq",
        "--io auto",
        "--local 10.0.0.1",
        "--mtu-policy drop",
        "--dev wire",
    ] {
        bed.set(words);
        stream.go_on(300);
    }
    let published = bed.stop(stream);
    let status = bed.wait_done(published);
    assert_eq!(
        status["send"]["sent_frames"].as_u64(),
        Some(published),
        "{status:#}"
    );
    sink.wait_quiet(QUIET);
    let arrived = arrivals(&sink.stop(), TunnelKind::Gretap);
    assert_each_once("changes", &arrived, published);
    // Each change has come at one place.
    let ids = arrived.chunk_by(|a, b| a.id == b.id).map(|run| run[0].id);
    assert_eq!(ids.collect::<Vec<_>>(), [Some(7), Some(8), None]);
    let ttls = arrived
        .chunk_by(|a, b| a.ttl == b.ttl)
        .map(|run| run[0].ttl);
    assert_eq!(ttls.collect::<Vec<_>>(), [64, 9]);
}

#[test]
fn rings_can_be_changed_and_merged() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("vxlan 10.0.0.2 --vni 1");
    let sink = bed.sink();
    bed.publish(100, 100);
    bed.wait_done(100);
    bed.fluxctl
        .run(&["ring", "create", "second", "--size", "4m"]);
    let mut second = fluxcap_e2e::RingWriter::open(&bed.dirs, "second");
    bed.end();
    bed.fluxctl.run(&[
        "tunnel",
        "send",
        "ring,second",
        "vxlan",
        "10.0.0.2",
        "--vni",
        "1",
        "--name",
        "out",
    ]);
    bed.wait("both rings are read", |status| {
        let rings = status["send"]["rings"].as_array();
        rings.is_some_and(|rings| {
            rings.len() == 2 && rings.iter().all(|ring| ring["state"] == "running")
        })
    });
    let frames: Vec<_> = (100..150).map(|seq| frame(seq, 100)).collect();
    second.publish(frames.iter().map(|frame| &**frame));
    sink.wait_frames(150, SOON);
    let frames: Vec<_> = (150..200).map(|seq| frame(seq, 100)).collect();
    second.publish(frames.iter().map(|frame| &**frame));
    bed.wait_done(100);
    sink.wait_quiet(QUIET);
    assert_each_once("two rings", &arrivals(&sink.stop(), TunnelKind::Vxlan), 200);
}
