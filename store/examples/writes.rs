//! How many writes a second a store commits, each acknowledged when it is on disk: that of one manager, then of
//! three and five in this process, which share the disk and have no network between them.
//!
//!     cargo run --release -p swarmnet-store --example writes -- [directory]

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use model::{
    NodeId, codec,
    object::{Meta, Node, NodeDescription, NodeState, NodeStatus},
    spec::NodeSpec,
};
use swarmnet_store::{
    Start, Store, StoreConfig,
    raft::{Member, RaftCall, RaftReply, RaftTransport, TransportError},
};
use tokio::task::JoinSet;

const MEASURED: Duration = Duration::from_secs(3);

fn node() -> Node {
    Node {
        id: NodeId::generate(),
        meta: Meta::new(Timestamp::UNIX_EPOCH),
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

async fn measure(store: &Store, writers: usize) {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..writers {
        let store = store.clone();
        running.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < MEASURED {
                let write = Instant::now();
                let node = node();
                store
                    .write(|tx| tx.put(node))
                    .await
                    .expect("nothing else writes it");
                took.push(write.elapsed());
            }
            took
        });
    }
    let mut took: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    println!(
        "{writers:4} writers: {:7.0} writes/s, p50 {:?}, p99 {:?}",
        took.len() as f64 / begun.elapsed().as_secs_f64(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
    );
}

#[tokio::main]
async fn main() {
    let made = tempfile::tempdir().expect("a temporary directory can be made");
    let given = std::env::args().nth(1);
    let dir = given.as_deref().map_or(made.path(), Path::new);
    let open = || async {
        let addr = (Ipv4Addr::LOCALHOST, model::rpc::MANAGER_PORT).into();
        let begun = Instant::now();
        let store = Store::open(dir, StoreConfig::alone(addr)).await;
        println!("opened in {:?}", begun.elapsed());
        store.expect("the directory is a store's or empty")
    };
    let store = open().await;
    for writers in [1, 4, 16, 64, 256] {
        measure(&store, writers).await;
    }
    println!("{} objects", store.state().node_count());
    store.shutdown().await;
    open().await.shutdown().await;
    for managers in [3, 5] {
        println!("{managers} managers");
        let stores = group(dir, managers).await;
        for writers in [1, 64] {
            measure(&stores[0], writers).await;
        }
        for store in stores {
            store.shutdown().await;
        }
    }
}

/// The managers by their addresses. Calls pass through their encoding.
#[derive(Debug, Clone, Default)]
struct Wires(Arc<Mutex<HashMap<SocketAddr, Store>>>);

impl Wires {
    fn listen(&self, addr: SocketAddr, store: Store) {
        self.0.lock().expect("no panic").insert(addr, store);
    }
}

#[async_trait]
impl RaftTransport for Wires {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        let lost = TransportError {
            to: call.to,
            member: member.clone(),
            reason: "nobody listens".to_owned(),
        };
        let listening = self.0.lock().expect("no panic").get(&member.addr).cloned();
        let store = listening.ok_or_else(|| lost.clone())?;
        let call = codec::decode(&codec::encode(&call)).expect("it was encoded");
        let reply = store.answer(call).await.ok_or(lost)?;
        Ok(codec::decode(&codec::encode(&reply)).expect("it was encoded"))
    }
}

/// The first one leads.
async fn group(dir: &Path, managers: u8) -> Vec<Store> {
    let wires = Wires::default();
    let mut stores: Vec<Store> = Vec::new();
    for number in 1..=managers {
        let addr = (Ipv4Addr::new(127, 0, 0, number), model::rpc::MANAGER_PORT).into();
        let config = StoreConfig {
            addr,
            start: match number {
                1 => Start::Found,
                _ => Start::Join,
            },
            transport: Arc::new(wires.clone()),
            unlock: None,
        };
        let dir = dir.join(format!("of-{managers}/{number}"));
        let store = Store::open(&dir, config).await;
        let store = store.expect("the directory is a store's or empty");
        wires.listen(addr, store.clone());
        if let Some(first) = stores.first() {
            let added = first.add_member(store.id(), Member { addr }).await;
            added.expect("nothing is in the way");
        }
        stores.push(store);
    }
    stores
}
