//! Programs at interfaces, held there by links, bpf(2): an interface has the program as long as somebody holds the link, be it a
//! descriptor or a name in a bpffs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Error;

/// Capabilities to attach programs to interfaces.
const ATTACH: &str = "CAP_BPF and CAP_NET_ADMIN";

/// Where at an interface a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkHook {
    /// What arrives, at traffic control (TCX, Linux 6.6).
    TcxIngress,
    /// What is sent, at traffic control (TCX).
    TcxEgress,
    /// The driver's receive path; the flags are XDP_FLAGS_* (`linux/if_link.h`).
    Xdp(u32),
}

impl LinkHook {
    /// `enum bpf_attach_type`.
    fn attach_type(self) -> u32 {
        match self {
            LinkHook::TcxIngress => 46,
            LinkHook::TcxEgress => 47,
            LinkHook::Xdp(_) => 37,
        }
    }
}

/// A program's place among others at the same hook of TCX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkOrder {
    /// Behind all that are there.
    #[default]
    Last,
    /// In front of all that are there.
    First,
    /// In front of the program with this identifier.
    Before(u32),
    /// Behind the program with this identifier.
    After(u32),
}

const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const BPF_F_ID: u32 = 1 << 5;

impl LinkOrder {
    /// Flags, and the program that they speak of.
    fn flags(self) -> (u32, u32) {
        match self {
            LinkOrder::Last => (0, 0),
            LinkOrder::First => (BPF_F_BEFORE, 0),
            LinkOrder::Before(id) => (BPF_F_BEFORE | BPF_F_ID, id),
            LinkOrder::After(id) => (BPF_F_AFTER | BPF_F_ID, id),
        }
    }
}

/// What the kernel says of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfLinkInfo {
    /// Identifier of the link.
    pub id: u32,
    /// Identifier of its program.
    pub program_id: u32,
    /// Index of its interface; 0 when that is gone, or somebody has detached the link.
    pub ifindex: u32,
}

/// Most programs that TCX takes at one place (`BPF_MPROG_MAX` of `kernel/bpf/mprog.c`).
const MOST_PROGRAMS: usize = 64;

/// A link.
#[derive(Debug)]
pub struct BpfLink(OwnedFd);

