//! Which view objects a change of the store may have touched, so that a session looks at those
//! alone.

use std::collections::BTreeSet;

use model::{EndpointId, NetworkId, NodeId, ServiceId, TaskId};
use store::{Change, Key, State};

use super::{is_meshed, ring_share, traffic};
use crate::presence::presence;

/// Names what has to be projected anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    Cluster,
    Peer(NodeId),
    Network(NetworkId),
    Service(ServiceId),
    /// A task and the endpoint that it has or had.
    Task {
        task: TaskId,
        endpoint: Option<EndpointId>,
    },
}

/// Everything but a node's own networks that `changes`, which led from `before` to `now`, can have
/// changed in any view. Which networks a node takes part in follows from its tasks, so a session
/// checks that when one of them is touched.
pub(crate) fn touched(before: &State, now: &State, changes: &[Change]) -> BTreeSet<Touch> {
    let mut touches = BTreeSet::new();
    for change in changes {
        match change.key() {
            Key::Cluster => drop(touches.insert(Touch::Cluster)),
            Key::Counters => {}
            Key::Network(id) => drop(touches.insert(Touch::Network(id))),
            Key::Node(id) => {
                touches.insert(Touch::Peer(id));
                let management = |state: &State| {
                    let node = state.node(id);
                    node.map(|node| (node.spec.role, node.manager))
                };
                if management(before) != management(now) {
                    touches.insert(Touch::Cluster);
                }
                let labels = |state: &State| Some(state.node(id)?.spec.labels.clone());
                let is_where_it_was = presence(before, id) == presence(now, id);
                if !is_where_it_was || labels(before) != labels(now) {
                    touch_tasks(
                        &mut touches,
                        now.tasks_of_node(id).map(|task| task.id),
                        before,
                        now,
                    );
                }
            }
            Key::Service(id) => {
                touches.insert(Touch::Service(id));
                let meshed = |state: &State| state.service(id).is_some_and(|s| is_meshed(s));
                let weight = |state: &State| traffic(state.service(id)?).weight;
                if meshed(before) != meshed(now) || weight(before) != weight(now) {
                    let tasks = now.tasks_of_service(id).map(|task| task.id);
                    touch_tasks(&mut touches, tasks, before, now);
                }
            }
            Key::Task(id) => {
                touch_tasks(&mut touches, std::iter::once(id), before, now);
                let either = [now, before].into_iter().find_map(|state| state.task(id));
                // Where it runs, the node needs the service.
                if let Some(task) = either.filter(|task| !task.host_ports.is_empty()) {
                    touches.insert(Touch::Service(task.service));
                }
            }
        }
    }
    touches
}

/// Whether any of these tasks came to its service's rings, went from them, or weighs otherwise.
pub(crate) fn moves_rings(
    before: &State,
    now: &State,
    mut tasks: impl Iterator<Item = TaskId>,
) -> bool {
    tasks.any(|task| ring_share(before, task) != ring_share(now, task))
}

fn touch_tasks(
    touches: &mut BTreeSet<Touch>,
    tasks: impl Iterator<Item = TaskId>,
    before: &State,
    now: &State,
) {
    touches.extend(tasks.map(|task| {
        Touch::Task {
            task,
            // Given once and never changed, so either state knows it.
            endpoint: [now, before]
                .iter()
                .find_map(|state| state.task(task).and_then(|task| task.endpoint)),
        }
    }));
}
