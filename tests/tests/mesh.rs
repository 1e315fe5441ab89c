//! Published ports: on every node, with or without a task there, from everywhere, and the task
//! sees the client's own address.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;
use lab::wait_for;
use swarmnet_tests::{Cluster, ask_tcp, ask_udp};

const PUBLISH: &[&str] = &["--publish", "8080:80", "--publish", "8080:80/udp"];

#[test]
fn client_outside_reaches_one_replica_through_every_node_and_is_seen() -> Result<()> {
    published_port_answers_everywhere("tc")
}

#[test]
fn xdp_at_the_entry_gives_the_same_answers() -> Result<()> {
    published_port_answers_everywhere("xdp")
}

fn published_port_answers_everywhere(uplink_mode: &'static str) -> Result<()> {
    let cluster = Cluster::with_uplink_mode(uplink_mode)?;
    let tasks = cluster.serve("web", 1, PUBLISH)?;
    cluster.settle()?;
    for node in cluster.nodes() {
        let answer = ask_tcp(cluster.client(), (node.addr(), 8080))?;
        assert_eq!(answer.client, answer.from, "TCP through {}", node.name());
        assert_eq!(answer.task, tasks[0].hostname);
        let answer = ask_udp(cluster.client(), (node.addr(), 8080))?;
        assert_eq!(answer.client, answer.from, "UDP through {}", node.name());
    }
    Ok(())
}

#[test]
fn node_itself_localhost_and_a_task_reach_a_published_port() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 1, PUBLISH)?;
    cluster.serve("other", 3, &[])?;
    cluster.settle()?;
    for node in cluster.nodes() {
        for addr in [node.addr(), Ipv4Addr::LOCALHOST] {
            let answer = ask_tcp(node.host(), (addr, 8080))?;
            assert_eq!(
                answer.task,
                tasks[0].hostname,
                "TCP from {} to {addr}",
                node.name()
            );
            let answer = ask_udp(node.host(), (addr, 8080))?;
            assert_eq!(
                answer.task,
                tasks[0].hostname,
                "UDP from {} to {addr}",
                node.name()
            );
        }
    }
    for task in cluster.tasks("other")? {
        for node in cluster.nodes() {
            let answer = ask_tcp(&cluster.inside(&task), (node.addr(), 8080))?;
            assert_eq!(
                answer.task, tasks[0].hostname,
                "from a task on node {}",
                task.node
            );
        }
    }
    Ok(())
}

#[test]
fn flows_spread_over_all_replicas_from_each_entry() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 4, PUBLISH)?;
    cluster.settle()?;
    let all: BTreeSet<_> = tasks.into_iter().map(|task| task.hostname).collect();
    for node in cluster.nodes() {
        // A fair choice of 4 misses one in 100 tries with a chance of about 1e-12.
        let seen: Result<BTreeSet<_>> = (0..100)
            .map(|_| Ok(ask_tcp(cluster.client(), (node.addr(), 8080))?.task))
            .collect();
        assert_eq!(seen?, all, "through {}", node.name());
    }
    let digests: Result<BTreeSet<_>> = cluster
        .nodes()
        .iter()
        .map(|node| Ok(node.cli_json(&["inspect", "services"])?[0]["ring_digest"].to_string()))
        .collect();
    assert_eq!(digests?.len(), 1, "nodes built different rings");
    Ok(())
}

#[test]
fn unpublished_port_is_closed_again() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 1, PUBLISH)?;
    cluster.settle()?;
    ask_tcp(cluster.client(), (cluster.node(2).addr(), 8080))?;
    cluster.node(1).cli(&[
        "service",
        "update",
        "--detach",
        "--publish-rm",
        "8080:80",
        "web",
    ])?;
    wait_for("the port to be closed on every node", || {
        let open = |node: &lab::Node| ask_tcp(cluster.client(), (node.addr(), 8080)).is_ok();
        Ok((!cluster.nodes().iter().any(open)).then_some(()))
    })
}
