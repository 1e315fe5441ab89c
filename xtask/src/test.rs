//! `cargo xtask test`: every test, those that need root and the programs included.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    build::{Profile, build, build_another_layout, root},
    setup,
};

#[derive(clap::Args)]
pub struct Args {
    /// Further arguments for `cargo test`, such as a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure_ready(setup::For::Test)?;
    // The end-to-end tests start the binaries.
    build_another_layout()?;
    build(Profile::Dev)?;
    // Built beforehand, so that silence later is a test's and not the compiler's.
    let built = Command::new("cargo")
        .current_dir(root())
        .args(["test", "--workspace", "--no-run"])
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the tests do not build; see above");
    let mut cargo = Command::new("cargo")
        .current_dir(root())
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(&args.rest)
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot run cargo")?;
    let stdout = BufReader::new(cargo.stdout.take().expect("stdout is piped"));
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        for line in stdout.lines() {
            if said.send(line).is_err() {
                break;
            }
        }
    });
    let mut total = Total::default();
    let mut last = String::new();
    loop {
        match heard.recv_timeout(SILENCE) {
            Ok(line) => {
                last = line?;
                println!("{last}");
                total.add(&last);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                killpg(Pid::from_raw(cargo.id().cast_signed()), Signal::SIGKILL)
                    .context("cannot end the tests")?;
                cargo.wait()?;
                bail!(
                    "no test ended for {} s, so the run was ended; the last word was: {last}",
                    SILENCE.as_secs()
                );
            }
        }
    }
    let status = cargo.wait()?;
    println!(
        "\n{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.ignored
    );
    ensure!(status.success(), "tests failed; see above");
    Ok(())
}

/// A run that says nothing for so long hangs: the slowest test ends within a tenth of it.
const SILENCE: Duration = Duration::from_secs(600);

/// The sum of what each test binary said: cargo gives none.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Total {
    /// Takes in `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines count for nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<_> = result
            .split([' ', ';'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_summed() {
        let mut total = Total::default();
        total.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        total.add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured");
        total.add("test some::thing ... ok");
        assert_eq!(
            total,
            Total {
                passed: 5,
                failed: 4,
                ignored: 1
            }
        );
    }
}
