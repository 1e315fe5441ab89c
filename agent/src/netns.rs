//! Network namespaces of tasks: kept by a bind mount under the run directory, so that they outlive
//! the agent, and entered by short-lived threads, so that the agent's own threads never move.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, statfs},
};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

#[derive(Debug, thiserror::Error)]
#[error("network namespace `{path}`: cannot {action}: {source}")]
pub struct NetnsError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl NetnsError {
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// A network namespace with a name in the file system.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace at `path`, or makes a new one there.
    ///
    /// # Errors
    /// Names the path and the step; needs `CAP_SYS_ADMIN`.
    pub fn ensure(path: &Path) -> Result<Self, NetnsError> {
        let fail = |action, source| NetnsError {
            path: path.to_owned(),
            action,
            source,
        };
        if !is_namespace(path) {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|err| fail("create its directory", err))?;
            }
            File::create(path).map_err(|err| fail("create its file", err))?;
            let target = path.to_owned();
            in_thread(move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                // The thread's own entry: `/proc/self` is the process, whose namespace stays.
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &target,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )?;
                Ok(())
            })
            .map_err(|err| fail("create it", err))?;
        }
        let file = File::open(path).map_err(|err| fail("open it", err))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Opens an existing namespace.
    ///
    /// # Errors
    /// `NotFound` when there is none at `path`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let fail = |source| NetnsError {
            path: path.to_owned(),
            action: "open it",
            source,
        };
        if !is_namespace(path) {
            return Err(fail(io::ErrorKind::NotFound.into()));
        }
        let file = File::open(path).map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For `IFLA_NET_NS_FD`.
    pub fn fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread inside the namespace. What it opens stays there.
    ///
    /// # Errors
    /// Those of `work`, and of entering.
    pub fn run<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send,
        F: FnOnce() -> io::Result<T> + Send,
    {
        in_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// The cookie that `bpf_get_netns_cookie` gives for sockets of this namespace.
    ///
    /// # Errors
    /// When the socket option is missing (kernel before 5.14).
    pub fn cookie(&self) -> io::Result<u64> {
        self.run(current_cookie)
    }

    /// Gives up the name; the namespace goes when its last process and link does.
    ///
    /// # Errors
    /// Names the path and the step.
    pub fn remove(self) -> Result<(), NetnsError> {
        let fail = |action, source| NetnsError {
            path: self.path.clone(),
            action,
            source,
        };
        umount2(&self.path, MntFlags::MNT_DETACH).map_err(|err| fail("unmount it", err.into()))?;
        fs::remove_file(&self.path).map_err(|err| fail("remove its file", err))
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(work)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// When the socket option is missing (kernel before 5.14).
pub fn current_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, the option writes at most `len` bytes to `cookie`, which has as
    // many; nix has no wrapper for SO_NETNS_COOKIE.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    if status == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Holds a published port on an address of the node (or all, by the unspecified one), so that no
/// process can take it there: the socket is bound and never listens or receives, the programs see the
/// packets first.
///
/// # Errors
/// `AddrInUse` when a process has the port.
pub fn reserve_port(
    protocol: model::spec::Protocol,
    addr: Ipv4Addr,
    port: u16,
) -> io::Result<Option<OwnedFd>> {
    use model::spec::Protocol;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
        // Another process cannot be asked about without the sctp module; the mesh refuses SCTP.
        Protocol::Sctp => return Ok(None),
    };
    let held = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bind(
        held.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(addr, port)),
    )?;
    Ok(Some(held))
}
