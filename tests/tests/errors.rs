//! What is refused: exit status 1, one sentence that names the thing and the way out, and nothing
//! has changed.

use std::net::{TcpListener, UdpSocket};

use anyhow::{Context, Result, ensure};
use lab::{Node, wait_for};
use swarmnet_tests::Cluster;

/// The newest version in the manager's store: every write raises it.
fn version(cluster: &Cluster) -> Result<String> {
    let rows = cluster.node(1).cli_json(&["inspect", "nodes"])?;
    Ok(rows.first().context("a node")?["current"].to_string())
}

/// A cluster at rest, and commands that must not move it.
struct Refusals<'cluster> {
    cluster: &'cluster Cluster,
    version: String,
}

impl<'cluster> Refusals<'cluster> {
    fn of(cluster: &'cluster Cluster) -> Result<Self> {
        cluster.settle()?;
        let version = version(cluster)?;
        Ok(Self { cluster, version })
    }

    /// `swarmnet <args>` on a node is refused with one line that has all of `words`.
    fn check(&self, node: usize, args: &[&str], words: &[&str]) -> Result<()> {
        let said = self.said(self.cluster.node(node), args, words)?;
        ensure!(
            said.trim_end().lines().count() == 1,
            "`swarmnet {}` says more than a sentence:\n{said}",
            args.join(" ")
        );
        Ok(())
    }

    /// As [`Self::check`] for what the command line itself does not understand: usage may follow.
    fn check_usage(&self, args: &[&str], words: &[&str]) -> Result<()> {
        self.said(self.cluster.node(1), args, words).map(drop)
    }

    fn said(&self, node: &Node, args: &[&str], words: &[&str]) -> Result<String> {
        let said = node.cli_error(args)?;
        for word in words {
            ensure!(
                said.contains(word),
                "`swarmnet {}` does not say `{word}`:\n{said}",
                args.join(" ")
            );
        }
        let now = version(self.cluster)?;
        ensure!(
            now == self.version,
            "`swarmnet {}` was refused and changed something: version {} became {now}",
            args.join(" "),
            self.version
        );
        Ok(said)
    }
}

#[test]
fn wishes_that_cannot_be_are_refused_and_change_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    let subnet = ["network", "create", "-d", "overlay", "--subnet"];
    let network = |cidr, name| [&subnet[..], &[cidr, name]].concat();
    cluster.node(1).cli(&network("10.5.0.0/24", "net"))?;
    cluster.serve("web", 1, &["--network", "net", "--publish", "8080:80"])?;
    cluster.serve("other", 1, &["--publish", "8081:80"])?;
    let refusals = Refusals::of(&cluster)?;
    services(&refusals)?;
    unknown_names(&refusals)?;
    networks(&refusals, network)?;
    workers(&refusals)?;
    members(&refusals)?;
    flags(&refusals)
}

fn services(refusals: &Refusals<'_>) -> Result<()> {
    let create = |options: &[&'static str]| {
        let tail = ["--", "sleep", "1000"];
        [&["service", "create"][..], options, &tail].concat()
    };
    refusals.check(
        1,
        &create(&["--name", "rr", "--endpoint-mode", "dnsrr", "-p", "8082:80"]),
        &["port", "dnsrr", "--endpoint-mode vip"],
    )?;
    refusals.check(
        1,
        &["service", "update", "--endpoint-mode", "dnsrr", "web"],
        &["port", "dnsrr", "publish no ports"],
    )?;
    refusals.check(1, &create(&["--name", "web"]), &["service web", "--name"])?;
    let taken = ["'8080'", "service 'web'", "another port", "--publish-rm"];
    refusals.check(1, &create(&["--name", "web2", "-p", "8080:80"]), &taken)?;
    refusals.check(
        1,
        &["service", "update", "--publish-add", "8080:80", "other"],
        &taken,
    )?;
    refusals.check(
        1,
        &["service", "update", "--publish-add", "8080:90", "web"],
        &["port 8080", "--publish-rm"],
    )?;
    refusals.check(1, &["network", "rm", "net"], &["network", "--network-rm"])
}

