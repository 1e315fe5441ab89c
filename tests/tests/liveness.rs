//! What nodes find out of each other by themselves, before the managers decide anything.

use std::{
    iter,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Host, wait_for};
use swarmnet_tests::{Cluster, Conversation, Task, ask_tcp};

/// Begins a connection every so often, from its own thread in the client's namespace, and notes those
/// that did not come about.
struct Knocker {
    stop: Arc<AtomicBool>,
    knocks: Arc<Mutex<Vec<Knock>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
struct Knock {
    begun: Instant,
    succeeded: bool,
}

impl Knocker {
    const PAUSE: Duration = Duration::from_millis(10);
    /// Less than a SYN that is sent again takes.
    const PATIENCE: Duration = Duration::from_millis(500);

    fn start(from: &Host, to: (Ipv4Addr, u16)) -> Result<Self> {
        let (stop, knocks) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let thread = {
            let (stop, knocks) = (Arc::clone(&stop), Arc::clone(&knocks));
            let from = from.clone();
            std::thread::spawn(move || {
                from.within(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let to = SocketAddr::from(to);
                        let succeeded = TcpStream::connect_timeout(&to, Self::PATIENCE).is_ok();
                        knocks.lock().unwrap().push(Knock { begun, succeeded });
                        std::thread::sleep(Self::PAUSE);
                    }
                    Ok(())
                })
                .expect("the namespace is there");
            })
        };
        Ok(Self {
            stop,
            knocks,
            thread: Some(thread),
        })
    }

    /// Waits until so many in a row have succeeded that were begun after `since`, and tells when the
    /// last of the others was begun.
    fn succeed(&self, since: Instant) -> Result<Duration> {
        const IN_A_ROW: usize = 60;
        wait_for("new connections to succeed", || {
            let knocks = self.knocks.lock().unwrap();
            let after: Vec<_> = knocks.iter().filter(|knock| knock.begun >= since).collect();
            let row = after.iter().rev().take_while(|knock| knock.succeeded);
            if row.count() < IN_A_ROW {
                return Ok(None);
            }
            let failed = after.iter().rfind(|knock| !knock.succeeded);
            Ok(Some(
                failed.map_or(Duration::ZERO, |last| last.begun - since),
            ))
        })
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the leader's node thinks of another one, by probes.
fn doubt(cluster: &Cluster, number: usize) -> Result<Option<String>> {
    let rows = cluster.node(1).cli_json(&["inspect", "nodes"])?;
    let name = cluster.node(number).name();
    let row = rows.iter().find(|row| row["hostname"] == name);
    let row = row.context("the node is listed")?;
    Ok(row["doubt"].as_str().map(str::to_owned))
}

fn wait_for_doubt(cluster: &Cluster, number: usize, wanted: Option<&str>) -> Result<()> {
    wait_for(&format!("node {number} to be {wanted:?}"), || {
        let doubt = doubt(cluster, number)?;
        Ok((doubt.as_deref() == wanted).then_some(()))
    })
}

fn state(cluster: &Cluster, number: usize) -> Result<String> {
    let rows = cluster.node(1).cli_json(&["inspect", "nodes"])?;
    let name = cluster.node(number).name();
    let row = rows.iter().find(|row| row["hostname"] == name);
    let state = row.and_then(|row| row["state"].as_str());
    Ok(state.context("the node is listed")?.to_owned())
}

/// The node of the task that answers, one of `tasks`.
fn node_of(tasks: &[Task], conversation: &Conversation) -> Result<usize> {
    let task = &conversation.answer.task;
    let found = tasks.iter().find(|one| one.hostname == *task);
    Ok(found.context("a task of the service")?.node)
}

/// A connection by node `entry` to a task on a node that is wanted; others are closed again.
fn begin_at(
    cluster: &Cluster,
    tasks: &[Task],
    entry: usize,
    is_wanted: impl Fn(usize) -> bool,
) -> Result<Conversation> {
    for _ in 0..200 {
        let to = (cluster.node(entry).addr(), 8080);
        let conversation = Conversation::begin(cluster.client(), to)?;
        if is_wanted(node_of(tasks, &conversation)?) {
            return Ok(conversation);
        }
    }
    anyhow::bail!("no connection led to a wanted node")
}

#[test]
fn dead_node_gets_no_new_connections_before_managers_know() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 6, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let knockers = [1, 2].map(|entry| {
        let to = (cluster.node(entry).addr(), 8080);
        Knocker::start(cluster.client(), to)
    });
    let knockers = knockers.into_iter().collect::<Result<Vec<_>>>()?;
    for knocker in &knockers {
        knocker.succeed(Instant::now())?;
    }
    let died = Instant::now();
    cluster
        .node(3)
        .host()
        .ip(&["link", "set", "eth0", "down"])?;
    for (entry, knocker) in (1..).zip(&knockers) {
        let last = knocker.succeed(died)?;
        println!(
            "by node {entry}: the last new connection that failed began {last:?} after the death"
        );
    }
    assert_eq!(doubt(&cluster, 3)?.as_deref(), Some("suspected"));
    assert_eq!(
        state(&cluster, 3)?,
        "ready",
        "the managers have not decided yet"
    );
    Ok(())
}

