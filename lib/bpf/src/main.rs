//! Renews the copies of eBPF objects in the repository, or checks them: `fluxcap-bpf-build [--check] PACKAGE...`

use fluxcap_bpf_build::{Error, renew};
use std::path::Path;

fn main() -> Result<(), Error> {
    let mut packages: Vec<String> = std::env::args().skip(1).collect();
    let all = packages.len();
    packages.retain(|word| word != "--check");
    let check = packages.len() < all;
    for package in &packages {
        let package = Path::new(package);
        for folder in ["bpf", "tests/bpf"] {
            if package.join(folder).is_dir() {
                renew(package, folder, check)?;
            }
        }
    }
    Ok(())
}
