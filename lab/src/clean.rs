//! Removal of a lab by what carries its name, whoever made it and however it ended.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{run, wait_for};

pub(crate) fn bpf_dir(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(name)
}

pub(crate) fn clean(name: &str, dir: &Path) -> Result<()> {
    kill_processes(name, dir)?;
    unmount_below(dir)?;
    // Unpinning lets go of programs, maps and links.
    remove_dir(&bpf_dir(name))?;
    for netns in namespaces(name)? {
        run(Command::new("ip").args(["netns", "delete", &netns]))?;
    }
    remove_dir(dir)
}

fn namespaces(name: &str) -> Result<Vec<String>> {
    let prefix = format!("{name}-");
    let listed = run(Command::new("ip").args(["netns", "list"]))?;
    let names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|netns| netns.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

/// Agents and shims have the lab's directory on their command lines; what shims started goes with
/// its pid namespace. What else runs in the lab's namespaces was put there by it.
fn kill_processes(name: &str, dir: &Path) -> Result<()> {
    let ours = || -> Result<Vec<Pid>> {
        let mut pids = on_command_line(dir)?;
        for netns in namespaces(name)? {
            let listed = run(Command::new("ip").args(["netns", "pids", &netns]))?;
            pids.extend(
                listed
                    .lines()
                    .filter_map(|pid| pid.trim().parse().ok())
                    .map(Pid::from_raw),
            );
        }
        pids.retain(|pid| *pid != Pid::this());
        Ok(pids)
    };
    wait_for("the lab's processes to end", || {
        let pids = ours()?;
        // One that ended in between is what we want.
        pids.iter()
            .for_each(|pid| kill(*pid, Signal::SIGKILL).unwrap_or_default());
        Ok(pids.is_empty().then_some(()))
    })
}

fn on_command_line(dir: &Path) -> Result<Vec<Pid>> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_swarmnet = line
            .split(|byte| *byte == 0)
            .any(|arg| arg == b"agent" || arg == b"task-shim");
        if is_swarmnet && line.windows(needle.len()).any(|window| window == needle) {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}

fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // Innermost first.
    for path in below
        .filter(|path| Path::new(path).starts_with(dir))
        .collect::<Vec<_>>()
        .iter()
        .rev()
    {
        umount2(*path, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {path}"))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
