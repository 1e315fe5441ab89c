//! Services and their specs.

use bollard_stubs::models as docker;
use model::{
    NetworkId,
    object::{Service, ServiceEndpoint, UpdateState, UpdateStatus},
    spec::{
        EndpointMode, EndpointSpec, FailureAction, PortSpec, Protocol, PublishMode,
        RESTART_DELAY_DEFAULT, RestartCondition, RestartPolicy, STOP_GRACE_PERIOD_DEFAULT,
        ServiceMode, ServiceSpec, UPDATE_MONITOR_DEFAULT, UpdateConfig, UpdateOrder,
    },
};
use serde::Serialize;

use super::{
    date, duration, labels_from_docker, labels_to_docker, nanos, nothing_lost, task, text,
    unsigned, version,
};
use crate::error::ApiError;

/// A service as Docker writes it; `bollard` leaves out the previous spec.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceObject {
    #[serde(flatten)]
    service: docker::Service,
    #[serde(rename = "PreviousSpec", skip_serializing_if = "Option::is_none")]
    previous_spec: Option<docker::ServiceSpec>,
}

/// A service as the API gives it. `insert_defaults` fills in what the user left to the defaults;
/// `status` is the number of its tasks, when asked for.
pub fn service(
    service: &Service,
    insert_defaults: bool,
    status: Option<docker::ServiceServiceStatus>,
) -> ServiceObject {
    let mut spec = service_spec_to_docker(&service.spec);
    if insert_defaults {
        fill_in_defaults(&mut spec, &service.spec);
    }
    ServiceObject {
        service: docker::Service {
            id: Some(service.id.to_string()),
            version: version(service.meta.version),
            created_at: Some(date(service.meta.created_at)),
            updated_at: Some(date(service.meta.updated_at)),
            spec: Some(spec),
            endpoint: Some(endpoint(&service.spec.endpoint, &service.endpoint)),
            update_status: service.update_status.as_ref().map(update_status),
            service_status: status,
            job_status: None,
        },
        previous_spec: service.previous_spec.as_ref().map(service_spec_to_docker),
    }
}

/// Reads a spec whose network targets are ids already.
///
/// # Errors
/// 400 for what is wrong in itself, 501 naming the field for what is not supported.
pub fn service_spec_from_docker(spec: &docker::ServiceSpec) -> Result<ServiceSpec, ApiError> {
    let mut spec = spec.clone();
    let template = spec.task_template.get_or_insert_default();
    // Before API 1.25 the networks stood beside the template; docker-py still writes them there.
    let beside = spec.networks.take().unwrap_or_default();
    if template.networks.as_ref().is_none_or(Vec::is_empty) {
        template.networks = Some(beside);
    }
    let read = ServiceSpec {
        name: spec.name.clone().unwrap_or_default(),
        labels: labels_from_docker(&spec.labels),
        task: task::task_spec_from_docker(template)?,
        mode: mode_from_docker(spec.mode.as_ref())?,
        update: spec
            .update_config
            .as_ref()
            .map(update_from_docker)
            .transpose()?,
        rollback: spec
            .rollback_config
            .as_ref()
            .map(|config| update_from_docker(&as_update_config(config)))
            .transpose()?,
        endpoint: endpoint_spec_from_docker(spec.endpoint_spec.as_ref())?,
    };
    nothing_lost(&spec, &service_spec_to_docker(&read))?;
    Ok(read)
}

/// Writes a spec so that [`service_spec_from_docker`] reads the same one back.
pub fn service_spec_to_docker(spec: &ServiceSpec) -> docker::ServiceSpec {
    docker::ServiceSpec {
        name: Some(spec.name.clone()),
        labels: labels_to_docker(&spec.labels),
        task_template: Some(task::task_spec_to_docker(&spec.task)),
        mode: Some(mode_to_docker(spec.mode)),
        update_config: spec.update.as_ref().map(update_to_docker),
        rollback_config: spec
            .rollback
            .as_ref()
            .map(|config| as_rollback_config(update_to_docker(config))),
        networks: None,
        endpoint_spec: Some(endpoint_spec_to_docker(&spec.endpoint)),
    }
}

