//! `swarmnet inspect` shows what goes on: flows in their states, counters that add up, rates.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Conversation};

#[test]
fn flows_and_counters_follow_the_connections() -> Result<()> {
    let cluster = Cluster::new()?;
    let tasks = cluster.serve("web", 1, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let owner = cluster.node(tasks[0].node);
    let entries = cluster.entries(8080)?;
    let mut open: Vec<_> = entries
        .iter()
        .map(|to| Conversation::begin(cluster.client(), *to))
        .collect::<Result<_>>()?;
    let flows = owner.cli_json(&["inspect", "flows", "--service", "web"])?;
    ensure!(flows.len() == 3, "{flows:?}");
    for conversation in &open {
        let client = conversation.answer.from.to_string();
        let row = flows.iter().find(|row| row["client"] == client.as_str());
        let row = row.with_context(|| format!("{client} in {flows:?}"))?;
        assert_eq!(row["state"], "established", "{row}");
        let (age, idle) = (row["age_ms"].as_u64(), row["idle_ms"].as_u64());
        ensure!(age.is_some() && age >= idle, "{row}");
    }
    let client = open[0].answer.from.to_string();
    let one = owner.cli_json(&["inspect", "flows", "--client", &client])?;
    ensure!(one.len() == 1, "{one:?}");
    let none = owner.cli_json(&["inspect", "flows", "--service", "other"])?;
    ensure!(none.is_empty(), "{none:?}");

    let backend = || {
        let rows = owner.cli_json(&["inspect", "backends", "--service", "web"])?;
        rows.into_iter().next().context("web has a backend")
    };
    let services = owner.cli_json(&["inspect", "services", "--service", "web"])?;
    assert_eq!(services[0]["live_flows"], 3, "{services:?}");
    let row = backend()?;
    assert_eq!(
        (&row["live_flows"], &row["new_flows"]),
        (&3.into(), &3.into()),
        "{row}"
    );
    let packets = row["packets"].as_u64().context("a number")?;
    open.iter_mut().try_for_each(|one| one.say("more"))?;
    let grown = backend()?["packets"].as_u64().context("a number")?;
    ensure!(grown >= packets + 6, "{packets}, then {grown}");
    // The client ends; what the task still has to say is not waited for.
    drop(open);
    wait_for("the flows to end", || {
        Ok((backend()?["live_flows"] == 0).then_some(()))
    })
}

#[test]
fn watching_shows_rates_until_it_is_ended() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.serve("web", 1, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let node = cluster.node(1);
    let mut conversation = Conversation::begin(cluster.client(), (node.addr(), 8080))?;
    let mut watch = node.command(&["inspect", "services", "--watch"])?;
    let mut watch = watch.stdout(Stdio::piped()).spawn()?;
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        conversation.say("busy")?;
    }
    watch.kill()?;
    let said = watch.wait_with_output()?.stdout;
    let said = String::from_utf8(said)?;
    let mut looks = said.split("\n\n").filter(|look| look.contains("web"));
    let first = looks.next().context("one look")?;
    ensure!(first.contains("PACKETS/S"), "{first}");
    let rate = |look: &str| {
        let words: Vec<_> = look.lines().nth(1)?.split_whitespace().collect();
        words[words.len() - 2].parse::<f64>().ok()
    };
    ensure!(
        rate(first).is_none(),
        "the first look knows no rate: {first}"
    );
    ensure!(looks.filter_map(rate).any(|rate| rate > 10.0), "{said}");
    Ok(())
}
