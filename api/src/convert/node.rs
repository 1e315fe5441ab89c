//! Nodes.

use bollard_stubs::models as docker;
use control::Reach;
use model::{
    object::{Cluster, Node, NodeState, RaftId},
    spec::{Availability, NodeRole, NodeSpec},
};

use super::{date, labels_from_docker, labels_to_docker, nothing_lost, text, tls, version};
use crate::error::ApiError;

/// A node as the API gives it. `reach` is asked of a manager's.
pub fn node(
    node: &Node,
    cluster: Option<&Cluster>,
    reach: impl Fn(RaftId) -> Reach,
) -> docker::Node {
    docker::Node {
        id: Some(node.id.to_string()),
        version: version(node.meta.version),
        created_at: Some(date(node.meta.created_at)),
        updated_at: Some(date(node.meta.updated_at)),
        spec: Some(node_spec_to_docker(&node.spec)),
        description: Some(docker::NodeDescription {
            hostname: Some(node.description.hostname.clone()),
            platform: Some(docker::Platform {
                architecture: Some(node.description.architecture.clone()),
                os: Some(node.description.os.clone()),
            }),
            resources: Some(docker::ResourceObject {
                nano_cpus: Some(node.description.nano_cpus),
                memory_bytes: Some(node.description.memory_bytes),
                generic_resources: None,
            }),
            engine: Some(docker::EngineDescription {
                engine_version: Some(node.description.engine_version.clone()),
                labels: None,
                plugins: Some(vec![docker::EngineDescriptionPlugins {
                    typ: Some("Network".to_owned()),
                    name: Some("overlay".to_owned()),
                }]),
            }),
            tls_info: cluster.map(|cluster| tls::info(tls::issuer(cluster, node))),
        }),
        status: Some(docker::NodeStatus {
            state: Some(match node.status.state {
                NodeState::Unknown => docker::NodeState::UNKNOWN,
                NodeState::Down => docker::NodeState::DOWN,
                NodeState::Ready => docker::NodeState::READY,
                NodeState::Disconnected => docker::NodeState::DISCONNECTED,
            }),
            message: Some(node.status.message.clone()).filter(|message| !message.is_empty()),
            addr: Some(node.status.addr.to_string()),
        }),
        manager_status: node.manager.map(|manager| {
            let reach = reach(manager.raft);
            docker::ManagerStatus {
                leader: reach.leads.then_some(true),
                reachability: Some(match reach.reachable {
                    true => docker::Reachability::REACHABLE,
                    false => docker::Reachability::UNREACHABLE,
                }),
                addr: Some(manager.addr.to_string()),
            }
        }),
    }
}

fn node_spec_to_docker(spec: &NodeSpec) -> docker::NodeSpec {
    docker::NodeSpec {
        name: spec.name.clone(),
        labels: labels_to_docker(&spec.labels),
        role: Some(match spec.role {
            NodeRole::Worker => docker::NodeSpecRoleEnum::WORKER,
            NodeRole::Manager => docker::NodeSpecRoleEnum::MANAGER,
        }),
        availability: Some(match spec.availability {
            Availability::Active => docker::NodeSpecAvailabilityEnum::ACTIVE,
            Availability::Pause => docker::NodeSpecAvailabilityEnum::PAUSE,
            Availability::Drain => docker::NodeSpecAvailabilityEnum::DRAIN,
        }),
    }
}

/// Reads what a node is to be.
///
/// # Errors
/// 400 when role or availability is missing: a node has no defaults for them.
pub fn node_spec_from_docker(spec: &docker::NodeSpec) -> Result<NodeSpec, ApiError> {
    let read = NodeSpec {
        name: text(&spec.name),
        labels: labels_from_docker(&spec.labels),
        role: match spec.role {
            Some(docker::NodeSpecRoleEnum::WORKER) => NodeRole::Worker,
            Some(docker::NodeSpecRoleEnum::MANAGER) => NodeRole::Manager,
            None | Some(docker::NodeSpecRoleEnum::EMPTY) => {
                return Err(ApiError::invalid("invalid Role: \"\""));
            }
        },
        availability: match spec.availability {
            Some(docker::NodeSpecAvailabilityEnum::ACTIVE) => Availability::Active,
            Some(docker::NodeSpecAvailabilityEnum::PAUSE) => Availability::Pause,
            Some(docker::NodeSpecAvailabilityEnum::DRAIN) => Availability::Drain,
            None | Some(docker::NodeSpecAvailabilityEnum::EMPTY) => {
                return Err(ApiError::invalid("invalid Availability: \"\""));
            }
        },
    };
    nothing_lost(spec, &node_spec_to_docker(&read))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_reads_back_as_written() {
        for (role, availability) in [
            (NodeRole::Worker, Availability::Pause),
            (NodeRole::Manager, Availability::Drain),
            (NodeRole::Manager, Availability::Active),
        ] {
            let spec = NodeSpec {
                name: Some("n1".into()),
                labels: [("zone".to_owned(), "a".to_owned())].into(),
                role,
                availability,
            };
            assert_eq!(node_spec_from_docker(&node_spec_to_docker(&spec)), Ok(spec));
        }
    }

    #[test]
    fn role_and_availability_must_be_named() {
        let err = node_spec_from_docker(&docker::NodeSpec::default()).unwrap_err();
        assert_eq!(err.message, "invalid Role: \"\"");
    }
}