fn unknown_names(refusals: &Refusals<'_>) -> Result<()> {
    for args in [
        &["service", "inspect", "nope"][..],
        &["service", "ps", "nope"],
        &["service", "rm", "nope"],
        &["service", "scale", "nope=3"],
        &["service", "update", "--replicas", "2", "nope"],
    ] {
        refusals.check(1, args, &["nope", "service ls"])?;
    }
    for args in [
        &["network", "inspect", "nope"][..],
        &["network", "rm", "nope"],
        &["service", "create", "--network", "nope", "--", "true"],
        &["service", "update", "--network-add", "nope", "web"],
    ] {
        refusals.check(1, args, &["network nope", "network ls"])?;
    }
    for args in [["inspect", "nope"], ["ps", "nope"], ["rm", "nope"]] {
        refusals.check(
            1,
            &[&["node"][..], &args].concat(),
            &["node nope", "node ls"],
        )?;
    }
    Ok(())
}

fn networks<'name>(
    refusals: &Refusals<'_>,
    create: impl Fn(&'name str, &'name str) -> Vec<&'name str>,
) -> Result<()> {
    for overlapping in ["10.5.0.128/25", "10.5.0.0/16"] {
        refusals.check(
            1,
            &create(overlapping, "over"),
            &[
                overlapping,
                "10.5.0.0/24",
                "network net",
                "another --subnet",
            ],
        )?;
    }
    refusals.check(
        1,
        &create("172.18.4.0/24", "over"),
        &["172.18.4.0/24", "172.18.0.0/16", "another --subnet"],
    )?;
    refusals.check(
        1,
        &create("10.6.0.0/31", "over"),
        &["10.6.0.0/31", "/30 or larger"],
    )?;
    refusals.check(
        1,
        &create("10.6.0.3/24", "over"),
        &["10.6.0.3/24", "10.6.0.0/24"],
    )?;
    refusals.check(
        1,
        &create("10.7.0.0/24", "net"),
        &["network with name net", "another name"],
    )?;
    refusals.check(1, &["network", "rm", "ingress"], &["network ingress"])
}

/// A worker says that it is none of the managers, whatever it is asked.
fn workers(refusals: &Refusals<'_>) -> Result<()> {
    for args in [
        &["service", "ls"][..],
        &["service", "create", "--", "true"],
        &["service", "scale", "web=3"],
        &["network", "create", "-d", "overlay", "late"],
        &["node", "ls"],
        &["join-token", "worker"],
        &["inspect", "nodes"],
    ] {
        let words = ["not a swarm manager", "on a manager node"];
        refusals.check(2, args, &words)?;
    }
    Ok(())
}

/// Who is in a cluster neither joins nor founds one, and the last manager does not just leave.
fn members(refusals: &Refusals<'_>) -> Result<()> {
    let already = ["already part of a swarm", "swarmnet leave"];
    for node in [1, 2] {
        refusals.check(node, &["init"], &already)?;
        let join = ["join", "--token", "SWMTKN-1-x-y", "192.168.77.1:2377"];
        refusals.check(node, &join, &already)?;
    }
    refusals.check(1, &["leave"], &["last manager", "--force"])?;
    let worker = refusals.cluster.node(2).name();
    refusals.check(1, &["node", "rm", worker], &["not down", "--force"])
}

fn flags(refusals: &Refusals<'_>) -> Result<()> {
    let create = ["service", "create"];
    let with = |option: &'static str, value: &'static str| {
        [&create[..], &[option, value, "--", "true"]].concat()
    };
    refusals.check(1, &create, &["IMAGE", "--"])?;
    let port = ["99999", "from 1 to 65535"];
    refusals.check(1, &with("--publish", "99999:80"), &port)?;
    refusals.check(1, &with("--publish", "80:80/icmp"), &["icmp", "tcp, udp"])?;
    refusals.check(1, &with("--env", "=3"), &["=3", "no name"])?;
    refusals.check(1, &with("--name", "y."), &["name", "DNS name"])?;
    refusals.check_usage(&with("--nonsense", "3"), &["--nonsense", "--help"])?;
    refusals.check_usage(&with("--replicas", "x"), &["'x'", "--replicas", "--help"])?;
    let mode = with("--endpoint-mode", "magic");
    refusals.check_usage(&mode, &["magic", "vip, dnsrr", "--help"])?;
    let scale = ["service", "scale", "web"];
    refusals.check_usage(&scale, &["web", "SERVICE=REPLICAS", "--help"])?;
    let subnet = ["network", "create", "--subnet", "10.6.0.0", "over"];
    refusals.check_usage(&subnet, &["--subnet", "10.6.0.0/24", "--help"])?;
    refusals.check_usage(&["inspect", "magic"], &["magic", "vips", "--help"])?;
    refusals.check_usage(&["service", "magic"], &["magic", "--help"])
}

