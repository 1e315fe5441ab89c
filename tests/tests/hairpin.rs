//! A task that reaches itself: by the VIP of its service, and by the port that it publishes, on
//! whatever node's address.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use swarmnet_tests::{Cluster, ask_tcp, ask_udp};

#[test]
fn task_reaches_itself_by_vip_and_by_published_port() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&["network", "create", "net"])?;
    let options = [
        "--network",
        "net",
        "--publish",
        "8080:80",
        "--publish",
        "8080:80/udp",
    ];
    let tasks = cluster.serve("web", 1, &options)?;
    cluster.settle()?;
    let (task, inside) = (&tasks[0], cluster.inside(&tasks[0]));
    let own = cluster.node(task.node);
    let vip = &own.cli_json(&["inspect", "vips"])?[0]["vip"];
    let vip: Ipv4Addr = vip.as_str().context("an address")?.parse()?;
    let nodes = cluster.nodes().iter().map(|node| (node.addr(), 8080));
    for to in nodes.chain([(vip, 80)]) {
        let answer = ask_tcp(&inside, to)?;
        assert_eq!(answer.task, task.hostname, "TCP to {to:?}");
        // To another node it goes by the world, under its node's address.
        let by_world = to.0 != vip && to.0 != own.addr();
        let seen = if by_world {
            own.addr()
        } else {
            *answer.from.ip()
        };
        assert_eq!(*answer.client.ip(), seen, "TCP to {to:?}");
        assert_eq!(ask_udp(&inside, to)?.task, task.hostname, "UDP to {to:?}");
    }
    for node in cluster.nodes() {
        let drops = node.cli_json(&["inspect", "drops"])?;
        assert!(drops.is_empty(), "{}: {drops:?}", node.name());
    }
    Ok(())
}
