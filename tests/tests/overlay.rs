//! Overlay networks: tasks on different nodes talk by their own addresses, and only within a
//! network.

use std::net::Ipv4Addr;

use anyhow::Result;
use swarmnet_tests::{Cluster, ask_tcp, ask_udp};

#[test]
fn tasks_on_different_nodes_talk_by_their_own_addresses() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster
        .node(1)
        .cli(&["network", "create", "-d", "overlay", "net"])?;
    let tasks = cluster.serve("web", 3, &["--network", "net"])?;
    cluster.settle()?;
    for from in &tasks {
        for to in &tasks {
            let addr = cluster.overlay_addr(to)?;
            let answer = ask_tcp(&cluster.inside(from), (addr, 80))?;
            assert_eq!(
                (answer.task, answer.client),
                (to.hostname.clone(), answer.from)
            );
            let answer = ask_udp(&cluster.inside(from), (addr, 80))?;
            assert_eq!(answer.task, to.hostname);
        }
    }
    Ok(())
}

#[test]
fn interfaces_are_as_documented() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--subnet",
        "10.9.0.0/24",
        "net",
    ])?;
    let tasks = cluster.serve("web", 1, &["--network", "net"])?;
    let inside = cluster.inside(&tasks[0]);
    let eth0 = inside.ip(&["-o", "link", "show", "dev", "eth0"])?;
    assert!(eth0.contains("mtu 1450"), "{eth0}");
    let octets = cluster.overlay_addr(&tasks[0])?.octets();
    assert_eq!(octets[..3], [10, 9, 0]);
    let mac = format!("02:42:0a:09:00:{:02x}", octets[3]);
    assert!(eth0.contains(&mac), "{eth0}");
    let eth1 = inside.ip(&["-4", "-o", "address", "show", "dev", "eth1"])?;
    assert!(eth1.contains("172.18."), "{eth1}");
    let route = inside.ip(&["route", "show", "default"])?;
    assert!(route.contains("via 172.18.0.1 dev eth1"), "{route}");
    Ok(())
}

#[test]
fn networks_are_isolated() -> Result<()> {
    let cluster = Cluster::new()?;
    for net in ["red", "blue"] {
        cluster
            .node(1)
            .cli(&["network", "create", "-d", "overlay", net])?;
    }
    let red = cluster.serve("red", 2, &["--network", "red"])?;
    let blue = cluster.serve("blue", 2, &["--network", "blue"])?;
    cluster.settle()?;
    for from in &red {
        for to in &blue {
            let denied = ask_tcp(&cluster.inside(from), (cluster.overlay_addr(to)?, 80));
            assert!(denied.is_err(), "red reached blue: {denied:?}");
        }
    }
    Ok(())
}

#[test]
fn address_that_no_task_has_is_dropped_with_a_reason() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--subnet",
        "10.9.0.0/24",
        "net",
    ])?;
    let tasks = cluster.serve("web", 1, &["--network", "net"])?;
    cluster.settle()?;
    let inside = cluster.inside(&tasks[0]);
    // ARP is answered only for endpoints, so give the neighbour by hand.
    inside.ip(&[
        "neighbour",
        "add",
        "10.9.0.200",
        "lladdr",
        "02:42:0a:09:00:c8",
        "dev",
        "eth0",
    ])?;
    assert!(ask_tcp(&inside, (Ipv4Addr::new(10, 9, 0, 200), 80)).is_err());
    let drops = cluster
        .node(tasks[0].node)
        .cli_json(&["inspect", "drops"])?;
    let counted = drops
        .iter()
        .find(|row| row["reason"] == "unknown-destination");
    let packets = counted.and_then(|row| row["packets"].as_u64());
    assert!(packets.is_some_and(|packets| packets > 0), "{drops:?}");
    Ok(())
}

#[test]
fn tasks_reach_the_world_outside_with_the_nodes_address() -> Result<()> {
    use std::{io::Write, net::TcpListener, net::TcpStream};
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 1, &[])?;
    let outside = cluster
        .client()
        .within(|| Ok(TcpListener::bind("0.0.0.0:7777")?))?;
    let to = (cluster.client_addr(), 7777);
    let mut stream = cluster
        .inside(&tasks[0])
        .within(|| Ok(TcpStream::connect(to)?))?;
    stream.write_all(b"out")?;
    let (_, seen) = outside.accept()?;
    assert_eq!(seen.ip(), cluster.node(tasks[0].node).addr());
    Ok(())
}
