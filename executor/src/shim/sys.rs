//! System calls that `nix` does not wrap, and failures as sentences.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Why a task's program does not run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Exit status in the shell's manner: 127 not found, 126 not executable, 128 anything else.
    pub code: i32,
    pub message: String,
}

impl Failure {
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The status of a failure in the setup, before the program's turn.
pub(super) const CODE_SETUP: i32 = 128;

pub(super) trait OrFail<T> {
    /// Puts what was tried before the error.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|err| Failure::new(CODE_SETUP, format!("{}: {}", what(), err.into())))
    }
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Gives up the precedence that the agent has over tasks, and this process has from it.
pub(super) fn take_usual_priority() {
    // SAFETY: takes numbers only; 0 is the calling process. What has no precedence may not be able to
    // change it, and need not.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// A detached bind mount of `path` (`open_tree(2)`), to be attached once the root has changed: so
/// an image's symbolic links are followed inside the image only.
pub(super) fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a C string that lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches what [`open_tree`] gave at `target`, following links.
pub(super) fn move_mount(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS;
    // SAFETY: both paths are C strings that live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// Marks every descriptor from `first` on to be closed when a program is executed: what the agent
/// or the shim may have left open is nothing to a task.
pub(super) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call changes descriptor flags only.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Exited(i32),
    Killed(i32),
}

/// Collects a child: `pid` or, with -1, any. `None` with `WNOHANG` when none has ended. Unlike
/// `nix`'s it also knows deaths by real-time signals.
pub(super) fn wait_child(pid: i32, flags: i32) -> Result<Option<(i32, Ended)>, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live integer.
        match Errno::result(unsafe { libc::waitpid(pid, &mut status, flags) }) {
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                return Ok(Some((pid, Ended::Exited(libc::WEXITSTATUS(status)))));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                return Ok(Some((pid, Ended::Killed(libc::WTERMSIG(status)))));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Closes every descriptor from `first` on. Nothing that owns one may be used or dropped after.
pub(super) fn close_from(first: u32) {
    // SAFETY: the caller has no descriptor left to use; closing cannot touch memory. The call fails
    // only for a wrong range.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}
