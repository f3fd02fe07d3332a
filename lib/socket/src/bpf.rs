//! Loading eBPF programs and running them, bpf(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Map, MapData};
use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader};

use crate::Error;

/// Capabilities for the programs of this crate that only look at frames and send them.
pub(crate) const LOAD: &str = "CAP_BPF and CAP_NET_ADMIN";
/// The same, for programs that read the kernel's memory as well.
pub(crate) const TRACE: &str = "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// Loads the maps of an object; its programs are only parsed. `btf` is the kernel's, for programs that look into its structures.
pub(crate) fn load(
    object: &[u8],
    btf: Option<&Btf>,
    capability: &'static str,
) -> Result<Ebpf, Error> {
    EbpfLoader::new()
        .btf(btf)
        .load(object)
        .map_err(failed("load a BPF object", capability))
}

/// A bpffs of this process alone, mounted nowhere, for whoever keeps nothing: what is pinned there goes with the descriptor of its root.
///
/// # Errors
/// [`Error::System`]; it takes CAP_SYS_ADMIN.
pub fn private_bpffs() -> Result<std::os::fd::OwnedFd, Error> {
    crate::sys::mount_bpffs().map_err(|source| Error::system("mount a bpffs", source))
}

/// Gives back to the system what the loader has freed: the kernel's type information alone is some tens of megabytes once it is parsed.
pub fn trim_memory() {
    // SAFETY: malloc_trim(3) takes an integer, and may be called at any time by any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Turns an error of the loader into one of ours: a missing capability is told apart, all else is passed on as it is.
pub(crate) fn failed<E>(
    operation: &'static str,
    capability: &'static str,
) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| match errno(&error) {
        Some(libc::EPERM | libc::EACCES) => Error::Permission {
            operation,
            capability,
            source: io::Error::other(error),
        },
        _ => Error::System {
            operation,
            source: io::Error::other(error),
        },
    }
}

/// The errno at the bottom of an error.
pub(crate) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// A program of an object, of the kind that is wanted.
pub(crate) fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, Error>
where
    &'e mut P: TryFrom<&'e mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| absent(name))
}

/// Takes a map out of its object.
pub(crate) fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| absent(name))
}

/// Takes an array map out of its object.
pub(crate) fn array(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, Error> {
    match map(ebpf, name)? {
        Map::Array(map) => Ok(map),
        _ => Err(absent(name)),
    }
}

/// Cannot be: the object and its reader are built together.
fn absent(name: &'static str) -> Error {
    Error::system("find a part of a BPF object", io::Error::other(name))
}

/// How a program is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'d> {
    /// Input for the program.
    pub(crate) data: &'d [u8],
    /// The front of its context; what is missing is zero.
    pub(crate) context: &'d [u8],
    /// How often.
    pub(crate) repeat: u32,
    /// BPF_F_TEST_*.
    pub(crate) flags: u32,
    /// Frames at a time, for live frames.
    pub(crate) batch: u32,
}

/// `union bpf_attr` as BPF_PROG_TEST_RUN wants it (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// Runs a program through BPF_PROG_TEST_RUN, and returns what it returned. The descriptor is all the permission that is needed.
pub(crate) fn run(program: BorrowedFd<'_>, run: Run<'_>) -> io::Result<u32> {
    let mut attr = TestRun {
        prog_fd: u32::try_from(program.as_fd().as_raw_fd()).unwrap_or(u32::MAX),
        data_size_in: u32::try_from(run.data.len()).unwrap_or(u32::MAX),
        data_in: run.data.as_ptr().expose_provenance() as u64,
        ctx_size_in: u32::try_from(run.context.len()).unwrap_or(u32::MAX),
        ctx_in: match run.context {
            [] => 0,
            context => context.as_ptr().expose_provenance() as u64,
        },
        repeat: run.repeat,
        flags: run.flags,
        batch_size: run.batch,
        ..TestRun::default()
    };
    // SAFETY: the attributes are as large as said; data_in leads to data_size_in bytes and ctx_in to ctx_size_in, which the kernel
    // only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRun>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attr.retval)
}
