//! Programs onto their hooks, exactly once each, for as long as the pins last.
//!
//! Every link is pinned under its hook's name (and the interface's index and name), so a starting
//! agent finds what it attached before, and gives it this build's program by link update: nothing
//! is ever detached to be attached again.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::net::if_::if_indextoname;
use tracing::{debug, info, warn};

use crate::{
    bpffs::{Layout, names},
    device,
    error::DatapathError,
    load::{Loaded, Programs},
    sys::{self, Attach, LinkTarget},
};

/// Which programs see the packets from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UplinkMode {
    /// tc on virtual devices, XDP before tc on real ones. Native XDP takes GSO away from a local
    /// peer of a veth, which costs it more than XDP wins.
    #[default]
    Auto,
    /// XDP before tc: native where the driver can, else generic.
    Xdp,
    /// tc alone.
    Tc,
}

/// Where a program goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    UplinkXdp,
    UplinkTc,
    Vxlan,
    Task,
    Gateway,
    Connect4,
    Sendmsg4,
    Recvmsg4,
    Getpeername4,
}

impl Hook {
    pub const ALL: [Self; 9] = [
        Self::UplinkXdp,
        Self::UplinkTc,
        Self::Vxlan,
        Self::Task,
        Self::Gateway,
        Self::Connect4,
        Self::Sendmsg4,
        Self::Recvmsg4,
        Self::Getpeername4,
    ];

    /// Name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::UplinkXdp => "sn_xdp_uplink",
            Self::UplinkTc => "sn_tc_uplink",
            Self::Vxlan => "sn_tc_vxlan",
            Self::Task => "sn_tc_task",
            Self::Gateway => "sn_tc_gateway",
            Self::Connect4 => "sn_connect4",
            Self::Sendmsg4 => "sn_sendmsg4",
            Self::Recvmsg4 => "sn_recvmsg4",
            Self::Getpeername4 => "sn_getpeer4",
        }
    }

    /// First part of the name of the link's pin. Holds no dash.
    const fn pin(self) -> &'static str {
        match self {
            Self::UplinkXdp => "uplink_xdp",
            Self::UplinkTc => "uplink_tc",
            Self::Vxlan => "vxlan",
            Self::Task => "task",
            Self::Gateway => "gateway",
            Self::Connect4 => "connect4",
            Self::Sendmsg4 => "sendmsg4",
            Self::Recvmsg4 => "recvmsg4",
            Self::Getpeername4 => "getpeername4",
        }
    }

    fn of_pin(name: &str) -> Option<Self> {
        let hook = name.split('-').next()?;
        Self::ALL.into_iter().find(|known| known.pin() == hook)
    }

    /// For the socket hooks, the type of attachment to a cgroup.
    const fn cgroup_type(self) -> Option<u32> {
        match self {
            Self::Connect4 => Some(sys::BPF_CGROUP_INET4_CONNECT),
            Self::Sendmsg4 => Some(sys::BPF_CGROUP_UDP4_SENDMSG),
            Self::Recvmsg4 => Some(sys::BPF_CGROUP_UDP4_RECVMSG),
            Self::Getpeername4 => Some(sys::BPF_CGROUP_INET4_GETPEERNAME),
            _ => None,
        }
    }
}

/// What of ours is attached, as the pins say.
#[derive(Debug)]
pub(crate) struct Links {
    directory: PathBuf,
}

/// A pinned link.
struct Pinned {
    path: PathBuf,
    fd: OwnedFd,
    info: sys::LinkInfo,
}

impl Links {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Moves the links here that a build with another map layout pinned: they get this build's
    /// programs like all others.
    pub fn take_over(&self, former: &Layout) -> Result<(), DatapathError> {
        for name in names(&former.links())? {
            let (from, to) = (former.links().join(&name), self.directory.join(&name));
            if to.exists() {
                unpin(&from)?;
                continue;
            }
            fs::rename(&from, &to).map_err(|source| DatapathError::Pin {
                action: "move",
                path: from,
                source,
            })?;
            info!(link.name = name, "link of another layout taken over");
        }
        Ok(())
    }