fn mode_from_docker(mode: Option<&docker::ServiceSpecMode>) -> Result<ServiceMode, ApiError> {
    let Some(mode) = mode else {
        return Ok(ServiceMode::default());
    };
    let wanted = [
        mode.replicated.is_some(),
        mode.global.is_some(),
        mode.replicated_job.is_some(),
        mode.global_job.is_some(),
    ];
    if wanted.iter().filter(|wanted| **wanted).count() > 1 {
        return Err(ApiError::invalid("must specify only one service mode"));
    }
    if mode.replicated_job.is_some() {
        return Err(ApiError::unsupported("Mode.ReplicatedJob"));
    }
    if mode.global_job.is_some() {
        return Err(ApiError::unsupported("Mode.GlobalJob"));
    }
    if mode.global.is_some() {
        return Ok(ServiceMode::Global);
    }
    let replicas = mode.replicated.as_ref().and_then(|mode| mode.replicas);
    Ok(ServiceMode::Replicated {
        replicas: unsigned("Mode.Replicated.Replicas", replicas.unwrap_or(1))?,
    })
}

fn mode_to_docker(mode: ServiceMode) -> docker::ServiceSpecMode {
    match mode {
        ServiceMode::Global => docker::ServiceSpecMode {
            global: Some(Default::default()),
            ..Default::default()
        },
        ServiceMode::Replicated { replicas } => docker::ServiceSpecMode {
            replicated: Some(docker::ServiceSpecModeReplicated {
                replicas: Some(replicas as i64),
            }),
            ..Default::default()
        },
    }
}

fn update_from_docker(config: &docker::ServiceSpecUpdateConfig) -> Result<UpdateConfig, ApiError> {
    use docker::{
        ServiceSpecUpdateConfigFailureActionEnum as Action,
        ServiceSpecUpdateConfigOrderEnum as Order,
    };
    Ok(UpdateConfig {
        parallelism: unsigned("Parallelism", config.parallelism.unwrap_or(0))?,
        delay: duration("Delay", config.delay.unwrap_or(0))?,
        failure_action: match config.failure_action {
            None | Some(Action::EMPTY | Action::PAUSE) => FailureAction::Pause,
            Some(Action::CONTINUE) => FailureAction::Continue,
            Some(Action::ROLLBACK) => FailureAction::Rollback,
        },
        monitor: config
            .monitor
            .filter(|monitor| *monitor != 0)
            .map(|monitor| duration("Monitor", monitor))
            .transpose()?,
        max_failure_ratio: ratio(config.max_failure_ratio.unwrap_or(0.0))?,
        order: match config.order {
            None | Some(Order::EMPTY | Order::STOP_FIRST) => UpdateOrder::StopFirst,
            Some(Order::START_FIRST) => UpdateOrder::StartFirst,
        },
    })
}

fn ratio(ratio: f64) -> Result<f32, ApiError> {
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio as f32)
    } else {
        Err(ApiError::invalid_argument(
            "TaskTemplate: update-max-failure-ratio must be between 0.0 and 1.0",
        ))
    }
}

fn update_to_docker(config: &UpdateConfig) -> docker::ServiceSpecUpdateConfig {
    use docker::{
        ServiceSpecUpdateConfigFailureActionEnum as Action,
        ServiceSpecUpdateConfigOrderEnum as Order,
    };
    docker::ServiceSpecUpdateConfig {
        parallelism: Some(config.parallelism as i64),
        delay: (!config.delay.is_zero()).then(|| nanos(config.delay)),
        failure_action: Some(match config.failure_action {
            FailureAction::Pause => Action::PAUSE,
            FailureAction::Continue => Action::CONTINUE,
            FailureAction::Rollback => Action::ROLLBACK,
        }),
        monitor: config.monitor.map(nanos),
        max_failure_ratio: Some(f64::from(config.max_failure_ratio)),
        order: Some(match config.order {
            UpdateOrder::StopFirst => Order::STOP_FIRST,
            UpdateOrder::StartFirst => Order::START_FIRST,
        }),
    }
}