#[test]
fn port_of_another_process_is_not_published() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 1, &["--publish", "8080:80"])?;
    let refusals = Refusals::of(&cluster)?;
    let manager = cluster.node(1).host();
    // This test's own process listens in the manager's namespace.
    let tcp = manager.within(|| Ok(TcpListener::bind("0.0.0.0:9000")?))?;
    let udp = manager.within(|| Ok(UdpSocket::bind("127.0.0.1:9001")?))?;
    let us = format!("pid {}", std::process::id());
    for (publish, port) in [("9000:80", "'9000' (tcp)"), ("9001:80/udp", "'9001' (udp)")] {
        let words = [port, "in use on this node", &us, "another port"];
        let create = ["service", "create", "-p", publish, "--", "true"];
        refusals.check(1, &create, &words)?;
        let update = ["service", "update", "--publish-add", publish, "web"];
        refusals.check(1, &update, &words)?;
    }
    // The cluster's own ports are somebody's too.
    for (publish, words) in [
        ("2377:80", ["'2377' (tcp)", "process swarmnet"]),
        ("4789:80/udp", ["'4789' (udp)", "the kernel"]),
    ] {
        refusals.check(
            1,
            &["service", "create", "-p", publish, "--", "true"],
            &words,
        )?;
    }
    // Another protocol is another port, and what a service has it may keep.
    let update = ["service", "update", "--detach"];
    let publish = ["--publish-add", "9000:80/udp", "web"];
    cluster.node(1).cli(&[&update[..], &publish].concat())?;
    drop((tcp, udp));
    for publish in ["9000:80", "9001:80/udp"] {
        let publish = ["--publish-add", publish, "web"];
        cluster.node(1).cli(&[&update[..], &publish].concat())?;
    }
    Ok(())
}

#[test]
fn full_subnet_is_told_by_the_tasks_that_wait_and_room_lets_them_go_on() -> Result<()> {
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    // 6 hosts: the gateway, the VIP, 4 tasks.
    let subnet = ["--subnet", "10.7.0.0/29", "tiny"];
    manager.cli(&[&["network", "create", "-d", "overlay"][..], &subnet].concat())?;
    let whoami = ["--network", "tiny", "--publish", "8080:80"];
    cluster.serve("web", 4, &whoami)?;
    manager.cli(&["service", "scale", "--detach", "web=6"])?;
    let waiting = || -> Result<Vec<String>> {
        let rows = manager.cli_json(&["service", "ps", "--no-trunc", "web"])?;
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().map(str::to_owned);
        let waiting = rows
            .iter()
            .filter(|row| text(row, "CurrentState").is_some_and(|state| state.starts_with("Pend")));
        Ok(waiting.filter_map(|row| text(row, "Error")).collect())
    };
    let told = wait_for("two tasks that wait for an address", || {
        let told = waiting()?;
        Ok((told.len() == 2 && told.iter().all(|error| !error.is_empty())).then_some(told))
    })?;
    for error in told {
        for word in ["network tiny", "10.7.0.0/29", "service web", "--subnet"] {
            ensure!(error.contains(word), "no `{word}` in: {error}");
        }
    }
    // Those that have one serve, those that wait hold nothing: no endpoint, no interface.
    ensure!(cluster.tasks("web")?.len() == 4, "a task was lost");
    let endpoints = manager.cli_json(&["inspect", "endpoints"])?;
    ensure!(
        endpoints.len() == 4,
        "endpoints of waiting tasks: {endpoints:?}"
    );
    let refusals = Refusals::of(&cluster)?;
    refusals.check(
        1,
        &["service", "create", "--network", "tiny", "--", "true"],
        &["network tiny", "10.7.0.0/29", "VIP", "--subnet"],
    )?;
    // As many tasks as there is room for: the waiting ones are no more.
    manager.cli(&["service", "scale", "--detach", "web=4"])?;
    wait_for("no task to wait", || {
        Ok(waiting()?.is_empty().then_some(()))
    })?;
    cluster.wait_running("web", 4)?;
    // Room for a fifth task is made by the VIP that goes with the mode.
    manager.cli(&["service", "scale", "--detach", "web=5"])?;
    wait_for("one task to wait", || {
        Ok((waiting()?.len() == 1).then_some(()))
    })?;
    manager.cli(&[
        "service",
        "update",
        "--detach",
        "--publish-rm",
        "80",
        "--endpoint-mode",
        "dnsrr",
        "web",
    ])?;
    cluster.wait_running("web", 5)?;
    Ok(())
}

