//! A manager's disk is full.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lab::{Node, wait_for};
use nix::mount::{MsFlags, mount};
use swarmnet_tests::{Cluster, Web, Writer};

/// Room for the log and then some.
const DISK: &str = "size=32m,mode=0700";
/// As much as an argument may have, so that what room the log has in its file is soon used.
const LABEL_LEN: usize = 100_000;

/// Gives the node a small disk for what it keeps. Unmounted with the lab.
fn on_a_small_disk(cluster: &mut Cluster, number: usize) -> Result<()> {
    cluster.node_mut(number).stop()?;
    let state = cluster.node(number).state_dir();
    let before = state.with_extension("before");
    fs::rename(&state, &before)?;
    fs::create_dir(&state)?;
    let none = None::<&str>;
    mount(none, &state, Some("tmpfs"), MsFlags::empty(), Some(DISK))?;
    let copied = Command::new("cp")
        .arg("-a")
        .args([before.join("."), state])
        .status()?;
    ensure!(copied.success(), "cp: {copied}");
    cluster.node_mut(number).start()
}

/// Takes all the room that is left below `dir`.
fn fill(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("ballast");
    let mut file = File::create(&path)?;
    for len in [1 << 20, 4096] {
        while file.write_all(&vec![0; len]).is_ok() {}
    }
    Ok(path)
}

fn make_network(node: &Node, name: &str) -> Result<String> {
    let label = format!("big={}", "x".repeat(LABEL_LEN));
    let create = [
        "network", "create", "-d", "overlay", "--label", &label, name,
    ];
    node.cli(&create)
}

/// Makes networks until the manager has no room for one and says so: those that were acknowledged.
fn use_up(node: &Node, prefix: &str) -> Result<Vec<String>> {
    let mut names = (0..).map(|number| format!("{prefix}{number}"));
    let mut acknowledged = Vec::new();
    wait_for("the manager to say that its disk is full", || {
        // One that was refused may be there all the same: its name is not tried again.
        let made = names
            .by_ref()
            .take_while(|name| make_network(node, name).is_ok());
        acknowledged.extend(made);
        let refused = node.cli_error(&["node", "ls"])?;
        Ok(refused.contains("No space left on device").then_some(()))
    })?;
    Ok(acknowledged)
}

/// Of three managers the leader's disk is full: another leads, and nothing is lost. With room on the
/// disk again it takes its part.
#[test]
fn leader_with_a_full_disk_gives_way_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let victim = cluster.leader()?;
    on_a_small_disk(&mut cluster, victim)?;
    let web = Web::start(&cluster)?;
    while cluster.leader()? != victim {
        // Whoever leads gives way to the others.
        let leads = cluster.leader()?;
        cluster.node_mut(leads).stop()?;
        cluster.leader()?;
        cluster.node_mut(leads).start()?;
    }
    let writer = Writer::start(&cluster);
    writer.go_on()?;
    let ballast = fill(&cluster.node(victim).state_dir())?;
    use_up(cluster.node(victim), "big")?;
    writer.go_on()?;
    web.open.go_on()?;
    fs::remove_file(ballast)?;
    wait_for("the manager to take its part again", || {
        let listed = cluster.node(victim).cli_json(&["node", "ls"])?;
        let is_there = |node: &&serde_json::Value| {
            matches!(node["ManagerStatus"].as_str(), Some("Leader" | "Reachable"))
        };
        Ok((listed.iter().filter(is_there).count() == 3).then_some(()))
    })?;
    let acknowledged = writer.end();
    web.end(&cluster)?;
    acknowledged.are_there(&cluster)
}

/// The only manager's disk is full, and the node's agent is killed on top of it: tasks and traffic go
/// on, changes are refused with the reason, and with room on the disk it goes on by itself with all
/// that it acknowledged.
#[test]
fn only_manager_with_a_full_disk_comes_back_with_everything() -> Result<()> {
    let mut cluster = Cluster::new()?;
    on_a_small_disk(&mut cluster, 1)?;
    let web = Web::start(&cluster)?;
    let ballast = fill(&cluster.node(1).state_dir())?;
    let mut acknowledged = use_up(cluster.node(1), "big")?;
    web.open.go_on()?;
    cluster.node_mut(1).kill()?;
    cluster.node_mut(1).start()?;
    // The start may have found some room.
    acknowledged.extend(use_up(cluster.node(1), "again")?);
    web.open.go_on()?;
    fs::remove_file(ballast).context("the ballast")?;
    let mut more = (0..).map(|number| format!("more{number}"));
    wait_for("a write", || {
        let name = more.next().expect("numbers do not end");
        make_network(cluster.node(1), &name).map(Some)
    })?;
    let listed = cluster.node(1).cli(&["network", "ls"])?;
    for name in &acknowledged {
        ensure!(listed.contains(name), "{name} is lost: {listed}");
    }
    web.end(&cluster)
}
