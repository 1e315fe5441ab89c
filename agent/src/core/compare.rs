//! Comparing the node with what it should be, and repairing it.

use anyhow::Result;
use datapath::LocalTask;
use tracing::{error, info, warn};

use super::Core;
use crate::{gateway, links, nat};

impl Core {
    /// Compares the node with what it should be, and repairs.
    pub(super) async fn compare(&mut self) {
        if let Err(err) = self.compare_links().await {
            error!("cannot repair the node's links: {err:#}");
        }
        if let Err(err) = self.sync() {
            error!("cannot bring the data plane in step: {err:#}");
        }
    }

    async fn compare_links(&mut self) -> Result<()> {
        if let Some(cluster) = &self.view.cluster {
            self.links_spec.data_port = cluster.data_path.port;
        }
        let links = links::ensure_node_links(&self.links_spec).await?;
        if links != self.links {
            info!(
                underlay.mtu = links.underlay_mtu,
                "the node's links or addresses changed"
            );
            if links.uplink_ifindex != self.links.uplink_ifindex {
                self.datapath.detach_uplink(self.links.uplink_ifindex)?;
            }
            self.local.vxlan_ifindex = links.vxlan_ifindex;
            self.local.uplink_ifindex = links.uplink_ifindex;
            self.local.underlay_mtu = links.underlay_mtu;
            self.underlay_mtu.send_replace(links.underlay_mtu);
            self.local.gateway_ifindex = links.gateway_ifindex;
            self.local.node_addrs = links.addrs.clone();
            self.links = links;
        }
        self.datapath.attach_vxlan(self.links.vxlan_ifindex)?;
        self.datapath.attach_uplink(self.links.uplink_ifindex)?;
        for local in self.local.tasks.values().cloned().collect::<Vec<_>>() {
            self.attach_links(&local)?;
        }
        Ok(nat::ensure_masquerade(gateway::subnet()).await?)
    }

    pub(super) fn attach_links(&mut self, local: &LocalTask) -> Result<()> {
        for (_, veth) in &local.overlays {
            self.datapath.attach_task(veth.ifindex)?;
        }
        Ok(self.datapath.attach_gateway(local.gateway.ifindex)?)
    }

    pub(super) fn detach_links(&mut self, local: &LocalTask) {
        let veths = local
            .overlays
            .iter()
            .map(|(_, veth)| veth)
            .chain([&local.gateway]);
        for veth in veths {
            if let Err(err) = self.datapath.detach_veth(veth.ifindex) {
                warn!(
                    link.index = veth.ifindex,
                    "cannot take the programs off: {err}"
                );
            }
        }
    }
}
