//! What a task sees of the file system, in a mount namespace of its own.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    os::unix::fs::symlink,
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{chdir, pivot_root},
};

use super::sys::{Failure, OrFail, move_mount, open_tree};
use crate::task_dir::{Root, ShimSpec, TaskDir};

/// Files that the agent writes and the task sees under `/etc`.
const ETC_FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Of `/proc` and `/sys`: what would let root in a task act on the node, or see what is not its
/// own. Docker's lists.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Network settings every Docker container has: any user may ping and bind low ports. They belong
/// to the network namespace, which is the task's alone.
const SYSCTLS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Makes the task's root the process's root. The mount namespace must be new.
pub(super) fn set_up(spec: &ShimSpec, dir: &TaskDir) -> Result<(), Failure> {
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let etc: Vec<OwnedFd> = ETC_FILES
        .iter()
        .map(|name| open_tree(&dir.file(name)).or_fail(|| format!("open {name} of the task")))
        .collect::<Result<_, _>>()?;
    if let Root::Image(image) = &spec.root {
        enter_image(image, spec, dir)?;
        mount_dev()?;
    }
    mount_kernel_views()?;
    for (name, tree) in ETC_FILES.iter().zip(&etc) {
        let target = Path::new("/etc").join(name);
        place_file(&spec.root, &target).or_fail(|| format!("make {}", target.display()))?;
        move_mount(tree, &target).or_fail(|| format!("mount {}", target.display()))?;
    }
    mount_ipc()?;
    if spec.read_only {
        remount_read_only("/")?;
    }
    Ok(())
}

/// Overlays the image with a layer of the task's own and makes it the root.
fn enter_image(image: &Path, spec: &ShimSpec, dir: &TaskDir) -> Result<(), Failure> {
    let [upper, work] = ["upper", "work"].map(|name| dir.file(name));
    for path in [&upper, &work, &spec.mount_point] {
        fs::create_dir_all(path).or_fail(|| format!("make {}", path.display()))?;
    }
    let [lower, upper, work] = [image, &upper, &work].map(overlay_path);
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let root = spec.mount_point.to_string_lossy().into_owned();
    mount_at(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(&options),
    )?;
    chdir(&spec.mount_point).or_fail(|| format!("enter {root}"))?;
    // The old root is put on top of the new one, and taken away from there (pivot_root(2), notes).
    pivot_root(".", ".").or_fail(|| format!("make {root} the root"))?;
    umount2(".", MntFlags::MNT_DETACH).or_fail(|| "let go of the node's root".to_owned())?;
    chdir("/").or_fail(|| "enter the root".to_owned())
}

/// A path as overlayfs reads it in its options, where colons and commas separate.
fn overlay_path(path: &Path) -> String {
    let mut escaped = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, ':' | ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// `/proc` of the task's pid namespace and `/sys` of its network namespace, with what is the
/// node's hidden or read-only.
fn mount_kernel_views() -> Result<(), Failure> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    make_dir("/proc")?;
    make_dir("/sys")?;
    mount_at(Some("proc"), "/proc", Some("proc"), plain, None)?;
    mount_at(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        plain | MsFlags::MS_RDONLY,
        None,
    )?;
    for (path, value) in SYSCTLS {
        fs::write(path, value).or_fail(|| format!("set {path} to {value}"))?;
    }
    for path in READ_ONLY
        .into_iter()
        .filter(|path| Path::new(path).exists())
    {
        mount_at(
            Some(path),
            path,
            None,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None,
        )?;
        remount_read_only(path)?;
    }
    for path in MASKED
        .into_iter()
        .map(Path::new)
        .filter(|path| path.exists())
    {
        let name = path.to_string_lossy();
        if path.is_dir() {
            mount_at(
                Some("tmpfs"),
                &name,
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                None,
            )?;
        } else {
            mount_at(Some("/dev/null"), &name, None, MsFlags::MS_BIND, None)?;
        }
    }
    Ok(())
}

/// Shared memory and message queues of the task's own; where the root has no place for them, none.
fn mount_ipc() -> Result<(), Failure> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if Path::new("/dev/shm").is_dir() {
        mount_at(
            Some("shm"),
            "/dev/shm",
            Some("tmpfs"),
            plain,
            Some("mode=1777,size=65536k"),
        )?;
    }
    if Path::new("/dev/mqueue").is_dir() {
        mount_at(Some("mqueue"), "/dev/mqueue", Some("mqueue"), plain, None)?;
    }
    Ok(())
}

/// Name, major and minor number: the devices of every container (OCI runtime spec).
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const DEV_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// An image's `/dev`; on the node's own root the node's serves.
fn mount_dev() -> Result<(), Failure> {
    let dev = Path::new("/dev");
    make_dir("/dev")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    mount_at(
        Some("tmpfs"),
        "/dev",
        Some("tmpfs"),
        flags,
        Some("mode=755,size=65536k"),
    )?;
    let everyone = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in DEVICES {
        mknod(
            &dev.join(name),
            SFlag::S_IFCHR,
            everyone,
            makedev(major, minor),
        )
        .or_fail(|| format!("make /dev/{name}"))?;
    }
    for (target, name) in DEV_LINKS {
        symlink(target, dev.join(name)).or_fail(|| format!("make /dev/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(name)).or_fail(|| format!("make /dev/{name}"))?;
    }
    let pts = "newinstance,ptmxmode=0666,mode=0620";
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(pts))
}

/// Sees to a file at `target` that can be mounted over.
fn place_file(root: &Root, target: &Path) -> io::Result<()> {
    if matches!(root, Root::Image(_)) {
        // An image may bring a link to nowhere here, as systemd's resolv.conf is one.
        if target.is_symlink() {
            fs::remove_file(target)?;
        }
        fs::create_dir_all(target.parent().expect("it lies in /etc"))?;
    }
    if target.exists() {
        return Ok(());
    }
    // On the node's own root this leaves an empty file, which says as much as none does.
    File::create(target).map(drop)
}

fn make_dir(path: &str) -> Result<(), Failure> {
    fs::create_dir_all(path).or_fail(|| format!("make {path}"))
}

fn remount_read_only(path: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_REC;
    mount_at(None, path, None, flags, None)
}

fn mount_at(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), Failure> {
    mount(source, target, kind, flags, options).or_fail(|| match kind {
        Some(kind) => format!("mount {kind} on {target}"),
        None => format!("mount {target}"),
    })
}
