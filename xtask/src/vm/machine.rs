//! The emulated machine: its start, its words, its end.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Version, kernel::Kernel};
use crate::follow::{Total, follow};

/// Longest silence: the slowest single test needs a third of it.
const SILENCE: Duration = Duration::from_secs(300);
const MEMORY_MIB: u32 = 3072;

/// Boots, shows what the tests say, and gives the names of the binaries that failed.
///
/// # Errors
/// When the machine hangs or ends before all were run, with the kernel's last words.
pub fn boot(
    version: Version,
    kernel: &Kernel,
    initramfs: &Path,
    total: &mut Total,
) -> Result<Vec<String>> {
    let console = version.dir().join("console.log");
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
    .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
    .args(["-m", &MEMORY_MIB.to_string()])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initramfs)
    .args(["-append", "console=ttyS0 panic=-1 quiet"])
    .arg("-serial")
    .arg(format!("file:{}", console.display()))
    .args(["-chardev", "stdio,id=words,signal=off"])
    .args(["-serial", "chardev:words"]);
    let mut report = Report::default();
    let started = Instant::now();
    let ended = follow(&mut qemu, SILENCE, |line| {
        total.add(line);
        report.hear(line, started);
    });
    if let (Ok(_), Some(_)) = (&ended, report.status) {
        return Ok(report.failed);
    }
    let console = fs::read_to_string(&console).unwrap_or_default();
    let lines: Vec<_> = console.lines().collect();
    eprintln!(
        "---- the kernel's last words\n{}",
        lines[lines.len().saturating_sub(30)..].join("\n")
    );
    ended.with_context(|| format!("the machine of kernel {} hangs", kernel.release))?;
    bail!(
        "the machine of kernel {} ended before the tests did; the kernel's last words are above",
        kernel.release
    )
}

/// What the first process said about the runs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    status: Option<i32>,
    failed: Vec<String>,
}

impl Report {
    /// Takes in a line; those that are not ours are the tests', and shown.
    fn hear(&mut self, line: &str, started: Instant) {
        let Some(ours) = line.strip_prefix("@@ ") else {
            println!("{line}");
            return;
        };
        let words: Vec<_> = ours.split_whitespace().collect();
        let seconds = started.elapsed().as_secs();
        match words[..] {
            ["booted", release] => println!("kernel {release} runs after {seconds} s"),
            ["begin", name] => println!("\n==== {name} ({seconds} s)"),
            ["end", name, code] if code != "0" => self.failed.push(name.to_owned()),
            ["status", code] => self.status = code.parse().ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named_and_an_end_without_status_is_seen() {
        let mut report = Report::default();
        for line in ["@@ begin a", "@@ end a 0", "@@ begin b", "@@ end b 101"] {
            report.hear(line, Instant::now());
        }
        assert_eq!(
            (report.status, report.failed.as_slice()),
            (None, &["b".to_owned()][..])
        );
        report.hear("@@ status 1", Instant::now());
        assert_eq!(report.status, Some(1));
    }
}
