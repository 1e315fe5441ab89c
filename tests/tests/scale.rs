//! Open conversations while the service under them changes: a conversation goes on until its own
//! task stops.

use std::{fs, io};

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Conversation};

const CONVERSATIONS_PER_ENTRY: usize = 200;

/// Conversations through every node. One client must not come from one port by two nodes to one
/// task, so each node gets a range of its own.
fn begin(cluster: &Cluster) -> Result<Vec<Conversation>> {
    let mut open = Vec::new();
    for (node, first) in cluster.nodes().iter().zip((20_000..).step_by(10_000)) {
        let range = format!("{first} {}", first + 9_999);
        cluster
            .client()
            .within(|| Ok(fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)?))?;
        for _ in 0..CONVERSATIONS_PER_ENTRY {
            open.push(Conversation::begin(cluster.client(), (node.addr(), 8080))?);
        }
    }
    Ok(open)
}

/// Says something in each conversation; all must be echoed.
fn say(conversations: &mut [Conversation], words: &str) -> Result<()> {
    let broken: Vec<_> = conversations
        .iter_mut()
        .filter_map(|conversation| {
            let task = conversation.answer.task.clone();
            let error = conversation.say(words).err()?;
            Some(format!("with {task}: {error:#}"))
        })
        .collect();
    ensure!(
        broken.is_empty(),
        "{words}: {} of {} broke, the first {}",
        broken.len(),
        conversations.len(),
        broken[0]
    );
    Ok(())
}

#[test]
fn conversations_outlive_scaling_up_and_down_until_their_task_stops() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 1, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let mut open = begin(&cluster)?;
    for replicas in [2, 3] {
        let count = format!("web={replicas}");
        cluster
            .node(1)
            .cli(&["service", "scale", "--detach", &count])?;
        // While the change makes its way, and after it.
        loop {
            say(&mut open, "on the way")?;
            if cluster.tasks("web")?.len() == replicas {
                break;
            }
        }
        cluster.settle()?;
        say(&mut open, &count)?;
        open.extend(begin(&cluster)?);
    }

    let all: usize = open.len();
    cluster
        .node(1)
        .cli(&["service", "scale", "--detach", "web=1"])?;
    let left = wait_for("one task to be left", || {
        let tasks = cluster.tasks("web")?;
        let one = (tasks.len() == 1).then(|| tasks[0].clone());
        if let Some(task) = &one {
            let here = |conversation: &&mut Conversation| conversation.answer.task == task.hostname;
            for conversation in open.iter_mut().filter(here) {
                conversation.say("on the way down")?;
            }
        }
        Ok(one)
    })?;
    cluster.settle()?;
    let (mut with_it, mut others): (Vec<_>, Vec<_>) = open
        .into_iter()
        .partition(|conversation| conversation.answer.task == left.hostname);
    ensure!(
        with_it.len() < all,
        "all {all} conversations are with {left:?}"
    );
    say(&mut with_it, "one is left")?;
    wait_for("the others to be told of their tasks' end", || {
        others.retain_mut(|conversation| conversation.say("still there").is_ok());
        Ok(others.is_empty().then_some(()))
    })
    .context("conversations with tasks that stopped")?;

    cluster
        .node(1)
        .cli(&["service", "scale", "--detach", "web=0"])?;
    for node in cluster.nodes() {
        wait_for("connections to be refused at once", || {
            let outcome = Conversation::begin(cluster.client(), (node.addr(), 8080));
            let refused = outcome.err().is_some_and(|err| {
                let error = err.downcast_ref::<io::Error>();
                error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            });
            Ok(refused.then_some(()))
        })?;
    }
    wait_for("the last conversations to be told", || {
        with_it.retain_mut(|conversation| conversation.say("still there").is_ok());
        Ok(with_it.is_empty().then_some(()))
    })
}
