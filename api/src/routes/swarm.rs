//! The cluster as a whole: making, joining, leaving, settings.

use axum::{Json, extract::State, http::StatusCode};
use bollard_stubs::models as docker;
use control::ops::{self, Rotate};
use ipnet::Ipv4Net;
use model::{
    object::DataPathConfig,
    spec::{Availability, ClusterSpec},
};
use vault::UnlockKey;

use super::{Ctx, manager, state};
use crate::{
    convert,
    error::ApiError,
    local_node::{Host, HostPort, InitRequest, JoinParams, MemberState, ParseHostError},
    request::{Body, Params, SwarmInit, SwarmJoin, SwarmUnlock},
};

pub(super) async fn inspect(State(node): State<Ctx>) -> Result<Json<docker::Swarm>, ApiError> {
    let state = state(&node)?;
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    Ok(Json(convert::swarm(cluster)))
}

fn no_cluster() -> ApiError {
    ApiError::internal("the store holds no cluster yet; try again")
}

pub(super) async fn init(
    State(node): State<Ctx>,
    Body(init): Body<SwarmInit>,
) -> Result<Json<String>, ApiError> {
    if init.request.force_new_cluster == Some(true) {
        let advertise = address(init.request.advertise_addr.as_deref())?;
        return Ok(Json(node.force_new_cluster(advertise).await?.to_string()));
    }
    not_a_member(&node)?;
    let request = init_request(init)?;
    Ok(Json(node.init(request).await?.to_string()))
}

pub(super) async fn join(
    State(node): State<Ctx>,
    Body(join): Body<SwarmJoin>,
) -> Result<(), ApiError> {
    not_a_member(&node)?;
    node.join(join_params(join)?).await
}

fn not_a_member(node: &Ctx) -> Result<(), ApiError> {
    match node.status().state {
        MemberState::Inactive => Ok(()),
        _ => Err(ApiError::unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm \
             and join another one.",
        )),
    }
}

pub(super) async fn update(
    State(node): State<Ctx>,
    params: Params,
    Body(spec): Body<docker::SwarmSpec>,
) -> Result<(), ApiError> {
    let manager = manager(&node)?;
    let store = manager.store();
    let version = params.version("swarm")?;
    let state = store.state();
    let base = &state.cluster().ok_or_else(no_cluster)?.spec;
    let spec = convert::cluster_spec_from_docker(&spec, base)?;
    let reached = manager.reach_external_cas(&spec).await;
    reached.map_err(ApiError::invalid_argument)?;
    let rotate = Rotate {
        worker_token: params.flag("rotateWorkerToken"),
        manager_token: params.flag("rotateManagerToken"),
        unlock_key: params.flag("rotateManagerUnlockKey"),
    };
    ops::update_cluster(store, version, spec, rotate).await?;
    Ok(())
}

pub(super) async fn unlock_key(
    State(node): State<Ctx>,
) -> Result<Json<docker::UnlockKeyResponse>, ApiError> {
    let state = state(&node)?;
    let key = state
        .cluster()
        .and_then(|cluster| cluster.unlock_key.as_ref());
    Ok(Json(docker::UnlockKeyResponse {
        unlock_key: Some(key.map(ToString::to_string).unwrap_or_default()),
    }))
}

pub(super) async fn unlock(
    State(node): State<Ctx>,
    Body(unlock): Body<SwarmUnlock>,
) -> Result<(), ApiError> {
    match node.status().state {
        MemberState::Locked => {}
        MemberState::Inactive => {
            return Err(ApiError::unavailable("This node is not part of a swarm"));
        }
        MemberState::Pending
        | MemberState::Worker
        | MemberState::Restored
        | MemberState::Manager => {
            return Err(ApiError::new(StatusCode::CONFLICT, "swarm is not locked"));
        }
    }
    let key = unlock.unlock_key.trim().parse::<UnlockKey>();
    let key = key.map_err(|_| ApiError::invalid(WRONG_KEY))?;
    node.unlock(key).await
}

/// As Docker's.
pub const WRONG_KEY: &str = "swarm could not be unlocked: invalid key provided";

pub(crate) fn init_request(init: SwarmInit) -> Result<InitRequest, ApiError> {
    let request = init.request;
    let spec = request.spec.unwrap_or_default();
    let mut spec = convert::cluster_spec_from_docker(&spec, &ClusterSpec::default())?;
    spec.autolock |= init.auto_lock_managers;
    Ok(InitRequest {
        listen: listen(request.listen_addr.as_deref())?,
        advertise: address(request.advertise_addr.as_deref())?,
        data_path_addr: address(request.data_path_addr.as_deref())?,
        data_path: data_path(
            request.default_addr_pool.as_deref().unwrap_or_default(),
            request.subnet_size.unwrap_or(0),
            request.data_path_port.unwrap_or(0),
        )?,
        spec,
        availability: availability(init.availability),
    })
}

