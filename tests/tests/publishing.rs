//! How a published port is published: the way back, single addresses, ranges, the choice of a task.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, TcpListener},
    time::Instant,
};

use anyhow::{Context, Result};
use lab::{Node, wait_for};
use swarmnet_tests::{Cluster, Conversation, ask_tcp};

/// What a node got from its VXLAN device so far.
fn tunnelled(node: &Node) -> Result<u64> {
    let path = "/sys/class/net/sn_vxlan/statistics/rx_packets";
    // A fresh /sys shows the namespace's own devices.
    let script = format!("mount -t sysfs sys /sys && cat {path}");
    let shown = node
        .host()
        .run("unshare", &["--mount", "sh", "-c", &script])?;
    shown.trim().parse().context("a counter")
}

/// A conversation with a task elsewhere: what the entry gets through the tunnel meanwhile tells by
/// which way the replies go. A change of the setting leaves a live connection as it is.
#[test]
fn replies_go_through_the_entry_or_straight_to_the_client() -> Result<()> {
    const WORDS: u64 = 50;
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 1, &["-p", "8080:80"])?;
    cluster.settle()?;
    let entry = cluster.node(1 + tasks[0].node % 3);
    let returned = |conversation: &mut Conversation| {
        let before = tunnelled(entry)?;
        for word in 0..WORDS {
            conversation.say(&word.to_string())?;
        }
        anyhow::Ok(tunnelled(entry)? - before)
    };

    let mut old = Conversation::begin(cluster.client(), (entry.addr(), 8080))?;
    assert!(returned(&mut old)? >= WORDS);
    cluster
        .node(1)
        .cli(&["service", "update", "--detach", "--return", "dsr", "web"])?;
    let direct = wait_for("replies to go straight to the client", || {
        let mut new = Conversation::begin(cluster.client(), (entry.addr(), 8080))?;
        assert_eq!(new.answer.client, new.answer.from);
        Ok((returned(&mut new)? < WORDS / 2).then_some(new))
    })?;
    assert!(
        returned(&mut old)? >= WORDS,
        "the old connection stays as it was"
    );
    cluster
        .node(1)
        .cli(&["service", "update", "--detach", "--return", "tunnel", "web"])?;
    wait_for("replies to go through the entry", || {
        let mut new = Conversation::begin(cluster.client(), (entry.addr(), 8080))?;
        Ok((returned(&mut new)? >= WORDS).then_some(()))
    })?;
    let mut direct = direct;
    assert!(returned(&mut direct)? < WORDS / 2, "it stays as it began");
    Ok(())
}

/// Two services share a port, a third is for the nodes' own processes.
#[test]
fn chosen_addresses_are_the_only_ones() -> Result<()> {
    let cluster = Cluster::new()?;
    let [one, two, three] = [1, 2, 3].map(|node| cluster.node(node).addr());
    let on = |addr: Ipv4Addr| format!("{addr}:8080:80");
    let (first, second) = (on(one), format!("published=8080,target=80,ip={two}"));
    let a = cluster.serve("a", 1, &["-p", &first])?;
    let b = cluster.serve("b", 1, &["-p", &second])?;
    let c = cluster.serve("c", 3, &["-p", "127.0.0.1:9090:80"])?;
    cluster.settle()?;

    let client = cluster.client();
    assert_eq!(ask_tcp(client, (one, 8080))?.task, a[0].hostname);
    assert_eq!(ask_tcp(client, (two, 8080))?.task, b[0].hostname);
    assert!(ask_tcp(client, (three, 8080)).is_err());
    for (number, node) in (1..).zip(cluster.nodes()) {
        assert!(ask_tcp(client, (node.addr(), 9090)).is_err());
        assert!(ask_tcp(node.host(), (node.addr(), 9090)).is_err());
        let here = c.iter().find(|task| task.node == number);
        let answer = ask_tcp(node.host(), (Ipv4Addr::LOCALHOST, 9090))?;
        assert_eq!(answer.task, here.context("a task on each node")?.hostname);
        assert!(ask_tcp(node.host(), (Ipv4Addr::LOCALHOST, 8080)).is_err());
    }

    let taken = cluster.node(1).cli_error(&[
        "service", "create", "--detach", "--name", "d", "-p", &first, "--", "true",
    ])?;
    assert!(taken.contains("already in use by service 'a'"), "{taken}");
    let args = [
        "service",
        "create",
        "--name",
        "d",
        "--label",
        "swarmnet.publish.7/tcp=1.2.3.4",
    ];
    let loose = cluster
        .node(1)
        .docker(&[&args[..], &["host", "true"]].concat());
    let loose = format!("{:#}", loose.unwrap_err());
    assert!(loose.contains("publishes no such port"), "{loose}");
    Ok(())
}

