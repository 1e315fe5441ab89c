//! Objects to put into stores.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod wires;

use std::net::{Ipv4Addr, SocketAddr};

use jiff::Timestamp;
use model::{
    ClusterId, NetworkId, NodeId, ServiceId, TaskId, TaskState, Version, Vni,
    object::{
        AllocationCursor, Cluster, DataPathConfig, JoinTokens, Meta, Network, Node,
        NodeDescription, NodeState, NodeStatus, RootCa, Service, ServiceEndpoint, Task, TaskStatus,
    },
    spec::{ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec, TaskSpec},
};
use swarmnet_store::{Store, StoreConfig};

pub const ADDR: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(Ipv4Addr::LOCALHOST),
    model::rpc::MANAGER_PORT,
);

pub async fn open(dir: &std::path::Path) -> Store {
    Store::open(dir, StoreConfig::alone(ADDR)).await.unwrap()
}

pub fn meta() -> Meta {
    Meta::new(Timestamp::UNIX_EPOCH)
}

pub fn cluster(snapshot_interval: u64) -> Cluster {
    Cluster {
        id: ClusterId::from_raw(1),
        meta: meta(),
        spec: ClusterSpec {
            snapshot_interval,
            ..ClusterSpec::default()
        },
        tokens: JoinTokens {
            worker: "w".to_owned(),
            manager: "m".to_owned(),
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

pub fn node(id: u128) -> Node {
    Node {
        id: NodeId::from_raw(id),
        meta: meta(),
        spec: NodeSpec::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: Ipv4Addr::LOCALHOST,
        },
        issuer: None,
        vtep: Ipv4Addr::LOCALHOST,
        manager: None,
    }
}

pub fn network(id: u128, name: &str) -> Network {
    Network {
        id: NetworkId::from_raw(id),
        meta: meta(),
        spec: NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        },
        vni: Vni::FIRST,
        subnet: "10.0.1.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 1, 1),
        cursor: AllocationCursor::default(),
    }
}

pub fn service(id: u128, name: &str) -> Service {
    Service {
        id: ServiceId::from_raw(id),
        meta: meta(),
        spec: ServiceSpec {
            name: name.to_owned(),
            ..ServiceSpec::default()
        },
        previous_spec: None,
        spec_version: Version(0),
        endpoint: ServiceEndpoint::default(),
        update_status: None,
    }
}

pub fn task(id: u128, service: u128, node: Option<u128>) -> Task {
    Task {
        id: TaskId::from_raw(id),
        meta: meta(),
        service: ServiceId::from_raw(service),
        service_name: "web".to_owned(),
        slot: Some(1),
        node: node.map(NodeId::from_raw),
        spec: TaskSpec::default(),
        spec_version: Version(0),
        host_ports: Vec::new(),
        desired: TaskState::Running,
        status: TaskStatus {
            timestamp: Timestamp::UNIX_EPOCH,
            state: TaskState::New,
            message: "created".to_owned(),
            err: None,
            container: None,
            ports: Vec::new(),
        },
        attachments: Vec::new(),
        endpoint: None,
    }
}
