//! The members of the Raft group follow the nodes: whoever is a manager in the store is to vote, and
//! nobody else. One change at a time, so that there is always a quorum that knows both sides.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use ca::BACKDATE;
use model::{
    NodeId,
    object::{Cluster, ManagerStatus, Node, RaftId, Revoked},
    spec::NodeRole,
};
use store::{Members, State, Store, StoreError, Transaction, WriteError, raft::Member};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::revoke;

/// After a change that did not come about, and between looks at a group whose log lags behind the
/// store.
const RETRY: Duration = Duration::from_secs(1);

/// What brings the group one step closer to the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Takes in a manager.
    Add(ManagerStatus),
    /// Goes on without one.
    Remove(RaftId),
    /// Notes that the group went on without this node's manager.
    Retire(NodeId),
}

/// Runs until cancelled.
pub(crate) async fn run(store: Store, cancel: CancellationToken) {
    let mut states = store.watch();
    let mut failures = Failures::default();
    let work = async {
        loop {
            states.mark_unchanged();
            let step = next(&store.state(), &store.members(), store.id(), &failures);
            let Some(step) = step else {
                if states.changed().await.is_err() {
                    return;
                }
                continue;
            };
            // A change of the nodes may make the step moot, and a new member may never come up.
            let outcome = tokio::select! {
                outcome = take(&store, step) => Some(outcome),
                () = moot(&store, step, &failures) => None,
            };
            match outcome {
                Some(Ok(())) => info!(?step, "managers changed"),
                Some(Err(error)) => {
                    warn!(?step, %error, "managers not changed; trying again");
                    failures.note(step);
                    tokio::time::sleep(RETRY).await;
                }
                None => {}
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

/// How often each manager could not be taken in: the others go first.
#[derive(Debug, Default)]
struct Failures(HashMap<RaftId, u32>);

impl Failures {
    fn note(&mut self, step: Step) {
        if let Step::Add(manager) = step {
            *self.0.entry(manager.raft).or_default() += 1;
        }
    }

    fn of(&self, id: RaftId) -> u32 {
        self.0.get(&id).copied().unwrap_or_default()
    }
}

/// Removals come first, that of the leader itself (`own`) last of them: it leads no more after.
fn next(state: &State, members: &Members, own: RaftId, failures: &Failures) -> Option<Step> {
    let wanted = |id: &RaftId| {
        state
            .nodes()
            .filter(|node| node.spec.role == NodeRole::Manager)
            .any(|node| node.manager.is_some_and(|manager| manager.raft == *id))
    };
    let is_member =
        |id: RaftId| members.voters.contains_key(&id) || members.learners.contains_key(&id);
    let retired = state.nodes().find(|node| {
        let gone = |manager: ManagerStatus| !is_member(manager.raft);
        node.spec.role == NodeRole::Worker && node.manager.is_some_and(gone)
    });
    if let Some(node) = retired {
        return Some(Step::Retire(node.id));
    }
    let unwanted = members
        .learners
        .keys()
        .chain(members.voters.keys())
        .filter(|id| !wanted(id))
        .filter(|id| members.learners.contains_key(id) || members.voters.len() > 1);
    if let Some(id) = unwanted.min_by_key(|id| **id == own) {
        return Some(Step::Remove(*id));
    }
    let missing = state
        .nodes()
        .filter(|node| node.spec.role == NodeRole::Manager)
        .filter_map(|node| node.manager)
        .filter(|manager| !members.voters.contains_key(&manager.raft));
    missing
        .min_by_key(|manager| failures.of(manager.raft))
        .map(Step::Add)
}

async fn take(store: &Store, step: Step) -> Result<(), StoreError> {
    match step {
        Step::Add(ManagerStatus { raft, addr }) => {
            store.add_member(raft, Member { addr: addr.into() }).await
        }
        Step::Remove(id) => store.remove_member(id).await,
        Step::Retire(id) => {
            let retired = store.write(|tx| {
                let node = tx.state().node(id).filter(|node| node.manager.is_some());
                if let Some(node) = node {
                    let node = Node {
                        manager: None,
                        ..Node::clone(node)
                    };
                    tx.put(node).expect("it was read in this transaction");
                    void_certificate(tx, id);
                }
                Ok::<_, Infallible>(())
            });
            match retired.await {
                Ok(_) => Ok(()),
                Err(WriteError::Store(error)) => Err(error),
                Err(error) => Err(StoreError::Members(error.to_string())),
            }
        }
    }
}

/// What a manager's certificate entitles to, a former one's does not.
pub(crate) fn void_certificate(tx: &mut Transaction, node: NodeId) {
    let cluster = tx.state().cluster();
    let mut cluster = Cluster::clone(cluster.expect("a manager runs with a cluster"));
    // So much later one may seem to be issued that an external CA signed, or a manager whose clock is
    // early; and one that was issued since by a manager that does not know yet. One that it needs when
    // it is a manager again is void as well, until it has enrolled, for which that does not matter.
    let at = tx.now() + BACKDATE;
    revoke(&mut cluster, node, Revoked::Manager, at);
    tx.put(cluster).expect("it was read in this transaction");
}

/// Returns when another step is called for.
async fn moot(store: &Store, step: Step, failures: &Failures) {
    let mut states = store.watch();
    while states.changed().await.is_ok() {
        let now = next(&store.state(), &store.members(), store.id(), failures);
        // The step itself changes the members before it returns.
        if now.is_some_and(|now| now != step) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{World, node};

    fn status(raft: u64) -> ManagerStatus {
        ManagerStatus {
            raft: RaftId(raft),
            addr: "192.0.2.1:2377".parse().unwrap(),
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        let named = |ids: &[u64]| {
            let ids = ids.iter().map(|id| (RaftId(*id), Member::default()));
            ids.collect()
        };
        Members {
            voters: named(voters),
            learners: named(learners),
        }
    }

    /// Nodes by role and the name of their manager; ids ascend.
    fn world(nodes: &[(NodeRole, Option<u64>)]) -> (World, Vec<NodeId>) {
        let mut world = World::new();
        let mut ids = Vec::new();
        world.write(|tx| {
            for (number, (role, raft)) in nodes.iter().enumerate() {
                let mut node = node("n");
                node.id = NodeId::from_raw(number as u128 + 1);
                node.spec.role = *role;
                node.manager = raft.map(status);
                ids.push(node.id);
                tx.put(node).unwrap();
            }
        });
        (world, ids)
    }

    fn step(world: &World, members: &Members) -> Option<Step> {
        next(&world.state, members, RaftId(1), &Failures::default())
    }

    use NodeRole::{Manager, Worker};

    #[test]
    fn group_that_is_as_the_nodes_say_stays() {
        let (world, _) = world(&[(Manager, Some(1)), (Manager, Some(2)), (Worker, None)]);
        assert_eq!(step(&world, &members(&[1, 2], &[])), None);
        // One that is to be a manager and has not enrolled yet has no name to be added by.
        let (world, _) = self::world(&[(Manager, Some(1)), (Manager, None)]);
        assert_eq!(step(&world, &members(&[1], &[])), None);
    }

    #[test]
    fn demoted_manager_is_removed_and_then_retired() {
        let (world, ids) = world(&[(Manager, Some(1)), (Worker, Some(2))]);
        let remove = Step::Remove(RaftId(2));
        assert_eq!(step(&world, &members(&[1, 2], &[])), Some(remove));
        assert_eq!(step(&world, &members(&[1], &[2])), Some(remove));
        let retire = Step::Retire(ids[1]);
        assert_eq!(step(&world, &members(&[1], &[])), Some(retire));
    }

    /// A certificate may seem to be issued up to [`BACKDATE`] after it was, or be issued by a manager
    /// that has not heard of the demotion.
    #[test]
    fn former_managers_certificate_is_void_though_it_is_issued_a_little_later() {
        let (mut world, ids) = world(&[(Worker, None)]);
        let mut demoted = None;
        world.write(|tx| {
            demoted = Some(tx.now());
            void_certificate(tx, ids[0]);
        });
        let revoked = world.state.cluster().unwrap().revoked[&ids[0]];
        assert_eq!(revoked.at, demoted.unwrap() + BACKDATE);
    }

    #[test]
    fn leader_goes_last_and_the_last_voter_never() {
        let (world, _) = world(&[(Worker, Some(1)), (Worker, Some(2)), (Manager, Some(3))]);
        let all = members(&[1, 2, 3], &[]);
        assert_eq!(step(&world, &all), Some(Step::Remove(RaftId(2))));
        let (world, _) = self::world(&[(Worker, Some(1))]);
        assert_eq!(step(&world, &members(&[1], &[])), None);
    }

    #[test]
    fn removals_come_before_additions_and_failed_ones_last() {
        let (world, _) = world(&[(Manager, Some(1)), (Manager, Some(2)), (Manager, Some(3))]);
        let with_stranger = members(&[1, 9], &[]);
        assert_eq!(step(&world, &with_stranger), Some(Step::Remove(RaftId(9))));
        let alone = members(&[1], &[]);
        assert_eq!(step(&world, &alone), Some(Step::Add(status(2))));
        let mut failures = Failures::default();
        failures.note(Step::Add(status(2)));
        let other = next(&world.state, &alone, RaftId(1), &failures);
        assert_eq!(other, Some(Step::Add(status(3))));
    }
}
