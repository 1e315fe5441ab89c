//! `service inspect --pretty`, laid out as Docker does.

use std::fmt::{Result, Write};

use bollard_stubs::models::{
    Service, ServiceSpec, ServiceSpecMode, ServiceSpecRollbackConfig, ServiceSpecUpdateConfig,
    ServiceUpdateStatus, ServiceUpdateStatusStateEnum, TaskSpecContainerSpec, TaskSpecPlacement,
    TaskSpecResources,
};
use jiff::Timestamp;

use model::traffic::Traffic;

use crate::{
    spec::sorted,
    units::{ago, go_duration, show_bytes},
};

const NANO: f64 = 1e9;

/// `network_name` finds the name of a network id.
pub fn service(service: &Service, network_name: impl Fn(&str) -> String, now: Timestamp) -> String {
    let mut out = String::new();
    write(&mut out, service, network_name, now).expect("a string takes all writes");
    out
}

fn write(
    out: &mut String,
    service: &Service,
    network_name: impl Fn(&str) -> String,
    now: Timestamp,
) -> Result {
    let spec = service.spec.clone().unwrap_or_default();
    let task = spec.task_template.clone().unwrap_or_default();
    write_head(out, service, &spec)?;
    if let Some(status) = &service.update_status {
        write_status(out, status, now)?;
    }
    write_placement(out, &task.placement.unwrap_or_default())?;
    if let Some(config) = &spec.update_config {
        write_update(out, config)?;
    }
    if let Some(config) = &spec.rollback_config {
        write_rollback(out, config)?;
    }
    write_container(out, &task.container_spec.unwrap_or_default())?;
    if let Some(resources) = &task.resources {
        write_resources(out, resources)?;
    }
    let targets = task
        .networks
        .into_iter()
        .flatten()
        .filter_map(|network| network.target);
    let networks: Vec<String> = targets.map(|target| network_name(&target)).collect();
    if !networks.is_empty() {
        writeln!(out, "Networks: {} ", networks.join(" "))?;
    }
    write_endpoint(out, service, &spec)
}

fn write_head(out: &mut String, service: &Service, spec: &ServiceSpec) -> Result {
    writeln!(
        out,
        "\nID:\t\t{}",
        service.id.as_deref().unwrap_or_default()
    )?;
    writeln!(out, "Name:\t\t{}", spec.name.as_deref().unwrap_or_default())?;
    if let Some(labels) = spec.labels.as_ref().filter(|labels| !labels.is_empty()) {
        writeln!(out, "Labels:")?;
        for label in sorted(labels) {
            writeln!(out, " {label}")?;
        }
    }
    match &spec.mode {
        Some(ServiceSpecMode {
            replicated: Some(replicated),
            ..
        }) => {
            writeln!(out, "Service Mode:\tReplicated")?;
            writeln!(out, " Replicas:\t{}", replicated.replicas.unwrap_or(1))
        }
        Some(ServiceSpecMode {
            global: Some(_), ..
        }) => writeln!(out, "Service Mode:\tGlobal"),
        _ => writeln!(out, "Service Mode:"),
    }
}

fn write_status(out: &mut String, status: &ServiceUpdateStatus, now: Timestamp) -> Result {
    let Some(state) = status
        .state
        .filter(|state| *state != ServiceUpdateStatusStateEnum::EMPTY)
    else {
        return Ok(());
    };
    writeln!(out, "UpdateStatus:\n State:\t\t{state}")?;
    if status.started_at.is_some() {
        writeln!(out, " Started:\t{}", ago(status.started_at.as_deref(), now))?;
    }
    if state == ServiceUpdateStatusStateEnum::COMPLETED && status.completed_at.is_some() {
        writeln!(
            out,
            " Completed:\t{}",
            ago(status.completed_at.as_deref(), now)
        )?;
    }
    writeln!(
        out,
        " Message:\t{}",
        status.message.as_deref().unwrap_or_default()
    )
}

fn write_placement(out: &mut String, placement: &TaskSpecPlacement) -> Result {
    writeln!(out, "Placement:")?;
    let constraints = placement.constraints.as_deref().unwrap_or_default();
    if !constraints.is_empty() {
        writeln!(out, " Constraints:\t[{}]", constraints.join(" "))?;
    }
    let spreads: Vec<String> = placement
        .preferences
        .iter()
        .flatten()
        .filter_map(|preference| preference.spread.as_ref()?.spread_descriptor.as_ref())
        .map(|descriptor| format!("spread={descriptor}"))
        .collect();
    if !spreads.is_empty() {
        writeln!(out, " Preferences:   [{}]", spreads.join(" "))?;
    }
    match placement.max_replicas {
        Some(most) if most > 0 => writeln!(out, " Max Replicas Per Node:   {most}"),
        _ => Ok(()),
    }
}

