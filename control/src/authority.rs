//! The cluster's certificate authority: tells the root, and signs for joining and renewing nodes.
//! Every manager has the key in its state, so that renewal goes on whoever leads. Where external CAs
//! are named, they sign, and the manager checks what they signed.

use ca::{CaError, NodeTls, Roots, external::External};
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
    external::endpoints,
    rotation,
};

#[derive(Clone)]
pub(crate) struct AuthorityService {
    pub(crate) store: Store,
    /// What an external CA knows this manager by.
    pub(crate) tls: NodeTls,
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
        let request_pem = &request.get_ref().request_pem;
        let certified = renew(&self.store, &self.tls, node, request_pem).await?;
        info!(node.id = %node, "certificate renewed");
        Ok(Response::new(certified))
    }
}

/// Signs for a node that is a member, in the role that the cluster wants it in.
pub(crate) async fn renew(
    store: &Store,
    caller: &NodeTls,
    node: NodeId,
    request_pem: &str,
) -> Result<Certified, Status> {
    let key = read(request_pem)?;
    let state = store.state();
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    let role = state
        .node(node)
        .ok_or_else(|| not_a_member(node))?
        .spec
        .role;
    let certified = certify(cluster, Some(caller), node, role, &key, Timestamp::now());
    certified.await.map_err(|error| not_certified(&error))
}

pub(crate) fn not_certified(error: &CaError) -> Status {
    match error {
        // Asking another manager, or again at once, would not help.
        CaError::External(_) => Status::failed_precondition(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// The request in a call.
pub(crate) fn read(request_pem: &str) -> Result<ca::Request, Status> {
    ca::Request::from_pem(request_pem).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Signs for a node, or, where external CAs are named, has one of them sign, which knows this manager
/// as `caller`.
pub(crate) async fn certify(
    cluster: &Cluster,
    caller: Option<&NodeTls>,
    node: NodeId,
    role: NodeRole,
    request: &ca::Request,
    now: Timestamp,
) -> Result<Certified, CaError> {
    let subject = ca::Subject {
        node,
        cluster: cluster.id,
        role,
    };
    let roots_pem = rotation::roots_pem(cluster);
    let endpoints = endpoints(&cluster.spec)?;
    let chain_pem = if endpoints.is_empty() {
        let expiry = SignedDuration::try_from(cluster.spec.cert_expiry);
        let expiry = expiry.unwrap_or(SignedDuration::MAX);
        rotation::authority(cluster)?.issue(request, subject, now, expiry)?
    } else {
        let external = External {
            endpoints: &endpoints,
            roots: &Roots::from_pem(&roots_pem)?,
            caller,
        };
        external.sign(request, subject).await?
    };
    Ok(Certified {
        chain_pem,
        roots_pem,
    })
}
