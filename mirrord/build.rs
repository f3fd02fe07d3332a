//! Compiles the eBPF programs in `bpf`.

fn main() -> Result<(), fluxcap_bpf_build::Error> {
    fluxcap_bpf_build::compile_folder("bpf")?;
    fluxcap_bpf_build::compile(&["tests/bpf/select.bpf.c"])
}
