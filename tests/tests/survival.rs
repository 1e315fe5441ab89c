//! What goes on while agents, managers and nodes do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::wait_for;
use swarmnet_tests::{Asker, Cluster, Conversation, ask_tcp};

/// Tasks that keep every CPU busy must not keep a node's rings behind those of others.
#[test]
fn agents_go_before_tasks() -> Result<()> {
    let cluster = Cluster::new()?;
    let pid = cluster.node(1).agent_pid().expect("it runs");
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        // `pid (name) state …`: the niceness is the 19th field (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
        assert_eq!(fields.split(' ').nth(16), Some("-10"), "{stat}");
    }
    Ok(())
}

#[test]
fn killed_agents_cut_no_connection_and_adopt_everything_when_they_return() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let before = cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let mut open: Vec<_> = (1..=3)
        .flat_map(|node| std::iter::repeat_n(node, 8))
        .map(|node| Conversation::begin(cluster.client(), (cluster.node(node).addr(), 8080)))
        .collect::<Result<_>>()?;
    for number in 1..=3 {
        cluster.node_mut(number).kill()?;
        open.iter_mut()
            .try_for_each(|conversation| conversation.say("agent killed"))?;
        for node in cluster.nodes() {
            ask_tcp(cluster.client(), (node.addr(), 8080))?;
        }
        cluster.node_mut(number).start()?;
        open.iter_mut()
            .try_for_each(|conversation| conversation.say("agent back"))?;
    }
    cluster.settle()?;
    open.iter_mut()
        .try_for_each(|conversation| conversation.say("all in step"))?;
    let ids = |tasks: &[swarmnet_tests::Task]| {
        let mut ids: Vec<_> = tasks.iter().map(|task| task.id.clone()).collect();
        ids.sort();
        ids
    };
    let after = cluster.wait_running("web", 3)?;
    assert_eq!(ids(&before), ids(&after), "a healthy task was replaced");
    Ok(())
}

#[test]
fn lost_node_is_down_and_its_tasks_are_replaced_elsewhere() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    cluster.node_mut(3).kill()?;
    cluster.client().run("true", &[])?;
    cluster
        .node(3)
        .host()
        .ip(&["link", "set", "eth0", "down"])?;
    let lost = cluster.node(3).name().to_owned();
    wait_for("the node to be down", || {
        let node = cluster.node(1).listed(&lost)?;
        Ok((node["Status"] == "Down").then_some(()))
    })?;
    wait_for("three tasks on the nodes left", || {
        let tasks = cluster.tasks("web")?;
        Ok((tasks.iter().filter(|task| task.node != 3).count() == 3).then_some(()))
    })?;
    wait_for("the lost node's backends to be out of the tables", || {
        let answers: Result<Vec<_>> = (0..20)
            .map(|_| ask_tcp(cluster.client(), (cluster.node(1).addr(), 8080)))
            .collect();
        Ok(answers.is_ok().then_some(()))
    })
}

/// Ends a task's process as a crash would.
fn kill(cluster: &Cluster, task: &str) -> Result<()> {
    let format = "{{.Status.ContainerStatus.PID}}";
    let inspect = ["inspect", "--type", "task", "--format", format, task];
    let pid = cluster.node(1).docker(&inspect)?;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
    Ok(nix::sys::signal::kill(
        pid,
        nix::sys::signal::Signal::SIGKILL,
    )?)
}

/// From outside by a published port, from a task by a VIP: what one socket sends after its task's end
/// is known everywhere, another task answers.
#[test]
fn datagrams_of_one_socket_find_another_task_when_theirs_has_died() -> Result<()> {
    let cluster = Cluster::new()?;
    let create = ["network", "create", "-d", "overlay", "net"];
    cluster.node(1).cli(&create)?;
    let options = [
        "--network",
        "net",
        "--publish",
        "8080:80/udp",
        "--restart-condition",
        "none",
    ];
    let mut tasks = cluster.serve("web", 3, &options)?;
    let caller = cluster.serve("caller", 1, &["--network", "net"])?;
    cluster.settle()?;
    let inside = cluster.inside(&caller[0]);
    for (from, to) in [
        (cluster.client(), (cluster.node(2).addr(), 8080)),
        (&inside, (cluster.vip("web")?, 80)),
    ] {
        let socket = Asker::new(from, to)?;
        let first = socket.ask()?.task;
        // As long as nobody has died, it stays.
        assert_eq!(socket.ask()?.task, first);
        let at = tasks.iter().position(|task| task.hostname == first);
        let dead = tasks.remove(at.context("a task of the service")?);
        kill(&cluster, &dead.id)?;
        let killed = Instant::now();
        wait_for("another task to answer", || {
            let answer = socket.ask_within(Duration::from_millis(50))?;
            Ok((answer.task != first).then_some(()))
        })?;
        println!("{to:?}: answered again after {:?}", killed.elapsed());
        wait_for("the task's end to be known", || {
            let running = cluster.tasks("web")?;
            Ok(running.iter().all(|task| task.id != dead.id).then_some(()))
        })?;
        cluster.settle()?;
        let second = socket.ask()?.task;
        assert!(tasks.iter().any(|task| task.hostname == second), "{second}");
    }
    Ok(())
}

#[test]
fn killed_task_is_replaced_in_its_slot() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.serve("web", 1, &["--publish", "8080:80"])?;
    cluster.settle()?;
    kill(&cluster, &before[0].id)?;
    wait_for("the replacement", || {
        let tasks = cluster.tasks("web")?;
        Ok((tasks.len() == 1 && tasks[0].id != before[0].id).then_some(()))
    })?;
    cluster.settle()?;
    ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080))?;
    Ok(())
}

#[test]
fn scale_down_drains_before_it_stops() -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let cluster = Cluster::new()?;
    cluster.serve("web", 4, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let (done, failures) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| -> Result<()> {
        for number in 1..=3 {
            let (cluster, done, failures) = (&cluster, &done, &failures);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if let Err(err) = ask_tcp(cluster.client(), (cluster.node(number).addr(), 8080))
                    {
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("node {number}: {err:#}"));
                    }
                }
            });
        }
        let outcome = cluster
            .node(1)
            .cli(&["service", "scale", "--detach", "web=1"])
            .and_then(|_| {
                wait_for("one task", || {
                    Ok((cluster.tasks("web")?.len() == 1).then_some(()))
                })?;
                cluster.settle()
            });
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} requests failed: {:?}",
        failures.len(),
        failures.first()
    );
    Ok(())
}
