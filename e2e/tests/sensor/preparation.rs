//! `fluxctl output prepare`, `--undo`, `show`, `list`: what they set, what they restore, what they refuse.

use crate::{output, output_in};
use fluxcap_e2e::bench::sink::Dropper;
use fluxcap_e2e::mirror::Bpffs;
use fluxcap_e2e::{Lab, Netns, need_root};
use std::fs;

const EXIT_NOT_FOUND: i32 = 3;
const EXIT_REFUSED: i32 = 4;
const EXIT_DENIED: i32 = 6;

/// All that may be changed, as other tools tell it.
fn looks(netns: &Netns) -> String {
    let features = netns
        .command("ethtool")
        .args(["-k", "wire"])
        .output()
        .expect("ethtool");
    let ipv6 = netns.run(|| fs::read_to_string("/proc/sys/net/ipv6/conf/wire/disable_ipv6"));
    let link = netns.ip(&["-d", "link", "show", "dev", "wire"]);
    let features = String::from_utf8_lossy(&features.stdout).into_owned();
    format!("{features}\n{link}\n{}", ipv6.unwrap_or_default())
}

fn ethtool(netns: &Netns, words: &[&str]) {
    let done = netns
        .command("ethtool")
        .args(["-K", "wire"])
        .args(words)
        .status();
    assert!(done.is_ok_and(|status| status.success()), "{words:?}");
}

#[test]
fn everything_comes_back_as_it_was() {
    need_root!();
    let _bpffs = Bpffs::new();
    let lab = Lab::new(0, 1);
    let far = &lab.outputs[0].outside;
    far.sysctl("net/ipv6/conf/wire/disable_ipv6", "0");
    ethtool(
        far,
        &[
            "gro",
            "on",
            "rx-gro-list",
            "on",
            "rx-udp-gro-forwarding",
            "off",
        ],
    );
    let before = looks(far);
    assert!(
        before.contains("MULTICAST") && !before.contains("NOARP"),
        "{before}"
    );
    let shown = output(&lab, &lab.outputs[0], &["show", "wire", "-o", "json"]).json();
    assert_eq!(shown["prepared"], false);
    assert!(shown["remarks"].to_string().contains("joined"), "{shown}");

    let mut last = None;
    for _ in 0..2 {
        let prepared = output(&lab, &lab.outputs[0], &["prepare", "wire", "-o", "json"]);
        assert_eq!(prepared.code, 0, "{}", prepared.stderr);
        let prepared = prepared.json();
        assert_eq!(prepared["prepared"], true);
        let settings = prepared["settings"].as_array().expect("settings").clone();
        let of = |name: &str| settings.iter().find(|it| it["name"] == name).cloned();
        let gro = of("gro").expect("gro");
        assert_eq!((&gro["before"], &gro["now"]), (&"on".into(), &"off".into()));
        let ipv6 = of("ipv6").expect("ipv6");
        assert_eq!(
            (&ipv6["before"], &ipv6["now"]),
            (&"on".into(), &"off".into())
        );
        assert!(
            settings[0]["now"].to_string().contains("passes everything"),
            "{prepared}"
        );
        let looks = looks(far);
        for part in [
            "generic-receive-offload: off",
            "rx-gro-list: off",
            "NOARP",
            "xdp",
        ] {
            assert!(looks.contains(part), "{part}: {looks}");
        }
        assert!(
            !looks.contains("MULTICAST") && !looks.contains("xdpgeneric"),
            "{looks}"
        );
        // Done again, nothing is changed: not even the program is another one.
        assert!(last.is_none_or(|last| last == looks), "{looks}");
        last = Some(looks);
    }
    let list = output(&lab, &lab.outputs[0], &["list", "-o", "json"]).json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let elsewhere = output_in(&lab, &lab.host, &["list", "-o", "json"]).json();
    assert_eq!(elsewhere.as_array().map(Vec::len), Some(0), "{elsewhere}");

    for _ in 0..2 {
        let undone = output(
            &lab,
            &lab.outputs[0],
            &["prepare", "wire", "--undo", "-o", "json"],
        );
        assert_eq!(undone.code, 0, "{}", undone.stderr);
        assert_eq!(undone.json()["prepared"], false);
        assert_eq!(looks(far), before);
    }
}