/// Only the probes are lost: the hint is wrong. New flows go elsewhere, those from before go on, and
/// those from meanwhile do when the node is trusted again.
#[test]
fn connections_go_on_when_a_node_is_suspected_wrongly() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 6, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let mut open = Vec::new();
    for entry in [1, 2] {
        for node in 1..=3 {
            open.push(begin_at(&cluster, &tasks, entry, |at| at == node)?);
        }
    }
    deafen_node_3(&cluster, true)?;
    wait_for_doubt(&cluster, 3, Some("suspected"))?;
    say_all(&mut open, "suspected")?;
    for entry in [1, 2] {
        // Each node finds out by itself.
        wait_for("new connections to go elsewhere", || {
            Ok(all_avoid_node_3(&cluster, &tasks, entry)?.then_some(()))
        })?;
    }
    for _ in 0..10 {
        for entry in [1, 2] {
            open.push(begin_at(&cluster, &tasks, entry, |at| at != 3)?);
        }
    }
    say_all(&mut open, "opened meanwhile")?;
    deafen_node_3(&cluster, false)?;
    wait_for_doubt(&cluster, 3, Some("returning"))?;
    say_all(&mut open, "returning")?;
    begin_at(&cluster, &tasks, 1, |at| at == 3)?;
    wait_for_doubt(&cluster, 3, None)?;
    say_all(&mut open, "trusted")?;
    for entry in [1, 2] {
        begin_at(&cluster, &tasks, entry, |at| at == 3)?;
    }
    say_all(&mut open, "all the time")
}

/// Whether so many new connections by node `entry` all led to tasks elsewhere than on node 3.
fn all_avoid_node_3(cluster: &Cluster, tasks: &[Task], entry: usize) -> Result<bool> {
    for _ in 0..40 {
        let to = (cluster.node(entry).addr(), 8080);
        let answer = ask_tcp(cluster.client(), to)?;
        let task = tasks.iter().find(|task| task.hostname == answer.task);
        if task.context("a task of the service")?.node == 3 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Node 3 hears no probe and no answer any more, or all of them.
fn deafen_node_3(cluster: &Cluster, is_deaf: bool) -> Result<()> {
    drop_at(
        cluster,
        3,
        is_deaf,
        &[("input", "udp dport 7946".to_owned())],
    )
}

/// The node's kernel drops what fits one of these, at a hook, or nothing any more.
fn drop_at(cluster: &Cluster, node: usize, is_so: bool, rules: &[(&str, String)]) -> Result<()> {
    const TABLE: &str = "ip lost";
    let script = if is_so {
        let rules = rules.iter().map(|(hook, expression)| {
            format!(
                "add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}; \
                 add rule {TABLE} {hook} {expression} drop"
            )
        });
        let table = format!("add table {TABLE}");
        let commands: Vec<_> = iter::once(table).chain(rules).collect();
        commands.join("; ")
    } else {
        format!("delete table {TABLE}")
    };
    cluster.node(node).host().run("nft", &[&script])?;
    Ok(())
}

/// The next agent of the entry node knows nobody by itself: it goes on with what the one before found
/// out, as long as the node is silent, and until it has been back for long enough.
#[test]
fn doubts_outlive_the_agent_that_had_them() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 6, &["--publish", "8080:80"])?;
    cluster.settle()?;
    deafen_node_3(&cluster, true)?;
    wait_for("new connections to go elsewhere", || {
        Ok(all_avoid_node_3(&cluster, &tasks, 2)?.then_some(()))
    })?;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(begin_at(&cluster, &tasks, 2, |at| at != 3)?);
    }
    for _ in 0..2 {
        let entry = cluster.node_mut(2);
        entry.kill()?;
        entry.start()?;
        wait_for("the next agent to serve", || {
            Ok(cluster.node(2).cli_json(&["inspect", "drops"]).ok())
        })?;
        assert!(all_avoid_node_3(&cluster, &tasks, 2)?);
        say_all(&mut open, "there is another agent")?;
    }
    deafen_node_3(&cluster, false)?;
    wait_for("new connections to reach node 3 again", || {
        Ok((!all_avoid_node_3(&cluster, &tasks, 2)?).then_some(()))
    })?;
    say_all(&mut open, "the node is back")
}

