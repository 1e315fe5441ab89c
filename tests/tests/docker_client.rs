//! The stock `docker` client drives the cluster.

use anyhow::Result;
use swarmnet_tests::Cluster;

#[test]
fn docker_lists_scales_and_inspects() -> Result<()> {
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    manager.docker(&["network", "create", "-d", "overlay", "front"])?;
    cluster.serve("web", 1, &["--network", "front", "--publish", "8080:80"])?;
    let services = manager.docker(&["service", "ls"])?;
    assert!(
        services.contains("web") && services.contains("1/1") && services.contains("*:8080->80/tcp"),
        "{services}"
    );
    let scaled = manager.docker(&["service", "scale", "web=3"])?;
    assert!(
        scaled.contains("web scaled to 3") && scaled.contains("converged"),
        "{scaled}"
    );
    cluster.wait_running("web", 3)?;
    let tasks = manager.docker(&["service", "ps", "web"])?;
    // Scaling up starts two tasks and replaces none.
    assert_eq!(tasks.lines().count(), 4, "{tasks}");
    assert_eq!(
        tasks
            .lines()
            .filter(|line| line.contains("Running"))
            .count(),
        3,
        "{tasks}"
    );
    let nodes = manager.docker(&["node", "ls"])?;
    assert_eq!(nodes.matches("Ready").count(), 3, "{nodes}");
    assert!(nodes.contains("Leader"), "{nodes}");
    let networks = manager.docker(&["network", "ls"])?;
    assert!(
        networks.contains("front") && networks.contains("ingress"),
        "{networks}"
    );
    let inspected = manager.docker(&["service", "inspect", "--pretty", "web"])?;
    assert!(
        inspected.contains("PublishedPort = 8080") || inspected.contains("8080"),
        "{inspected}"
    );
    let info = manager.docker(&["info"])?;
    assert!(
        info.contains("Swarm: active") && info.contains("Is Manager: true"),
        "{info}"
    );
    manager.docker(&["service", "rm", "web"])?;
    Ok(())
}

#[test]
fn docker_creates_a_service_of_a_host_command() -> Result<()> {
    let cluster = Cluster::new()?;
    let manager = cluster.node(1);
    manager.docker(&[
        "service", "create", "--detach", "--name", "nap", "host", "sleep", "1000",
    ])?;
    cluster.wait_running("nap", 1)?;
    Ok(())
}
