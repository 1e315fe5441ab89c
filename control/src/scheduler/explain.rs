//! Why no node takes a task, in Swarm's words.

use std::{collections::BTreeMap, fmt};

/// The first thing about a node that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    NotAvailable,
    Resources,
    Constraints,
    HostPort,
    MaxReplicas,
}

/// Refusals of all nodes.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<Refusal, usize>);

impl Refusals {
    pub(super) fn count(&mut self, refusal: Refusal) {
        *self.0.entry(refusal).or_default() += 1;
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no suitable node");
        }
        let mut counts: Vec<_> = self.0.iter().collect();
        counts.sort_by_key(|(_, nodes)| std::cmp::Reverse(**nodes));
        let reasons: Vec<_> = counts
            .into_iter()
            .map(|(refusal, nodes)| sentence(*refusal, *nodes))
            .collect();
        write!(f, "no suitable node ({})", reasons.join("; "))
    }
}

fn sentence(refusal: Refusal, nodes: usize) -> String {
    let plural = if nodes == 1 { "node" } else { "nodes" };
    match refusal {
        Refusal::NotAvailable => format!("{nodes} {plural} not available for new tasks"),
        Refusal::Resources => format!("insufficient resources on {nodes} {plural}"),
        Refusal::Constraints => {
            format!("scheduling constraints not satisfied on {nodes} {plural}")
        }
        Refusal::HostPort => format!("host-mode port already in use on {nodes} {plural}"),
        Refusal::MaxReplicas => "max replicas per node limit exceed".to_owned(),
    }
}
