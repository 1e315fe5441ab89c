//! How many writes a second a store commits, each acknowledged when it is on disk: that of one manager, then of
//! three and five in this process, which share the disk and have no network between them.
//!
//!     cargo run --release -p swarmnet-store --example writes -- [directory]

#[path = "../tests/support/wires.rs"]
mod wires;

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    NodeId,
    object::{Meta, Node, NodeDescription, NodeState, NodeStatus},
    spec::NodeSpec,
};
use swarmnet_store::{Start, Store, StoreConfig, raft::Member};
use tokio::task::JoinSet;

use wires::{Wires, addr};

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

/// The first one leads.
async fn group(dir: &Path, managers: u8) -> Vec<Store> {
    let wires = Wires::default();
    let mut stores: Vec<Store> = Vec::new();
    for number in 1..=managers {
        let start = match number {
            1 => Start::Found,
            _ => Start::Join,
        };
        let dir = dir.join(format!("of-{managers}/{number}"));
        let store = wires.open(&dir, number, start).await;
        if let Some(first) = stores.first() {
            let member = Member { addr: addr(number) };
            let added = first.add_member(store.id(), member).await;
            added.expect("nothing is in the way");
        }
        stores.push(store);
    }
    stores
}
