//! Link watch: interfaces that come, change and go.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use fluxcap_socket::{
    Error, FarEnd, Features, LinkEvent, LinkWatch, PassAll, XdpFeatures, interface_addresses,
    offloads, poll, set_arp, set_features, set_multicast,
};
use nix::sched::{CloneFlags, unshare};

use crate::namespace::*;

/// Collects events until one is the one that is looked for.
fn wait_for(
    watch: &mut LinkWatch,
    what: &str,
    mut wanted: impl FnMut(&LinkEvent) -> bool,
) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    for _ in 0..500 {
        let mut found = false;
        watch
            .drain(|event| {
                found |= wanted(&event);
                events.push(event);
            })
            .unwrap();
        if found {
            return events;
        }
        poll(&[watch.as_fd()], Duration::from_millis(10)).unwrap();
    }
    panic!("no event: {what}; got {events:?}");
}

fn is_removed(event: &LinkEvent, wanted: &str) -> bool {
    matches!(event, LinkEvent::Removed { name, .. } if name == wanted)
}

#[test]
fn deletion_and_creation_under_the_same_name_are_told_apart() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let mut watch = LinkWatch::open().unwrap();
        for _ in 0..20 {
            let before = watch.find("a").unwrap().unwrap();
            ip("link del dev a");
            ip("link add name a type veth peer name b");
            let events = wait_for(
                &mut watch,
                "creation",
                |event| matches!(event, LinkEvent::Changed(link) if link.name == "a" && link.index != before.index),
            );
            let removed = events
                .iter()
                .position(|event| is_removed(event, "a"))
                .unwrap();
            let created = events.iter().rposition(|event| {
                matches!(event, LinkEvent::Changed(link) if link.name == "a" && link.index != before.index)
            });
            assert!(removed < created.unwrap());
        }
        assert_ne!(watch.find("a").unwrap().unwrap().index, a.index);
        assert_eq!(watch.find_index(a.index).unwrap(), None);
    });
}

#[test]
fn state_rename_address_and_mtu_are_reported() {
    in_namespace(|| {
        ip("link add name a type veth peer name b");
        let mut watch = LinkWatch::open().unwrap();
        let a = watch.find("a").unwrap().unwrap();
        assert!(!a.up && !a.carrier && a.ethernet && a.mtu == 1500);
        ip("link set dev a up");
        ip("link set dev b up");
        wait_for(
            &mut watch,
            "carrier",
            |event| matches!(event, LinkEvent::Changed(link) if link.index == a.index && link.up && link.carrier),
        );
        ip("link set dev a mtu 9000");
        ip("link set dev a address 02:00:00:00:00:77");
        ip("link set dev a name other");
        let renamed = wait_for(
            &mut watch,
            "rename",
            |event| matches!(event, LinkEvent::Changed(link) if link.name == "other"),
        );
        let Some(LinkEvent::Changed(last)) = renamed.last() else {
            panic!("{renamed:?}")
        };
        assert_eq!(
            (last.index, last.mtu, last.mac),
            (a.index, 9000, [2, 0, 0, 0, 0, 0x77])
        );
        ip("link set dev other down");
        wait_for(
            &mut watch,
            "down",
            |event| matches!(event, LinkEvent::Changed(link) if link.name == "other" && !link.up && !link.carrier),
        );
    });
}

#[test]
fn interfaces_are_found_by_name_alternative_name_and_index() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let long = "a-name-that-is-longer-than-fifteen-characters";
        ip(&format!("link property add dev a altname {long}"));
        ip("link property add dev a altname short0");
        let mut watch = LinkWatch::open().unwrap();
        for name in ["a", "short0", long] {
            let found = watch.find(name).unwrap().unwrap();
            assert_eq!((found.index, found.name.as_str()), (a.index, "a"));
            assert_eq!(found.altnames, [long, "short0"]);
        }
        for name in ["", "nothing", "x\0y", &"x".repeat(40), &"x".repeat(400)] {
            assert_eq!(watch.find(name).unwrap(), None, "{name:?}");
        }
        assert_eq!(watch.find_index(b.index).unwrap().unwrap().name, "b");
        assert_eq!(watch.find_index(0).unwrap(), None);
        let mut names: Vec<_> = watch.links().unwrap().into_iter().map(|l| l.name).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "lo"]);
        assert!(watch.links().unwrap().iter().all(|link| link.ethernet));
    });
}

#[test]
fn hundreds_of_interfaces_are_listed_completely() {
    in_namespace(|| {
        let script: String = (0..200)
            .map(|n| format!("link add name v{n} type veth peer name w{n}\n"))
            .collect();
        let path = std::env::temp_dir().join(format!("fluxcap-links-{}", std::process::id()));
        std::fs::write(&path, script).unwrap();
        ip(&format!("-batch {}", path.display()));
        std::fs::remove_file(&path).unwrap();
        let mut watch = LinkWatch::open().unwrap();
        assert_eq!(watch.links().unwrap().len(), 401);
        assert_eq!(watch.find("w199").unwrap().unwrap().name, "w199");
    });
}

#[test]
fn too_many_events_become_an_overrun_and_watching_goes_on() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let mut watch = LinkWatch::open().unwrap();
        let script: String = (0..1500)
            .map(|n| format!("link set dev a mtu {}\n", 1400 + n % 2))
            .collect();
        let path = std::env::temp_dir().join(format!("fluxcap-overrun-{}", std::process::id()));
        std::fs::write(&path, script).unwrap();
        ip(&format!("-batch {}", path.display()));
        std::fs::remove_file(&path).unwrap();
        let (mut overruns, mut changes) = (0, 0);
        watch
            .drain(|event| match event {
                LinkEvent::Overrun => overruns += 1,
                _ => changes += 1,
            })
            .unwrap();
        assert!(
            overruns == 1 && changes > 100,
            "{overruns} overruns, {changes} changes"
        );
        ip("link set dev a mtu 1300");
        wait_for(
            &mut watch,
            "change after the overrun",
            |event| matches!(event, LinkEvent::Changed(link) if link.index == a.index && link.mtu == 1300),
        );
    });
}

