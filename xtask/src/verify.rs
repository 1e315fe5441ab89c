//! `cargo xtask verify` only reads, `cargo xtask fix` only rewrites.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build::root, build_ebpf};

/// Workspaces of their own, which are formatted alike.
const APART: [&str; 2] = ["dataplane-ebpf/Cargo.toml", "fuzz/Cargo.toml"];

/// Formatting and lints; every warning is an error.
pub fn verify() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    for manifest in APART {
        cargo(&["fmt", "--manifest-path", manifest, "--check"])?;
    }
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
    APART
        .iter()
        .try_for_each(|manifest| cargo(&["fmt", "--manifest-path", manifest]))
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
