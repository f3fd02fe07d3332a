//! Compiles eBPF programs, which are C, with clang. For build scripts only.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), fluxcap_bpf_build::Error> {
//!     fluxcap_bpf_build::compile(&["bpf/live.bpf.c"]) // -> $OUT_DIR/live.bpf.o
//! }
//! ```
//!
//! The objects keep BTF, which the loader needs, and lose DWARF, if there is an `llvm-strip`. They hold no path of the machine that
//! built them. `FLUXCAP_CLANG` names the compiler, when the one that is found first is not the one to use.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Compilers to try, in this order. Debian calls them by their version; 14 is the oldest that was tried.
const COMPILERS: &[&str] = &[
    "clang-14", "clang", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19",
];

/// Instructions of the third version, which Linux 5.1 and later run: 32-bit jumps make programs shorter.
const CPU: &str = "-mcpu=v3";

/// Why a program was not built. It reads like an explanation in debug output too, because that is how cargo shows it.
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Compiles each source, a path relative to the package, to `$OUT_DIR/<file name with .o instead of .c>`, and has cargo do so again
/// when a file beside it changes.
///
/// # Errors
/// When clang is missing, or refuses a source.
pub fn compile(sources: &[&str]) -> Result<(), Error> {
    println!("cargo::rerun-if-env-changed=FLUXCAP_CLANG");
    let clang = compiler()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    for source in sources.iter().map(Path::new) {
        if let Some(folder) = source.parent() {
            // Headers too.
            println!("cargo::rerun-if-changed={}", folder.display());
        }
        let name = source.file_name().unwrap_or_default();
        let object = out.join(name).with_extension("o");
        translate(&clang, source, &object)?;
        strip(&clang, &object);
    }
    Ok(())
}

/// As [`compile`], for each `*.bpf.c` of a folder of the package.
///
/// # Errors
/// When the folder cannot be read, clang is missing, or refuses a source.
pub fn compile_folder(folder: &str) -> Result<(), Error> {
    println!("cargo::rerun-if-changed={folder}");
    let entries = fs::read_dir(folder).map_err(|error| Error(format!("{folder}: {error}")))?;
    let mut sources: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned))
        .filter(|path| path.ends_with(".bpf.c"))
        .collect();
    sources.sort();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    compile(&sources)
}

fn translate(clang: &str, source: &Path, object: &Path) -> Result<(), Error> {
    let root = variable("CARGO_MANIFEST_DIR")?;
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut command = Command::new(clang);
    command
        .args([
            "-target", "bpf", CPU, "-O2", "-g", "-Wall", "-Wextra", "-Werror",
        ])
        // <asm/types.h> is in a folder of the machine's own where Debian's rules are followed.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .arg(format!("-ffile-prefix-map={root}=."))
        .args(["-fdebug-compilation-dir", ".", "-c"])
        .arg(source)
        .arg("-o")
        .arg(object);
    let output = command
        .output()
        .map_err(|error| Error(format!("cannot run {clang}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let Output { stderr, .. } = output;
    Err(Error(format!(
        "{clang} refuses {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&stderr)
    )))
}

/// Takes DWARF out. Without an llvm-strip the object is only larger.
fn strip(clang: &str, object: &Path) {
    let tool = clang.replace("clang", "llvm-strip");
    let _ = Command::new(tool).arg("-g").arg(object).output();
}

fn compiler() -> Result<String, Error> {
    if let Ok(named) = env::var("FLUXCAP_CLANG") {
        return Ok(named);
    }
    let runs = |name: &&&str| {
        let output = Command::new(**name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    COMPILERS.iter().find(runs).map(|name| (*name).to_owned()).ok_or_else(|| {
        Error("clang is needed for the eBPF programs: apt-get install clang-14 llvm-14 libbpf-dev linux-libc-dev (or set FLUXCAP_CLANG)".to_owned())
    })
}

fn variable(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|_| Error(format!("{name} is not set: to be used in a build script")))
}
