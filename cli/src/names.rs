//! Names for the ids of nodes and services, as listings show them.

use std::collections::HashMap;

use anyhow::Result;
use bollard_stubs::models::{Node, Service};

use crate::client::{Client, ClientError, Filters};

/// Looked up once for a command. An id without a name stands for itself.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn load(client: &Client) -> Result<Self, ClientError> {
        let nodes = client.nodes(&Filters::default()).await?;
        let services = client.services(&Filters::default()).await?;
        Ok(Self::of(&nodes, &services))
    }

    pub fn of(nodes: &[Node], services: &[Service]) -> Self {
        let nodes = nodes
            .iter()
            .map(|node| (node.id.clone(), Some(node_name(node).to_owned())));
        let services = services.iter().map(|service| {
            let spec = service.spec.as_ref();
            (service.id.clone(), spec.and_then(|spec| spec.name.clone()))
        });
        Self(
            nodes
                .chain(services)
                .filter_map(|(id, name)| Some((id?, name.filter(|name| !name.is_empty())?)))
                .collect(),
        )
    }

    pub fn get<'a>(&'a self, id: &'a str) -> &'a str {
        self.0.get(id).map_or(id, String::as_str)
    }
}

/// The name a user gave the node, else its hostname.
pub fn node_name(node: &Node) -> &str {
    let given = node.spec.as_ref().and_then(|spec| spec.name.as_deref());
    let hostname = || node.description.as_ref()?.hostname.as_deref();
    given
        .filter(|name| !name.is_empty())
        .or_else(hostname)
        .unwrap_or_default()
}