fn say_all(open: &mut [Conversation], line: &str) -> Result<()> {
    for (nth, conversation) in open.iter_mut().enumerate() {
        conversation
            .say(line)
            .with_context(|| format!("connection {nth}: {line}"))?;
    }
    Ok(())
}

/// Nothing goes between the node and the manager's node any more, or all does.
fn cut_from_manager(cluster: &Cluster, number: usize, is_cut: bool) -> Result<()> {
    let manager = cluster.node(1).addr();
    let rules = [
        ("input", format!("ip saddr {manager}")),
        ("output", format!("ip daddr {manager}")),
    ];
    drop_at(cluster, number, is_cut, &rules)
}

/// What node 2 holds of the tasks on node 3.
fn backends_of_node_3(cluster: &Cluster) -> Result<Vec<String>> {
    let rows = cluster.node(2).cli_json(&["inspect", "backends"])?;
    let name = cluster.node(3).name();
    let there = rows.iter().filter(|row| row["node"] == name);
    let states = there.map(|row| row["state"].as_str().context("a state"));
    states.map(|state| Ok(state?.to_owned())).collect()
}

/// The managers alone do not reach it and replace its tasks; the others hear it all the while. What it
/// has goes on, through replacements, further changes and another agent at the entry, until it is
/// silent.
#[test]
fn node_that_managers_alone_do_not_reach_keeps_its_connections() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let elsewhere = format!("node.hostname!={}", cluster.node(1).name());
    let options = ["--publish", "8080:80", "--constraint", &elsewhere];
    let tasks = cluster.serve("web", 4, &options)?;
    cluster.settle()?;
    let (mut kept, mut others) = (Vec::new(), Vec::new());
    for entry in [2, 3].repeat(8) {
        kept.push(begin_at(&cluster, &tasks, entry, |at| at == 3)?);
        others.push(begin_at(&cluster, &tasks, entry, |at| at == 2)?);
    }
    cut_from_manager(&cluster, 3, true)?;
    wait_for("node 3 to be down", || {
        Ok((state(&cluster, 3)? == "down").then_some(()))
    })?;
    let replaced = cluster.wait_running("web", 4)?;
    cluster.settle()?;
    say_all(&mut kept, "its tasks were replaced")?;
    say_all(&mut others, "its tasks were replaced")?;
    assert_eq!(backends_of_node_3(&cluster)?, ["draining", "draining"]);
    for _ in 0..40 {
        others.push(begin_at(&cluster, &replaced, 2, |_| true)?);
    }

    let scale = |cluster: &Cluster, count: usize| {
        let manager = cluster.node(1);
        manager.cli(&["service", "scale", "--detach", &format!("web={count}")])?;
        cluster.wait_running("web", count)?;
        cluster.settle()
    };
    scale(&cluster, 7)?;
    say_all(&mut kept, "there are more tasks")?;
    say_all(&mut others, "there are more tasks")?;
    let entry = cluster.node_mut(2);
    entry.kill()?;
    entry.start()?;
    scale(&cluster, 3)?;
    say_all(&mut kept, "there are less, for another agent")?;
    assert_eq!(backends_of_node_3(&cluster)?, ["draining", "draining"]);

    cluster.plug_in(3, false)?;
    wait_for("node 3 to be given up", || {
        Ok(backends_of_node_3(&cluster)?.is_empty().then_some(()))
    })?;
    cut_from_manager(&cluster, 3, false)?;
    cluster.plug_in(3, true)?;
    wait_for("node 3 to be back, without those tasks", || {
        let is_ready = state(&cluster, 3)? == "ready";
        Ok((is_ready && backends_of_node_3(&cluster)?.is_empty()).then_some(()))
    })
}

/// Who has no key says nothing, whatever it sends.
#[test]
fn packets_that_are_no_probes_are_counted_and_not_answered() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.node(2).addr();
    let socket = cluster.client().within(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((node, 7946))?;
        Ok(socket)
    })?;
    let mut forged = [0u8; 102];
    forged[0] = 1;
    let reason = |label: &str| -> Result<bool> {
        let rows = cluster.node(2).cli_json(&["inspect", "drops"])?;
        Ok(rows.iter().any(|row| row["reason"] == label))
    };
    for (packet, label) in [
        (&forged[..], "probe-forged"),
        (&forged[..40], "probe-malformed"),
    ] {
        wait_for(label, || {
            socket.send(packet)?;
            Ok(reason(label)?.then_some(()))
        })?;
    }
    socket.set_nonblocking(true)?;
    let answered = socket.recv(&mut forged).is_ok();
    ensure!(!answered, "a stranger gets no answer");
    Ok(())
}
