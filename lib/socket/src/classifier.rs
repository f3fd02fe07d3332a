//! Programs for traffic control that are made of instructions, without an object.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::Error;
use crate::bpf::{self, LOAD, Run};

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// The verifier's account of every step, of which only the end is shown.
const LOG_LEVEL: u32 = 1;
const LOG_BYTES: usize = 1 << 20;
const LOG_SHOWN: usize = 1000;

/// A classifier that the kernel has taken. Whoever holds it keeps it loaded, an array of programs included.
#[derive(Debug)]
pub struct Classifier {
    fd: OwnedFd,
}

/// `union bpf_attr` as BPF_PROG_LOAD wants it (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The same, as BPF_MAP_UPDATE_ELEM wants it.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Classifier {
    /// Loads a program. Its name, of which 15 characters count, is what `bpftool prog` shows; instructions are as in
    /// `struct bpf_insn`, in the byte order of this machine.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_BPF, CAP_NET_ADMIN); [`Error::System`] with the end of the verifier's log.
    pub fn load(name: &str, instructions: &[[u8; 8]]) -> Result<Classifier, Error> {
        let operation = "load a BPF program";
        load(name, instructions, &mut [])
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EPERM) => Err(error),
                _ => {
                    let mut log = vec![0; LOG_BYTES];
                    load(name, instructions, &mut log).map_err(|error| explained(&error, &log))
                }
            })
            .map(|fd| Classifier { fd })
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EPERM) => Error::Permission {
                    operation,
                    capability: LOAD,
                    source,
                },
                _ => Error::System { operation, source },
            })
    }

    /// Makes it the program that tail calls to `index` of an array of programs (BPF_MAP_TYPE_PROG_ARRAY) go to.
    ///
    /// # Errors
    /// When there is no such index, or the array holds programs of another kind.
    pub fn put_into(&self, programs: BorrowedFd<'_>, index: u32) -> Result<(), Error> {
        let program = number(self.fd.as_fd());
        let mut attr = Update {
            map_fd: number(programs),
            padding: 0,
            key: (&raw const index).expose_provenance() as u64,
            value: (&raw const program).expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: the attributes are as large as said; key and value lead to an integer each, which is what arrays of programs have.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_UPDATE_ELEM,
                &raw mut attr,
                size_of::<Update>(),
            )
        };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::system(
                "put a BPF program into an array of programs",
                source,
            ));
        }
        Ok(())
    }
}

impl AsFd for Classifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs a classifier on one frame, which no interface sees, and returns what it returned. `cb` is what it finds in the socket
/// buffer's `cb`. For tests of programs.
///
/// # Errors
/// Frames shorter than an Ethernet header or longer than a page; a descriptor that is no program.
pub fn run_classifier(program: BorrowedFd<'_>, frame: &[u8], cb: [u32; 5]) -> io::Result<i32> {
    // Everything before `cb` in `struct __sk_buff`.
    const BEFORE_CB: usize = 48;
    let mut context = [0; BEFORE_CB + 20];
    let words = context.iter_mut().skip(BEFORE_CB);
    for (to, from) in words.zip(cb.iter().flat_map(|word| word.to_ne_bytes())) {
        *to = from;
    }
    let run = Run {
        data: frame,
        context: &context,
        repeat: 1,
        flags: 0,
        batch: 0,
    };
    bpf::run(program, run).map(u32::cast_signed)
}

fn load(name: &str, instructions: &[[u8; 8]], log: &mut [u8]) -> io::Result<OwnedFd> {
    const LICENSE: &[u8] = b"Dual MIT/GPL\0";
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut attr = Load {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: instructions.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        prog_name,
        ..Load::default()
    };
    if !log.is_empty() {
        attr.log_level = LOG_LEVEL;
        attr.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
        attr.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    }
    // SAFETY: the attributes are as large as said. The instructions are as many as said and the licence ends in a zero, both only
    // read; the log may be written up to its length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw mut attr,
            size_of::<Load>(),
        )
    };
    let fd = i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just returned this descriptor; nobody else knows or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An error with what the verifier said last.
fn explained(error: &io::Error, log: &[u8]) -> io::Error {
    let log = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let end = log.get(log.len().saturating_sub(LOG_SHOWN)..);
    let text = String::from_utf8_lossy(end.unwrap_or_default());
    io::Error::new(error.kind(), format!("{error}: {}", text.trim()))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}