/// The two configs have the same fields, but `bollard` has a type for each.
fn as_update_config(config: &docker::ServiceSpecRollbackConfig) -> docker::ServiceSpecUpdateConfig {
    docker::ServiceSpecUpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config
            .failure_action
            .and_then(|action| action.as_ref().parse().ok()),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.and_then(|order| order.as_ref().parse().ok()),
    }
}

fn as_rollback_config(
    config: docker::ServiceSpecUpdateConfig,
) -> docker::ServiceSpecRollbackConfig {
    docker::ServiceSpecRollbackConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        // A rollback cannot roll back: reading refuses it, so every action parses.
        failure_action: config
            .failure_action
            .and_then(|action| action.as_ref().parse().ok()),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.and_then(|order| order.as_ref().parse().ok()),
    }
}

fn endpoint_spec_from_docker(
    spec: Option<&docker::EndpointSpec>,
) -> Result<EndpointSpec, ApiError> {
    let Some(spec) = spec else {
        return Ok(EndpointSpec::default());
    };
    let ports = spec.ports.iter().flatten().map(port_from_docker);
    Ok(EndpointSpec {
        mode: match spec.mode {
            Some(docker::EndpointSpecModeEnum::DNSRR) => EndpointMode::Dnsrr,
            _ => EndpointMode::Vip,
        },
        ports: ports.collect::<Result<_, _>>()?,
    })
}

fn endpoint_spec_to_docker(spec: &EndpointSpec) -> docker::EndpointSpec {
    docker::EndpointSpec {
        mode: Some(match spec.mode {
            EndpointMode::Vip => docker::EndpointSpecModeEnum::VIP,
            EndpointMode::Dnsrr => docker::EndpointSpecModeEnum::DNSRR,
        }),
        ports: ports_to_docker(&spec.ports),
    }
}

fn port_from_docker(port: &docker::EndpointPortConfig) -> Result<PortSpec, ApiError> {
    use docker::{
        EndpointPortConfigProtocolEnum as Proto, EndpointPortConfigPublishModeEnum as Mode,
    };
    let number = |field: &str, value: i64| {
        u16::try_from(value).map_err(|_| {
            ApiError::invalid_argument(format!(
                "EndpointSpec: {field} {value} is not a port number"
            ))
        })
    };
    Ok(PortSpec {
        name: text(&port.name),
        protocol: match port.protocol {
            None | Some(Proto::EMPTY | Proto::TCP) => Protocol::Tcp,
            Some(Proto::UDP) => Protocol::Udp,
            Some(Proto::SCTP) => Protocol::Sctp,
        },
        target: match number("TargetPort", port.target_port.unwrap_or(0))? {
            0 => {
                return Err(ApiError::invalid_argument(
                    "EndpointSpec: TargetPort must not be 0",
                ));
            }
            target => target,
        },
        published: Some(number("PublishedPort", port.published_port.unwrap_or(0))?)
            .filter(|published| *published != 0),
        mode: match port.publish_mode {
            None | Some(Mode::EMPTY | Mode::INGRESS) => PublishMode::Ingress,
            Some(Mode::HOST) => PublishMode::Host,
        },
    })
}

/// `None` for no ports, which Docker leaves out.
pub(super) fn ports_to_docker(ports: &[PortSpec]) -> Option<Vec<docker::EndpointPortConfig>> {
    (!ports.is_empty()).then(|| ports.iter().map(port_to_docker).collect())
}

fn port_to_docker(port: &PortSpec) -> docker::EndpointPortConfig {
    use docker::{
        EndpointPortConfigProtocolEnum as Proto, EndpointPortConfigPublishModeEnum as Mode,
    };
    docker::EndpointPortConfig {
        name: port.name.clone(),
        protocol: Some(match port.protocol {
            Protocol::Tcp => Proto::TCP,
            Protocol::Udp => Proto::UDP,
            Protocol::Sctp => Proto::SCTP,
        }),
        target_port: Some(port.target.into()),
        published_port: port.published.map(i64::from),
        publish_mode: Some(match port.mode {
            PublishMode::Ingress => Mode::INGRESS,
            PublishMode::Host => Mode::HOST,
        }),
    }
}

