//! The stock `docker` client against this API.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{self, Client, Daemon, docker_is_here, until};

const NOT_A_MANAGER: &str = "Error response from daemon: This node is not a swarm manager. Use \
    \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";

async fn manager() -> (Daemon, Client) {
    let daemon = Daemon::start().await;
    let docker = daemon.client();
    docker
        .ok(&["swarm", "init", "--advertise-addr", "127.0.0.1"])
        .await;
    until("the node is ready", || async {
        docker.ok(&["node", "ls", "--format", "{{.Status}}"]).await == "Ready"
    })
    .await;
    (daemon, docker)
}

async fn inspect(docker: &Client, kind: &str, name: &str) -> Value {
    first(&docker.ok(&[kind, "inspect", name]).await)
}

/// The one object of a list that `inspect` printed.
fn first(json: &str) -> Value {
    let Value::Array(mut list) = serde_json::from_str(json).unwrap() else {
        panic!("inspect prints a list");
    };
    list.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_a_swarm_the_client_is_told_so() {
    if !docker_is_here() {
        return;
    }
    let daemon = Daemon::start().await;
    let docker = daemon.client();
    assert!(docker.ok(&["info"]).await.contains("Swarm: inactive"));
    let versions = "{{.Client.APIVersion}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}}";
    let versions = docker.ok(&["version", "--format", versions]).await;
    assert_eq!(versions, "1.47 1.47 1.24");
    let printed = docker.ok(&["version"]).await;
    assert!(printed.contains("1.47 (minimum version 1.24)"), "{printed}");
    for command in [
        &["node", "ls"][..],
        &["service", "ls"],
        &["service", "create", "-d", "busybox"],
        &["swarm", "join-token", "worker"],
        &["network", "create", "-d", "overlay", "n"],
    ] {
        assert_eq!(docker.err(command).await, NOT_A_MANAGER, "{command:?}");
    }
    assert_eq!(
        docker.err(&["swarm", "leave"]).await,
        "Error response from daemon: This node is not part of a swarm"
    );
    for command in [
        &["ps", "-q"][..],
        &["images", "-q"],
        &["volume", "ls", "-q"],
        &["network", "ls", "-q"],
    ] {
        assert_eq!(docker.ok(command).await, "", "{command:?}");
    }
    assert!(
        docker
            .err(&["inspect", "x"])
            .await
            .contains("No such object: x")
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_is_made_shown_changed_and_left() {
    if !docker_is_here() {
        return;
    }
    let daemon = Daemon::start().await;
    let docker = daemon.client();
    let printed = docker
        .ok(&[
            "swarm",
            "init",
            "--advertise-addr",
            "127.0.0.1",
            "--task-history-limit",
            "3",
        ])
        .await;
    assert!(printed.contains("is now a manager."), "{printed}");
    assert!(
        printed.contains("docker swarm join --token SWMTKN-1-"),
        "{printed}"
    );

    let info = docker.ok(&["info"]).await;
    for line in [
        "Swarm: active",
        "Is Manager: true",
        "Managers: 1",
        "Nodes: 1",
        "Default Address Pool: 10.0.0.0/8",
        "SubnetSize: 24",
        "Data Path Port: 4789",
        "Task History Retention Limit: 3",
        "Heartbeat Period: 5 seconds",
        "Expiry Duration: 3 months",
        "Node Address: 127.0.0.1",
    ] {
        assert!(info.contains(line), "no `{line}` in:\n{info}");
    }
    assert!(
        docker
            .err(&["swarm", "init"])
            .await
            .contains("This node is already part of a swarm.")
    );

    let token = docker.ok(&["swarm", "join-token", "-q", "worker"]).await;
    docker
        .ok(&["swarm", "join-token", "--rotate", "-q", "worker"])
        .await;
    let rotated = docker.ok(&["swarm", "join-token", "-q", "worker"]).await;
    assert_ne!(token, rotated);
    assert_eq!(token[..60], rotated[..60]);

    docker
        .ok(&["swarm", "update", "--task-history-limit", "7"])
        .await;
    assert!(
        docker
            .ok(&["info"])
            .await
            .contains("Task History Retention Limit: 7")
    );
    assert!(
        docker
            .ok(&["swarm", "update", "--autolock=true"])
            .await
            .contains("SWMKEY-1-")
    );
    assert!(
        docker
            .err(&["swarm", "update", "--cert-expiry", "1m"])
            .await
            .contains("minimum certificate expiry time is: 1h0m0s")
    );
    assert!(
        docker
            .ok(&["swarm", "ca"])
            .await
            .starts_with("-----BEGIN CERTIFICATE-----")
    );

    let refused = docker.err(&["swarm", "leave"]).await;
    assert!(refused.contains("You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager"), "{refused}");
    docker.ok(&["swarm", "leave", "--force"]).await;
    assert!(docker.ok(&["info"]).await.contains("Swarm: inactive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_inspected_and_updated() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    let row = docker
        .ok(&[
            "node",
            "ls",
            "--format",
            "{{.Hostname}} {{.Self}} {{.Availability}} {{.ManagerStatus}}",
        ])
        .await;
    assert_eq!(row, "node-1 true Active Leader");
    let pretty = docker.ok(&["node", "inspect", "--pretty", "self"]).await;
    assert!(pretty.contains("Issuer Subject:"), "{pretty}");

    docker
        .ok(&[
            "node",
            "update",
            "--label-add",
            "zone=a",
            "--availability",
            "pause",
            "node-1",
        ])
        .await;
    let node = inspect(&docker, "node", "node-1").await;
    assert_eq!(node["Spec"]["Labels"]["zone"], "a");
    assert_eq!(node["Spec"]["Availability"], "pause");
    let id = node["ID"].as_str().unwrap();
    assert_eq!(inspect(&docker, "node", &id[..10]).await["ID"], id);
    assert_eq!(
        docker
            .ok(&["node", "ls", "-q", "--filter", "node.label=zone=a"])
            .await,
        id
    );
    assert_eq!(
        docker
            .ok(&["node", "ls", "-q", "--filter", "role=worker"])
            .await,
        ""
    );
    assert!(
        docker
            .err(&["node", "inspect", "zz"])
            .await
            .contains("node zz not found")
    );
    assert!(
        docker
            .err(&["node", "ls", "--filter", "bogus=1"])
            .await
            .contains("Invalid filter 'bogus'")
    );
    assert!(
        docker
            .err(&["node", "rm", "node-1"])
            .await
            .contains("is a cluster manager")
    );
    assert!(
        docker
            .err(&["node", "demote", "node-1"])
            .await
            .contains("attempting to demote the last manager of the swarm")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_made_listed_inspected_and_removed() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    let id = docker
        .ok(&[
            "network",
            "create",
            "-d",
            "overlay",
            "--attachable",
            "--label",
            "a=b",
            "--subnet",
            "10.9.0.0/24",
            "my-net",
        ])
        .await;
    let rows = docker
        .ok(&[
            "network",
            "ls",
            "--format",
            "{{.Name}} {{.Driver}} {{.Scope}}",
        ])
        .await;
    assert_eq!(rows, "ingress overlay swarm\nmy-net overlay swarm");
    let network = inspect(&docker, "network", "my-net").await;
    assert_eq!(network["Id"], id);
    assert_eq!(network["Attachable"], true);
    assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "10.9.0.0/24");
    assert_eq!(network["IPAM"]["Config"][0]["Gateway"], "10.9.0.1");
    let vni = &network["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
    assert_eq!(vni, "4097");
    assert_eq!(
        docker
            .ok(&["network", "ls", "-q", "--no-trunc", "--filter", "label=a=b"])
            .await,
        id
    );
    assert_eq!(inspect(&docker, "network", &id[..12]).await["Id"], id);

    let taken = docker
        .err(&["network", "create", "-d", "overlay", "my-net"])
        .await;
    assert!(
        taken.contains("network with name my-net already exists"),
        "{taken}"
    );
    assert!(
        docker
            .err(&["network", "create", "plain"])
            .await
            .contains("network driver `bridge`")
    );
    assert!(
        docker
            .err(&[
                "network",
                "create",
                "-d",
                "overlay",
                "--opt",
                "encrypted",
                "n"
            ])
            .await
            .contains("Options.encrypted")
    );
    assert_eq!(docker.ok(&["network", "rm", "my-net"]).await, "my-net");
    assert!(
        docker
            .err(&["network", "inspect", "my-net"])
            .await
            .contains("network my-net not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_lives_its_life() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    docker
        .ok(&["network", "create", "-d", "overlay", "my-net"])
        .await;

    // Not detached: the client follows the tasks until they have run for the monitor period.
    let printed = docker
        .ok(&[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "--network",
            "my-net",
            "--publish",
            "8081:80",
            "--env",
            "A=b",
            "--label",
            "l=1",
            "--update-monitor",
            "1s",
            "busybox",
            "httpd",
            "-f",
        ])
        .await;
    assert!(printed.contains("converged"), "{printed}");

    let row = docker
        .ok(&[
            "service",
            "ls",
            "--format",
            "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}",
        ])
        .await;
    assert_eq!(row, "web replicated 2/2 busybox:latest *:8081->80/tcp");
    let rows = docker
        .ok(&[
            "service",
            "ps",
            "--format",
            "{{.Name}} {{.Node}} {{.DesiredState}} {{.CurrentState}}",
            "web",
        ])
        .await;
    assert_eq!(rows.lines().count(), 2);
    assert!(rows.starts_with("web.1 node-1 Running Running"), "{rows}");

    let service = inspect(&docker, "service", "web").await;
    assert_eq!(
        service["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"][1],
        "-f"
    );
    assert_eq!(service["Endpoint"]["Ports"][0]["PublishedPort"], 8081);
    let vip = service["Endpoint"]["VirtualIPs"][0]["Addr"]
        .as_str()
        .unwrap();
    assert!(vip.starts_with("10.0.1."), "{vip}");
    let pretty = docker.ok(&["service", "inspect", "--pretty", "web"]).await;
    for line in [
        "Replicas:	2",
        "Image:		busybox:latest",
        "PublishedPort = 8081",
        "Env:		A=b",
    ] {
        assert!(pretty.contains(line), "no `{line}` in:\n{pretty}");
    }

    let task = docker
        .ok(&[
            "service",
            "ps",
            "-q",
            "--no-trunc",
            "--filter",
            "name=web.1",
            "web",
        ])
        .await;
    let task = first(&docker.ok(&["inspect", &task]).await);
    assert_eq!(task["Slot"], 1);
    let addr = task["NetworksAttachments"][0]["Addresses"][0]
        .as_str()
        .unwrap();
    assert!(addr.starts_with("10.0.1."), "{addr}");
    let network = docker
        .ok(&["network", "inspect", "--verbose", "my-net"])
        .await;
    assert!(
        network.contains(addr) && network.contains(&vip[..vip.len() - 3]),
        "{network}"
    );

    docker.ok(&["service", "scale", "web=3"]).await;
    assert_eq!(
        docker
            .ok(&["service", "ls", "--format", "{{.Replicas}}"])
            .await,
        "3/3"
    );
    docker
        .ok(&[
            "service",
            "update",
            "-d",
            "--label-add",
            "m=2",
            "--replicas",
            "1",
            "web",
        ])
        .await;
    until("scaled down", || async {
        docker
            .ok(&["service", "ls", "--format", "{{.Replicas}}"])
            .await
            == "1/1"
    })
    .await;
    docker.ok(&["service", "rollback", "-d", "web"]).await;
    let service = inspect(&docker, "service", "web").await;
    assert_eq!(service["Spec"]["Mode"]["Replicated"]["Replicas"], 3);

    let in_use = docker.err(&["network", "rm", "my-net"]).await;
    assert!(in_use.contains("is in use by service"), "{in_use}");
    assert_eq!(docker.ok(&["service", "rm", "web"]).await, "web");
    assert_eq!(docker.ok(&["service", "ls", "-q"]).await, "");
    docker.ok(&["network", "rm", "my-net"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_get_one_clear_sentence() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    docker
        .ok(&[
            "service", "create", "-d", "--name", "one", "-p", "8080:80", "busybox",
        ])
        .await;
    for (args, sentence) in [
        (
            &["--name", "one"][..],
            "name conflicts with an existing object: service one already exists",
        ),
        (
            &["-p", "8080:90"],
            "port '8080' is already in use by service 'one'",
        ),
        (
            &["-p", "9999:90"],
            "port '9999' (tcp) is already in use on this node by process nginx (pid 4711): stop it",
        ),
        (&["--network", "nosuchnet"], "network nosuchnet not found"),
        (
            &["--endpoint-mode", "dnsrr", "-p", "81:80"],
            "port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            &["--mount", "type=bind,source=/a,target=/b"],
            "TaskTemplate.ContainerSpec.Mounts is not supported by swarmnet",
        ),
        (
            &["--health-cmd", "true"],
            "TaskTemplate.ContainerSpec.HealthCheck",
        ),
        (
            &["--publish", "mode=host,published=1,target=1,protocol=sctp"],
            "EndpointSpec.Ports[0].Protocol `sctp` is not supported by swarmnet",
        ),
        (
            &[
                "--publish",
                "mode=host,published=4789,target=1,protocol=udp",
            ],
            "port 4789/udp carries the tunnel between the nodes",
        ),
        (
            &["--mode", "replicated-job"],
            "Mode.ReplicatedJob is not supported by swarmnet",
        ),
        (
            &["--name", "a_b c"],
            "name must be valid as a DNS name component",
        ),
        (
            &["--constraint", "node.role"],
            "constraint expected one operator from ==, !=",
        ),
    ] {
        let args = [&["service", "create", "-d"][..], args, &["busybox"]].concat();
        let refused = docker.err(&args).await;
        assert!(refused.contains(sentence), "{args:?}: {refused}");
    }
    assert!(
        docker
            .err(&["service", "inspect", "zz"])
            .await
            .contains("no such service: zz")
    );
    assert!(
        docker
            .err(&["service", "update", "-d", "--args", "x", "zz"])
            .await
            .contains("service zz not found")
    );
    assert!(
        docker
            .err(&["service", "rollback", "-d", "one"])
            .await
            .contains("does not have a previous spec")
    );
    assert!(
        docker
            .err(&["service", "ls", "--filter", "bogus=1"])
            .await
            .contains("Invalid filter 'bogus'")
    );
    assert_eq!(
        docker.ok(&["service", "ls", "--format", "{{.Name}}"]).await,
        "one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_as_events() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    let mut events = docker.spawn(&[
        "events",
        "--format",
        "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}",
        "--filter",
        "type=service",
        "--filter",
        "type=network",
    ]);
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Nothing tells that the client has subscribed: make networks until one is heard of.
    let mut made = 0;
    let line = loop {
        let name = format!("n{made}");
        made += 1;
        docker
            .ok(&["network", "create", "-d", "overlay", &name])
            .await;
        let heard = tokio::time::timeout(Duration::from_millis(200), lines.next_line()).await;
        if let Ok(line) = heard {
            break line.unwrap().unwrap();
        }
        assert!(made < 100, "no event came");
    };
    assert!(line.starts_with("network create n"), "{line}");

    docker
        .ok(&["service", "create", "-d", "--name", "web", "busybox"])
        .await;
    docker.ok(&["service", "scale", "-d", "web=2"]).await;
    docker.ok(&["service", "rm", "web"]).await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|line| line != "service remove web") {
        let line = support::in_time("the next event", lines.next_line())
            .await
            .unwrap()
            .unwrap();
        if line.starts_with("service") {
            heard.push(line);
        }
    }
    assert_eq!(
        heard,
        [
            "service create web",
            "service update web",
            "service remove web"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_change_what_they_name_and_nothing_else() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    for name in ["a", "b"] {
        docker
            .ok(&["network", "create", "-d", "overlay", name])
            .await;
    }
    // No name: the server finds one. No published port: the next free one.
    let id = docker
        .ok(&[
            "service",
            "create",
            "-d",
            "--network",
            "a",
            "-p",
            "80",
            "--env",
            "A=b",
            "busybox",
        ])
        .await;
    let before = inspect(&docker, "service", &id).await;
    assert!(!before["Spec"]["Name"].as_str().unwrap().is_empty());
    assert_eq!(before["Endpoint"]["Ports"][0]["PublishedPort"], 30000);

    docker
        .ok(&["service", "update", "-d", "--args", "sleep 9", &id])
        .await;
    docker
        .ok(&["service", "update", "-d", "--publish-add", "53:53/udp", &id])
        .await;
    docker
        .ok(&["service", "update", "-d", "--network-add", "b", &id])
        .await;
    let after = inspect(&docker, "service", &id).await;
    let (old, new) = (
        &before["Spec"]["TaskTemplate"],
        &after["Spec"]["TaskTemplate"],
    );
    assert_eq!(
        new["ContainerSpec"]["Args"],
        serde_json::json!(["sleep", "9"])
    );
    assert_eq!(new["ContainerSpec"]["Env"], old["ContainerSpec"]["Env"]);
    assert_eq!(new["Networks"].as_array().unwrap().len(), 2);
    assert_eq!(after["Endpoint"]["VirtualIPs"].as_array().unwrap().len(), 2);
    assert_eq!(after["Endpoint"]["Ports"].as_array().unwrap().len(), 2);
    assert_eq!(after["Endpoint"]["Ports"][0]["PublishedPort"], 30000);
    assert_eq!(
        after["PreviousSpec"]["TaskTemplate"]["Networks"],
        old["Networks"]
    );

    docker
        .ok(&[
            "service",
            "update",
            "-d",
            "--publish-rm",
            "53/udp",
            "--publish-rm",
            "80",
            &id,
        ])
        .await;
    docker
        .ok(&[
            "service",
            "update",
            "-d",
            "--network-rm",
            "a",
            "--endpoint-mode",
            "dnsrr",
            &id,
        ])
        .await;
    let after = inspect(&docker, "service", &id).await;
    assert_eq!(
        after["Spec"]["EndpointSpec"],
        serde_json::json!({"Mode": "dnsrr"})
    );
    assert!(after["Endpoint"].get("VirtualIPs").is_none());
    assert_eq!(
        after["Spec"]["TaskTemplate"]["Networks"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_is_deployed_shown_and_removed() {
    if !docker_is_here() {
        return;
    }
    let (_daemon, docker) = manager().await;
    let file = docker.dir().join("stack.yml");
    std::fs::write(
        &file,
        "services:\n  web:\n    image: busybox\n    command: httpd -f\n    ports: [\"8080:80\"]\n    \
         networks: [back]\n    deploy: {replicas: 2}\n  db:\n    image: busybox\n    networks:\n      \
         back: {aliases: [database]}\nnetworks:\n  back: {}\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    docker
        .ok(&["stack", "deploy", "--detach=true", "-c", file, "my"])
        .await;
    // Again: nothing changes, and nothing is in the way.
    docker
        .ok(&["stack", "deploy", "--detach=true", "-c", file, "my"])
        .await;
    assert_eq!(
        docker
            .ok(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"])
            .await,
        "my 2"
    );
    until("all tasks run", || async {
        let rows = docker
            .ok(&[
                "stack",
                "services",
                "--format",
                "{{.Name}} {{.Replicas}}",
                "my",
            ])
            .await;
        rows == "my_db 1/1\nmy_web 2/2"
    })
    .await;
    assert_eq!(
        docker
            .ok(&["stack", "ps", "-q", "my"])
            .await
            .lines()
            .count(),
        3
    );
    assert_eq!(
        docker
            .ok(&["node", "ps", "-q", "self"])
            .await
            .lines()
            .count(),
        3
    );
    let service = inspect(&docker, "service", "my_db").await;
    let aliases = &service["Spec"]["TaskTemplate"]["Networks"][0]["Aliases"];
    assert!(
        aliases.as_array().unwrap().contains(&"database".into()),
        "{aliases}"
    );
    docker.ok(&["stack", "rm", "my"]).await;
    assert_eq!(
        docker.ok(&["stack", "ls", "--format", "{{.Name}}"]).await,
        ""
    );
    assert_eq!(
        docker
            .ok(&["network", "ls", "-q", "--filter", "name=my_"])
            .await,
        ""
    );
}
