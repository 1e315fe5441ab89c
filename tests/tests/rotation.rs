//! Certificates, their root and tokens are replaced while the cluster runs.

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Traffic};

#[test]
fn the_root_is_replaced_under_traffic_and_tokens_follow_it() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let manager = cluster.node(1);
    let entries = cluster.entries(8080)?;
    let open = Traffic::of_conversations(cluster.client(), &entries)?;
    let new = Traffic::of_connections(cluster.client(), &entries);
    let (root, token) = (
        manager.cli(&["ca"])?,
        manager.cli(&["join-token", "-q", "worker"])?,
    );
    ensure!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    ensure!(manager.docker(&["swarm", "ca"])?.trim() == root.trim());

    let output = manager.command(&["ca", "--rotate"])?.output()?;
    let progress = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{progress}");
    ensure!(progress.contains("of 3 nodes, waiting for"), "{progress}");
    let rotated = String::from_utf8(output.stdout)?;
    ensure!(rotated != root, "{rotated}");
    ensure!(manager.docker(&["swarm", "ca"])?.trim() == rotated.trim());
    open.go_on()?;
    new.go_on()?;
    // Every node trusts the new root and no other.
    for node in cluster.nodes() {
        wait_for("the new root alone", || {
            let path = node.state_dir().join("certificates/root.pem");
            let trusted = std::fs::read_to_string(path)?;
            Ok((trusted.trim() == rotated.trim()).then_some(()))
        })?;
    }
    // Sessions go on with it: what is changed now reaches all.
    manager.cli(&["service", "scale", "--detach", "web=5"])?;
    cluster.wait_running("web", 5)?;
    open.end()?;
    new.end()?;

    let worker = cluster.node(3);
    worker.cli(&["leave"])?;
    let addr = "192.168.77.1:2377";
    let refused = worker.cli_error(&["join", "--token", token.trim(), addr])?;
    ensure!(refused.contains("another root certificate"), "{refused}");
    let fresh = manager.cli(&["join-token", "-q", "worker"])?;
    ensure!(fresh != token);
    worker.cli(&["join", "--token", fresh.trim(), addr])?;
    Ok(())
}

#[test]
fn certificates_live_as_long_as_wanted_and_a_token_that_became_known_stops_working() -> Result<()> {
    let cluster = Cluster::new()?;
    let (manager, worker) = (cluster.node(1), cluster.node(3));
    for (expiry, shown) in [("90days", "3 months"), ("48h0m0s", "2 days")] {
        manager.cli(&["update", "--cert-expiry", expiry])?;
        let info = manager.cli(&["info"])?;
        let line = format!("Expiry Duration: {shown}\n");
        ensure!(info.contains(&line), "{expiry}: {info}");
    }

    let known = manager.cli(&["join-token", "-q", "worker"])?;
    let said = manager.cli(&["join-token", "--rotate", "worker"])?;
    let join = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("swarmnet join "))
        .with_context(|| format!("no command to join with: {said}"))?;
    ensure!(!join.contains(known.trim()), "{said}");
    worker.cli(&["leave", "--force"])?;
    let addr = "192.168.77.1:2377";
    let refused = worker.cli_error(&["join", "--token", known.trim(), addr])?;
    ensure!(refused.contains("invalid join token"), "{refused}");
    let mut words = vec!["join"];
    words.extend(join.split_whitespace());
    worker.cli(&words)?;
    Ok(())
}
