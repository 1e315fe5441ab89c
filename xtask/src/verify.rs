//! `cargo xtask verify` only reads, `cargo xtask fix` only rewrites.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build::root, build_ebpf};

const PROGRAMS: &str = "dataplane-ebpf/Cargo.toml";

/// Formatting and lints; every warning is an error. The programs, which are a workspace of their own
/// for another target, are formatted alike.
pub fn verify() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["fmt", "--manifest-path", PROGRAMS, "--check"])?;
    // The data plane's crate embeds the programs.
    build_ebpf::run(&build_ebpf::Args::default())?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
}

pub fn fix() -> Result<()> {
    cargo(&["fmt", "--all"])?;
    cargo(&["fmt", "--manifest-path", PROGRAMS])
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new("cargo")
        .current_dir(root())
        .args(args)
        .status();
    let status = status.context("cannot run cargo")?;
    ensure!(
        status.success(),
        "`cargo {}` found something; see above",
        args.join(" ")
    );
    Ok(())
}
