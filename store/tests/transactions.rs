//! States and transactions without a store under them.

mod support;

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use model::{
    NetworkId, NodeId, ServiceId, TaskId, Version, codec,
    object::{Cluster, Network, Node, NodeState, Service, Task},
    spec::{Availability, ServiceMode, TaskSpec},
};
use proptest::prelude::*;
use support::{cluster, meta, network, node, service, task};
use swarmnet_store::{Change, Key, Object, StaleObject, State, Superseded, Transaction};

const NAMES: [&str; 3] = ["web", "WEB", "db"];

fn at(second: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second)
}

fn begin(state: &State) -> Transaction {
    Transaction::new(Arc::new(state.clone()), at(state.version().0 as i64))
}

/// Applies what `f` does, which must not be refused.
fn change(state: &mut State, f: impl FnOnce(&mut Transaction)) {
    let mut tx = begin(state);
    f(&mut tx);
    state.apply(tx.finish().unwrap()).unwrap();
}

#[derive(Debug, Clone)]
enum Op {
    Put(Object),
    Remove(Key),
    Allocate,
}

fn op() -> impl Strategy<Value = Op> {
    let name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        3 => (0..6u128, 0..3u128, prop::option::of(0..3u128))
            .prop_map(|(id, service, node)| Op::Put(task(id, service, node).into())),
        2 => (0..3u128, name()).prop_map(|(id, name)| Op::Put(service(id, name).into())),
        1 => (0..3u128, name()).prop_map(|(id, name)| Op::Put(network(id, name).into())),
        1 => (0..3u128).prop_map(|id| Op::Put(node(id).into())),
        1 => (0..9u64).prop_map(|interval| Op::Put(cluster(interval).into())),
        1 => (0..6u128).prop_map(|id| Op::Remove(Key::Task(TaskId::from_raw(id)))),
        1 => (0..3u128).prop_map(|id| Op::Remove(Key::Service(ServiceId::from_raw(id)))),
        1 => (0..3u128).prop_map(|id| Op::Remove(Key::Network(NetworkId::from_raw(id)))),
        1 => (0..3u128).prop_map(|id| Op::Remove(Key::Node(NodeId::from_raw(id)))),
        1 => Just(Op::Remove(Key::Cluster)),
        1 => Just(Op::Allocate),
    ]
}

fn transactions() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 0..8), 0..12)
}

/// As written by someone who has just read the object.
fn fresh(mut object: Object, state: &State) -> Object {
    let Some(stored) = state.meta(object.key()).copied() else {
        return object;
    };
    match &mut object {
        Object::Cluster(cluster) => Arc::make_mut(cluster).meta = stored,
        Object::Node(node) => Arc::make_mut(node).meta = stored,
        Object::Network(network) => Arc::make_mut(network).meta = stored,
        Object::Service(service) => Arc::make_mut(service).meta = stored,
        Object::Task(task) => Arc::make_mut(task).meta = stored,
        Object::Counters(_) => {}
    }
    object
}

fn run(tx: &mut Transaction, ops: &[Op]) {
    for op in ops {
        match op.clone() {
            Op::Put(object) => tx.put(fresh(object, tx.state())).unwrap(),
            Op::Remove(key) => tx.remove(key),
            Op::Allocate => drop(tx.allocate_endpoint_id()),
        }
    }
}

type Tables = (
    Vec<Arc<Node>>,
    Vec<Arc<Network>>,
    Vec<Arc<Service>>,
    Vec<Arc<Task>>,
);

fn tables(state: &State) -> Tables {
    (
        state.nodes().cloned().collect(),
        state.networks().cloned().collect(),
        state.services().cloned().collect(),
        state.tasks().cloned().collect(),
    )
}

/// Each index against a scan of the tables.
fn check_indexes(state: &State) {
    for raw in 0..3 {
        let (service, node) = (ServiceId::from_raw(raw), NodeId::from_raw(raw));
        assert!(
            state
                .tasks_of_service(service)
                .eq(state.tasks().filter(|task| task.service == service))
        );
        assert!(
            state
                .tasks_of_node(node)
                .eq(state.tasks().filter(|task| task.node == Some(node)))
        );
    }
    for name in NAMES {
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        assert_eq!(
            state.service_by_name(name),
            state.services().find(|service| same(&service.spec.name))
        );
        assert_eq!(
            state.network_by_name(name),
            state.networks().find(|network| same(&network.spec.name))
        );
    }
}

