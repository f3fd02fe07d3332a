use super::*;
use clap::Parser;
use fluxcap_proto::v1::{Latency, Start, start::At};

#[derive(Debug, Parser)]
struct SendCli {
    #[command(flatten)]
    options: TunnelSendArgs,
}

#[derive(Debug, Parser)]
struct ReceiveCli {
    #[command(flatten)]
    options: TunnelReceiveArgs,
}

#[derive(Debug, Parser)]
struct SetCli {
    #[command(flatten)]
    options: TunnelSetArgs,
}

fn send(work: &str, args: &[&str]) -> Result<TunnelSpec, String> {
    let cli = SendCli::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
    let spec = cli.options.to_spec(&work.parse().unwrap());
    spec.map_err(|e| e.to_string())
}

fn receive(work: &str, args: &[&str]) -> Result<TunnelReceive, String> {
    let cli = ReceiveCli::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
    let spec = cli.options.to_spec(&work.parse().unwrap());
    Ok(spec.map_err(|e| e.to_string())?.receive.unwrap())
}

fn set(args: &[&str]) -> TunnelSetArgs {
    SetCli::try_parse_from([&["x"], args].concat())
        .unwrap()
        .options
}

fn changes(current: &TunnelSpec, args: &[&str]) -> Result<(TunnelSpec, Vec<&'static str>), String> {
    set(args).changes(current).map_err(|e| e.to_string())
}

/// What a daemon makes of an update.
fn masked(current: &TunnelSpec, new: &TunnelSpec, fields: &[&str]) -> TunnelSpec {
    let paths: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
    fluxcap_service::apply_mask(current, new, &paths).unwrap()
}

fn a_sender() -> TunnelSpec {
    send("cisco:gretap:192.0.2.9", &[]).unwrap()
}

fn a_receiver() -> TunnelSpec {
    TunnelSpec {
        kind: TunnelKind::Vxlan.into(),
        receive: Some(receive("vxlan:cisco", &[]).unwrap()),
        edits: Some(Default::default()),
        ..Default::default()
    }
}

fn map(receive: &TunnelReceive) -> Vec<(Option<u32>, &str)> {
    let entry = |it: &'_ TunnelMapping| it.id;
    receive
        .map
        .iter()
        .map(|it| (entry(it), it.ring.as_str()))
        .collect()
}

/// Every option of a sender, with a value that is not its default.
const ALL_TO_SEND: &[&str] = &[
    "--local",
    "192.0.2.1",
    "--dev",
    "eth0",
    "--key",
    "5",
    "--dport",
    "7080",
    "--inner",
    "gretap",
    "--csum",
    "--seq",
    "--ttl",
    "9",
    "--tos",
    "inherit",
    "--mtu-policy",
    "truncate",
    "--df=false",
    "--sport",
    "1000",
    "--udp-csum=false",
    "--erspan-ver",
    "2",
    "--index",
    "3",
    "--erspan-dir",
    "egress",
    "--erspan-hwid",
    "4",
    "--variant",
    "1",
    "--metadata",
    "--io",
    "ip",
    "--merge-window",
    "500us",
    "--allow-loop",
    "--from",
    "seq:5",
    "--latency",
    "low",
    "--snaplen",
    "60",
];

/// The same of a receiver.
const ALL_TO_RECEIVE: &[&str] = &[
    "--dev",
    "eth0",
    "--map",
    "1=a,none=b",
    "--default-ring",
    "rest",
    "--mac-destination",
    "02:00:00:00:00:05",
    "--mac-source",
    "02:00:00:00:00:06",
    "--udp6zerocsumrx",
    "--buffer",
    "1M",
    "--from",
    "192.0.2.0/24,::1",
];

#[test]
fn options_not_given_leave_defaults_to_the_daemon() {
    let spec = TunnelSpec {
        kind: TunnelKind::Gretap.into(),
        send: Some(TunnelSend {
            rings: vec!["a".into(), "b".into()],
            remote: "192.0.2.9".into(),
            ..Default::default()
        }),
        edits: Some(Default::default()),
        ..Default::default()
    };
    assert_eq!(send("a,b:gretap:192.0.2.9", &[]), Ok(spec));
}

