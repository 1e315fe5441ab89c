//! The flags that `service create` and `service update` have in common.

use anyhow::{Context, Result, bail};
use bollard_stubs::models::{
    EndpointSpec, EndpointSpecModeEnum, Limit, ResourceObject, ServiceSpec,
    ServiceSpecModeReplicated, ServiceSpecRollbackConfig, ServiceSpecUpdateConfig,
    ServiceSpecUpdateConfigFailureActionEnum as FailureActionEnum,
    ServiceSpecUpdateConfigOrderEnum as OrderEnum, TaskSpec, TaskSpecContainerSpec,
    TaskSpecPlacement, TaskSpecResources, TaskSpecRestartPolicy,
    TaskSpecRestartPolicyConditionEnum as ConditionEnum,
};
use clap::{Args, ValueEnum};

use crate::units::{parse_bytes, parse_nano_cpus, parse_nanos};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EndpointMode {
    /// One virtual address on each network
    Vip,
    /// DNS answers with the addresses of the tasks
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Condition {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    StopFirst,
    StartFirst,
}

/// What a switch means when it stands alone; `=false` turns it off, as with Docker's.
const ON: &str = "true";

#[derive(Debug, Default, Args)]
pub struct TaskFlags {
    /// Number of tasks
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u64>,
    /// Most tasks on one node (0: any number)
    #[arg(long, value_name = "COUNT")]
    replicas_max_per_node: Option<i64>,
    /// How the service's name is resolved
    #[arg(long, value_enum)]
    endpoint_mode: Option<EndpointMode>,
    /// Replaces the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group: NAME|UID[:GROUP|GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Hostname of the tasks
    #[arg(long)]
    hostname: Option<String>,
    /// Reap and forward signals with an init process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = ON, value_name = "BOOL")]
    init: Option<bool>,
    /// Allocate a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = ON, value_name = "BOOL")]
    tty: Option<bool>,
    /// Root filesystem read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = ON, value_name = "BOOL")]
    read_only: Option<bool>,
    /// Signal that stops a task
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time from the stop signal to the kill
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    stop_grace_period: Option<i64>,
    #[command(flatten, next_help_heading = "Resources")]
    resources: ResourceFlags,
    #[command(flatten, next_help_heading = "Restart")]
    restart: RestartFlags,
    #[command(flatten, next_help_heading = "Update and rollback")]
    rollout: RolloutFlags,
}

#[derive(Debug, Default, Args)]
struct ResourceFlags {
    /// Most processors a task may use
    #[arg(long, value_name = "CPUS", value_parser = parse_nano_cpus)]
    limit_cpu: Option<i64>,
    /// Most memory a task may use
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    limit_memory: Option<i64>,
    /// Most processes a task may have (0: any number)
    #[arg(long, value_name = "COUNT")]
    limit_pids: Option<i64>,
    /// Processors that a node must have free
    #[arg(long, value_name = "CPUS", value_parser = parse_nano_cpus)]
    reserve_cpu: Option<i64>,
    /// Memory that a node must have free
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    reserve_memory: Option<i64>,
}

#[derive(Debug, Default, Args)]
struct RestartFlags {
    /// When a task that ended is replaced
    #[arg(long, value_enum)]
    restart_condition: Option<Condition>,
    /// Time before it is replaced
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    restart_delay: Option<i64>,
    /// Most replacements (0: any number)
    #[arg(long, value_name = "COUNT")]
    restart_max_attempts: Option<i64>,
    /// Time in which they are counted
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    restart_window: Option<i64>,
}

#[derive(Debug, Default, Args)]
struct RolloutFlags {
    /// Tasks updated at once (0: all)
    #[arg(long, value_name = "COUNT")]
    update_parallelism: Option<i64>,
    /// Time between batches
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    update_delay: Option<i64>,
    /// What to do when a task fails
    #[arg(long, value_enum)]
    update_failure_action: Option<FailureAction>,
    /// How long a new task is watched
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    update_monitor: Option<i64>,
    /// Share of tasks that may fail (0 to 1)
    #[arg(long, value_name = "RATIO")]
    update_max_failure_ratio: Option<f64>,
    /// Whether the old task stops before the new one starts
    #[arg(long, value_enum)]
    update_order: Option<Order>,
    /// Tasks rolled back at once (0: all)
    #[arg(long, value_name = "COUNT")]
    rollback_parallelism: Option<i64>,
    /// Time between batches of a rollback
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    rollback_delay: Option<i64>,
    /// What to do when a task fails in a rollback
    #[arg(long, value_enum)]
    rollback_failure_action: Option<FailureAction>,
    /// How long a task is watched in a rollback
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    rollback_monitor: Option<i64>,
    /// Share of tasks that may fail in a rollback (0 to 1)
    #[arg(long, value_name = "RATIO")]
    rollback_max_failure_ratio: Option<f64>,
    /// Order in a rollback
    #[arg(long, value_enum)]
    rollback_order: Option<Order>,
}

impl TaskFlags {
    /// Writes what was said into the spec, and leaves the rest.
    ///
    /// # Errors
    /// `--replicas` for a global service, an entrypoint with open quotes.
    pub fn apply(&self, spec: &mut ServiceSpec) -> Result<()> {
        self.apply_replicas(spec)?;
        self.rollout.apply(spec)?;
        if let Some(mode) = self.endpoint_mode {
            let endpoint = spec.endpoint_spec.get_or_insert_with(EndpointSpec::default);
            endpoint.mode = Some(match mode {
                EndpointMode::Vip => EndpointSpecModeEnum::VIP,
                EndpointMode::Dnsrr => EndpointSpecModeEnum::DNSRR,
            });
        }
        let task = spec.task_template.get_or_insert_with(TaskSpec::default);
        if let Some(most) = self.replicas_max_per_node {
            let placement = task
                .placement
                .get_or_insert_with(TaskSpecPlacement::default);
            placement.max_replicas = Some(most);
        }
        self.resources.apply(task);
        self.restart.apply(task);
        let container = task
            .container_spec
            .get_or_insert_with(TaskSpecContainerSpec::default);
        self.apply_container(container)
    }

    fn apply_replicas(&self, spec: &mut ServiceSpec) -> Result<()> {
        let Some(replicas) = self.replicas else {
            return Ok(());
        };
        let mode = spec.mode.get_or_insert_default();
        if mode.global.is_some() || mode.global_job.is_some() {
            bail!(
                "--replicas can only be used with replicated services: a global one has one task on every node"
            );
        }
        let replicas = i64::try_from(replicas).context("--replicas is too large")?;
        mode.replicated = Some(ServiceSpecModeReplicated {
            replicas: Some(replicas),
        });
        Ok(())
    }

    fn apply_container(&self, container: &mut TaskSpecContainerSpec) -> Result<()> {
        if let Some(entrypoint) = &self.entrypoint {
            container.command = Some(words(entrypoint).context("invalid --entrypoint")?);
        }
        set(&mut container.dir, &self.workdir);
        set(&mut container.user, &self.user);
        set(&mut container.hostname, &self.hostname);
        set(&mut container.init, &self.init);
        set(&mut container.tty, &self.tty);
        set(&mut container.read_only, &self.read_only);
        set(&mut container.stop_signal, &self.stop_signal);
        set(&mut container.stop_grace_period, &self.stop_grace_period);
        Ok(())
    }
}

impl ResourceFlags {
    fn apply(&self, task: &mut TaskSpec) {
        if self
            .limit_cpu
            .or(self.limit_memory)
            .or(self.limit_pids)
            .is_some()
        {
            let resources = task
                .resources
                .get_or_insert_with(TaskSpecResources::default);
            let limits = resources.limits.get_or_insert_with(Limit::default);
            set(&mut limits.nano_cpus, &self.limit_cpu);
            set(&mut limits.memory_bytes, &self.limit_memory);
            set(&mut limits.pids, &self.limit_pids);
        }
        if self.reserve_cpu.or(self.reserve_memory).is_some() {
            let resources = task
                .resources
                .get_or_insert_with(TaskSpecResources::default);
            let reserved = resources
                .reservations
                .get_or_insert_with(ResourceObject::default);
            set(&mut reserved.nano_cpus, &self.reserve_cpu);
            set(&mut reserved.memory_bytes, &self.reserve_memory);
        }
    }
}

impl RestartFlags {
    fn apply(&self, task: &mut TaskSpec) {
        let numbers = [
            self.restart_delay,
            self.restart_max_attempts,
            self.restart_window,
        ];
        if self.restart_condition.is_none() && numbers.iter().all(Option::is_none) {
            return;
        }
        let policy = task
            .restart_policy
            .get_or_insert_with(|| TaskSpecRestartPolicy {
                condition: Some(ConditionEnum::ANY),
                ..TaskSpecRestartPolicy::default()
            });
        if let Some(condition) = self.restart_condition {
            policy.condition = Some(match condition {
                Condition::None => ConditionEnum::NONE,
                Condition::OnFailure => ConditionEnum::ON_FAILURE,
                Condition::Any => ConditionEnum::ANY,
            });
        }
        set(&mut policy.delay, &self.restart_delay);
        set(&mut policy.max_attempts, &self.restart_max_attempts);
        set(&mut policy.window, &self.restart_window);
    }
}

/// One of the two halves of [`RolloutFlags`].
struct Rollout {
    parallelism: Option<i64>,
    delay: Option<i64>,
    failure_action: Option<FailureAction>,
    monitor: Option<i64>,
    max_failure_ratio: Option<f64>,
    order: Option<Order>,
}

impl RolloutFlags {
    fn apply(&self, spec: &mut ServiceSpec) -> Result<()> {
        let update = Rollout {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            failure_action: self.update_failure_action,
            monitor: self.update_monitor,
            max_failure_ratio: self.update_max_failure_ratio,
            order: self.update_order,
        };
        spec.update_config = update.edit(spec.update_config.take());
        let rollback = Rollout {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            failure_action: self.rollback_failure_action,
            monitor: self.rollback_monitor,
            max_failure_ratio: self.rollback_max_failure_ratio,
            order: self.rollback_order,
        };
        if self.rollback_failure_action == Some(FailureAction::Rollback) {
            bail!("--rollback-failure-action is pause or continue: a rollback is not rolled back");
        }
        // The API has two types of one shape.
        let config: Option<ServiceSpecRollbackConfig> = spec.rollback_config.take();
        let config: Option<ServiceSpecUpdateConfig> = reshape(&config)?;
        spec.rollback_config = reshape(&rollback.edit(config))?;
        Ok(())
    }
}

impl Rollout {
    fn edit(&self, config: Option<ServiceSpecUpdateConfig>) -> Option<ServiceSpecUpdateConfig> {
        let numbers = [self.parallelism, self.delay, self.monitor];
        if numbers.iter().all(Option::is_none)
            && self.failure_action.is_none()
            && self.max_failure_ratio.is_none()
            && self.order.is_none()
        {
            return config;
        }
        let mut config = config.unwrap_or_else(default_rollout);
        set(&mut config.parallelism, &self.parallelism);
        set(&mut config.delay, &self.delay);
        set(&mut config.monitor, &self.monitor);
        set(&mut config.max_failure_ratio, &self.max_failure_ratio);
        if let Some(action) = self.failure_action {
            config.failure_action = Some(match action {
                FailureAction::Pause => FailureActionEnum::PAUSE,
                FailureAction::Continue => FailureActionEnum::CONTINUE,
                FailureAction::Rollback => FailureActionEnum::ROLLBACK,
            });
        }
        if let Some(order) = self.order {
            config.order = Some(match order {
                Order::StopFirst => OrderEnum::STOP_FIRST,
                Order::StartFirst => OrderEnum::START_FIRST,
            });
        }
        Some(config)
    }
}

/// What `docker` sends around the one value that was said.
fn default_rollout() -> ServiceSpecUpdateConfig {
    ServiceSpecUpdateConfig {
        parallelism: Some(1),
        delay: Some(0),
        failure_action: Some(FailureActionEnum::PAUSE),
        monitor: Some(5_000_000_000),
        max_failure_ratio: Some(0.0),
        order: Some(OrderEnum::STOP_FIRST),
    }
}

fn reshape<A: serde::Serialize, B: serde::de::DeserializeOwned>(value: &A) -> Result<B> {
    Ok(serde_json::from_value(serde_json::to_value(value)?)?)
}

fn set<T: Clone>(field: &mut Option<T>, value: &Option<T>) {
    if value.is_some() {
        field.clone_from(value);
    }
}

/// Words as a shell splits them.
pub fn words(text: &str) -> Result<Vec<String>> {
    shell_words::split(text).with_context(|| format!("`{text}` has an open quote"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: TaskFlags,
    }

    fn apply(args: &[&str], spec: Value) -> Result<Value> {
        let line = Line::try_parse_from(std::iter::once(&"x").chain(args))?;
        let mut spec = serde_json::from_value(spec)?;
        line.flags.apply(&mut spec)?;
        Ok(serde_json::to_value(spec)?)
    }

    #[test]
    fn nothing_said_changes_nothing() {
        let spec = json!({
            "Name": "web", "Mode": {"Replicated": {"Replicas": 3}},
            "TaskTemplate": {"ContainerSpec": {"Image": "host"}},
            "UpdateConfig": {"Parallelism": 2}, "RollbackConfig": {"Delay": 7},
        });
        assert_eq!(apply(&[], spec.clone()).unwrap(), spec);
    }

    #[test]
    fn flags_reach_their_fields() {
        let args = [
            "--replicas=3",
            "--limit-cpu",
            "0.5",
            "--reserve-memory=64m",
            "--stop-grace-period=3s",
            "--restart-delay",
            "1s",
            "--tty",
            "--init=false",
            "--endpoint-mode",
            "dnsrr",
            "--entrypoint",
            "sh -c 'a b'",
            "--replicas-max-per-node=1",
        ];
        assert_eq!(
            apply(&args, json!({})).unwrap(),
            json!({
                "Mode": {"Replicated": {"Replicas": 3}},
                "EndpointSpec": {"Mode": "dnsrr"},
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Command": ["sh", "-c", "a b"], "TTY": true, "Init": false,
                        "StopGracePeriod": 3_000_000_000_i64,
                    },
                    "Resources": {
                        "Limits": {"NanoCPUs": 500_000_000},
                        "Reservations": {"MemoryBytes": 67_108_864},
                    },
                    "RestartPolicy": {"Condition": "any", "Delay": 1_000_000_000},
                    "Placement": {"MaxReplicas": 1},
                },
            })
        );
    }

    #[test]
    fn one_rollout_flag_brings_dockers_other_values() {
        let spec = apply(
            &["--update-delay=10s", "--rollback-order=start-first"],
            json!({}),
        )
        .unwrap();
        assert_eq!(
            spec["UpdateConfig"],
            json!({
                "Parallelism": 1, "Delay": 10_000_000_000_i64, "FailureAction": "pause",
                "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0.0, "Order": "stop-first",
            })
        );
        assert_eq!(spec["RollbackConfig"]["Order"], "start-first");
        let kept = json!({"UpdateConfig": {"Parallelism": 4, "Delay": 1}});
        let spec = apply(&["--update-delay=0s"], kept).unwrap();
        assert_eq!(spec["UpdateConfig"], json!({"Parallelism": 4, "Delay": 0}));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(apply(&["--replicas=2"], json!({"Mode": {"Global": {}}})).is_err());
        assert!(apply(&["--rollback-failure-action=rollback"], json!({})).is_err());
        assert!(apply(&["--entrypoint", "sh 'a"], json!({})).is_err());
        assert!(apply(&["--restart-condition=sometimes"], json!({})).is_err());
    }
}
