//! Debian's kernels, fetched as packages and unpacked, not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::Version;
use lab::progress::step;

use crate::setup::quiet;

/// An unpacked kernel.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    pub image: PathBuf,
    /// `…/lib/modules/<release>`.
    pub modules: PathBuf,
}

/// Of the cloud flavour, which is small and has all that virtual machines need.
const SUFFIX: &str = "-cloud-amd64-unsigned";

/// The kernel that was unpacked before, or the newest of this version that apt knows.
///
/// # Errors
/// When apt cannot deliver it.
pub fn ensure(version: Version) -> Result<Kernel> {
    let dir = version.dir().join("kernel");
    if !dir.exists() {
        step(
            &format!("fetching Debian's kernel {}", version.name()),
            || fetch(version, &dir),
        )
        .with_context(|| {
            format!(
                "the tests under kernel {0} need Debian's package linux-image-{0}.*{SUFFIX}, \
                 which `apt-get` could not fetch; check its sources and the network",
                version.name()
            )
        })?;
    }
    open(&dir).with_context(|| format!("{} is not whole; remove it", dir.display()))
}

fn fetch(version: Version, dir: &Path) -> Result<()> {
    let draft = dir.with_extension("draft");
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft)?;
    let package = match newest(version)? {
        Some(package) => package,
        None => {
            quiet(Command::new("apt-get").arg("update"))?;
            newest(version)?.context("apt knows no such package")?
        }
    };
    quiet(
        Command::new("apt-get")
            .current_dir(&draft)
            .args(["download", &package]),
    )?;
    let archive = only_entry(&draft, |name| name.ends_with(".deb"))?;
    quiet(Command::new("dpkg").arg("-x").args([&archive, &draft]))?;
    fs::remove_file(archive)?;
    Ok(fs::rename(draft, dir)?)
}

fn newest(version: Version) -> Result<Option<String>> {
    let prefix = format!("linux-image-{}.", version.name());
    let listed = Command::new("apt-cache")
        .args(["pkgnames", &prefix])
        .output()
        .context("cannot run apt-cache: the kernels are Debian's packages")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let of_flavour = listed.lines().filter(|name| name.ends_with(SUFFIX));
    Ok(of_flavour
        .max_by(|a, b| alphanumeric_sort::compare_str(a, b))
        .map(str::to_owned))
}

fn open(dir: &Path) -> Result<Kernel> {
    let modules = only_entry(&dir.join("lib/modules"), |_| true)?;
    let release = modules.file_name().context("a release has a name")?;
    let release = release.to_string_lossy().into_owned();
    let image = dir.join(format!("boot/vmlinuz-{release}"));
    ensure!(image.exists(), "{} is missing", image.display());
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

fn only_entry(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has not what was expected", dir.display())
}
