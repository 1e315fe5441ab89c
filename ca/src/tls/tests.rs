//! Connections over TCP on this host, with every kind of certificate.

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use model::spec::NodeRole::{Manager, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::*;
use crate::{Authority, fixture::Cluster, new_root};

/// A byte that the server sends to who is let in, and whom it saw.
struct Met {
    /// What the client read, or why not.
    client: Result<u8, String>,
    server: Option<Peer>,
}

async fn meet(server: &NodeTls, client: Connector) -> Met {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = Connector::endpoint(listener.local_addr().unwrap());
    let uri = uri.uri().clone();
    let connections = incoming(listener, server.clone());
    tokio::pin!(connections);
    let serving = async {
        let mut connection = connections.next().await?.ok()?;
        let peer = connection.connect_info();
        connection.write_all(b"!").await.ok()?;
        connection.flush().await.ok()?;
        // Until the client has read it.
        let _ = connection.read(&mut [0]).await;
        Some(peer)
    };
    let asking = async {
        let stream = client.oneshot(uri).await?;
        stream.into_inner().read_u8().await
    };
    // A connection that is refused reaches no server: it waits for another.
    tokio::pin!(serving);
    let mut seen = None;
    let mut served = false;
    tokio::pin!(asking);
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer,
            peer = &mut serving, if !served => (seen, served) = (peer, true),
        }
    };
    if answer.is_ok() && !served {
        seen = serving.await;
    }
    Met {
        client: answer.map_err(|error: std::io::Error| {
            reason(&error).unwrap_or_else(|| format!("not TLS: {error}"))
        }),
        server: seen,
    }
}

use tonic::transport::server::Connected;

fn tls(certificate: NodeCertificate) -> NodeTls {
    NodeTls::new(certificate).unwrap()
}

#[tokio::test]
async fn members_know_each_other_by_their_certificates() {
    let cluster = Cluster::new();
    let manager = tls(cluster.node(Manager));
    for role in [Worker, Manager] {
        let client = tls(cluster.node(role));
        let met = meet(&manager, Connector::member(&client)).await;
        assert_eq!(met.client, Ok(b'!'));
        let identity = met.server.unwrap().identity.unwrap();
        assert_eq!(*identity, client.with(|own| own.identity().clone()));
    }
}

#[tokio::test]
async fn who_joins_shows_nothing_and_believes_the_root_that_it_was_given() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let manager = tls(cluster.node(Manager));
    for connector in [
        Connector::unverified().unwrap(),
        Connector::joiner(&cluster.roots()).unwrap(),
    ] {
        let met = meet(&manager, connector).await;
        assert_eq!(met.client, Ok(b'!'));
        assert!(met.server.unwrap().identity.is_none());
    }
    let met = meet(&manager, Connector::joiner(&other.roots()).unwrap()).await;
    let refused = met.client.unwrap_err();
    assert!(
        refused.contains("not from the root that this node trusts"),
        "{refused}"
    );
    assert!(met.server.is_none());
}

#[tokio::test]
async fn a_worker_does_not_pass_for_a_manager() {
    let cluster = Cluster::new();
    let impostor = tls(cluster.node(Worker));
    for connector in [
        Connector::member(&tls(cluster.node(Worker))),
        Connector::joiner(&cluster.roots()).unwrap(),
    ] {
        let refused = meet(&impostor, connector).await.client.unwrap_err();
        assert!(refused.contains("not that of a manager"), "{refused}");
    }
}

#[tokio::test]
async fn certificates_of_another_cluster_are_refused_by_both_sides() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let stranger = tls(theirs.node(Worker));
    let met = meet(&tls(ours.node(Manager)), Connector::member(&stranger)).await;
    assert!(met.client.is_err() && met.server.is_none());

    // One that trusts our root, and holds a certificate of another.
    let key = crate::NodeKey::generate().unwrap();
    let chain = theirs.chain(&key, Worker, Timestamp::now());
    let both = [&theirs, &ours].map(|cluster| cluster.root.certificate_pem.as_str());
    let roots = Roots::from_pem(&both.concat()).unwrap();
    let stranger = tls(NodeCertificate::new(key, &chain, roots).unwrap());
    let mut same_id = Cluster::new();
    same_id.id = theirs.id;
    same_id.root = ours.root.clone();
    let met = meet(&tls(same_id.node(Manager)), Connector::member(&stranger)).await;
    let refused = met.client.unwrap_err();
    assert!(refused.contains("does not know who issued"), "{refused}");
    assert!(met.server.is_none());

    // A manager of another cluster under the same root.
    let met = meet(&tls(ours.node(Manager)), Connector::member(&stranger)).await;
    let refused = met.client.unwrap_err();
    assert!(refused.contains("not of this node's"), "{refused}");
}

