//! Seeds as a test: shared by the crates that have fuzz targets.

use std::{fs, path::Path};

/// Runs a target's `check` on its seeds, which lie in `fuzz/seeds/TARGET`.
pub fn seeds(target: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut seeds = 0;
    for seed in fs::read_dir(dir.join(target)).expect("a target has seeds") {
        let path = seed.expect("it can be listed").path();
        // Shown when it fails.
        println!("{}", path.display());
        check(&fs::read(path).expect("it can be read"));
        seeds += 1;
    }
    assert_ne!(seeds, 0, "fuzz/seeds/{target} is empty");
}
