use std::time::Duration;

use model::spec::{
    ContainerSpec, DnsConfig, NetworkAttachmentSpec, Placement, Resources, TaskSpec,
};
use serde_json::{Value, json};

use super::*;

const NETWORK: &str = "0000000000000000000000abc";

fn read(json: Value) -> Result<ServiceSpec, ApiError> {
    service_spec_from_docker(&serde_json::from_value(json).unwrap())
}

fn written(spec: &ServiceSpec) -> Value {
    serde_json::to_value(service_spec_to_docker(spec)).unwrap()
}

/// `docker service create --name web --replicas 3 -p 8081:80 --network my-net --env A=b
/// --update-parallelism 2 --update-delay 10s --update-failure-action continue busybox httpd -f`.
fn create_request() -> Value {
    json!({
        "Name": "web", "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "busybox:latest", "Args": ["httpd", "-f"], "Init": false,
                "Env": ["A=b"], "DNSConfig": {}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "Networks": [{"Target": NETWORK}],
            "ForceUpdate": 0,
        },
        "Mode": {"Replicated": {"Replicas": 3}},
        "UpdateConfig": {"Parallelism": 2, "Delay": 10_000_000_000_i64,
            "FailureAction": "continue", "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0.1,
            "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80,
            "PublishedPort": 8081, "PublishMode": "ingress"}]},
    })
}

#[test]
fn request_of_the_docker_command_is_read() {
    let spec = read(create_request()).unwrap();
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 3 });
    assert_eq!(spec.task.container.args, ["httpd", "-f"]);
    assert_eq!(spec.task.container.init, Some(false));
    assert_eq!(spec.task.networks[0].network, NETWORK.parse().unwrap());
    assert_eq!(
        spec.endpoint.ports,
        [PortSpec {
            name: None,
            protocol: Protocol::Tcp,
            target: 80,
            published: Some(8081),
            mode: PublishMode::Ingress,
        }]
    );
    let update = spec.update.unwrap();
    assert_eq!(
        (update.parallelism, update.delay),
        (2, Duration::from_secs(10))
    );
    assert_eq!(update.failure_action, FailureAction::Continue);
}

/// All that was set in the request stands in the answer, and the answer is itself a request that
/// reads the same: clients edit what they got and post it back.
#[test]
fn what_was_read_is_written_and_reads_back() {
    let spec = read(create_request()).unwrap();
    let answer = written(&spec);
    assert_eq!(
        crate::lossless::first_lost(&create_request(), &answer),
        None
    );
    assert_eq!(answer["TaskTemplate"]["Runtime"], "container");
    assert_eq!(
        answer["TaskTemplate"]["ContainerSpec"]["Isolation"],
        "default"
    );
    assert_eq!(answer["TaskTemplate"]["ForceUpdate"], 0);
    assert_eq!(read(answer), Ok(spec));
}

/// A spec with every field set to something that is not its default.
fn full() -> ServiceSpec {
    let map = |key: &str| [(key.to_owned(), "1".to_owned())].into();
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let config = |action, order| UpdateConfig {
        parallelism: 0,
        delay: Duration::from_nanos(3),
        failure_action: action,
        monitor: Some(Duration::from_millis(7)),
        max_failure_ratio: 0.3,
        order,
    };
    ServiceSpec {
        name: "full".into(),
        labels: map("service"),
        task: TaskSpec {
            container: ContainerSpec {
                image: "host".into(),
                labels: map("container"),
                command: words(&["/bin/sh", "-c"]),
                args: words(&["true", ""]),
                env: words(&["A=b", "C="]),
                dir: Some("/tmp".into()),
                user: Some("1:2".into()),
                hostname: Some("h".into()),
                tty: true,
                read_only: true,
                init: Some(true),
                stop_signal: Some("SIGINT".into()),
                stop_grace_period: Some(Duration::ZERO),
                dns: DnsConfig {
                    nameservers: words(&["192.0.2.1"]),
                    search: words(&["example"]),
                    options: words(&["ndots:2"]),
                },
                hosts: words(&["192.0.2.2 a"]),
            },
            resources: Resources {
                limit_nano_cpus: Some(1),
                limit_memory_bytes: Some(2),
                limit_pids: Some(3),
                reserve_nano_cpus: Some(4),
                reserve_memory_bytes: Some(5),
            },
            restart: Some(RestartPolicy {
                condition: RestartCondition::OnFailure,
                delay: Some(Duration::ZERO),
                max_attempts: 3,
                window: Some(Duration::from_secs(9)),
            }),
            placement: Placement {
                constraints: words(&["node.role==manager"]),
                preferences: words(&["node.labels.zone"]),
                max_replicas: 2,
            },
            networks: vec![NetworkAttachmentSpec {
                network: NETWORK.parse().unwrap(),
                aliases: words(&["db"]),
            }],
            force_update: 4,
        },
        mode: ServiceMode::Replicated { replicas: 0 },
        update: Some(config(FailureAction::Rollback, UpdateOrder::StartFirst)),
        rollback: Some(config(FailureAction::Continue, UpdateOrder::StartFirst)),
        endpoint: EndpointSpec {
            mode: EndpointMode::Dnsrr,
            ports: vec![PortSpec {
                name: Some("dns".into()),
                protocol: Protocol::Udp,
                target: 53,
                published: None,
                mode: PublishMode::Host,
            }],
        },
    }
}

#[test]
fn every_field_of_the_model_survives() {
    let full = full();
    assert_eq!(
        service_spec_from_docker(&service_spec_to_docker(&full)),
        Ok(full)
    );
    let plain = ServiceSpec {
        mode: ServiceMode::Global,
        ..ServiceSpec::default()
    };
    assert_eq!(
        service_spec_from_docker(&service_spec_to_docker(&plain)),
        Ok(plain)
    );
}

