//! The cluster's certificate authority: tells the root, and signs for joining and renewing nodes.
//! Every manager has the key in its state, so that renewal goes on whoever leads.

use jiff::{SignedDuration, Timestamp};
use model::{
    NodeId,
    object::Cluster,
    rpc::{Authority, Certified, RenewRequest, RootRequest, RootResponse},
    spec::NodeRole,
};
use store::Store;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::{
    access::{caller, no_cluster, not_a_member},
    rotation,
};

#[derive(Clone)]
pub(crate) struct AuthorityService {
    pub(crate) store: Store,
}

#[tonic::async_trait]
impl Authority for AuthorityService {
    async fn root(&self, _: Request<RootRequest>) -> Result<Response<RootResponse>, Status> {
        let state = self.store.state();
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        Ok(Response::new(RootResponse {
            certificate_pem: cluster.ca.certificate_pem.clone(),
        }))
    }

    /// In the role that the cluster wants the node in.
    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Certified>, Status> {
        let node = caller(&request)?.node;
        let certified = renew(&self.store, node, &request.get_ref().request_pem)?;
        info!(node.id = %node, "certificate renewed");
        Ok(Response::new(certified))
    }
}

/// Signs for a node that is a member, in the role that the cluster wants it in.
pub(crate) fn renew(store: &Store, node: NodeId, request_pem: &str) -> Result<Certified, Status> {
    let key = read(request_pem)?;
    let state = store.state();
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    let role = state
        .node(node)
        .ok_or_else(|| not_a_member(node))?
        .spec
        .role;
    certify(cluster, node, role, &key, Timestamp::now())
        .map_err(|error| Status::internal(error.to_string()))
}

/// The request in a call.
pub(crate) fn read(request_pem: &str) -> Result<ca::Request, Status> {
    ca::Request::from_pem(request_pem).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Signs for a node.
pub(crate) fn certify(
    cluster: &Cluster,
    node: NodeId,
    role: NodeRole,
    request: &ca::Request,
    now: Timestamp,
) -> Result<Certified, ca::CaError> {
    let subject = ca::Subject {
        node,
        cluster: cluster.id,
        role,
    };
    let expiry = SignedDuration::try_from(cluster.spec.cert_expiry).unwrap_or(SignedDuration::MAX);
    Ok(Certified {
        chain_pem: rotation::authority(cluster)?.issue(request, subject, now, expiry)?,
        roots_pem: rotation::roots_pem(cluster),
    })
}
