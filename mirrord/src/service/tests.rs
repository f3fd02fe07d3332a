use super::*;
use fluxcap_proto::v1::{MirrorDevice, MirrorSpec};
use fluxcap_ring::RingDir;

/// Mirrors without a bpffs: they wait for one.
fn mirrors() -> Registry<MirrorJob> {
    let job = MirrorJob {
        bpffs: "/nowhere".into(),
        known: "/nowhere".into(),
        rings: RingDir::new("/nowhere"),
        ephemeral: false,
        owner: 1,
    };
    Registry::new(job, None).expect("a registry")
}

fn spec() -> MirrorSpec {
    MirrorSpec {
        interface: "eth0".into(),
        ring: "web".into(),
        lifetime_ms: 3_600_000,
        ..Default::default()
    }
}

/// Makes a mirror without asking the kernel, as after a restart.
fn with_mirror(mut spec: MirrorSpec) -> Registry<MirrorJob> {
    let mirrors = mirrors();
    fill_in(&mut spec);
    mirrors.create("m", spec, false).expect("a mirror");
    mirrors
}

#[test]
fn the_same_request_leaves_the_end_as_it_is() {
    let mut first = spec();
    start_lifetime(&mut first);
    first.expires_ns += 1;
    let mirrors = with_mirror(first.clone());
    let again = MirrorJob::create(&mirrors, "m", spec(), false).expect("the same");
    assert_eq!(again.spec().expires_ns, first.expires_ns);
    let other = MirrorSpec {
        snaplen: 96,
        ..spec()
    };
    let refused = MirrorJob::create(&mirrors, "m", other, false).map(|_| ());
    assert!(
        matches!(refused, Err(Refusal::AlreadyExists(_))),
        "{refused:?}"
    );
}

#[test]
fn a_mirror_whose_time_is_over_begins_again() {
    let over = MirrorSpec {
        expires_ns: 1,
        ..spec()
    };
    let mirrors = with_mirror(over);
    let again = MirrorJob::create(&mirrors, "m", spec(), false).expect("it begins again");
    assert!(again.spec().expires_ns > fluxcap_service::realtime_ns());
}

#[test]
fn what_a_mirror_keeps_cannot_be_changed() {
    let mirrors = mirrors();
    let old = spec();
    let refusal = |change: fn(&mut MirrorSpec), path: &str| {
        let mut new = old.clone();
        change(&mut new);
        let error = MirrorJob::change(&mirrors, "m", &old, &new, &[path.to_owned()]).err();
        error.map_or(String::new(), |error| error.to_string())
    };
    for (change, path) in [
        (
            (|it| it.interface = "eth1".into()) as fn(&mut MirrorSpec),
            "interface",
        ),
        (|it| it.hook = v1::Hook::Xdp.into(), "hook"),
        (
            |it| {
                it.devices.push(MirrorDevice {
                    name: "mon0".into(),
                    vlan_push: None,
                });
            },
            "devices",
        ),
    ] {
        let text = refusal(change, path);
        assert!(text.contains("cannot be changed"), "{path}: {text}");
    }
    let text = refusal(|it| it.mark = 3, "mark");
    assert!(text.starts_with("mark: "), "{text}");
    // Nothing is wrong with it, so that the kernel is asked.
    let text = refusal(|it| it.snaplen = 96, "snaplen");
    assert!(text.contains("/nowhere"), "{text}");
}

#[test]
fn what_the_spec_says_wrong_is_told_with_its_field_before_the_kernel_is_asked() {
    let bad = MirrorSpec {
        ring: "A!".into(),
        ..spec()
    };
    let refused = MirrorJob::create(&mirrors(), "m", bad, false).map(|_| ());
    assert!(
        matches!(&refused, Err(Refusal::Invalid { field, .. }) if field == "ring"),
        "{refused:?}"
    );
}

#[test]
fn a_mirror_whose_change_is_not_in_place_is_starting() {
    let worker = MirrorWorker::new("mirror", "m", spec()).expect("a worker");
    let shown = |worker: &MirrorWorker| {
        let status = MirrorJob::message(worker).status.expect("a status");
        (status.state(), status.reason)
    };
    worker.set_state(State::Running, "");
    let (state, reason) = shown(&worker);
    assert_eq!(state, v1::State::Starting);
    assert!(reason.starts_with("pending"), "{reason}");
    worker.live().set_done(worker.generation());
    assert_eq!(shown(&worker), (v1::State::Running, String::new()));
}
