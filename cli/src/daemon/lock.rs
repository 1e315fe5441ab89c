//! One daemon for one state directory.

use std::{
    fs::{DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Held by this process; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<std::fs::File>,
}

impl StateLock {
    /// Makes the directory (mode 0700) when it is missing.
    ///
    /// # Errors
    /// Another daemon has it, or it cannot be made.
    pub fn take(state_dir: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .with_context(|| format!("cannot make {}", state_dir.display()))?;
        let path = state_dir.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another swarmnet agent runs with the state in {}: stop it first, or give this \
                 one its own --state-dir, --run-dir and --bpf-dir",
                state_dir.display()
            ),
            Err((_, errno)) => {
                return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let first = StateLock::take(&state).unwrap();
        let err = StateLock::take(&state).unwrap_err().to_string();
        assert!(err.contains("another swarmnet agent"), "{err}");
        drop(first);
        StateLock::take(&state).unwrap();
    }
}
