//! The emulated machine: its start, its words, its end.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{Version, kernel::Kernel};
use crate::follow::{Total, follow};

/// Longest silence: the slowest single test needs a tenth of it where nothing else runs, and half of it
/// on two busy cores.
const SILENCE: Duration = Duration::from_secs(600);
const MEMORY_MIB: u32 = 3072;
/// Lines of the kernel that are shown after an end that no one asked for: an oops with its registers
/// has some fifty.
const LAST_WORDS: usize = 80;

pub struct Machine {
    version: Version,
    kernel: Kernel,
    initramfs: PathBuf,
    /// Before each of its lines, where several machines run at once.
    prefix: String,
}

impl Machine {
    pub const fn new(version: Version, kernel: Kernel, initramfs: PathBuf, prefix: String) -> Self {
        Self {
            version,
            kernel,
            initramfs,
            prefix,
        }
    }

    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// Boots, shows what the tests say, and gives how many passed and failed by then.
    ///
    /// # Errors
    /// When tests failed, with the names of their binaries; when the machine hangs or ends before
    /// all were run, after the kernel's last words.
    pub fn run(&self) -> (Total, Result<()>) {
        let mut total = Total::default();
        let mut report = Report::new(&self.prefix);
        let ended = follow(&mut self.qemu(), SILENCE, |line| {
            total.add(line);
            report.hear(line);
        });
        if let (Ok(_), Some(_)) = (&ended, report.status) {
            return (total, report.outcome(self.release()));
        }
        let console = fs::read_to_string(self.console()).unwrap_or_default();
        let lines: Vec<_> = console.lines().collect();
        eprintln!(
            "---- the last words of kernel {}\n{}",
            self.release(),
            lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
        );
        let outcome = match ended {
            Err(error) => {
                Err(error.context(format!("the machine of kernel {} hangs", self.release())))
            }
            Ok(_) => Err(anyhow!(
                "the machine of kernel {} ended before the tests did; its last words are above",
                self.release()
            )),
        };
        (total, outcome)
    }

    /// Where the kernel's messages go.
    fn console(&self) -> PathBuf {
        self.version.dir().join("console.log")
    }

    fn qemu(&self) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        // With every instruction that QEMU knows. KVM is not asked for: where CI runs there is
        // none, and both shall see the same machine.
        //
        // One processor: QEMU before 8.1 may keep code of two as it was before one patched it, which
        // a kernel that patches its calls of XDP programs does not survive (docs/development.md).
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "1"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .arg("-kernel")
        .arg(&self.kernel.image)
        .arg("-initrd")
        .arg(&self.initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-serial")
        .arg(format!("file:{}", self.console().display()))
        .args(["-chardev", "stdio,id=words,signal=off"])
        .args(["-serial", "chardev:words"]);
        qemu
    }
}

/// What the first process said about the runs.
#[derive(Debug)]
struct Report<'a> {
    prefix: &'a str,
    started: Instant,
    status: Option<i32>,
    failed: Vec<String>,
}

impl<'a> Report<'a> {
    fn new(prefix: &'a str) -> Self {
        Self {
            prefix,
            started: Instant::now(),
            status: None,
            failed: Vec::new(),
        }
    }

    /// Takes in a line; those that are not ours are the tests', and shown.
    fn hear(&mut self, line: &str) {
        let prefix = self.prefix;
        let Some(ours) = line.strip_prefix("@@ ") else {
            println!("{prefix}{line}");
            return;
        };
        let words: Vec<_> = ours.split_whitespace().collect();
        let seconds = self.started.elapsed().as_secs();
        match words[..] {
            ["booted", release] => println!("{prefix}kernel {release} runs after {seconds} s"),
            ["begin", name] => println!("\n{prefix}==== {name} ({seconds} s)"),
            ["end", name, code] if code != "0" => self.failed.push(name.to_owned()),
            ["status", code] => self.status = code.parse().ok(),
            _ => {}
        }
    }

    fn outcome(&self, release: &str) -> Result<()> {
        ensure!(
            self.failed.is_empty(),
            "failed under kernel {release}: {}; see above",
            self.failed.join(", ")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named_and_an_end_without_status_is_seen() {
        let mut report = Report::new("");
        for line in ["@@ begin a", "@@ end a 0", "@@ begin b", "@@ end b 101"] {
            report.hear(line);
        }
        assert_eq!(report.status, None);
        report.hear("@@ status 1");
        assert_eq!(report.status, Some(1));
        assert_eq!(
            report.outcome("6.1").unwrap_err().to_string(),
            "failed under kernel 6.1: b; see above"
        );
    }
}