    /// Gives every pinned link this build's program, and forgets those whose device is gone.
    pub fn adopt(&self, programs: &Programs) -> Result<(), DatapathError> {
        for name in names(&self.directory)? {
            let path = self.directory.join(&name);
            let link = Hook::of_pin(&name).map(|hook| (hook, Pinned::open(path.clone())));
            match link {
                Some((hook, Ok(link))) if link.is_attached() => {
                    link.run(hook, &programs[&hook])?;
                    debug!(link.name = name, "link adopted");
                }
                _ => {
                    info!(link.name = name, "pin of a dead link removed");
                    unpin(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Attaches a tc program to the ingress of an interface, once.
    pub fn attach_tc(
        &self,
        hook: Hook,
        ifindex: u32,
        programs: &Programs,
    ) -> Result<(), DatapathError> {
        let wanted = LinkTarget::Tcx(ifindex);
        self.attach(hook, Some(ifindex), wanted, programs, |program| {
            sys::create_link(program, Attach::TcxIngress(ifindex))
        })
    }

    /// Attaches the uplink's programs as `mode` says, and takes off what it does not say.
    pub fn attach_uplink(
        &self,
        ifindex: u32,
        mode: UplinkMode,
        programs: &Programs,
    ) -> Result<(), DatapathError> {
        self.attach_tc(Hook::UplinkTc, ifindex, programs)?;
        let name = interface_name(ifindex)?;
        let xdp = match mode {
            UplinkMode::Auto => device::is_physical(&name),
            UplinkMode::Xdp => true,
            UplinkMode::Tc => false,
        };
        if !xdp {
            return self.detach(Hook::UplinkXdp, ifindex);
        }
        let attached = self.attach_xdp(ifindex, &name, programs);
        match attached {
            Err(error) if mode == UplinkMode::Auto => {
                warn!(link.name = name, %error, "no XDP on this interface: tc alone");
                Ok(())
            }
            other => other,
        }
    }

    fn attach_xdp(
        &self,
        ifindex: u32,
        name: &str,
        programs: &Programs,
    ) -> Result<(), DatapathError> {
        let wanted = LinkTarget::Xdp(ifindex);
        self.attach(
            Hook::UplinkXdp,
            Some(ifindex),
            wanted,
            programs,
            |program| {
                let attach = |flags| sys::create_link(program, Attach::Xdp(ifindex, flags));
                attach(sys::XDP_FLAGS_DRV_MODE).or_else(|error| {
                    // A hook that is taken is taken in either mode.
                    if error.raw_os_error() == Some(libc::EBUSY) {
                        return Err(error);
                    }
                    info!(link.name = name, %error, "no native XDP on this interface: generic XDP");
                    attach(sys::XDP_FLAGS_SKB_MODE)
                })
            },
        )
    }

    /// Attaches the socket programs to a cgroup, once.
    pub fn attach_cgroup(&self, path: &Path, programs: &Programs) -> Result<(), DatapathError> {
        let fail = |source| DatapathError::Cgroup {
            path: path.to_owned(),
            source,
        };
        let cgroup = File::open(path).map_err(fail)?;
        // A cgroup's id is the inode number of its directory.
        let id = cgroup.metadata().map_err(fail)?.ino();
        for hook in Hook::ALL {
            let Some(kind) = hook.cgroup_type() else {
                continue;
            };
            self.attach(hook, None, LinkTarget::Cgroup(id), programs, |program| {
                sys::create_link(program, Attach::Cgroup(cgroup.as_fd(), kind))
            })?;
        }
        Ok(())
    }

    /// Takes everything off everywhere.
    pub fn detach_all(&self) -> Result<(), DatapathError> {
        let names = names(&self.directory)?;
        names
            .iter()
            .try_for_each(|name| unpin(&self.directory.join(name)))
    }

    /// Takes a program off an interface; none there is no error.
    pub fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        for path in self.pins(hook, Some(ifindex))? {
            unpin(&path)?;
            debug!(
                program.name = hook.program(),
                link.ifindex = ifindex,
                "program detached"
            );
        }
        Ok(())
    }

    /// Keeps the link that is pinned when it is where it shall be, else makes a new one.
    fn attach(
        &self,
        hook: Hook,
        ifindex: Option<u32>,
        wanted: LinkTarget,
        programs: &Programs,
        create: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd>,
    ) -> Result<(), DatapathError> {
        let program = &programs[&hook];
        let interface = ifindex.map(interface_name).transpose()?;
        let mut kept = false;
        let mut stale = Vec::new();
        for path in self.pins(hook, ifindex)? {
            match Pinned::open(path.clone()) {
                Ok(link) if link.info.target == wanted && !kept => {
                    link.run(hook, program)?;
                    kept = true;
                }
                _ => stale.push(path),
            }
        }
        if kept {
            return stale.iter().try_for_each(|path| unpin(path));
        }
        let target = interface.clone().unwrap_or_else(|| "the cgroup".to_owned());
        let link = create(program.fd.as_fd()).map_err(|source| DatapathError::Attach {
            program: hook.program(),
            target: target.clone(),
            source,
        })?;
        // The old one goes after the new one is there: no call or packet goes by unseen.
        stale.iter().try_for_each(|path| unpin(path))?;
        let path = self
            .directory
            .join(pin_name(hook, ifindex.zip(interface.as_deref())));
        sys::pin(link.as_fd(), &path).map_err(|source| DatapathError::Pin {
            action: "make",
            path,
            source,
        })?;
        info!(
            program.name = hook.program(),
            link.name = target,
            "program attached"
        );
        Ok(())
    }

    /// Pins of a hook, of one interface when it is given.
    fn pins(&self, hook: Hook, ifindex: Option<u32>) -> Result<Vec<PathBuf>, DatapathError> {
        let ours = |name: &String| {
            let mut parts = name.splitn(3, '-');
            parts.next() == Some(hook.pin())
                && parts.next().and_then(|index| index.parse().ok()) == ifindex
        };
        let names = names(&self.directory)?.into_iter().filter(ours);
        Ok(names.map(|name| self.directory.join(name)).collect())
    }
}

impl Pinned {
    fn open(path: PathBuf) -> io::Result<Self> {
        let fd = sys::open_pin(&path)?;
        let info = sys::link_info(fd.as_fd())?;
        Ok(Self { path, fd, info })
    }

    fn is_attached(&self) -> bool {
        match self.info.target {
            LinkTarget::Tcx(ifindex) | LinkTarget::Xdp(ifindex) => ifindex != 0,
            LinkTarget::Cgroup(id) => id != 0,
            LinkTarget::Other(_) => false,
        }
    }

    /// Makes the link run `program`, if it does not yet.
    fn run(&self, hook: Hook, program: &Loaded) -> Result<(), DatapathError> {
        if self.info.program_id == program.id {
            return Ok(());
        }
        sys::update_link(self.fd.as_fd(), program.fd.as_fd()).map_err(|source| {
            DatapathError::Attach {
                program: hook.program(),
                target: self.path.display().to_string(),
                source,
            }
        })?;
        info!(program.name = hook.program(), link.pin = %self.path.display(), "program replaced");
        Ok(())
    }
}

fn interface_name(ifindex: u32) -> Result<String, DatapathError> {
    // nix 0.31 takes the C function's null for success, and gives an empty name.
    match if_indextoname(ifindex) {
        Ok(name) if !name.is_empty() => Ok(name.to_string_lossy().into_owned()),
        _ => Err(DatapathError::NoInterface { ifindex }),
    }
}

/// A bpffs refuses names with a dot, which interfaces may have.
fn pin_name(hook: Hook, interface: Option<(u32, &str)>) -> String {
    match interface {
        Some((ifindex, name)) => format!("{}-{ifindex}-{}", hook.pin(), name.replace('.', "_")),
        None => hook.pin().to_owned(),
    }
}

/// Detaches a link and removes its pin. A link whose device is gone is detached already.
fn unpin(path: &Path) -> Result<(), DatapathError> {
    let detached = sys::open_pin(path).and_then(|link| sys::detach_link(link.as_fd()));
    if let Err(error) = detached {
        debug!(link.pin = %path.display(), %error, "link was detached already");
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
