//! Files that only the owner may read, whole or not at all.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

/// Writes a file with mode 0600, in a directory that exists.
///
/// # Errors
/// Names the path; what was there before stays.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        // Made with mode 0600.
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The file's content; `None` when there is none.
///
/// # Errors
/// Names the path.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Makes a directory with mode 0700, or gives one that mode.
///
/// # Errors
/// Names the path.
pub fn make_dir(path: &Path) -> Result<()> {
    let make = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
    };
    make().with_context(|| format!("cannot make {}", path.display()))
}
