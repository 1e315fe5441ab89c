//! Virtual addresses: a service's name leads to one, a connection to it to a backend, which sees
//! the caller's own address.

use std::collections::BTreeSet;

use anyhow::Result;
use swarmnet_tests::{Cluster, ask_tcp, ask_udp};

#[test]
fn connections_and_datagrams_to_a_vip_reach_all_backends_with_the_callers_address() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster
        .node(1)
        .cli(&["network", "create", "-d", "overlay", "net"])?;
    let backends = cluster.serve("web", 3, &["--network", "net"])?;
    let callers = cluster.serve("caller", 3, &["--network", "net"])?;
    cluster.settle()?;
    let vip = cluster.vip("web")?;
    let all: BTreeSet<_> = backends.iter().map(|task| task.hostname.clone()).collect();
    for caller in &callers {
        let inside = cluster.inside(caller);
        let mut seen = BTreeSet::new();
        // A fair choice of 3 misses one in 80 tries with a chance of about 1e-14.
        for _ in 0..80 {
            let answer = ask_tcp(&inside, (vip, 80))?;
            assert_eq!(answer.client, answer.from);
            seen.insert(answer.task);
        }
        assert_eq!(seen, all);
        let answer = ask_udp(&inside, (vip, 80))?;
        assert!(all.contains(&answer.task));
    }
    Ok(())
}

#[test]
fn task_reaches_itself_by_its_own_vip() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster
        .node(1)
        .cli(&["network", "create", "-d", "overlay", "net"])?;
    let tasks = cluster.serve("web", 1, &["--network", "net"])?;
    cluster.settle()?;
    let vip = cluster.vip("web")?;
    let inside = cluster.inside(&tasks[0]);
    assert_eq!(ask_tcp(&inside, (vip, 80))?.task, tasks[0].hostname);
    assert_eq!(ask_udp(&inside, (vip, 80))?.task, tasks[0].hostname);
    Ok(())
}

#[test]
fn vip_of_a_foreign_network_does_not_answer() -> Result<()> {
    let cluster = Cluster::new()?;
    for net in ["red", "blue"] {
        cluster
            .node(1)
            .cli(&["network", "create", "-d", "overlay", net])?;
    }
    cluster.serve("web", 1, &["--network", "red"])?;
    let callers = cluster.serve("caller", 1, &["--network", "blue"])?;
    cluster.settle()?;
    let vip = cluster.vip("web")?;
    assert!(ask_tcp(&cluster.inside(&callers[0]), (vip, 80)).is_err());
    Ok(())
}
