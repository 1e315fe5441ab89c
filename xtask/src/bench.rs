//! `cargo xtask bench`: builds what is measured, then runs the crate `bench`.

use std::{ffi::OsString, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    build::{Profile, build, root},
    etcd, setup,
};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// As `cargo xtask bench --help` tells.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure_ready(setup::For::Run)?;
    let binaries = build(Profile::Release)?;
    let dir = binaries.swarmnet.parent().context("a folder of binaries")?;
    let mut bench = Command::new(dir.join("swarmnet-bench"));
    if measures_writes(&args.rest)
        && let Some(etcd) = etcd::find()
    {
        bench.arg("--etcd").arg(etcd);
    }
    let status = bench
        .arg("--root")
        .arg(root())
        .arg("--binaries")
        .arg(dir)
        .args(&args.rest)
        .status()
        .context("cannot run the benchmark")?;
    ensure!(status.success(), "the benchmark ended early; see above");
    Ok(())
}

fn measures_writes(args: &[OsString]) -> bool {
    let chosen = |word: &str| args.iter().any(|arg| arg.to_string_lossy().contains(word));
    !chosen("--only") || chosen("writes")
}
