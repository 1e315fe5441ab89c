//! Comparing the node with what it should be, and repairing it. What is wrong with one thing hinders no
//! other, and each thing that others altered is one line of the log.

use std::{collections::VecDeque, future, time::Duration};

use anyhow::Result;
use datapath::{Deviation, LocalTask, Sight};
use model::TaskId;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Core;
use crate::{links, network, repair::Repairs};

const WHY_PROGRAMS: &str = "the node's traffic goes through it";
const WHY_PINS: &str = "the next agent takes over what runs by its pins";
const WHY_MAPS: &str = "the programs send packets by it, and the managers' view says otherwise";

/// One thing to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Links,
    Reassembly,
    Task(TaskId),
    Programs,
    Masquerade,
    Maps,
}

/// What is left of a comparison. It goes part by part, and whatever else the actor has to do goes in
/// between: a change waits for one part at most, however many tasks there are.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    parts: VecDeque<Part>,
    repairs: Repairs,
    is_hastened: bool,
    /// So far.
    took: Duration,
}

impl Comparison {
    fn new(is_hastened: bool, tasks: impl Iterator<Item = TaskId>) -> Self {
        let before = [Part::Links, Part::Reassembly].into_iter();
        let after = [Part::Programs, Part::Masquerade, Part::Maps];
        Self {
            parts: before.chain(tasks.map(Part::Task)).chain(after).collect(),
            repairs: Repairs::of_comparison(is_hastened),
            is_hastened,
            took: Duration::ZERO,
        }
    }

    pub fn is_over(&self) -> bool {
        self.parts.is_empty()
    }

    /// Comes at once while there is something to compare. Cancel-safe.
    pub async fn goes_on(&self) {
        if self.is_over() {
            future::pending().await
        }
    }
}

impl Core {
    /// Has the node compared with what it should be, and repaired; before its time, where the kernel
    /// told of a change.
    pub(super) fn begin_comparison(&mut self, is_hastened: bool) {
        if is_hastened {
            self.haste.begin();
        }
        let tasks = self.local.tasks.keys().copied();
        self.comparison = Comparison::new(is_hastened, tasks);
    }

    /// The comparison's next part.
    pub(super) async fn compare_next(&mut self) {
        let Some(part) = self.comparison.parts.pop_front() else {
            return;
        };
        let begun = Instant::now();
        let mut repairs = std::mem::take(&mut self.comparison.repairs);
        self.compare_part(part, &mut repairs).await;
        self.comparison.repairs = repairs;
        self.comparison.took += begun.elapsed();
        if self.comparison.is_over() && self.comparison.is_hastened {
            self.haste.took(self.comparison.took);
        }
    }

    async fn compare_part(&mut self, part: Part, repairs: &mut Repairs) {
        let (outcome, what) = match part {
            Part::Links => (self.compare_links(repairs).await, "the node's links"),
            Part::Reassembly => {
                let outcome = self.compare_reassembly(repairs).await;
                (outcome, "what puts fragments in order")
            }
            Part::Task(task) => (self.compare_task(task, repairs).await, "the task's network"),
            Part::Programs => {
                let outcome = self.compare_programs(repairs);
                (outcome, "the programs of the data plane")
            }
            Part::Masquerade => {
                let outcome = self.masquerade.ensure(None, repairs).await;
                (outcome.map_err(Into::into), "the way out for tasks")
            }
            Part::Maps => (self.compare_maps(), "the maps of the data plane"),
        };
        let task = match part {
            Part::Task(task) => Some(task),
            _ => None,
        };
        if let Err(err) = outcome {
            let id = task.map(tracing::field::display);
            error!(task.id = id, "cannot repair {what}: {err:#}");
        }
        repairs.log(task);
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
    fn compare_maps(&mut self) -> Result<()> {
        if !self.is_in_step || self.owes_ack {
            return self.sync();
        }
        // Of maps the kernel tells nothing, and they are much to read.
        if !self.comparison.is_hastened
            && self.look.is_idle()
            && let Some(look) = self.datapath.look()
        {
            self.look.begin(|| look.take());
        }
        Ok(())
    }

    /// Repairs the maps, if the look at them saw that others altered them.
    pub(super) fn heed(&mut self, sight: Result<Sight>) {
        let mut repairs = Repairs::of_comparison(false);
        if let Err(err) = self.repair_maps(sight, &mut repairs) {
            error!("cannot repair the maps of the data plane: {err:#}");
        }
        repairs.log(None);
    }

    fn repair_maps(&mut self, sight: Result<Sight>, repairs: &mut Repairs) -> Result<()> {
        // Else what is to be done is known, and not of others' making.
        if self.datapath.is_altered(&sight?) && self.is_in_step {
            let repaired = || self.datapath.repair(&self.view, &self.local);
            let (_, found) = tokio::task::block_in_place(repaired)?;
            repairs.extend(found, WHY_MAPS);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each step of the actor takes one part, with whatever else there is to do in between.
    #[test]
    fn comparison_goes_part_by_part() {
        let tasks = [1, 2].map(TaskId::from_raw);
        let mut comparison = Comparison::new(false, tasks.into_iter());
        let mut parts = Vec::new();
        while !comparison.is_over() {
            parts.extend(comparison.parts.pop_front());
        }
        let [first, second] = tasks.map(Part::Task);
        let (before, after) = (
            [Part::Links, Part::Reassembly],
            [Part::Programs, Part::Masquerade, Part::Maps],
        );
        assert_eq!(parts, [&before[..], &[first, second], &after].concat());
    }
}
