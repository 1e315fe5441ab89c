//! Programs onto their hooks, exactly once each, for as long as the pins last.
//!
//! Programs of tc go by tcx links, or before Linux 6.6 by filters ([`clsact`]); those of XDP and of
//! cgroups by links. Every link is pinned under its hook's name (and the interface's index and name), so a starting
//! agent finds what it attached before, and gives it this build's program by link update: nothing
//! is ever detached to be attached again.

mod clsact;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use clsact::Done;
use dataplane_abi::ProgramId;
use nix::net::if_::if_indextoname;
use tracing::{debug, info, warn};

use crate::{
    bpffs::{Layout, names},
    device,
    error::DatapathError,
    load::{Loaded, Programs},
    query,
    repair::Deviation,
    sys::{self, Attach, LinkTarget},
};

/// Which programs see the packets from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UplinkMode {
    /// XDP before tc on real devices whose driver can, tc alone on others. Native XDP takes GSO
    /// away from a local peer of a veth, which costs it more than XDP wins. Generic XDP comes
    /// behind GRO and has each packet copied into one piece first: tc takes it as it is.
    #[default]
    Auto,
    /// XDP before tc: native where the driver can, else generic.
    Xdp,
    /// tc alone.
    Tc,
}

/// How programs get onto the ingress of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// By pinned links: Linux 6.6 and later.
    Tcx,
    /// By filters of a clsact qdisc.
    Clsact,
}

impl Ingress {
    /// The better one that the kernel has.
    pub(crate) fn of_kernel() -> Self {
        if query::has_tcx() {
            return Self::Tcx;
        }
        info!("this kernel has no tcx: programs attach as tc filters");
        Self::Clsact
    }
}

/// Where a program goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    UplinkXdp,
    UplinkTc,
    Vxlan,
    Task,
    Gateway,
    Ordered,
    Connect4,
    Sendmsg4,
    Recvmsg4,
    Getpeername4,
}

impl Hook {
    pub const ALL: [Self; 10] = [
        Self::UplinkXdp,
        Self::UplinkTc,
        Self::Vxlan,
        Self::Task,
        Self::Gateway,
        Self::Ordered,
        Self::Connect4,
        Self::Sendmsg4,
        Self::Recvmsg4,
        Self::Getpeername4,
    ];

