//! Who may make which call: every call, from every kind of caller.

use ca::{NodeTls, Subject};
use jiff::{SignedDuration, Timestamp};
use model::{
    ClusterId,
    codec::MsgPackCodec,
    object::{Revocation, Revoked},
    rpc::{LeaveRequest, MembershipClient, Rpc},
    spec::NodeRole,
};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery, transport::Channel};

use crate::support::{Cluster, Credentials, in_time, intrude};

const DAY: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Without a certificate.
    Nobody,
    Worker,
    Manager,
    /// Left the swarm, and is still listed.
    Left,
    Removed,
    /// A node of ours that was a manager, with the certificate from then.
    Demoted,
    /// Certified by another root, with the ids of our swarm and of a node of ours.
    OtherRoot,
    /// A worker of another swarm.
    OtherWorker,
    /// A manager of another swarm.
    OtherManager,
    /// Certified by our root, with the id of our manager's node and of another swarm.
    OtherId,
    /// A certificate of a node of ours that expired.
    Expired,
    /// One that is not valid yet.
    Early,
}

const CALLERS: [Caller; 12] = [
    Caller::Nobody,
    Caller::Worker,
    Caller::Manager,
    Caller::Left,
    Caller::Removed,
    Caller::Demoted,
    Caller::OtherRoot,
    Caller::OtherWorker,
    Caller::OtherManager,
    Caller::OtherId,
    Caller::Expired,
    Caller::Early,
];

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It reaches its service.
    Admitted,
    /// The gate says so.
    Refused(Code),
    /// The connection is.
    NoTls,
}

/// The whole table. A new call has to be put into it.
fn expected(rpc: Rpc, caller: Caller) -> Verdict {
    use Caller::{
        Demoted, Early, Expired, Left, Manager, Nobody, OtherId, OtherManager, OtherRoot,
        OtherWorker, Removed, Worker,
    };
    let anyone = || match caller {
        OtherRoot | OtherWorker | OtherManager | Expired | Early => Verdict::NoTls,
        _ => Verdict::Admitted,
    };
    let member = || match caller {
        Worker | Manager | Demoted => Verdict::Admitted,
        Nobody => Verdict::Refused(Code::Unauthenticated),
        Left | Removed => Verdict::Refused(Code::NotFound),
        OtherId => Verdict::Refused(Code::PermissionDenied),
        OtherRoot | OtherWorker | OtherManager | Expired | Early => Verdict::NoTls,
    };
    let manager = || match caller {
        Manager => Verdict::Admitted,
        Nobody => Verdict::Refused(Code::Unauthenticated),
        Worker | Left | Removed | Demoted | OtherId => Verdict::Refused(Code::PermissionDenied),
        OtherRoot | OtherWorker | OtherManager | Expired | Early => Verdict::NoTls,
    };
    match rpc {
        Rpc::AuthorityRoot | Rpc::MembershipJoin => anyone(),
        Rpc::AuthorityRenew
        | Rpc::MembershipEnrol
        | Rpc::MembershipLeave
        | Rpc::DispatcherSession => member(),
        Rpc::RaftCall | Rpc::ApiForward => manager(),
    }
}

struct Callers {
    cluster: Cluster,
    worker: Credentials,
    left: Credentials,
    removed: Credentials,
    demoted: NodeTls,
    other_manager: NodeTls,
    other_worker: NodeTls,
}

