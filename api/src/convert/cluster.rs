//! The cluster and its settings.

use bollard_stubs::models as docker;
use model::{
    object::Cluster,
    spec::{ClusterSpec, ExternalCa},
};

use super::{
    date, duration, labels_from_docker, labels_to_docker, nanos, nothing_lost, tls, unsigned,
    version,
};
use crate::error::ApiError;

/// What Swarm's Raft is set to and ours does not have: accepted at these values only.
const SLOW_FOLLOWER_ENTRIES: u64 = 500;
const ELECTION_TICK: i64 = 10;
const HEARTBEAT_TICK: i64 = 1;

const CERT_EXPIRY_MIN_SECS: u64 = 3600;

/// What `GET /swarm` gives: the cluster with its join tokens.
pub fn swarm(cluster: &Cluster) -> docker::Swarm {
    let info = cluster_info(cluster);
    docker::Swarm {
        id: info.id,
        version: info.version,
        created_at: info.created_at,
        updated_at: info.updated_at,
        spec: info.spec,
        tls_info: info.tls_info,
        root_rotation_in_progress: info.root_rotation_in_progress,
        data_path_port: info.data_path_port,
        default_addr_pool: info.default_addr_pool,
        subnet_size: info.subnet_size,
        join_tokens: Some(docker::JoinTokens {
            worker: Some(cluster.tokens.worker.clone()),
            manager: Some(cluster.tokens.manager.clone()),
        }),
    }
}

/// What `GET /info` gives of the cluster: no secrets.
pub fn cluster_info(cluster: &Cluster) -> docker::ClusterInfo {
    let data_path = &cluster.data_path;
    let pools = data_path.default_addr_pool.iter().map(ToString::to_string);
    docker::ClusterInfo {
        id: Some(cluster.id.to_string()),
        version: version(cluster.meta.version),
        created_at: Some(date(cluster.meta.created_at)),
        updated_at: Some(date(cluster.meta.updated_at)),
        spec: Some(cluster_spec_to_docker(&cluster.spec)),
        tls_info: Some(tls::info(&cluster.ca)),
        root_rotation_in_progress: Some(cluster.rotation.is_some()),
        data_path_port: Some(data_path.port.into()),
        default_addr_pool: Some(pools.collect()),
        subnet_size: Some(data_path.subnet_len.into()),
    }
}

/// The settings as Docker writes them.
pub fn cluster_spec_to_docker(spec: &ClusterSpec) -> docker::SwarmSpec {
    docker::SwarmSpec {
        name: Some(spec.name.clone()),
        labels: labels_to_docker(&spec.labels),
        orchestration: Some(docker::SwarmSpecOrchestration {
            task_history_retention_limit: Some(spec.task_history_limit as i64),
        }),
        raft: Some(docker::SwarmSpecRaft {
            snapshot_interval: Some(spec.snapshot_interval),
            keep_old_snapshots: Some(spec.max_snapshots),
            log_entries_for_slow_followers: Some(SLOW_FOLLOWER_ENTRIES),
            election_tick: Some(ELECTION_TICK),
            heartbeat_tick: Some(HEARTBEAT_TICK),
        }),
        dispatcher: Some(docker::SwarmSpecDispatcher {
            heartbeat_period: Some(nanos(spec.dispatcher_heartbeat)),
        }),
        ca_config: Some(docker::SwarmSpecCaConfig {
            node_cert_expiry: Some(nanos(spec.cert_expiry)),
            force_rotate: Some(spec.force_rotate),
            external_cas: external_cas_to_docker(&spec.external_cas),
            ..Default::default()
        }),
        encryption_config: Some(docker::SwarmSpecEncryptionConfig {
            auto_lock_managers: Some(spec.autolock),
        }),
        task_defaults: Some(docker::SwarmSpecTaskDefaults::default()),
    }
}

fn external_cas_to_docker(
    external_cas: &[ExternalCa],
) -> Option<Vec<docker::SwarmSpecCaConfigExternalCas>> {
    let written = |external: &ExternalCa| docker::SwarmSpecCaConfigExternalCas {
        protocol: Some(docker::SwarmSpecCaConfigExternalCasProtocolEnum::CFSSL),
        url: Some(external.url.clone()),
        ca_cert: external.root_pem.clone(),
        options: None,
    };
    let all: Vec<_> = external_cas.iter().map(written).collect();
    (!all.is_empty()).then_some(all)
}

fn external_ca_from_docker(external: &docker::SwarmSpecCaConfigExternalCas) -> ExternalCa {
    let root_pem = external.ca_cert.clone();
    ExternalCa {
        url: external.url.clone().unwrap_or_default(),
        root_pem: root_pem.filter(|pem| !pem.is_empty()),
    }
}