/// On the nodes of its tasks alone, each by the task there; elsewhere the port is closed, as any other.
#[test]
fn a_host_port_answers_where_its_task_is() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let options = ["-p", "mode=host,published=8080,target=80"];
    let tasks = cluster.serve("web", 2, &options)?;
    cluster.settle()?;
    let client = cluster.client();
    for (number, node) in (1..).zip(cluster.nodes()) {
        let to = format!("{}:8080", node.addr());
        let client_addr = cluster.client_addr().to_string();
        let said = node.cli_json(&["trace", "tcp", &client_addr, &to])?;
        let answer = ask_tcp(client, (node.addr(), 8080));
        let Some(task) = tasks.iter().find(|task| task.node == number) else {
            let refused = format!("{:#}", answer.unwrap_err());
            assert!(refused.contains("refused"), "{refused}");
            assert_eq!(said[0]["outcome"], "stack", "{said:?}");
            continue;
        };
        let answer = answer?;
        assert_eq!(
            (answer.task, answer.client),
            (task.hostname.clone(), answer.from)
        );
        assert_eq!(said[0]["outcome"], "task", "{said:?}");
        let own = ask_tcp(node.host(), (node.addr(), 8080))?;
        assert_eq!(own.task, task.hostname);
        let rows = node.cli_json(&["inspect", "services"])?;
        let frontend = "*:8080/tcp -> 80 (this node)";
        let is_there = |row: &serde_json::Value| {
            row["service"] == "web" && row["frontend"] == frontend && row["backends"] == 1
        };
        assert!(rows.iter().any(is_there), "{rows:?}");
    }

    // One task a node and no more; nobody else publishes the port.
    let manager = cluster.node(1);
    manager.cli(&["service", "scale", "--detach", "web=4"])?;
    cluster.wait_running("web", 3)?;
    let list = ["service", "ps", "--no-trunc", "--format"];
    let waits = "no suitable node (host-mode port already in use on 3 nodes)";
    wait_for("the fourth task to say why it waits", || {
        let errors = manager.docker(&[&list[..], &["{{.Error}}", "web"]].concat())?;
        Ok(errors.contains(waits).then_some(()))
    })?;
    let ports = manager.docker(&[&list[..], &["{{.Ports}}", "web"]].concat())?;
    assert_eq!(ports.matches("*:8080->80/tcp").count(), 3, "{ports}");
    let create = [
        "service", "create", "--detach", "-p", "8080:80", "--", "true",
    ];
    let taken = manager.cli_error(&create)?;
    assert!(taken.contains("as a host-published port"), "{taken}");

    // A port that the node chooses, and keeps when its agent starts again.
    let dynamic = cluster.serve("dynamic", 1, &["-p", "mode=host,target=80"])?;
    let shown = cluster
        .node(1)
        .docker(&[&list[..], &["{{.Ports}}", "dynamic"]].concat())?;
    let port = shown
        .trim()
        .strip_prefix("*:")
        .and_then(|port| port.strip_suffix("->80/tcp"));
    let port: u16 = port.with_context(|| shown.clone())?.parse()?;
    let number = dynamic[0].node;
    let to = (cluster.node(number).addr(), port);
    assert_eq!(ask_tcp(cluster.client(), to)?.task, dynamic[0].hostname);
    cluster.node_mut(number).kill()?;
    cluster.node_mut(number).start()?;
    assert_eq!(ask_tcp(cluster.client(), to)?.task, dynamic[0].hostname);
    cluster.node(1).cli(&["service", "rm", "dynamic"])?;
    wait_for("the port to be closed", || {
        Ok(ask_tcp(cluster.client(), to).is_err().then_some(()))
    })
}

/// The task is refused where a process has its host port, and the service's error says so.
#[test]
fn a_host_port_of_a_process_is_refused_by_name() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.node(2);
    let _process = node
        .host()
        .within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))?))?;
    let (whoami, on_it) = (cluster.whoami(), format!("node.hostname=={}", node.name()));
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--constraint",
        &on_it,
        "-p",
        "mode=host,published=8080,target=80",
        "--",
        whoami,
        "80",
    ];
    cluster.node(1).cli(&create)?;
    let list = [
        "service",
        "ps",
        "--no-trunc",
        "--format",
        "{{.Error}}",
        "web",
    ];
    wait_for("the task to be refused", || {
        let errors = cluster.node(1).docker(&list)?;
        let sentence = "host-mode port 8080/tcp is taken by a process of this node";
        Ok(errors.contains(sentence).then_some(()))
    })
}

