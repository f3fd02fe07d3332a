//! fluxctl against a rxd that answers as a test wants: exit codes, requests on the wire, completion.
#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

use fluxcap_proto::v1::capture_service_server::{CaptureService, CaptureServiceServer};
use fluxcap_proto::v1::*;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

type Reply<T> = Result<Response<T>, Status>;

/// What is asked for by the name of a gRPC code fails with that code; what is made or changed as "empty" is not in the answer.
#[derive(Debug, Default)]
struct Rxd {
    captures: Vec<Capture>,
    created: Arc<Mutex<Vec<CreateCaptureRequest>>>,
    updated: Arc<Mutex<Vec<UpdateCaptureRequest>>>,
}

fn named(name: &str) -> Result<(), Status> {
    let code = match name {
        "invalid" => Code::InvalidArgument,
        "missing" | "cisco-eht1" => Code::NotFound,
        "exists" => Code::AlreadyExists,
        "full" => Code::ResourceExhausted,
        "denied" => Code::PermissionDenied,
        "broken" => Code::Internal,
        _ => return Ok(()),
    };
    Err(Status::new(code, format!("capture {name}: as you wish")))
}

fn capture(name: &str, spec: Option<CaptureSpec>) -> Capture {
    Capture {
        name: name.to_owned(),
        spec,
        status: None,
    }
}

#[tonic::async_trait]
impl CaptureService for Rxd {
    type WatchCapturesStream = tokio_stream::Empty<Result<WatchCapturesResponse, Status>>;

    async fn create_capture(
        &self,
        request: Request<CreateCaptureRequest>,
    ) -> Reply<CreateCaptureResponse> {
        let request = request.into_inner();
        named(&request.name)?;
        let capture = capture(&request.name, request.spec.clone());
        self.created.lock().unwrap().push(request);
        let capture = Some(capture).filter(|capture| capture.name != "empty");
        Ok(Response::new(CreateCaptureResponse { capture }))
    }

    async fn get_capture(&self, request: Request<GetCaptureRequest>) -> Reply<GetCaptureResponse> {
        let name = request.into_inner().name;
        if name == "slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        named(&name)?;
        let known = self.captures.iter().find(|capture| capture.name == name);
        Ok(Response::new(GetCaptureResponse {
            capture: Some(known.cloned().unwrap_or_else(|| capture(&name, None))),
        }))
    }

    /// One on each page, so that whoever reads the first one only does not get far.
    async fn list_captures(
        &self,
        request: Request<ListCapturesRequest>,
    ) -> Reply<ListCapturesResponse> {
        let at: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let next = at + 1;
        Ok(Response::new(ListCapturesResponse {
            captures: self.captures.iter().skip(at).take(1).cloned().collect(),
            next_page_token: match next < self.captures.len() {
                true => next.to_string(),
                false => String::new(),
            },
        }))
    }

    async fn update_capture(
        &self,
        request: Request<UpdateCaptureRequest>,
    ) -> Reply<UpdateCaptureResponse> {
        let request = request.into_inner();
        named(&request.name)?;
        let capture = capture(&request.name, request.spec.clone());
        self.updated.lock().unwrap().push(request);
        let capture = Some(capture).filter(|capture| capture.name != "empty");
        Ok(Response::new(UpdateCaptureResponse { capture }))
    }

    async fn delete_capture(
        &self,
        request: Request<DeleteCaptureRequest>,
    ) -> Reply<DeleteCaptureResponse> {
        named(&request.into_inner().name)?;
        Ok(Response::new(DeleteCaptureResponse {}))
    }