proptest! {
    /// Random transactions: indexes agree with the tables, a snapshot reads back as it was (its
    /// indexes are made anew), and a transaction sees what will be applied.
    #[test]
    fn states_stay_whole(transactions in transactions()) {
        let mut state = State::default();
        for ops in &transactions {
            let mut tx = begin(&state);
            run(&mut tx, ops);
            let seen = tables(tx.state());
            let version = tx.version();
            check_indexes(tx.state());

            let commit = state.apply(tx.finish().unwrap()).unwrap();
            prop_assert_eq!(commit.version, version);
            prop_assert_eq!(state.version(), version);
            prop_assert_eq!(seen, tables(&state));
            check_indexes(&state);
            prop_assert_eq!(&codec::decode::<State>(&codec::encode(&state)).unwrap(), &state);
        }
    }

    /// What the log carries gives the same state and commits wherever it is applied, also after it
    /// was encoded.
    #[test]
    fn replay_gives_the_same_state(transactions in transactions()) {
        let mut state = State::default();
        let mut replayed = State::default();
        for ops in &transactions {
            let mut tx = begin(&state);
            run(&mut tx, ops);
            let set = tx.finish().unwrap();
            let logged = codec::decode(&codec::encode(&set)).unwrap();
            prop_assert_eq!(state.apply(set).unwrap(), replayed.apply(logged).unwrap());
        }
        prop_assert_eq!(state, replayed);
    }

    /// The commits alone are enough to follow the state.
    #[test]
    fn commits_name_every_object_that_changed(transactions in transactions()) {
        let mut state = State::default();
        let mut followed: BTreeMap<Key, Object> = BTreeMap::new();
        for ops in &transactions {
            let mut tx = begin(&state);
            run(&mut tx, ops);
            for change in state.apply(tx.finish().unwrap()).unwrap().changes {
                match change {
                    Change::Put(object) => drop(followed.insert(object.key(), object)),
                    Change::Remove(key) => prop_assert!(followed.remove(&key).is_some()),
                }
            }
        }
        let tasks: Vec<_> = followed
            .values()
            .filter_map(|object| match object {
                Object::Task(task) => Some(Arc::clone(task)),
                _ => None,
            })
            .collect();
        prop_assert_eq!(tasks, tables(&state).3);
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(bytes: Vec<u8>) {
        let _ = codec::decode::<State>(&bytes);
    }
}

#[test]
fn a_transaction_reads_its_own_writes() {
    let mut tx = begin(&State::default());
    tx.put(service(1, "web")).unwrap();
    tx.put(task(7, 1, Some(2))).unwrap();
    assert_eq!(tx.state().service_by_name("Web").unwrap().id.raw(), 1);
    assert_eq!(tx.state().tasks_of_node(NodeId::from_raw(2)).count(), 1);
    tx.remove(Key::Task(TaskId::from_raw(7)));
    assert_eq!(
        tx.state().tasks_of_service(ServiceId::from_raw(1)).count(),
        0
    );
    let set = tx.finish().unwrap();
    assert_eq!(
        set.changes.len(),
        1,
        "made and removed again is no change: {set:?}"
    );
}

#[test]
fn a_renamed_service_is_found_by_its_new_name_only() {
    let mut state = State::default();
    change(&mut state, |tx| tx.put(service(1, "old")).unwrap());
    let mut renamed = Service::clone(state.service_by_name("old").unwrap());
    renamed.spec.name = "new".to_owned();
    change(&mut state, |tx| tx.put(renamed).unwrap());
    assert!(state.service_by_name("old").is_none());
    assert!(state.service_by_name("new").is_some());
}

#[test]
fn a_stale_update_voids_the_transaction() {
    let mut state = State::default();
    change(&mut state, |tx| tx.put(node(1)).unwrap());
    let read = Node::clone(state.node(NodeId::from_raw(1)).unwrap());
    change(&mut state, |tx| tx.put(read.clone()).unwrap());

    let mut tx = begin(&state);
    tx.put(service(1, "web")).unwrap();
    let stale = StaleObject {
        key: Key::Node(NodeId::from_raw(1)),
        stored: Version(2),
        given: Version(1),
    };
    assert_eq!(tx.put(read), Err(stale));
    assert_eq!(tx.put(service(2, "db")), Ok(()));
    assert_eq!(tx.finish(), Err(stale));
}

#[test]
fn an_object_may_be_written_twice_in_one_transaction() {
    let mut state = State::default();
    change(&mut state, |tx| tx.put(node(1)).unwrap());
    let read = Node::clone(state.node(NodeId::from_raw(1)).unwrap());
    change(&mut state, |tx| {
        tx.put(read.clone()).unwrap();
        tx.put(read.clone()).unwrap();
        let again = Node::clone(tx.state().node(read.id).unwrap());
        tx.put(again).unwrap();
    });
    assert_eq!(state.version(), Version(2));
}

#[test]
fn versions_and_times_are_the_stores() {
    let mut state = State::default();
    change(&mut state, |tx| tx.put(node(1)).unwrap());
    let created = *state.meta(Key::Node(NodeId::from_raw(1))).unwrap();
    assert_eq!((created.version, created.created_at), (Version(1), at(0)));

    let mut update = Node::clone(state.node(NodeId::from_raw(1)).unwrap());
    update.meta.created_at = at(999);
    change(&mut state, |tx| tx.put(update).unwrap());
    let updated = *state.meta(Key::Node(NodeId::from_raw(1))).unwrap();
    assert_eq!(updated.version, Version(2));
    assert_eq!((updated.created_at, updated.updated_at), (at(0), at(1)));
    assert_ne!(updated, meta());
}

#[test]
fn edited_moves_with_the_spec_only() {
    let mut state = State::default();
    change(&mut state, |tx| {
        tx.put(service(1, "web")).unwrap();
        tx.put(node(1)).unwrap();
        tx.put(cluster(10)).unwrap();
    });
    let written = |state: &mut State, f: fn(&mut Service, &mut Node)| {
        let service_key = Key::Service(ServiceId::from_raw(1));
        let node_key = Key::Node(NodeId::from_raw(1));
        let mut service = Service::clone(state.service(ServiceId::from_raw(1)).unwrap());
        let mut node = Node::clone(state.node(NodeId::from_raw(1)).unwrap());
        let cluster = Cluster::clone(state.cluster().unwrap());
        f(&mut service, &mut node);
        change(state, |tx| {
            tx.put(service).unwrap();
            tx.put(node).unwrap();
            tx.put(cluster).unwrap();
        });
        [service_key, node_key, Key::Cluster].map(|key| state.meta(key).unwrap().edited.0)
    };
    assert_eq!(written(&mut state, |_, _| ()), [1, 1, 2]);
    let down = written(&mut state, |service, node| {
        service.update_status = None;
        service.meta.edited = Version(99);
        node.status.state = NodeState::Down;
    });
    assert_eq!(down, [1, 1, 3]);
    let scaled = written(&mut state, |service, _| {
        service.spec.mode = ServiceMode::Replicated { replicas: 9 };
    });
    assert_eq!(scaled, [4, 1, 4]);
    let drained = written(&mut state, |_, node| {
        node.spec.availability = Availability::Drain;
    });
    assert_eq!(drained, [4, 5, 5]);
}

#[test]
fn spec_version_moves_with_the_task_template_only() {
    let mut state = State::default();
    change(&mut state, |tx| tx.put(service(1, "web")).unwrap());
    let update = |state: &mut State, f: fn(&mut Service)| {
        let mut service = Service::clone(state.service_by_name("web").unwrap());
        f(&mut service);
        change(state, |tx| tx.put(service).unwrap());
        state.service_by_name("web").unwrap().spec_version
    };
    assert_eq!(
        update(&mut state, |s| drop(
            s.spec.labels.insert("a".into(), "b".into())
        )),
        Version(1)
    );
    assert_eq!(
        update(&mut state, |s| s.spec.task.force_update = 1),
        Version(3)
    );
    assert_eq!(
        update(&mut state, |s| s.spec_version = Version(99)),
        Version(3)
    );
    assert_eq!(
        update(&mut state, |s| s.spec.task = TaskSpec::default()),
        Version(5)
    );
}

#[test]
fn endpoint_ids_are_never_handed_out_twice() {
    let mut state = State::default();
    let mut last = 0;
    for _ in 0..3 {
        change(&mut state, |tx| {
            for _ in 0..3 {
                let next = tx.allocate_endpoint_id().0;
                assert_eq!(next, last + 1);
                last = next;
            }
        });
    }
}

#[test]
fn changes_apply_only_to_the_state_they_were_computed_from() {
    let mut state = State::default();
    let mut late = begin(&state);
    late.put(node(2)).unwrap();
    change(&mut state, |tx| tx.put(node(1)).unwrap());
    let before = state.clone();
    assert_eq!(
        state.apply(late.finish().unwrap()),
        Err(Superseded {
            base: Version(0),
            found: Version(1)
        })
    );
    assert_eq!(state, before);
}
