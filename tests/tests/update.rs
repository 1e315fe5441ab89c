//! Services that change under traffic, and what is left of one that was removed.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result, ensure};
use lab::{Node, wait_for};
use swarmnet_tests::{Cluster, Task, Traffic, ask_tcp};

fn ids(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.id.clone()).collect()
}

/// Waits until none of these tasks runs and as many others do; gives them.
fn replaced(cluster: &Cluster, service: &str, old: &[Task]) -> Result<Vec<Task>> {
    wait_for(&format!("the tasks of {service} to be replaced"), || {
        let tasks = cluster.tasks(service)?;
        let new = tasks.len() == old.len() && ids(&tasks).is_disjoint(&ids(old));
        Ok(new.then_some(tasks))
    })
}

fn update(cluster: &Cluster, options: &[&str], service: &str) -> Result<()> {
    let update = ["service", "update", "--detach"];
    let args = [&update[..], options, &[service]].concat();
    cluster.node(1).cli(&args).map(drop)
}

fn network(cluster: &Cluster, name: &str) -> Result<()> {
    let create = ["network", "create", "-d", "overlay", name];
    cluster.node(1).cli(&create).map(drop)
}

/// The service's virtual addresses, by the order of its networks.
fn vips(cluster: &Cluster, service: &str) -> Result<Vec<Ipv4Addr>> {
    let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let inspect = ["service", "inspect", "--format", format, service];
    let shown = cluster.node(1).docker(&inspect)?;
    let addr = |cidr: &str| Ok(cidr.split('/').next().context("no address")?.parse()?);
    shown.split_whitespace().map(addr).collect()
}

#[test]
fn rolling_replacement_fails_no_request() -> Result<()> {
    let cluster = Cluster::new()?;
    let mut tasks = cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let traffic = Traffic::of_connections(cluster.client(), &cluster.entries(8080)?);
    traffic.go_on()?;
    for (order, version) in [("start-first", "v2"), ("stop-first", "v3")] {
        let args = format!("{} 80 {version}", cluster.whoami());
        update(&cluster, &["--update-order", order, "--args", &args], "web")?;
        tasks = replaced(&cluster, "web", &tasks)?;
        cluster.settle()?;
        traffic.go_on()?;
    }
    traffic.end()?;
    // What ran before is kept for `service ps`, as shut down and not as failed.
    let shown = cluster.node(1).cli(&["service", "ps", "web"])?;
    ensure!(!shown.contains("Failed"), "{shown}");
    Ok(())
}

#[test]
fn ports_come_and_go_while_the_others_serve() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let entries = cluster.entries(8080)?;
    let traffic = Traffic::of_connections(cluster.client(), &entries);
    traffic.go_on()?;
    let also = [8081, 8082];
    update(&cluster, &["--publish-add", "8081:80"], "web")?;
    update(&cluster, &["--publish-add", "8082:80"], "web")?;
    cluster.settle()?;
    for (addr, _) in &entries {
        for port in also {
            ask_tcp(cluster.client(), (*addr, port))?;
        }
    }
    update(&cluster, &["--publish-rm", "8081:80"], "web")?;
    cluster.settle()?;
    for (addr, _) in &entries {
        let closed = ask_tcp(cluster.client(), (*addr, 8081));
        ensure!(closed.is_err(), "8081 still answers: {closed:?}");
        ask_tcp(cluster.client(), (*addr, 8082))?;
    }
    traffic.end()?;
    // Ports are the mesh's affair: no task had to be replaced for them.
    ensure!(
        ids(&cluster.tasks("web")?) == ids(&tasks),
        "tasks were replaced"
    );
    Ok(())
}

#[test]
fn networks_and_endpoint_modes_are_changed() -> Result<()> {
    let cluster = Cluster::new()?;
    network(&cluster, "one")?;
    network(&cluster, "two")?;
    let tasks = cluster.serve("web", 2, &["--network", "one", "--publish", "8080:80"])?;
    let caller = cluster.serve("caller", 1, &["--network", "two"])?;
    let inside = cluster.inside(&caller[0]);
    update(&cluster, &["--network-add", "two"], "web")?;
    let tasks = replaced(&cluster, "web", &tasks)?;
    cluster.settle()?;
    let both = vips(&cluster, "web")?;
    ensure!(both.len() == 2, "{both:?}");
    ask_tcp(&inside, (both[1], 80))?;

    update(&cluster, &["--network-rm", "two"], "web")?;
    let tasks = replaced(&cluster, "web", &tasks)?;
    cluster.settle()?;
    assert_eq!(
        vips(&cluster, "web")?,
        both[..1],
        "the VIP that stays, stays"
    );
    ensure!(
        ask_tcp(&inside, (both[1], 80)).is_err(),
        "web is still on two"
    );
    ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080))?;

    let dnsrr = ["--publish-rm", "80", "--endpoint-mode", "dnsrr"];
    update(&cluster, &dnsrr, "web")?;
    cluster.settle()?;
    ensure!(vips(&cluster, "web")?.is_empty(), "a VIP with dnsrr");
    let closed = ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080));
    ensure!(closed.is_err(), "8080 still answers: {closed:?}");

    let vip = ["--publish-add", "8080:80", "--endpoint-mode", "vip"];
    update(&cluster, &vip, "web")?;
    cluster.settle()?;
    ensure!(vips(&cluster, "web")?.len() == 1, "no VIP");
    let running = cluster.wait_running("web", tasks.len())?;
    cluster.settle()?;
    let peer = cluster.inside(&running[0]);
    ask_tcp(&peer, (vips(&cluster, "web")?[0], 80))?;
    ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080))?;
    Ok(())
}

