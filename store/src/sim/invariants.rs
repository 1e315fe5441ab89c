//! What must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{EndpointId, NodeId, Version};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use crate::{
    Commit, State, Store,
    object::{Change, Object},
    raft::RaftId,
};

#[derive(Default)]
pub(super) struct Invariants {
    /// Who led each term.
    leaders: BTreeMap<u64, RaftId>,
    /// What each version changed, by whoever applied it first.
    commits: BTreeMap<Version, Vec<Change>>,
    /// By whoever was first seen there.
    states: BTreeMap<Version, Arc<State>>,
    /// Of the stores that run.
    followed: BTreeMap<RaftId, Followed>,
    /// By version: register and value.
    acknowledged: BTreeMap<Version, (NodeId, u64)>,
    endpoints: BTreeSet<EndpointId>,
}

struct Followed {
    commits: Receiver<Arc<Commit>>,
    version: Version,
}

impl Invariants {
    /// A store runs from now on.
    pub(super) fn began(&mut self, store: &Store) {
        let followed = Followed {
            commits: store.commits(),
            version: store.state().version(),
        };
        self.followed.insert(store.id(), followed);
    }

    pub(super) fn acknowledged(
        &mut self,
        version: Version,
        register: NodeId,
        value: u64,
        endpoint: EndpointId,
    ) {
        let before = self.acknowledged.insert(version, (register, value));
        assert_eq!(before, None, "version {version} was acknowledged twice");
        let is_new = self.endpoints.insert(endpoint);
        assert!(is_new, "endpoint {endpoint} was handed out twice");
    }

    pub(super) fn check(&mut self, up: &[Store]) {
        for store in up {
            self.one_leads_a_term(store);
            self.versions_only_grow(store);
            self.all_apply_the_same(store);
            self.all_are_in_the_same_state(store);
        }
    }

    fn one_leads_a_term(&mut self, store: &Store) {
        if let Some(term) = store.term_led() {
            let leader = *self.leaders.entry(term).or_insert(store.id());
            assert_eq!(leader, store.id(), "two lead term {term}");
        }
    }

    fn followed(&mut self, store: &Store) -> &mut Followed {
        self.followed.get_mut(&store.id()).expect("it has begun")
    }

    fn versions_only_grow(&mut self, store: &Store) {
        let now = store.state().version();
        let last = std::mem::replace(&mut self.followed(store).version, now);
        assert!(now >= last, "{store:?} went back from {last}");
    }

    fn all_apply_the_same(&mut self, store: &Store) {
        loop {
            let commit = match self.followed(store).commits.try_recv() {
                Ok(commit) => commit,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
                Err(TryRecvError::Lagged(_)) => unreachable!("so many do not fit into a step"),
            };
            let version = commit.version;
            let first = self.commits.entry(version);
            let first = first.or_insert_with(|| commit.changes.clone());
            assert_eq!(*first, commit.changes, "version {version} at {store:?}");
        }
    }

    fn all_are_in_the_same_state(&mut self, store: &Store) {
        let state = store.state();
        let first = self.states.entry(state.version());
        let first = first.or_insert_with(|| Arc::clone(&state));
        assert_eq!(*first, state, "at {store:?}");
    }

    /// At the end, when all have told everything: it is there, and all know.
    pub(super) fn check_acknowledged(&self, up: &[Store]) {
        for (version, (register, value)) in &self.acknowledged {
            for store in up {
                let known = store.state().version();
                assert!(known >= *version, "{store:?} lacks version {version}");
            }
            let changes = &self.commits[version];
            let is_it = |change: &Change| match change {
                Change::Put(Object::Node(node)) => {
                    node.id == *register && node.spec.name == Some(value.to_string())
                }
                _ => false,
            };
            assert!(
                changes.iter().any(is_it),
                "version {version} was acknowledged as {value}, and is {changes:?}"
            );
        }
    }
}
