//! Whether a node can take a task.

use model::{ServiceId, object::Task, spec::Protocol};

use super::{explain::Refusal, load::Load, takes_tasks};
use crate::constraint::{self, Constraint, ParseConstraintError};

/// What a task asks of its node.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) service: ServiceId,
    pub(super) nano_cpus: i64,
    pub(super) memory_bytes: i64,
    /// 0 is without bound.
    pub(super) max_replicas: u64,
    pub(super) host_ports: Vec<(Protocol, u16)>,
    /// Labels to spread over.
    pub(super) preferences: Vec<String>,
    constraints: Result<Vec<Constraint>, ParseConstraintError>,
}

impl Demand {
    pub(super) fn of(task: &Task) -> Self {
        Self {
            service: task.service,
            nano_cpus: task.spec.resources.reserve_nano_cpus.unwrap_or(0),
            memory_bytes: task.spec.resources.reserve_memory_bytes.unwrap_or(0),
            max_replicas: task.spec.placement.max_replicas,
            host_ports: host_ports(task).collect(),
            preferences: task.spec.placement.preferences.clone(),
            constraints: constraint::parse(&task.spec.placement),
        }
    }
}

/// Ports that the task takes on its node: those named, and those that the node chose.
pub(super) fn host_ports(task: &Task) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let ports = task.host_ports.iter().chain(&task.status.ports);
    ports.filter_map(|port| Some((port.protocol, port.published?)))
}

/// The first reason against the node. A task `bound` to the node (of a global service) goes there
/// whether others are let in or not.
pub(super) fn check(demand: &Demand, load: &Load, bound: bool) -> Result<(), Refusal> {
    let node = &load.node;
    let constraints = demand.constraints.as_ref();
    let meets = |all: &Vec<Constraint>| all.iter().all(|constraint| constraint.matches(node));
    let checks = [
        (bound || takes_tasks(node), Refusal::NotAvailable),
        (load.has_room(demand), Refusal::Resources),
        (constraints.is_ok_and(meets), Refusal::Constraints),
        (load.has_ports(demand), Refusal::HostPort),
        (load.is_below_max(demand), Refusal::MaxReplicas),
    ];
    let first = checks.into_iter().find(|(passed, _)| !passed);
    first.map_or(Ok(()), |(_, refusal)| Err(refusal))
}
