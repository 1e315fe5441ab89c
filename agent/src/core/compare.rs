//! Comparing the node with what it should be, and repairing it. What is wrong with one thing hinders no
//! other, and each thing that others altered is one line of the log.

use anyhow::Result;
use datapath::{Deviation, LocalTask};
use model::TaskId;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Core;
use crate::{links, network, repair::Repairs};

const WHY_PROGRAMS: &str = "the node's traffic goes through it";
const WHY_PINS: &str = "the next agent takes over what runs by its pins";
const WHY_MAPS: &str = "the programs send packets by it, and the managers' view says otherwise";

impl Core {
    /// [`Core::compare`] before its time, as the kernel told of a change.
    pub(super) async fn compare_early(&mut self) {
        let begun = Instant::now();
        self.haste.begin();
        self.compare_by(true).await;
        self.haste.took(begun.elapsed());
    }

    /// Compares the node with what it should be, and repairs.
    pub(super) async fn compare(&mut self) {
        self.compare_by(false).await;
    }

    async fn compare_by(&mut self, is_hastened: bool) {
        let mut repairs = Repairs::of_comparison(is_hastened);
        if let Err(err) = self.compare_links(&mut repairs).await {
            error!("cannot repair the node's links: {err:#}");
        }
        if let Err(err) = self.compare_reassembly(&mut repairs).await {
            error!("cannot repair what puts fragments in order: {err:#}");
        }
        repairs.log(None);
        for task in self.local.tasks.keys().copied().collect::<Vec<_>>() {
            if let Err(err) = self.compare_task(task, &mut repairs).await {
                error!(task.id = %task, "cannot repair the task's network: {err:#}");
            }
            repairs.log(Some(task));
        }
        if let Err(err) = self.compare_programs(&mut repairs) {
            error!("cannot repair the programs of the data plane: {err:#}");
        }
        let masquerade = self.masquerade.ensure(None, &mut repairs);
        if let Err(err) = masquerade.await {
            error!("cannot repair the way out for tasks: {err:#}");
        }
        if let Err(err) = self.compare_maps(is_hastened, &mut repairs) {
            error!("cannot bring the data plane in step: {err:#}");
        }
        repairs.log(None);
    }

    async fn compare_links(&mut self, repairs: &mut Repairs) -> Result<()> {
        if let Some(cluster) = &self.view.cluster {
            self.links_spec.data_port = cluster.data_path.port;
        }
        let links = links::ensure_node_links(&self.links_spec, repairs).await?;
        if links != self.links {
            info!(
                underlay.mtu = links.underlay_mtu,
                "the node's links or addresses changed"
            );
            self.local.vxlan_ifindex = links.vxlan_ifindex;
            self.local.uplink_ifindex = links.uplink_ifindex;
            self.local.underlay_mtu = links.underlay_mtu;
            self.underlay_mtu.send_replace(links.underlay_mtu);
            self.local.gateway_ifindex = links.gateway_ifindex;
            self.local.node_addrs = links.addrs.clone();
            self.links = links;
            self.hold_ports();
            self.is_in_step = false;
        }
        Ok(())
    }

    async fn compare_reassembly(&mut self, repairs: &mut Repairs) -> Result<()> {
        let mac = self.links.uplink_mac;
        let ifindex = self.reassembly.ensure(mac, repairs).await?;
        let former = std::mem::replace(&mut self.local.reassembly_ifindex, ifindex);
        if ifindex != 0 {
            let found = self.datapath.attach_reassembly(ifindex)?;
            // A device that was made anew has no program yet, as is told already.
            let on_known = found.into_iter().filter(|_| former == ifindex);
            repairs.extend(on_known, WHY_PROGRAMS);
        }
        if former != ifindex {
            self.is_in_step = false;
            self.detach_link(former);
        }
        Ok(())
    }

    async fn compare_task(&mut self, task: TaskId, repairs: &mut Repairs) -> Result<()> {
        let Some(network) = self.networks.get(&task) else {
            return Ok(());
        };
        let mtu = self.links.underlay_mtu;
        let local = network::mend(&self.context.paths, network, mtu, repairs).await?;
        let found = self.attach_links(&local)?;
        let former = self.local.tasks.insert(task, local.clone());
        let former: Vec<u32> = former.iter().flat_map(LocalTask::ifindexes).collect();
        // A device that was made anew has no program yet, as is told already.
        let on_known = found.into_iter().filter(|(on, _)| former.contains(on));
        repairs.extend(on_known.map(|(_, deviation)| deviation), WHY_PROGRAMS);
        for gone in former {
            if local.ifindexes().all(|now| now != gone) {
                self.is_in_step = false;
                self.detach_link(gone);
            }
        }
        Ok(())
    }

    fn compare_programs(&mut self, repairs: &mut Repairs) -> Result<()> {
        repairs.extend(self.datapath.ensure_pins()?, WHY_PINS);
        repairs.extend(self.datapath.attach_sockets()?, WHY_PROGRAMS);
        let vxlan = self.datapath.attach_vxlan(self.links.vxlan_ifindex)?;
        repairs.extend(vxlan, WHY_PROGRAMS);
        let uplink = self.datapath.attach_uplink(self.links.uplink_ifindex)?;
        repairs.extend(uplink, WHY_PROGRAMS);
        Ok(())
    }

    /// What a sync changes after a change of ours, or after one that failed, nobody had altered.
    fn compare_maps(&mut self, is_hastened: bool, repairs: &mut Repairs) -> Result<()> {
        if !self.is_in_step || self.owes_ack {
            return self.sync();
        }
        // Of maps the kernel tells nothing, and they are much to read.
        if is_hastened {
            return Ok(());
        }
        let (_, found) =
            tokio::task::block_in_place(|| self.datapath.repair(&self.view, &self.local))?;
        repairs.extend(found, WHY_MAPS);
        Ok(())
    }

    /// Puts the programs on the host sides of the task's interfaces; tells where one was not.
    pub(super) fn attach_links(&mut self, local: &LocalTask) -> Result<Vec<(u32, Deviation)>> {
        let mut found = Vec::new();
        for index in local.overlays.iter().map(|(_, veth)| veth.ifindex) {
            found.extend(with_index(index, self.datapath.attach_task(index)?));
        }
        let index = local.gateway.ifindex;
        found.extend(with_index(index, self.datapath.attach_gateway(index)?));
        Ok(found)
    }

    pub(super) fn detach_links(&mut self, local: &LocalTask) {
        local
            .ifindexes()
            .for_each(|ifindex| self.detach_link(ifindex));
    }

    fn detach_link(&mut self, ifindex: u32) {
        if let Err(err) = self.datapath.detach_veth(ifindex) {
            warn!(link.index = ifindex, "cannot take the programs off: {err}");
        }
    }
}

fn with_index(index: u32, found: Vec<Deviation>) -> impl Iterator<Item = (u32, Deviation)> {
    found.into_iter().map(move |one| (index, one))
}
