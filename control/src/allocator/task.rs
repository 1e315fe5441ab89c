//! What a task gets: an address on each of its networks, and an endpoint id.

use std::sync::Arc;

use model::{
    TaskState,
    object::{Attachment, Task},
};
use store::{State, Transaction};

use super::{AddressBook, AllocateError};

/// Tasks served in one transaction.
const TASKS_MAX: usize = 500;

const MESSAGE: &str = "pending task scheduling";

/// Serves tasks that have no addresses yet, oldest first. One that cannot be served says why in its
/// status and is tried again at the next change: nothing is free before an object goes.
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
    waiting.sort_by_key(|task| (task.meta.created, task.slot, task.id));
    let mut book = AddressBook::of(tx.state());
    let mut served = 0;
    for task in waiting {
        if served == TASKS_MAX {
            break;
        }
        served += usize::from(serve(tx, &mut book, &task));
    }
    book.save_cursors(tx);
}

fn is_waiting(task: &Task) -> bool {
    task.endpoint.is_none()
        && task.status.state <= TaskState::Pending
        && task.desired <= TaskState::Running
}

/// Whether anything was written.
fn serve(tx: &mut Transaction, book: &mut AddressBook, task: &Arc<Task>) -> bool {
    let mut next = Task::clone(task);
    match attach(tx.state(), book, task) {
        Ok(attachments) => {
            next.attachments = attachments;
            next.endpoint = Some(tx.allocate_endpoint_id());
            next.status.err = None;
        }
        Err(error) => next.status.err = Some(error.to_string()),
    }
    next.status.state = TaskState::Pending;
    next.status.message = MESSAGE.to_owned();
    if next == **task {
        return false;
    }
    next.status.timestamp = tx.now();
    tx.put(next).expect("read in this transaction");
    true
}

/// An address on every network of the task, or none taken at all.
fn attach(
    state: &State,
    book: &mut AddressBook,
    task: &Task,
) -> Result<Vec<Attachment>, AllocateError> {
    let next = |network| {
        let network = state
            .network(network)
            .ok_or(AllocateError::UnknownNetwork(network))?;
        let wanted = || format!("a task of service {}", task.service_name);
        Ok(Attachment {
            network: network.id,
            addr: book.next(network, wanted)?,
            prefix_len: network.subnet.prefix_len(),
        })
    };
    // A network is named but once in a spec, so each of these is a different address.
    let wanted = task.spec.networks.iter().map(|wanted| wanted.network);
    let attachments: Vec<_> = wanted.map(next).collect::<Result<_, AllocateError>>()?;
    for attachment in &attachments {
        book.hand_out(attachment.network, attachment.addr);
    }
    Ok(attachments)
}