/// One field of a rollout as text, empty when it is not set.
fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn write_update(out: &mut String, config: &ServiceSpecUpdateConfig) -> Result {
    writeln!(out, "UpdateConfig:")?;
    write_pace(out, config.parallelism, config.delay)?;
    writeln!(out, " On failure:\t{}", text(config.failure_action))?;
    write_watch(out, config.monitor, config.max_failure_ratio)?;
    writeln!(out, " Update order:      {}", text(config.order))
}

fn write_rollback(out: &mut String, config: &ServiceSpecRollbackConfig) -> Result {
    writeln!(out, "RollbackConfig:")?;
    write_pace(out, config.parallelism, config.delay)?;
    writeln!(out, " On failure:\t{}", text(config.failure_action))?;
    write_watch(out, config.monitor, config.max_failure_ratio)?;
    writeln!(out, " Rollback order:    {}", text(config.order))
}

fn write_pace(out: &mut String, parallelism: Option<i64>, delay: Option<i64>) -> Result {
    writeln!(out, " Parallelism:\t{}", parallelism.unwrap_or_default())?;
    match delay {
        Some(delay) if delay > 0 => writeln!(out, " Delay:\t\t{}", go_duration(delay)),
        _ => Ok(()),
    }
}

fn write_watch(out: &mut String, monitor: Option<i64>, ratio: Option<f64>) -> Result {
    if let Some(monitor) = monitor.filter(|monitor| *monitor > 0) {
        writeln!(out, " Monitoring Period: {}", go_duration(monitor))?;
    }
    writeln!(out, " Max failure ratio: {}", ratio.unwrap_or_default())
}

fn write_container(out: &mut String, container: &TaskSpecContainerSpec) -> Result {
    writeln!(
        out,
        "ContainerSpec:\n Image:\t\t{}",
        text(container.image.as_ref())
    )?;
    let args = container.args.as_deref().unwrap_or_default();
    if !args.is_empty() {
        writeln!(out, " Args:\t\t{} ", args.join(" "))?;
    }
    let env = container.env.as_deref().unwrap_or_default();
    if !env.is_empty() {
        writeln!(out, " Env:\t\t{} ", env.join(" "))?;
    }
    if let Some(dir) = container.dir.as_ref().filter(|dir| !dir.is_empty()) {
        writeln!(out, " Dir:\t\t{dir}")?;
    }
    if let Some(init) = container.init {
        writeln!(out, " Init:\t\t{init}")?;
    }
    match container.user.as_ref().filter(|user| !user.is_empty()) {
        Some(user) => writeln!(out, " User: {user}"),
        None => Ok(()),
    }
}

fn write_resources(out: &mut String, resources: &TaskSpecResources) -> Result {
    writeln!(out, "Resources:")?;
    let reserved = resources.reservations.clone().unwrap_or_default();
    write_amounts(
        out,
        "Reservations",
        reserved.nano_cpus,
        reserved.memory_bytes,
    )?;
    let limits = resources.limits.clone().unwrap_or_default();
    write_amounts(out, "Limits", limits.nano_cpus, limits.memory_bytes)?;
    match limits.pids {
        Some(pids) if pids > 0 => writeln!(out, "  PIDs:\t\t{pids}"),
        _ => Ok(()),
    }
}

fn write_amounts(
    out: &mut String,
    title: &str,
    nano_cpus: Option<i64>,
    memory: Option<i64>,
) -> Result {
    let nano_cpus = nano_cpus.filter(|nano_cpus| *nano_cpus > 0);
    let memory = memory.filter(|memory| *memory > 0);
    if nano_cpus.is_some() || memory.is_some() {
        writeln!(out, " {title}:")?;
    }
    if let Some(nano_cpus) = nano_cpus {
        writeln!(out, "  CPU:\t\t{}", nano_cpus as f64 / NANO)?;
    }
    match memory {
        Some(memory) => writeln!(out, "  Memory:\t{}", show_bytes(memory)),
        None => Ok(()),
    }
}

