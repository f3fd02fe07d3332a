use super::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::io::Write;

type Entries = BTreeMap<String, Vec<u32>>;

fn entries(count: u32) -> Entries {
    (0..count).map(|n| (format!("n{n}"), vec![n; 64])).collect()
}

#[test]
fn what_is_saved_is_loaded_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = StateFile::open(&dir.path().join("deep/state"), "testd", &Notices::default())
        .expect("open");
    assert!(file.load::<Vec<u32>>().expect("nothing yet").is_empty());
    assert!(file.save(&entries(3)));
    assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(3));
    assert!(file.save(&entries(1)));
    assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(1));
}

#[test]
fn what_is_no_state_file_is_moved_aside_with_a_notice_and_the_state_is_incomplete_until_it_is_removed()
 {
    for content in [
        "",
        "{",
        "\0\0\0\0",
        "{\"version\":1}",
        "{\"version\":1,\"entries\":[]}",
        "[]",
    ] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let notices = Notices::default();
        let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
        fs::write(file.path(), content).expect("write");
        assert!(file.load::<Vec<u32>>().expect("load").is_empty());
        assert_eq!(notices.list().len(), 1);
        let kept: Vec<_> = fs::read_dir(dir.path())
            .expect("list")
            .map(|e| e.expect("entry").path())
            .collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(fs::read_to_string(&kept[0]).expect("read"), content);
        assert!(file.save(&entries(1)) && !file.is_complete());
        // After a restart, too.
        let again = StateFile::open(dir.path(), "testd", &Notices::default()).expect("open");
        assert_eq!(again.load::<Vec<u32>>().expect("load"), entries(1));
        assert!(!again.is_complete());
        fs::remove_file(&kept[0]).expect("remove");
        again.load::<Vec<u32>>().expect("load");
        assert!(again.is_complete());
    }
}

#[test]
fn a_pipe_a_directory_and_a_file_without_end_hold_nobody_up() {
    let make: [fn(&Path); 3] = [
        |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe"),
        |path| fs::create_dir(path).expect("a directory"),
        |path| {
            let file = File::create(path).expect("a file");
            file.set_len(200 << 20).expect("200 MB");
        },
    ];
    for make in make {
        let dir = tempfile::tempdir().expect("temporary directory");
        let notices = Notices::default();
        let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
        make(file.path());
        let begun = std::time::Instant::now();
        assert!(file.load::<Vec<u32>>().expect("load").is_empty());
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
        assert_eq!(notices.list().len(), 1);
        assert!(!file.is_complete());
        assert!(file.save(&entries(2)));
        assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(2));
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(default)]
struct Spec {
    ring: String,
    parts: Vec<Spec>,
}

fn spec(ring: &str, parts: &[Spec]) -> Spec {
    Spec {
        ring: ring.to_owned(),
        parts: parts.to_vec(),
    }
}

#[test]
fn each_entry_is_judged_alone_and_what_is_not_understood_is_written_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let notices = Notices::default();
    let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
    let content = serde_json::json!({
        "version": 1,
        "written_by": {"version": "9.9"},
        "entries": {
            "good": {"ring": "a", "parts": []},
            "later": {"ring": "b", "filter": "tcp", "parts": [{"ring": "c", "parts": [], "cut": {"at": 5}}]},
            "bad": {"ring": 5},
            "worse": null,
        },
    });
    fs::write(file.path(), content.to_string()).expect("write");
    let mut loaded = file.load::<Spec>().expect("load");
    let later = spec("b", &[spec("c", &[])]);
    assert_eq!(loaded.len(), 2);
    assert_eq!(
        (&loaded["good"], &loaded["later"]),
        (&spec("a", &[]), &later)
    );
    let told = notices.list().join("");
    for word in ["bad", "worse", "filter", "parts[0].cut.at", "written_by"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(!file.is_complete());
    // The next change keeps all of it.
    loaded.insert("new".to_owned(), spec("n", &[]));
    loaded.get_mut("later").expect("there").ring = "changed".to_owned();
    assert!(file.save(&loaded));
    let read = || -> Value {
        serde_json::from_slice(&fs::read(file.path()).expect("read")).expect("JSON")
    };
    let mut expected = content;
    expected["entries"]["new"] = serde_json::json!({"ring": "n", "parts": []});
    expected["entries"]["later"]["ring"] = "changed".into();
    assert_eq!(read(), expected);
    // Until somebody deletes it, or takes its name.
    assert!(file.forget("worse") && !file.forget("worse") && !file.forget("good"));
    loaded.insert("bad".to_owned(), spec("x", &[]));
    loaded.remove("later");
    assert!(file.save(&loaded) && file.is_complete());
    assert_eq!(file.load::<Spec>().expect("load"), loaded);
}

#[test]
fn what_the_command_line_asked_for_is_marked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = StateFile::open(dir.path(), "testd", &Notices::default()).expect("open");
    file.mark_command_line("n0", true);
    file.mark_command_line("n1", true);
    file.mark_command_line("elsewhere", true);
    file.mark_command_line("n1", false);
    assert!(file.save(&entries(2)));
    let again = StateFile::open(dir.path(), "testd", &Notices::default()).expect("open");
    again.load::<Vec<u32>>().expect("load");
    assert_eq!(again.command_line(), BTreeSet::from(["n0".to_owned()]));
}

#[test]
fn unknown_version_is_refused_and_left_in_place() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = StateFile::open(dir.path(), "testd", &Notices::default()).expect("open");
    fs::write(file.path(), "{\"version\":2,\"things\":[]}").expect("write");
    assert!(matches!(
        file.load::<Vec<u32>>(),
        Err(Error::StateVersion { version: 2, .. })
    ));
    assert!(file.path().exists());
}

#[test]
fn full_disk_keeps_the_old_file_and_shows_a_notice_until_there_is_room() {
    let dir = tempfile::tempdir().expect("temporary directory");
    if let Err(errno) = mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=32k"),
    ) {
        assert!(
            std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some(),
            "a tmpfs needs root to mount ({errno}); set FLUXCAP_TEST_SKIP_ROOT=1 to skip such tests"
        );
        // Past the capture of the test harness: a skip must be seen.
        let _ = writeln!(std::io::stderr(), "skipped: full disk ({errno})");
        return;
    }
    let notices = Notices::default();
    let file = StateFile::open(dir.path(), "testd", &notices).expect("open");
    assert!(file.save(&entries(2)));
    assert!(!file.save(&entries(1000)));
    assert!(
        notices.list().iter().any(|text| text.contains("not saved")),
        "{:?}",
        notices.list()
    );
    assert_eq!(file.load::<Vec<u32>>().expect("load"), entries(2));
    assert!(file.save(&entries(3)));
    assert!(notices.list().is_empty());
    umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmount");
}
