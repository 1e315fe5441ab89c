//! All managers are lost, and one is restored from a backup, as docs/operations.md says.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Traffic, Web, unlock};

const ON_WORKERS: &[&str] = &["--constraint", "node.role==worker"];

fn tar(args: &[&str], file: &Path, dir: &Path) -> Result<String> {
    let mut tar = Command::new("tar");
    tar.args(args).arg(file).arg("-C").arg(dir);
    let output = tar.output().context("tar is installed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{tar:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn backup(cluster: &Cluster, number: usize) -> Result<PathBuf> {
    let file = cluster.dir().join("swarm.tar");
    let path = file.to_str().context("path is UTF-8")?;
    cluster.node(number).cli(&["backup", path])?;
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let again = cluster.node(number).cli_error(&["backup", path])?;
    ensure!(again.contains("exists and is not replaced"), "{again}");
    Ok(file)
}

/// In place of what the node had; starts its agent.
fn restore(cluster: &mut Cluster, number: usize, file: &Path) -> Result<()> {
    let state = cluster.node(number).state_dir();
    fs::remove_dir_all(&state)?;
    fs::create_dir(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
    tar(&["-xpf"], file, &state)?;
    cluster.node_mut(number).start()
}

/// The only manager's disk is lost. What was there at the backup is there again, its tasks were never
/// touched, and what came later is gone from the nodes, too.
#[test]
fn the_lost_manager_is_restored_and_tasks_never_notice() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let web = cluster.serve("web", 3, &[&["--publish", "8080:80"], ON_WORKERS].concat())?;
    let pids = Web::processes(&cluster, &web)?;
    cluster.settle()?;
    let open = Traffic::of_calm_conversations(cluster.client(), &cluster.entries(8080)?[1..])?;
    cluster.node(1).cli(&["update", "--autolock"])?;
    let key = cluster.node(1).cli(&["unlock-key", "-q"])?;
    wait_for("the sealed data key", || {
        let file = cluster.node(1).state_dir().join("manager/data.key");
        Ok(fs::read_to_string(file)?.contains("SEALED").then_some(()))
    })?;

    let elsewhere = cluster.dir().join("x");
    let elsewhere = elsewhere.to_str().context("path is UTF-8")?;
    let refused = cluster.node(2).cli_error(&["backup", elsewhere])?;
    ensure!(refused.contains("not a swarm manager"), "{refused}");
    ensure!(!Path::new(elsewhere).exists());
    let file = backup(&cluster, 1)?;
    let sealed = tar(&["-xOf"], &file, Path::new("/"))?;
    ensure!(sealed.contains("SWARMNET SEALED DATA KEY"), "it lies open");
    let late = cluster.serve("afterwards", 2, ON_WORKERS)?;

    cluster.node_mut(1).kill()?;
    restore(&mut cluster, 1, &file)?;
    ensure!(unlock(cluster.node(1), key.trim())?.is_none());
    for refused in [&["service", "ls"][..], &["leave"], &["backup", elsewhere]] {
        let said = cluster.node(1).cli_error(refused)?;
        ensure!(said.contains("--force"), "{refused:?}: {said}");
    }
    let info = cluster
        .node(1)
        .docker(&["info", "--format", "{{.Swarm.Error}}"])?;
    ensure!(info.contains("restored from a backup"), "{info}");
    open.go_on()?;
    cluster.node(1).cli(&["init", "--force-new-cluster"])?;

    wait_for("the workers to be back", || {
        let nodes = cluster.node(1).cli_json(&["node", "ls"])?;
        let ready = nodes.iter().filter(|node| node["Status"] == "Ready");
        Ok((ready.count() == 3).then_some(()))
    })?;
    let services = cluster.node(1).cli(&["service", "ls"])?;
    ensure!(!services.contains("afterwards"), "{services}");
    for task in &late {
        let netns = cluster
            .node(task.node)
            .run_dir()
            .join("netns")
            .join(&task.id);
        wait_for("a later task to be gone", || {
            Ok((!netns.exists()).then_some(()))
        })?;
    }
    ensure!(Web::processes(&cluster, &cluster.wait_running("web", 3)?)? == pids);
    cluster
        .node(1)
        .cli(&["service", "scale", "--detach", "web=5"])?;
    cluster.wait_running("web", 5)?;
    cluster.settle()?;
    open.end()?;
    // A manager like any other from here on.
    cluster.node_mut(1).stop()?;
    cluster.node_mut(1).start()?;
    ensure!(unlock(cluster.node(1), key.trim())?.is_none());
    cluster.wait_running("web", 5).map(drop)
}

/// Beside others that have a quorum, a restored manager would take back what it has promised since:
/// it takes no part, and they take it for one that is away.
#[test]
fn a_restored_manager_takes_no_part_beside_the_others() -> Result<()> {
    let mut cluster = Cluster::of_managers()?;
    let leader = cluster.leader()?;
    let restored = leader % 3 + 1;
    let other = restored % 3 + 1;
    // A follower knows what was acknowledged elsewhere just now.
    cluster
        .node(leader)
        .cli(&["network", "create", "-d", "overlay", "before"])?;
    let file = backup(&cluster, restored)?;
    cluster
        .node(other)
        .cli(&["network", "create", "-d", "overlay", "after"])?;
    cluster.node_mut(restored).kill()?;
    restore(&mut cluster, restored, &file)?;
    let name = cluster.node(restored).name().to_owned();
    let said = cluster.node(restored).cli_error(&["node", "ls"])?;
    ensure!(said.contains("restored from a backup"), "{said}");
    cluster
        .node(other)
        .cli(&["network", "create", "-d", "overlay", "later"])?;
    // The way out that the sentence names.
    cluster.node(other).cli(&["node", "demote", &name])?;
    wait_for("it to be a worker", || {
        let refused = cluster.node(restored).cli_error(&["node", "ls"]);
        let is_one = |text: &String| text.contains("not a swarm manager");
        Ok(refused.ok().filter(is_one).map(drop))
    })?;
    cluster.node(other).cli(&["node", "promote", &name])?;
    wait_for("it to be a manager again", || {
        let listed = cluster.node(restored).cli(&["network", "ls"]);
        let has_all = |text: &String| {
            ["before", "after", "later"]
                .iter()
                .all(|n| text.contains(n))
        };
        Ok(listed.ok().filter(has_all).map(drop))
    })
}
