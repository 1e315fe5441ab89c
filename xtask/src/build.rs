//! The binaries that the demo, the tests and the benchmarks run.

use std::{
    fs,
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
    let built = target_dir().join(match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    });
    let packages: &[&str] = match profile {
        Profile::Dev => &["-p", "swarmnet", "-p", "swarmnet-lab"],
        Profile::Release => &[
            "-p",
            "swarmnet",
            "-p",
            "swarmnet-lab",
            "-p",
            "swarmnet-bench",
            "--release",
        ],
    };
    cargo_build(packages)?;
    Ok(Binaries {
        swarmnet: built.join("swarmnet"),
        whoami: built.join("whoami"),
    })
}

/// Builds `swarmnet-another-layout`, to which tests upgrade: to be called before [`build`], whose
/// binary has the usual name.
///
/// # Errors
/// As [`build`].
pub fn build_another_layout() -> Result<()> {
    build_ebpf::run(&build_ebpf::Args {
        another_layout: true,
        ..build_ebpf::Args::default()
    })?;
    cargo_build(&["-p", "swarmnet", "--features", "another-layout"])?;
    let binary = target_dir().join("debug/swarmnet");
    let copy = target_dir().join("debug/swarmnet-another-layout");
    fs::copy(&binary, &copy)
        .map(drop)
        .with_context(|| format!("cannot write {}", copy.display()))
}

fn cargo_build(args: &[&str]) -> Result<()> {
    let mut cargo = Command::new("cargo");
    let status = cargo.current_dir(root()).arg("build").args(args).status();
    ensure!(
        status.context("cannot run cargo")?.success(),
        "swarmnet does not build; the compiler's messages are above"
    );
    Ok(())
}

pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from)
}
