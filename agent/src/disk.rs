//! Small files that must be whole after a crash: written aside, synced where need be, renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct DiskError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Replaces the file's content, mode 0600, so that it outlives the machine's end.
///
/// # Errors
/// Names the path; the old content stays.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    replace(path, content, File::sync_all)?;
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| write_error(path, source))
}

/// Replaces the file's content, mode 0600, so that it outlives this process. The machine's end may
/// leave the old content, or none.
///
/// # Errors
/// Names the path; the old content stays.
pub fn write_lazily(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    replace(path, content, |_| Ok(()))
}

fn write_error(path: &Path, source: io::Error) -> DiskError {
    DiskError {
        action: "write",
        path: path.to_owned(),
        source,
    }
}

fn replace(
    path: &Path,
    content: &[u8],
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), DiskError> {
    let fail = |source| write_error(path, source);
    let aside = path.with_extension("new");
    let parent = path.parent().unwrap_or(Path::new("."));
    make_dir(parent)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .map_err(fail)?;
    file.write_all(content)
        .and_then(|()| sync(&file))
        .map_err(fail)?;
    fs::rename(&aside, path).map_err(fail)
}

/// The file's content, or `None` when there is none.
///
/// # Errors
/// Names the path.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes a file that may be absent.
///
/// # Errors
/// Names the path.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(DiskError {
            action: "remove",
            path: path.to_owned(),
            source: err,
        }),
        _ => Ok(()),
    }
}

/// Makes a directory of mode 0700 with its parents.
///
/// # Errors
/// Names the path.
pub fn make_dir(path: &Path) -> Result<(), DiskError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DiskError {
            action: "create",
            path: path.to_owned(),
            source,
        })
}
