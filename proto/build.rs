//! Compiles the `.proto` files into Rust, in `OUT_DIR`, without an installed `protoc`.

use std::{env, error::Error, path::PathBuf};

const INCLUDE: &str = "proto";
const FILES: [&str; 6] = [
    "istio/workload.proto",
    "istio/authorization.proto",
    "istio/ca.proto",
    "opentelemetry/trace.proto",
    "sluice/extension.proto",
    "envoy/service/discovery/v3/discovery.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={INCLUDE}");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(INCLUDE);
    let files = protox::compile(FILES.map(|file| root.join(file)), [&root])?;
    tonic_prost_build::configure()
        // Sorted maps make the encoding of a message a function of its value, so that it can be
        // hashed into a version.
        .btree_map(".")
        .include_file("contracts.rs")
        .compile_fds(files)?;
    Ok(())
}
