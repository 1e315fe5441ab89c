//! Several managers in one process: how they come, go, and are lost.

mod support;

use std::{sync::Arc, time::Duration};

use model::{NodeId, Version};
use support::{
    cluster, node,
    wires::{Wires, addr},
};
use swarmnet_store::{
    Standing, Start, State, Store, StoreConfig, StoreError, WriteError, raft::Member,
};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

async fn wait_for(mut watch: watch::Receiver<Arc<State>>, version: Version) -> Arc<State> {
    let reached = watch.wait_for(|state| state.version() >= version);
    Arc::clone(&timeout(DEADLINE, reached).await.unwrap().unwrap())
}

async fn until(store: &Store, is_so: impl FnMut(&Standing) -> bool) {
    let mut standing = store.standing();
    timeout(DEADLINE, standing.wait_for(is_so))
        .await
        .unwrap()
        .unwrap();
}

async fn leader_among(stores: &[&Store]) -> usize {
    let elected = async {
        loop {
            let leads = |store: &&Store| store.standing().borrow().leads();
            if let Some(leader) = stores.iter().position(leads) {
                return leader;
            }
            tokio::time::sleep(LOOK).await;
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

    let follows = |standing: &Standing| matches!(standing, Standing::Follows { .. });
    until(&second, follows).await;
    let refused = second.write(|tx| tx.put(node(3))).await;
    assert!(
        matches!(&refused, Err(WriteError::NotLeader { leader })
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

/// Three managers of which the first leads.
async fn three(wires: &Wires, dirs: &[TempDir; 3]) -> [Store; 3] {
    let first = wires.open(&dirs[0], 1, Start::Found).await;
    first.write(|tx| tx.put(cluster(0))).await.unwrap();
    let second = wires.open(&dirs[1], 2, Start::Join).await;
    let third = wires.open(&dirs[2], 3, Start::Join).await;
    for (store, number) in [(&second, 2), (&third, 3)] {
        let member = Member { addr: addr(number) };
        let added = first.add_member(store.id(), member);
        timeout(DEADLINE, added).await.unwrap().unwrap();
    }
    [first, second, third]
}

/// The leader that hears from nobody leads no more: a write under way fails within seconds and says
/// that its outcome is open, later ones are refused at once with the names of those missing, and
/// what can be read is said to be old. When the others return, so does the lead, and the open write
/// is there or not at all of them alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_without_quorum_stops_acknowledging() {
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let wires = Wires::default();
    let [first, second, third] = three(&wires, &dirs).await;
    first.read().await.unwrap();

    let away: Vec<_> = [2, 3].map(|number| wires.cut(number)).into();
    let open = timeout(DEADLINE, first.write(|tx| tx.put(node(1)))).await;
    let open = open.expect("it fails within seconds").unwrap_err();
    assert!(matches!(&open, WriteError::InDoubt { .. }), "{open:?}");
    assert_eq!(*first.standing().borrow(), Standing::Vacant);
    let missing = async {
        loop {
            let refused = first.write(|tx| tx.put(node(2))).await.unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, WriteError::NoQuorum { .. }), "{text}");
            if text.contains("127.0.0.2:2377, 127.0.0.3:2377") {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(DEADLINE, missing).await.expect("both are named");
    let old = first.read().await.unwrap_err().to_string();
    assert!(old.contains("no quorum"), "{old}");

    for (number, store) in [2, 3].into_iter().zip(away) {
        wires.listen(number, store.unwrap());
    }
    let all = [&first, &second, &third];
    let leader = all[leader_among(&all).await];
    let (_, version) = leader.write(|tx| tx.put(node(3))).await.unwrap();
    for store in all {
        let state = wait_for(store.watch(), version).await;
        assert_eq!(*state, *leader.state());
        assert!(state.node(NodeId::from_raw(2)).is_none(), "it was refused");
    }
    for store in all {
        store.shutdown().await;
    }
}

/// A member is removed, the leader itself among them: the rest go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_removed_and_the_rest_go_on() {
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let wires = Wires::default();
    let [first, second, third] = three(&wires, &dirs).await;
    let removed = timeout(DEADLINE, first.remove_member(first.id())).await;
    removed.unwrap().unwrap();
    let rest = [&second, &third];
    let leader = rest[leader_among(&rest).await];
    assert!(!leader.members().voters.contains_key(&first.id()));
    let other = rest.into_iter().find(|store| store.id() != leader.id());
    let removed = timeout(DEADLINE, leader.remove_member(other.unwrap().id())).await;
    removed.unwrap().unwrap();
    // Alone, it needs nobody.
    wires.cut(1);
    leader.write(|tx| tx.put(node(1))).await.unwrap();
    for store in [&first, &second, &third] {
        store.shutdown().await;
    }
}

/// Of three managers one is left: its log becomes that of a cluster of one, with all that was
/// acknowledged, and under a name that the former others do not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivor_goes_on_alone_with_everything() {
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let wires = Wires::default();
    let [first, second, third] = three(&wires, &dirs).await;
    let (_, version) = first.write(|tx| tx.put(node(7))).await.unwrap();
    wait_for(third.watch(), version).await;
    let former = third.id();
    for store in [&first, &second, &third] {
        store.shutdown().await;
    }
    drop((first, second, third));
    wires.cut_all();

    Store::force_new(dirs[2].path(), addr(3), None)
        .await
        .unwrap();
    let survivor = wires.open(&dirs[2], 3, Start::Join).await;
    assert_ne!(survivor.id(), former);
    assert!(survivor.state().node(NodeId::from_raw(7)).is_some());
    survivor.write(|tx| tx.put(node(8))).await.unwrap();
    survivor.shutdown().await;
    drop(survivor);
    // And again after a restart, from the log that it has now.
    let survivor = wires.open(&dirs[2], 3, Start::Join).await;
    assert!(survivor.state().node(NodeId::from_raw(8)).is_some());
    survivor.shutdown().await;

    let empty = TempDir::new().unwrap();
    let refused = Store::force_new(empty.path(), addr(4), None)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no log"), "{refused}");
}

/// A copy that was made while the managers went on is no part of their group, whichever way it is
/// opened; it can only be made a cluster of its own, with what it has, and with versions that the
/// group has not reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_takes_no_part_in_the_group_and_goes_on_alone() {
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let wires = Wires::default();
    let [first, second, third] = three(&wires, &dirs).await;
    first.write(|tx| tx.put(node(7))).await.unwrap();
    let copy = TempDir::new().unwrap();
    let file = || std::fs::File::create_new(copy.path().join("store.redb")).unwrap();
    first.copy_to(file()).await.unwrap();
    let key = dirs[0].path().join("data.key");
    std::fs::copy(key, copy.path().join("data.key")).unwrap();
    let (_, later) = first.write(|tx| tx.put(node(8))).await.unwrap();

    let config = || StoreConfig {
        addr: addr(4),
        start: Start::Join,
        transport: Arc::new(wires.clone()),
        unlock: None,
    };
    let refused = Store::open(copy.path(), config()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Copy { .. }), "{refused}");
    Store::force_new(copy.path(), addr(4), None).await.unwrap();
    let alone = Store::open(copy.path(), config()).await.unwrap();
    assert_ne!(alone.id(), first.id());
    assert!(alone.state().node(NodeId::from_raw(7)).is_some());
    assert!(alone.state().node(NodeId::from_raw(8)).is_none());
    let (_, version) = alone.write(|tx| tx.put(node(9))).await.unwrap();
    assert!(version > later, "{version} was reached by the others");
    for store in [&first, &second, &third, &alone] {
        store.shutdown().await;
    }
    drop(alone);
    let again = Store::open(copy.path(), config()).await.unwrap();
    assert!(again.state().node(NodeId::from_raw(9)).is_some());
    again.shutdown().await;
}

/// Of a store that writes all the time, at whatever moment it is copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_under_writes_are_whole() {
    let dir = TempDir::new().unwrap();
    let wires = Wires::default();
    let store = wires.open(&dir, 1, Start::Found).await;
    store.write(|tx| tx.put(cluster(20))).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for id in 1.. {
                if store.write(|tx| tx.put(node(id))).await.is_err() {
                    return;
                }
            }
        }
    });
    for _ in 0..10 {
        let acknowledged = store.state();
        let copy = TempDir::new().unwrap();
        let file = std::fs::File::create_new(copy.path().join("store.redb")).unwrap();
        store.copy_to(file).await.unwrap();
        std::fs::copy(dir.path().join("data.key"), copy.path().join("data.key")).unwrap();
        Store::force_new(copy.path(), addr(4), None).await.unwrap();
        let opened = support::open(copy.path()).await;
        for node in acknowledged.nodes() {
            assert!(
                opened.state().node(node.id).is_some(),
                "{} is lost",
                node.id
            );
        }
        opened.shutdown().await;
    }
    store.shutdown().await;
    writer.await.unwrap();
}
