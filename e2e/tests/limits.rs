//! A daemon whose work needs more descriptors than there are answers all the same, and the work goes on when there are more.

use fluxcap_e2e::{Daemon, Dirs, Netns, root_or_skip, wait_until};
use fluxcap_proto::v1::capture_service_client::CaptureServiceClient;
use fluxcap_proto::v1::{
    Capture, CaptureInterface, CaptureSpec, CaptureStatus, CreateCaptureRequest,
    DeleteCaptureRequest, ListCapturesRequest, State,
};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

/// Descriptors that the daemon may have: its own, and those of some captures.
const FEW: u32 = 128;
/// Each needs several, while it waits for its interface already.
const CAPTURES: usize = 60;
/// Of these, those for which the descriptors do.
const LEFT: usize = 10;

/// The captures of a daemon: it has to answer.
fn captures(rxd: &Daemon) -> Vec<Capture> {
    let answer = rxd.rpc(async |channel| {
        let mut client = CaptureServiceClient::new(channel);
        client.list_captures(ListCapturesRequest::default()).await
    });
    let answer = answer.expect("a connection").expect("an answer");
    answer.into_inner().captures
}

fn status(capture: &Capture) -> &CaptureStatus {
    capture.status.as_ref().expect("a status")
}

#[test]
fn saved_work_beyond_the_limit_waits_and_the_daemon_answers() {
    if !root_or_skip() {
        return;
    }
    let (netns, dirs) = (Netns::new(), Dirs::new());
    let entries: serde_json::Map<String, Value> = (0..CAPTURES)
        .map(|n| {
            let interface = format!("nic{n}");
            let spec = json!({"interfaces": [{"name": interface, "vlan_push": null}], "ring": format!("r{n}")});
            (format!("c{n}"), spec)
        })
        .collect();
    let state = json!({"version": 1, "entries": entries});
    std::fs::write(dirs.state().join("rxd.json"), state.to_string()).expect("write the state");
    let rxd = Daemon::start_with_descriptors("rxd", &netns, &dirs, &[], FEW);
    wait_until(Duration::from_secs(30), "some lack descriptors", || {
        let all = captures(&rxd);
        all.iter()
            .any(|it| status(it).reason.contains("os error 24"))
    });
    // It answers each time, takes work, and saves it.
    for _ in 0..50 {
        let all = captures(&rxd);
        assert_eq!(all.len(), CAPTURES);
        let failed = all.iter().find(|it| status(it).state() == State::Failed);
        assert!(failed.is_none(), "{failed:?}");
    }
    let late = rxd.rpc(async |channel| {
        let interfaces = vec![CaptureInterface {
            name: "nicx".to_owned(),
            vlan_push: None,
        }];
        let spec = Some(CaptureSpec {
            interfaces,
            ring: "late".to_owned(),
            ..CaptureSpec::default()
        });
        let request = CreateCaptureRequest {
            name: "late".to_owned(),
            spec,
            ..CreateCaptureRequest::default()
        };
        CaptureServiceClient::new(channel)
            .create_capture(request)
            .await
    });
    late.expect("a connection").expect("it waits");
    let saved = std::fs::read_to_string(dirs.state().join("rxd.json")).expect("the state");
    assert!(saved.contains("\"late\""), "{saved}");
    // The others give back what they have: who lacks something gets it, without being told.
    let others = (0..CAPTURES - LEFT).map(|n| format!("c{n}"));
    for name in others {
        let deleted = rxd.rpc(async |channel| {
            let request = DeleteCaptureRequest { name: name.clone() };
            CaptureServiceClient::new(channel)
                .delete_capture(request)
                .await
        });
        deleted.expect("a connection").expect("deleted");
    }
    wait_until(Duration::from_secs(60), "none lacks any", || {
        let all = captures(&rxd);
        let lacks = all
            .iter()
            .any(|it| status(it).reason.contains("trying again"));
        all.len() == LEFT + 1 && !lacks
    });
}

#[test]
fn too_few_descriptors_to_answer_are_a_message_at_start() {
    let dirs = Dirs::new();
    let output = Command::new("prlimit")
        .arg("--nofile=19:19")
        .arg(fluxcap_e2e::binary("rxd"))
        .args(["--ephemeral", "--run-dir"])
        .arg(dirs.run())
        .output()
        .expect("start rxd");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LimitNOFILE"), "{text}");
}

#[test]
fn wrong_arguments_are_exit_code_2_without_a_back_trace() {
    let dirs = Dirs::new();
    for args in [
        &["--capture", "eth1"][..],
        &["--capture", "eth1:r", "--buffer", "5"],
        &["--capture", "eth1:r", "--filter", "porrt 5"],
        &["--nonsense"],
    ] {
        let output = Command::new(fluxcap_e2e::binary("rxd"))
            .args(["--ephemeral", "--run-dir"])
            .arg(dirs.run())
            .args(args)
            .env("RUST_BACKTRACE", "1")
            .env("FLUXCAP_STATE_DIR", dirs.state())
            .output()
            .expect("start rxd");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(!text.contains("backtrace"), "{args:?}: {text}");
        assert!(!text.contains("_bytes"), "{args:?}: {text}");
        assert!(!text.contains("--state-dir"), "{args:?}: {text}");
    }
}
