//! Who may make which call. Settled ahead of every service, by the caller's certificate and by
//! what the cluster knows of its node.

use std::sync::Arc;

use ca::{Identity, Peer};
use jiff::Timestamp;
use model::{
    ClusterId, NodeId,
    object::{Cluster, Revocation, Revoked},
    rpc::Rpc,
    spec::NodeRole,
};
use net::Gatekeeper;
use store::{State, Store};
use tonic::{Request, Status};
use tracing::info;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Also who has no certificate: it is on its way into the cluster.
    Anyone,
    /// Nodes of the cluster.
    Member,
    /// Those of them that are managers, also before this one has the cluster's state.
    Manager,
}

/// Each call's rule. A new call does not compile without one.
const fn rule(rpc: Rpc) -> Rule {
    match rpc {
        Rpc::AuthorityRoot | Rpc::MembershipJoin => Rule::Anyone,
        Rpc::AuthorityRenew
        | Rpc::MembershipEnrol
        | Rpc::MembershipLeave
        | Rpc::DispatcherSession => Rule::Member,
        Rpc::RaftCall | Rpc::ApiForward => Rule::Manager,
    }
}

/// Applies the rules to what comes in.
pub(crate) struct Access {
    pub(crate) store: Store,
    /// Its own, by its certificate.
    pub(crate) cluster: ClusterId,
}

impl Gatekeeper for Access {
    fn admit(&self, rpc: Rpc, peer: &Peer) -> Result<(), Status> {
        let admitted = admit(
            rpc,
            peer,
            self.cluster,
            &self.store.state(),
            Timestamp::now(),
        );
        if let Err(status) = &admitted {
            info!(peer.addr = %peer.addr, rpc.path = rpc.path(), reason = status.message(),
                "call refused");
        }
        admitted
    }
}

fn admit(
    rpc: Rpc,
    peer: &Peer,
    own: ClusterId,
    state: &State,
    now: Timestamp,
) -> Result<(), Status> {
    match rule(rpc) {
        Rule::Anyone => Ok(()),
        Rule::Member => {
            let identity = peer.identity.as_deref().ok_or_else(nobody)?;
            is_current(identity, now)?;
            is_member(identity, state)
        }
        Rule::Manager => {
            let identity = peer.identity.as_deref().ok_or_else(nobody)?;
            is_current(identity, now)?;
            is_manager(identity, own, state)
        }
    }
}

/// Whether the node is a manager of the cluster `own`. A state that is old, or not there yet, does
/// not know of all managers, but never has what was revoked wrong for longer than it is old.
fn is_manager(identity: &Identity, own: ClusterId, state: &State) -> Result<(), Status> {
    let Identity { node, cluster, .. } = identity;
    if *cluster != own {
        return Err(Status::permission_denied(format!(
            "node {node} belongs to swarm {cluster}, not to this one"
        )));
    }
    let revocation = state
        .cluster()
        .and_then(|cluster| cluster.revoked.get(node));
    let is_void = revocation.is_some_and(|revocation| match revocation.of {
        Revoked::Membership => true,
        Revoked::Manager => identity.issued_at <= revocation.at,
    });
    if identity.role == NodeRole::Manager && !is_void {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "node {node} is no manager, and only managers may call this"
    )))
}

/// A connection may outlive the certificate that it was made with.
fn is_current(identity: &Identity, now: Timestamp) -> Result<(), Status> {
    if now <= identity.not_after {
        return Ok(());
    }
    Err(expired(identity))
}

pub(crate) fn expired(identity: &Identity) -> Status {
    Status::unauthenticated(format!(
        "the certificate of node {} expired at {}; connect again with its new one",
        identity.node, identity.not_after
    ))
}

/// Whether the node belongs to the cluster, as far as `state` knows.
pub(crate) fn is_member(identity: &Identity, state: &State) -> Result<(), Status> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    let Identity {
        node, cluster: of, ..
    } = identity;
    if *of != cluster.id {
        return Err(Status::permission_denied(format!(
            "node {node} belongs to swarm {of}, not to this one"
        )));
    }
    if state.node(*node).is_none() || cluster.has_left(*node) {
        return Err(not_a_member(*node));
    }
    Ok(())
}

