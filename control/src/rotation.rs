//! Replaces the root of the cluster's certificates while the cluster runs.
//!
//! 1. [`begin`]: a new root is made, and its key certified by the old one. From now on its key
//!    signs, and that certificate goes along, so that who trusts the old root accepts the outcome.
//!    All nodes are told to trust both, and renew their certificates.
//! 2. [`step`]: once the certificates of all nodes are from the new root, which they thus trust,
//!    the old root is dropped. Tokens change, as they name the root. Nodes are told to trust the
//!    new one alone.
//!
//! A node that is away holds the second step up: it would not be let in again. Remove it, or bring
//! it back.

use ca::{Authority, CaError, Roots};
use jiff::Timestamp;
use model::{
    object::{Cluster, JoinTokens, RootCa, RootRotation},
    token::JoinToken,
};
use store::{State, Transaction};
use tracing::{info, warn};

/// A further one takes the place of one that is under way: what the one before signed leads to the
/// old root, too.
pub(crate) fn begin(cluster: &mut Cluster, now: Timestamp) -> Result<(), CaError> {
    let ca = ca::new_root(now)?;
    let cross_signed_pem = Authority::new(&cluster.ca)?.cross_sign(&ca, now)?;
    cluster.rotation = Some(RootRotation {
        ca,
        cross_signed_pem,
    });
    Ok(())
}

/// Ends a rotation that is through.
pub(crate) fn step(tx: &mut Transaction) {
    match finished(tx.state()) {
        Ok(Some(cluster)) => {
            info!("the root certificate was replaced");
            tx.put(cluster).expect("it was read in this transaction");
        }
        Ok(None) => {}
        // Ours were parsed when they were made.
        Err(error) => warn!(%error, "the new root certificate is damaged"),
    }
}

fn finished(state: &State) -> Result<Option<Cluster>, CaError> {
    let Some(cluster) = state.cluster() else {
        return Ok(None);
    };
    let Some(rotation) = &cluster.rotation else {
        return Ok(None);
    };
    let new = Roots::from_pem(&rotation.ca.certificate_pem)?;
    let issuer = new.issuers()[0].to_string();
    let is_through = state
        .nodes()
        .filter(|node| !cluster.has_left(node.id))
        .all(|node| node.issuer.as_ref() == Some(&issuer));
    Ok(is_through.then(|| Cluster {
        ca: rotation.ca.clone(),
        tokens: tokens(&new),
        rotation: None,
        ..Cluster::clone(cluster)
    }))
}

/// New tokens for a cluster with this root.
pub(crate) fn tokens(root: &Roots) -> JoinTokens {
    let sha256 = root.sha256();
    JoinTokens {
        worker: JoinToken::generate(&sha256).to_string(),
        manager: JoinToken::generate(&sha256).to_string(),
    }
}

/// Who signs now.
pub(crate) fn authority(cluster: &Cluster) -> Result<Authority, CaError> {
    match &cluster.rotation {
        None => Authority::new(&cluster.ca),
        Some(rotation) => {
            let cross_signed = rotation.cross_signed_pem.clone();
            Ok(Authority::new(&rotation.ca)?.cross_signed(cross_signed))
        }
    }
}

/// Whom nodes are to trust now.
pub(crate) fn roots_pem(cluster: &Cluster) -> String {
    let new = cluster.rotation.as_ref().map(|rotation| &rotation.ca);
    let all = std::iter::once(&cluster.ca).chain(new);
    all.map(
        |RootCa {
             certificate_pem, ..
         }| certificate_pem.as_str(),
    )
    .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::object::{Node, Revoked};

    use super::*;
    use crate::{
        access::revoke,
        fixture::{self, epoch},
    };

    fn issuer(ca: &RootCa) -> String {
        Roots::from_pem(&ca.certificate_pem).unwrap().issuers()[0].to_string()
    }

    #[test]
    fn old_root_goes_when_the_last_node_that_is_there_has_renewed() {
        let mut tx = Transaction::new(Arc::new(State::default()), epoch());
        let mut cluster = fixture::cluster();
        cluster.ca = ca::new_root(epoch()).unwrap();
        let old = cluster.ca.clone();
        let old_tokens = tokens(&Roots::from_pem(&old.certificate_pem).unwrap());
        cluster.tokens = old_tokens.clone();
        let nodes = ["a", "b", "gone"].map(|name| Node {
            issuer: Some(issuer(&old)),
            ..fixture::node(name)
        });
        revoke(&mut cluster, nodes[2].id, Revoked::Membership, epoch());
        begin(&mut cluster, epoch()).unwrap();
        let new = cluster.rotation.clone().unwrap().ca;
        assert_eq!(
            roots_pem(&cluster),
            old.certificate_pem.clone() + &new.certificate_pem
        );
        tx.put(cluster).unwrap();
        nodes.iter().for_each(|node| tx.put(node.clone()).unwrap());

        for node in &nodes[..2] {
            step(&mut tx);
            let cluster = tx.state().cluster().unwrap();
            assert!(cluster.rotation.is_some());
            assert_eq!((&cluster.ca, &cluster.tokens), (&old, &old_tokens));
            let renewed = Node {
                issuer: Some(issuer(&new)),
                ..Node::clone(tx.state().node(node.id).unwrap())
            };
            tx.put(renewed).unwrap();
        }
        step(&mut tx);
        let cluster = tx.state().cluster().unwrap();
        assert_eq!((&cluster.ca, &cluster.rotation), (&new, &None));
        assert_eq!(roots_pem(cluster), new.certificate_pem);
        let root = Roots::from_pem(&new.certificate_pem).unwrap();
        for token in [&cluster.tokens.worker, &cluster.tokens.manager] {
            assert!(
                token
                    .parse::<JoinToken>()
                    .unwrap()
                    .is_for_root(&root.sha256())
            );
        }
        let version = cluster.meta.version;
        step(&mut tx);
        assert_eq!(tx.state().cluster().unwrap().meta.version, version);
    }
}
