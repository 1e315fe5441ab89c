//! The last view on disk: with it a restarted agent acts before any manager is reached.

use std::path::{Path, PathBuf};

use anyhow::Result;
use model::{codec, feed::NodeView};
use tracing::warn;

use crate::disk::{self, DiskError};

pub struct ViewFile(PathBuf);

impl ViewFile {
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("view"))
    }

    /// Whether an agent has been here before.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// The view of the agent before; an empty one when there is none or it is unreadable: the
    /// managers give a fresh one.
    ///
    /// # Errors
    /// When the file cannot be read at all.
    pub fn load(&self) -> Result<NodeView> {
        let Some(bytes) = disk::read(&self.0)? else {
            return Ok(NodeView::default());
        };
        Ok(codec::decode(&bytes).unwrap_or_else(|err| {
            warn!("the view on disk is unreadable, the managers give a fresh one: {err}");
            NodeView::default()
        }))
    }

    /// For an agent after this one, not for the time after the machine's end, when no task runs and no
    /// map is left: so no change waits for the disk.
    ///
    /// # Errors
    /// Names the path; the old view stays.
    pub fn save(&self, view: &NodeView) -> Result<(), DiskError> {
        disk::write_lazily(&self.0, &codec::encode(view))
    }

    /// # Errors
    /// Names the path.
    pub fn remove(&self) -> Result<(), DiskError> {
        disk::remove(&self.0)
    }
}
