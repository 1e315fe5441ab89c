//! A new cluster: its identity, root certificate and join tokens, the `ingress` network, and its
//! first node.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use model::{
    ClusterId, NodeId,
    object::{
        Cluster, DataPathConfig, JoinTokens, Meta, Node, NodeDescription, NodeState, NodeStatus,
        RootCa,
    },
    spec::{Availability, ClusterSpec, NodeRole, NodeSpec},
    token::JoinToken,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use sha2::{Digest, Sha256};
use store::Transaction;

use crate::{
    allocator::{AllocateError, create_ingress},
    secret,
};

/// Common name of the root certificate, as Swarm's.
const ROOT_CN: &str = "swarm-ca";
const ROOT_YEARS: i32 = 20;
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

/// What a node's agent needs to take part.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeCredentials {
    pub node: NodeId,
    pub cluster: ClusterId,
    /// The node's proof of identity.
    pub secret: String,
    pub addr: Ipv4Addr,
    pub vtep: Ipv4Addr,
    pub root_certificate_pem: String,
}

impl std::fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCredentials")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .field("addr", &self.addr)
            .field("vtep", &self.vtep)
            .finish_non_exhaustive()
    }
}

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("this node is already part of a swarm; leave it first with `swarmnet leave --force`")]
    AlreadyInitialised,
    #[error("cannot make the root certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("dispatcher heartbeat is {0:?}; want at least {HEARTBEAT_MIN:?}")]
    Heartbeat(Duration),
    #[error("cannot make the ingress network: {0}")]
    Ingress(#[from] AllocateError),
}

/// Writes a new cluster. `port` is where the manager listens.
pub(crate) fn create(
    tx: &mut Transaction,
    options: &InitOptions,
    port: u16,
) -> Result<NodeCredentials, BootstrapError> {
    if tx.state().cluster().is_some() {
        return Err(BootstrapError::AlreadyInitialised);
    }
    let heartbeat = options.spec.dispatcher_heartbeat;
    if heartbeat < HEARTBEAT_MIN {
        return Err(BootstrapError::Heartbeat(heartbeat));
    }
    let root = Root::generate(tx.now())?;
    let cluster = cluster(tx.now(), options, &root);
    let secret = secret::generate();
    let node = first_node(tx.now(), options, port, &secret);
    let credentials = NodeCredentials {
        node: node.id,
        cluster: cluster.id,
        secret,
        addr: options.advertise_addr,
        vtep: node.vtep,
        root_certificate_pem: root.ca.certificate_pem,
    };
    tx.put(cluster).expect("the store has no cluster");
    tx.put(node).expect("a new id has no older version");
    create_ingress(tx)?;
    Ok(credentials)
}

fn cluster(now: Timestamp, options: &InitOptions, root: &Root) -> Cluster {
    let mut data_path = options.data_path.clone();
    if data_path.ring_seed == 0 {
        data_path.ring_seed = rand::random();
    }
    Cluster {
        id: ClusterId::generate(),
        meta: Meta::new(now),
        spec: options.spec.clone(),
        tokens: JoinTokens {
            worker: JoinToken::generate(&root.sha256).to_string(),
            manager: JoinToken::generate(&root.sha256).to_string(),
        },
        ca: root.ca.clone(),
        data_path,
    }
}

fn first_node(now: Timestamp, options: &InitOptions, port: u16, secret: &str) -> Node {
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
        vtep: options.data_path_addr.unwrap_or(addr),
        manager_addr: Some(SocketAddrV4::new(
            addr,
            options.advertise_port.unwrap_or(port),
        )),
        secret_digest: secret::digest(secret),
    }
}

/// A fresh root of the cluster's certificates.
struct Root {
    ca: RootCa,
    /// Of the certificate's DER; join tokens carry it.
    sha256: [u8; 32],
}

impl Root {
    fn generate(now: Timestamp) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, ROOT_CN);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A day back, for nodes whose clocks are late.
        let begin = now.to_zoned(TimeZone::UTC).date().saturating_sub(1.day());
        let end = begin.saturating_add(ROOT_YEARS.years());
        let [begin, end] = [begin, end].map(|date| {
            let unsigned = |part: i8| u8::try_from(part).expect("months and days are positive");
            date_time_ymd(
                date.year().into(),
                unsigned(date.month()),
                unsigned(date.day()),
            )
        });
        (params.not_before, params.not_after) = (begin, end);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            sha256: Sha256::digest(certificate.der()).into(),
            ca: RootCa {
                certificate_pem: certificate.pem(),
                key_pem: key.serialize_pem(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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

    #[test]
    fn a_new_cluster_has_all_that_nodes_need_to_join() {
        let mut tx = transaction();
        let credentials = create(&mut tx, &options(), 2377).unwrap();
        let state = tx.state();
        let cluster = state.cluster().unwrap();
        assert_eq!(credentials.cluster, cluster.id);
        assert_ne!(cluster.data_path.ring_seed, 0);
        assert!(cluster.ca.key_pem.contains("PRIVATE KEY"));
        assert_eq!(credentials.root_certificate_pem, cluster.ca.certificate_pem);
        assert_ne!(cluster.tokens.worker, cluster.tokens.manager);

        let node = state.node(credentials.node).unwrap();
        assert_eq!(node.spec.role, NodeRole::Manager);
        assert_eq!(node.vtep, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(node.manager_addr.unwrap().to_string(), "192.0.2.1:2377");
        assert_eq!(node.secret_digest, secret::digest(&credentials.secret));
        assert_eq!(
            state.network_by_name("ingress").unwrap().vni,
            model::Vni::MESH
        );
    }

    #[test]
    fn tokens_name_the_root_of_their_cluster() {
        let root = Root::generate(epoch()).unwrap();
        let cluster = cluster(epoch(), &options(), &root);
        for token in [&cluster.tokens.worker, &cluster.tokens.manager] {
            let token: JoinToken = token.parse().unwrap();
            assert!(token.is_for_root(&root.sha256));
            assert!(!token.is_for_root(&Root::generate(epoch()).unwrap().sha256));
        }
    }

    #[test]
    fn a_second_cluster_and_a_heartbeat_of_nothing_are_refused() {
        let mut tx = transaction();
        create(&mut tx, &options(), 2377).unwrap();
        let refused = create(&mut tx, &options(), 2377).unwrap_err();
        assert!(matches!(refused, BootstrapError::AlreadyInitialised));

        let mut options = options();
        options.spec.dispatcher_heartbeat = Duration::ZERO;
        let refused = create(&mut transaction(), &options, 2377).unwrap_err();
        assert!(matches!(refused, BootstrapError::Heartbeat(_)));
    }
}
