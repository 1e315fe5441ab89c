//! Three managers, and less: whichever are killed, what was acknowledged is there, the nodes' traffic
//! goes on, and no healthy task is started again.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Web, Writer, ask_tcp};

#[test]
fn leader_and_followers_are_killed_and_no_acknowledged_write_is_lost() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let web = Web::start(&cluster)?;
    let writer = Writer::start(&cluster);
    for _ in 0..2 {
        writer.go_on()?;
        let victim = cluster.leader()?;
        cluster.node_mut(victim).kill()?;
        let killed = Instant::now();
        let next = cluster.leader()?;
        println!(
            "node {next} leads {:?} after {victim} died",
            killed.elapsed()
        );
        ensure!(next != victim, "the dead one leads");
        writer.go_on()?;
        web.open.go_on()?;
        cluster.node_mut(victim).start()?;
    }
    writer.go_on()?;
    let leads = cluster.leader()?;
    let follower = leads % 3 + 1;
    cluster.node_mut(follower).kill()?;
    writer.go_on()?;
    ensure!(cluster.leader()? == leads, "the lead went with a follower");
    cluster.node_mut(follower).start()?;
    let acknowledged = writer.end();
    web.end(&cluster)?;
    acknowledged.are_there(&cluster)
}

#[test]
fn managers_are_restarted_one_after_the_other_under_writes() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let web = Web::start(&cluster)?;
    let writer = Writer::start(&cluster);
    for number in 1..=3 {
        writer.go_on()?;
        cluster.node_mut(number).stop()?;
        writer.go_on()?;
        cluster.node_mut(number).start()?;
        // It has its part again before the next one goes.
        wait_for("all managers to be reachable", || {
            let nodes = cluster.manager()?.cli_json(&["node", "ls"])?;
            let is_there = |status: &str| matches!(status, "Leader" | "Reachable");
            let there = nodes
                .iter()
                .filter_map(|node| node["ManagerStatus"].as_str())
                .filter(|status| is_there(status));
            Ok((there.count() == 3).then_some(()))
        })?;
    }
    let acknowledged = writer.end();
    web.end(&cluster)?;
    acknowledged.are_there(&cluster)
}

/// Without a quorum: reads say that they may be old, writes fail and name who is missing, tasks and
/// traffic go on, also when the last agent restarts. With all back, everything is as it was.
#[test]
fn majority_is_killed_and_then_all_and_everything_comes_back() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let web = Web::start(&cluster)?;
    cluster.node_mut(2).kill()?;
    cluster.node_mut(3).kill()?;
    let missing = [cluster.node(2).addr(), cluster.node(3).addr()];
    let names_all = |text: &str| missing.iter().all(|addr| text.contains(&addr.to_string()));
    wait_for("a write to fail", || {
        let refused = cluster.node(1).cli_error(&["network", "create", "lost"]);
        // One that was begun in the last moment of the quorum does not name them.
        Ok(refused.ok().filter(|text| names_all(text)).map(drop))
    })?;
    let output = cluster.node(1).command(&["service", "ls"])?.output()?;
    let warning = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{warning}");
    ensure!(warning.contains("may be stale"), "no warning: {warning}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("web"));
    let info = cluster
        .node(1)
        .docker(&["info", "--format", "{{.Warnings}}"])?;
    ensure!(info.contains("no quorum"), "{info}");
    web.open.go_on()?;

    cluster.node_mut(1).kill()?;
    web.open.go_on()?;
    cluster.node_mut(1).start()?;
    web.open.go_on()?;
    for node in cluster.nodes() {
        ask_tcp(cluster.client(), (node.addr(), 8080)).context("a new connection")?;
    }

    cluster.node_mut(2).start()?;
    cluster.node_mut(3).start()?;
    cluster.leader()?;
    wait_for("a write", || {
        let made = cluster.node(3).cli(&["network", "create", "made"]);
        Ok(made.ok().map(drop))
    })?;
    web.end(&cluster)
}