#[tokio::test]
async fn certificates_out_of_time_are_refused_in_words() {
    let cluster = Cluster::new();
    let now = Timestamp::now();
    let (past, future) = (
        now - SignedDuration::from_hours(48),
        now + SignedDuration::from_hours(48),
    );
    let fresh = tls(cluster.node(Manager));
    for (at, of_server) in [(past, "was valid until"), (future, "is valid from")] {
        let off = tls(cluster.node_at(Manager, at));
        let refused = meet(&off, Connector::member(&fresh))
            .await
            .client
            .unwrap_err();
        assert!(refused.contains(of_server), "{refused}");
        assert!(refused.contains("set the clock"), "{refused}");
        let met = meet(&fresh, Connector::member(&off)).await;
        let refused = met.client.unwrap_err();
        assert!(refused.contains("compare the clocks"), "{refused}");
        assert!(met.server.is_none());
    }
}

/// A root is replaced under nodes that trust only the old one, both, or only the new one.
#[tokio::test]
async fn cross_signed_certificates_are_accepted_under_the_old_and_the_new_root() {
    let cluster = Cluster::new();
    let now = Timestamp::now();
    let new = new_root(now).unwrap();
    let old_authority = Authority::new(&cluster.root).unwrap();
    let cross = old_authority.cross_sign(&new, now).unwrap();
    let authority = Authority::new(&new).unwrap().cross_signed(cross);

    let (old, new) = (&cluster.root.certificate_pem, &new.certificate_pem);
    let node = |roots: &str, is_new: bool| {
        let key = crate::NodeKey::generate().unwrap();
        let chain = match is_new {
            false => cluster.chain(&key, Manager, now),
            true => {
                let request = crate::Request::from_pem(&key.request().unwrap()).unwrap();
                let subject = crate::authority::Subject {
                    node: model::NodeId::from_raw(7),
                    cluster: cluster.id,
                    role: Manager,
                };
                let day = crate::fixture::DAY;
                authority.issue(&request, subject, now, day).unwrap()
            }
        };
        tls(NodeCertificate::new(key, &chain, Roots::from_pem(roots).unwrap()).unwrap())
    };
    let both = format!("{old}{new}");
    let before = node(old, false);
    let between = node(&both, false);
    let renewed = node(&both, true);
    let after = node(new, true);
    for (a, b) in [
        (&before, &between),
        (&before, &renewed),
        (&between, &renewed),
        (&renewed, &after),
    ] {
        for (server, client) in [(a, b), (b, a)] {
            let met = meet(server, Connector::member(client)).await;
            assert_eq!(met.client, Ok(b'!'));
        }
    }
    assert!(
        meet(&before, Connector::member(&after))
            .await
            .client
            .is_err()
    );
    let issuers = Roots::from_pem(&both).unwrap().issuers();
    assert_eq!(
        renewed.with(|own| own.identity().issuer.clone()),
        issuers[1]
    );
}

#[tokio::test]
async fn a_replaced_certificate_counts_from_the_next_connection_on() {
    let cluster = Cluster::new();
    let past = Timestamp::now() - SignedDuration::from_hours(48);
    let server = tls(cluster.node_at(Manager, past));
    let client = tls(cluster.node(Worker));
    assert!(
        meet(&server, Connector::member(&client))
            .await
            .client
            .is_err()
    );
    let replaced = server.replaced();
    server.replace(cluster.node(Manager)).unwrap();
    replaced.await;
    assert_eq!(
        meet(&server, Connector::member(&client)).await.client,
        Ok(b'!')
    );
}

#[tokio::test]
async fn plain_text_and_older_tls_are_refused() {
    let server = tls(Cluster::new().node(Manager));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = incoming(listener, server);
    let mut plain = tokio::net::TcpStream::connect(addr).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // It is closed; whether with an alert or a reset depends on what was read.
    let _ = plain.read_to_end(&mut answer).await;
    let is_alert = answer.first().is_none_or(|kind| *kind == 21);
    assert!(is_alert, "{answer:?}");
    // A hello of TLS 1.2, as `openssl s_client -tls1_2` sends it, less its extensions.
    let mut hello = vec![22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let mut old = tokio::net::TcpStream::connect(addr).await.unwrap();
    old.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    let _ = old.read_to_end(&mut answer).await;
    assert_eq!(
        answer.first(),
        Some(&21),
        "an alert, not a hello: {answer:?}"
    );
    drop(connections);
}
