//! Whether a spec makes sense by itself.

use std::collections::BTreeSet;

use model::spec::{
    ContainerSpec, EndpointMode, EndpointSpec, PublishMode, REPLICAS_MAX, Resources, ServiceMode,
    ServiceSpec, TaskSpec, UpdateConfig,
};
use model::traffic::{Traffic, publish_label};

use super::OpError;
use crate::constraint;

const NAME_LEN_MAX: usize = 63;
const NANO_CPUS_MIN: i64 = 1_000_000;
const MEMORY_BYTES_MIN: i64 = 4 << 20;

/// Names become host names in DNS.
pub(super) fn name(name: &str) -> Result<(), OpError> {
    if name.is_empty() {
        return Err(OpError::invalid("meta: name must be provided"));
    }
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let ends = [name.bytes().next(), name.bytes().last()];
    let ends_well = ends
        .into_iter()
        .flatten()
        .all(|b| b.is_ascii_alphanumeric());
    if !ends_well || !name.bytes().all(inner) {
        return Err(OpError::invalid(
            "name must be valid as a DNS name component",
        ));
    }
    if name.len() > NAME_LEN_MAX {
        return Err(OpError::invalid("name must be 63 characters or fewer"));
    }
    Ok(())
}

pub(super) fn service(spec: &ServiceSpec) -> Result<(), OpError> {
    name(&spec.name)?;
    mode(spec.mode)?;
    task(&spec.task)?;
    for config in [&spec.update, &spec.rollback].into_iter().flatten() {
        update_config(config)?;
    }
    endpoint(&spec.endpoint)?;
    traffic(spec)
}

fn mode(mode: ServiceMode) -> Result<(), OpError> {
    match mode {
        ServiceMode::Replicated { replicas } if replicas > REPLICAS_MAX => Err(OpError::invalid(
            format!("{replicas} replicas are too many: a service has {REPLICAS_MAX} at most"),
        )),
        ServiceMode::Replicated { .. } | ServiceMode::Global => Ok(()),
    }
}

/// Our own labels, each of a port that is published through the mesh.
fn traffic(spec: &ServiceSpec) -> Result<(), OpError> {
    let traffic = Traffic::of(&spec.labels).map_err(|error| OpError::invalid(error.to_string()))?;
    for (protocol, number) in traffic.addresses.keys() {
        let is_published = spec.endpoint.ports.iter().any(|port| {
            let at = (port.protocol, port.published, port.mode);
            at == (*protocol, Some(*number), PublishMode::Ingress)
        });
        if !is_published {
            return Err(OpError::invalid(format!(
                "label {}: the service publishes no such port in ingress mode; publish it, or \
                 remove the label",
                publish_label(*protocol, *number)
            )));
        }
    }
    Ok(())
}

fn task(spec: &TaskSpec) -> Result<(), OpError> {
    container(&spec.container)?;
    resources(&spec.resources)?;
    constraint::parse(&spec.placement).map_err(|error| OpError::invalid(error.to_string()))?;
    let mut networks = BTreeSet::new();
    for attachment in &spec.networks {
        if !networks.insert(attachment.network) {
            return Err(OpError::invalid(format!(
                "network {} is attached twice; name it once with all its aliases",
                attachment.network
            )));
        }
    }
    Ok(())
}

fn container(spec: &ContainerSpec) -> Result<(), OpError> {
    if spec.image.is_empty() {
        return Err(OpError::invalid(
            "ContainerSpec: image reference must be provided",
        ));
    }
    match spec.env.iter().find(|env| env.starts_with('=')) {
        Some(env) => Err(OpError::invalid(format!(
            "ContainerSpec: environment variable '{env}' has no name"
        ))),
        None => Ok(()),
    }
}

fn resources(spec: &Resources) -> Result<(), OpError> {
    let cpus = [spec.limit_nano_cpus, spec.reserve_nano_cpus];
    for cpus in cpus.into_iter().flatten().filter(|cpus| *cpus != 0) {
        if cpus < NANO_CPUS_MIN {
            let given = cpus as f64 / 1e9;
            return Err(OpError::invalid(format!(
                "invalid cpu value {given}: Must be at least 0.001"
            )));
        }
    }
    let memory = [spec.limit_memory_bytes, spec.reserve_memory_bytes];
    for bytes in memory.into_iter().flatten().filter(|bytes| *bytes != 0) {
        if bytes < MEMORY_BYTES_MIN {
            return Err(OpError::invalid(format!(
                "invalid memory value {bytes}: Must be at least 4MiB"
            )));
        }
    }
    Ok(())
}

fn update_config(config: &UpdateConfig) -> Result<(), OpError> {
    if (0.0..=1.0).contains(&config.max_failure_ratio) {
        Ok(())
    } else {
        Err(OpError::invalid(
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ))
    }
}

fn endpoint(spec: &EndpointSpec) -> Result<(), OpError> {
    let mut published = BTreeSet::new();
    for port in &spec.ports {
        if port.target == 0 {
            return Err(OpError::invalid(
                "EndpointSpec: target port must be between 1 and 65535",
            ));
        }
        if spec.mode == EndpointMode::Dnsrr && port.mode == PublishMode::Ingress {
            return Err(OpError::invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        let Some(number) = port.published.filter(|number| *number != 0) else {
            continue;
        };
        if !published.insert((port.protocol, number)) {
            return Err(OpError::invalid(
                "EndpointSpec: duplicate published ports provided",
            ));
        }
    }
    Ok(())
}
