//! etcd, against which the benchmark measures writes: the one that is installed, or else Debian's, fetched as a
//! package and unpacked, not installed, so that no server starts by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use lab::progress::step;

use crate::{
    build::target_dir,
    setup::{self, quiet},
};

const PACKAGE: &str = "etcd-server";

/// `None`, with a line that says why, where there is none: the benchmark then measures ours alone.
pub fn find() -> Option<PathBuf> {
    if let Some(installed) = setup::find("etcd") {
        return Some(installed);
    }
    let dir = target_dir().join(PACKAGE);
    let binary = dir.join("usr/bin/etcd");
    if binary.exists() {
        return Some(binary);
    }
    let fetched = step(&format!("fetching Debian's {PACKAGE}"), || fetch(&dir));
    match fetched {
        Ok(()) => Some(binary),
        Err(error) => {
            println!("writes are measured without etcd: {PACKAGE} cannot be fetched: {error:#}");
            None
        }
    }
}

fn fetch(dir: &Path) -> Result<()> {
    let draft = dir.with_extension("draft");
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft)?;
    let mut download = Command::new("apt-get");
    download.current_dir(&draft).args(["download", PACKAGE]);
    if quiet(&mut download).is_err() {
        quiet(Command::new("apt-get").arg("update"))?;
        quiet(&mut download)?;
    }
    let archive = fs::read_dir(&draft)?
        .next()
        .context("apt-get left no package")??;
    quiet(
        Command::new("dpkg")
            .arg("-x")
            .args([&archive.path(), &draft]),
    )?;
    fs::remove_file(archive.path())?;
    Ok(fs::rename(draft, dir)?)
}