    /// Name in the object.
    pub const fn program(self) -> &'static str {
        let program = match self {
            Self::UplinkXdp => ProgramId::XdpUplink,
            Self::UplinkTc => ProgramId::TcUplink,
            Self::Vxlan => ProgramId::TcVxlan,
            Self::Task => ProgramId::TcTask,
            Self::Gateway => ProgramId::TcGateway,
            Self::Ordered => ProgramId::TcOrdered,
            Self::Connect4 => ProgramId::Connect4,
            Self::Sendmsg4 => ProgramId::Sendmsg4,
            Self::Recvmsg4 => ProgramId::Recvmsg4,
            Self::Getpeername4 => ProgramId::Getpeer4,
        };
        program.name()
    }

    /// First part of the name of the link's pin. Holds no dash.
    const fn pin(self) -> &'static str {
        match self {
            Self::UplinkXdp => "uplink_xdp",
            Self::UplinkTc => "uplink_tc",
            Self::Vxlan => "vxlan",
            Self::Task => "task",
            Self::Gateway => "gateway",
            Self::Ordered => "ordered",
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

/// What of ours is attached, as the pins and the filters say.
#[derive(Debug)]
pub(crate) struct Links {
    directory: PathBuf,
    /// A map that every program of this node works on.
    config_map: PathBuf,
    ingress: Ingress,
}

/// A pinned link.
struct Pinned {
    path: PathBuf,
    fd: OwnedFd,
    info: sys::LinkInfo,
}

impl Links {
    /// With the directory of the links' pins, and the pin of a map that every program works on.
    pub fn new(directory: PathBuf, config_map: PathBuf, ingress: Ingress) -> Self {
        Self {
            directory,
            config_map,
            ingress,
        }
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
        if self.ingress == Ingress::Clsact {
            for (ifindex, hook) in clsact::attached().map_err(DatapathError::filters)? {
                attach_filter(hook, ifindex, programs)?;
            }
        }
        Ok(())
    }

    /// Attaches a tc program to the ingress of an interface, once. Tells what had to be done, if
    /// anything.
    pub fn attach_tc(
        &self,
        hook: Hook,
        ifindex: u32,
        programs: &Programs,
    ) -> Result<Option<Deviation>, DatapathError> {
        if self.ingress == Ingress::Clsact {
            return attach_filter(hook, ifindex, programs);
        }
        let wanted = LinkTarget::Tcx(ifindex);
        let unpinned = self.pin_unpinned(hook, ifindex)?;
        let found = self.attach(hook, Some(ifindex), wanted, programs, |program| {
            sys::create_link(program, Attach::TcxIngress(ifindex))
        })?;
        Ok(unpinned.or(found))
    }

    /// Attaches the uplink's programs as `mode` says, and takes off what it does not say.
    pub fn attach_uplink(
        &self,
        ifindex: u32,
        mode: UplinkMode,
        programs: &Programs,
    ) -> Result<Vec<Deviation>, DatapathError> {
        let tc = self.attach_tc(Hook::UplinkTc, ifindex, programs)?;
        let name = interface_name(ifindex)?;
        let xdp = match mode {
            UplinkMode::Auto => device::is_physical(&name),
            UplinkMode::Xdp => true,
            UplinkMode::Tc => false,
        };
        let generic = mode == UplinkMode::Xdp;
        let xdp = match xdp.then(|| self.attach_xdp(ifindex, &name, programs, generic)) {
            None => {
                self.detach(Hook::UplinkXdp, ifindex)?;
                None
            }
            Some(Err(error)) if mode == UplinkMode::Auto => {
                warn!(link.name = name, %error, "no native XDP on this interface: tc alone");
                None
            }
            Some(attached) => attached?,
        };
        Ok(tc.into_iter().chain(xdp).collect())
    }

    /// Takes the uplink's programs off every interface but this one.
    pub fn leave_other_uplinks(&self, ifindex: u32) -> Result<(), DatapathError> {
        let is_uplinks = |hook: &Hook| matches!(hook, Hook::UplinkXdp | Hook::UplinkTc);
        let pinned = names(&self.directory)?.into_iter().filter_map(|name| {
            let hook = Hook::of_pin(&name).filter(is_uplinks)?;
            Some((name.split('-').nth(1)?.parse().ok()?, hook))
        });
        let mut attached: Vec<(u32, Hook)> = pinned.collect();
        if self.ingress == Ingress::Clsact {
            let filters = clsact::attached().map_err(DatapathError::filters)?;
            attached.extend(filters.into_iter().filter(|(_, hook)| is_uplinks(hook)));
        }
        for (other, hook) in attached.into_iter().filter(|(on, _)| *on != ifindex) {
            self.detach(hook, other)?;
            info!(
                program.name = hook.program(),
                link.ifindex = other,
                "program taken off what is the uplink no longer"
            );
        }
        Ok(())
    }

    /// Native, or in the second place generic when `generic` is set.
    fn attach_xdp(
        &self,
        ifindex: u32,
        name: &str,
        programs: &Programs,
        generic: bool,
    ) -> Result<Option<Deviation>, DatapathError> {
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
                    if !generic || error.raw_os_error() == Some(libc::EBUSY) {
                        return Err(error);
                    }
                    info!(link.name = name, %error, "no native XDP on this interface: generic XDP");
                    attach(sys::XDP_FLAGS_SKB_MODE)
                })
            },
        )
    }

    /// Attaches the tunnel's program. With an uplink that may run generic XDP, the tunnel's device
    /// must not put packets together: those that generic XDP has seen are in one piece, however
    /// many segments they make, and when GRO hangs one behind another Linux 6.1 dies of segmenting
    /// the two (`skb_segment`). The uplink's own GRO has merged what the tunnel carries already.
    pub fn attach_vxlan(
        &self,
        ifindex: u32,
        uplink: UplinkMode,
        programs: &Programs,
    ) -> Result<Vec<Deviation>, DatapathError> {
        let mut found: Vec<_> = self
            .attach_tc(Hook::Vxlan, ifindex, programs)?
            .into_iter()
            .collect();
        let name = interface_name(ifindex)?;
        if uplink == UplinkMode::Xdp && device::merges(&name).unwrap_or_default() {
            device::merge_no_more(&name).map_err(|source| DatapathError::Offload {
                interface: name.clone(),
                source,
            })?;
            found.push(Deviation::new(
                format_args!("link {name}"),
                "with GRO on, beside generic XDP",
            ));
        }
        Ok(found)
    }

    /// Attaches the socket programs to a cgroup, once.
    pub fn attach_cgroup(
        &self,
        path: &Path,
        programs: &Programs,
    ) -> Result<Vec<Deviation>, DatapathError> {
        let fail = |source| DatapathError::Cgroup {
            path: path.to_owned(),
            source,
        };
        let cgroup = File::open(path).map_err(fail)?;
        // A cgroup's id is the inode number of its directory.
        let id = cgroup.metadata().map_err(fail)?.ino();
        let mut found = Vec::new();
        for hook in Hook::ALL {
            let Some(kind) = hook.cgroup_type() else {
                continue;
            };
            let wanted = LinkTarget::Cgroup(id);
            found.extend(self.attach(hook, None, wanted, programs, |program| {
                sys::create_link(program, Attach::Cgroup(cgroup.as_fd(), kind))
            })?);
        }
        Ok(found)
    }

    /// Takes everything off everywhere.
    pub fn detach_all(&self) -> Result<(), DatapathError> {
        if self.ingress == Ingress::Clsact {
            for (ifindex, hook) in clsact::attached().map_err(DatapathError::filters)? {
                detach_filter(hook, ifindex)?;
            }
        }
        let names = names(&self.directory)?;
        names
            .iter()
            .try_for_each(|name| unpin(&self.directory.join(name)))
    }

    /// Takes a program off an interface; none there is no error.
    pub fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        if self.ingress == Ingress::Clsact {
            detach_filter(hook, ifindex)?;
        }
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
    ) -> Result<Option<Deviation>, DatapathError> {
        let program = &programs[&hook];
        let interface = ifindex.map(interface_name).transpose()?;
        let target = interface.clone().unwrap_or_else(|| "the cgroup".to_owned());
        let what = format!("program {} on {target}", hook.program());
        let mut kept = None;
        let mut stale = Vec::new();
        for path in self.pins(hook, ifindex)? {
            match Pinned::open(path.clone()) {
                Ok(link) if link.info.target == wanted && kept.is_none() => {
                    kept = Some(link.run(hook, program)?);
                }
                _ => stale.push(path),
            }
        }
        if let Some(replaced) = kept {
            stale.iter().try_for_each(|path| unpin(path))?;
            let found = replaced.map(|other| format!("replaced by program {other}"));
            return Ok(found.map(|found| Deviation::new(what, found)));
        }
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
        let found = match stale.is_empty() {
            true => "not attached",
            false => "detached",
        };
        Ok(Some(Deviation::new(what, found)))
    }

    /// A link of ours that lost its pin and that another process holds open still runs its program:
    /// one such gets a pin again, instead of a second link beside it, and what is more than one goes.
    fn pin_unpinned(&self, hook: Hook, ifindex: u32) -> Result<Option<Deviation>, DatapathError> {
        let pinned: Vec<_> = self
            .pins(hook, Some(ifindex))?
            .into_iter()
            .filter_map(|path| Pinned::open(path).ok())
            .filter(Pinned::is_attached)
            .map(|link| link.info.id)
            .collect();
        // Without tcx there are no such links.
        let attached = query::tcx_ingress(ifindex).unwrap_or_default();
        let unpinned = attached
            .iter()
            .filter(|one| one.link_id != 0 && !pinned.contains(&one.link_id))
            .filter(|one| query::is_ours(one.program_id, hook.program(), &self.config_map))
            .filter_map(|one| query::open_link(one.link_id).ok());
        let mut has_link = !pinned.is_empty();
        let mut found = None;
        for link in unpinned {
            let name = interface_name(ifindex)?;
            let what = format!("program {} on {name}", hook.program());
            if has_link {
                // It fails when the link went by itself meanwhile.
                let _ = sys::detach_link(link.as_fd());
                found = Some(Deviation::new(what, "attached more than once"));
                continue;
            }
            let path = self.directory.join(pin_name(hook, Some((ifindex, &name))));
            if path.exists() {
                unpin(&path)?;
            }
            sys::pin(link.as_fd(), &path).map_err(|source| DatapathError::Pin {
                action: "make",
                path,
                source,
            })?;
            has_link = true;
            found = Some(Deviation::new(what, "attached without a pin"));
        }
        Ok(found)
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

    /// Makes the link run `program`, if it does not yet; tells the id of the one that it ran.
    fn run(&self, hook: Hook, program: &Loaded) -> Result<Option<u32>, DatapathError> {
        if self.info.program_id == program.id {
            return Ok(None);
        }
        sys::update_link(self.fd.as_fd(), program.fd.as_fd()).map_err(|source| {
            DatapathError::Attach {
                program: hook.program(),
                target: self.path.display().to_string(),
                source,
            }
        })?;
        info!(program.name = hook.program(), link.pin = %self.path.display(), "program replaced");
        Ok(Some(self.info.program_id))
    }
}

/// As [`Links::attach_tc`], without tcx.
fn attach_filter(
    hook: Hook,
    ifindex: u32,
    programs: &Programs,
) -> Result<Option<Deviation>, DatapathError> {
    let target = interface_name(ifindex)?;
    let program = hook.program();
    let done = clsact::attach(ifindex, hook, &programs[&hook]).map_err(|source| {
        DatapathError::Filter {
            program,
            target: target.clone(),
            source,
        }
    })?;
    let what = format!("program {program} on {target}");
    Ok(match done {
        Done::Nothing => None,
        Done::Attached => {
            info!(
                program.name = program,
                link.name = target,
                "program attached"
            );
            Some(Deviation::new(what, "not attached"))
        }
        Done::Replaced(other) => {
            info!(
                program.name = program,
                link.name = target,
                "program replaced"
            );
            let found = format!("replaced by program {other}");
            Some(Deviation::new(what, found))
        }
    })
}

fn detach_filter(hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
    let detached = clsact::detach(ifindex, hook).map_err(DatapathError::filters)?;
    if detached {
        debug!(
            program.name = hook.program(),
            link.ifindex = ifindex,
            "program detached"
        );
    }
    Ok(())
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
