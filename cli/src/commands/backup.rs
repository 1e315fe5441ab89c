//! `backup`: a copy of a manager's state, for the day that all managers are lost.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use tempfile::NamedTempFile;

use crate::client::{Client, Route};

#[derive(Debug, Args)]
pub struct Backup {
    /// Where it goes: a tar archive with mode 0600. One that exists is not replaced
    file: PathBuf,
}

impl Backup {
    /// The file gets its name when it is whole and on disk.
    pub async fn run(self, client: &Client) -> Result<()> {
        let path = &self.file;
        if path.symlink_metadata().is_ok() {
            bail!(exists(path));
        }
        let dir = path.parent().filter(|dir| *dir != Path::new(""));
        let dir = dir.unwrap_or(Path::new("."));
        let cannot = || format!("cannot write {}", path.display());
        // Made with mode 0600.
        let mut file = NamedTempFile::new_in(dir).with_context(cannot)?;
        let route = Route::new("swarmnet").segment("backup");
        let mut write = |chunk: &[u8]| file.write_all(chunk).with_context(cannot);
        client.download(route, &mut write).await?;
        file.as_file().sync_all().with_context(cannot)?;
        let kept = file.persist_noclobber(path).map_err(|err| err.error);
        match kept {
            Err(err) if err.kind() == ErrorKind::AlreadyExists => bail!(exists(path)),
            kept => drop(kept.with_context(cannot)?),
        }
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.with_context(cannot)?;
        println!(
            "This manager's state is in {}. So are the swarm's keys: let nobody else read it.",
            path.display()
        );
        Ok(())
    }
}

fn exists(path: &Path) -> String {
    format!(
        "{} exists and is not replaced: name another file",
        path.display()
    )
}
