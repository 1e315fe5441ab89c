//! The task's pid 1, from the fork to its program: runs in the new pid namespace and never
//! returns.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{
            SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
        },
        stat::{Mode, umask},
    },
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, sethostname, setsid},
};

use super::{
    capabilities, environment, exec, init, mounts,
    sys::{CODE_SETUP, Failure, OrFail, close_on_exec_from},
    user::User,
};
use crate::task_dir::{Root, ShimSpec, TaskDir};

/// The child's ends of what connects it with the shim.
pub(super) struct Ends {
    /// One byte when the shim has written down who we are; its end when the shim has died.
    pub go: File,
    /// Takes a [`Failure`]; closed by the kernel when the program is executed.
    pub failed: File,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// The terminal, which `stdout` and `stderr` then are too.
    pub tty: bool,
}

/// Becomes the task's program, or tells why not and exits.
pub(super) fn run(spec: &ShimSpec, dir: &TaskDir, mut ends: Ends) -> ! {
    let failure = match become_program(spec, dir, &mut ends) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let text = serde_json::to_vec(&failure).expect("a failure always serializes");
    let _ = ends.failed.write_all(&text);
    // SAFETY: ends the process without running what the shim registered to run at its exit.
    unsafe { libc::_exit(failure.code) }
}

fn become_program(spec: &ShimSpec, dir: &TaskDir, ends: &mut Ends) -> Result<Infallible, Failure> {
    wait_for_shim(&mut ends.go)?;
    enter_namespaces(spec)?;
    umask(Mode::empty());
    mounts::set_up(spec, dir)?;
    umask(Mode::from_bits_truncate(0o022));
    take_streams(ends)?;
    enter_dir(spec)?;
    let user = User::find(spec.user.as_deref())?;
    capabilities::drop_all_but_default()?;
    user.switch()?;
    // The kernel forgot the bond with the change of user.
    bind_to_shim(&ends.go)?;
    let mut env = spec.env.clone();
    if environment::get(&env, "HOME").is_none() {
        env.push(format!("HOME={}", user.home));
    }
    if spec.init {
        init::stay_as_init()?;
    }
    reset_signals()?;
    exec::exec(&spec.args, &env)
}

/// Ties this process's life to the shim's, and waits until the shim has recorded it.
fn wait_for_shim(go: &mut File) -> Result<(), Failure> {
    bind_to_shim(go)?;
    let mut byte = [0];
    go.read_exact(&mut byte)
        .or_fail(|| "wait for the shim".to_owned())
}

/// Has the kernel kill this process when the shim dies.
fn bind_to_shim(go: &File) -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGKILL).or_fail(|| "bind the task to its shim".to_owned())?;
    // It may have died just before; the parent's pid would not tell, from a pid namespace it is 0.
    let mut fds = [PollFd::new(go.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO).or_fail(|| "look at the shim".to_owned())? {
        0 => Ok(()),
        _ => Err(Failure::new(CODE_SETUP, "the shim has died")),
    }
}

fn enter_namespaces(spec: &ShimSpec) -> Result<(), Failure> {
    if let Some(cgroup) = &spec.cgroup {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, "0").or_fail(|| format!("join the cgroup {}", cgroup.display()))?;
    }
    let netns = &spec.netns;
    let open =
        File::open(netns).or_fail(|| format!("open the network namespace {}", netns.display()))?;
    setns(open, CloneFlags::CLONE_NEWNET)
        .or_fail(|| format!("enter the network namespace {}", netns.display()))?;
    let new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(new).or_fail(|| "make the task's namespaces".to_owned())?;
    sethostname(&spec.hostname).or_fail(|| format!("set the hostname {:?}", spec.hostname))
}

/// A session of the task's own, nothing to read, and the shim's pipes or terminal to write to.
fn take_streams(ends: &Ends) -> Result<(), Failure> {
    let what = || "connect the task's streams".to_owned();
    setsid().or_fail(what)?;
    if ends.tty {
        dup2_stdin(&ends.stdout).or_fail(what)?;
        // SAFETY: the ioctl takes an integer; the descriptor is an open terminal.
        let set = unsafe { libc::ioctl(ends.stdout.as_raw_fd(), libc::TIOCSCTTY, 0) };
        Errno::result(set).or_fail(|| "take the terminal".to_owned())?;
    } else {
        let null = File::open("/dev/null").or_fail(|| "open /dev/null".to_owned())?;
        dup2_stdin(&null).or_fail(what)?;
    }
    dup2_stdout(&ends.stdout).or_fail(what)?;
    dup2_stderr(&ends.stderr).or_fail(what)?;
    close_on_exec_from(3).or_fail(what)
}

fn enter_dir(spec: &ShimSpec) -> Result<(), Failure> {
    let dir = Path::new(spec.dir.as_deref().unwrap_or("/"));
    // As Docker: an image's missing directory is made. The node's own root is left as it is.
    if matches!(spec.root, Root::Image(_)) {
        fs::create_dir_all(dir).or_fail(|| format!("make the directory {}", dir.display()))?;
    }
    if !dir.is_absolute() {
        let message = format!(
            "the working directory {:?} is not an absolute path",
            dir.display()
        );
        return Err(Failure::new(CODE_SETUP, message));
    }
    chdir(dir).or_fail(|| format!("enter the directory {}", dir.display()))
}

/// What Rust's runtime and the shim changed, and a program expects to find at its default.
fn reset_signals() -> Result<(), Failure> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default disposition runs no code of ours.
            unsafe { sigaction(signal, &default) }.or_fail(|| format!("reset {signal}"))?;
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .or_fail(|| "unblock signals".to_owned())
}