pub(crate) fn no_cluster() -> Status {
    Status::unavailable("this manager has no swarm yet; try again")
}

pub(crate) fn not_a_member(node: NodeId) -> Status {
    Status::not_found(format!(
        "node {node} is not a member of this swarm: it left or was removed; run `swarmnet leave \
         --force` on it, and join again"
    ))
}

fn nobody() -> Status {
    Status::unauthenticated(
        "only nodes of this swarm may call this, and the caller shows no certificate",
    )
}

/// Voids what certificates `node` has.
pub(crate) fn revoke(cluster: &mut Cluster, node: NodeId, of: Revoked, at: Timestamp) {
    cluster.revoked.insert(node, Revocation { of, at });
}

/// Who calls, at a service behind the gate.
///
/// # Errors
/// A caller without a certificate: the rule of the call is too loose for the service.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Arc<Identity>, Status> {
    let peer = request.extensions().get::<Peer>();
    let identity = peer.and_then(|peer| peer.identity.clone());
    identity.ok_or_else(nobody)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use store::Transaction;
    use tonic::Code;

    use super::*;
    use crate::fixture::{self, epoch};

    fn certificate(cluster: &Cluster, node: NodeId) -> Identity {
        let root = ca::new_root(epoch()).unwrap();
        let key = ca::NodeKey::generate().unwrap();
        let request = ca::Request::from_pem(&key.request().unwrap()).unwrap();
        let subject = ca::Subject {
            node,
            cluster: cluster.id,
            role: NodeRole::Worker,
        };
        let day = SignedDuration::from_hours(24);
        let authority = ca::Authority::new(&root).unwrap();
        let chain = authority.issue(&request, subject, epoch(), day).unwrap();
        let roots = ca::Roots::from_pem(&root.certificate_pem).unwrap();
        let certificate = ca::NodeCertificate::new(key, &chain, roots).unwrap();
        certificate.identity().clone()
    }

    fn peer(identity: Option<Identity>) -> Peer {
        Peer {
            addr: "192.0.2.9:40000".parse().unwrap(),
            identity: identity.map(Arc::new),
        }
    }

    #[test]
    fn members_are_let_in_until_they_expire_leave_or_turn_out_to_be_of_another_swarm() {
        let mut tx = Transaction::new(Arc::new(State::default()), epoch());
        let (mut cluster, node) = (fixture::cluster(), fixture::node("a"));
        let identity = certificate(&cluster, node.id);
        let call = Rpc::DispatcherSession;
        let member = peer(Some(identity.clone()));
        let own = cluster.id;
        let code = |peer: &Peer, state: &State, at| {
            admit(call, peer, own, state, at).map_err(|s| s.code())
        };

        let nothing = State::default();
        assert_eq!(code(&member, &nothing, epoch()), Err(Code::Unavailable));
        tx.put(cluster.clone()).unwrap();
        assert_eq!(code(&member, tx.state(), epoch()), Err(Code::NotFound));
        tx.put(node.clone()).unwrap();
        assert_eq!(code(&member, tx.state(), epoch()), Ok(()));
        assert_eq!(
            code(&peer(None), tx.state(), epoch()),
            Err(Code::Unauthenticated)
        );

        let late = identity.not_after + SignedDuration::from_secs(1);
        assert_eq!(code(&member, tx.state(), late), Err(Code::Unauthenticated));
        let elsewhere = peer(Some(Identity {
            cluster: ClusterId::generate(),
            ..identity
        }));
        assert_eq!(
            code(&elsewhere, tx.state(), epoch()),
            Err(Code::PermissionDenied)
        );

        revoke(&mut cluster, node.id, Revoked::Manager, epoch());
        tx.put(Cluster {
            meta: tx.state().cluster().unwrap().meta,
            ..cluster.clone()
        })
        .unwrap();
        assert_eq!(
            code(&member, tx.state(), epoch()),
            Ok(()),
            "demoted, and still a node"
        );
        revoke(&mut cluster, node.id, Revoked::Membership, epoch());
        tx.put(Cluster {
            meta: tx.state().cluster().unwrap().meta,
            ..cluster
        })
        .unwrap();
        assert_eq!(code(&member, tx.state(), epoch()), Err(Code::NotFound));
    }
}
