//! Which process a recorded pid means.

use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::pidfd::PidFd;

/// A process beyond doubt: a pid is used again, a pid with its start time in one boot is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// In clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
    pub boot_id: String,
}

impl ProcessId {
    /// The running process with this pid in our pid namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// A handle on the process, or `None` when it is gone. A zombie still has one.
    pub fn open(&self) -> io::Result<Option<PidFd>> {
        let fd = match PidFd::open(self.pid) {
            Ok(fd) => fd,
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(err) => return Err(err),
        };
        // The handle came first: what the pid means now, it means as long as we hold it.
        let same = Self::of(self.pid).is_ok_and(|now| now == *self);
        Ok(same.then_some(fd))
    }
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may contain anything.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time: {stat:?}")))
}

fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(own.open().unwrap().is_some());
        let other = ProcessId {
            start_ticks: own.start_ticks + 1,
            ..own.clone()
        };
        assert!(other.open().unwrap().is_none());
        let before_reboot = ProcessId {
            boot_id: "x".to_owned(),
            ..own
        };
        assert!(before_reboot.open().unwrap().is_none());
    }
}
