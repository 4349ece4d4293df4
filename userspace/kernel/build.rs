//! Embeds the compiled eBPF programs, which another compiler builds beforehand.
//!
//! `SLUICE_BPF_OBJECT` says where they are. Without them the crate still builds, for tests that need
//! no kernel; loading then says what is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-env-changed=SLUICE_BPF_OBJECT");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let target = Path::new(&out).join("sluice.bpf.o");
    let object = env::var_os("SLUICE_BPF_OBJECT").map(PathBuf::from);
    if let Some(object) = &object {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    match object.filter(|object| object.exists()) {
        Some(object) => {
            fs::copy(&object, &target)
                .unwrap_or_else(|e| panic!("SLUICE_BPF_OBJECT={}: {e}", object.display()));
        }
        None => fs::write(&target, []).expect("OUT_DIR is writable"),
    }
}
