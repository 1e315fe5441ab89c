//! What a backup of a manager holds: all that makes another machine this manager, in the form of its
//! state directory. What belongs to the machine (tasks, the last view) is not in it: the cluster tells
//! it anew.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::Path,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use store::Store;
use tar::{Builder, EntryType, Header};

use super::config::DaemonConfig;

/// A tar archive, at its beginning, in a file without a name.
///
/// # Errors
/// Names what cannot be read or written.
pub async fn archive(config: &DaemonConfig, store: &Store) -> Result<File> {
    // On the disk of the manager: memory is dearer.
    let unnamed = || tempfile::tempfile_in(&config.state_dir).context("cannot make a file");
    let (mut log, archive) = (unnamed()?, unnamed()?);
    store.copy_to(log.try_clone()?).await?;
    log.rewind()?;
    let state_dir = config.state_dir.clone();
    let packed = tokio::task::spawn_blocking(move || pack(&state_dir, log, archive)).await?;
    packed.context("cannot write the backup")
}

fn pack(state_dir: &Path, mut log: File, archive: File) -> Result<File> {
    let mut tar = Builder::new(archive);
    let mut keep = |path: &str| -> Result<()> {
        let content =
            fs::read(state_dir.join(path)).with_context(|| format!("cannot read {path}"))?;
        Ok(append(&mut tar, path, content.len() as u64, &content[..])?)
    };
    keep("member.json")?;
    // A renewal writes the roots first, so a certificate that was read before them fits.
    keep("certificates/node.pem")?;
    keep("certificates/root.pem")?;
    keep("manager/data.key")?;
    let len = log.metadata()?.len();
    append(&mut tar, "manager/store.redb", len, &mut log)?;
    let mut archive = tar.into_inner()?;
    archive.rewind()?;
    Ok(archive)
}

fn append(tar: &mut Builder<File>, path: &str, len: u64, content: impl Read) -> io::Result<()> {
    if let Some((dir, _)) = path.rsplit_once('/') {
        tar.append_data(
            &mut header(EntryType::Directory, 0o700, 0),
            dir,
            io::empty(),
        )?;
    }
    tar.append_data(&mut header(EntryType::Regular, 0o600, len), path, content)
}

/// Of root's.
fn header(kind: EntryType, mode: u32, len: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(Timestamp::now().as_second()).unwrap_or_default());
    header
}
