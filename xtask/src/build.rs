//! The binaries that the demo, the tests and the benchmarks run.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::build_ebpf;

#[derive(Clone, Copy)]
pub enum Profile {
    Dev,
    Release,
}

/// Paths of what was built.
pub struct Binaries {
    pub swarmnet: PathBuf,
    /// The lab's service.
    pub whoami: PathBuf,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Builds the programs, then the binaries. Cargo's own progress shows.
///
/// # Errors
/// When something does not compile; cargo said what.
pub fn build(profile: Profile) -> Result<Binaries> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .args(["build", "-p", "swarmnet", "-p", "swarmnet-lab"]);
    let dir = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.args(["-p", "swarmnet-bench", "--release"]);
            "release"
        }
    };
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(
        status.success(),
        "swarmnet does not build; the compiler's messages are above"
    );
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let built = target.join(dir);
    Ok(Binaries {
        swarmnet: built.join("swarmnet"),
        whoami: built.join("whoami"),
    })
}
