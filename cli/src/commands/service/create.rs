//! `service create`.

use std::ffi::OsString;

use anyhow::{Result, bail};
use bollard_stubs::models::{
    EndpointPortConfig, EndpointSpec, EndpointSpecModeEnum, NetworkAttachmentConfig,
    ServiceCreateResponse, ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated, TaskSpec,
    TaskSpecContainerSpec, TaskSpecContainerSpecDnsConfig, TaskSpecPlacement,
    TaskSpecPlacementPreferences,
};
use clap::{Args, ValueEnum};

use super::{Waiting, warn};
use crate::{
    client::{Client, Route},
    publish,
    spec::{TaskFlags, TrafficFlags, attachment, extra_host, parse_env, parse_map, preference},
};

/// The image that is the node's own root filesystem.
const HOST_IMAGE: &str = "host";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Replicated,
    /// One task on every node
    Global,
}

/// Everything after IMAGE is the command; with `--` and no image it runs on the node's own root
/// filesystem.
#[derive(Debug, Args)]
#[command(
    override_usage = "swarmnet service create [OPTIONS] IMAGE [COMMAND...]\n       \
    swarmnet service create [OPTIONS] -- COMMAND..."
)]
pub struct Create {
    /// Name of the service
    #[arg(long)]
    name: Option<String>,
    #[arg(long, value_enum, default_value = "replicated")]
    mode: Mode,
    /// Attach to a network: NAME, or name=NAME,alias=ALIAS
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Publish a port: [[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL], or
    /// published=8080,target=80,protocol=tcp,mode=ingress,ip=ADDRESS
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Label of the service
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Label of its tasks
    #[arg(long, value_name = "KEY=VALUE")]
    container_label: Vec<String>,
    /// Where tasks may run, such as node.role==worker
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// How tasks are spread, such as spread=node.labels.zone
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref: Vec<String>,
    /// Name server of the tasks
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Entry of /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    task: TaskFlags,
    #[command(flatten)]
    traffic: TrafficFlags,
    #[arg(value_name = "IMAGE [COMMAND]", trailing_var_arg = true)]
    words: Vec<String>,
}

impl Create {
    pub async fn run(self, client: &Client) -> Result<()> {
        let mut networks = Vec::new();
        for text in &self.network {
            networks.push(attachment(client, text).await?);
        }
        let line: Vec<OsString> = std::env::args_os().collect();
        let spec = self.spec(networks, &line)?;
        let route = Route::new("services").segment("create");
        let answer: ServiceCreateResponse = client.post(route, &spec).await?;
        warn(&answer.warnings.unwrap_or_default());
        let id = answer.id.unwrap_or_default();
        println!("{id}");
        self.waiting.wait(client, &id).await
    }

    /// `line` is the command line that was parsed.
    fn spec(
        &self,
        networks: Vec<NetworkAttachmentConfig>,
        line: &[OsString],
    ) -> Result<ServiceSpec> {
        let ports = ports(&self.publish)?;
        let mut spec = ServiceSpec {
            name: self.name.clone(),
            labels: Some(parse_map(&self.label)),
            mode: Some(self.mode.into()),
            endpoint_spec: Some(EndpointSpec {
                mode: Some(EndpointSpecModeEnum::VIP),
                ports: (!ports.is_empty()).then(|| ports.clone()),
            }),
            task_template: Some(TaskSpec {
                container_spec: Some(self.container(line)?),
                placement: Some(self.placement()?),
                networks: (!networks.is_empty()).then_some(networks),
                force_update: Some(0),
                ..TaskSpec::default()
            }),
            ..ServiceSpec::default()
        };
        publish::edit_labels(&mut spec.labels, &ports, &self.publish)?;
        self.traffic.apply(&mut spec.labels)?;
        self.task.apply(&mut spec)?;
        Ok(spec)
    }

    fn container(&self, line: &[OsString]) -> Result<TaskSpecContainerSpec> {
        let (image, args) = self.image(line)?;
        let hosts: Result<Vec<String>> = self.host.iter().map(|host| extra_host(host)).collect();
        Ok(TaskSpecContainerSpec {
            image: Some(image.to_owned()),
            args: filled(args.to_vec()),
            env: filled(parse_env(&self.env, &self.env_file)?),
            labels: Some(parse_map(&self.container_label)).filter(|labels| !labels.is_empty()),
            hosts: filled(hosts?),
            dns_config: Some(TaskSpecContainerSpecDnsConfig {
                nameservers: filled(self.dns.clone()),
                search: filled(self.dns_search.clone()),
                options: filled(self.dns_option.clone()),
            }),
            ..TaskSpecContainerSpec::default()
        })
    }

    fn image(&self, line: &[OsString]) -> Result<(&str, &[String])> {
        match self.words.split_first() {
            None => bail!("what is to run? give an IMAGE, or a command after `--`"),
            Some(_) if begin_at_dashes(&self.words, line) => Ok((HOST_IMAGE, &self.words)),
            Some((image, command)) => Ok((image, command)),
        }
    }

