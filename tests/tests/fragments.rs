//! A datagram in fragments reaches its task whatever the order of these; what does not become whole is
//! counted.

use anyhow::Result;
use lab::{Node, wait_for};
use swarmnet_tests::{Cluster, Pieces};

const ORDERS: [&[usize]; 5] = [
    &[0, 1, 2],
    &[2, 1, 0],
    &[1, 0, 2],
    &[1, 2, 0],
    &[2, 2, 1, 0],
];

#[test]
fn fragments_follow_their_datagram_in_any_order() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.node(1).cli(&["network", "create", "net"])?;
    let options = ["--network", "net", "--publish", "8080:80/udp"];
    let web = &cluster.serve("web", 1, &options)?[0];
    cluster.settle()?;
    for node in cluster.nodes() {
        let pieces = Pieces::from(cluster.client(), (node.addr(), 8080))?;
        for (id, order) in (1..).zip(ORDERS) {
            pieces.ask(id, order)?;
        }
        assert_eq!(lost(node)?, 0);
        pieces.send(100, &[2, 1])?;
        wait_for("the kernel to give the packet up", || {
            Ok((lost(node)? == 1).then_some(()))
        })?;
        pieces.ask(101, &[2, 1, 0])?;
        let to = format!("{}:8080", node.addr());
        let said = node.cli(&["trace", "udp", "192.168.77.100", &to, "--fragment"])?;
        assert!(
            said.contains("where the kernel puts the packet together"),
            "{said}"
        );
    }
    // Without its agent the node goes on, and the next one finds it all there.
    let entry = (cluster.node(web.node).addr(), 8080);
    let pieces = Pieces::from(cluster.client(), entry)?;
    cluster.node_mut(web.node).kill()?;
    pieces.ask(200, &[2, 1, 0])?;
    cluster.node_mut(web.node).start()?;
    cluster.settle()?;
    pieces.ask(201, &[2, 1, 0])
}

/// Packets that did not become whole at a node.
fn lost(node: &Node) -> Result<u64> {
    let drops = node.cli_json(&["inspect", "drops"])?;
    let row = drops
        .iter()
        .find(|row| row["reason"] == "reassembly-failed");
    Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or(0))
}
