//! `cargo xtask fuzz`: libFuzzer over what comes from others, on the stable toolchain.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{build::root, setup};

/// What `cargo fuzz` sets, without a sanitizer: safe code has no use for one, and stable has none.
const FLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
    // Targets share fixtures with tests, which use more of them.
    "-Adead_code",
];

#[derive(clap::Args)]
pub struct Args {
    /// Targets of `fuzz/fuzz_targets`, without `.rs`; all when none is named.
    targets: Vec<String>,
    /// For each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn run(args: &Args) -> Result<()> {
    let known = targets()?;
    for target in &args.targets {
        ensure!(
            known.contains(target),
            "no fuzz target `{target}`: want {}",
            known.join(", ")
        );
    }
    let targets = match &args.targets[..] {
        [] => &known[..],
        some => some,
    };
    setup::ensure_cpp()?;
    let programs = build(targets)?;
    for target in targets {
        fuzz(&programs.join(target), target, args.seconds)?;
    }
    Ok(())
}

fn dir() -> PathBuf {
    root().join("fuzz")
}

fn targets() -> Result<Vec<String>> {
    let files = fs::read_dir(dir().join("fuzz_targets"))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        names.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

/// Where the programs are. The target is named, so that build scripts and macros are not
/// instrumented.
fn build(targets: &[String]) -> Result<PathBuf> {
    let (host, into) = (host()?, root().join("target/fuzz"));
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(dir())
        .env("RUSTFLAGS", FLAGS.join(" "))
        .args(["build", "--locked", "--release", "--target", &host])
        .arg("--target-dir")
        .arg(&into);
    for target in targets {
        cargo.args(["--bin", target]);
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build; see above");
    Ok(into.join(host).join("release"))
}

/// As `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("`rustc -vV` does not name its host")
}

/// Goes on from the inputs that earlier runs found worth keeping, with `fuzz/seeds` to begin with.
fn fuzz(program: &PathBuf, target: &str, seconds: u32) -> Result<()> {
    let [corpus, artifacts, seeds] =
        ["corpus", "artifacts", "seeds"].map(|kind| dir().join(kind).join(target));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([corpus, seeds]);
    println!("==== {target}");
    let status = command.status()?;
    ensure!(
        status.success(),
        "target {target} found something: the input is in {}",
        artifacts.display()
    );
    Ok(())
}