pub(crate) fn join_params(join: SwarmJoin) -> Result<JoinParams, ApiError> {
    let request = join.request;
    let remotes = request.remote_addrs.unwrap_or_default();
    let remotes: Vec<_> = remotes
        .iter()
        .filter(|remote| !remote.is_empty())
        .map(|remote| remote.parse().map_err(invalid_address))
        .collect::<Result<_, _>>()?;
    if remotes.is_empty() {
        return Err(ApiError::invalid(
            "at least 1 RemoteAddr is required to join",
        ));
    }
    Ok(JoinParams {
        listen: listen(request.listen_addr.as_deref())?,
        advertise: address(request.advertise_addr.as_deref())?,
        data_path_addr: address(request.data_path_addr.as_deref())?,
        remotes,
        token: request.join_token.unwrap_or_default(),
        availability: availability(join.availability),
    })
}

fn listen(text: Option<&str>) -> Result<HostPort, ApiError> {
    let everywhere = HostPort {
        host: Host::Addr(std::net::Ipv4Addr::UNSPECIFIED),
        port: Some(model::rpc::MANAGER_PORT),
    };
    Ok(address(text)?.unwrap_or(everywhere))
}

fn address<T: std::str::FromStr<Err = ParseHostError>>(
    text: Option<&str>,
) -> Result<Option<T>, ApiError> {
    text.filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(invalid_address))
        .transpose()
}

fn invalid_address(err: ParseHostError) -> ApiError {
    ApiError::invalid(err.to_string())
}

fn availability(text: Option<docker::NodeSpecAvailabilityEnum>) -> Availability {
    use docker::NodeSpecAvailabilityEnum as Docker;
    match text {
        None | Some(Docker::EMPTY | Docker::ACTIVE) => Availability::Active,
        Some(Docker::PAUSE) => Availability::Pause,
        Some(Docker::DRAIN) => Availability::Drain,
    }
}

/// Zero and empty stand for the defaults.
fn data_path(pools: &[String], subnet_len: u32, port: u32) -> Result<DataPathConfig, ApiError> {
    let mut config = DataPathConfig::default();
    if !pools.is_empty() {
        let parse = |pool: &String| {
            pool.parse::<Ipv4Net>().map_err(|err| {
                ApiError::invalid(format!("invalid default address pool `{pool}`: {err}"))
            })
        };
        config.default_addr_pool = pools.iter().map(parse).collect::<Result<_, _>>()?;
    }
    if subnet_len != 0 {
        config.subnet_len = u8::try_from(subnet_len)
            .ok()
            .filter(|len| *len <= 29)
            .ok_or_else(|| {
                ApiError::invalid(format!(
                    "invalid SubnetSize {subnet_len}: want a prefix length of at most 29"
                ))
            })?;
    }
    if let Some(pool) = config
        .default_addr_pool
        .iter()
        .find(|pool| pool.prefix_len() > config.subnet_len)
    {
        return Err(ApiError::invalid(format!(
            "invalid default address pool {pool}: smaller than a subnet of /{}",
            config.subnet_len
        )));
    }
    config.port = match port {
        0 => config.port,
        // Swarm's range for the data path port.
        1024..=49151 => port as u16,
        port => {
            return Err(ApiError::invalid(format!(
                "invalid DataPathPort {port}: want 1024 to 49151"
            )));
        }
    };
    Ok(config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn init(json: serde_json::Value) -> Result<InitRequest, ApiError> {
        init_request(serde_json::from_value(json).unwrap())
    }

    /// As `docker swarm init --advertise-addr 192.0.2.1` sends it.
    #[test]
    fn init_of_the_docker_command_is_read() {
        let request = init(json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "192.0.2.1", "DataPathAddr": "",
            "DataPathPort": 0, "ForceNewCluster": false, "AutoLockManagers": false,
            "Spec": {"Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0,
                "HeartbeatTick": 0}, "Dispatcher": {}, "CAConfig": {}, "TaskDefaults": {},
                "EncryptionConfig": {"AutoLockManagers": false}},
            "Availability": "active", "DefaultAddrPool": null, "SubnetSize": 24,
        }))
        .unwrap();
        assert_eq!(request.data_path, DataPathConfig::default());
        assert_eq!(request.spec, ClusterSpec::default());
        assert_eq!(request.advertise, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(request.listen, "0.0.0.0:2377".parse().unwrap());
    }

    #[test]
    fn pools_and_ports_are_checked() {
        for wrong in [
            json!({"DefaultAddrPool": ["x"]}),
            json!({"DefaultAddrPool": ["10.0.0.0/25"], "SubnetSize": 24}),
            json!({"SubnetSize": 30}),
            json!({"DataPathPort": 80}),
            json!({"AdvertiseAddr": "192.0.2.1:x"}),
        ] {
            assert_eq!(init(wrong.clone()).unwrap_err().status, 400, "{wrong}");
        }
        let request = init(
            json!({"DefaultAddrPool": ["172.30.0.0/16"], "SubnetSize": 26,
            "DataPathPort": 5789}),
        )
        .unwrap();
        assert_eq!(
            (request.data_path.subnet_len, request.data_path.port),
            (26, 5789)
        );
    }

    #[test]
    fn join_needs_a_manager_to_ask() {
        let join = |json| join_params(serde_json::from_value(json).unwrap());
        assert!(join(json!({"JoinToken": "t", "RemoteAddrs": []})).is_err());
        let params = join(json!({"JoinToken": "t", "RemoteAddrs": ["192.0.2.1:2377"]})).unwrap();
        assert_eq!(params.remotes[0].port, 2377);
        assert!(!format!("{params:?}").contains("token"));
    }
}