fn endpoint(spec: &EndpointSpec, endpoint: &ServiceEndpoint) -> docker::ServiceEndpoint {
    let vips = endpoint
        .vips
        .iter()
        .map(|vip| docker::ServiceEndpointVirtualIps {
            network_id: Some(vip.network.to_string()),
            addr: Some(format!("{}/{}", vip.addr, vip.prefix_len)),
        });
    docker::ServiceEndpoint {
        spec: Some(endpoint_spec_to_docker(spec)),
        ports: ports_to_docker(&endpoint.ports),
        virtual_ips: (!endpoint.vips.is_empty()).then(|| vips.collect()),
    }
}

fn update_status(status: &UpdateStatus) -> docker::ServiceUpdateStatus {
    use docker::ServiceUpdateStatusStateEnum as State;
    docker::ServiceUpdateStatus {
        state: Some(match status.state {
            UpdateState::Updating => State::UPDATING,
            UpdateState::Paused => State::PAUSED,
            UpdateState::Completed => State::COMPLETED,
            UpdateState::RollbackStarted => State::ROLLBACK_STARTED,
            UpdateState::RollbackPaused => State::ROLLBACK_PAUSED,
            UpdateState::RollbackCompleted => State::ROLLBACK_COMPLETED,
        }),
        started_at: Some(date(status.started_at)),
        completed_at: status.completed_at.map(date),
        message: Some(status.message.clone()),
    }
}

/// What Docker adds for `insertDefaults`.
fn fill_in_defaults(spec: &mut docker::ServiceSpec, model: &ServiceSpec) {
    let template = spec.task_template.get_or_insert_default();
    let container = template.container_spec.get_or_insert_default();
    container
        .stop_grace_period
        .get_or_insert(nanos(STOP_GRACE_PERIOD_DEFAULT));
    let restart = RestartPolicy {
        delay: Some(RESTART_DELAY_DEFAULT),
        condition: RestartCondition::Any,
        ..RestartPolicy::default()
    };
    template
        .restart_policy
        .get_or_insert_with(|| task::restart_to_docker(&restart));
    let with_monitor = |config: &Option<UpdateConfig>| {
        let mut config = config.clone().unwrap_or_default();
        config.monitor.get_or_insert(UPDATE_MONITOR_DEFAULT);
        update_to_docker(&config)
    };
    spec.update_config = Some(with_monitor(&model.update));
    spec.rollback_config = Some(as_rollback_config(with_monitor(&model.rollback)));
}

/// Puts ids in place of the names (or prefixes) of networks, wherever the spec has them.
///
/// # Errors
/// Whatever `resolve` says of a target.
pub(crate) fn resolve_networks(
    spec: &mut docker::ServiceSpec,
    resolve: impl Fn(&str) -> Result<NetworkId, ApiError>,
) -> Result<(), ApiError> {
    let template = spec.task_template.as_mut();
    let inside = template.and_then(|template| template.networks.as_mut());
    for attachment in inside.into_iter().chain(spec.networks.as_mut()).flatten() {
        let target = attachment.target.clone().unwrap_or_default();
        attachment.target = Some(resolve(&target)?.to_string());
    }
    Ok(())
}

/// Writes out the tag that an image reference without one means. Docker's client adds it to every
/// spec it sends: a spec made without that client must not differ from the same one sent back by
/// it, or scaling would replace healthy tasks.
pub(crate) fn tag_image(spec: &mut docker::ServiceSpec) {
    let container = spec
        .task_template
        .as_mut()
        .and_then(|task| task.container_spec.as_mut());
    let Some(image) = container.and_then(|container| container.image.as_mut()) else {
        return;
    };
    // A colon before the last slash is a registry's port.
    let name = image.rsplit('/').next().unwrap_or(image);
    if !image.is_empty() && !name.contains([':', '@']) {
        image.push_str(":latest");
    }
}

#[cfg(test)]
mod tests;
