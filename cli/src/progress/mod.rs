//! Waiting for a service to converge, and showing how it goes.

mod convergence;
mod view;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bollard_stubs::models::NodeState;

use self::{
    convergence::{Convergence, Verdict},
    view::View,
};
use crate::client::{Client, Filters};

/// As often as `docker` asks.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// One line of the display, known by its label.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    label: String,
    text: String,
    /// Steps taken of [`convergence::STEPS`], where there is a bar.
    steps: Option<u64>,
}

impl Line {
    fn text(label: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            text: text.into(),
            steps: None,
        }
    }
}

/// Returns once every task of the service's current spec has run for its monitoring period, or
/// the user interrupts (the daemon goes on). With `quiet` it shows nothing.
///
/// # Errors
/// The daemon paused the update or its rollback, or cannot be asked.
pub async fn wait(client: &Client, service_id: &str, quiet: bool) -> Result<()> {
    let mut view = if quiet {
        View::Quiet
    } else {
        View::for_stdout()
    };
    let mut convergence = Convergence::default();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let verdict = observe(client, service_id, &mut convergence).await?;
        match verdict {
            Verdict::Waiting(lines) => lines.iter().for_each(|line| view.show(line)),
            Verdict::Converged(lines) => {
                lines.iter().for_each(|line| view.show(line));
                return Ok(());
            }
            Verdict::Paused(why) => bail!(why),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            _ = &mut interrupted => {
                view.end();
                println!("Operation continuing in background.");
                println!("Use `swarmnet service ps {service_id}` to check progress.");
                return Ok(());
            }
        }
    }
}

async fn observe(
    client: &Client,
    service_id: &str,
    convergence: &mut Convergence,
) -> Result<Verdict> {
    let filters = Filters::default()
        .with("service", service_id)
        .with("_up-to-date", "true");
    let service = client.service(service_id).await?;
    let tasks = client.tasks(&filters).await?;
    let live_nodes: BTreeSet<String> = client
        .nodes(&Filters::default())
        .await?
        .into_iter()
        .filter(|node| {
            node.status.as_ref().and_then(|status| status.state) != Some(NodeState::DOWN)
        })
        .filter_map(|node| node.id)
        .collect();
    Ok(convergence.observe(&service, &tasks, &live_nodes, Instant::now()))
}
