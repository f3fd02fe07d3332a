//! Compiles the eBPF programs in `bpf`, and those of tests.

fn main() -> Result<(), fluxcap_bpf_build::Error> {
    fluxcap_bpf_build::compile_folder("bpf")?;
    fluxcap_bpf_build::compile_folder("tests/bpf")
}
