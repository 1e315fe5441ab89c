//! Handles on processes that need not be our children.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A pidfd (`pidfd_open(2)`): readable once the process has exited, child of ours or not.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = Errno::result(fd)? as RawFd;
        // SAFETY: the kernel has just given us this descriptor (close-on-exec), nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal. A process that has exited already is no error: there is nothing to signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a null siginfo asks the kernel to fill in its own, as kill(2) does.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether the process has exited; its zombie may remain.
    pub fn has_exited(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }

    /// Collects the zombie if the process was our child; whoever adopted it does otherwise.
    pub fn reap(&self) {
        // ECHILD for a foreign process, or nothing to collect yet: both are fine.
        let _ = waitid(
            Id::PIDFd(self.0.as_fd()),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
        );
    }

    /// Waits for the exit and collects it. Cancel-safe. Needs a tokio runtime.
    pub async fn exited(&self) -> io::Result<()> {
        let fd = async_fd(self.0.try_clone()?)?;
        let _ready = fd.readable().await?;
        self.reap();
        Ok(())
    }
}

/// Registers a descriptor for reading with the tokio runtime.
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, which stays open and the same until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|err| err.into_parts().1)
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
