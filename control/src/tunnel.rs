//! Whose a tunnel address is. A node names its own, and what it says is not enough: others send to it
//! what is for that address, and believe what comes from there.

use std::net::Ipv4Addr;

use model::{
    NodeId,
    object::{Node, NodeState},
};
use store::{State, Transaction};
use tonic::Status;

/// Of a node that has yet to say which is its own, or whose address is another's now. It is nobody in
/// any view.
pub(crate) const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Refuses what no other node can send to.
pub(crate) fn usable(addr: Ipv4Addr) -> Result<Ipv4Addr, Status> {
    if addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() {
        return Err(Status::invalid_argument(format!(
            "{addr} is not the address of a node; name another with `--advertise-addr`"
        )));
    }
    Ok(addr)
}

/// What a node that joins has until its first session: the address that it names, unless some node has
/// had it. That one may be the same machine before, and is yet to be held for down.
pub(crate) fn of_joiner(state: &State, vtep: Ipv4Addr) -> Ipv4Addr {
    let is_taken = state.nodes().any(|node| node.vtep == vtep);
    if is_taken { NONE } else { vtep }
}

/// Makes sure that no other node has `vtep`. One that is down or left loses it: its machine may have
/// been installed anew, and is another node since.
///
/// # Errors
/// Names the node that has it.
pub(crate) fn claim(tx: &mut Transaction, node: NodeId, vtep: Ipv4Addr) -> Result<(), Status> {
    usable(vtep)?;
    let others = tx.state().nodes();
    let holders: Vec<_> = others
        .filter(|other| other.id != node && other.vtep == vtep)
        .cloned()
        .collect();
    if let Some(holder) = holders.iter().find(|holder| is_there(holder)) {
        return Err(Status::already_exists(format!(
            "the data path address {vtep} is that of node {} ({}): let this node join anew with a \
             `--data-path-addr` of its own, or, if it is the same machine, wait until node {} is down",
            holder.id, holder.description.hostname, holder.id
        )));
    }
    for holder in holders {
        let former = Node {
            vtep: NONE,
            ..Node::clone(&holder)
        };
        tx.put(former).expect("it was read in this transaction");
    }
    Ok(())
}

/// Whether the node may be reached, as far as the managers know. Who left is DOWN, too.
fn is_there(node: &Node) -> bool {
    node.status.state != NodeState::Down
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        fixture::{self, World},
        presence::{Presence, presence},
    };

    const ADDR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    /// A node that has [`ADDR`], and one that does not.
    fn world(state: NodeState) -> (World, NodeId, NodeId) {
        let (mut world, mut holder) = (World::new(), fixture::node("holder"));
        let other = fixture::node("other");
        holder.vtep = ADDR;
        holder.status.state = state;
        let ids = (holder.id, other.id);
        world.write(|tx| [holder, other].map(|node| tx.put(node).unwrap()));
        (world, ids.0, ids.1)
    }

    #[test]
    fn address_of_a_node_that_is_not_down_is_nobody_elses() {
        for state in [
            NodeState::Ready,
            NodeState::Unknown,
            NodeState::Disconnected,
        ] {
            let (mut world, holder, other) = world(state);
            let refused = world.try_write(|tx| claim(tx, other, ADDR)).unwrap_err();
            assert_eq!(refused.code(), Code::AlreadyExists);
            let (named, hostname) = (holder.to_string(), "(holder)");
            assert!(refused.message().contains(&named), "{refused}");
            assert!(refused.message().contains(hostname), "{refused}");
            world.try_write(|tx| claim(tx, holder, ADDR)).unwrap();
            assert_eq!(world.state.node(holder).unwrap().vtep, ADDR);
        }
    }

    #[test]
    fn who_takes_over_the_address_of_a_node_that_is_down_makes_it_nobody() {
        let (mut world, holder, other) = world(NodeState::Down);
        assert_eq!(presence(&world.state, holder), Presence::Down);
        world.try_write(|tx| claim(tx, other, ADDR)).unwrap();
        assert_eq!(world.state.node(holder).unwrap().vtep, NONE);
        assert_eq!(presence(&world.state, holder), Presence::Gone);
    }

    #[test]
    fn nobody_has_an_address_that_none_can_send_to() {
        let (mut world, _, other) = world(NodeState::Ready);
        for addr in [NONE, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
            let refused = world.try_write(|tx| claim(tx, other, addr)).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{addr}");
        }
    }

    #[test]
    fn joiner_has_no_address_that_a_node_has_had() {
        let (world, ..) = world(NodeState::Down);
        assert_eq!(of_joiner(&world.state, ADDR), NONE);
        let free = Ipv4Addr::new(192, 0, 2, 8);
        assert_eq!(of_joiner(&world.state, free), free);
    }
}
