//! The directory of pins: its file system, its lock, its layout.
//!
//! ```text
//! <pin_dir>/v1/maps/<MAP>
//!             /programs/<digest of the object>/<program>
//!             /links/<hook>[-<ifindex>-<interface>]
//! ```
//! A bpffs belongs to a mount namespace: run the agent in the machine's own (`ip netns exec` makes
//! another, and what is pinned there goes with the process).

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use dataplane_abi::LAYOUT_VERSION;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
        statfs::{BPF_FS_MAGIC, statfs},
    },
};
use tracing::{debug, info};

use crate::error::DatapathError;

/// Where the kernel provides for a bpffs.
const USUAL_MOUNT: &str = "/sys/fs/bpf";

/// A pin directory that is ours as long as this lives.
#[derive(Debug)]
pub(crate) struct PinDir {
    root: PathBuf,
    _lock: Flock<File>,
}

impl PinDir {
    /// Makes the directory and what it needs.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        ensure_bpffs(root)?;
        let fail = |source| DatapathError::PinDir {
            path: root.to_owned(),
            source,
        };
        fs::create_dir_all(root).map_err(fail)?;
        let directory = File::open(root).map_err(fail)?;
        let lock =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
                match errno {
                    nix::errno::Errno::EWOULDBLOCK => DatapathError::Busy {
                        path: root.to_owned(),
                    },
                    errno => fail(errno.into()),
                }
            })?;
        let pins = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        for directory in [pins.maps(), pins.programs(), pins.links()] {
            fs::create_dir_all(directory).map_err(fail)?;
        }
        Ok(pins)
    }

    fn layout(&self) -> Layout {
        Layout(self.root.join(format!("v{LAYOUT_VERSION}")))
    }

    pub fn maps(&self) -> PathBuf {
        self.layout().maps()
    }

    pub fn programs(&self) -> PathBuf {
        self.layout().programs()
    }

    pub fn links(&self) -> PathBuf {
        self.layout().links()
    }

    /// The layout of another build whose programs are on the hooks: links are pinned there.
    pub fn former(&self) -> Result<Option<Layout>, DatapathError> {
        let mut former = None;
        for layout in self.other_layouts()? {
            if layout.links().exists() && !names(&layout.links())?.is_empty() {
                former = Some(layout);
            }
        }
        Ok(former)
    }

    /// Removes what a take-over that did not come to its end left: maps that no link's program uses.
    pub fn begin_anew(&self) -> Result<(), DatapathError> {
        let layout = self.layout();
        for directory in [layout.maps(), layout.programs()] {
            remove_dir(&directory)?;
            fs::create_dir_all(&directory).map_err(|source| DatapathError::Pin {
                action: "make",
                path: directory,
                source,
            })?;
        }
        Ok(())
    }

    /// Unpins what builds with other map layouts left. Their links were taken over before.
    pub fn forget_other_layouts(&self) -> Result<(), DatapathError> {
        for Layout(path) in self.other_layouts()? {
            info!(pin.dir = %path.display(), "pins of another layout removed");
            remove_dir(&path)?;
        }
        Ok(())
    }

    /// By version, oldest first.
    fn other_layouts(&self) -> Result<Vec<Layout>, DatapathError> {
        let version = |name: &String| name.strip_prefix('v')?.parse::<u32>().ok();
        let mut others: Vec<_> = names(&self.root)?
            .iter()
            .filter_map(version)
            .filter(|version| *version != LAYOUT_VERSION)
            .collect();
        others.sort_unstable();
        let path = |version| Layout(self.root.join(format!("v{version}")));
        Ok(others.into_iter().map(path).collect())
    }

    /// Removes every pin and the directory. What no descriptor holds ends here.
    pub fn remove(self) -> Result<(), DatapathError> {
        remove_dir(&self.layout().0)?;
        // Fails when something else lies in it or it is a mount point, and then it may stay.
        if let Err(error) = fs::remove_dir(&self.root) {
            debug!(pin.dir = %self.root.display(), %error, "pin directory stays");
        }
        Ok(())
    }
}

/// The pins of builds with one map layout.
#[derive(Debug, Clone)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    pub fn maps(&self) -> PathBuf {
        self.0.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.0.join("programs")
    }

    pub fn links(&self) -> PathBuf {
        self.0.join("links")
    }
}

/// Absence is the goal.
pub(crate) fn remove_dir(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Mounts a bpffs when `root` does not lie on one: at the usual place when it is below that, else
/// at `root` itself.
fn ensure_bpffs(root: &Path) -> Result<(), DatapathError> {
    if lies_on_bpffs(root) {
        return Ok(());
    }
    let at = match root.starts_with(USUAL_MOUNT) {
        true => Path::new(USUAL_MOUNT),
        false => root,
    };
    let fail = |source: io::Error| DatapathError::Mount {
        path: at.to_owned(),
        source,
    };
    fs::create_dir_all(at).map_err(fail)?;
    // Agents that start together take turns: a second mount would hide the first one's pins.
    let turn = File::open(at).map_err(fail)?;
    let _turn =
        Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))?;
    if lies_on_bpffs(root) {
        return Ok(());
    }
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| fail(errno.into()))?;
    info!(mount.path = %at.display(), "bpffs mounted");
    Ok(())
}

fn lies_on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    existing.is_some_and(is_bpffs)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Before Linux 5.11, maps count against the limit of locked memory; after, the limit does not
/// matter. Failing is no error: then the kernel says so itself when maps are made.
pub(crate) fn raise_memlock() {
    let limited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft != RLIM_INFINITY);
    if !limited {
        return;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "limit of locked memory stays");
    }
}

/// Names in a directory of pins.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, DatapathError> {
    let fail = |source| DatapathError::Pin {
        action: "list",
        path: directory.to_owned(),
        source,
    };
    let entries = fs::read_dir(directory).map_err(fail)?;
    let names = entries.map(|entry| Ok(entry.map_err(fail)?.file_name()));
    let names: Result<Vec<_>, DatapathError> = names.collect();
    Ok(names?
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect())
}
