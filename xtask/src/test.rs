//! `cargo xtask test`: every test, those that need root and the programs included.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    build::{Profile, build, build_another_layout, root},
    follow::{Total, follow},
    setup, vm,
};

#[derive(clap::Args)]
pub struct Args {
    /// Run those that fit under another kernel, in an emulated machine; repeat it for several at once.
    #[arg(long, value_name = "VERSION")]
    vm: Vec<vm::Version>,
    /// With --vm: only the few that show that this kernel takes the programs and traffic flows.
    #[arg(long, requires = "vm")]
    smoke: bool,
    /// Further arguments for `cargo test`, such as a test's name; with --vm, names of tests.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// A run that says nothing for so long hangs: the slowest test ends within a tenth of it.
const SILENCE: Duration = Duration::from_secs(600);

pub fn run(args: &Args) -> Result<()> {
    if !args.vm.is_empty() {
        let versions: BTreeSet<_> = args.vm.iter().copied().collect();
        return vm::run(&Vec::from_iter(versions), args.smoke, &args.rest);
    }
    setup::ensure_ready(setup::For::Test)?;
    // The end-to-end tests start the binaries.
    build_another_layout()?;
    build(Profile::Dev)?;
    // Built beforehand, so that silence later is a test's and not the compiler's. What follows `--` is
    // for the tests themselves.
    let what = args.rest.iter().take_while(|word| *word != "--");
    let built = Command::new("cargo")
        .current_dir(root())
        .args(["test", "--workspace", "--no-run"])
        .args(what)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the tests do not build; see above");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(&args.rest);
    let mut total = Total::default();
    let status = follow(&mut cargo, SILENCE, |line| {
        println!("{line}");
        total.add(line);
    })?;
    println!("\n{total}");
    ensure!(status.success(), "tests failed; see above");
    Ok(())
}