/// `base` with everything that `spec` sets: zero is "as it was", as in Swarm, but for the task
/// history, which may be 0.
///
/// # Errors
/// 400 for what is wrong in itself, 501 naming the field for what is not supported.
pub fn cluster_spec_from_docker(
    spec: &docker::SwarmSpec,
    base: &ClusterSpec,
) -> Result<ClusterSpec, ApiError> {
    let raft = spec.raft.clone().unwrap_or_default();
    let history = spec.orchestration.as_ref();
    let history = history.and_then(|orchestration| orchestration.task_history_retention_limit);
    let heartbeat = spec
        .dispatcher
        .as_ref()
        .and_then(|dispatcher| dispatcher.heartbeat_period);
    let expiry = spec.ca_config.as_ref().and_then(|ca| ca.node_cert_expiry);
    let mut read = base.clone();
    if let Some(name) = spec.name.clone().filter(|name| !name.is_empty()) {
        read.name = name;
    }
    if spec.labels.is_some() {
        read.labels = labels_from_docker(&spec.labels);
    }
    if let Some(history) = history {
        read.task_history_limit = unsigned("TaskHistoryRetentionLimit", history)?;
    }
    if let Some(interval) = raft.snapshot_interval.filter(|interval| *interval != 0) {
        read.snapshot_interval = interval;
    }
    if let Some(keep) = raft.keep_old_snapshots {
        read.max_snapshots = keep;
    }
    if let Some(period) = heartbeat.filter(|period| *period != 0) {
        read.dispatcher_heartbeat = duration("HeartbeatPeriod", period)?;
    }
    if let Some(expiry) = expiry.filter(|expiry| *expiry != 0) {
        read.cert_expiry = duration("NodeCertExpiry", expiry)?;
    }
    let external_cas = spec
        .ca_config
        .as_ref()
        .and_then(|ca| ca.external_cas.as_ref());
    if let Some(external_cas) = external_cas {
        read.external_cas = external_cas.iter().map(external_ca_from_docker).collect();
    }
    if let Some(force) = spec.ca_config.as_ref().and_then(|ca| ca.force_rotate) {
        read.force_rotate = force;
    }
    let encryption = spec.encryption_config.as_ref();
    if let Some(autolock) = encryption.and_then(|encryption| encryption.auto_lock_managers) {
        read.autolock = autolock;
    }
    if read.cert_expiry.as_secs() < CERT_EXPIRY_MIN_SECS {
        return Err(ApiError::invalid_argument(
            "minimum certificate expiry time is: 1h0m0s",
        ));
    }
    nothing_lost(spec, &cluster_spec_to_docker(&read))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<ClusterSpec, ApiError> {
        cluster_spec_from_docker(
            &serde_json::from_value(json).unwrap(),
            &ClusterSpec::default(),
        )
    }

    #[test]
    fn settings_read_back_as_written() {
        let spec = ClusterSpec {
            name: "default".into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            task_history_limit: 0,
            snapshot_interval: 7,
            max_snapshots: 2,
            dispatcher_heartbeat: Duration::from_millis(1500),
            cert_expiry: Duration::from_secs(7200),
            autolock: true,
            force_rotate: 3,
            external_cas: vec![
                ExternalCa {
                    url: "https://ca.example/sign".to_owned(),
                    root_pem: Some("-----BEGIN".to_owned()),
                },
                ExternalCa {
                    url: "https://other.example/sign".to_owned(),
                    root_pem: None,
                },
            ],
        };
        let written = cluster_spec_to_docker(&spec);
        assert_eq!(
            cluster_spec_from_docker(&written, &ClusterSpec::default()),
            Ok(spec)
        );
    }

    /// The spec of `docker swarm init` without flags.
    #[test]
    fn zeros_of_init_are_the_defaults() {
        let spec = read(json!({
            "Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
            "Dispatcher": {}, "CAConfig": {}, "TaskDefaults": {},
            "EncryptionConfig": {"AutoLockManagers": false},
        }));
        assert_eq!(spec, Ok(ClusterSpec::default()));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (json, named) in [
            (json!({"Raft": {"ElectionTick": 3}}), "Raft.ElectionTick"),
            (
                json!({"CAConfig": {"ExternalCAs": [{"URL": "https://x", "Options": {"label": "a"}}]}}),
                "CAConfig.ExternalCAs[0].Options.label",
            ),
            (
                json!({"TaskDefaults": {"LogDriver": {"Name": "syslog"}}}),
                "TaskDefaults.LogDriver",
            ),
        ] {
            let err = read(json).unwrap_err();
            assert_eq!(err.status, 501);
            assert!(err.message.contains(named), "{}", err.message);
        }
    }

    #[test]
    fn certificates_must_live_an_hour() {
        let err = read(json!({"CAConfig": {"NodeCertExpiry": 60_000_000_000_i64}})).unwrap_err();
        assert_eq!(
            err.message,
            "rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s"
        );
    }
}
