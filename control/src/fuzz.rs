//! What the fuzz target `report` looks at.

use std::{sync::Arc, time::Duration};

use model::{
    codec,
    feed::{AgentMessage, TaskStatusUpdate},
    object::Task,
    spec::RestartPolicy,
};

use crate::{dispatcher, fixture, sim::Sim};

/// For what waits in the managers: it is over then.
const LATER: Duration = Duration::from_secs(3600);

/// What agents say of their nodes and report of their tasks, message by message: the managers go on,
/// whatever it is.
pub fn check(data: &[u8]) {
    let Ok(messages) = codec::decode::<Vec<AgentMessage>>(data) else {
        return;
    };
    let mut sim = Sim::new(1, 2);
    let mut spec = fixture::service("web", 4, &[]);
    spec.endpoint.ports = vec![fixture::port(None, 80)];
    spec.task.restart = Some(RestartPolicy {
        max_attempts: 2,
        window: Some(LATER),
        ..RestartPolicy::default()
    });
    spec.task.resources.reserve_nano_cpus = Some(1_000_000);
    spec.task.resources.reserve_memory_bytes = Some(4 << 20);
    sim.create(spec);
    sim.settle();
    for message in messages {
        match message {
            AgentMessage::Hello(hello) => {
                let node = sim.nodes()[0];
                sim.change_node(node, |node| node.description = hello.description);
            }
            AgentMessage::Status { seq: _, statuses } => {
                for status in statuses {
                    report(&mut sim, status);
                }
            }
            _ => {}
        }
        sim.settle();
    }
    sim.world.now += LATER;
    sim.settle();
}

/// Of one of the tasks there are: ids are random, no input has them.
fn report(sim: &mut Sim, mut status: TaskStatusUpdate) {
    let mut tasks: Vec<Arc<Task>> = sim.world.state.tasks().cloned().collect();
    tasks.sort_by_key(|task| task.endpoint);
    let place = usize::try_from(status.task.raw() % 16).expect("it is below 16");
    let Some((task, node)) = tasks
        .get(place)
        .and_then(|task| Some((task.id, task.node?)))
    else {
        return;
    };
    status.task = task;
    sim.world
        .write(|tx| dispatcher::apply_statuses(tx, node, &[status]));
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("report", check);
}
