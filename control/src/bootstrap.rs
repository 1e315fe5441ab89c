//! A new cluster: its identity, root certificate and join tokens, the `ingress` network, and its
//! first node.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use ca::{CaError, NodeCertificate, NodeKey, NodeTls, Request, Roots};
use jiff::Timestamp;
use model::{
    ClusterId, NodeId,
    object::{
        Cluster, DataPathConfig, ManagerStatus, Meta, Node, NodeDescription, NodeState, NodeStatus,
        Probes, RaftId, RootCa,
    },
    probe::ProbeKeys,
    rpc::Certified,
    spec::{Availability, ClusterSpec, NodeRole, NodeSpec},
};
use store::Transaction;
use vault::UnlockKey;

use crate::{
    allocator::{AllocateError, create_ingress},
    authority::certify,
    external::{self, ExternalCaError},
    members::void_certificate,
    rotation,
};

/// Less would make a busy node look dead.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// What a new cluster is to be.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub spec: ClusterSpec,
    /// A `ring_seed` of 0 asks for a random one.
    pub data_path: DataPathConfig,
    /// Of the first node, this one.
    pub description: NodeDescription,
    pub availability: Availability,
    /// Where other nodes reach this one.
    pub advertise_addr: Ipv4Addr,
    /// Port at which other nodes reach the manager; the one it listens on when absent.
    pub advertise_port: Option<u16>,
    /// Tunnel address; the advertised one when absent.
    pub data_path_addr: Option<Ipv4Addr>,
}