impl Callers {
    async fn new() -> Self {
        let (mut cluster, mut other) = (Cluster::new().await, Cluster::new().await);
        let (worker, left) = (cluster.join().await, cluster.join().await);
        let removed = cluster.join().await;
        let addr = cluster.manager.local_addr();
        let mut client = MembershipClient::new(left.dial(addr).await);
        client.leave(LeaveRequest {}).await.unwrap();
        cluster
            .write(|tx| tx.remove(store::Key::Node(removed.id)))
            .await;
        let id = cluster.state().cluster().unwrap().id;
        let as_manager = Subject {
            node: worker.id,
            cluster: id,
            role: NodeRole::Manager,
        };
        let now = Timestamp::now();
        let demoted = cluster.certify(as_manager, now - SignedDuration::from_mins(1), DAY);
        let revocation = Revocation {
            of: Revoked::Manager,
            at: now,
        };
        cluster
            .write(|tx| {
                let mut stored = model::object::Cluster::clone(tx.state().cluster().unwrap());
                stored.revoked.insert(worker.id, revocation);
                tx.put(stored)
            })
            .await
            .unwrap();
        Self {
            cluster,
            worker,
            left,
            removed,
            demoted,
            other_worker: other.join().await.tls,
            other_manager: other.first.tls,
        }
    }

    async fn dial(&self, caller: Caller) -> Channel {
        let (cluster, worker) = (&self.cluster, &self.worker);
        let now = Timestamp::now();
        let subject = Subject {
            node: worker.id,
            cluster: cluster.state().cluster().unwrap().id,
            role: NodeRole::Worker,
        };
        let addr = cluster.manager.local_addr();
        let caller = match caller {
            Caller::Nobody => return cluster.dial_as_joiner().await,
            Caller::Worker => worker.clone(),
            Caller::Manager => cluster.first.clone(),
            Caller::Left => self.left.clone(),
            Caller::Removed => self.removed.clone(),
            Caller::Demoted => worker.showing(self.demoted.clone()),
            Caller::OtherRoot => worker.showing(cluster.certify_by_another_root(subject)),
            Caller::OtherWorker => return intrude(&self.other_worker, addr).await,
            Caller::OtherManager => return intrude(&self.other_manager, addr).await,
            Caller::OtherId => {
                let subject = Subject {
                    node: cluster.first.id,
                    cluster: ClusterId::generate(),
                    role: NodeRole::Manager,
                };
                return intrude(&cluster.certify(subject, now, DAY), addr).await;
            }
            Caller::Expired => worker.showing(cluster.certify(subject, now - DAY * 2, DAY)),
            Caller::Early => worker.showing(cluster.certify(subject, now + DAY, DAY)),
        };
        caller.dial(addr).await
    }
}

/// Calls with a message that no service takes for one of its own.
async fn call(channel: Channel, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = MsgPackCodec::<(), ()>::default();
    let path = PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(()), path, codec);
    match in_time("an answer", answer).await {
        Ok(_) => Status::ok("answered"),
        Err(status) => status,
    }
}

fn verdict(status: &Status) -> Verdict {
    if net::refused_certificate(status).is_some() {
        return Verdict::NoTls;
    }
    let by_the_gate = [
        "shows no certificate",
        "is not a member of this swarm",
        "is no manager",
        "not to this one",
    ];
    match by_the_gate
        .iter()
        .any(|words| status.message().contains(words))
    {
        true => Verdict::Refused(status.code()),
        false => Verdict::Admitted,
    }
}

#[tokio::test]
async fn each_call_is_open_to_whom_it_is_for_and_to_nobody_else() {
    let callers = Callers::new().await;
    for rpc in Rpc::ALL {
        for caller in CALLERS {
            let status = call(callers.dial(caller).await, rpc.path()).await;
            assert_eq!(
                verdict(&status),
                expected(rpc, caller),
                "{rpc:?} by {caller:?}: {status}"
            );
        }
    }
}

#[tokio::test]
async fn a_call_that_nobody_knows_is_refused() {
    let cluster = Cluster::new().await;
    let channel = cluster.first.dial(cluster.manager.local_addr()).await;
    let status = call(channel, "/swarmnet.Dispatcher/Sessions").await;
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
}

