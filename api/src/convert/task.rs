//! Tasks and the template they are made from.

use std::net::IpAddr;

use bollard_stubs::models as docker;
use model::{
    TaskState,
    object::{Network, Task},
    spec::{
        ContainerSpec, DnsConfig, NetworkAttachmentSpec, Placement, Resources, RestartCondition,
        RestartPolicy, TaskSpec,
    },
};
use serde::Serialize;

use super::{
    date, duration, labels_from_docker, labels_to_docker, list, nanos, network,
    service::ports_to_docker, text, unsigned, version,
};
use crate::error::ApiError;

/// A task as Docker writes it; `bollard` leaves out the addresses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskObject {
    #[serde(flatten)]
    task: docker::Task,
    #[serde(rename = "NetworksAttachments", skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<AttachmentObject>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AttachmentObject {
    network: network::NetworkObject,
    addresses: Vec<String>,
}

/// A task as the API gives it. `lookup` finds the networks that it is attached to; one that is
/// gone is left out.
pub fn task<'a>(
    task: &Task,
    lookup: impl Fn(model::NetworkId) -> Option<&'a Network>,
) -> TaskObject {
    let attachments = task.attachments.iter().filter_map(|attachment| {
        Some(AttachmentObject {
            network: network::network_object(lookup(attachment.network)?),
            addresses: vec![format!("{}/{}", attachment.addr, attachment.prefix_len)],
        })
    });
    TaskObject {
        attachments: attachments.collect(),
        task: docker::Task {
            id: Some(task.id.to_string()),
            version: version(task.meta.version),
            created_at: Some(date(task.meta.created_at)),
            updated_at: Some(date(task.meta.updated_at)),
            labels: Some(Default::default()),
            spec: Some(task_spec_to_docker(&task.spec)),
            service_id: Some(task.service.to_string()),
            slot: task.slot.map(|slot| slot as i64),
            node_id: task.node.map(|node| node.to_string()),
            status: Some(status(task)),
            desired_state: Some(state(task.desired)),
            ..Default::default()
        },
    }
}

fn status(task: &Task) -> docker::TaskStatus {
    let container = task
        .status
        .container
        .as_ref()
        .map(|container| docker::ContainerStatus {
            container_id: Some(container.container_id.clone()),
            pid: Some(container.pid.into()),
            exit_code: Some(container.exit_code.unwrap_or(0).into()),
        });
    docker::TaskStatus {
        timestamp: Some(date(task.status.timestamp)),
        state: Some(state(task.status.state)),
        message: Some(task.status.message.clone()),
        err: task.status.err.clone(),
        container_status: container,
        port_status: Some(docker::PortStatus {
            ports: ports_to_docker(&task.status.ports),
        }),
    }
}

fn state(state: TaskState) -> docker::TaskState {
    match state {
        TaskState::New => docker::TaskState::NEW,
        TaskState::Pending => docker::TaskState::PENDING,
        TaskState::Assigned => docker::TaskState::ASSIGNED,
        TaskState::Accepted => docker::TaskState::ACCEPTED,
        TaskState::Preparing => docker::TaskState::PREPARING,
        TaskState::Ready => docker::TaskState::READY,
        TaskState::Starting => docker::TaskState::STARTING,
        TaskState::Running => docker::TaskState::RUNNING,
        TaskState::Complete => docker::TaskState::COMPLETE,
        TaskState::Shutdown => docker::TaskState::SHUTDOWN,
        TaskState::Failed => docker::TaskState::FAILED,
        TaskState::Rejected => docker::TaskState::REJECTED,
        TaskState::Remove => docker::TaskState::REMOVE,
        TaskState::Orphaned => docker::TaskState::ORPHANED,
    }
}

