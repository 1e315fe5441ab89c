//! Who belongs to the cluster: nodes join with a token, for which they get a certificate, and enrol
//! as managers and leave with that. The leader answers.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ca::{NodeTls, Peer};
use jiff::Timestamp;
use model::{
    NodeId,
    object::{Cluster, ManagerStatus, Meta, Node, NodeState, NodeStatus, RaftId, Revoked},
    rpc::{
        Certified, EnrolRequest, EnrolResponse, JoinRequest, JoinResponse, LeaveRequest,
        LeaveResponse, Membership, not_leader,
    },
    spec::{NodeRole, NodeSpec},
};
use sha2::{Digest, Sha256};
use store::{State, Transaction, WriteError};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::{
    access::{caller, no_cluster, not_a_member, revoke},
    authority::{self, certify, not_certified},
    office::{Office, Offices},
    ops::{OpError, node::check_demotion},
    rotation,
    tunnel::{self, usable},
};

/// For all nodes to know that one leaves.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at what nodes or managers have reached.
const LOOK: Duration = Duration::from_millis(20);
/// For a new manager to catch up, and for one that leaves to be gone on without. It asks again.
const CHANGE_WAIT: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub(crate) struct MembershipService {
    pub(crate) offices: Offices,
    /// What an external CA knows this manager by.
    pub(crate) tls: NodeTls,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let office = self.offices.get()?;
        let remote = request.extensions().get::<Peer>().map(|peer| peer.addr);
        let request = request.into_inner();
        let addr = match request.advertise_addr {
            Some(addr) => usable(addr)?,
            None => address_of(remote)?,
        };
        let vtep = usable(request.data_path_addr.unwrap_or(addr))?;
        let key = authority::read(&request.request_pem)?;
        // Ahead of the transaction: an external CA takes its time.
        let state = office.store.state();
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        let (node, role) = (NodeId::generate(), role(cluster, &request.token)?);
        let certified = certify(cluster, Some(&self.tls), node, role, &key, Timestamp::now());
        let certified = certified.await.map_err(|error| not_certified(&error))?;
        let admission = Admission {
            node,
            role,
            certified,
            addr,
            vtep,
        };
        let joined = office.store.write(|tx| join(tx, &request, admission)).await;
        let (response, _) = joined.map_err(to_status)?;
        let state = office.store.state();
        office.liveness.expect(response.node, &state);
        info!(node.id = %response.node, node.hostname = request.description.hostname,
            node.addr = %addr, "node joined");
        Ok(Response::new(response))
    }

    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let office = self.offices.get()?;
        let node = caller(&request)?.node;
        let request = request.into_inner();
        let enrolled = office.store.write(|tx| enrol(tx, node, request)).await;
        enrolled.map_err(to_status)?;
        // `members` does the rest.
        let votes = || office.store.members().voters.contains_key(&request.raft);
        settled(&office, |_| Ok(votes())).await?;
        info!(node.id = %node, raft.id = %request.raft, "node became a manager");
        Ok(Response::new(EnrolResponse {}))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let office = self.offices.get()?;
        let node = caller(&request)?.node;
        let reachable = |id| office.store.is_reachable(id);
        let resigned = office.store.write(|tx| resign(tx, node, reachable)).await;
        resigned.map_err(to_status)?;
        let is_retired = |state: &State| match state.node(node) {
            Some(stored) if stored.manager.is_some() => {
                check_demotion(state, stored, reachable).map_err(refused)?;
                Ok(false)
            }
            _ => Ok(true),
        };
        settled(&office, is_retired).await?;
        let left = office.store.write(|tx| leave(tx, node)).await;
        let ((), version) = left.map_err(to_status)?;
        office.liveness.forget(node);
        office.hub.end_session(node);
        // The node stops its tasks when it has the answer: by then nobody sends to them.
        let unseen = async {
            let mut look = tokio::time::interval(LOOK);
            let is_behind = || {
                let live = office.hub.reached_by_live(&office.store.state());
                live.into_values().any(|reached| reached < version)
            };
            while is_behind() {
                look.tick().await;
            }
        };
        if tokio::time::timeout(LEAVE_WAIT, unseen).await.is_err() {
            warn!(node.id = %node, "not every node knows yet that the node leaves");
        }
        info!(node.id = %node, "node left");
        Ok(Response::new(LeaveResponse {}))
    }
}

