//! Nodes: see the functions of the same names in [`super`].

use model::{
    NodeId, Version,
    object::{ManagerStatus, Node, NodeState, RaftId},
    spec::{NodeRole, NodeSpec},
};
use store::{Key, State, Transaction};

use super::{OpError, error::check_version};

pub fn update(
    tx: &mut Transaction,
    id: NodeId,
    version: Version,
    spec: NodeSpec,
    is_reachable: impl Fn(RaftId) -> bool,
) -> Result<(), OpError> {
    let node = find(tx.state(), id)?;
    check_version(&node.meta, version)?;
    if node.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker {
        check_demotion(tx.state(), &node, is_reachable)?;
    }
    tx.put(Node { spec, ..node })
        .map_err(|_| OpError::OutOfSequence)
}

pub fn remove(tx: &mut Transaction, id: NodeId, force: bool) -> Result<(), OpError> {
    let node = find(tx.state(), id)?;
    if node.role() == NodeRole::Manager {
        return Err(OpError::FailedPrecondition(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be \
             demoted to worker before removal"
        )));
    }
    if node.status.state == NodeState::Ready && !force {
        return Err(OpError::FailedPrecondition(format!(
            "node {id} is not down and can't be removed"
        )));
    }
    tx.remove(Key::Node(id));
    Ok(())
}

fn find(state: &State, id: NodeId) -> Result<Node, OpError> {
    let node = state.node(id);
    let node = node.ok_or_else(|| OpError::not_found("node", id))?;
    Ok(Node::clone(node))
}

/// Whether the managers can do without the node: those that are left must have a quorum among
/// themselves.
///
/// # Errors
/// Names who would be missing.
pub(crate) fn check_demotion(
    state: &State,
    node: &Node,
    is_reachable: impl Fn(RaftId) -> bool,
) -> Result<(), OpError> {
    let managers = state.nodes().filter(|other| {
        other.spec.role == NodeRole::Manager && other.manager.is_some() && other.id != node.id
    });
    let (up, down): (Vec<_>, Vec<_>) = managers.partition(|other| {
        let is_up = |manager: ManagerStatus| is_reachable(manager.raft);
        other.manager.is_some_and(is_up)
    });
    let left = up.len() + down.len();
    if left == 0 {
        return Err(OpError::FailedPrecondition(
            "attempting to demote the last manager of the swarm".to_owned(),
        ));
    }
    let quorum = left / 2 + 1;
    if up.len() >= quorum {
        return Ok(());
    }
    let down: Vec<_> = down
        .iter()
        .map(|node| format!("{} ({})", node.description.hostname, node.status.addr))
        .collect();
    Err(OpError::FailedPrecondition(format!(
        "can't remove manager {} from the swarm: this would result in a loss of quorum, as {left} \
         managers would be left, of which {quorum} are needed and {} can be reached; bring back {} \
         first",
        node.description.hostname,
        up.len(),
        down.join(", ")
    )))
}
