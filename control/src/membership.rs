//! Who belongs to the cluster: nodes join with a token, for which they get a certificate, and leave
//! with that.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ca::Peer;
use model::{
    NodeId,
    object::{Cluster, Meta, Node, NodeState, NodeStatus, Revoked},
    rpc::{JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, Membership},
    spec::{NodeRole, NodeSpec},
};
use sha2::{Digest, Sha256};
use store::{Store, Transaction, WriteError};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::{
    access::{caller, no_cluster, not_a_member, revoke},
    authority::{self, certify},
    dispatcher::Hub,
    liveness::Liveness,
};

/// For all nodes to know that one leaves.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at what the nodes have reached.
const LEAVE_LOOK: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub(crate) struct MembershipService {
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    pub(crate) liveness: Arc<Liveness>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let remote = request.extensions().get::<Peer>().map(|peer| peer.addr);
        let request = request.into_inner();
        let addr = match request.advertise_addr {
            Some(addr) => usable(addr)?,
            None => address_of(remote)?,
        };
        let vtep = usable(request.data_path_addr.unwrap_or(addr))?;
        let key = authority::read(&request.request_pem)?;
        let joined = self
            .store
            .write(|tx| join(tx, &request, &key, addr, vtep))
            .await;
        let (response, _) = joined.map_err(to_status)?;
        self.liveness.expect(response.node, &self.store.state());
        info!(node.id = %response.node, node.hostname = request.description.hostname,
            node.addr = %addr, "node joined");
        Ok(Response::new(response))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let node = caller(&request)?.node;
        let left = self.store.write(|tx| leave(tx, node)).await;
        let ((), version) = left.map_err(to_status)?;
        self.liveness.forget(node);
        self.hub.end_session(node);
        // The node stops its tasks when it has the answer: by then nobody sends to them.
        let unseen = async {
            let mut look = tokio::time::interval(LEAVE_LOOK);
            while self.hub.reached_by_all(&self.store.state()) < version {
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

fn join(
    tx: &mut Transaction,
    request: &JoinRequest,
    key: &ca::Request,
    addr: Ipv4Addr,
    vtep: Ipv4Addr,
) -> Result<JoinResponse, Status> {
    let cluster = Arc::clone(tx.state().cluster().ok_or_else(no_cluster)?);
    let role = role(&cluster, &request.token)
        .ok_or_else(|| Status::invalid_argument("invalid join token"))?;
    if role == NodeRole::Manager {
        return Err(Status::unimplemented(
            "this swarm has one manager, and no more can join it yet; join as a worker, with the \
             token that `swarmnet join-token worker` shows",
        ));
    }
    let node = Node {
        id: NodeId::generate(),
        meta: Meta::new(tx.now()),
        spec: NodeSpec {
            role,
            availability: request.availability,
            ..NodeSpec::default()
        },
        description: request.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "the node joined and has not begun a session yet".to_owned(),
            addr,
        },
        issuer: None,
        vtep,
        manager_addr: None,
    };
    let response = JoinResponse {
        node: node.id,
        cluster: cluster.id,
        certified: certify(&cluster, node.id, role, key, tx.now())
            .map_err(|error| Status::internal(error.to_string()))?,
        addr,
        vtep,
    };
    tx.put(node).expect("a new id has no older version");
    Ok(response)
}

/// What a token entitles to; nothing if it is forged, or was valid before a rotation.
fn role(cluster: &Cluster, token: &str) -> Option<NodeRole> {
    if is_same(token, &cluster.tokens.worker) {
        Some(NodeRole::Worker)
    } else if is_same(token, &cluster.tokens.manager) {
        Some(NodeRole::Manager)
    } else {
        None
    }
}

/// Compared by digest: how long it takes tells nothing of the token.
fn is_same(a: &str, b: &str) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}

/// The node stays listed as DOWN until it is removed, and its certificate is void.
fn leave(tx: &mut Transaction, id: NodeId) -> Result<(), Status> {
    let stored = tx.state().node(id).ok_or_else(|| not_a_member(id))?;
    if stored.spec.role == NodeRole::Manager {
        return Err(Status::failed_precondition(format!(
            "node {id} is the last manager: the swarm ends with it; use `--force` to leave all the \
             same"
        )));
    }
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

/// Refuses what no other node can send to.
fn usable(addr: Ipv4Addr) -> Result<Ipv4Addr, Status> {
    if addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() {
        return Err(Status::invalid_argument(format!(
            "{addr} is not the address of a node; name another with `--advertise-addr`"
        )));
    }
    Ok(addr)
}
