//! The parts of the benchmark, in their order.

use std::fmt;

use anyhow::Result;

use crate::{
    Parts, change, feed, live, managers, mesh, overlay, programs_part, report::Report, scale,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The mesh's entry by test runs: nanoseconds a packet.
    Programs,
    /// The scenarios of the kernel's bench_xdp_lb.
    Scenarios,
    /// Live packets a second over veth.
    Live,
    /// From the desired state to all maps; memory.
    Change,
    /// Task to task and through VIPs.
    Overlay,
    /// Through the mesh.
    Mesh,
    /// From `service scale` to the last acknowledgement.
    Scale,
    /// What the managers commit, against etcd.
    Writes,
    /// From the last write of a leader to the next of another.
    Failover,
    /// What the managers tell a thousand agents, and what that costs them.
    Feed,
}

impl Part {
    const ALL: [Self; 10] = [
        Self::Programs,
        Self::Scenarios,
        Self::Live,
        Self::Change,
        Self::Overlay,
        Self::Mesh,
        Self::Scale,
        Self::Writes,
        Self::Failover,
        Self::Feed,
    ];

    /// All when none is named.
    pub fn chosen(only: &[Self]) -> impl Iterator<Item = Self> {
        let chosen = |part: &Self| only.is_empty() || only.contains(part);
        Self::ALL.into_iter().filter(chosen)
    }

    /// By the name that a user gives it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.to_string() == name)
    }

    /// # Errors
    /// When something is not measured as its row says.
    pub fn measure(self, parts: &Parts, report: &mut Report) -> Result<()> {
        match self {
            Self::Programs => programs_part::rows(parts, report),
            Self::Scenarios => programs_part::scenarios(parts, report),
            Self::Live => live::measure(parts, report),
            Self::Change => change::measure(parts, report),
            Self::Overlay => overlay::measure(parts, report),
            Self::Mesh => mesh::measure(parts, report),
            Self::Scale => scale::measure(parts, report),
            Self::Writes => managers::writes::measure(parts, report),
            Self::Failover => managers::failover::measure(parts, report),
            Self::Feed => feed::measure(parts, report),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = clap::ValueEnum::to_possible_value(self);
        f.write_str(name.as_ref().map_or("?", |name| name.get_name()))
    }
}
