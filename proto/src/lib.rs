//! The control API of fluxcap as Rust types: messages, clients and servers of package `fluxcap.v1`, generated from the
//! `.proto` files of this folder. Nothing is written by hand here.

/// Package `fluxcap.v1`.
pub mod v1 {
    #![expect(missing_docs, reason = "generated code")]
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("fluxcap.v1");
}

/// The serialized `FileDescriptorSet` of the package, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("fluxcap");