/// Two of three managers never come back: the third goes on alone with everything, and the others'
/// nodes can be managers again.
#[test]
fn survivor_makes_a_new_cluster_of_the_old_one() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let web = Web::start(&cluster)?;
    let token = cluster.node(1).cli(&["join-token", "-q", "worker"])?;
    cluster.node_mut(1).kill()?;
    cluster.node_mut(2).kill()?;
    let survivor = cluster.node(3);
    survivor.cli(&["init", "--force-new-cluster"])?;
    ensure!(survivor.cli(&["join-token", "-q", "worker"])? == token);
    survivor.cli(&["network", "create", "made"])?;
    web.open.go_on()?;

    // Their agents find the new leader, which tells them that they are workers: one after the other,
    // as two would be a quorum of the old group.
    for number in [1, 2] {
        cluster.node_mut(number).start()?;
        wait_for("the former managers to be workers", || {
            let node = cluster.node(3).listed(cluster.node(number).name())?;
            Ok((node["Status"] == "Ready" && node["ManagerStatus"] == "").then_some(()))
        })?;
        wait_for("it to know that it is one", || {
            let refused = cluster.node(number).cli_error(&["node", "ls"]);
            let survivor = format!("{}:2377", cluster.node(3).addr());
            Ok(refused
                .ok()
                .filter(|text| text.contains(&survivor))
                .map(drop))
        })?;
    }
    let name = cluster.node(1).name().to_owned();
    cluster.node(3).cli(&["node", "promote", &name])?;
    wait_for("it to be a manager again", || {
        let node = cluster.node(3).listed(&name)?;
        Ok((node["ManagerStatus"] == "Reachable").then_some(()))
    })?;
    web.end(&cluster)
}

/// Roles change while the cluster runs, as long as a quorum is left.
#[test]
fn managers_are_demoted_leave_and_are_refused_when_the_quorum_would_break() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let [first, second, third] = [1, 2, 3].map(|number| cluster.node(number).name().to_owned());
    cluster.node_mut(3).kill()?;
    // Until it is missed, the leader believes that it answers.
    wait_for("the demotion to be refused", || {
        let node = cluster.node(1).listed(&third)?;
        Ok((node["ManagerStatus"] == "Unreachable").then_some(()))
    })?;
    let refused = cluster.node(1).cli_error(&["node", "demote", &second])?;
    ensure!(refused.contains("loss of quorum"), "{refused}");
    ensure!(refused.contains(&third), "{refused}");
    cluster.node(2).cli(&["node", "demote", &third])?;
    cluster.node_mut(3).start()?;
    wait_for("it to be a worker", || {
        let refused = cluster.node(3).cli_error(&["node", "ls"]);
        Ok(refused
            .ok()
            .filter(|text| text.contains("not a swarm manager"))
            .map(drop))
    })?;
    // Two are left; the leader among them can be told to go.
    let leads = cluster.leader()?;
    let (leads, stays) = if leads == 1 { (first, 2) } else { (second, 1) };
    cluster.node(stays).cli(&["node", "demote", &leads])?;
    wait_for("the other one to lead", || {
        let nodes = cluster.node(stays).cli_json(&["node", "ls"])?;
        let managers: Vec<_> = nodes
            .iter()
            .filter(|node| node["ManagerStatus"] != "")
            .collect();
        Ok((managers.len() == 1 && managers[0]["ManagerStatus"] == "Leader").then_some(()))
    })?;
    // The former leader names the one that is left, and not itself.
    let former = cluster.node(3 - stays);
    let only = format!("The managers are at {}:2377.", cluster.node(stays).addr());
    wait_for("the former leader to be a worker", || {
        let refused = former.cli_error(&["node", "ls"]);
        Ok(refused.ok().filter(|text| text.contains(&only)).map(drop))
    })?;
    let last = cluster.node(stays).name().to_owned();
    let refused = cluster.node(stays).cli_error(&["node", "demote", &last])?;
    ensure!(refused.contains("last manager"), "{refused}");
    Ok(())
}

