//! The leader is cut off from everybody, and both sides are asked.

use anyhow::{Result, ensure};
use lab::{Node, wait_for};
use swarmnet_tests::{Cluster, Web, Writer};

/// A day's network trouble must not end in tasks being replaced: that is another test's subject.
const PATIENT: &[&str] = &["update", "--dispatcher-heartbeat", "60s"];

/// A change is refused with those that do not answer.
fn is_refused_for(node: &Node, missing: &[&Node]) -> Result<()> {
    wait_for("a change to be refused", || {
        let refused = node.cli_error(&["network", "create", "-d", "overlay", "lost"])?;
        // One that was begun in the last moment of the quorum is in doubt, and is there or not.
        let says = refused.contains("no quorum, so nothing can be changed");
        let names_all = |text: &str| missing.iter().all(|n| text.contains(&n.addr().to_string()));
        Ok((says && names_all(&refused)).then_some(()))
    })
}

/// The leader alone on its side leads no more, refuses changes with the names of those missing, and
/// warns of what it tells; the others choose a leader and go on. When the two sides meet again, all
/// managers tell the same, and neither side's tasks were started again.
#[test]
fn partitioned_leader_steps_down_and_all_agree_again() -> Result<()> {
    let cluster = Cluster::of_managers()?;
    cluster.node(1).cli(PATIENT)?;
    let cut = cluster.leader()?;
    let others: Vec<_> = (1..=3).filter(|number| *number != cut).collect();
    let elsewhere = format!("node.hostname!={}", cluster.node(cut).name());
    let web = Web::start_on(&cluster, &others, &["--constraint", &elsewhere])?;
    // One of its tasks is on the node that is cut off.
    let spread = cluster.serve("spread", 3, &["--publish", "9090:80"])?;
    ensure!(spread.iter().any(|task| task.node == cut), "{spread:?}");
    let pids = Web::processes(&cluster, &spread)?;
    cluster.settle()?;

    cluster.plug_in(cut, false)?;
    let alone = cluster.node(cut);
    let missing: Vec<_> = others.iter().map(|number| cluster.node(*number)).collect();
    is_refused_for(alone, &missing)?;
    let output = alone.command(&["service", "ls"])?.output()?;
    let warning = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && warning.contains("may be stale"),
        "{warning}"
    );
    let leads = wait_for("another to lead", || {
        let nodes = missing[0].cli_json(&["node", "ls"])?;
        let leads = nodes.iter().find(|node| node["ManagerStatus"] == "Leader");
        let leads = leads.filter(|node| node["Hostname"] != alone.name());
        Ok(leads.map(|node| node["Hostname"].clone()))
    })?;
    let writer = Writer::start_at(&missing);
    writer.go_on()?;
    web.open.go_on()?;
    // Its side has not come to another opinion meanwhile.
    is_refused_for(alone, &missing)?;

    cluster.plug_in(cut, true)?;
    let healed = wait_for("the cut off manager to follow", || {
        let own = alone.listed(alone.name())?;
        let nodes = alone.cli_json(&["node", "ls"])?;
        let ready = nodes.iter().filter(|node| node["Status"] == "Ready");
        Ok((own["ManagerStatus"] == "Reachable" && ready.count() == 3).then_some(nodes))
    })?;
    let still = healed.iter().find(|node| node["ManagerStatus"] == "Leader");
    ensure!(
        still.is_some_and(|node| node["Hostname"] == leads),
        "{healed:?}"
    );
    writer.go_on()?;
    let acknowledged = writer.end();
    web.end(&cluster)?;
    let after = Web::processes(&cluster, &cluster.wait_running("spread", 3)?)?;
    ensure!(
        pids == after,
        "tasks were restarted: {pids:?}, now {after:?}"
    );
    acknowledged.are_there(&cluster)
}