/// All of a node that a service could leave something in.
fn traces(cluster: &Cluster, node: &Node) -> Result<String> {
    let mut found = node.host().ip(&["-o", "link", "show"])?;
    found += &node.host().ip(&["route", "show"])?;
    for table in ["vips", "dns", "services", "endpoints", "backends", "flows"] {
        found += &node.cli(&["inspect", table, "--format", "json"])?;
    }
    for dir in [
        node.run_dir().join("netns"),
        node.state_dir().join("agent/tasks"),
        node.state_dir().join("agent/networks"),
    ] {
        found += &format!("{}: {:?}\n", dir.display(), entries(&dir)?);
    }
    found += &format!("held ports: {}\n", held_ports(node)?);
    found += &format!("processes: {:?}\n", processes(cluster)?);
    Ok(found)
}

fn entries(dir: &Path) -> Result<BTreeSet<String>> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir(dir)?.map(name).collect()
}

/// UDP sockets of the node's own namespace: published UDP ports are held by one.
fn held_ports(node: &Node) -> Result<usize> {
    let table = node.host().run("cat", &["/proc/thread-self/net/udp"])?;
    Ok(table.lines().count() - 1)
}

/// Tasks' processes and their shims, of any node of this cluster.
fn processes(cluster: &Cluster) -> Result<Vec<String>> {
    let dir = cluster.dir().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("task-shim") && line.contains(&dir) {
            found.push(line);
        }
    }
    Ok(found)
}

#[test]
fn removed_service_and_network_leave_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.settle()?;
    let all = |cluster: &Cluster| -> Result<Vec<String>> {
        let nodes = cluster.nodes().iter();
        nodes.map(|node| traces(cluster, node)).collect()
    };
    let before = all(&cluster)?;
    network(&cluster, "net")?;
    let options = [
        "--network",
        "net",
        "--publish",
        "8080:80",
        "--publish",
        "8080:80/udp",
    ];
    cluster.serve("web", 6, &options)?;
    cluster.settle()?;
    for node in cluster.nodes() {
        ask_tcp(cluster.client(), (node.addr(), 8080))?;
    }
    let during = all(&cluster)?;
    for (before, during) in before.iter().zip(&during) {
        ensure!(before != during, "a service leaves no trace while it runs");
    }
    cluster.node(1).cli(&["service", "rm", "web"])?;
    cluster.node(1).cli(&["network", "rm", "net"])?;
    wait_for("everything to be as before", || {
        let after = all(&cluster)?;
        let differs = before
            .iter()
            .zip(&after)
            .find(|(before, after)| before != after);
        if let Some((before, after)) = differs {
            anyhow::bail!("before:\n{before}\nafter:\n{after}");
        }
        Ok(Some(()))
    })?;
    let closed = ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080));
    ensure!(closed.is_err(), "8080 still answers: {closed:?}");
    Ok(())
}

/// A process that is there, and does not listen yet, is no backend.
#[test]
fn task_runs_once_it_listens_on_its_published_port() -> Result<()> {
    let cluster = Cluster::new()?;
    let file = cluster.dir().join("began");
    let (began, whoami) = (file.display(), cluster.whoami());
    let slow = format!("sleep 1; date -u +%FT%T.%N > {began}; exec {whoami} 80");
    let create = ["service", "create", "--detach", "--name", "slow"];
    let rest = ["--publish", "8080:80", "--", "/bin/sh", "-c", &slow];
    cluster.node(1).cli(&[&create[..], &rest].concat())?;
    let task = cluster.wait_running("slow", 1)?.remove(0);
    let inspect = ["inspect", "--type", "task", "--format"];
    let format = ["{{json .Status.Timestamp}}", &task.id];
    let running = cluster.node(1).docker(&[&inspect[..], &format].concat())?;
    let began = fs::read_to_string(&file).context("it runs before it began to serve")?;
    // Down to the millisecond: what follows is of different length.
    let (running, began) = (&running.trim().trim_matches('"')[..23], &began[..23]);
    ensure!(running >= began, "it runs since {running}, served {began}");
    Ok(())
}
