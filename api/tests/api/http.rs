//! What the stock client hides: status codes, headers, bodies, versions.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use serde_json::{Value, json};
use swarmnet_api::LocalNode;
use tower::ServiceExt;

use crate::support::TestNode;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn message(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["message"].as_str().unwrap().to_owned()
    }
}

async fn ask(node: &Arc<TestNode>, method: Method, path: &str, body: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = swarmnet_api::router(node.clone())
        .oneshot(request)
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(node: &Arc<TestNode>, path: &str) -> Answer {
    ask(node, Method::GET, path, "").await
}

async fn manager() -> Arc<TestNode> {
    let node = TestNode::new();
    let answer = ask(
        &node,
        Method::POST,
        "/v1.41/swarm/init",
        r#"{"ListenAddr":"0.0.0.0:2377"}"#,
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let id = node.status().node.unwrap();
    assert_eq!(answer.body, format!("\"{id}\""));
    node
}

#[tokio::test]
async fn every_answer_says_which_api_this_is() {
    let node = TestNode::new();
    for path in ["/_ping", "/v1.41/info", "/nosuch", "/v1.99/info", "/nodes"] {
        let answer = get(&node, path).await;
        assert_eq!(answer.headers["Api-Version"], "1.47", "{path}");
        assert_eq!(answer.headers["Ostype"], "linux", "{path}");
        assert_eq!(answer.headers["Docker-Experimental"], "false", "{path}");
        assert!(answer.headers.contains_key("Server"), "{path}");
    }
    let ping = ask(&node, Method::HEAD, "/_ping", "").await;
    assert_eq!((ping.status.as_u16(), ping.body.as_str()), (200, ""));
    assert_eq!(ping.headers["Swarm"], "inactive");
    let node = manager().await;
    assert_eq!(
        get(&node, "/_ping").await.headers["Swarm"],
        "active/manager"
    );
}

#[tokio::test]
async fn versions_are_negotiated() {
    let node = TestNode::new();
    for path in ["/version", "/v1.24/version", "/v1.47/version"] {
        let answer = get(&node, path).await;
        assert_eq!(answer.status, 200, "{path}");
        let version: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (&version["ApiVersion"], &version["MinAPIVersion"]),
            (&json!("1.47"), &json!("1.24"))
        );
    }
    let new = get(&node, "/v1.99/info").await;
    assert_eq!(new.status, 400);
    assert_eq!(
        new.message(),
        "client version 1.99 is too new. Maximum supported API version is 1.47"
    );
    assert_eq!(get(&node, "/v1.10/info").await.status, 400);
}

#[tokio::test]
async fn unknown_routes_and_methods_are_not_found() {
    let node = TestNode::new();
    for (method, path) in [
        (Method::GET, "/nosuch"),
        (Method::GET, "/v1.41/nosuch"),
        (Method::GET, "/v1.41"),
        (Method::DELETE, "/info"),
        (Method::PUT, "/v1.41/services"),
    ] {
        let answer = ask(&node, method.clone(), path, "").await;
        assert_eq!(answer.status, 404, "{method} {path}");
        assert_eq!(
            answer.body, r#"{"message":"page not found"}"#,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn broken_bodies_and_versions_are_refused() {
    let node = manager().await;
    for path in [
        "/services/create",
        "/networks/create",
        "/swarm/update?version=1",
    ] {
        for body in ["", "{", "[1]"] {
            let answer = ask(&node, Method::POST, path, body).await;
            assert_eq!(answer.status, 400, "{path} {body}");
            assert!(
                answer.message().starts_with("invalid JSON"),
                "{path} {body}"
            );
        }
    }
    let body = r#"{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"host"}}}"#;
    let created = ask(&node, Method::POST, "/services/create", body).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let missing = ask(&node, Method::POST, "/services/a/update", body).await;
    assert_eq!(missing.status, 400);
    assert!(
        missing.message().starts_with("invalid service version ''"),
        "{}",
        missing.body
    );
    let stale = ask(&node, Method::POST, "/services/a/update?version=1", body).await;
    assert_eq!(stale.status, 500);
    assert_eq!(
        stale.message(),
        "rpc error: code = Unknown desc = update out of sequence"
    );
}

#[tokio::test]
async fn status_codes_are_dockers() {
    let node = manager().await;
    let post = async |path: &str, body: &str| ask(&node, Method::POST, path, body).await;
    let network = post("/networks/create", r#"{"Name":"n","Driver":"overlay"}"#).await;
    assert_eq!(network.status, 201, "{}", network.body);
    assert_eq!(
        post("/networks/create", r#"{"Name":"n","Driver":"overlay"}"#)
            .await
            .status,
        409
    );
    // As docker-py writes it: the networks beside the template, by name.
    let body = r#"{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"host"}},"Networks":[{"Target":"n"}]}"#;
    assert_eq!(post("/services/create", body).await.status, 201);
    assert_eq!(post("/services/create", body).await.status, 409);
    let listed = get(&node, "/services?filters=%7B%22name%22%3A%5B%22a%22%5D%7D").await;
    let listed: Value = serde_json::from_str(&listed.body).unwrap();
    let id: Value = serde_json::from_str(&network.body).unwrap();
    assert_eq!(
        listed[0]["Spec"]["TaskTemplate"]["Networks"][0]["Target"],
        id["Id"]
    );
    assert_eq!(
        ask(&node, Method::DELETE, "/networks/n", "").await.status,
        400
    );
    assert_eq!(
        ask(&node, Method::DELETE, "/services/a", "").await.status,
        200
    );
    assert_eq!(
        ask(&node, Method::DELETE, "/networks/n", "").await.status,
        204
    );
    for path in [
        "/services/zz",
        "/nodes/zz",
        "/tasks/zz",
        "/networks/zz",
        "/distribution/a/b:c/json",
    ] {
        assert_eq!(get(&node, path).await.status, 404, "{path}");
    }
    assert_eq!(
        get(&node, "/tasks?filters=%7B%22service%22%3A%5B%22zz%22%5D%7D")
            .await
            .status,
        404
    );
    assert_eq!(
        get(&node, "/swarm/unlockkey").await.body,
        r#"{"UnlockKey":""}"#
    );
    assert_eq!(post("/swarm/unlock", "{}").await.status, 409);
}

#[tokio::test]
async fn tables_are_answered_beside_docker() {
    let node = manager().await;
    let drops = get(&node, "/swarmnet/inspect/drops").await;
    let drops: Value = serde_json::from_str(&drops.body).unwrap();
    assert_eq!(drops[0]["packets"], 3);
    let nodes = get(&node, "/swarmnet/inspect/nodes").await;
    let nodes: Value = serde_json::from_str(&nodes.body).unwrap();
    assert_eq!(nodes[0]["hostname"], "node-1");
    let query = "proto=udp&src=192.0.2.9&src_port=1&dst=192.0.2.1&dst_port=80&from=task:web.1";
    let asked = get(&node, &format!("/swarmnet/trace?{query}")).await;
    assert!(
        asked.message().contains("from: Task(\"web.1\")"),
        "{}",
        asked.message()
    );
    let wrong = get(&node, "/swarmnet/trace?proto=tcp&src=here").await;
    assert_eq!(wrong.status, 400);
    let unknown = get(&node, "/swarmnet/inspect/nosuch").await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.message().contains("no table `nosuch`"));
    assert_eq!(
        get(&TestNode::new(), "/swarmnet/inspect/nodes")
            .await
            .status,
        503
    );
}