#[test]
fn thousand_ports_are_published_by_one_command() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 1, &[])?;
    cluster.settle()?;
    let begun = Instant::now();
    cluster.node(1).cli(&[
        "service",
        "update",
        "--detach",
        "--publish-add",
        "8000-8999:80-1079",
        "web",
    ])?;
    // The port that the task listens at; each node programs it in its own time.
    for node in 1..=3 {
        let answer = wait_for("the ports to be published", || {
            Ok(ask_tcp(cluster.client(), (cluster.node(node).addr(), 8000)).ok())
        })?;
        assert_eq!(answer.task, tasks[0].hostname);
    }
    let took = begun.elapsed();
    println!("1000 ports, from the command to the answers of all nodes: {took:?}");
    let rows = cluster.node(2).cli_json(&["inspect", "services"])?;
    let shown: Vec<_> = rows.iter().map(|row| row["frontend"].to_string()).collect();
    assert!(
        shown
            .iter()
            .any(|at| at.contains("*:8000-8999/tcp -> 80-1079")),
        "{shown:?}"
    );
    Ok(())
}

/// New connections go to tasks of the node where they come in, as long as it has some; those that exist
/// stay where they are when such tasks come and go.
#[test]
fn a_nodes_own_tasks_come_first() -> Result<()> {
    const OFTEN: usize = 20;
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    manager.cli(&["network", "create", "net"])?;
    let options = ["-p", "8080:80", "--prefer", "local", "--network", "net"];
    let tasks = cluster.serve("web", 2, &options)?;
    cluster.settle()?;
    let vip = (cluster.vip("web")?, 80);
    let seen = |host: &lab::Host, to| -> Result<BTreeSet<String>> {
        let answers = (0..OFTEN).map(|_| Ok(ask_tcp(host, to)?.task));
        answers.collect()
    };
    let of_node = |tasks: &[swarmnet_tests::Task], number| -> BTreeSet<String> {
        let here = tasks.iter().filter(|task| task.node == number);
        here.map(|task| task.hostname.clone()).collect()
    };
    let all: BTreeSet<_> = tasks.iter().map(|task| task.hostname.clone()).collect();
    let empty = (1..=3).find(|number| of_node(&tasks, *number).is_empty());
    let empty = empty.context("two tasks on three nodes")?;
    for (number, node) in (1..).zip(cluster.nodes()) {
        let here = of_node(&tasks, number);
        let (first, choice) = match number == empty {
            true => (&all, "spread"),
            false => (&here, "local"),
        };
        assert_eq!(&seen(cluster.client(), (node.addr(), 8080))?, first);
        assert_eq!(&seen(node.host(), (node.addr(), 8080))?, first);
        let rows = node.cli_json(&["inspect", "services"])?;
        assert!(rows.iter().all(|row| row["choice"] == choice), "{rows:?}");
    }
    for task in &tasks {
        let own = BTreeSet::from([task.hostname.clone()]);
        assert_eq!(seen(&cluster.inside(task), vip)?, own);
    }

    let begin = |number: usize| {
        let to = (cluster.node(number).addr(), 8080);
        Conversation::begin(cluster.client(), to)
    };
    let mut open = Vec::new();
    for number in [1, 2, 3] {
        for _ in 0..8 {
            open.push(begin(number)?);
        }
    }
    manager.cli(&["service", "scale", "--detach", "web=3"])?;
    let three = cluster.wait_running("web", 3)?;
    wait_for("the new task to come first where it is", || {
        let found = seen(cluster.client(), (cluster.node(empty).addr(), 8080))?;
        Ok((found == of_node(&three, empty)).then_some(()))
    })?;
    for conversation in &mut open {
        conversation.say("a task of the entry's own came")?;
    }
    open.push(begin(empty)?);
    manager.cli(&["service", "scale", "--detach", "web=2"])?;
    let left = wait_for("one task to go", || {
        let left = cluster.tasks("web")?;
        Ok((left.len() == 2).then_some(left))
    })?;
    cluster.settle()?;
    let lives = |task: &String| left.iter().any(|left| left.hostname == *task);
    for conversation in open.iter_mut().filter(|at| lives(&at.answer.task)) {
        conversation.say("a task of the entry's own went")?;
    }
    Ok(())
}

