//! Who writes and reads registers, at whichever host. A register is the name of a node.

use std::{cell::RefCell, rc::Rc, time::Duration};

use model::{
    NodeId,
    object::{Meta, Node, NodeDescription, NodeState, NodeStatus},
    spec::NodeSpec,
};
use rand::RngExt;
use tokio::time::{Instant, sleep};

use super::{
    Shared,
    history::{Heard, History, Value},
    world::World,
};
use crate::{State, Store, WriteError};

/// Registers that are in use at one time.
const REGISTERS: u64 = 2;
/// Operations until others take their place: the checker's work grows fast with those on one.
const OPERATIONS: u64 = 48 * REGISTERS;
const PAUSE_MILLIS: std::ops::Range<u64> = 5..80;
const WRITES: f64 = 0.6;

/// One that takes no part in the history.
fn last(act: u8) -> NodeId {
    NodeId::from_raw(u128::MAX - u128::from(act))
}

/// One operation after the other, until `until`.
pub(super) async fn client(world: Shared<World>, history: Shared<History>, until: Instant) {
    while Instant::now() < until {
        let pause = world.borrow_mut().random.random_range(PAUSE_MILLIS);
        sleep(Duration::from_millis(pause)).await;
        let (store, writes, register) = {
            let mut world = world.borrow_mut();
            let former = history.borrow().len() / OPERATIONS * REGISTERS;
            let register = former + world.random.random_range(0..REGISTERS);
            let writes = world.random.random_bool(WRITES);
            (world.asked(), writes, register)
        };
        match store {
            Some(store) if writes => write(&world, &history, &store, register).await,
            Some(store) => read(&history, &store, register).await,
            None => {}
        }
    }
}

async fn write(
    world: &Shared<World>,
    history: &Rc<RefCell<History>>,
    store: &Store,
    register: u64,
) {
    let value = history.borrow().len() + 1;
    let begun = history.borrow_mut().begin_write(register, value);
    let id = NodeId::from_raw(register.into());
    let written = store.write(|tx| {
        let endpoint = tx.allocate_endpoint_id();
        let stored = tx.state().node(id);
        let mut node = stored.map_or_else(|| blank(id), |node| Node::clone(node));
        node.spec.name = Some(value.to_string());
        tx.put(node).map(|()| endpoint)
    });
    match written.await {
        Ok((endpoint, version)) => {
            history.borrow_mut().end(begun, Heard::Wrote);
            let invariants = &mut world.borrow_mut().invariants;
            invariants.acknowledged(version, id, value, endpoint);
        }
        Err(WriteError::InDoubt { .. } | WriteError::Store(_)) => {}
        Err(
            WriteError::Refused(_)
            | WriteError::Stale(_)
            | WriteError::Superseded(_)
            | WriteError::NotLeader { .. }
            | WriteError::NoQuorum { .. },
        ) => history.borrow_mut().end(begun, Heard::Refused),
    }
}

async fn read(history: &RefCell<History>, store: &Store, register: u64) {
    let begun = history.borrow_mut().begin_read(register);
    let heard = match store.read().await {
        Ok(state) => Heard::Read(value(&state, register)),
        Err(_) => Heard::Refused,
    };
    history.borrow_mut().end(begun, heard);
}

fn value(state: &State, register: u64) -> Value {
    let node = state.node(NodeId::from_raw(register.into()))?;
    let name = node.spec.name.as_deref()?;
    Some(name.parse().expect("we wrote it"))
}

/// A write after all others of an act. What comes of it shows in the state.
pub(super) async fn write_last(leader: &Store, act: u8) {
    let _ = leader.write(|tx| tx.put(blank(last(act)))).await;
}

pub(super) fn is_last_written(state: &State, act: u8) -> bool {
    state.node(last(act)).is_some()
}

fn blank(id: NodeId) -> Node {
    Node {
        id,
        meta: Meta::new(jiff::Timestamp::UNIX_EPOCH),
        spec: NodeSpec::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: std::net::Ipv4Addr::LOCALHOST,
        },
        issuer: None,
        vtep: std::net::Ipv4Addr::LOCALHOST,
        manager: None,
    }
}