impl BpfLink {
    /// What TCX has at an interface, in the order in which the programs run; the link is 0 for a program that has none.
    ///
    /// # Errors
    /// [`Error::Permission`]; [`Error::Interface`] with EINVAL where the kernel has no TCX.
    pub fn attached(ifindex: u32, hook: LinkHook) -> Result<Vec<BpfLinkInfo>, Error> {
        let (mut programs, mut links) = ([0_u32; MOST_PROGRAMS], [0_u32; MOST_PROGRAMS]);
        let mut attr = Query {
            target_ifindex: ifindex,
            attach_type: hook.attach_type(),
            count: u32::try_from(MOST_PROGRAMS).unwrap_or(0),
            prog_ids: programs.as_mut_ptr().expose_provenance() as u64,
            link_ids: links.as_mut_ptr().expose_provenance() as u64,
            ..Query::default()
        };
        match bpf(BPF_PROG_QUERY, &mut attr) {
            Ok(_) => {}
            // Nothing was ever attached there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(source) => {
                return Err(refused(source, |source| Error::Interface {
                    operation: "ask for the BPF programs of an interface",
                    ifindex,
                    source,
                }));
            }
        }
        let found = links.into_iter().zip(programs).take(attr.count as usize);
        Ok(found
            .map(|(id, program_id)| BpfLinkInfo {
                id,
                program_id,
                ifindex,
            })
            .collect())
    }

    /// The link with this identifier.
    ///
    /// # Errors
    /// [`Error::Permission`]: this takes CAP_SYS_ADMIN; [`Error::System`] with ENOENT: there is none.
    pub fn by_id(id: u32) -> Result<BpfLink, Error> {
        let mut attr = ById {
            id,
            ..ById::default()
        };
        let operation = "open a BPF link by its identifier";
        match bpf_fd(BPF_LINK_GET_FD_BY_ID, &mut attr).map(BpfLink) {
            Ok(link) => link.info().map(|_| link),
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => Err(Error::Permission {
                operation,
                capability: "CAP_SYS_ADMIN",
                source,
            }),
            Err(source) => Err(Error::System { operation, source }),
        }
    }

    /// Attaches a program. `order` holds for TCX only.
    ///
    /// # Errors
    /// [`Error::Permission`]; [`Error::Interface`] with EINVAL where the kernel does not have this hook, ENOENT, ERANGE or EEXIST when the
    /// place is none.
    pub fn attach(
        program: BorrowedFd<'_>,
        ifindex: u32,
        hook: LinkHook,
        order: LinkOrder,
    ) -> Result<BpfLink, Error> {
        let (order_flags, relative) = order.flags();
        let mut attr = LinkCreate {
            prog_fd: raw(program),
            target_ifindex: ifindex,
            attach_type: hook.attach_type(),
            ..LinkCreate::default()
        };
        if let LinkHook::Xdp(flags) = hook {
            attr.flags = flags;
        } else {
            (attr.flags, attr.relative_id) = (order_flags, relative);
        }
        let fd = bpf_fd(BPF_LINK_CREATE, &mut attr).map_err(|source| {
            refused(source, |source| Error::Interface {
                operation: "attach a BPF program to an interface",
                ifindex,
                source,
            })
        })?;
        Ok(BpfLink(fd))
    }

    /// The link that has this name in a bpffs.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::System`]: there is none, or it is something else.
    pub fn open(path: &Path) -> Result<BpfLink, Error> {
        let path = c_path(path)?;
        let mut attr = Object {
            pathname: path.as_ptr().expose_provenance() as u64,
            ..Object::default()
        };
        let link = bpf_fd(BPF_OBJ_GET, &mut attr)
            .map(BpfLink)
            .map_err(|e| system("open a BPF link", e))?;
        // Programs and maps have names there, too.
        link.info().map(|_| link)
    }

    /// Gives the link a name in a bpffs, by which it stays when its descriptors are closed.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::System`]: EEXIST for a name that is taken.
    pub fn pin(&self, path: &Path) -> Result<(), Error> {
        let path = c_path(path)?;
        let mut attr = Object {
            pathname: path.as_ptr().expose_provenance() as u64,
            bpf_fd: raw(self.0.as_fd()),
            ..Object::default()
        };
        bpf(BPF_OBJ_PIN, &mut attr)
            .map(drop)
            .map_err(|e| system("pin a BPF link", e))
    }

    /// Replaces the program: each frame meets the old one or the new one.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::System`]: ENOLINK when the interface is gone, or somebody has detached the link.
    pub fn replace(&self, program: BorrowedFd<'_>) -> Result<(), Error> {
        let mut attr = LinkUpdate {
            link_fd: raw(self.0.as_fd()),
            new_prog_fd: raw(program),
            ..LinkUpdate::default()
        };
        bpf(BPF_LINK_UPDATE, &mut attr)
            .map(drop)
            .map_err(|e| system("replace the BPF program of a link", e))
    }

    /// Takes the program off the interface, whoever else holds the link.
    ///
    /// # Errors
    /// As [`BpfLink::replace`].
    pub fn detach(&self) -> Result<(), Error> {
        let mut attr = LinkUpdate {
            link_fd: raw(self.0.as_fd()),
            ..LinkUpdate::default()
        };
        bpf(BPF_LINK_DETACH, &mut attr)
            .map(drop)
            .map_err(|e| system("detach a BPF link", e))
    }

    /// What the kernel says of it now.
    ///
    /// # Errors
    /// [`Error::System`]: it is no link.
    pub fn info(&self) -> Result<BpfLinkInfo, Error> {
        let mut info = Info::default();
        let mut attr = InfoByFd {
            bpf_fd: raw(self.0.as_fd()),
            info_len: u32::try_from(size_of::<Info>()).unwrap_or(0),
            info: (&raw mut info).expose_provenance() as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map_err(|e| system("look at a BPF link", e))?;
        if !matches!(info.kind, LINK_XDP | LINK_TCX) {
            return Err(system(
                "look at a BPF link",
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        Ok(BpfLinkInfo {
            id: info.id,
            program_id: info.prog_id,
            ifindex: info.ifindex,
        })
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| system("use a name in a bpffs", io::ErrorKind::InvalidInput.into()))
}

fn system(operation: &'static str, source: io::Error) -> Error {
    refused(source, |source| Error::System { operation, source })
}

/// Tells a missing capability apart.
fn refused(source: io::Error, other: impl FnOnce(io::Error) -> Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Permission {
            operation: "attach BPF programs",
            capability: ATTACH,
            source,
        },
        _ => other(source),
    }
}

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `enum bpf_link_type`.
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

/// Parts of `union bpf_attr` (`linux/bpf.h`), one for each kind of call.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_id: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `struct bpf_link_info` of XDP and TCX, with the room that the largest kind takes.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

/// Calls that read or write no more than these structures and what their pointers lead to.
trait Attr {}
impl Attr for LinkCreate {}
impl Attr for LinkUpdate {}
impl Attr for Object {}
impl Attr for InfoByFd {}
impl Attr for Query {}
impl Attr for ById {}

fn bpf<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as large as said; the pointers in them lead to a C string, or to as many bytes as said, that outlive
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut A, size_of::<A>()) };
    match libc::c_int::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bpf_fd<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the call has just returned this descriptor; nobody else knows or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