    fn placement(&self) -> Result<TaskSpecPlacement> {
        let preferences: Result<Vec<TaskSpecPlacementPreferences>> = self
            .placement_pref
            .iter()
            .map(|text| preference(text))
            .collect();
        Ok(TaskSpecPlacement {
            constraints: filled(self.constraint.clone()),
            preferences: Some(preferences?).filter(|preferences| !preferences.is_empty()),
            ..TaskSpecPlacement::default()
        })
    }
}

/// Whether the words are all that stands after the line's first `--`. The parser drops that one,
/// and only that one, so words that begin before it are more.
fn begin_at_dashes(words: &[String], line: &[OsString]) -> bool {
    let dashes = line.iter().position(|word| word == "--");
    dashes.is_some_and(|at| line.len() - at - 1 == words.len())
}

impl From<Mode> for ServiceSpecMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Replicated => Self {
                replicated: Some(ServiceSpecModeReplicated { replicas: Some(1) }),
                ..Self::default()
            },
            Mode::Global => Self {
                global: Some([].into()),
                ..Self::default()
            },
        }
    }
}

pub fn ports(texts: &[String]) -> Result<Vec<EndpointPortConfig>> {
    let mut ports = Vec::new();
    for text in texts {
        ports = publish::edit(ports, &[], &publish::parse(text)?)?;
    }
    Ok(ports)
}

fn filled(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn spec(args: &[&str]) -> Result<Value> {
        let line: Vec<OsString> = std::iter::once(&"x").chain(args).map(Into::into).collect();
        let create = Line::try_parse_from(&line)?.create;
        Ok(serde_json::to_value(create.spec(Vec::new(), &line)?)?)
    }

    fn image_and_args(args: &[&str]) -> Value {
        let spec = spec(args).unwrap();
        let container = &spec["TaskTemplate"]["ContainerSpec"];
        json!([container["Image"], container["Args"]])
    }

    #[test]
    fn spec_is_what_docker_sends() {
        let args = [
            "--replicas",
            "3",
            "--name",
            "web",
            "-p",
            "8081:80",
            "-e",
            "A=1",
            "busybox",
            "ping",
            "-c",
            "3",
        ];
        assert_eq!(
            spec(&args).unwrap(),
            json!({
                "Name": "web", "Labels": {},
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Image": "busybox", "Args": ["ping", "-c", "3"], "Env": ["A=1"], "DNSConfig": {},
                    },
                    "Placement": {}, "ForceUpdate": 0,
                },
                "Mode": {"Replicated": {"Replicas": 3}},
                "EndpointSpec": {"Mode": "vip", "Ports": [{
                    "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8081, "PublishMode": "ingress",
                }]},
            })
        );
    }

    #[test]
    fn everything_after_the_image_is_the_command() {
        assert_eq!(image_and_args(&["busybox"]), json!(["busybox", null]));
        assert_eq!(
            image_and_args(&["busybox", "--name", "x", "-p", "1"]),
            json!(["busybox", ["--name", "x", "-p", "1"]])
        );
        assert_eq!(
            image_and_args(&["--name", "w", "busybox", "sh", "--", "-x"]),
            json!(["busybox", ["sh", "--", "-x"]])
        );
    }

    #[test]
    fn command_after_two_dashes_runs_on_the_host_image() {
        assert_eq!(
            image_and_args(&["--", "sh", "--", "a"]),
            json!(["host", ["sh", "--", "a"]])
        );
        assert_eq!(
            image_and_args(&["--name", "w", "--", "sh", "-c", "exit 1"]),
            json!(["host", ["sh", "-c", "exit 1"]])
        );
    }

    #[test]
    fn nothing_to_run_is_refused() {
        assert!(spec(&["--name", "w"]).is_err());
        assert!(spec(&["--name", "w", "--"]).is_err());
        assert!(
            spec(&["-p", "80:80", "-p", "80:81", "host"]).is_err(),
            "one port for two targets"
        );
        assert!(spec(&["--mode", "global", "--replicas", "2", "host"]).is_err());
    }

    #[test]
    fn global_mode_and_placement() {
        let args = [
            "--mode",
            "global",
            "--constraint",
            "node.role==worker",
            "--placement-pref",
            "spread=node.labels.zone",
            "--host",
            "db:1.2.3.4",
            "host",
        ];
        let spec = spec(&args).unwrap();
        assert_eq!(spec["Mode"], json!({"Global": {}}));
        assert_eq!(
            spec["TaskTemplate"]["Placement"],
            json!({
                "Constraints": ["node.role==worker"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
            })
        );
        assert_eq!(
            spec["TaskTemplate"]["ContainerSpec"]["Hosts"],
            json!(["1.2.3.4 db"])
        );
    }
}
