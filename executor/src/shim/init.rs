//! An init for programs that do not reap: pid 1 that hands on signals and collects orphans, as
//! Docker's `--init`.

use std::convert::Infallible;

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::{ForkResult, Pid, fork},
};

use super::sys::{Ended, Failure, OrFail, close_from, wait_child};

/// Forks: returns in the child, which is to become the program; the parent stays as init and ends
/// as the program ends.
pub(super) fn stay_as_init() -> Result<(), Failure> {
    // Blocked before the fork: a blocked signal is kept for pid 1 even without a handler, and the
    // program unblocks its own.
    let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    blocked.or_fail(|| "block signals".to_owned())?;
    // SAFETY: the process has one thread, so the child may do anything.
    match unsafe { fork() }.or_fail(|| "fork".to_owned())? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => {
            // Also the pipe on which the shim waits for the program to be executed.
            close_from(0);
            match run(child) {
                Ok(never) => match never {},
                Err(_) => std::process::exit(super::sys::CODE_SETUP),
            }
        }
    }
}

fn run(program: Pid) -> Result<Infallible, Errno> {
    loop {
        match next_signal() {
            libc::SIGCHLD => reap(program)?,
            // SAFETY: kill takes integers only. The program may have ended in this moment.
            signal => drop(unsafe { libc::kill(program.as_raw(), signal) }),
        }
    }
}

/// Waits for any signal, real-time ones too (which `nix` has no names for).
fn next_signal() -> i32 {
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the right types.
    unsafe { libc::sigwait(SigSet::all().as_ref(), &mut signal) };
    signal
}

/// Collects all that have ended; ends with the program.
fn reap(program: Pid) -> Result<(), Errno> {
    loop {
        match wait_child(-1, libc::WNOHANG) {
            Ok(Some((pid, ended))) if pid == program.as_raw() => std::process::exit(match ended {
                Ended::Exited(code) => code,
                Ended::Killed(signal) => 128 + signal,
            }),
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}
