//! A small cluster's certificates.

use jiff::{SignedDuration, Timestamp};
use model::{ClusterId, NodeId, object::RootCa, spec::NodeRole};

use crate::{Authority, NodeCertificate, NodeKey, Request, Roots, authority::Subject, new_root};

pub(crate) const DAY: SignedDuration = SignedDuration::from_hours(24);

pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    pub(crate) root: RootCa,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            id: ClusterId::generate(),
            root: new_root(Timestamp::now()).unwrap(),
        }
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::from_pem(&self.root.certificate_pem).unwrap()
    }

    pub(crate) fn chain(&self, key: &NodeKey, role: NodeRole, now: Timestamp) -> String {
        let request = Request::from_pem(&key.request().unwrap()).unwrap();
        let subject = Subject {
            node: NodeId::from_raw(7),
            cluster: self.id,
            role,
        };
        let authority = Authority::new(&self.root).unwrap();
        authority.issue(&request, subject, now, DAY).unwrap()
    }

    pub(crate) fn node_at(&self, role: NodeRole, now: Timestamp) -> NodeCertificate {
        let key = NodeKey::generate().unwrap();
        let chain = self.chain(&key, role, now);
        NodeCertificate::new(key, &chain, self.roots()).unwrap()
    }

    pub(crate) fn node(&self, role: NodeRole) -> NodeCertificate {
        self.node_at(role, Timestamp::now())
    }
}
