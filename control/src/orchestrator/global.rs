//! A task on every node that may have one.

use model::{
    TaskState,
    object::{Node, NodeState, Service},
    spec::Availability,
};

use super::{
    edit::Editor,
    slot::{SlotKey, Slots},
};
use crate::constraint;

/// Makes and removes slots until there is one on each eligible node; returns those that there are
/// to be. A paused node keeps its task and gets no new one.
pub(super) fn step(editor: &mut Editor<'_>, service: &Service, slots: &Slots) -> Vec<SlotKey> {
    let nodes: Vec<_> = editor.state().nodes().cloned().collect();
    let mut kept = Vec::new();
    for node in &nodes {
        let key = SlotKey::Node(node.id);
        let slot = slots.get(key);
        let is_occupied = slot.is_some_and(|slot| slot.is_occupied());
        if !may_stay(service, node) {
            let tasks = slot.map_or(&[][..], |slot| slot.tasks());
            tasks
                .iter()
                .for_each(|task| editor.want(task, TaskState::Shutdown));
        } else if is_occupied {
            kept.push(key);
        } else if may_come(node) && !editor.is_exhausted() {
            // One that was sent away may still be stopping there.
            editor.create(service, key, TaskState::Ready);
            kept.push(key);
        }
    }
    for (key, slot) in slots.iter() {
        let is_node = matches!(key, SlotKey::Node(id) if editor.state().node(*id).is_some());
        if !is_node {
            for task in slot.tasks() {
                editor.want(task, TaskState::Remove);
            }
        }
    }
    kept
}

fn may_stay(service: &Service, node: &Node) -> bool {
    node.status.state != NodeState::Down
        && node.spec.availability != Availability::Drain
        && constraint::all_match(&service.spec.task.placement, node)
}

fn may_come(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}
