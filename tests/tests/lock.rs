//! Managers that are locked, and what is on their disks.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType, rdata::A},
};
use swarmnet_tests::{Cluster, Task, Traffic, unlock};

/// What the stock client shows, word by word.
const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please \
                      use \"docker swarm unlock\" to unlock it.";
/// Ours names itself.
const LOCKED_HERE: &str = "Please use \"swarmnet unlock\" to unlock it";

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// The directory and all that is in it.
fn only_the_owners(path: &Path) -> Result<()> {
    let wanted = if path.is_dir() { 0o700 } else { 0o600 };
    let mode = mode(path)?;
    ensure!(mode == wanted, "{} has mode {mode:o}", path.display());
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            only_the_owners(&entry?.path())?;
        }
    }
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[test]
fn a_locked_manager_wants_the_key_and_traffic_goes_on_meanwhile() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.serve("web", 3, &["--publish", "8080:80"])?;
    let manager = cluster.node(1);
    manager.cli(&["network", "create", "-d", "overlay", "back"])?;
    let here = format!("node.hostname=={}", manager.name());
    let options = ["--network", "back", "--constraint", &here];
    let named = cluster.serve("names", 1, &options)?.remove(0);
    let vip = cluster.vip("names")?;
    cluster.settle()?;
    ensure!(
        resolve(&cluster, &named, "names")?.contains(&vip),
        "{named:?}"
    );
    let traffic = Traffic::of_connections(cluster.client(), &cluster.entries(8080)?);

    let none = cluster.node(1).cli_error(&["unlock-key"])?;
    ensure!(none.contains("no unlock key is set"), "{none}");
    let early = unlock(cluster.node(1), "SWMKEY-1-x")?.context("nothing is locked")?;
    ensure!(early.contains("swarm is not locked"), "{early}");
    let said = cluster.node(1).cli(&["update", "--autolock"])?;
    let key = cluster.node(1).docker(&["swarm", "unlock-key", "-q"])?;
    let key = key.trim();
    ensure!(key.starts_with("SWMKEY-1-"), "{key}");
    ensure!(
        said.contains("Swarm updated.") && said.contains(key),
        "{said}"
    );
    lab::wait_for("the sealed data key", || {
        let file = cluster.node(1).state_dir().join("manager/data.key");
        Ok(fs::read_to_string(file)?.contains("SEALED").then_some(()))
    })?;

    let inode = |cluster: &Cluster| -> Result<u64> {
        let file = cluster.node(1).state_dir().join("manager/data.key");
        Ok(fs::metadata(file)?.ino())
    };
    let sealed = inode(&cluster)?;

    cluster.node_mut(1).stop()?;
    cluster.node_mut(1).start()?;
    for args in [
        &["service", "ls"][..],
        &["node", "ls"],
        &["join-token", "worker"],
    ] {
        let refused = cluster.node(1).cli_error(args)?;
        ensure!(refused.contains(LOCKED_HERE), "{args:?}: {refused}");
    }
    let refused = cluster.node(1).docker(&["service", "ls"]).unwrap_err();
    ensure!(format!("{refused:#}").contains(LOCKED), "{refused:#}");
    let info = cluster.node(1).cli(&["info"])?;
    ensure!(info.contains("Swarm: locked"), "{info}");
    let state = cluster
        .node(1)
        .docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    ensure!(state.trim() == "locked", "{state}");
    let leave = cluster.node(1).cli_error(&["leave"])?;
    ensure!(leave.contains("Swarm is encrypted and locked"), "{leave}");
    // Its agent goes by what it knew.
    ensure!(
        resolve(&cluster, &named, "names")?.contains(&vip),
        "{named:?}"
    );
    ensure!(
        !cluster
            .node(1)
            .cli_json(&["inspect", "backends"])?
            .is_empty()
    );
    traffic.go_on()?;

    for wrong in ["SWMKEY-1-x", &format!("SWMKEY-1-{}", "A".repeat(43))] {
        let said = unlock(cluster.node(1), wrong)?.context("the key is wrong")?;
        ensure!(said.contains("invalid key provided"), "{said}");
    }
    let said = unlock(cluster.node(1), key)?;
    ensure!(said.is_none(), "{said:?}");
    cluster.wait_running("web", 3)?;
    ensure!(
        inode(&cluster)? == sealed,
        "the data key was written anew for no reason"
    );

    // Another key takes its place; and none again.
    let rotated = cluster.node(1).cli(&["unlock-key", "-q", "--rotate"])?;
    ensure!(rotated.trim() != key, "{rotated}");
    let shown = cluster.node(1).cli(&["unlock-key", "-q"])?;
    ensure!(shown == rotated, "{shown}");
    lab::wait_for("the data key sealed anew", || {
        Ok((inode(&cluster)? != sealed).then_some(()))
    })?;
    cluster.node_mut(1).stop()?;
    cluster.node_mut(1).start()?;
    let said = unlock(cluster.node(1), key)?.context("the key is the one before")?;
    ensure!(said.contains("invalid key provided"), "{said}");
    let said = unlock(cluster.node(1), rotated.trim())?;
    ensure!(said.is_none(), "{said:?}");
    cluster.node(1).cli(&["update", "--autolock=false"])?;
    lab::wait_for("the plain data key", || {
        let file = cluster.node(1).state_dir().join("manager/data.key");
        Ok((!fs::read_to_string(file)?.contains("SEALED")).then_some(()))
    })?;
    cluster.node_mut(1).stop()?;
    cluster.node_mut(1).start()?;
    cluster.wait_running("web", 3)?;
    traffic.end()?;

    // Who has lost the key can still give the node up.
    cluster.node(1).cli(&["update", "--autolock"])?;
    lab::wait_for("the data key to be sealed again", || {
        let file = cluster.node(1).state_dir().join("manager/data.key");
        Ok(fs::read_to_string(file)?.contains("SEALED").then_some(()))
    })?;
    cluster.node_mut(1).stop()?;
    cluster.node_mut(1).start()?;
    cluster.node(1).cli(&["leave", "--force"])?;
    let info = ["info", "--format", "{{.Swarm.LocalNodeState}}"];
    let state = cluster.node(1).docker(&info)?;
    ensure!(state.trim() == "inactive", "{state}");
    ensure!(!cluster.node(1).state_dir().join("manager").exists());
    Ok(())
}