    async fn watch_captures(
        &self,
        _: Request<WatchCapturesRequest>,
    ) -> Reply<Self::WatchCapturesStream> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// A run directory with a rxd in it.
struct Lab {
    dir: TempDir,
    created: Arc<Mutex<Vec<CreateCaptureRequest>>>,
    updated: Arc<Mutex<Vec<UpdateCaptureRequest>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Lab {
        let interface = |name: &str, vid| CaptureInterface {
            name: name.to_owned(),
            vlan_push: Some(VlanTag {
                vid,
                tpid: 0x8100,
                ..Default::default()
            }),
        };
        let spec = CaptureSpec {
            interfaces: vec![interface("eth1", 1), interface("eth2", 2)],
            ring: "cisco".to_owned(),
            ..Default::default()
        };
        let rxd = Rxd {
            captures: vec![capture("cisco-eth1", Some(spec))],
            ..Default::default()
        };
        let (created, updated) = (Arc::clone(&rxd.created), Arc::clone(&rxd.updated));
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener =
            runtime.block_on(async { UnixListener::bind(dir.path().join("rxd.sock")).unwrap() });
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(CaptureServiceServer::new(rxd))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Lab {
            dir,
            created,
            updated,
            _runtime: runtime,
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        run(self.dir.path(), args)
    }

    fn code(&self, args: &[&str]) -> i32 {
        self.run(args).status.code().unwrap()
    }
}

fn fluxctl(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fluxctl"));
    command
        .args(args)
        .env("FLUXCAP_RUN_DIR", run_dir)
        .env("FLUXCAP_RING_DIR", run_dir)
        .stdin(Stdio::null());
    command
}

fn run(run_dir: &Path, args: &[&str]) -> Output {
    fluxctl(run_dir, args).output().unwrap()
}

/// What the shell is offered for the last of `words`.
fn completion(run_dir: &Path, words: &[&str]) -> Output {
    fluxctl(run_dir, &[&["--"], words].concat())
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_answer_has_its_exit_code() {
    let lab = Lab::new();
    for (name, code) in [
        ("fine", 0),
        ("invalid", 2),
        ("missing", 3),
        ("exists", 4),
        ("full", 4),
        ("denied", 6),
        ("broken", 1),
    ] {
        assert_eq!(
            lab.code(&["rx", "add", "eth1", "cisco", "--name", name]),
            code,
            "add {name}"
        );
        assert_eq!(lab.code(&["rx", "show", name]), code, "show {name}");
        assert_eq!(
            lab.code(&["rx", "set", name, "--snaplen", "64"]),
            code,
            "set {name}"
        );
        assert_eq!(lab.code(&["rx", "delete", name]), code, "delete {name}");
    }
}

#[test]
fn an_empty_answer_is_a_failure() {
    let lab = Lab::new();
    for args in [
        &["rx", "add", "eth1", "cisco", "--name", "empty"][..],
        &["rx", "set", "empty", "--snaplen", "64"],
    ] {
        let ran = lab.run(args);
        assert_eq!(ran.status.code(), Some(1), "{args:?}");
        let stderr = text(&ran.stderr);
        assert!(stderr.contains("rxd sent an empty answer"), "{stderr}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_unreachable_and_its_socket_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["tx", "list"]);
    assert_eq!(output.status.code(), Some(5));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("txd.sock does not exist")
            && stderr.contains("systemctl start fluxcap-txd"),
        "{stderr}"
    );
    assert_eq!(text(&output.stdout), "");
    // A socket that a dead daemon left behind.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("txd.sock")).unwrap());
    let output = run(dir.path(), &["tx", "list", "-o", "json"]);
    assert_eq!(output.status.code(), Some(5));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unreachable");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("nobody listens"),
        "{error}"
    );
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    let lab = Lab::new();
    let begun = Instant::now();
    assert_eq!(lab.code(&["rx", "show", "slow", "--timeout", "300ms"]), 5);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // One that accepts and says nothing at all.
    let dir = tempfile::tempdir().unwrap();
    let _mute = std::os::unix::net::UnixListener::bind(dir.path().join("ringd.sock")).unwrap();
    let output = run(dir.path(), &["ring", "list", "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
}

#[test]
fn usage_mistakes_never_reach_the_daemon() {
    let lab = Lab::new();
    for args in [
        &["rx"][..],
        &["rx", "add", "eth1"],
        &["rx", "add", "eth1", "cisco", "--vlan-push", "5000"],
        &["rx", "add", "eth1", "cisco", "--vlan-push", "eth9=5"],
        &["rx", "add", "eth1,", "cisco"],
        &["rx", "set", "cisco-eth1"],
        &["ring", "create", "a", "--size", "64KB"],
        &["rx", "add", "eth1", "cisco", "--threads", "17"],
        &["rx", "set", "cisco-eth1", "--cpu", "3-1"],
        &["tx", "add", "cisco", "eth2,"],
        &["tx", "add", "cisco", "eth2", "--io", "dpdk"],
        &["rx", "lst"],
    ] {
        assert_eq!(lab.code(args), 2, "{args:?}");
    }
    assert!(lab.created.lock().unwrap().is_empty());
}

#[test]
fn a_mistake_of_usage_is_told_as_json_however_that_was_asked_for() {
    let lab = Lab::new();
    for output in [
        &["-o", "json"][..],
        &["-ojson"],
        &["-o=json"],
        &["--output", "json"],
        &["--output=json"],
        &["-ojsonl"],
        &["-j"],
        &["--json"],
    ] {
        let ran = lab.run(&[output, &["rx", "lst"]].concat());
        assert_eq!(ran.status.code(), Some(2), "{output:?}");
        let error: serde_json::Value = serde_json::from_slice(&ran.stderr).unwrap_or_default();
        assert_eq!(error["error"]["code"], "usage", "{output:?}");
    }
}

#[test]
fn no_time_is_too_long_to_wait_for_an_answer() {
    let lab = Lab::new();
    assert_eq!(lab.code(&["rx", "list", "--timeout", "500000000000y"]), 0);
}

#[test]
fn set_sends_only_what_was_given() {
    let lab = Lab::new();
    assert_eq!(
        lab.code(&["rx", "set", "cisco-eth1", "--snaplen", "64", "--filter", ""]),
        0
    );
    assert_eq!(
        lab.code(&["rx", "set", "cisco-eth1", "--vlan-push", "eth2=20"]),
        0
    );
    let speed = ["--latency", "low", "--cpu", "", "--priority", "7"];
    assert_eq!(
        lab.code(&[&["rx", "set", "cisco-eth1"], &speed[..]].concat()),
        0
    );
    let updated = lab.updated.lock().unwrap();
    let paths = |index: usize| updated[index].update_mask.clone().unwrap().paths;
    assert_eq!(paths(0), ["edits.filter", "edits.snaplen"]);
    assert_eq!(paths(1), ["interfaces"]);
    assert_eq!(
        paths(2),
        ["latency", "scheduling.cpus", "scheduling.priority"]
    );
    let interfaces = &updated[1].spec.as_ref().unwrap().interfaces;
    let vids: Vec<u32> = interfaces
        .iter()
        .map(|interface| interface.vlan_push.unwrap().vid)
        .collect();
    assert_eq!(vids, [1, 20]);
}

#[test]
fn a_dry_run_says_so_to_the_daemon() {
    let lab = Lab::new();
    assert_eq!(lab.code(&["rx", "add", "eth1", "cisco", "--dry-run"]), 0);
    assert!(lab.created.lock().unwrap()[0].validate_only);
}

#[test]
fn a_mistyped_name_is_corrected() {
    let lab = Lab::new();
    let output = lab.run(&["rx", "show", "cisco-eht1"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("did you mean cisco-eth1?"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn of_several_deletions_the_rest_is_done_when_one_fails() {
    let lab = Lab::new();
    let output = lab.run(&["rx", "delete", "a", "missing", "b"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        text(&output.stdout),
        "deleted capture a\ndeleted capture b\n"
    );
    assert_eq!(text(&output.stderr).matches("error:").count(), 1);
}

#[test]
fn json_has_the_shape_of_the_api_with_words_for_enumerations() {
    let lab = Lab::new();
    let output = lab.run(&["rx", "list", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value[0]["spec"]["interfaces"][1]["vlan_push"]["vid"], 2);
    assert_eq!(value[0]["spec"]["direction"], "in");
}

#[test]
fn names_of_captures_complete() {
    let lab = Lab::new();
    let output = completion(lab.dir.path(), &["fluxctl", "rx", "show", "cis"]);
    assert_eq!(text(&output.stdout).trim(), "cisco-eth1", "{output:?}");
    // Where to look may be on the command line already.
    let run_dir = lab.dir.path().to_str().unwrap();
    let words = ["fluxctl", "--run-dir", run_dir, "rx", "show", ""];
    let output = completion(Path::new("/nowhere"), &words);
    assert!(
        text(&output.stdout)
            .lines()
            .any(|line| line == "cisco-eth1"),
        "{output:?}"
    );
}

#[test]
fn the_interfaces_of_a_list_complete_one_after_another() {
    let dir = tempfile::tempdir().unwrap();
    for (typed, offered) in [("l", "lo"), ("tap7,l", "tap7,lo")] {
        let output = completion(dir.path(), &["fluxctl", "tx", "add", "cisco", typed]);
        assert!(
            text(&output.stdout).lines().any(|line| line == offered),
            "{output:?}"
        );
    }
}

#[test]
fn completion_scripts_are_sound_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(dir.path(), &["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("COMPLETE"), "{shell}");
    }
    let script = dir.path().join("script");
    std::fs::write(&script, run(dir.path(), &["completion", "bash"]).stdout).unwrap();
    assert!(
        Command::new("bash")
            .arg("-n")
            .arg(&script)
            .status()
            .unwrap()
            .success()
    );
}
