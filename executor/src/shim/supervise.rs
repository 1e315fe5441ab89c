//! The shim's own part: start the task's pid 1, keep its output, write down its end.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::openpty,
    sched::{CloneFlags, unshare},
    unistd::{ForkResult, Pid, fork, pipe2},
};

use super::{
    Report, container, report,
    sys::{Ended, Failure, wait_child},
};
use crate::{
    cgroup,
    exit::Exit,
    log::{LogLimits, LogStream, LogWriter},
    pidfd::PidFd,
    process_id::ProcessId,
    task_dir::{ShimSpec, TaskDir},
};

/// Read from a stream at once; the size of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// Read at most after the task's end from a stream: whoever still writes into it then is no part
/// of the task (it was handed the descriptor), and must not keep the shim.
const REST_BYTES_MAX: usize = 4 << 20;

/// Runs the task to its end.
pub(super) fn run(dir: &TaskDir, spec: &ShimSpec) -> io::Result<()> {
    spec.shim_cgroup.as_deref().map(leave_agents_cgroup);
    let (streams, child) = start(dir, spec)?;
    match child {
        Err(failure) => {
            dir.write_exit(&Exit::with_error(Some(failure.code), &failure.message))?;
            report(&Report::Failed(failure.message));
        }
        Ok(child) => {
            report(&Report::Started {
                pid: child.as_raw(),
            });
            let log = LogWriter::create(dir.path().to_owned(), LogLimits::default())?;
            keep_output(log, streams, child)?;
            dir.write_exit(&wait(child)?)?;
        }
    }
    // Best effort: the agent does it too when it removes the task.
    spec.cgroup.as_deref().map(cgroup::remove_now);
    Ok(())
}

/// One of the task's outputs, as the shim reads it.
struct Output {
    stream: LogStream,
    from: File,
}

/// Forks the task's pid 1 and waits until its program runs or could not be run.
fn start(dir: &TaskDir, spec: &ShimSpec) -> io::Result<(Vec<Output>, Result<Pid, Failure>)> {
    let (streams, stdout, stderr) = if spec.tty { terminal()? } else { pipes()? };
    let (go_read, mut go) = pipe()?;
    let (mut failed_read, failed) = pipe()?;
    // For the children to come: the first of them is pid 1.
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: the shim has one thread, so the child may do anything.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop((streams, go, failed_read));
            let ends = container::Ends {
                go: go_read,
                failed,
                stdout,
                stderr,
                tty: spec.tty,
            };
            container::run(spec, dir, ends)
        }
    };
    drop((go_read, failed, stdout, stderr));
    dir.write_init(&ProcessId::of(child.as_raw())?)?;
    // When the child has died already the next read says so.
    let _ = go.write_all(&[1]);
    let mut text = Vec::new();
    failed_read.read_to_end(&mut text)?;
    if text.is_empty() {
        return Ok((streams, Ok(child)));
    }
    wait(child)?;
    Ok((streams, Err(serde_json::from_slice(&text)?)))
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((read.into(), write.into()))
}

type Streams = (Vec<Output>, OwnedFd, OwnedFd);

fn pipes() -> io::Result<Streams> {
    let (out, stdout) = pipe()?;
    let (err, stderr) = pipe()?;
    let streams = vec![
        Output::new(LogStream::Stdout, out)?,
        Output::new(LogStream::Stderr, err)?,
    ];
    Ok((streams, stdout.into(), stderr.into()))
}

/// A terminal, whose output is all on one stream.
fn terminal() -> io::Result<Streams> {
    let pty = openpty(None, None)?;
    let stderr = pty.slave.try_clone()?;
    Ok((
        vec![Output::new(LogStream::Stdout, pty.master.into())?],
        pty.slave,
        stderr,
    ))
}

impl Output {
    fn new(stream: LogStream, from: File) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&from, FcntlArg::F_GETFL)?);
        fcntl(&from, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { stream, from })
    }

    /// Reads what there is. `Ok(0)` is the end, `WouldBlock` that there is nothing now.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self.from.read(chunk) {
            // A terminal that nobody has open any more.
            Err(err) if err.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }
}

/// Writes the task's output to its log until its pid 1 has exited (with which the kernel has ended
/// all of the task) and its streams are empty.
fn keep_output(mut log: LogWriter, mut outputs: Vec<Output>, child: Pid) -> io::Result<()> {
    let pidfd = PidFd::open(child.as_raw())?;
    let mut chunk = vec![0; CHUNK_BYTES];
    while !pidfd.has_exited()? {
        wait_for_any(&pidfd, &outputs)?;
        outputs.retain_mut(|output| match output.read(&mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                // A full disk must not stop the task: what cannot be kept is lost.
                let _ = log.write(output.stream, &chunk[..len]);
                true
            }
            Err(err) => err.kind() == io::ErrorKind::WouldBlock,
        });
    }
    for output in &mut outputs {
        let mut rest = 0;
        while rest < REST_BYTES_MAX
            && let Ok(len @ 1..) = output.read(&mut chunk)
        {
            let _ = log.write(output.stream, &chunk[..len]);
            rest += len;
        }
    }
    let _ = log.finish();
    Ok(())
}

fn wait_for_any(pidfd: &PidFd, outputs: &[Output]) -> io::Result<()> {
    let fds = outputs
        .iter()
        .map(|output| output.from.as_fd())
        .chain([pidfd.as_fd()]);
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Collects pid 1, which has exited or is about to.
fn wait(child: Pid) -> io::Result<Exit> {
    let (code, signal) = match wait_child(child.as_raw(), 0)? {
        Some((_, Ended::Exited(code))) => (Some(code), None),
        Some((_, Ended::Killed(signal))) => (None, Some(signal)),
        None => unreachable!("only WNOHANG returns without a child"),
    };
    Ok(Exit {
        code,
        signal,
        error: None,
        at: Timestamp::now(),
    })
}

/// Leaves the agent's cgroup, so that a service manager that stops the agent by its cgroup leaves
/// the task alone. Best effort: without it the task still survives a kill of the agent alone.
fn leave_agents_cgroup(shims: &Path) {
    let _ = fs::write(shims.join("cgroup.procs"), "0");
}
