//! Network namespaces for tests: one that a test's thread enters for itself, and named ones.

use std::{
    fs::{self, File},
    io::{self, Write},
    marker::PhantomData,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// The calling thread's own new namespace, with `lo` up. It goes away with the thread, and the
/// guard brings the thread back where it was.
pub struct PrivateNetns {
    outside: File,
    /// `setns` works on threads: the guard stays where it was made.
    _not_send: PhantomData<*const ()>,
}

impl PrivateNetns {
    pub fn enter() -> Self {
        let outside = File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        let netns = Self {
            outside,
            _not_send: PhantomData,
        };
        netns.ip("link set lo up");
        netns
    }

    /// With `up0`, 192.0.2.1/24, MAC [`UPLINK_MAC`], that forwards.
    pub fn with_uplink() -> Self {
        let netns = Self::enter();
        netns.ip("link add up0 address 02:00:00:00:00:11 type veth peer name up1");
        netns.ip("link set up0 up");
        netns.ip("link set up1 up");
        netns.ip("addr add 192.0.2.1/24 dev up0");
        netns.sysctl("net/ipv4/conf/all/forwarding", "1");
        netns
    }

    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        run_ip(arguments);
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        fs::write(PathBuf::from("/proc/sys").join(name), value).unwrap();
    }

    pub fn ifindex(&self, device: &str) -> u32 {
        ifindex(device)
    }
}

impl Drop for PrivateNetns {
    fn drop(&mut self) {
        let back = setns(&self.outside, CloneFlags::CLONE_NEWNET);
        if !thread::panicking() {
            back.unwrap();
        }
    }
}

/// A namespace under /run/netns, deleted on drop.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("snp-{}-{count}-{label}", std::process::id());
        run_ip(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        run_ip(&format!("-n {} {arguments}", self.name));
    }

    /// Gives `nft` a script.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(nft.wait().unwrap().success(), "{script}");
    }

    /// Runs `work` on a thread inside of the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_inside(&self.path(), work)
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(name);
        self.run(|| fs::write(path, value)).unwrap();
    }

    pub fn ifindex(&self, device: &str) -> u32 {
        self.run(|| ifindex(device))
    }

    /// Makes the kernel finish checksums before packets leave by `device`, as on a wire. A veth
    /// leaves that to the receiver, which an XDP program cannot see.
    pub fn finish_checksums(&self, device: &str) {
        self.offload(device, "tx", "off");
    }

    /// `ethtool -K`, which cannot look into namespaces by itself.
    pub fn offload(&self, device: &str, feature: &str, state: &str) {
        let status = self.run(|| {
            Command::new("ethtool")
                .args(["-K", device, feature, state])
                .status()
        });
        assert!(status.unwrap().success(), "{feature} of {device}");
    }

    pub fn mac(&self, device: &str) -> [u8; 6] {
        // Sysfs shows the namespace that it was mounted in; `ip` asks the kernel.
        let output = Command::new("ip")
            .args(["-n", &self.name, "-br", "link", "show", device])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let mac = text.split_whitespace().nth(2).unwrap();
        let bytes: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        bytes.try_into().unwrap()
    }

    /// The kernel's name for the namespace, as the socket programs see it.
    pub fn cookie(&self) -> u64 {
        self.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut cookie = 0u64;
            let mut len = size_of::<u64>() as libc::socklen_t;
            // SAFETY: the kernel writes at most `len` bytes to `cookie`.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NETNS_COOKIE,
                    (&raw mut cookie).cast(),
                    &raw mut len,
                )
            };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            cookie
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !thread::panicking() {
            assert!(deleted.unwrap().success());
        }
    }
}

/// Runs `work` on a thread inside of the namespace at `path`.
pub fn run_inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let namespace = File::open(path).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[track_caller]
fn run_ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn ifindex(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap_or_else(|e| panic!("{device}: {e}"))
}