/// A manager that the others need says so when it is to leave, to both clients, and goes by force all
/// the same. They miss it like one that was lost, and go on when they are enough again.
#[test]
fn manager_leaves_by_force_though_the_quorum_goes_with_it() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let whole = cluster.node(2).cli_error(&["leave"])?;
    ensure!(
        whole.contains("participating as a manager") && !whole.contains("Without a Raft quorum"),
        "{whole}"
    );
    cluster.node_mut(3).kill()?;
    let leaver = cluster.node(2);
    let warning = "participating as a manager. Removing this node leaves 1 managers out of 3. \
                   Without a Raft quorum your swarm will be inaccessible. The only way";
    wait_for("the loss to be foretold", || {
        let refused = leaver.cli_error(&["leave"])?;
        Ok(refused.contains(warning).then_some(()))
    })?;
    let refused = leaver.docker(&["swarm", "leave"]).unwrap_err();
    let refused = format!("{refused:#}");
    ensure!(refused.contains(warning), "{refused}");

    let output = leaver.command(&["leave", "--force"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(
        said.contains("loss of quorum") && said.contains("swarmnet node demote"),
        "{said}"
    );
    let info = ["info", "--format", "{{.Swarm.LocalNodeState}}"];
    ensure!(leaver.docker(&info)?.trim() == "inactive");
    wait_for("a change to be refused", || {
        let refused = cluster.node(1).cli_error(&["network", "create", "lost"]);
        Ok(refused
            .ok()
            .filter(|text| text.contains("no quorum"))
            .map(drop))
    })?;
    let leaver = leaver.name().to_owned();
    cluster.node_mut(3).start()?;
    for way_out in [["node", "demote", &leaver], ["node", "rm", &leaver]] {
        wait_for("the others to go on without it", || {
            let done = cluster.node(1).cli(&way_out);
            Ok(done.ok().map(drop))
        })?;
    }
    Ok(())
}

/// The machine of one manager is lost while the others have a quorum: it is taken out, and a fresh one
/// joins in its place, by the recipe.
#[test]
fn manager_whose_disk_is_lost_is_replaced() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let lost = cluster.node(3).name().to_owned();
    let elsewhere = format!("node.hostname!={lost}");
    let web = Web::start_on(&cluster, &[1, 2], &["--constraint", &elsewhere])?;
    cluster.node_mut(3).kill()?;
    std::fs::remove_dir_all(cluster.node(3).state_dir())?;

    let manager = cluster.node(1);
    let token = manager.cli(&["join-token", "-q", "manager"])?;
    manager.cli(&["node", "demote", &lost])?;
    wait_for("it to be a worker that is not down yet", || {
        let early = manager.cli_error(&["node", "rm", &lost])?;
        Ok(early.contains("not down").then_some(()))
    })?;
    wait_for("it to be down", || {
        let removed = manager.cli(&["node", "rm", &lost]);
        Ok(removed.ok().map(drop))
    })?;
    cluster.node_mut(3).start()?;
    let addr = format!("{}:2377", cluster.node(1).addr());
    let joined = cluster
        .node(3)
        .cli(&["join", "--token", token.trim(), &addr])?;
    ensure!(joined.contains("as a manager"), "{joined}");
    let managers = wait_for("three managers", || {
        let nodes = cluster.node(3).cli_json(&["node", "ls"])?;
        let is_there = |node: &&serde_json::Value| node["ManagerStatus"] != "Unreachable";
        Ok((nodes.iter().filter(is_there).count() == 3).then_some(nodes))
    })?;
    ensure!(
        managers.iter().all(|node| node["Status"] == "Ready"),
        "{managers:?}"
    );
    web.end(&cluster)
}
