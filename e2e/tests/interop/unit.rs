//! Mirrors on stock kernels as their unit runs them: a user that is nobody, with the capabilities that the unit grants. What such a loader may do
//! differs from kernel to kernel.

use std::path::PathBuf;

use fluxcap_e2e::kernel_peer::KernelPeer;
use fluxcap_e2e::{Netns, UNIT_USER, binary, need_root, unit_capabilities};

const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// All targets, from an interface that is fed by `feed`; `{4}` and `{6}` are the other end of the guest's wire.
const TARGETS: &[&str] = &[
    "ring:r",
    "dev:out1",
    "dev:out1,out2,out3",
    "gue:{4}",
    "gue:[{6}]",
    "gue:{4},l2",
    "gue:[{6}],l2",
    "vxlan:{4},vni=7",
    "vxlan:[{6}],vni=7",
    "geneve:{4},vni=7",
    "geneve:[{6}],vni=7",
    "gretap:{4}",
    "gretap:[{6}],key=5",
];

/// Options of the runs of mirrord: none; and everything.
const OPTIONS: &[&str] = &[
    "",
    "--rule 'exclude src 198.51.100.0/24,2001:db8:1::/48 dst 198.51.100.0/24 sport 5-9 dport 5 proto tcp vlan 7 flags syn/syn,ack dir egress' \
     --rule 'proto icmp,udp,icmp6' --filter 'icmp or icmp6 or udp' --sample 1/1 --sample-by flow --rate 1Mpps,10Gbit --fuse-errors 1000000 \
     --fuse-rate 1Mpps --for 1h --direction both",
    "--snaplen 80 --sample 1/2 --direction egress",
];

/// Starts mirrord with all targets, sends packets past them, and says what became of each.
fn script(options: &str) -> String {
    let mirrors: String = (TARGETS.iter())
        .map(|target| {
            let target = target
                .replace("{4}", "10.99.0.1")
                .replace("{6}", "fd00:99::1");
            format!(" --mirror in:{target}")
        })
        .collect();
    let capabilities: String = (unit_capabilities("mirrord").iter())
        .map(|name| format!(",+{name}"))
        .collect();
    format!(
        r#"
export LD_LIBRARY_PATH=/host/bin/lib
modprobe veth; modprobe dummy; modprobe sch_ingress
if ! ip link show in >/dev/null 2>&1; then
    ip link add in type veth peer name feed
    for name in out1 out2 out3; do ip link add $name type dummy; ip link set $name up; done
    ip link set in up; ip link set feed up
    ip addr add 10.55.0.1/24 dev feed; ip neigh add 10.55.0.2 lladdr 02:00:00:00:00:02 dev feed nud permanent
    mkdir -p /tmp/run /tmp/rings /tmp/state /tmp/bpf
    mount -t bpf bpf /tmp/bpf
    chown {UNIT_USER} /tmp/run /tmp/rings /tmp/state /tmp/bpf
fi
/host/bin/setpriv --reuid {UNIT_USER} --clear-groups --inh-caps=-all{capabilities} --ambient-caps=-all{capabilities}     --bounding-set=-all{capabilities} /host/bin/mirrord --run-dir /tmp/run --ring-dir /tmp/rings --state-dir /tmp/state --bpffs /tmp/bpf     --ephemeral {mirrors} {options} >/tmp/log 2>&1 &
mirrord=$!
list() {{ /host/bin/fluxctl --run-dir /tmp/run mirror list -o json 2>/dev/null; }}
for i in $(seq 300); do
    kill -0 $mirrord 2>/dev/null || {{ cat /tmp/log; exit 1; }}
    list | grep -q '"state": *"starting"' || [ -z "$(list)" ] || break
    sleep 1
done
# Mirrors that meet at an interface for the first time may find its qdisc gone again; they come back by themselves.
for i in $(seq 60); do list | grep -q 'cannot attach' || break; sleep 1; done
ping -c 3 -i 1 -W 1 10.55.0.2 >/dev/null 2>&1
list
kill $mirrord; wait $mirrord
grep -i 'verifier' /tmp/log | cut -c1-2000
exit 0
"#
    )
}

#[test]
fn stock_kernels_take_every_mirror_of_the_unit() {
    need_root!();
    let setpriv = PathBuf::from("/usr/bin/setpriv");
    for kernel in KERNELS {
        let host = Netns::new();
        let Some(peer) = KernelPeer::start_kernel(&host, kernel) else {
            return;
        };
        peer.give_programs(&[binary("mirrord"), binary("fluxctl"), setpriv.clone()]);
        for options in OPTIONS {
            let (done, printed) = peer.try_run(&script(options), 400);
            assert!(done, "{kernel}, {options}: {printed}");
            let begin = printed.find(['[', '{']).unwrap_or(0);
            let mut values = serde_json::Deserializer::from_str(&printed[begin..]).into_iter();
            let value: serde_json::Value = values
                .next()
                .unwrap_or_else(|| panic!("{kernel}, {options}: {printed}"))
                .unwrap_or_else(|error| panic!("{kernel}, {options}: {error}: {printed}"));
            let mirrors = value["mirrors"].as_array().or(value.as_array());
            let mirrors = mirrors.unwrap_or_else(|| panic!("{kernel}, {options}: {printed}"));
            assert_eq!(
                mirrors.len(),
                TARGETS.len(),
                "{kernel}, {options}: {printed}"
            );
            for mirror in mirrors {
                let status = &mirror["status"];
                let reason = status["reason"].as_str().unwrap_or_default();
                // There is no ring; the programs are at work all the same.
                let right = status["state"] == "running" || reason.contains("ring");
                assert!(
                    right && !reason.contains("refuse"),
                    "{kernel}, {options}: {mirror:#}"
                );
                let copied = |name: &str| match &status[name] {
                    serde_json::Value::String(count) => count.parse().unwrap_or(0),
                    count => count.as_u64().unwrap_or(0),
                };
                if !options.contains("1/2") {
                    assert!(
                        copied("mirrored_frames") > 0,
                        "{kernel}, {options}: {mirror:#}"
                    );
                }
            }
            println!(
                "Linux {}, {options:?}: {} mirrors",
                peer.kernel,
                mirrors.len()
            );
        }
    }
}