#[test]
fn every_option_of_a_sender_arrives_in_its_field_and_in_the_mask() {
    let expected = TunnelSend {
        rings: vec!["cisco".into()],
        remote: "192.0.2.9".into(),
        id: Some(5),
        ttl: 9,
        ttl_inherit: false,
        tos: 0,
        tos_inherit: true,
        df: Some(false),
        erspan_version: Some(2),
        source_port: 1000,
        udp_checksum: Some(false),
        erspan_index: 3,
        erspan_direction: ErspanDirection::Egress.into(),
        erspan_hwid: 4,
        gue_variant: 1,
        metadata: true,
        mtu_policy: MtuPolicy::Truncate.into(),
        io: "ip".into(),
        start: Some(Start {
            at: Some(At::Seq(5)),
        }),
        merge_window_us: 500,
        allow_loop: true,
    };
    let spec = send("cisco:gue:192.0.2.9", ALL_TO_SEND).unwrap();
    assert_eq!(spec.send.as_ref(), Some(&expected));
    assert_eq!(
        (spec.local.as_str(), spec.device.as_str()),
        ("192.0.2.1", "eth0")
    );
    assert_eq!((spec.port, spec.inner()), (7080, InnerProtocol::Gretap));
    assert!(spec.checksum && spec.sequence);
    assert_eq!(spec.latency, i32::from(Latency::Low));

    let current = send("cisco:gue:192.0.2.9", &["--inner", "gre"]).unwrap();
    let (changed, mut mask) = changes(&current, ALL_TO_SEND).unwrap();
    assert_eq!(changed, spec);
    assert_eq!(masked(&current, &spec, &mask), spec);
    // Every field of the message that an option can change is named once.
    let named = mask.len();
    mask.sort_unstable();
    mask.dedup();
    assert_eq!((mask.len(), named), (27, 27), "{mask:?}");
}

#[test]
fn every_option_of_a_receiver_arrives_in_its_field_and_in_the_mask() {
    let expected = TunnelReceive {
        map: vec![
            TunnelMapping {
                id: Some(1),
                ring: "a".into(),
            },
            TunnelMapping {
                id: None,
                ring: "b".into(),
            },
        ],
        default_ring: "rest".into(),
        from: vec!["192.0.2.0/24".into(), "::1".into()],
        mac_destination: "02:00:00:00:00:05".into(),
        mac_source: "02:00:00:00:00:06".into(),
        zero_udp6_checksum: true,
        buffer_bytes: 1 << 20,
    };
    assert_eq!(receive("vxlan", ALL_TO_RECEIVE), Ok(expected.clone()));
    let (changed, mask) = changes(&a_receiver(), ALL_TO_RECEIVE).unwrap();
    assert_eq!(changed.receive, Some(expected));
    assert_eq!(masked(&a_receiver(), &changed, &mask), changed);
    assert_eq!(mask.len(), 8, "{mask:?}");
}

#[test]
fn a_ring_without_an_identifier_gets_what_comes_without_a_key() {
    assert_eq!(
        map(&receive("gretap:cisco", &[]).unwrap()),
        [(None, "cisco")]
    );
    let keyed = receive("gretap:cisco", &["--key", "0"]).unwrap();
    assert_eq!(map(&keyed), [(Some(0), "cisco")]);
    let any = receive("gretap:cisco", &["--key", "any"]).unwrap();
    assert_eq!((map(&any), any.default_ring.as_str()), (vec![], "cisco"));
}

#[test]
fn a_ring_without_an_identifier_gets_all_of_a_kind_that_always_has_one() {
    for kind in ["vxlan", "geneve", "nvgre", "erspan", "ipip", "tzsp"] {
        let all = receive(&format!("{kind}:cisco"), &[]).unwrap();
        assert_eq!(
            (map(&all), all.default_ring.as_str()),
            (vec![], "cisco"),
            "{kind}"
        );
    }
    let one = receive("vxlan:cisco", &["--vni", "7", "--map", "8=dell"]).unwrap();
    assert_eq!(map(&one), [(Some(8), "dell"), (Some(7), "cisco")]);
    let session = receive("erspan:cisco", &["--session", "none"]).unwrap();
    assert_eq!(map(&session), [(None, "cisco")]);
}

#[test]
fn a_receiver_needs_a_ring_and_knows_which_is_for_the_rest() {
    assert!(receive("vxlan", &[]).is_err_and(|e| e.contains("--map ID=RING")));
    assert!(receive("vxlan", &["--vni", "5"]).is_err_and(|e| e.contains("name the RING")));
    let twice = receive("vxlan:cisco", &["--default-ring", "rest"]);
    assert!(twice.is_err_and(|e| e.contains("one of the two")));
    assert!(receive("vxlan", &["--default-ring", "rest"]).is_ok());
}

#[test]
fn a_sender_has_one_identifier() {
    assert!(send("a:gretap:h", &["--key", "any"]).is_err_and(|e| e.contains("write a number")));
    assert!(send("a:vxlan:h", &["--key", "5"]).is_err_and(|e| e.contains("use --vni")));
    let id = |args: &[&str]| send("a:gretap:h", args).unwrap().send.unwrap().id;
    assert_eq!(
        [id(&[]), id(&["--key", "none"]), id(&["--key", "0"])],
        [None, None, Some(0)]
    );
}

