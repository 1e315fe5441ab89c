//! Against a signer on a real socket.

use std::net::{Ipv4Addr, TcpListener};

use model::{ClusterId, NodeId, spec::NodeRole};
use signer::{Conduct, Signed, Signer};

use super::{answer, *};
use crate::{NodeCertificate, NodeKey};

fn signer() -> Signer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    Signer::start(listener).unwrap()
}

fn endpoint(signer: &Signer) -> Endpoint {
    signer.url().parse().unwrap()
}

fn subject(role: NodeRole) -> Subject {
    Subject {
        node: NodeId::generate(),
        cluster: ClusterId::generate(),
        role,
    }
}

fn roots(signer: &Signer) -> Roots {
    Roots::from_pem(signer.root_pem()).unwrap()
}

/// What a node gets that asks through `caller`.
async fn ask(
    endpoints: &[Endpoint],
    roots: &Roots,
    caller: Option<&NodeTls>,
    subject: Subject,
) -> Result<NodeTls, ExternalError> {
    let key = NodeKey::generate().unwrap();
    let request = Request::from_pem(&key.request().unwrap()).unwrap();
    let external = External {
        endpoints,
        roots,
        caller,
    };
    let chain_pem = external.sign(&request, subject).await?;
    let certificate = NodeCertificate::new(key, &chain_pem, roots.clone()).unwrap();
    Ok(NodeTls::new(certificate).unwrap())
}

/// A signer, and the first manager that it certified.
async fn with_manager() -> (Signer, NodeTls) {
    let signer = signer();
    let (endpoints, roots) = ([endpoint(&signer)], roots(&signer));
    let asked = ask(&endpoints, &roots, None, subject(NodeRole::Manager));
    let manager = asked.await.unwrap();
    (signer, manager)
}

