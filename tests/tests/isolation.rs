//! The gateway bridge of a node, on which tasks of all networks hang: it leads from one task to
//! another only where a port is published.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use lab::wait_for;
use swarmnet_tests::{Cluster, Task, ask_tcp, ask_udp};

/// Address of the interface that the default route leaves by.
fn gateway_addr(cluster: &Cluster, task: &Task) -> Result<Ipv4Addr> {
    let shown = cluster
        .inside(task)
        .ip(&["-4", "-o", "address", "show", "dev", "eth1"])?;
    let cidr = shown
        .split_whitespace()
        .nth(3)
        .context("eth1 has an address")?;
    Ok(cidr.split('/').next().context("an address")?.parse()?)
}

#[test]
fn tasks_of_one_node_reach_each_other_by_published_ports_only() -> Result<()> {
    let cluster = Cluster::new()?;
    let here = format!("node.hostname=={}", cluster.node(2).name());
    let service = |name: &str| -> Result<Task> {
        cluster
            .node(1)
            .cli(&["network", "create", "-d", "overlay", name])?;
        let tasks = cluster.serve(name, 1, &["--network", name, "--constraint", &here])?;
        Ok(tasks[0].clone())
    };
    let (red, blue) = (service("red")?, service("blue")?);
    cluster.settle()?;
    let at = |task: &Task, port| Ok::<_, anyhow::Error>((gateway_addr(&cluster, task)?, port));
    for (from, to) in [(&red, &blue), (&blue, &red)] {
        let denied = ask_tcp(&cluster.inside(from), at(to, 80)?);
        assert!(denied.is_err(), "by TCP: {denied:?}");
        let denied = ask_udp(&cluster.inside(from), at(to, 80)?);
        assert!(denied.is_err(), "by UDP: {denied:?}");
    }
    let drops = cluster.node(2).cli_json(&["inspect", "drops"])?;
    let counted = drops.iter().find(|row| row["reason"] == "isolated");
    let packets = counted.and_then(|row| row["packets"].as_u64());
    assert!(packets.is_some_and(|packets| packets >= 4), "{drops:?}");
    let program = counted.map(|row| &row["programs"][0]["program"]);
    assert_eq!(program, Some(&"sn_tc_gateway".into()), "{drops:?}");

    let publish = ["--publish-add", "8080:80", "--publish-add", "8080:80/udp"];
    let update = ["service", "update", "--detach"];
    cluster
        .node(1)
        .cli(&[&update[..], &publish, &["blue"]].concat())?;
    let entry = (cluster.node(2).addr(), 8080);
    let blue = wait_for("blue to answer on its published port", || {
        let answer = ask_tcp(&cluster.inside(&red), entry);
        let tasks = cluster.tasks("blue")?;
        Ok(answer
            .ok()
            .and_then(|answer| tasks.into_iter().find(|task| task.hostname == answer.task)))
    })?;
    let answer = ask_udp(&cluster.inside(&red), entry)?;
    assert_eq!(answer.task, blue.hostname);
    // What the hook makes of it, and no way back.
    assert_eq!(
        ask_tcp(&cluster.inside(&red), at(&blue, 80)?)?.task,
        blue.hostname
    );
    let denied = ask_tcp(&cluster.inside(&blue), at(&red, 80)?);
    assert!(denied.is_err(), "back: {denied:?}");
    Ok(())
}
