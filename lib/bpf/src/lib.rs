//! Makes objects of eBPF programs, which are C: compiles them with clang, or takes the copy in the repository. For build scripts only.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), fluxcap_bpf_build::Error> {
//!     fluxcap_bpf_build::compile_folder("bpf") // bpf/live.bpf.c -> $OUT_DIR/live.bpf.o
//! }
//! ```
//!
//! | `FLUXCAP_BPF` | what is done |
//! |---------------|--------------|
//! | `build`       | clang compiles; without clang the build fails |
//! | `prebuilt`    | `prebuilt/*.o` beside the sources is copied |
//! | not set       | as `build` where there is a clang, else as `prebuilt` |
//!
//! The objects keep BTF, which the loader needs, and lose DWARF, if there is an `llvm-strip`. They hold no path of the machine that
//! built them, so that the same compiler makes the same bytes everywhere: the program of this package renews the copies in the
//! repository, and finds those that are not what their sources say (`deploy/prebuild`). `FLUXCAP_CLANG` names the compiler, when the
//! one that is found first is not the one to use.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Compilers to try, in this order. Debian calls them by their version; 14 is the oldest that was tried, and the one that made the
/// copies in the repository.
const COMPILERS: &[&str] = &[
    "clang-14", "clang", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19",
];

/// Instructions of the third version, which Linux 5.1 and later run: 32-bit jumps make programs shorter.
const CPU: &str = "-mcpu=v3";
/// The second version, for sources that ask for it by naming it: it has no 32-bit registers. What the compiler saves on the stack is 8 bytes
/// long then, and the verifier takes nothing shorter there of a loader without CAP_PERFMON.
const PLAIN_CPU: &str = "-mcpu=v2";

const WANTED: &str = "apt-get install clang-14 llvm-14 libbpf-dev linux-libc-dev (or set FLUXCAP_CLANG, or FLUXCAP_BPF=prebuilt)";

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

/// Makes `$OUT_DIR/<name>.bpf.o` of each `<name>.bpf.c` in a folder of the package, and has cargo do so again when a file there changes.
///
/// # Errors
/// When clang refuses a source; or when there is neither a clang nor a copy.
pub fn compile_folder(folder: &str) -> Result<(), Error> {
    println!("cargo::rerun-if-env-changed=FLUXCAP_CLANG");
    println!("cargo::rerun-if-env-changed=FLUXCAP_BPF");
    // Headers and copies too.
    println!("cargo::rerun-if-changed={folder}");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let clang = match env::var("FLUXCAP_BPF").as_deref() {
        Ok("build") => Some(needed_compiler()?),
        Ok("prebuilt") => None,
        Ok("") | Err(_) => compiler(),
        Ok(other) => {
            return Err(Error(format!(
                "FLUXCAP_BPF is {other}: set it to build or prebuilt"
            )));
        }
    };
    for source in sources(&root, folder)? {
        let object = out.join(object_name(&source));
        match &clang {
            Some(clang) => translate(clang, &root, &source, &object)?,
            None => take_copy(&root.join(copy_of(&source)), &object)?,
        }
    }
    Ok(())
}

/// Renews the copies of the objects of a package's folder, which are in `prebuilt` there; or, with `check`, tells those that are not
/// what clang makes of their sources.
///
/// # Errors
/// When clang is missing or refuses a source; when files cannot be read or written; when a copy differs.
pub fn renew(package: &Path, folder: &str, check: bool) -> Result<(), Error> {
    let clang = needed_compiler()?;
    let root = package
        .canonicalize()
        .map_err(|error| about(package, &error))?;
    let mut stale = Vec::new();
    for source in sources(&root, folder)? {
        let copy = root.join(copy_of(&source));
        let fresh = copy.with_extension("o.new");
        if let Some(place) = copy.parent() {
            fs::create_dir_all(place).map_err(|error| about(place, &error))?;
        }
        translate(&clang, &root, &source, &fresh)?;
        if fs::read(&fresh).ok() == fs::read(&copy).ok() {
            fs::remove_file(&fresh).map_err(|error| about(&fresh, &error))?;
        } else if check {
            fs::remove_file(&fresh).map_err(|error| about(&fresh, &error))?;
            stale.push(package.join(copy_of(&source)).display().to_string());
        } else {
            fs::rename(&fresh, &copy).map_err(|error| about(&copy, &error))?;
            println!("renewed {}", package.join(copy_of(&source)).display());
        }
    }
    match stale.is_empty() {
        true => Ok(()),
        false => Err(Error(format!(
            "not what {clang} makes of the sources: {}; renew them with deploy/prebuild and commit them",
            stale.join(", ")
        ))),
    }
}

/// The sources in a folder, relative to the package, in the order of their names.
fn sources(root: &Path, folder: &str) -> Result<Vec<PathBuf>, Error> {
    let place = root.join(folder);
    let entries = fs::read_dir(&place).map_err(|error| about(&place, &error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut sources: Vec<PathBuf> = names
        .filter(|name| name.ends_with(".bpf.c"))
        .map(|name| Path::new(folder).join(name))
        .collect();
    sources.sort();
    Ok(sources)
}

fn object_name(source: &Path) -> PathBuf {
    PathBuf::from(source.file_name().unwrap_or_default()).with_extension("o")
}

fn copy_of(source: &Path) -> PathBuf {
    let folder = source.parent().unwrap_or(Path::new(""));
    folder.join("prebuilt").join(object_name(source))
}

fn take_copy(copy: &Path, object: &Path) -> Result<(), Error> {
    // The objects are in the byte order of the machine that runs them.
    if variable("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        return Err(Error(format!(
            "the copies of eBPF programs are for little-endian machines; clang is needed: {WANTED}"
        )));
    }
    let bytes = fs::read(copy).map_err(|error| {
        Error(format!(
            "no clang, and no copy of an eBPF program either ({}: {error}): {WANTED}",
            copy.display()
        ))
    })?;
    fs::write(object, bytes).map_err(|error| about(object, &error))
}

/// `source` is relative to `root`, so that no path gets into the object.
fn translate(clang: &str, root: &Path, source: &Path, object: &Path) -> Result<(), Error> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned());
    let text = fs::read_to_string(root.join(source)).map_err(|error| about(source, &error))?;
    let cpu = if text.contains(PLAIN_CPU) {
        PLAIN_CPU
    } else {
        CPU
    };
    let mut command = Command::new(clang);
    command
        .current_dir(root)
        .args([
            "-target", "bpf", cpu, "-O2", "-g", "-Wall", "-Wextra", "-Werror",
        ])
        // <asm/types.h> is in a folder of the machine's own where Debian's rules are followed.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .args(["-fdebug-compilation-dir", ".", "-c"])
        .arg(source)
        .arg("-o")
        .arg(object);
    let output = command
        .output()
        .map_err(|error| Error(format!("cannot run {clang}: {error}")))?;
    if output.status.success() {
        strip(clang, object);
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

/// The compiler that is named, or else the first that there is.
fn compiler() -> Option<String> {
    if let Ok(named) = env::var("FLUXCAP_CLANG") {
        return Some(named);
    }
    let runs = |name: &&&str| {
        let output = Command::new(**name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    COMPILERS.iter().find(runs).map(|name| (*name).to_owned())
}

fn needed_compiler() -> Result<String, Error> {
    compiler().ok_or_else(|| Error(format!("clang is needed for the eBPF programs: {WANTED}")))
}

fn variable(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|_| Error(format!("{name} is not set: to be used in a build script")))
}

fn about(path: &Path, error: &std::io::Error) -> Error {
    Error(format!("{}: {error}", path.display()))
}