#[test]
fn move_to_another_namespace_is_a_removal() {
    in_namespace(|| {
        let (_a, _b) = veth_pair();
        let mut watch = LinkWatch::open().unwrap();
        let (other_send, other) = mpsc::channel();
        let (done, wait) = mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            other_send.send(nix::unistd::gettid()).unwrap();
            wait.recv().unwrap_err();
        });
        ip(&format!("link set dev b netns {}", other.recv().unwrap()));
        wait_for(&mut watch, "removal", |event| is_removed(event, "b"));
        assert_eq!(watch.find("b").unwrap(), None);
        drop(done);
        holder.join().unwrap();
    });
}

#[test]
fn leaving_a_bridge_is_not_a_removal() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        ip("link add name br type bridge");
        ip("link set dev a master br");
        let mut watch = LinkWatch::open().unwrap();
        ip("link set dev a nomaster");
        ip("link set dev a mtu 1400");
        let events = wait_for(
            &mut watch,
            "change after leaving",
            |event| matches!(event, LinkEvent::Changed(link) if link.index == a.index && link.mtu == 1400),
        );
        assert!(
            !events
                .iter()
                .any(|event| matches!(event, LinkEvent::Removed { .. })),
            "{events:?}"
        );
    });
}

#[test]
fn counters_of_the_driver_are_read() {
    in_namespace(|| {
        let (_a, b) = veth_pair();
        let mut transmit = fluxcap_socket::Sendmmsg::open(b.index, false).unwrap();
        send(&mut transmit, &vec![numbered(1, 100); 50]);
        wait_until("counters", || link("a").rx_packets == 50);
        let (a, b) = (link("a"), link("b"));
        assert_eq!((a.rx_bytes, b.tx_packets, b.tx_bytes), (5000, 50, 5000));
    });
}

#[test]
fn offloads_follow_the_settings_of_the_driver() {
    in_namespace(|| {
        let (_a, _b) = veth_pair();
        run("ethtool", "-K a gro on tso on gso on tx on");
        let on = offloads("a").unwrap();
        assert!(
            on.gro && on.tso && on.gso && on.tx_checksum && on.rx_vlan && on.tx_vlan && !on.lro
        );
        run("ethtool", "-K a gro off tso off gso off tx off rxvlan off");
        let off = offloads("a").unwrap();
        assert!(!off.gro && !off.tso && !off.gso && !off.tx_checksum && !off.rx_vlan);
        for name in [
            "nothing",
            "",
            "a-name-that-is-longer-than-fifteen-characters",
        ] {
            assert!(
                matches!(offloads(name), Err(Error::System { .. })),
                "{name}"
            );
        }
    });
}

#[test]
fn a_veth_takes_redirected_frames_while_its_other_end_has_gro() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let takes = || {
            let features = XdpFeatures::of(a.index).unwrap();
            // Linux 6.3.
            features.is_none_or(XdpFeatures::takes_redirected)
        };
        run("ethtool", "-K b gro on");
        assert!(takes());
        run("ethtool", "-K b gro off");
        assert!(XdpFeatures::of(a.index).unwrap().is_none() || !takes());
        let error = XdpFeatures::of(9999).unwrap_err();
        assert!(matches!(error, Error::System { .. }), "{error:?}");
    });
}

#[test]
fn the_other_end_of_a_veth_is_told_from_this_one() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let end = || FarEnd::of(&link("a")).unwrap();
        if end().is_none() {
            return; // Before Linux 6.3.
        }
        assert_eq!(end(), Some(FarEnd::Plain));
        run("ethtool", "-K b gro on");
        assert_eq!(end(), Some(FarEnd::Gro));
        let held = PassAll::load().unwrap().attach(b.index).unwrap();
        assert_eq!(end(), Some(FarEnd::Program));
        run("ethtool", "-K b gro off");
        assert_eq!(end(), Some(FarEnd::Program));
        drop(held);
        wait_until("the program is gone", || end() == Some(FarEnd::Plain));
        assert_eq!((a.linked, a.linked_elsewhere), (b.index, false));
    });
}

#[test]
fn features_flags_and_addresses_are_read_and_set() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let gro = || Features::of(a.index).unwrap().unwrap().get("rx-gro");
        for on in [true, false] {
            set_features(a.index, [("rx-gro", on), ("rx-gro-list", on)]).unwrap();
            assert_eq!((gro().active, gro().changeable), (on, true));
        }
        assert!(set_features(a.index, [("no-such-feature", true)]).is_err());
        assert!(link("a").arp && link("a").multicast);
        set_arp(a.index, false).unwrap();
        set_multicast(a.index, false).unwrap();
        assert!(!link("a").arp && !link("a").multicast && link("a").up);
        set_arp(a.index, true).unwrap();
        set_multicast(a.index, true).unwrap();
        assert!(link("a").arp && link("a").multicast);
        ip("address add 192.0.2.1/24 dev a");
        ip("address add 192.0.2.2/24 dev b");
        assert_eq!(
            interface_addresses(a.index).unwrap(),
            [IpAddr::from([192, 0, 2, 1])]
        );
        ip("link add br0 type bridge");
        ip("link set dev a master br0");
        assert_eq!(link("a").master, link("br0").index);
    });
}