#[test]
fn only_the_options_given_are_changed() {
    let current = send("cisco:gretap:192.0.2.9", &["--key", "5", "--ttl", "9"]).unwrap();
    let (spec, mask) = changes(&current, &["--tos", "0x1c", "--vlan-push", "5"]).unwrap();
    let sent = spec.send.unwrap();
    assert_eq!((sent.ttl, sent.tos, sent.id), (9, 0x1c, Some(5)));
    let expected = [
        "send.tos",
        "send.tos_inherit",
        "edits.vlan_push",
        "edits.vlan_replace",
    ];
    assert_eq!(mask, expected);
    let (spec, mask) = changes(&current, &["--key", "none"]).unwrap();
    assert_eq!((spec.send.unwrap().id, mask), (None, vec!["send.id"]));
    assert_eq!(changes(&current, &[]).unwrap().1, Vec::<&str>::new());
}

#[test]
fn empty_values_clear() {
    let mut current = a_receiver();
    current.local = "192.0.2.1".into();
    current.receive = Some(receive("vxlan", ALL_TO_RECEIVE).unwrap());
    let args = [
        "--local",
        "",
        "--from",
        "",
        "--default-ring",
        "",
        "--mac-source",
        "",
    ];
    let (spec, mask) = changes(&current, &args).unwrap();
    let receive = spec.receive.unwrap();
    assert!(spec.local.is_empty() && receive.from.is_empty() && receive.mac_source.is_empty());
    assert!(receive.default_ring.is_empty());
    let expected = [
        "local",
        "receive.default_ring",
        "receive.mac_source",
        "receive.from",
    ];
    assert_eq!(mask, expected);
}

#[test]
fn what_is_for_the_other_direction_is_refused() {
    for (current, args, says) in [
        (a_sender(), &["--map", "1=a"][..], "tunnels that receive"),
        (a_receiver(), &["--ttl", "5"], "tunnels that send"),
        (a_sender(), &["--from", "192.0.2.0/24"], "newest, oldest"),
        (a_receiver(), &["--from", "oldest"], "192.0.2.0/24"),
        (a_receiver(), &["--vni", "5"], "--map ID=RING"),
        (a_sender(), &["--vlan-push", "eth3=5"], "is for captures"),
    ] {
        let error = changes(&current, args);
        assert!(
            error.clone().is_err_and(|e| e.contains(says)),
            "{args:?}: {error:?}"
        );
    }
}

#[test]
fn a_daemon_told_of_both_directions_gives_each_what_is_for_it() {
    let args = set(&[
        "--ttl",
        "9",
        "--from",
        "oldest,192.0.2.0/24",
        "--default-ring",
        "rest",
        "--snaplen",
        "60",
    ]);
    let sends = ["cisco:gretap:192.0.2.9".parse().unwrap()];
    let receives = ["vxlan".parse().unwrap()];
    let specs = args.to_specs(&sends, &receives).unwrap();
    let [to_send, to_receive] = &specs[..] else {
        panic!("{specs:?}")
    };
    let start = to_send.send.as_ref().unwrap().start;
    assert_eq!(
        start,
        Some(Start {
            at: Some(At::Oldest(true))
        })
    );
    assert_eq!(to_send.send.as_ref().unwrap().ttl, 9);
    assert_eq!(to_receive.receive.as_ref().unwrap().from, ["192.0.2.0/24"]);
    assert!(
        specs
            .iter()
            .all(|spec| spec.edits.as_ref().unwrap().snaplen == 60)
    );
    assert!(args.to_specs(&sends, &[]).is_err());
    assert!(args.to_specs(&[], &receives).is_err());
}

#[test]
fn values_that_fit_nowhere_are_refused_with_those_that_do() {
    for (args, says) in [
        (["--ttl", "0"], "1 to 255"),
        (["--ttl", "256"], "1 to 255"),
        (["--tos", "256"], "0x00 to 0xff"),
        (["--tos", "0x100"], "0x00 to 0xff"),
        (["--sport", "0"], "auto"),
        (["--sport", "65536"], "auto"),
        (["--dport", "65536"], "65535"),
        (["--index", "1048576"], "1048575"),
        (["--erspan-hwid", "64"], "63"),
        (["--erspan-ver", "3"], "0..=2"),
        (["--mtu-policy", "x"], "truncate"),
        (["--io", "dpdk"], "sendmmsg"),
        (["--from", "yesterday"], "newest, oldest"),
    ] {
        let error = send("a:gretap:h", &args);
        assert!(
            error.clone().is_err_and(|e| e.contains(says)),
            "{args:?}: {error:?}"
        );
    }
    for (args, says) in [
        (["--from", "host"], "192.0.2.0/24"),
        (["--mac-source", "1:2"], "02:00:00:00:00:01"),
        (["--map", "5"], "ID=RING"),
        (["--buffer", "1MB"], "ambiguous"),
    ] {
        let error = receive("gre:a", &args);
        assert!(
            error.clone().is_err_and(|e| e.contains(says)),
            "{args:?}: {error:?}"
        );
    }
}
