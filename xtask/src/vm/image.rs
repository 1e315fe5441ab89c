//! The initramfs: busybox, the tools that labs call, kernel modules, the binaries under test.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Version, kernel::Kernel, suite::Run};
use crate::{
    build::Binaries,
    setup::{self, quiet},
};

/// Tools of the host that the tests or the agent call, beside busybox's.
const TOOLS: &[&str] = &[
    "/usr/sbin/ip",
    "/usr/sbin/tc",
    "/usr/sbin/nft",
    "/usr/sbin/ethtool",
    "/usr/sbin/modprobe",
    "/usr/bin/nsenter",
    "/usr/bin/curl",
];
/// Some tests ask a node with it; it may be anywhere.
const DOCKER: &str = "docker";

/// Modules, below `kernel/`. The machine's kernel loads what it needs of them, as on any host.
const MODULES: &[&str] = &[
    "arch/x86/crypto",
    "crypto",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/vxlan",
    "fs/overlayfs",
    "lib",
    "net",
];

/// Directories of a merged `/usr`.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// How much slower than a real machine the emulated one is taken to be.
const DEADLINE_FACTOR: u32 = 10;

/// Makes the initramfs.
///
/// # Errors
/// Names what cannot be packed.
pub fn pack(
    version: Version,
    kernel: &Kernel,
    binaries: &Binaries,
    runs: &[Run],
) -> Result<PathBuf> {
    let image = Image::begin(version.dir().join("root"))?;
    image.copy_as(Path::new("/usr/bin/busybox"), Path::new("/usr/bin/busybox"))?;
    for tool in TOOLS {
        image.program(Path::new(tool))?;
    }
    if let Some(docker) = setup::find(DOCKER) {
        image.copy_as(&docker, &Path::new("/usr/bin").join(DOCKER))?;
        image.libraries(&docker)?;
    }
    image.modules(kernel)?;
    for binary in [&binaries.swarmnet, &binaries.whoami] {
        image.own_program(binary)?;
    }
    for run in runs {
        image.own_program(&run.binary)?;
    }
    image.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    image.text("etc/group", "root:x:0:\n")?;
    image.text("init", include_str!("init.sh"))?;
    image.text("tests.sh", &script(runs))?;
    image.finish(&version.dir().join("initramfs.cpio"))
}

/// What the machine's first process runs when all is set up.
fn script(runs: &[Run]) -> String {
    let mut script = format!("export SWARMNET_DEADLINE_FACTOR={DEADLINE_FACTOR}\n");
    for run in runs {
        let words = std::iter::once(run.binary.display().to_string()).chain(run.arguments.clone());
        let words: Vec<_> = words.map(|word| format!("'{word}'")).collect();
        script += &format!("run {} {}\n", run.name, words.join(" "));
    }
    script
}

/// A directory that becomes the machine's root.
struct Image {
    root: PathBuf,
}

impl Image {
    fn begin(root: PathBuf) -> Result<Self> {
        let _ = fs::remove_dir_all(&root);
        for directory in MERGED {
            fs::create_dir_all(root.join("usr").join(directory))?;
            symlink(format!("usr/{directory}"), root.join(directory))?;
        }
        for directory in [
            "dev", "proc", "sys", "run", "tmp", "etc", "root", "mnt", "var/lib",
        ] {
            fs::create_dir_all(root.join(directory))?;
        }
        Ok(Self { root })
    }

    /// Path in the image of what is at `path` in the machine.
    fn at(&self, path: &Path) -> Result<PathBuf> {
        let inside = self.root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(inside.parent().context("a file lies in a directory")?)?;
        Ok(inside)
    }

    fn copy_as(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.at(to)?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// A program of this system and the libraries it names, at the same paths.
    fn program(&self, path: &Path) -> Result<()> {
        self.copy_as(path, path)?;
        self.libraries(path)
    }

    /// A binary of ours, without its debug information, which is most of it.
    fn own_program(&self, path: &Path) -> Result<()> {
        let to = self.at(path)?;
        quiet(Command::new("strip").arg("-o").arg(to).arg(path))?;
        self.libraries(path)
    }

    fn libraries(&self, program: &Path) -> Result<()> {
        let listed = Command::new("ldd").arg(program).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
        let words = listed.split_whitespace();
        let paths: BTreeSet<_> = words.filter(|word| word.starts_with('/')).collect();
        for path in paths
            .into_iter()
            .map(|path| Path::new(path.trim_end_matches(':')))
        {
            if path != program && !self.at(path)?.exists() {
                self.copy_as(path, path)?;
            }
        }
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let to = Path::new("/usr/lib/modules").join(&kernel.release);
        let target = self.at(&to.join("kernel"))?;
        fs::create_dir_all(&target)?;
        for list in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            self.copy_as(&kernel.modules.join(list), &to.join(list))?;
        }
        for module in MODULES {
            let from = kernel.modules.join("kernel").join(module);
            // A single module may be compressed, by the name's look.
            let compressed = from.with_extension("ko.xz");
            let from = if from.exists() { from } else { compressed };
            let to = target.join(Path::new(module).parent().unwrap_or(Path::new("")));
            fs::create_dir_all(&to)?;
            quiet(Command::new("cp").arg("-r").arg(&from).arg(&to))?;
        }
        let mut depmod = Command::new("depmod");
        quiet(depmod.arg("-b").arg(&self.root).arg(&kernel.release))
    }

    /// A file that can be run as well as read.
    fn text(&self, path: &str, text: &str) -> Result<()> {
        let path = self.at(Path::new(path))?;
        fs::write(&path, text)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn finish(&self, archive: &Path) -> Result<PathBuf> {
        let status = Command::new("sh")
            .current_dir(&self.root)
            .args([
                "-c",
                "find . -print0 | cpio --null --create --format=newc --quiet",
            ])
            .stdin(Stdio::null())
            .stdout(File::create(archive)?)
            .status()
            .context("cannot run cpio")?;
        ensure!(status.success(), "cannot pack {}", archive.display());
        fs::remove_dir_all(&self.root)?;
        Ok(archive.to_owned())
    }
}