#[test]
fn little_is_enough() {
    let spec = read(json!({"TaskTemplate": {"ContainerSpec": {"Image": "x"}}})).unwrap();
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
    let spec = read(json!({"TaskTemplate": {"ContainerSpec": {}}, "Mode": {"Replicated": {}}}));
    assert_eq!(spec.unwrap().mode, ServiceMode::Replicated { replicas: 1 });
}

#[test]
fn networks_may_stand_beside_the_template() {
    let spec = read(json!({
        "TaskTemplate": {"ContainerSpec": {"Image": "x"}},
        "Networks": [{"Target": NETWORK, "Aliases": ["a"]}],
    }))
    .unwrap();
    assert_eq!(spec.task.networks[0].aliases, ["a"]);
}

#[test]
fn network_names_become_ids_wherever_they_stand() {
    let mut spec: docker::ServiceSpec = serde_json::from_value(json!({
        "TaskTemplate": {"Networks": [{"Target": "my-net"}]},
        "Networks": [{"Target": "other"}],
    }))
    .unwrap();
    resolve_networks(&mut spec, |name| {
        Ok(NetworkId::from_raw(name.len() as u128))
    })
    .unwrap();
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        json["TaskTemplate"]["Networks"][0]["Target"],
        NetworkId::from_raw(6).to_string()
    );
    assert_eq!(
        json["Networks"][0]["Target"],
        NetworkId::from_raw(5).to_string()
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let container = |field: &str, value: Value| json!({"TaskTemplate": {"ContainerSpec": {"Image": "x", field: value}}});
    for (request, named) in [
        (
            container(
                "Mounts",
                json!([{"Type": "bind", "Source": "/a", "Target": "/b"}]),
            ),
            "TaskTemplate.ContainerSpec.Mounts",
        ),
        (
            container("HealthCheck", json!({"Test": ["CMD"]})),
            "ContainerSpec.HealthCheck.Test",
        ),
        (
            container("Isolation", json!("hyperv")),
            "ContainerSpec.Isolation",
        ),
        (
            container("OpenStdin", json!(true)),
            "ContainerSpec.OpenStdin",
        ),
        (
            container("Sysctls", json!({"a": "b"})),
            "ContainerSpec.Sysctls",
        ),
        (
            container("CapabilityAdd", json!(["ALL"])),
            "ContainerSpec.CapabilityAdd",
        ),
        (
            container("Secrets", json!([{"SecretID": "x"}])),
            "ContainerSpec.Secrets",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}, "LogDriver": {"Name": "syslog"}}}),
            "TaskTemplate.LogDriver.Name",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}, "Runtime": "plugin"}}),
            "TaskTemplate.Runtime `plugin`",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {},
                "Networks": [{"Target": NETWORK, "DriverOpts": {"a": "b"}}]}}),
            "TaskTemplate.Networks[0].DriverOpts.a",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}},
                "Mode": {"ReplicatedJob": {"MaxConcurrent": 1}}}),
            "Mode.ReplicatedJob",
        ),
    ] {
        let err = read(request).unwrap_err();
        assert_eq!(err.status, 501, "{named}");
        assert!(err.message.contains(named), "{}: {named}", err.message);
    }
}

#[test]
fn wrong_specs_get_dockers_sentences() {
    for (request, sentence) in [
        (json!({"Name": "x"}), "mismatched Runtime and *Spec fields"),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}}, "Mode": {"Replicated": {}, "Global": {}}}),
            "must specify only one service mode",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}},
                "EndpointSpec": {"Ports": [{"TargetPort": 70000}]}}),
            "rpc error: code = InvalidArgument desc = EndpointSpec: TargetPort 70000 is not a port \
             number",
        ),
        (
            json!({"TaskTemplate": {"ContainerSpec": {}}, "Mode": {"Replicated": {"Replicas": -1}}}),
            "rpc error: code = InvalidArgument desc = Mode.Replicated.Replicas: -1 must not be \
             negative",
        ),
    ] {
        let err = read(request).unwrap_err();
        assert_eq!((err.status.as_u16(), err.message.as_str()), (400, sentence));
    }
}

#[test]
fn defaults_are_filled_in_and_nothing_is_overwritten() {
    let mut spec = read(create_request()).unwrap();
    spec.rollback = None;
    let mut filled = service_spec_to_docker(&spec);
    fill_in_defaults(&mut filled, &spec);
    let filled = serde_json::to_value(filled).unwrap();
    let template = &filled["TaskTemplate"];
    assert_eq!(
        template["ContainerSpec"]["StopGracePeriod"],
        10_000_000_000_u64
    );
    assert_eq!(
        template["RestartPolicy"],
        json!({"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0})
    );
    assert_eq!(filled["UpdateConfig"]["Parallelism"], 2);
    assert_eq!(
        filled["RollbackConfig"],
        json!({"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64,
            "MaxFailureRatio": 0.0, "Order": "stop-first"})
    );
}

#[test]
fn image_without_a_tag_gets_the_one_it_means() {
    for (written, meant) in [
        ("host", "host:latest"),
        ("registry:5000/web", "registry:5000/web:latest"),
        ("web:1.2", "web:1.2"),
        ("web@sha256:00", "web@sha256:00"),
        ("", ""),
    ] {
        let mut spec = docker::ServiceSpec {
            task_template: Some(docker::TaskSpec {
                container_spec: Some(docker::TaskSpecContainerSpec {
                    image: Some(written.to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        super::tag_image(&mut spec);
        let container = spec.task_template.unwrap().container_spec.unwrap();
        assert_eq!(container.image.as_deref(), Some(meant));
    }
}
