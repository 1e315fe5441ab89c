//! Flags of how a service's traffic goes. Each is a label, so that any Docker client can set it.

use std::collections::HashMap;

use anyhow::Result;
use clap::Args;
use model::traffic::{AFFINITY, AFFINITY_TIMEOUT, PREFER, RETURN, Traffic, WEIGHT};

type Labels = HashMap<String, String>;

#[derive(Debug, Args)]
pub struct TrafficFlags {
    /// How replies of published ports go back: tunnel (through the node that the client asked) or
    /// dsr (straight from the task's node)
    #[arg(long = "return", value_name = "tunnel|dsr")]
    back: Option<String>,
    /// Where a client's flows go: client-ip (all to one task) or none
    #[arg(long, value_name = "none|client-ip")]
    affinity: Option<String>,
    /// How long a silent client keeps its task when tasks come and go, from 10s to 18h; empty for not at
    /// all
    #[arg(long, value_name = "DURATION")]
    affinity_timeout: Option<String>,
    /// Which tasks get new connections: spread (all alike) or local (those of the node where a
    /// connection comes in, as long as it has any)
    #[arg(long, value_name = "spread|local")]
    prefer: Option<String>,
    /// What a task weighs: node.labels.NAME, a label of its node with a number from 1 to 100; empty
    /// for all alike
    #[arg(long, value_name = "node.labels.NAME")]
    weight: Option<String>,
}

impl TrafficFlags {
    /// Sets the labels of the flags that are given.
    ///
    /// # Errors
    /// Says what a flag may be.
    pub fn apply(&self, labels: &mut Option<Labels>) -> Result<()> {
        let flags = [
            (RETURN, &self.back),
            (AFFINITY, &self.affinity),
            (AFFINITY_TIMEOUT, &self.affinity_timeout),
            (PREFER, &self.prefer),
            (WEIGHT, &self.weight),
        ];
        let given = flags
            .iter()
            .filter_map(|(label, value)| Some((*label, value.as_ref()?)));
        let given: Vec<_> = given.collect();
        if given.is_empty() {
            return Ok(());
        }
        let labels = labels.get_or_insert_default();
        for (label, value) in given {
            match value.is_empty() && [AFFINITY_TIMEOUT, WEIGHT].contains(&label) {
                true => drop(labels.remove(label)),
                false => drop(labels.insert(label.to_owned(), value.clone())),
            }
        }
        // One flag may make no sense without another's label.
        Traffic::of(&labels.clone().into_iter().collect())?;
        Ok(())
    }
}
