//! Nodes: see the functions of the same names in [`super`].

use model::{
    NodeId, Version,
    object::{Node, NodeState},
    spec::{NodeRole, NodeSpec},
};
use store::{Key, State, Transaction};

use super::{OpError, error::check_version};

pub fn update(
    tx: &mut Transaction,
    id: NodeId,
    version: Version,
    spec: NodeSpec,
) -> Result<(), OpError> {
    let node = find(tx.state(), id)?;
    check_version(node.meta.version, version)?;
    check_role(tx.state(), &node, spec.role)?;
    tx.put(Node { spec, ..node })
        .map_err(|_| OpError::OutOfSequence)
}

pub fn remove(tx: &mut Transaction, id: NodeId, force: bool) -> Result<(), OpError> {
    let node = find(tx.state(), id)?;
    if node.spec.role == NodeRole::Manager {
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

fn check_role(state: &State, node: &Node, role: NodeRole) -> Result<(), OpError> {
    let managers = state
        .nodes()
        .filter(|node| node.spec.role == NodeRole::Manager);
    match (node.spec.role, role) {
        (old, new) if old == new => Ok(()),
        (NodeRole::Manager, _) if managers.count() == 1 => Err(OpError::FailedPrecondition(
            "attempting to demote the last manager of the swarm".to_owned(),
        )),
        _ => Err(OpError::Unimplemented(format!(
            "the role of node {} cannot be changed yet: this version runs one manager",
            node.id
        ))),
    }
}
