//! Embeds the eBPF object: `SWARMNET_EBPF_OBJECT` names the file for `aya::include_bytes_aligned!`.

use std::{env, fs, path::Path};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let root = Path::new(&manifest)
        .parent()
        .expect("the crate lies in the workspace");
    let another_layout = env::var_os("CARGO_FEATURE_ANOTHER_LAYOUT").is_some();
    let name = if another_layout {
        "another-layout.o"
    } else {
        "swarmnet.o"
    };
    let object = root.join("target/bpf").join(name);
    println!("cargo:rerun-if-changed={}", object.display());
    assert!(
        object.exists(),
        "\n\n{} is missing: run `cargo xtask build-ebpf` first\n\n",
        object.display()
    );
    // A copy, so that what was compiled in and what the file holds cannot drift apart in one build.
    let copy = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("swarmnet.o");
    fs::copy(&object, &copy).expect("OUT_DIR can be written");
    println!("cargo:rustc-env=SWARMNET_EBPF_OBJECT={}", copy.display());
}
