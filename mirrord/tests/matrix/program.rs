//! The test programs, loaded.

use crate::frames::Frame;
use crate::rules::Tables;
use aya::maps::{Map, MapData, PerCpuArray, ProgramArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use fluxcap_socket::run_classifier;
use std::os::fd::{AsFd, BorrowedFd};

const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/select.bpf.o"));

pub(crate) struct Programs {
    ebpf: Ebpf,
}

/// Whether this test may load programs. A test that may not is skipped, loudly; in CI nothing may be skipped.
pub(crate) fn may_load() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("REQUIRE_NETNS").is_none(),
        "REQUIRE_NETNS is set, and this is not root"
    );
    eprintln!("\nskipped: BPF programs need root");
    false
}

impl Programs {
    pub(crate) fn load(tables: &Tables) -> Programs {
        let mut loader = EbpfLoader::new();
        tables.configure(&mut loader);
        let mut ebpf = loader.load(OBJECT).expect("load the object");
        tables.install(&mut ebpf).expect("fill the maps");
        Programs { ebpf }
    }

    /// The program of this name, which the kernel takes when it is asked for the first time.
    fn program(&mut self, name: &str) -> BorrowedFd<'_> {
        let program = self.ebpf.program_mut(name).expect("a program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        if program.fd().is_err() {
            program.load().expect("pass the verifier");
        }
        program.fd().expect("a loaded program").as_fd()
    }

    /// What a program returns for a frame.
    pub(crate) fn run(&mut self, name: &str, frame: &Frame) -> i32 {
        // The kernel takes no frames whose IP header is not whole; the program cuts them.
        const WHOLE: usize = 60;
        let mut bytes = frame.bytes.clone();
        let cut = if bytes.len() < WHOLE { bytes.len() } else { 0 };
        bytes.resize(bytes.len().max(WHOLE), 0xa5);
        let cb = [frame.held(), cut as u32, 0, 0, 0];
        run_classifier(self.program(name), &bytes, cb)
            .unwrap_or_else(|error| panic!("{error}: {:02x?}", frame.bytes))
    }

    /// Frames by the rule that decided.
    pub(crate) fn rule_frames(&self) -> Vec<u64> {
        let map = self.ebpf.map("rule_frames").expect("a map");
        let map: PerCpuArray<&MapData, u64> = map.try_into().expect("an array");
        map.iter()
            .map(|cpus| cpus.expect("an entry").iter().sum())
            .collect()
    }

    /// The array through which the filter is called, with the programs behind it in place.
    pub(crate) fn stages(&mut self) -> BorrowedFd<'_> {
        for (index, name) in [(1, "matched"), (2, "refused")] {
            self.program(name);
            let program = self.ebpf.program(name).expect("a program");
            let fd = program
                .fd()
                .and_then(|fd| Ok(fd.try_clone()?))
                .expect("its descriptor");
            let map = self.ebpf.map_mut("stages").expect("a map");
            let mut stages = ProgramArray::try_from(map).expect("an array of programs");
            stages.set(index, &fd, 0).expect("set a stage");
        }
        match self.ebpf.map("stages") {
            Some(Map::ProgramArray(stages)) => stages.fd().as_fd(),
            _ => panic!("no array of programs"),
        }
    }
}