/// Reads a template whose network targets are ids. What it does not read is found by the caller's
/// comparison.
pub(super) fn task_spec_from_docker(spec: &docker::TaskSpec) -> Result<TaskSpec, ApiError> {
    match spec.runtime.as_deref() {
        None | Some("" | "container") => {}
        Some(runtime) => {
            return Err(ApiError::unsupported(format!(
                "TaskTemplate.Runtime `{runtime}`"
            )));
        }
    }
    let Some(container) = &spec.container_spec else {
        return Err(ApiError::invalid("mismatched Runtime and *Spec fields"));
    };
    let networks = spec.networks.iter().flatten().map(attachment_from_docker);
    Ok(TaskSpec {
        container: container_from_docker(container)?,
        resources: resources_from_docker(spec.resources.as_ref()),
        restart: spec
            .restart_policy
            .as_ref()
            .map(restart_from_docker)
            .transpose()?,
        placement: placement_from_docker(spec.placement.as_ref())?,
        networks: networks.collect::<Result<_, _>>()?,
        force_update: spec.force_update.unwrap_or(0),
    })
}

pub(super) fn task_spec_to_docker(spec: &TaskSpec) -> docker::TaskSpec {
    let networks = spec
        .networks
        .iter()
        .map(|attachment| docker::NetworkAttachmentConfig {
            target: Some(attachment.network.to_string()),
            aliases: list(&attachment.aliases),
            driver_opts: None,
        });
    docker::TaskSpec {
        container_spec: Some(container_to_docker(&spec.container)),
        resources: Some(resources_to_docker(&spec.resources)),
        restart_policy: spec.restart.as_ref().map(restart_to_docker),
        placement: Some(placement_to_docker(&spec.placement)),
        force_update: Some(spec.force_update),
        runtime: Some("container".to_owned()),
        networks: (!spec.networks.is_empty()).then(|| networks.collect()),
        ..Default::default()
    }
}

fn container_from_docker(spec: &docker::TaskSpecContainerSpec) -> Result<ContainerSpec, ApiError> {
    let dns = spec.dns_config.clone().unwrap_or_default();
    for server in dns.nameservers.iter().flatten() {
        if server.parse::<IpAddr>().is_err() {
            return Err(ApiError::invalid_argument(format!(
                "ContainerSpec: nameserver `{server}` is not an IP address"
            )));
        }
    }
    Ok(ContainerSpec {
        image: spec.image.clone().unwrap_or_default(),
        labels: labels_from_docker(&spec.labels),
        command: spec.command.clone().unwrap_or_default(),
        args: spec.args.clone().unwrap_or_default(),
        env: spec.env.clone().unwrap_or_default(),
        dir: text(&spec.dir),
        user: text(&spec.user),
        hostname: text(&spec.hostname),
        tty: spec.tty.unwrap_or(false),
        read_only: spec.read_only.unwrap_or(false),
        init: spec.init,
        stop_signal: text(&spec.stop_signal),
        stop_grace_period: spec
            .stop_grace_period
            .map(|period| duration("StopGracePeriod", period))
            .transpose()?,
        dns: DnsConfig {
            nameservers: dns.nameservers.unwrap_or_default(),
            search: dns.search.unwrap_or_default(),
            options: dns.options.unwrap_or_default(),
        },
        hosts: spec.hosts.clone().unwrap_or_default(),
    })
}

fn container_to_docker(spec: &ContainerSpec) -> docker::TaskSpecContainerSpec {
    docker::TaskSpecContainerSpec {
        image: Some(spec.image.clone()),
        labels: (!spec.labels.is_empty())
            .then(|| labels_to_docker(&spec.labels))
            .flatten(),
        command: list(&spec.command),
        args: list(&spec.args),
        env: list(&spec.env),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        tty: spec.tty.then_some(true),
        read_only: spec.read_only.then_some(true),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        stop_grace_period: spec.stop_grace_period.map(nanos),
        dns_config: Some(docker::TaskSpecContainerSpecDnsConfig {
            nameservers: list(&spec.dns.nameservers),
            search: list(&spec.dns.search),
            options: list(&spec.dns.options),
        }),
        hosts: list(&spec.hosts),
        isolation: Some(docker::TaskSpecContainerSpecIsolationEnum::DEFAULT),
        ..Default::default()
    }
}