#[tokio::test]
async fn a_session_ends_with_the_certificate_that_it_began_with() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let subject = Subject {
        node: node.id,
        cluster: cluster.state().cluster().unwrap().id,
        role: NodeRole::Worker,
    };
    let soon = SignedDuration::from_secs(2);
    let short = node.showing(cluster.certify(subject, Timestamp::now(), soon));
    let agent = cluster.connect(&short).await;
    let end = agent.end().await;
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    assert!(end.message().contains("expired at"), "{end}");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_node_and_another_key() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let channel = node.dial(cluster.manager.local_addr()).await;
    let mut client = model::rpc::AuthorityClient::new(channel);
    let key = ca::NodeKey::generate().unwrap();
    let request = model::rpc::RenewRequest {
        request_pem: key.request().unwrap(),
    };
    let certified = client.renew(request).await.unwrap().into_inner();
    let roots = ca::Roots::from_pem(&certified.roots_pem).unwrap();
    let renewed = ca::NodeCertificate::new(key, &certified.chain_pem, roots).unwrap();
    let identity = renewed.identity().clone();
    assert_eq!((identity.node, identity.role), (node.id, NodeRole::Worker));
    node.tls.replace(renewed).unwrap();
    let agent = cluster.connect(&node).await;
    agent.until("peers", |view| view.peers.len() == 2).await;

    let nonsense = model::rpc::RenewRequest {
        request_pem: "nonsense".to_owned(),
    };
    let refused = client.renew(nonsense).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// As agents do it: one that is told of other roots renews, and comes back with what it got.
async fn follow_the_roots(cluster: &Cluster, node: &Credentials) {
    let agent = cluster.connect(node).await;
    agent
        .until_heard("roots", |heard| !heard.trust.is_empty())
        .await;
    assert!(agent.heard().trust.matches("BEGIN CERTIFICATE").count() == 2);
    let channel = node.dial(cluster.manager.local_addr()).await;
    let key = ca::NodeKey::generate().unwrap();
    let request = model::rpc::RenewRequest {
        request_pem: key.request().unwrap(),
    };
    let mut client = model::rpc::AuthorityClient::new(channel);
    let certified = client.renew(request).await.unwrap().into_inner();
    let roots = ca::Roots::from_pem(&certified.roots_pem).unwrap();
    let renewed = ca::NodeCertificate::new(key, &certified.chain_pem, roots).unwrap();
    node.tls.replace(renewed).unwrap();
    let agent = cluster.connect(node).await;
    agent.until("peers", |view| !view.peers.is_empty()).await;
}

#[tokio::test]
async fn the_root_is_replaced_when_all_nodes_have_followed_and_nobody_is_cut_off() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let old = cluster.state().cluster().unwrap().clone();
    let mut spec = old.spec.clone();
    spec.force_rotate += 1;
    let nothing_else = swarmnet_control::ops::Rotate::default();
    let store = cluster.manager.store();
    swarmnet_control::ops::update_cluster(store, old.meta.version, spec, nothing_else)
        .await
        .unwrap();

    follow_the_roots(&cluster, &node).await;
    let between = cluster.state().cluster().unwrap().clone();
    assert!(
        between.rotation.is_some(),
        "the manager's node has not followed"
    );
    assert_eq!((&between.ca, &between.tokens), (&old.ca, &old.tokens));
    // Tokens still name the old root, and a manager may have a certificate of either.
    let late = cluster.join().await;
    follow_the_roots(&cluster, &late).await;

    follow_the_roots(&cluster, &cluster.first).await;
    cluster
        .until("the root is replaced", |state| {
            state.cluster().unwrap().rotation.is_none()
        })
        .await;
    let new = cluster.state().cluster().unwrap().clone();
    assert_ne!(new.ca, old.ca);
    let refused = cluster
        .try_join(old.tokens.worker.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "invalid join token");
    cluster.try_join(new.tokens.worker.clone()).await.unwrap();
    let heard = cluster.connect(&node).await;
    let told = |heard: &crate::support::Heard| heard.trust == new.ca.certificate_pem;
    heard.until_heard("the new root alone", told).await;
}
