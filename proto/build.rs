//! Compiles the `.proto` files with protox (pure Rust, no protoc) and writes the descriptor set that server reflection serves.

use prost::Message;
use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 7] = [
        "fluxcap/v1/common.proto",
        "fluxcap/v1/daemon.proto",
        "fluxcap/v1/ring.proto",
        "fluxcap/v1/capture.proto",
        "fluxcap/v1/transmit.proto",
        "fluxcap/v1/tunnel.proto",
        "fluxcap/v1/mirror.proto",
    ];
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("fluxcap.bin"),
        descriptors.encode_to_vec(),
    )?;
    // Names of messages lead from the generated types to these descriptors.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .btree_map(".")
        // Specs are kept as JSON in the daemons' state files.
        .message_attribute(
            ".fluxcap.v1",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        )
        .enum_attribute(
            ".fluxcap.v1.Start.at",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(rename_all = \"snake_case\")]",
        )
        .field_attribute("update_mask", "#[serde(skip)]")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