/// MTUs that a program for frames in one piece does not take.
#[test]
fn jumbo_frames_are_no_matter() {
    need_root!();
    let _bpffs = Bpffs::new();
    let lab = Lab::with(&fluxcap_e2e::LabOptions {
        mtu: 9_000,
        ..Default::default()
    });
    let prepared = output(&lab, &lab.outputs[0], &["prepare", "wire"]);
    assert_eq!(prepared.code, 0, "{}", prepared.stderr);
    assert!(
        prepared.stdout.contains("passes everything"),
        "{}",
        prepared.stdout
    );
}

#[test]
fn what_is_not_for_a_sensor_alone_is_refused_and_left_as_it_is() {
    need_root!();
    let _bpffs = Bpffs::new();
    let lab = Lab::new(0, 1);
    let (port, far) = (&lab.outputs[0], &lab.outputs[0].outside);
    ethtool(far, &["gro", "on"]);
    let refused = |args: &[&str], code: i32, parts: &[&str]| {
        let before = looks(far);
        let said = output(&lab, port, args);
        assert_eq!(said.code, code, "{}{}", said.stdout, said.stderr);
        for part in parts {
            assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
        }
        assert_eq!(looks(far), before);
    };
    let prepare: &[&str] = &["prepare", "wire"];
    refused(
        &["prepare", "wier"],
        EXIT_NOT_FOUND,
        &["wier", "did you mean wire?"],
    );
    refused(
        &["prepare", "nothing"],
        EXIT_NOT_FOUND,
        &["nothing", "nsenter"],
    );
    refused(&["prepare", "lo"], EXIT_REFUSED, &["lo is not prepared"]);
    refused(
        &["prepare", "wire", "--bpffs", "/tmp"],
        EXIT_REFUSED,
        &["no bpffs at /tmp", "mount -t bpf"],
    );

    far.ip(&["address", "add", "192.0.2.7/24", "dev", "wire"]);
    refused(
        prepare,
        EXIT_REFUSED,
        &["192.0.2.7", "ip address flush dev wire"],
    );
    far.ip(&["address", "flush", "dev", "wire"]);

    far.ip(&["link", "add", "br0", "type", "bridge"]);
    far.ip(&["link", "set", "wire", "master", "br0"]);
    refused(prepare, EXIT_REFUSED, &["port of br0", "nomaster"]);
    far.ip(&["link", "set", "wire", "nomaster"]);

    // The directory that a member of the group has made before, to be written to by root.
    let trap = lab.dirs.run().join("outputs");
    fs::create_dir(&trap).expect("make it");
    std::os::unix::fs::chown(&trap, Some(65_534), None).expect("give it away");
    refused(prepare, EXIT_REFUSED, &["belongs to user 65534"]);
    fs::remove_dir(&trap).expect("remove it");

    let mut unprivileged = far.command("setpriv");
    unprivileged.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    unprivileged
        .arg(fluxcap_e2e::binary("fluxctl"))
        .args(["output", "prepare", "wire"]);
    unprivileged.arg("--run-dir").arg(lab.dirs.run());
    let said = crate::run(&mut unprivileged);
    assert_eq!(said.code, EXIT_DENIED, "{}", said.stderr);
    assert!(said.stderr.contains("CAP_NET_ADMIN"), "{}", said.stderr);
}

#[test]
fn a_program_of_somebody_else_is_left_alone() {
    need_root!();
    let _bpffs = Bpffs::new();
    let lab = Lab::new(0, 1);
    let (port, far) = (&lab.outputs[0], &lab.outputs[0].outside);
    let foreign = Dropper::attach(far, "wire").expect("attach");
    let id = || {
        let link = far.ip(&["-d", "link", "show", "dev", "wire"]);
        link.split("prog/xdp id ")
            .nth(1)
            .map(|rest| rest.split(' ').next().unwrap_or_default().to_owned())
    };
    let before = id();
    let said = output(&lab, port, &["prepare", "wire"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    for part in ["somebody else's", "left alone"] {
        assert!(said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    assert_eq!(id(), before);
    assert_eq!(output(&lab, port, &["prepare", "wire", "--undo"]).code, 0);
    assert_eq!(id(), before);
    drop(foreign);
    assert_eq!(id(), None);
}
