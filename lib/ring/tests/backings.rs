//! Rings on each kind of memory. Mounting takes root: without it a test fails, or says that it was
//! skipped where `FLUXCAP_TEST_SKIP_ROOT` is set.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use fluxcap_ring::*;

/// Says that a test was skipped, past the capture of the test harness: a skip must be seen and counted.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// A mount that ends with the test.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(kind: &str) -> Option<Self> {
        let place = tempfile::Builder::new()
            .prefix("fluxcap-test.")
            .tempdir()
            .expect("a directory");
        let mount = Command::new("mount")
            .args(["-t", kind, "none"])
            .arg(place.path())
            .output();
        if mount.is_ok_and(|run| run.status.success()) {
            return Some(Self(place));
        }
        assert!(
            std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some(),
            "{kind} cannot be mounted; set FLUXCAP_TEST_SKIP_ROOT=1 to skip tests that need root"
        );
        skip(&format!("{kind} cannot be mounted"));
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// Fills a ring of `capacity` several times over and reads it. Returns what it is.
fn exercise(place: &Path, capacity: u64) -> RingInfo {
    let dir = RingDir::new(place);
    let name = RingName::parse("ring").expect("a name");
    let options = CreateOptions {
        capacity,
        ..CreateOptions::default()
    };
    let info = create(&dir, &name, &options).expect("created");
    assert_eq!(info.backing, dir.backing().expect("a backing"));
    let mut producer = Producer::open(&dir, &name, "test").expect("a producer");
    let mut consumer =
        Consumer::open(&dir, &name, "reader", Start::Newest, false).expect("a consumer");
    let mut batch = Batch::new(1 << 20, 1024);
    let frames = 3 * info.capacity / 1024;
    for n in 1..=frames {
        let bytes = n.to_ne_bytes().repeat(122);
        let mut burst = producer
            .reserve(record_size(bytes.len()))
            .expect("fits")
            .expect("space");
        assert!(burst.push(&Meta::default(), &[&bytes]));
        burst.commit();
        if n % 100 == 0 || n == frames {
            while let Poll::Frames(_) = consumer.poll(&mut batch).expect("healthy") {
                for frame in batch.frames() {
                    assert_eq!(frame.data, frame.seq.to_ne_bytes().repeat(122));
                }
            }
        }
    }
    assert_eq!(consumer.stats().delivered, frames);
    let replace = CreateOptions {
        replace: true,
        ..options.clone()
    };
    create(&dir, &name, &replace).expect("replaced");
    assert!(producer.retired().is_some());
    assert!(matches!(
        create(&dir, &name, &options),
        Err(Error::Exists { .. })
    ));
    drop((producer, consumer));
    delete(&dir, &name).expect("deleted");
    assert_eq!(
        std::fs::read_dir(place).expect("read").count(),
        0,
        "leftovers"
    );
    info
}

#[test]
fn a_ring_lives_on_ramfs() {
    let Some(mount) = Mount::new("ramfs") else {
        return;
    };
    let info = exercise(mount.0.path(), 1_000_001);
    assert_eq!((info.backing, info.capacity), (Backing::Ramfs, 1_003_520));
}

#[test]
fn a_ring_lives_on_tmpfs_and_respects_its_size() {
    let Some(mount) = Mount::new("tmpfs") else {
        return;
    };
    assert_eq!(exercise(mount.0.path(), 1 << 20).backing, Backing::Tmpfs);
    let shrunk = Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(mount.0.path())
        .status();
    assert!(shrunk.expect("mount runs").success());
    let dir = RingDir::new(mount.0.path());
    let options = CreateOptions {
        capacity: 8 << 20,
        ..CreateOptions::default()
    };
    let refused = create(&dir, &RingName::parse("big").expect("a name"), &options);
    assert!(
        matches!(refused, Err(Error::NotEnoughMemory { .. })),
        "{refused:?}"
    );
}

/// What a number in /proc or /sys says.
fn number(path: &str) -> u64 {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0)
}

#[test]
fn a_ring_lives_on_huge_pages() {
    const SETTING: &str = "/proc/sys/vm/nr_hugepages";
    let before = number(SETTING);
    let Some(mount) = Mount::new("hugetlbfs") else {
        return;
    };
    if std::fs::write(SETTING, (before + 16).to_string()).is_err() || number(SETTING) < before + 16
    {
        let _ = std::fs::write(SETTING, before.to_string());
        skip("this machine has no huge pages to give");
        return;
    }
    let info = exercise(mount.0.path(), 3 << 20);
    let dir = RingDir::new(mount.0.path());
    let options = CreateOptions {
        capacity: 1 << 30,
        ..CreateOptions::default()
    };
    let refused = create(&dir, &RingName::parse("big").expect("a name"), &options);
    drop(mount);
    std::fs::write(SETTING, before.to_string()).expect("written");
    assert_eq!(info.backing, Backing::Hugetlbfs);
    assert!(info.capacity >= 3 << 20 && info.capacity.is_multiple_of(2 << 20));
    assert!(
        matches!(refused, Err(Error::NotEnoughMemory { .. })),
        "{refused:?}"
    );
}