/// What the service's labels say of its traffic; nothing when it goes as in Swarm.
fn write_traffic(out: &mut String, spec: &ServiceSpec) -> Result {
    let labels = spec.labels.clone().unwrap_or_default();
    // The manager took these labels, so they are right.
    let traffic = Traffic::of(&labels.into_iter().collect()).unwrap_or_default();
    if traffic.policy.direct_return {
        writeln!(out, "Return:\t\tdsr")?;
    }
    if traffic.policy.affinity {
        let timeout = match traffic.policy.affinity_secs {
            0 => String::new(),
            secs => format!(", kept for {secs}s of silence"),
        };
        writeln!(out, "Affinity:\tclient-ip{timeout}")?;
    }
    if traffic.policy.near_first {
        writeln!(out, "Prefer:\t\tlocal")?;
    }
    if let Some(weight) = &traffic.weight {
        writeln!(out, "Weight:\t\tnode.labels.{weight}")?;
    }
    for ((protocol, port), addresses) in &traffic.addresses {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "Addresses:\t{port}/{protocol} on {}",
            addresses.join(", ")
        )?;
    }
    Ok(())
}

fn write_endpoint(out: &mut String, service: &Service, spec: &ServiceSpec) -> Result {
    let mode = spec
        .endpoint_spec
        .as_ref()
        .and_then(|endpoint| endpoint.mode);
    writeln!(out, "Endpoint Mode:\t{}", text(mode))?;
    write_traffic(out, spec)?;
    let ports = service
        .endpoint
        .as_ref()
        .and_then(|endpoint| endpoint.ports.as_deref());
    let ports = ports.unwrap_or_default();
    if !ports.is_empty() {
        writeln!(out, "Ports:")?;
    }
    for (index, port) in ports.iter().enumerate() {
        let end = if index + 1 == ports.len() { " " } else { "" };
        let published = port.published_port.unwrap_or_default();
        writeln!(out, " PublishedPort = {published}")?;
        writeln!(out, "  Protocol = {}", text(port.protocol))?;
        writeln!(
            out,
            "  TargetPort = {}",
            port.target_port.unwrap_or_default()
        )?;
        writeln!(out, "  PublishMode = {}{end}", text(port.publish_mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn fields_stand_where_docker_has_them() {
        let service = serde_json::from_value(json!({
            "ID": "x",
            "Spec": {
                "Name": "web", "Labels": {"a": "1"}, "Mode": {"Replicated": {"Replicas": 3}},
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "host", "Args": ["sleep", "9"], "Env": ["A=1"]},
                    "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}},
                    "Placement": {"Constraints": ["node.role==worker"]},
                    "Networks": [{"Target": "n1"}],
                },
                "UpdateConfig": {"Parallelism": 2, "Delay": 10_000_000_000_i64, "FailureAction": "pause",
                    "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0.2, "Order": "stop-first"},
                "EndpointSpec": {"Mode": "vip"},
            },
            "Endpoint": {"Ports": [{
                "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress",
            }]},
            "UpdateStatus": {"State": "completed", "StartedAt": "2026-11-21T10:00:00Z",
                "CompletedAt": "2026-11-21T10:04:00Z", "Message": "update completed"},
        }))
        .unwrap();
        let now = "2026-11-21T10:05:00Z".parse().unwrap();
        let text = super::service(&service, |id| format!("name of {id}"), now);
        assert_eq!(
            text,
            "\nID:\t\tx\nName:\t\tweb\nLabels:\n a=1\nService Mode:\tReplicated\n Replicas:\t3\n\
             UpdateStatus:\n State:\t\tcompleted\n Started:\t5 minutes ago\n \
             Completed:\tAbout a minute ago\n Message:\tupdate completed\n\
             Placement:\n Constraints:\t[node.role==worker]\n\
             UpdateConfig:\n Parallelism:\t2\n Delay:\t\t10s\n On failure:\tpause\n \
             Monitoring Period: 5s\n Max failure ratio: 0.2\n Update order:      stop-first\n\
             ContainerSpec:\n Image:\t\thost\n Args:\t\tsleep 9 \n Env:\t\tA=1 \n\
             Resources:\n Limits:\n  CPU:\t\t0.5\n  Memory:\t64MiB\n\
             Networks: name of n1 \nEndpoint Mode:\tvip\nPorts:\n PublishedPort = 8080\n  \
             Protocol = tcp\n  TargetPort = 80\n  PublishMode = ingress \n"
        );
    }

    #[test]
    fn bare_service_is_no_trouble() {
        let text = super::service(
            &Default::default(),
            str::to_owned,
            jiff::Timestamp::UNIX_EPOCH,
        );
        assert!(text.contains("Service Mode:\nPlacement:\nContainerSpec:"));
    }
}
