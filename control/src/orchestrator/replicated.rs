//! As many slots as the user wants replicas.

use std::collections::{BTreeMap, HashMap};

use model::{NodeId, TaskState, object::Service};

use super::{
    edit::Editor,
    slot::{Slot, SlotKey, Slots},
};

/// Makes and removes slots until there are `replicas`; returns those that there are to be.
pub(super) fn step(
    editor: &mut Editor<'_>,
    service: &Service,
    slots: &Slots,
    replicas: u64,
) -> Vec<SlotKey> {
    let occupied: BTreeMap<SlotKey, &Slot> = slots
        .iter()
        .filter(|(_, slot)| slot.is_occupied())
        .map(|(key, slot)| (*key, slot))
        .collect();
    let mut kept = keep(&occupied, replicas);
    remove_others(editor, slots, &kept);
    add(editor, service, replicas, &mut kept);
    kept
}

/// Those that stay when there are more than `replicas`: running ones before others, and from each
/// node alike, so that the node with most of them loses first.
fn keep(occupied: &BTreeMap<SlotKey, &Slot>, replicas: u64) -> Vec<SlotKey> {
    let mut on_node: HashMap<Option<NodeId>, usize> = HashMap::new();
    let mut ranked: Vec<(bool, usize, SlotKey)> = Vec::with_capacity(occupied.len());
    let (running, others): (Vec<_>, Vec<_>) = occupied
        .iter()
        .partition(|(_, slot)| slot.running().is_some());
    for (key, slot) in running.into_iter().chain(others) {
        let task = slot.running().or_else(|| slot.alive().next());
        let before = on_node.entry(task.and_then(|task| task.node)).or_default();
        ranked.push((slot.running().is_none(), *before, *key));
        *before += 1;
    }
    ranked.sort();
    let stay = usize::try_from(replicas).unwrap_or(usize::MAX);
    let mut kept: Vec<SlotKey> = ranked
        .into_iter()
        .map(|(_, _, key)| key)
        .take(stay)
        .collect();
    kept.sort();
    kept
}

/// Also the history of slots that are no more.
fn remove_others(editor: &mut Editor<'_>, slots: &Slots, kept: &[SlotKey]) {
    for (key, slot) in slots.iter() {
        if editor.is_exhausted() {
            return;
        }
        if kept.binary_search(key).is_err() {
            for task in slot.tasks() {
                editor.want(task, TaskState::Remove);
            }
        }
    }
}

/// Fills the lowest free numbers.
fn add(editor: &mut Editor<'_>, service: &Service, replicas: u64, kept: &mut Vec<SlotKey>) {
    let missing = replicas.saturating_sub(kept.len() as u64);
    let free = (1..).map(SlotKey::Number);
    let free = free.filter({
        let kept = kept.clone();
        move |key| kept.binary_search(key).is_err()
    });
    for (key, _) in free.zip(0..missing) {
        if editor.is_exhausted() {
            break;
        }
        editor.create(service, key, TaskState::Running);
        kept.push(key);
    }
    kept.sort();
}