/// With affinity one client finds one task, by every node; with weights, tasks get shares.
#[test]
fn tasks_are_chosen_as_the_service_says() -> Result<()> {
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    for (node, weight) in [(1, "8"), (2, "1"), (3, "1")] {
        let label = format!("w={weight}");
        manager.cli(&[
            "node",
            "update",
            "--label-add",
            &label,
            cluster.node(node).name(),
        ])?;
    }
    let options = ["-p", "8080:80", "--weight", "node.labels.w"];
    let tasks = cluster.serve("web", 3, &options)?;
    cluster.settle()?;
    let heavy = tasks.iter().find(|task| task.node == 1);
    let heavy = &heavy.context("a task on each node")?.hostname;
    let shares = |node: &Node| -> Result<BTreeMap<String, u32>> {
        let mut shares = BTreeMap::new();
        for _ in 0..100 {
            let answer = ask_tcp(cluster.client(), (node.addr(), 8080))?;
            *shares.entry(answer.task).or_default() += 1;
        }
        Ok(shares)
    };
    // Of 100, 80 +- 4 are expected.
    let found = shares(cluster.node(2))?;
    assert!(
        (60..=97).contains(found.get(heavy).unwrap_or(&0)),
        "{found:?}"
    );

    manager.cli(&[
        "service",
        "update",
        "--detach",
        "--affinity",
        "client-ip",
        "web",
    ])?;
    wait_for("one task for the client on every node", || {
        let mut seen = BTreeSet::new();
        for node in cluster.nodes() {
            for _ in 0..10 {
                seen.insert(ask_tcp(cluster.client(), (node.addr(), 8080))?.task);
            }
        }
        Ok((seen.len() == 1).then_some(()))
    })
}

/// With a timeout, clients keep their task though the ring gives nearly all of them to another: by the
/// way that they come in, on the node that they come in by. Without it they go where the ring says.
#[test]
fn clients_keep_their_task_when_the_ring_changes() -> Result<()> {
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    let weighs = |number, weight: &str| {
        let label = format!("w={weight}");
        let name = cluster.node(number).name();
        manager.cli(&["node", "update", "--label-add", &label, name])
    };
    let options = ["-p", "8080:80", "--weight", "node.labels.w"];
    let affinity = ["--affinity", "client-ip", "--affinity-timeout", "1h"];
    let tasks = cluster.serve("web", 2, &[&options[..], &affinity].concat())?;
    cluster.settle()?;
    let empty = (1..=3).find(|number| tasks.iter().all(|task| task.node != *number));
    let empty = empty.context("two tasks on three nodes")?;
    weighs(empty, "100")?;

    // From outside, from each node by the next one, and from each node by its own sockets.
    let ask = || -> Result<Vec<String>> {
        let mut answers = Vec::new();
        for number in 1..=3 {
            let (node, next) = (cluster.node(number), cluster.node(1 + number % 3));
            answers.push(ask_tcp(cluster.client(), (node.addr(), 8080))?.task);
            answers.push(ask_tcp(node.host(), (next.addr(), 8080))?.task);
            answers.push(ask_tcp(node.host(), (node.addr(), 8080))?.task);
        }
        Ok(answers)
    };
    let first = ask()?;
    for node in cluster.nodes() {
        let rows = node.cli_json(&["inspect", "services"])?;
        assert_eq!(rows[0]["choice"], "spread, client-ip 3600s", "{rows:?}");
    }

    manager.cli(&["service", "scale", "--detach", "web=3"])?;
    let three = cluster.wait_running("web", 3)?;
    let heavy = three.iter().find(|task| task.node == empty);
    let heavy = &heavy.context("a task on each node")?.hostname;
    cluster.settle()?;
    for node in cluster.nodes() {
        let backends = node.cli_json(&["inspect", "backends"])?;
        let shares = backends.iter().filter_map(|row| row["share"].as_f64());
        assert!(shares.fold(0.0, f64::max) > 95.0, "{backends:?}");
    }
    assert_eq!(ask()?, first, "a second connection of each");
    let to = format!("{}:8080", manager.addr());
    let outside = ask_tcp(cluster.client(), (manager.addr(), 8080))?;
    let said = manager.cli_json(&["trace", "tcp", &outside.from.to_string(), &to])?;
    let steps = said[0]["steps"].as_array().context("steps")?;
    let step = steps.iter().find(|step| step["at"] == "client");
    let found = step.and_then(|step| step["found"].as_str()).unwrap_or("");
    assert!(
        found.starts_with("keeps ") && found.contains(&outside.task),
        "{said:?}"
    );

    let update = [
        "service",
        "update",
        "--detach",
        "--affinity-timeout",
        "",
        "web",
    ];
    manager.cli(&update)?;
    wait_for("clients to go where the ring says", || {
        Ok(ask()?.contains(heavy).then_some(()))
    })
}
