//! Embeds the compiled eBPF programs, which another compiler builds beforehand.
//!
//! `SLUICE_BPF_OBJECT` says where they are. Without them the crate still builds, for tests that need
//! no kernel; loading then says what is missing.

use object::{
    build::elf::{Builder, SectionData},
    elf,
};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What the kernel reads of an object file: its debug information is several times as large, and each
/// broker would hold it in memory. BTF stays.
fn without_debug_information(object: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        let name = name.strip_prefix(b".rel").unwrap_or(&name);
        section.delete = name.starts_with(b".debug");
    }
    builder.delete_orphans();
    // The compiler keeps the names of sections with those of symbols; the builder wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut lean = Vec::new();
    builder.write(&mut lean)?;
    Ok(lean)
}

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
            let failed = |e: &dyn std::error::Error| -> ! {
                panic!("SLUICE_BPF_OBJECT={}: {e}", object.display())
            };
            let whole = fs::read(&object).unwrap_or_else(|e| failed(&e));
            let lean = without_debug_information(&whole).unwrap_or_else(|e| failed(&e));
            fs::write(&target, lean).expect("OUT_DIR is writable");
        }
        None => fs::write(&target, []).expect("OUT_DIR is writable"),
    }
}