#[test]
fn joining_needs_the_token_and_leaving_undoes_it() -> Result<()> {
    let cluster = Cluster::new()?;
    let (manager, worker) = (cluster.node(1), cluster.node(3));
    let tasks = cluster.serve("web", 3, &["--publish", "8080:80"])?;
    ensure!(
        tasks.iter().any(|task| task.node == 3),
        "nothing runs on node 3"
    );
    let token = manager.cli(&["join-token", "-q", "worker"])?;
    let token = token.trim();
    worker.cli(&["leave"])?;
    left_nothing(worker)?;
    wait_for("the tasks to be replaced", || {
        let tasks = cluster.tasks("web")?;
        let moved = tasks.len() == 3 && tasks.iter().all(|task| task.node != 3);
        Ok(moved.then_some(()))
    })?;
    let gone = worker.cli_error(&["leave"])?;
    ensure!(gone.contains("not part of a swarm"), "{gone}");
    let refusals = Refusals::of(&cluster)?;
    let none = ["not a swarm manager", "swarmnet init", "swarmnet join"];
    refusals.check(3, &["service", "ls"], &none)?;
    let mut wrong = token.to_owned();
    wrong.replace_range(token.len() - 4.., "aaaa");
    for token in [wrong.as_str(), "SWMTKN-1-x", "x"] {
        let join = ["join", "--token", token, "192.168.77.1:2377"];
        refusals.check(3, &join, &["invalid join token", "join-token worker"])?;
    }
    let nobody = ["join", "--token", token, "192.168.77.2:2377"];
    refusals.check(3, &nobody, &["192.168.77.2:2377", "2377 open?"])?;
    left_nothing(worker)?;
    worker.cli(&["join", "--token", token, "192.168.77.1:2377"])?;
    cluster.settle()?;
    let twice = worker.cli_error(&["join", "--token", token, "192.168.77.1:2377"])?;
    ensure!(twice.contains("already part of a swarm"), "{twice}");
    manager.cli(&["service", "scale", "--detach", "web=6"])?;
    let tasks = cluster.wait_running("web", 6)?;
    ensure!(
        tasks.iter().any(|task| task.node == 3),
        "node 3 gets no task"
    );
    Ok(())
}

#[test]
fn last_manager_leaves_with_force_only_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let manager = cluster.node(1);
    manager.cli(&["leave", "--force"])?;
    left_nothing(manager)?;
    let refused = manager.cli_error(&["service", "ls"])?;
    ensure!(refused.contains("swarmnet init"), "{refused}");
    manager.cli(&["init", "--advertise-addr", "192.168.77.1"])?;
    ensure!(
        manager.cli_json(&["service", "ls"])?.is_empty(),
        "an old service is there"
    );
    Ok(())
}

/// No link, namespace or process of a task is left on a node that left its cluster.
fn left_nothing(node: &Node) -> Result<()> {
    let links = node.host().ip(&["-o", "link", "show"])?;
    ensure!(
        links.lines().count() == 2,
        "links of {}:\n{links}",
        node.name()
    );
    let netns = node.run_dir().join("netns");
    let left = std::fs::read_dir(netns).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} namespaces are left on {}", node.name());
    Ok(())
}