/// A manager without the others knows no more than that it had applied an entry of its log when the
/// next one was written. What it has applied since, it has done to its disk all the same.
#[test]
fn a_manager_that_waits_for_the_others_does_not_open_what_was_locked_last() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let sealed = |cluster: &Cluster, number| -> Result<bool> {
        let file = cluster.node(number).state_dir().join("manager/data.key");
        Ok(fs::read_to_string(file)?.contains("SEALED"))
    };
    cluster.node(1).cli(&["update", "--autolock"])?;
    let key = cluster.node(1).cli(&["unlock-key", "-q"])?;
    for number in 1..=3 {
        lab::wait_for("the sealed data key", || {
            Ok(sealed(&cluster, number)?.then_some(()))
        })?;
    }
    for number in 1..=3 {
        cluster.node_mut(number).kill()?;
    }
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
        let refused = unlock(cluster.node(number), key.trim())?;
        ensure!(refused.is_none(), "{refused:?}");
        ensure!(
            sealed(&cluster, number)?,
            "node {number} opened its data key"
        );
        if number == 1 {
            // Time enough for what it does at its start, and nobody there to tell it more.
            let read = cluster.node(1).cli(&["node", "ls"])?;
            ensure!(sealed(&cluster, 1)?, "node 1 opened its data key: {read}");
        }
    }
    cluster.leader()?;
    cluster.node(1).cli(&["update", "--autolock=false"])?;
    for number in 1..=3 {
        lab::wait_for("the plain data key", || {
            Ok((!sealed(&cluster, number)?).then_some(()))
        })?;
    }
    Ok(())
}

/// The addresses that the resolver of a task tells for a name.
fn resolve(cluster: &Cluster, task: &Task, name: &str) -> Result<Vec<Ipv4Addr>> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_utf8(name)?, RecordType::A));
    let packet = question.to_vec()?;
    let answer = cluster.inside(task).within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(("127.0.0.11", 53))?;
        socket.send(&packet)?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    })?;
    let answer = Message::from_vec(&answer)?;
    let addresses = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(A(addr)) => Some(*addr),
            _ => None,
        });
    Ok(addresses.collect())
}

#[test]
fn nobody_but_the_owner_reads_the_state_and_nobody_finds_secrets_in_it() -> Result<()> {
    let cluster = Cluster::new()?;
    let token = cluster.node(1).cli(&["join-token", "-q", "manager"])?;
    let secret = token
        .trim()
        .rsplit('-')
        .next()
        .context("a token has parts")?;
    for node in cluster.nodes() {
        ensure!(
            mode(&node.socket())? == 0o660,
            "{}",
            node.socket().display()
        );
        only_the_owners(&node.state_dir())?;
    }
    let manager = cluster.node(1).state_dir();
    ensure!(!files(&manager.join("manager"))?.is_empty());
    for path in files(&manager)? {
        let bytes = fs::read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(!text.contains(secret), "{}", path.display());
        let key = "-----BEGIN PRIVATE KEY-----";
        ensure!(!text.contains(key), "{}", path.display());
    }
    Ok(())
}
