//! A run of tests that is watched from outside: its lines are shown and counted, and it is ended
//! when it falls silent.

use std::{
    fmt,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

/// Runs a command to its end and gives each line of its output to `heard`. It ends with this
/// process.
///
/// # Errors
/// When it cannot be started, or says nothing for as long as `silence`; then it and its children
/// are ended.
pub fn follow(
    command: &mut Command,
    silence: Duration,
    mut heard: impl FnMut(&str),
) -> Result<ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let (say, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut line = Vec::new();
        while stdout
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if say.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut last = String::new();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                heard(&line);
                last = line;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)
                    .context("cannot end the tests")?;
                child.wait()?;
                bail!(
                    "no test ended for {} s, so the run was ended; the last word was: {last}",
                    silence.as_secs()
                );
            }
        }
    }
    Ok(child.wait()?)
}

/// The sum of what each test binary said: cargo gives none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Total {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Total {
    /// Takes in `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines count for nothing.
    pub fn add(&mut self, line: &str) {
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

    pub fn ran(&self) -> u64 {
        self.passed + self.failed
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            ignored,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} skipped")
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

    #[test]
    fn silence_ends_a_run_and_quotes_its_last_word() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello; sleep 600"]);
        let error = follow(&mut command, Duration::from_millis(300), |_| {}).unwrap_err();
        assert!(error.to_string().ends_with("hello"), "{error}");
    }
}
