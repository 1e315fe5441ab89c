//! The leader is killed again and again, under writes and open connections.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use swarmnet_tests::{Cluster, Web, Writer, ask_tcp};

/// Kills; `SWARMNET_STORM_KILLS` sets another number. 24 take two minutes.
const KILLS: u32 = 4;
/// From one kill to the next, or as long as the managers need for a write.
const PERIOD: Duration = Duration::from_secs(5);

/// Five managers and two workers. Every five seconds the leader is killed, and started again: at once,
/// when it goes on in its term, and the next time when another leads. No acknowledged write is lost,
/// no connection is cut, no task is started again, and what is changed later is applied on every node.
#[test]
fn killed_leaders_lose_nothing_and_cut_nothing() -> Result<()> {
    let kills = std::env::var("SWARMNET_STORM_KILLS").ok();
    let kills = kills.map_or(Ok(KILLS), |kills| kills.parse())?;
    let mut cluster = Cluster::of(7, 5)?;
    let web = Web::start(&cluster)?;
    let writer = Writer::start(&cluster);
    writer.go_on()?;
    for kill in 0..kills {
        let began = Instant::now();
        let victim = cluster.leader()?;
        cluster.node_mut(victim).kill()?;
        if kill % 2 == 1 {
            ensure!(cluster.leader()? != victim, "the dead one leads");
        }
        cluster.node_mut(victim).start()?;
        writer.go_on()?;
        println!("{victim} was killed; a write after {:?}", began.elapsed());
        web.open.go_on()?;
        // The storm's own pace: nothing is awaited here.
        thread::sleep(PERIOD.saturating_sub(began.elapsed()));
    }
    let acknowledged = writer.end();
    println!(
        "{kills} kills: {} writes acknowledged, {} refused or in doubt, at most {:?} between two",
        acknowledged.names.len(),
        acknowledged.refused,
        acknowledged.longest
    );
    web.is_untouched(&cluster)?;
    acknowledged.are_there(&cluster)?;
    cluster.serve("later", 7, &["--publish", "9090:80"])?;
    web.end(&cluster)?;
    for entry in cluster.entries(9090)? {
        ask_tcp(cluster.client(), entry)?;
    }
    let applied = cluster.manager()?.cli_json(&["inspect", "nodes"])?;
    let is_behind = |row: &&serde_json::Value| row["applied"] != row["current"];
    ensure!(applied.len() == 7 && !applied.iter().any(|row| is_behind(&row)));
    Ok(())
}
