//! Objects for tests.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use model::{
    ClusterId, NetworkId, NodeId,
    object::{
        Cluster, DataPathConfig, JoinTokens, Meta, Node, NodeDescription, NodeState, NodeStatus,
        RootCa,
    },
    spec::{ContainerSpec, NodeSpec, PortSpec, Protocol, PublishMode, ServiceMode, ServiceSpec},
};
use store::{Change, State, Transaction};
use tokio::time::Instant;

/// When tests begin.
pub fn epoch() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a timestamp")
}

/// A ready worker with 4 CPUs and 8 GiB.
pub fn node(hostname: &str) -> Node {
    let id = NodeId::generate();
    let addr = Ipv4Addr::from_bits(0xc0a8_0000 | (id.raw() as u32 & 0xffff));
    Node {
        id,
        meta: Meta::new(epoch()),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: hostname.to_owned(),
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            engine_version: String::new(),
        },
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr,
        },
        issuer: None,
        vtep: addr,
        manager: None,
    }
}

pub fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::generate(),
        meta: Meta::new(epoch()),
        spec: Default::default(),
        tokens: JoinTokens {
            worker: format!("SWMTKN-1-{:050}-{:025}", 1, 2),
            manager: format!("SWMTKN-1-{:050}-{:025}", 1, 3),
        },
        ca: RootCa {
            certificate_pem: String::new(),
            key_pem: None,
        },
        data_path: DataPathConfig::default(),
        revoked: Default::default(),
        rotation: None,
        unlock_key: None,
        probes: Default::default(),
    }
}

/// A service on the given networks.
pub fn service(name: &str, replicas: u64, networks: &[NetworkId]) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.to_owned(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    spec.task.container = ContainerSpec {
        image: "host".to_owned(),
        args: vec!["sleep".to_owned(), "1d".to_owned()],
        ..ContainerSpec::default()
    };
    spec.task.networks = networks
        .iter()
        .map(|network| model::spec::NetworkAttachmentSpec {
            network: *network,
            aliases: Vec::new(),
        })
        .collect();
    spec
}

pub fn port(published: Option<u16>, target: u16) -> PortSpec {
    PortSpec {
        name: None,
        protocol: Protocol::Tcp,
        target,
        published,
        mode: PublishMode::Ingress,
    }
}

/// A state with its clock, changed as the store does it.
pub struct World {
    pub state: Arc<State>,
    pub now: Timestamp,
    begun: Instant,
    /// By how much the leader's clock is ahead.
    pub skew: SignedDuration,
    /// Since they were last taken.
    pub changes: Vec<Change>,
}

impl World {
    /// A cluster with its ingress network and no nodes.
    pub fn new() -> Self {
        let mut world = Self {
            state: Arc::default(),
            now: epoch(),
            begun: Instant::now(),
            skew: SignedDuration::ZERO,
            changes: Vec::new(),
        };
        world.write(|tx| {
            tx.put(cluster()).unwrap();
            crate::allocator::create_ingress(tx).unwrap();
        });
        world
    }

    /// The time that has passed, by a clock that nobody sets.
    pub fn clock(&self) -> Instant {
        let passed = self.now.duration_since(epoch());
        self.begun + Duration::try_from(passed).expect("time goes forward")
    }

    /// Runs a transaction and applies it.
    pub fn write<T>(&mut self, f: impl FnOnce(&mut Transaction) -> T) -> T {
        let mut tx = Transaction::new(Arc::clone(&self.state), self.now + self.skew);
        let out = f(&mut tx);
        if !tx.is_empty() {
            let mut state = State::clone(&self.state);
            let commit = state.apply(tx.finish().expect("nothing stale")).unwrap();
            self.changes.extend(commit.changes);
            self.state = Arc::new(state);
        }
        out
    }

    /// As [`Self::write`], committing nothing when `f` refuses.
    pub fn try_write<T, E>(
        &mut self,
        f: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = Transaction::new(Arc::clone(&self.state), self.now + self.skew);
        let out = f(&mut tx)?;
        self.write(|whole| *whole = tx);
        Ok(out)
    }

    pub fn add_nodes(&mut self, count: usize) -> Vec<NodeId> {
        let nodes: Vec<Node> = (0..count).map(|i| node(&format!("node{i}"))).collect();
        let ids = nodes.iter().map(|node| node.id).collect();
        self.write(|tx| nodes.into_iter().for_each(|node| tx.put(node).unwrap()));
        ids
    }
}
