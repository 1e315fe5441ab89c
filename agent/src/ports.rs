//! Published ports are held on the node, so that no process takes one that the programs serve.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use model::{feed::NodeView, spec::Protocol};
use tracing::warn;

use crate::netns::reserve_port;

/// The ports held. A port that a process had first is tried again at each update.
#[derive(Debug, Default)]
pub struct PortHolder {
    held: BTreeMap<(Protocol, u16), OwnedFd>,
}

impl PortHolder {
    pub fn update(&mut self, view: &NodeView) {
        let wanted: std::collections::BTreeSet<_> = view
            .services
            .values()
            .flat_map(|service| &service.ports)
            .map(|port| (port.protocol, port.published))
            .collect();
        self.held.retain(|port, _| wanted.contains(port));
        for (protocol, port) in wanted {
            if self.held.contains_key(&(protocol, port)) {
                continue;
            }
            match reserve_port(protocol, port) {
                Ok(Some(socket)) => drop(self.held.insert((protocol, port), socket)),
                Ok(None) => {}
                Err(err) => warn!(port.number = port, port.protocol = %protocol,
                    "published port is taken by a process of this node, which gets no packets \
                     from outside while the service publishes it: {err}"),
            }
        }
    }
}
