//! The daemon's flags, checked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where cgroup2 is: alone on normal machines, beside the v1 controllers on hybrid ones.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// What survives a reboot: membership, tasks, the cluster's log
    #[arg(long, value_name = "DIR", default_value = "/var/lib/swarmnet")]
    state_dir: PathBuf,
    /// Sockets and network namespaces
    #[arg(long, value_name = "DIR", default_value = "/run/swarmnet")]
    run_dir: PathBuf,
    /// Pinned programs, maps and links, on a bpf file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/swarmnet")]
    bpf_dir: PathBuf,
    /// Root of the cgroup v2 hierarchy [default: found]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Interface towards the clients [default: the one with the node's address]
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
    /// Hook on the uplink
    #[arg(long, value_enum, default_value = "auto")]
    uplink_mode: UplinkMode,
    /// Root file systems of images: directories and tar files [default: images below --state-dir]
    #[arg(long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
    /// What to log, such as info,swarmnet_agent=debug
    // At `info`, openraft tells of each heartbeat of its leader, four a second.
    #[arg(
        long,
        value_name = "FILTER",
        env = "SWARMNET_LOG",
        default_value = "info,openraft=error"
    )]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UplinkMode {
    /// XDP on network cards, tc on virtual devices
    Auto,
    Xdp,
    Tc,
}

/// What the daemon works with.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub pin_dir: PathBuf,
    pub cgroup: PathBuf,
    pub uplink: Option<String>,
    pub uplink_mode: datapath::UplinkMode,
    pub images_dir: PathBuf,
    /// This binary, which is also each task's shim.
    pub shim: PathBuf,
    pub log: String,
}

impl DaemonConfig {
    /// # Errors
    /// Not root, no cgroup v2, or paths that other processes could not follow.
    pub fn check(args: AgentArgs) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "`swarmnet agent` needs root: it makes namespaces and loads programs into the kernel"
        );
        let state_dir = absolute(&args.state_dir)?;
        let cgroup = match args.cgroup {
            Some(dir) => {
                ensure!(
                    is_cgroup2(&dir),
                    "--cgroup {} is not a cgroup v2 directory",
                    dir.display()
                );
                dir
            }
            None => find_cgroup2().context(
                "there is no cgroup v2 hierarchy at /sys/fs/cgroup or /sys/fs/cgroup/unified: \
                 mount one (mount -t cgroup2 none DIR) and name it with --cgroup",
            )?,
        };
        Ok(Self {
            images_dir: match args.images_dir {
                Some(dir) => absolute(&dir)?,
                None => state_dir.join("images"),
            },
            state_dir,
            run_dir: absolute(&args.run_dir)?,
            pin_dir: absolute(&args.bpf_dir)?,
            cgroup,
            uplink: args.uplink,
            uplink_mode: match args.uplink_mode {
                UplinkMode::Auto => datapath::UplinkMode::Auto,
                UplinkMode::Xdp => datapath::UplinkMode::Xdp,
                UplinkMode::Tc => datapath::UplinkMode::Tc,
            },
            shim: std::env::current_exe().context("cannot find this program's own file")?,
            log: args.log,
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("docker.sock")
    }

    /// Of the agent alone.
    pub fn agent_dir(&self) -> PathBuf {
        self.state_dir.join("agent")
    }

    /// Of the manager alone.
    pub fn manager_dir(&self) -> PathBuf {
        self.state_dir.join("manager")
    }
}

/// Tasks' shims run in `/`, so a path must not depend on where the daemon was started.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))
}

fn find_cgroup2() -> Option<PathBuf> {
    let roots = CGROUP_ROOTS.map(PathBuf::from);
    roots.into_iter().find(|root| is_cgroup2(root))
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup2_directory_passes_for_one() {
        assert!(!is_cgroup2(Path::new("/proc")));
        assert!(!is_cgroup2(Path::new("/no/such/directory")));
    }
}
