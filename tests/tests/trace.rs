//! `swarmnet trace` says beforehand what connections then do.

use anyhow::{Context, Result};
use swarmnet_tests::{Cluster, ask_tcp};

/// The answer of `trace` as JSON.
fn trace(node: &lab::Node, arguments: &[&str]) -> Result<serde_json::Value> {
    let mut answers = node.cli_json(&[&["trace"], arguments].concat())?;
    answers.pop().context("trace said nothing")
}

fn found<'a>(answer: &'a serde_json::Value, at: &str) -> Option<&'a str> {
    let steps = answer["steps"].as_array()?;
    let step = steps.iter().find(|step| step["at"] == at)?;
    step["found"].as_str()
}

#[test]
fn trace_names_the_task_that_answers_and_the_reason_that_drops() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&["network", "create", "net"])?;
    let options = ["--network", "net", "--publish", "8080:80"];
    let tasks = cluster.serve("web", 4, &options)?;
    cluster.settle()?;
    for node in cluster.nodes() {
        let to = format!("{}:8080", node.addr());
        for _ in 0..4 {
            let answer = ask_tcp(cluster.client(), (node.addr(), 8080))?;
            let said = trace(node, &["tcp", &answer.from.to_string(), &to])?;
            let backend = found(&said, "backend").context("no backend")?;
            assert!(
                backend.contains(&answer.task),
                "{} answered, trace says {said}",
                answer.task
            );
            let task = tasks.iter().find(|task| task.hostname == answer.task);
            let here = cluster.node(task.context("one of ours")?.node).name() == node.name();
            assert_eq!(
                said["outcome"],
                if here { "task" } else { "tunnel" },
                "{said}"
            );
        }
        let client = "192.168.77.100";
        let to = |port| format!("{}:{port}", node.addr());
        let said = trace(node, &["tcp", client, &to(22)])?;
        assert_eq!(said["outcome"], "stack", "{said}");
        let said = trace(node, &["tcp", "172.18.0.9", &to(8080)])?;
        assert_eq!(said["reason"], "forged-task-address", "{said}");
        let said = trace(node, &["tcp", client, "127.0.0.1:8080", "--from", "node"])?;
        assert_eq!(said["outcome"], "socket", "{said}");
    }
    let (task, node) = (&tasks[0], cluster.node(tasks[0].node));
    let vip = node.cli_json(&["inspect", "vips"])?[0]["vip"].clone();
    let vip = format!("{}:80", vip.as_str().context("an address")?);
    let from = ["--from", "task", &task.id];
    let said = trace(node, &[&["tcp", "10.0.1.250", &vip], &from[..]].concat())?;
    assert_eq!(said["reason"], "spoofed-source", "{said}");
    let said = trace(
        node,
        &[&["udp", "10.0.1.250", "192.168.77.1:4789"], &from[..]].concat(),
    )?;
    assert_eq!(said["reason"], "forged-tunnel", "{said}");
    let nobody = ["trace", "tcp", "10.0.1.3", &vip, "--from", "task", "nobody"];
    let error = node.cli_error(&nobody)?;
    assert!(
        error.contains("no task `nobody` runs on this node"),
        "{error}"
    );
    Ok(())
}