/// Waits for what a loop of the office is to bring about, until `is_so` says that it will not.
async fn settled(
    office: &Office,
    is_so: impl Fn(&State) -> Result<bool, Status>,
) -> Result<(), Status> {
    let waited = async {
        let mut look = tokio::time::interval(LOOK);
        while !is_so(&office.store.state())? {
            look.tick().await;
        }
        Ok(())
    };
    tokio::select! {
        outcome = waited => outcome,
        () = office.cancel.cancelled() => Err(not_leader(None)),
        () = tokio::time::sleep(CHANGE_WAIT) => Err(Status::unavailable(format!(
            "the managers have not agreed on it within {CHANGE_WAIT:?}; try again"
        ))),
    }
}

/// What a node is let in as.
struct Admission {
    node: NodeId,
    role: NodeRole,
    certified: Certified,
    addr: Ipv4Addr,
    vtep: Ipv4Addr,
}

/// Refused when token or root were replaced since it was certified.
fn join(
    tx: &mut Transaction,
    request: &JoinRequest,
    admission: Admission,
) -> Result<JoinResponse, Status> {
    let cluster = Arc::clone(tx.state().cluster().ok_or_else(no_cluster)?);
    role(&cluster, &request.token)?;
    if admission.certified.roots_pem != rotation::roots_pem(&cluster) {
        return Err(Status::unavailable(
            "the root certificate is being replaced; try again",
        ));
    }
    let node = Node {
        id: admission.node,
        meta: Meta::new(tx.now()),
        spec: NodeSpec {
            role: admission.role,
            availability: request.availability,
            ..NodeSpec::default()
        },
        description: request.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "the node joined and has not begun a session yet".to_owned(),
            addr: admission.addr,
        },
        issuer: None,
        vtep: tunnel::of_joiner(tx.state(), admission.vtep),
        manager: None,
    };
    tx.put(node).expect("a new id has no older version");
    Ok(JoinResponse {
        node: admission.node,
        cluster: cluster.id,
        certified: admission.certified,
        addr: admission.addr,
        vtep: admission.vtep,
    })
}

/// What a token entitles to; nothing if it is forged, or was valid before a rotation.
fn role(cluster: &Cluster, token: &str) -> Result<NodeRole, Status> {
    if is_same(token, &cluster.tokens.worker) {
        Ok(NodeRole::Worker)
    } else if is_same(token, &cluster.tokens.manager) {
        Ok(NodeRole::Manager)
    } else {
        Err(Status::invalid_argument("invalid join token"))
    }
}

/// Compared by digest: how long it takes tells nothing of the token.
fn is_same(a: &str, b: &str) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}

/// Names the node's manager, in place of one that it had before.
fn enrol(tx: &mut Transaction, id: NodeId, request: EnrolRequest) -> Result<(), Status> {
    let stored = tx.state().node(id).ok_or_else(|| not_a_member(id))?;
    if stored.spec.role != NodeRole::Manager {
        return Err(Status::permission_denied(format!(
            "node {} is a worker: promote it on a manager first, with `swarmnet node promote`",
            id
        )));
    }
    let manager = Some(ManagerStatus {
        raft: request.raft,
        addr: request.addr,
    });
    if stored.manager != manager {
        let node = Node {
            manager,
            ..Node::clone(stored)
        };
        tx.put(node).expect("it was read in this transaction");
        unrevoke(tx, id)?;
    }
    Ok(())
}

