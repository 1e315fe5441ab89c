//! Picks nodes for tasks that have their addresses: of the nodes that pass every filter, the one
//! with the fewest tasks of the service, then with the fewest tasks at all. A task that fits
//! nowhere says why and waits for the next change.

mod explain;
mod filter;
mod load;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use model::{
    NodeId, ServiceId, TaskState,
    object::{Node, Task},
};
use store::Transaction;

use explain::Refusals;
use filter::Demand;
use load::Cluster;

/// Tasks scheduled in one transaction.
const TASKS_MAX: usize = 500;

const ASSIGNED: &str = "scheduler assigned task to node";
const PENDING: &str = "pending task scheduling";

/// Assigns what can be assigned.
pub fn step(tx: &mut Transaction) {
    let mut waiting: Vec<Arc<Task>> = tx
        .state()
        .tasks()
        .filter(|task| is_waiting(task))
        .cloned()
        .collect();
    if waiting.is_empty() {
        return;
    }
    // Oldest first: endpoint ids only grow.
    waiting.sort_by_key(|task| task.endpoint);
    let mut cluster = Cluster::of(tx.state(), tx.now());
    let mut demands = HashMap::new();
    let mut written = 0;
    for task in waiting {
        if written == TASKS_MAX {
            break;
        }
        let demand = demand(&mut demands, &task);
        let decision = choose(&mut cluster, &demand, &task);
        written += usize::from(write(tx, &task, decision));
    }
}

fn is_waiting(task: &Task) -> bool {
    task.status.state == TaskState::Pending
        && task.endpoint.is_some()
        && task.desired <= TaskState::Running
}

type Demands = HashMap<(ServiceId, model::Version), Arc<Demand>>;

/// Alike for all tasks of one version of a service.
fn demand(demands: &mut Demands, task: &Task) -> Arc<Demand> {
    let demand = demands.entry((task.service, task.spec_version));
    Arc::clone(demand.or_insert_with(|| Arc::new(Demand::of(task))))
}

/// The node for the task, or why there is none. What is assigned counts for the next.
fn choose(cluster: &mut Cluster, demand: &Demand, task: &Task) -> Result<NodeId, String> {
    let mut refusals = Refusals::default();
    let groups = cluster.groups(demand);
    let best = cluster
        .nodes()
        .filter(|load| task.node.is_none_or(|wanted| wanted == load.node.id))
        .filter(
            |load| match filter::check(demand, load, task.node.is_some()) {
                Ok(()) => true,
                Err(refusal) => {
                    refusals.count(refusal);
                    false
                }
            },
        )
        .min_by_key(|load| (groups.rank(&load.node), load.rank(demand)))
        .map(|load| load.node.id);
    let best = best.ok_or_else(|| refusals.to_string())?;
    cluster.assign(best, demand);
    Ok(best)
}

/// Whether anything was written.
fn write(tx: &mut Transaction, task: &Arc<Task>, decision: Result<NodeId, String>) -> bool {
    let mut next = Task::clone(task);
    match decision {
        Ok(node) => {
            next.node = Some(node);
            next.status.state = TaskState::Assigned;
            next.status.message = ASSIGNED.to_owned();
            next.status.err = None;
        }
        Err(reason) => {
            next.status.message = PENDING.to_owned();
            next.status.err = Some(reason);
        }
    }
    if next == **task {
        return false;
    }
    next.status.timestamp = tx.now();
    tx.put(next).expect("read in this transaction");
    true
}

/// Whether the node takes new tasks at all.
fn takes_tasks(node: &Node) -> bool {
    use model::{object::NodeState, spec::Availability};
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}