/// What the first node needs to take part.
#[derive(Debug, Clone)]
pub struct NodeCredentials {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub addr: Ipv4Addr,
    pub vtep: Ipv4Addr,
    pub tls: NodeTls,
}

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("this node is already part of a swarm; leave it first with `swarmnet leave --force`")]
    AlreadyInitialised,
    #[error("cannot make the first certificates: {0}")]
    Certificate(#[from] CaError),
    #[error(transparent)]
    ExternalCa(#[from] ExternalCaError),
    #[error("dispatcher heartbeat is {0:?}; want at least {HEARTBEAT_MIN:?}")]
    Heartbeat(Duration),
    #[error("cannot make the ingress network: {0}")]
    Ingress(#[from] AllocateError),
}

/// A new cluster that is not written yet.
pub(crate) struct Founding {
    cluster: Cluster,
    node: Node,
    credentials: NodeCredentials,
}

/// Prepares a new cluster, whose first certificate may come from outside. `port` is where the manager
/// listens, `raft` its name.
pub(crate) async fn found(
    options: &InitOptions,
    port: u16,
    raft: RaftId,
    now: Timestamp,
) -> Result<Founding, BootstrapError> {
    let heartbeat = options.spec.dispatcher_heartbeat;
    if heartbeat < HEARTBEAT_MIN {
        return Err(BootstrapError::Heartbeat(heartbeat));
    }
    let root = match external::founding_root(&options.spec)? {
        Some(root) => root,
        None => ca::new_root(now)?,
    };
    let cluster = cluster(now, options, root)?;
    let node = first_node(now, options, port, raft);
    let credentials = NodeCredentials {
        node: node.id,
        cluster: cluster.id,
        addr: options.advertise_addr,
        vtep: node.vtep,
        tls: NodeTls::new(first_certificate(now, &cluster, node.id).await?)?,
    };
    Ok(Founding {
        cluster,
        node,
        credentials,
    })
}

/// Writes a new cluster.
pub(crate) fn create(
    tx: &mut Transaction,
    founding: Founding,
) -> Result<NodeCredentials, BootstrapError> {
    if tx.state().cluster().is_some() {
        return Err(BootstrapError::AlreadyInitialised);
    }
    tx.put(founding.cluster).expect("the store has no cluster");
    tx.put(founding.node)
        .expect("a new id has no older version");
    create_ingress(tx)?;
    Ok(founding.credentials)
}

/// Makes the node `own` the only manager, in a cluster that lost the others.
pub(crate) fn reset_managers(tx: &mut Transaction, own: NodeId, raft: RaftId, addr: SocketAddrV4) {
    let nodes: Vec<Node> = tx.state().nodes().map(|node| Node::clone(node)).collect();
    for stored in nodes {
        let mut node = stored.clone();
        if node.id == own {
            node.spec.role = NodeRole::Manager;
            node.manager = Some(ManagerStatus { raft, addr });
        } else {
            node.spec.role = NodeRole::Worker;
            node.manager = None;
        }
        if node == stored {
            continue;
        }
        let is_demoted = node.id != own;
        let id = node.id;
        tx.put(node).expect("it was read in this transaction");
        if is_demoted && tx.state().cluster().is_some() {
            void_certificate(tx, id);
        }
    }
}

fn cluster(now: Timestamp, options: &InitOptions, ca: RootCa) -> Result<Cluster, CaError> {
    let mut data_path = options.data_path.clone();
    if data_path.ring_seed == 0 {
        data_path.ring_seed = rand::random();
    }
    Ok(Cluster {
        id: ClusterId::generate(),
        meta: Meta::new(now),
        spec: options.spec.clone(),
        tokens: rotation::tokens(&Roots::from_pem(&ca.certificate_pem)?),
        ca,
        data_path,
        revoked: BTreeMap::new(),
        rotation: None,
        unlock_key: options.spec.autolock.then(UnlockKey::generate),
        probes: Probes {
            keys: ProbeKeys::generate(),
            rotated: now,
        },
    })
}

async fn first_certificate(
    now: Timestamp,
    cluster: &Cluster,
    node: NodeId,
) -> Result<NodeCertificate, CaError> {
    let key = NodeKey::generate()?;
    let request = Request::from_pem(&key.request()?)?;
    let Certified {
        chain_pem,
        roots_pem,
    } = certify(cluster, None, node, NodeRole::Manager, &request, now).await?;
    NodeCertificate::new(key, &chain_pem, Roots::from_pem(&roots_pem)?)
}

fn first_node(now: Timestamp, options: &InitOptions, port: u16, raft: RaftId) -> Node {
    let addr = options.advertise_addr;
    Node {
        id: NodeId::generate(),
        meta: Meta::new(now),
        spec: NodeSpec {
            role: NodeRole::Manager,
            availability: options.availability,
            ..NodeSpec::default()
        },
        description: options.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "the node has not begun a session yet".to_owned(),
            addr,
        },
        issuer: None,
        vtep: options.data_path_addr.unwrap_or(addr),
        manager: Some(ManagerStatus {
            raft,
            addr: SocketAddrV4::new(addr, options.advertise_port.unwrap_or(port)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{object::Revoked, token::JoinToken};
    use store::State;

    use super::*;
    use crate::fixture::epoch;

    fn options() -> InitOptions {
        InitOptions {
            spec: ClusterSpec::default(),
            data_path: DataPathConfig::default(),
            description: NodeDescription::default(),
            availability: Availability::Active,
            advertise_addr: Ipv4Addr::new(192, 0, 2, 1),
            advertise_port: None,
            data_path_addr: None,
        }
    }

    fn transaction() -> Transaction {
        Transaction::new(Arc::new(State::default()), epoch())
    }

    async fn found(options: &InitOptions) -> Result<Founding, BootstrapError> {
        super::found(options, 2377, RaftId(1), epoch()).await
    }

    #[tokio::test]
    async fn a_new_cluster_has_all_that_nodes_need_to_join() {
        let mut tx = transaction();
        let credentials = create(&mut tx, found(&options()).await.unwrap()).unwrap();
        let state = tx.state();
        let cluster = state.cluster().unwrap();
        assert_eq!(credentials.cluster, cluster.id);
        assert_ne!(cluster.data_path.ring_seed, 0);
        assert!(cluster.ca.key_pem.as_ref().unwrap().contains("PRIVATE KEY"));
        credentials.tls.with(|certificate| {
            assert_eq!(certificate.roots().pem(), cluster.ca.certificate_pem);
            assert_eq!(certificate.identity().node, credentials.node);
            assert_eq!(certificate.identity().role, NodeRole::Manager);
        });
        assert_ne!(cluster.tokens.worker, cluster.tokens.manager);

        let node = state.node(credentials.node).unwrap();
        assert_eq!(node.spec.role, NodeRole::Manager);
        assert_eq!(node.vtep, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(node.manager.unwrap().addr.to_string(), "192.0.2.1:2377");
        assert_eq!(
            state.network_by_name("ingress").unwrap().vni,
            model::Vni::MESH
        );
    }

    #[tokio::test]
    async fn who_was_a_manager_of_a_cluster_that_goes_on_alone_may_not_call_as_one() {
        let mut tx = transaction();
        let own = create(&mut tx, found(&options()).await.unwrap())
            .unwrap()
            .node;
        let addr = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 2377);
        let mut other = crate::fixture::node("other");
        other.spec.role = NodeRole::Manager;
        other.manager = Some(ManagerStatus {
            raft: RaftId(2),
            addr,
        });
        let worker = crate::fixture::node("worker");
        let (other, worker) = {
            let ids = (other.id, worker.id);
            tx.put(other).unwrap();
            tx.put(worker).unwrap();
            ids
        };
        // As often as it takes.
        for raft in [RaftId(8), RaftId(9)] {
            reset_managers(&mut tx, own, raft, addr);
            let state = tx.state();
            let managers: Vec<_> = state
                .nodes()
                .filter(|node| node.manager.is_some())
                .collect();
            assert_eq!(managers.len(), 1);
            assert_eq!(
                (managers[0].id, managers[0].manager.unwrap().raft),
                (own, raft)
            );
            let revoked = &state.cluster().unwrap().revoked;
            assert_eq!(revoked.keys().collect::<Vec<_>>(), [&other]);
            assert_eq!(revoked[&other].of, Revoked::Manager);
            assert!(state.node(worker).is_some());
        }
    }

    #[test]
    fn tokens_name_the_root_of_their_cluster() {
        let sha256 = |root: &RootCa| Roots::from_pem(&root.certificate_pem).unwrap().sha256();
        let [root, other] = [(); 2].map(|()| ca::new_root(epoch()).unwrap());
        let cluster = cluster(epoch(), &options(), root.clone()).unwrap();
        for token in [&cluster.tokens.worker, &cluster.tokens.manager] {
            let token: JoinToken = token.parse().unwrap();
            assert!(token.is_for_root(&sha256(&root)));
            assert!(!token.is_for_root(&sha256(&other)));
        }
    }

    #[tokio::test]
    async fn a_second_cluster_and_a_heartbeat_of_nothing_are_refused() {
        let mut tx = transaction();
        create(&mut tx, found(&options()).await.unwrap()).unwrap();
        let refused = create(&mut tx, found(&options()).await.unwrap()).unwrap_err();
        assert!(matches!(refused, BootstrapError::AlreadyInitialised));

        let mut options = options();
        options.spec.dispatcher_heartbeat = Duration::ZERO;
        let refused = found(&options).await.err().unwrap();
        assert!(matches!(refused, BootstrapError::Heartbeat(_)));
    }
}
