//! Who belongs to the cluster: nodes join with a token, and leave with the secret they were given.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use model::{
    NodeId,
    object::{Cluster, Meta, Node, NodeState, NodeStatus},
    rpc::{JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, Membership},
    spec::{NodeRole, NodeSpec},
};
use store::{Store, Transaction, WriteError};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::{dispatcher::Hub, drain::DRAIN_DEADLINE, liveness::Liveness, secret};

/// Between two looks at what the nodes have reached.
const LEAVE_LOOK: Duration = Duration::from_millis(20);

/// Until a certificate authority signs for them, nodes get a bearer secret at joining.
#[derive(Clone)]
pub(crate) struct MembershipService {
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    pub(crate) liveness: Arc<Liveness>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let remote = request.remote_addr();
        let request = request.into_inner();
        let addr = match request.advertise_addr {
            Some(addr) => usable(addr)?,
            None => address_of(remote)?,
        };
        let vtep = usable(request.data_path_addr.unwrap_or(addr))?;
        let secret = secret::generate();
        let joined = self
            .store
            .write(|tx| join(tx, &request, addr, vtep, &secret))
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
        let request = request.into_inner();
        let left = self.store.write(|tx| leave(tx, &request)).await;
        let ((), version) = left.map_err(to_status)?;
        self.liveness.forget(request.node);
        self.hub.end_session(request.node);
        // The node stops its tasks when it has the answer: by then nobody sends to them.
        let unseen = async {
            let mut look = tokio::time::interval(LEAVE_LOOK);
            while self.hub.reached_by_all(&self.store.state()) < version {
                look.tick().await;
            }
        };
        if tokio::time::timeout(DRAIN_DEADLINE, unseen).await.is_err() {
            warn!(node.id = %request.node, "not every node knows yet that the node leaves");
        }
        info!(node.id = %request.node, "node left");
        Ok(Response::new(LeaveResponse {}))
    }
}

fn join(
    tx: &mut Transaction,
    request: &JoinRequest,
    addr: Ipv4Addr,
    vtep: Ipv4Addr,
    secret: &str,
) -> Result<JoinResponse, Status> {
    let no_cluster = || Status::unavailable("this manager has no swarm yet; try again");
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
        vtep,
        manager_addr: None,
        secret_digest: secret::digest(secret),
    };
    let response = JoinResponse {
        node: node.id,
        cluster: cluster.id,
        secret: secret.to_owned(),
        addr,
        vtep,
        root_certificate_pem: cluster.ca.certificate_pem.clone(),
    };
    tx.put(node).expect("a new id has no older version");
    Ok(response)
}

/// What a token entitles to; nothing if it is forged, or was valid before a rotation.
fn role(cluster: &Cluster, token: &str) -> Option<NodeRole> {
    if secret::same(token, &cluster.tokens.worker) {
        Some(NodeRole::Worker)
    } else if secret::same(token, &cluster.tokens.manager) {
        Some(NodeRole::Manager)
    } else {
        None
    }
}

/// The node stays listed as DOWN until it is removed, and its secret is void.
fn leave(tx: &mut Transaction, request: &LeaveRequest) -> Result<(), Status> {
    let id = request.node;
    let Some(stored) = tx.state().node(id) else {
        return Err(Status::not_found(format!(
            "node {id} is not a member of this swarm"
        )));
    };
    if stored.secret_digest != secret::digest(&request.secret) {
        return Err(Status::unauthenticated(format!(
            "node {id} has another secret"
        )));
    }
    if stored.spec.role == NodeRole::Manager {
        return Err(Status::failed_precondition(format!(
            "node {id} is the last manager: the swarm ends with it; use `--force` to leave all the \
             same"
        )));
    }
    let mut node = Node::clone(stored);
    node.status.state = NodeState::Down;
    node.status.message = "the node left the swarm".to_owned();
    node.secret_digest = secret::REVOKED;
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
