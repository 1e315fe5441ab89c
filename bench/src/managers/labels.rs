//! A write of a node's label by the API: read, and replace what was read, or be refused.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::api::Connection;

/// Who writes to one node's label, over one connection.
pub struct LabelWriter {
    api: Connection,
    node: String,
}

impl LabelWriter {
    /// # Errors
    /// When nobody listens.
    pub fn new(api: Connection, node: String) -> Self {
        Self { api, node }
    }

    /// The node as it is.
    ///
    /// # Errors
    /// As the API says.
    pub fn read(&mut self) -> Result<Value> {
        self.api.get(&format!("/nodes/{}", self.node))
    }

    /// Replaces `read`; returns when that is committed.
    ///
    /// # Errors
    /// As the API says, such as when it has changed since.
    pub fn write(&mut self, read: &Value, value: &str) -> Result<()> {
        let version = read["Version"]["Index"].as_u64().context("a version")?;
        let mut spec = read["Spec"].clone();
        let Some(spec_of_node) = spec.as_object_mut() else {
            bail!("node {} has no spec", self.node);
        };
        spec_of_node.insert("Labels".to_owned(), json!({"bench": value}));
        let path = format!("/nodes/{}/update?version={version}", self.node);
        self.api.post(&path, &spec).map(drop)
    }
}
