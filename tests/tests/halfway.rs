//! A node that was about to be something else when it could not go on.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, unlock};

/// Two managers do nothing without both, so one that cannot be must not be counted.
#[test]
fn one_manager_goes_on_when_the_second_cannot_be() -> Result<()> {
    let mut cluster = Cluster::of_strangers(2)?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(2).start()?;
    let [first, second] = [1, 2].map(|number| cluster.node(number));
    first.cli(&["init", "--advertise-addr", &first.addr().to_string()])?;
    let token = first.cli(&["join-token", "-q", "manager"])?;
    // The agent finds the tunnels' port taken when it has loaded its programs.
    let in_the_way = second
        .host()
        .within(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4789))?))?;
    let known = format!("{}:2377", first.addr());
    let join = ["join", "--token", token.trim(), &known];
    let refused = second.cli_error(&join)?;
    ensure!(refused.contains("the agent does not start"), "{refused}");
    first.cli(&["network", "create", "-d", "overlay", "back"])?;
    let nodes = first.cli_json(&["node", "ls"])?;
    let managers = nodes.iter().filter(|node| node["ManagerStatus"] != "");
    ensure!(managers.count() == 1, "{nodes:?}");

    drop(in_the_way);
    second.cli(&join)?;
    let listed = second.cli(&["network", "ls"])?;
    ensure!(listed.contains("back"), "{listed}");
    Ok(())
}

/// A manager that becomes a worker keeps the key of its node unsealed before it gives the data key up.
/// Between the two, the data key may be locked.
#[test]
fn a_locked_manager_whose_demotion_was_cut_short_is_a_worker_after_all() -> Result<()> {
    let mut cluster = Cluster::of(4, 3)?;
    let node_pem = cluster.node(4).state_dir().join("certificates/node.pem");
    let unsealed = fs::read_to_string(&node_pem)?;
    let name = cluster.node(4).name().to_owned();
    let manager_status = |cluster: &Cluster| -> Result<String> {
        let node = cluster.node(1).listed(&name)?;
        Ok(node["ManagerStatus"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    cluster.node(1).cli(&["node", "promote", &name])?;
    wait_for("it to be a manager", || {
        Ok((manager_status(&cluster)? == "Reachable").then_some(()))
    })?;
    cluster.node(1).cli(&["update", "--autolock"])?;
    let key = cluster.node(1).cli(&["unlock-key", "-q"])?;
    let data_key = cluster.node(4).state_dir().join("manager/data.key");
    wait_for("the sealed data key", || {
        Ok(fs::read_to_string(&data_key)?
            .contains("SEALED")
            .then_some(()))
    })?;
    cluster.node_mut(4).kill()?;
    cluster.node(1).cli(&["node", "demote", &name])?;
    fs::write(&node_pem, &unsealed)?;

    cluster.node_mut(4).start()?;
    let info = cluster.node(4).cli(&["info"])?;
    ensure!(info.contains("Swarm: locked"), "{info}");
    let wrong = format!("SWMKEY-1-{}", "A".repeat(43));
    let said = unlock(cluster.node(4), &wrong)?.context("the key is wrong")?;
    ensure!(said.contains("invalid key provided"), "{said}");
    let said = unlock(cluster.node(4), key.trim())?;
    ensure!(said.is_none(), "{said:?}");
    wait_for("it to be a worker", || {
        Ok((!data_key.exists()).then_some(()))
    })?;
    cluster.node_mut(4).kill()?;
    cluster.node_mut(4).start()?;
    wait_for("it to be ready without the key", || {
        let node = cluster.node(1).listed(&name)?;
        Ok((node["Status"] == "Ready" && node["ManagerStatus"] == "").then_some(()))
    })
}