/// A manager again: what was said of its former time as one counts no more.
fn unrevoke(tx: &mut Transaction, id: NodeId) -> Result<(), Status> {
    let cluster = tx.state().cluster().ok_or_else(no_cluster)?;
    if cluster.revoked.get(&id).map(|revocation| revocation.of) == Some(Revoked::Manager) {
        let mut cluster = Cluster::clone(cluster);
        cluster.revoked.remove(&id);
        tx.put(cluster).expect("it was read in this transaction");
    }
    Ok(())
}

/// Makes the node a worker, if it is none. Refused when the others would have no quorum: a manager
/// that goes all the same is one that they miss, so that they can wait for those that come back.
fn resign(
    tx: &mut Transaction,
    id: NodeId,
    is_reachable: impl Fn(RaftId) -> bool,
) -> Result<(), Status> {
    let stored = tx.state().node(id).ok_or_else(|| not_a_member(id))?;
    if stored.spec.role == NodeRole::Worker {
        return Ok(());
    }
    check_demotion(tx.state(), stored, is_reachable).map_err(refused)?;
    let mut node = Node::clone(stored);
    node.spec.role = NodeRole::Worker;
    tx.put(node).expect("it was read in this transaction");
    Ok(())
}

fn refused(error: OpError) -> Status {
    Status::failed_precondition(error.to_string())
}

/// The node stays listed as DOWN until it is removed, and its certificate is void.
fn leave(tx: &mut Transaction, id: NodeId) -> Result<(), Status> {
    let stored = tx.state().node(id).ok_or_else(|| not_a_member(id))?;
    let mut node = Node::clone(stored);
    node.status.state = NodeState::Down;
    node.status.message = "the node left the swarm".to_owned();
    let mut cluster = Cluster::clone(tx.state().cluster().ok_or_else(no_cluster)?);
    revoke(&mut cluster, id, Revoked::Membership, tx.now());
    tx.put(cluster).expect("it was read in this transaction");
    tx.put(node).expect("it was read in this transaction");
    Ok(())
}

fn to_status(error: WriteError<Status>) -> Status {
    match error {
        WriteError::Refused(status) => status,
        WriteError::NotLeader { leader } => not_leader(Some(leader.addr)),
        other => Status::unavailable(other.to_string()),
    }
}

/// Where a call comes from.
fn address_of(remote: Option<SocketAddr>) -> Result<Ipv4Addr, Status> {
    match remote.map(|remote| remote.ip().to_canonical()) {
        Some(IpAddr::V4(addr)) => usable(addr),
        Some(IpAddr::V6(addr)) => Err(Status::invalid_argument(format!(
            "the node connects from {addr}, and nodes need an IPv4 address; name one with \
             `--advertise-addr`"
        ))),
        None => Err(Status::invalid_argument(
            "the node's address is not known; name it with `--advertise-addr`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use model::object::NodeDescription;
    use tonic::Code;

    use super::*;
    use crate::fixture::World;

    /// A signature takes time, in which tokens and root may change.
    #[test]
    fn who_was_certified_by_what_is_no_more_is_not_let_in() {
        let mut world = World::new();
        let cluster = Cluster::clone(world.state.cluster().unwrap());
        let request = |token: &str| JoinRequest {
            token: token.to_owned(),
            request_pem: String::new(),
            description: NodeDescription::default(),
            advertise_addr: None,
            data_path_addr: None,
            availability: Default::default(),
        };
        let mut admit = |token: &str, roots_pem: String| {
            let admission = Admission {
                node: NodeId::generate(),
                role: NodeRole::Worker,
                certified: Certified {
                    chain_pem: String::new(),
                    roots_pem,
                },
                addr: Ipv4Addr::LOCALHOST,
                vtep: Ipv4Addr::LOCALHOST,
            };
            let joined = world.try_write(|tx| join(tx, &request(token), admission));
            joined.map(drop).map_err(|status| status.code())
        };
        let (token, roots) = (&cluster.tokens.worker, rotation::roots_pem(&cluster));
        assert_eq!(admit(token, "old".to_owned()), Err(Code::Unavailable));
        assert_eq!(admit("old", roots.clone()), Err(Code::InvalidArgument));
        assert_eq!(admit(token, roots), Ok(()));
    }
}
