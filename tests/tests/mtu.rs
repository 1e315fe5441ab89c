//! No black hole, whatever the underlay's MTU: streams pass both ways, senders of datagrams hear what
//! fits.

use anyhow::{Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Datagrams, Fragments, Task, ask_tcp, send_through};

const TUNNEL_OVERHEAD: u32 = 50;
const MIB: usize = 1 << 20;

#[test]
fn underlay_of_1400() -> Result<()> {
    nothing_is_lost_for_its_length(1400)
}

#[test]
fn underlay_of_1500() -> Result<()> {
    nothing_is_lost_for_its_length(1500)
}

#[test]
fn underlay_of_9000() -> Result<()> {
    nothing_is_lost_for_its_length(9000)
}

fn nothing_is_lost_for_its_length(underlay: u32) -> Result<()> {
    let cluster = Cluster::with_mtu(underlay)?;
    let tunnel = underlay - TUNNEL_OVERHEAD;
    let net = ["network", "create", "-d", "overlay", "net"];
    cluster.node(1).cli(&net)?;
    let publish = ["--publish", "8080:80", "--publish", "8080:80/udp"];
    let web = &cluster.serve("web", 1, &[&["--network", "net"], &publish[..]].concat())?[0];
    let callers = cluster.serve("caller", 3, &["--network", "net"])?;
    cluster.settle()?;
    assert_interfaces(&cluster, web, underlay)?;

    // A caller and an entry on other nodes than the server.
    let caller = callers.iter().find(|task| task.node != web.node);
    let caller = cluster.inside(caller.expect("three nodes have one each"));
    let entry = (1..).find(|number| *number != web.node);
    let entry = (cluster.node(entry.expect("three nodes")).addr(), 8080);
    let direct = (cluster.overlay_addr(web)?, 80);
    let vip = (cluster.vip("web")?, 80);
    send_through(&caller, direct, 4 * MIB)?;
    send_through(&caller, vip, 4 * MIB)?;
    send_through(cluster.client(), entry, 4 * MIB)?;

    for to in [direct, vip] {
        let whole = Datagrams::from(&caller, to, Fragments::Forbidden)?;
        whole.ask(tunnel)?;
        assert!(whole.send(tunnel + 1).is_err(), "the interface is shorter");
        whole.ask(tunnel)?;
    }
    // The client's own link carries more than the tunnel.
    let client = cluster.client();
    Datagrams::from(client, entry, Fragments::Allowed)?.ask(underlay)?;
    let whole = Datagrams::from(client, entry, Fragments::Forbidden)?;
    whole.ask(tunnel)?;
    assert_eq!(whole.learn_mtu(tunnel + 1)?, tunnel);
    whole.ask(tunnel)?;
    assert_only_too_big(&cluster)
}

fn assert_interfaces(cluster: &Cluster, task: &Task, underlay: u32) -> Result<()> {
    let inside = cluster.inside(task);
    for (device, mtu) in [("eth0", underlay - TUNNEL_OVERHEAD), ("eth1", underlay)] {
        let shown = inside.ip(&["-o", "link", "show", "dev", device])?;
        assert!(shown.contains(&format!("mtu {mtu} ")), "{shown}");
    }
    let route = inside.ip(&["route", "show", "default"])?;
    let mtu = format!("mtu {} ", underlay - TUNNEL_OVERHEAD);
    assert!(route.contains(&mtu), "{route}");
    Ok(())
}

fn assert_only_too_big(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let drops = node.cli_json(&["inspect", "drops"])?;
        let others = drops.iter().filter(|row| {
            row["reason"] != "too-big" && row["packets"].as_u64().is_some_and(|count| count > 0)
        });
        let others: Vec<_> = others.collect();
        ensure!(others.is_empty(), "{}: {others:?}", node.name());
    }
    Ok(())
}

#[test]
fn changed_underlay_shows_in_new_tasks_and_in_what_fits() -> Result<()> {
    let cluster = Cluster::new()?;
    let publish = ["--publish", "8080:80", "--publish", "8080:80/udp"];
    let web = &cluster.serve("web", 1, &publish)?[0];
    cluster.settle()?;
    let entry = (1..).find(|number| *number != web.node);
    let entry = cluster.node(entry.expect("three nodes"));
    for node in cluster.nodes() {
        node.host().ip(&["link", "set", "eth0", "mtu", "1400"])?;
    }
    let to = (entry.addr(), 8080);
    let client = cluster.client();
    let whole = Datagrams::from(client, to, Fragments::Forbidden)?;
    assert_eq!(whole.learn_mtu(1351)?, 1350);
    // The task's interfaces are as they were: it hears what fits, and the connection stalls nowhere.
    ask_tcp(client, to)?;
    send_through(client, to, MIB)?;

    wait_for("a task with the new MTU", || {
        let name = format!("later{}", std::process::id());
        let task = cluster.serve(&name, 1, &[])?.remove(0);
        let route = cluster.inside(&task).ip(&["route", "show", "default"])?;
        cluster.node(1).cli(&["service", "rm", &name])?;
        Ok(route.contains("mtu 1350").then_some(()))
    })
}
