//! Compiles the eBPF programs in `bpf`.

fn main() -> Result<(), fluxcap_bpf_build::Error> {
    fluxcap_bpf_build::compile(&["bpf/live.bpf.c", "bpf/tc.bpf.c", "bpf/xsk.bpf.c"])
}
