//! Several managers in one process: a call is answered by the store that the address names.

mod support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use model::{NodeId, Version, codec};
use support::{cluster, node};
use swarmnet_store::{
    Start, State, Store, StoreConfig, WriteError,
    raft::{Member, RaftCall, RaftReply, RaftTransport, TransportError},
};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

const DEADLINE: Duration = Duration::from_secs(30);

/// Who listens where. Calls pass through their encoding, as on a wire.
#[derive(Debug, Clone, Default)]
struct Wires(Arc<Mutex<HashMap<SocketAddr, Store>>>);

#[async_trait]
impl RaftTransport for Wires {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        let lost = TransportError {
            to: call.to,
            member: member.clone(),
            reason: "nobody listens".to_owned(),
        };
        let listening = self.0.lock().unwrap().get(&member.addr).cloned();
        let store = listening.ok_or_else(|| lost.clone())?;
        let received = codec::decode(&codec::encode(&call)).unwrap();
        let reply = store.answer(received).await.ok_or(lost)?;
        Ok(codec::decode(&codec::encode(&reply)).unwrap())
    }
}

fn addr(number: u8) -> SocketAddr {
    ([127, 0, 0, number], 2377).into()
}

impl Wires {
    async fn open(&self, dir: &TempDir, number: u8, start: Start) -> Store {
        let config = StoreConfig {
            addr: addr(number),
            start,
            transport: Arc::new(self.clone()),
            unlock: None,
        };
        let store = Store::open(dir.path(), config).await.unwrap();
        self.0.lock().unwrap().insert(addr(number), store.clone());
        store
    }

    /// No call reaches it any more.
    fn cut(&self, number: u8) {
        self.0.lock().unwrap().remove(&addr(number));
    }
}

async fn wait_for(mut watch: watch::Receiver<Arc<State>>, version: Version) -> Arc<State> {
    let reached = watch.wait_for(|state| state.version() >= version);
    Arc::clone(&timeout(DEADLINE, reached).await.unwrap().unwrap())
}

async fn leader_among(stores: &[&Store]) -> usize {
    let elected = async {
        loop {
            if let Some(leader) = stores.iter().position(|store| store.is_leader()) {
                return leader;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, elected).await.unwrap()
}

/// One manager becomes three: the new ones get a snapshot and the log, follow every write, refuse
/// writes of their own, and take over when the leader goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_join_follow_and_take_over() {
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let wires = Wires::default();
    let first = wires.open(&dirs[0], 1, Start::Found).await;
    first.write(|tx| tx.put(cluster(100))).await.unwrap();
    // More than is kept of the log behind a snapshot, so that a snapshot has to be sent.
    for _ in 0..700 {
        let written = first.write(|tx| {
            let mut node = node(1);
            if let Some(stored) = tx.state().node(node.id) {
                node.meta = stored.meta;
            }
            tx.put(node)
        });
        written.await.unwrap();
    }

    let second = wires.open(&dirs[1], 2, Start::Join).await;
    let third = wires.open(&dirs[2], 3, Start::Join).await;
    assert_eq!(second.state().version(), Version(0));
    for (store, number) in [(&second, 2), (&third, 3)] {
        let member = Member { addr: addr(number) };
        let added = first.add_member(store.id(), member);
        timeout(DEADLINE, added).await.unwrap().unwrap();
    }
    let (_, version) = first.write(|tx| tx.put(node(2))).await.unwrap();
    for store in [&second, &third] {
        assert_eq!(*wait_for(store.watch(), version).await, *first.state());
    }

    let refused = second.write(|tx| tx.put(node(3))).await;
    assert!(
        matches!(&refused, Err(WriteError::NotLeader { leader: Some(leader) })
            if leader.addr == addr(1)),
        "{refused:?}"
    );

    wires.cut(1);
    first.shutdown().await;
    let rest = [&second, &third];
    let leader = rest[leader_among(&rest).await];
    let (_, version) = leader.write(|tx| tx.put(node(4))).await.unwrap();
    for store in rest {
        let state = wait_for(store.watch(), version).await;
        assert!(state.node(NodeId::from_raw(2)).is_some());
        assert!(state.node(NodeId::from_raw(4)).is_some());
    }

    // The one that was away comes back with its log and learns the rest.
    let first = wires.open(&dirs[0], 1, Start::Found).await;
    let state = wait_for(first.watch(), version).await;
    assert_eq!(*state, *leader.state());
    for store in [&first, &second, &third] {
        store.shutdown().await;
    }
}
