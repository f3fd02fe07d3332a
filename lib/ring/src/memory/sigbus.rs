//! What happens when another process cuts the file of a ring short.
//!
//! Touching a page that the file has no more raises SIGBUS, which would kill the process. Whoever may write the
//! file can do that to everybody, so the handler here puts pages of zeroes in the place of the whole
//! mapping and marks it: the thread goes on, finds nonsense, and its next look at the mark ends the
//! work on that ring with [`Error::Poisoned`](crate::Error::Poisoned). A SIGBUS anywhere else goes where it
//! would have gone without this.
//!
//! The handler only reads atomics and calls mmap(2), which is a plain system call.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings of one table: two a ring. When it is full, another is hung to it.
const RANGES: usize = 512;

struct Range {
    /// First address, 0 when the entry is free, 1 while it is being filled in.
    start: AtomicUsize,
    len: AtomicUsize,
    poisoned: AtomicBool,
}

/// Tables are never freed: the handler may be looking at them.
struct Table {
    ranges: [Range; RANGES],
    more: OnceLock<Box<Table>>,
}

impl Table {
    const fn new() -> Self {
        Self {
            ranges: [const {
                Range {
                    start: AtomicUsize::new(0),
                    len: AtomicUsize::new(0),
                    poisoned: AtomicBool::new(false),
                }
            }; RANGES],
            more: OnceLock::new(),
        }
    }

    /// All entries there are. A handler may call it: a look into a `OnceLock` is one load.
    fn all(&self) -> impl Iterator<Item = &Range> {
        let tables = std::iter::successors(Some(self), |table| table.more.get().map(Box::as_ref));
        tables.flat_map(|table| &table.ranges)
    }

    /// Takes a free entry.
    fn take(&'static self) -> &'static Range {
        let mut table = self;
        loop {
            let free = |range: &&Range| {
                range
                    .start
                    .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            };
            if let Some(range) = table.ranges.iter().find(free) {
                return range;
            }
            table = table.more.get_or_init(|| Box::new(Table::new()));
        }
    }
}

static TABLE: Table = Table::new();

/// What to do with a SIGBUS that is none of ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps a range of addresses guarded until it is dropped.
pub(crate) struct Guard {
    range: &'static Range,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("poisoned", &self.poisoned())
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Guards a mapping. It must be dropped before the mapping is.
    pub(crate) fn new(start: usize, len: usize) -> Self {
        install();
        let range = TABLE.take();
        range.len.store(len, Ordering::Relaxed);
        range.poisoned.store(false, Ordering::Relaxed);
        range.start.store(start, Ordering::Release);
        Self { range }
    }

    /// Whether the memory was taken away.
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.range.poisoned.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.range.start.store(0, Ordering::Release);
    }
}

/// Installs the handler, once for the process.
fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: both structures are plain data for which all zeroes is a value; the handler has the
        // signature that SA_SIGINFO asks for and does only what is allowed in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut previous: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous);
            previous
        }
    });
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; for SIGBUS it carries an address.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    if code == libc::BUS_ADRERR && replace(address) {
        return;
    }
    forward(signal, info, context);
}

/// Puts zero pages over the guarded range that holds the address; false when there is none.
fn replace(address: usize) -> bool {
    for range in TABLE.all() {
        let start = range.start.load(Ordering::Acquire);
        let len = range.len.load(Ordering::Relaxed);
        if start <= 1 || address < start || address - start >= len {
            continue;
        }
        range.poisoned.store(true, Ordering::Relaxed);
        // SAFETY: the range is a mapping of ours, alive as long as its entry; all access to it is
        // atomic or by copies that tolerate any content. errno is put back.
        unsafe {
            let errno = *libc::__errno_location();
            let mapped = libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            );
            *libc::__errno_location() = errno;
            return mapped != libc::MAP_FAILED;
        }
    }
    false
}

/// Does what would have been done without us.
fn forward(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    let wants_info = PREVIOUS
        .get()
        .is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: a handler that was installed with SA_SIGINFO has that signature; otherwise the
    // default is put back, and the instruction that failed fails once more, for good.
    unsafe {
        if wants_info && previous != libc::SIG_DFL && previous != libc::SIG_IGN {
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(previous);
            handler(signal, info, context);
        } else {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