fn resources_from_docker(resources: Option<&docker::TaskSpecResources>) -> Resources {
    let limits = resources
        .and_then(|resources| resources.limits.clone())
        .unwrap_or_default();
    let reserved = resources
        .and_then(|resources| resources.reservations.clone())
        .unwrap_or_default();
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    Resources {
        limit_nano_cpus: set(limits.nano_cpus),
        limit_memory_bytes: set(limits.memory_bytes),
        limit_pids: set(limits.pids),
        reserve_nano_cpus: set(reserved.nano_cpus),
        reserve_memory_bytes: set(reserved.memory_bytes),
    }
}

fn resources_to_docker(resources: &Resources) -> docker::TaskSpecResources {
    docker::TaskSpecResources {
        limits: Some(docker::Limit {
            nano_cpus: resources.limit_nano_cpus,
            memory_bytes: resources.limit_memory_bytes,
            pids: resources.limit_pids,
        }),
        reservations: Some(docker::ResourceObject {
            nano_cpus: resources.reserve_nano_cpus,
            memory_bytes: resources.reserve_memory_bytes,
            generic_resources: None,
        }),
        ..Default::default()
    }
}

fn restart_from_docker(policy: &docker::TaskSpecRestartPolicy) -> Result<RestartPolicy, ApiError> {
    use docker::TaskSpecRestartPolicyConditionEnum as Condition;
    Ok(RestartPolicy {
        condition: match policy.condition {
            None | Some(Condition::EMPTY | Condition::ANY) => RestartCondition::Any,
            Some(Condition::ON_FAILURE) => RestartCondition::OnFailure,
            Some(Condition::NONE) => RestartCondition::None,
        },
        delay: policy
            .delay
            .map(|delay| duration("RestartPolicy.Delay", delay))
            .transpose()?,
        max_attempts: unsigned(
            "RestartPolicy.MaxAttempts",
            policy.max_attempts.unwrap_or(0),
        )?,
        window: policy
            .window
            .map(|window| duration("RestartPolicy.Window", window))
            .transpose()?,
    })
}

pub(super) fn restart_to_docker(policy: &RestartPolicy) -> docker::TaskSpecRestartPolicy {
    use docker::TaskSpecRestartPolicyConditionEnum as Condition;
    docker::TaskSpecRestartPolicy {
        condition: Some(match policy.condition {
            RestartCondition::Any => Condition::ANY,
            RestartCondition::OnFailure => Condition::ON_FAILURE,
            RestartCondition::None => Condition::NONE,
        }),
        delay: policy.delay.map(nanos),
        max_attempts: Some(policy.max_attempts as i64),
        window: policy.window.map(nanos),
    }
}

fn placement_from_docker(
    placement: Option<&docker::TaskSpecPlacement>,
) -> Result<Placement, ApiError> {
    let placement = placement.cloned().unwrap_or_default();
    let preferences = placement.preferences.unwrap_or_default().into_iter();
    Ok(Placement {
        constraints: placement.constraints.unwrap_or_default(),
        preferences: preferences
            .filter_map(|preference| preference.spread?.spread_descriptor)
            .collect(),
        max_replicas: unsigned("Placement.MaxReplicas", placement.max_replicas.unwrap_or(0))?,
    })
}

fn placement_to_docker(placement: &Placement) -> docker::TaskSpecPlacement {
    let preferences =
        placement
            .preferences
            .iter()
            .map(|descriptor| docker::TaskSpecPlacementPreferences {
                spread: Some(docker::TaskSpecPlacementSpread {
                    spread_descriptor: Some(descriptor.clone()),
                }),
            });
    docker::TaskSpecPlacement {
        constraints: list(&placement.constraints),
        preferences: (!placement.preferences.is_empty()).then(|| preferences.collect()),
        max_replicas: (placement.max_replicas != 0).then_some(placement.max_replicas as i64),
        platforms: None,
    }
}

fn attachment_from_docker(
    attachment: &docker::NetworkAttachmentConfig,
) -> Result<NetworkAttachmentSpec, ApiError> {
    let target = attachment.target.as_deref().unwrap_or_default();
    Ok(NetworkAttachmentSpec {
        network: target
            .parse()
            .map_err(|_| ApiError::not_found("network", target))?,
        aliases: attachment.aliases.clone().unwrap_or_default(),
    })
}