#[tokio::test]
async fn managers_are_certified_and_have_others_certified_by_showing_who_they_are() {
    let (signer, manager) = with_manager().await;
    let worker = subject(NodeRole::Worker);
    let (endpoints, roots) = ([endpoint(&signer)], roots(&signer));
    let certified = ask(&endpoints, &roots, Some(&manager), worker)
        .await
        .unwrap();
    certified.with(|own| {
        let identity = own.identity();
        assert_eq!(
            (identity.node, identity.cluster),
            (worker.node, worker.cluster)
        );
        assert_eq!(identity.role, NodeRole::Worker);
        assert_eq!(vec![identity.issuer.clone()], roots.issuers());
    });
    let first = manager.with(|own| own.identity().node.to_string());
    let signed = |node: String, role: &str, caller| Signed {
        node,
        role: role.to_owned(),
        caller,
    };
    let book = [
        signed(first.clone(), "swarm-manager", None),
        signed(worker.node.to_string(), "swarm-worker", Some(first)),
    ];
    assert_eq!(signer.signed(), book);

    for (caller, said) in [(Some(&certified), "403"), (None, "want a manager's")] {
        let refused = ask(&endpoints, &roots, caller, worker).await.unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains(said) && refused.contains(&signer.url()),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn answers_that_are_not_what_was_asked_for_are_refused() {
    let (signer, manager) = with_manager().await;
    let (endpoints, roots) = ([endpoint(&signer)], roots(&signer));
    for (conduct, why) in [
        (Conduct::Refuse, "it does not sign: policy violation"),
        (Conduct::OtherKey, "another key"),
        (Conduct::OtherNode, "another node"),
        (Conduct::OtherRole, "another role"),
        (Conduct::NoHosts, "it lacks the name of its role"),
        (Conduct::OtherRoot, "not issued by a root that is trusted"),
        (Conduct::Early, "compare the clocks"),
        (Conduct::Huge, "longer than 262144 bytes"),
        (Conduct::Nonsense, "not CFSSL's"),
        (Conduct::Silent, "does not answer within 5s"),
    ] {
        signer.conduct(conduct);
        for role in [NodeRole::Worker, NodeRole::Manager] {
            if (conduct, role) == (Conduct::Silent, NodeRole::Manager) {
                continue;
            }
            let asked = ask(&endpoints, &roots, Some(&manager), subject(role));
            let refused = asked.await.unwrap_err().to_string();
            let url = format!("external CA {}: ", signer.url());
            assert!(
                refused.starts_with(&url) && refused.contains(why),
                "{conduct:?}: {refused}"
            );
        }
    }
}

#[tokio::test]
async fn the_next_one_signs_when_one_does_not() {
    let (signer, manager) = with_manager().await;
    let gone: Endpoint = {
        // Bound and dropped: nothing listens there.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("https://{}/sign", listener.local_addr().unwrap());
        url.parse().unwrap()
    };
    let endpoints = [gone.clone(), endpoint(&signer)];
    let roots = roots(&signer);
    let worker = subject(NodeRole::Worker);
    ask(&endpoints, &roots, Some(&manager), worker)
        .await
        .unwrap();

    let alone = std::slice::from_ref(&gone);
    let refused = ask(alone, &roots, Some(&manager), worker)
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains(&gone.to_string()) && refused.contains("cannot connect"),
        "{refused}"
    );
    let reach = |endpoints| {
        let external = External {
            endpoints,
            roots: &roots,
            caller: Some(&manager),
        };
        async move { external.reach().await.map_err(|err| err.to_string()) }
    };
    assert_eq!(reach(&endpoints[..]).await, Ok(()));
    assert!(reach(alone).await.unwrap_err().contains("cannot connect"));
}

#[tokio::test]
async fn a_server_of_another_root_is_told_nothing() {
    let (signer, manager) = with_manager().await;
    let stranger = super::tests::signer();
    let (endpoints, roots) = ([endpoint(&stranger)], roots(&signer));
    let worker = subject(NodeRole::Worker);
    let refused = ask(&endpoints, &roots, Some(&manager), worker)
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("no secure connection"), "{refused}");
    assert_eq!(stranger.signed(), []);
    let external = External {
        endpoints: &endpoints,
        roots: &roots,
        caller: Some(&manager),
    };
    assert!(external.reach().await.is_err());
}

#[test]
fn request_is_what_swarmkit_sends() {
    let key = NodeKey::generate().unwrap();
    let pem = key.request().unwrap();
    let request = Request::from_pem(&pem).unwrap();
    let subject = subject(NodeRole::Manager);
    let body: serde_json::Value = serde_json::from_slice(&answer::body(&request, subject)).unwrap();
    let (node, cluster) = (subject.node.to_string(), subject.cluster.to_string());
    let want = serde_json::json!({
        "hosts": ["swarm-manager", node],
        "certificate_request": pem,
        "subject": {"CN": node, "names": [{"OU": "swarm-manager", "O": cluster}]},
    });
    assert_eq!(body, want);
}

#[test]
fn answers_without_a_certificate_say_why_there_is_none() {
    let refused = |body: &str| answer::read(body.as_bytes()).unwrap_err().to_string();
    for (body, why) in [
        ("", "not CFSSL's"),
        ("[]", "not CFSSL's"),
        (
            r#"{"success":true,"result":{"certificate":5}}"#,
            "not CFSSL's",
        ),
        (r#"{"success":true,"result":null}"#, "does not say why"),
        (
            r#"{"success":false,"errors":[{"message":"a"},{"code":1}]}"#,
            "sign: a",
        ),
        (
            r#"{"success":false,"result":{"certificate":"x"}}"#,
            "does not sign",
        ),
    ] {
        assert!(refused(body).contains(why), "{body}: {}", refused(body));
    }
    let signed = r#"{"success":true,"result":{"certificate":"x"},"errors":[],"messages":[]}"#;
    assert_eq!(answer::read(signed.as_bytes()).unwrap(), "x");
}
