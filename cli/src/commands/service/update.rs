//! `service update`.

use anyhow::Result;
use bollard_stubs::models::{
    EndpointPortConfig, EndpointSpec, NetworkAttachmentConfig, ServiceSpec, TaskSpec,
    TaskSpecContainerSpec, TaskSpecPlacement,
};
use clap::Args;

use super::{Waiting, rollback::roll_back, warn};
use crate::{
    client::Client,
    publish,
    spec::{
        TaskFlags, TrafficFlags, attachment, edit_by_key, edit_list, edit_map, edit_networks,
        extra_host, parse_env, preference, words,
    },
};

#[derive(Debug, Args)]
pub struct Update {
    /// Image of the tasks
    #[arg(long)]
    image: Option<String>,
    /// Command of the tasks
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    args: Option<String>,
    /// Replace the tasks even when nothing else changes
    #[arg(long)]
    force: bool,
    /// Return to the spec before the last update
    #[arg(long)]
    rollback: bool,
    /// Publish a port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<String>,
    /// Publish a port no longer, named by its target: TARGET[/PROTOCOL] or PUBLISHED:TARGET
    #[arg(long, value_name = "PORT")]
    publish_rm: Vec<String>,
    /// Attach to a network
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<String>,
    /// Detach from a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Add or replace an environment variable
    #[arg(long, value_name = "NAME[=VALUE]")]
    env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Add or replace a label of the service
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Add or replace a label of the tasks
    #[arg(long, value_name = "KEY=VALUE")]
    container_label_add: Vec<String>,
    /// Remove a label of the tasks
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_add: Vec<String>,
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_rm: Vec<String>,
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<String>,
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<String>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add an entry of /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host_add: Vec<String>,
    /// Remove an entry of /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host_rm: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    task: TaskFlags,
    #[command(flatten)]
    traffic: TrafficFlags,
    service: String,
}

/// Networks named in flags, found.
#[derive(Debug, Default)]
struct NetworkEdits {
    add: Vec<NetworkAttachmentConfig>,
    /// Names and ids: a spec may hold either.
    remove: Vec<String>,
}

impl Update {
    pub async fn run(self, client: &Client) -> Result<()> {
        if self.rollback {
            return roll_back(client, &self.service, &self.waiting).await;
        }
        let service = client.service(&self.service).await?;
        let networks = self.networks(client).await?;
        let mut spec = service.spec.clone().unwrap_or_default();
        self.edit(&mut spec, networks)?;
        warn(&client.update_service(&service, &spec, false).await?);
        println!("{}", self.service);
        let id = service.id.as_deref().unwrap_or_default();
        self.waiting.wait(client, id).await
    }

    async fn networks(&self, client: &Client) -> Result<NetworkEdits> {
        let mut edits = NetworkEdits::default();
        for text in &self.network_add {
            edits.add.push(attachment(client, text).await?);
        }
        for name in &self.network_rm {
            edits.remove.extend(client.overlay(name).await?.id);
            edits.remove.push(name.clone());
        }
        Ok(edits)
    }

    fn edit(&self, spec: &mut ServiceSpec, networks: NetworkEdits) -> Result<()> {
        edit_map(&mut spec.labels, &self.label_rm, &self.label_add);
        self.edit_ports(spec)?;
        self.traffic.apply(&mut spec.labels)?;
        let task = spec.task_template.get_or_insert_with(TaskSpec::default);
        edit_networks(&mut task.networks, &networks.remove, networks.add);
        self.edit_placement(task)?;
        if self.force {
            task.force_update = Some(task.force_update.unwrap_or_default() + 1);
        }
        self.edit_container(
            task.container_spec
                .get_or_insert_with(TaskSpecContainerSpec::default),
        )?;
        self.task.apply(spec)
    }

    fn edit_ports(&self, spec: &mut ServiceSpec) -> Result<()> {
        if self.publish_add.is_empty() && self.publish_rm.is_empty() {
            return Ok(());
        }
        let endpoint = spec.endpoint_spec.get_or_insert_with(EndpointSpec::default);
        let ports = endpoint.ports.take().unwrap_or_default();
        let (remove, add) = (
            parse_ports(&self.publish_rm)?,
            parse_ports(&self.publish_add)?,
        );
        let ports = publish::edit(ports, &remove, &add)?;
        publish::edit_labels(&mut spec.labels, &ports, &self.publish_add)?;
        endpoint.ports = (!ports.is_empty()).then_some(ports);
        Ok(())
    }

    fn edit_placement(&self, task: &mut TaskSpec) -> Result<()> {
        let lists = [
            &self.constraint_add,
            &self.constraint_rm,
            &self.placement_pref_add,
            &self.placement_pref_rm,
        ];
        if lists.iter().all(|list| list.is_empty()) {
            return Ok(());
        }
        let placement = task
            .placement
            .get_or_insert_with(TaskSpecPlacement::default);
        edit_list(
            &mut placement.constraints,
            &self.constraint_rm,
            &self.constraint_add,
        );
        let preferences = placement.preferences.get_or_insert_default();
        for text in &self.placement_pref_rm {
            let gone = preference(text)?;
            preferences.retain(|other| *other != gone);
        }
        for text in &self.placement_pref_add {
            preferences.push(preference(text)?);
        }
        Ok(())
    }

    fn edit_container(&self, container: &mut TaskSpecContainerSpec) -> Result<()> {
        if let Some(image) = &self.image {
            container.image = Some(image.clone());
        }
        if let Some(args) = &self.args {
            container.args = Some(words(args)?);
        }
        edit_by_key(
            &mut container.env,
            &self.env_rm,
            &parse_env(&self.env_add, &[])?,
        );
        edit_map(
            &mut container.labels,
            &self.container_label_rm,
            &self.container_label_add,
        );
        let lines = |hosts: &[String]| hosts.iter().map(|host| extra_host(host)).collect();
        let (remove, add): (Result<Vec<_>>, Result<Vec<_>>) =
            (lines(&self.host_rm), lines(&self.host_add));
        edit_list(&mut container.hosts, &remove?, &add?);
        let before = container.dns_config.clone();
        let dns = container.dns_config.get_or_insert_default();
        edit_list(&mut dns.nameservers, &self.dns_rm, &self.dns_add);
        edit_list(&mut dns.search, &self.dns_search_rm, &self.dns_search_add);
        edit_list(&mut dns.options, &self.dns_option_rm, &self.dns_option_add);
        if *dns == Default::default() {
            // Nothing said: absent stays absent, since a changed template replaces every task.
            container.dns_config = before;
        }
        Ok(())
    }
}

fn parse_ports(texts: &[String]) -> Result<Vec<EndpointPortConfig>> {
    let ports: Result<Vec<Vec<_>>> = texts.iter().map(|text| publish::parse(text)).collect();
    Ok(ports?.concat())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn parse(args: &[&str]) -> Update {
        Line::try_parse_from(std::iter::once(&"x").chain(args))
            .unwrap()
            .update
    }

    fn edit(args: &[&str], spec: Value) -> Result<Value> {
        let mut spec = serde_json::from_value(spec)?;
        parse(args).edit(&mut spec, NetworkEdits::default())?;
        Ok(serde_json::to_value(spec)?)
    }

    fn web() -> Value {
        json!({
            "Name": "web", "Mode": {"Replicated": {"Replicas": 3}},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "host", "Args": ["a"], "Env": ["A=1", "B=2"]},
                "ForceUpdate": 1,
            },
            "EndpointSpec": {"Mode": "vip", "Ports": [{
                "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8081, "PublishMode": "ingress",
            }]},
        })
    }

    #[test]
    fn flags_may_follow_the_name() {
        let before = edit(&["--replicas", "5", "web"], web()).unwrap();
        let after = edit(&["web", "--replicas", "5"], web()).unwrap();
        assert_eq!(before, after);
        assert_eq!(before["Mode"]["Replicated"]["Replicas"], 5);
        assert_eq!(
            before["TaskTemplate"],
            web()["TaskTemplate"],
            "the tasks stay as they are"
        );
    }

    #[test]
    fn nothing_said_changes_nothing() {
        assert_eq!(edit(&["web"], web()).unwrap(), web());
    }

    #[test]
    fn ports_are_added_and_removed() {
        let spec = edit(
            &["web", "--publish-rm", "8081:80", "--endpoint-mode", "dnsrr"],
            web(),
        )
        .unwrap();
        assert_eq!(spec["EndpointSpec"], json!({"Mode": "dnsrr"}));
        let spec = edit(&["web", "--publish-add", "53:53/udp"], web()).unwrap();
        assert_eq!(spec["EndpointSpec"]["Ports"][1]["PublishedPort"], 53);
        assert!(edit(&["web", "--publish-add", "8081:81"], web()).is_err());
    }

    #[test]
    fn traffic_is_kept_in_labels() {
        let args = [
            "web",
            "--return",
            "dsr",
            "--affinity=client-ip",
            "--affinity-timeout=30m",
            "--weight",
            "node.labels.w",
            "--prefer=local",
        ];
        let spec = edit(&args, web()).unwrap();
        let all = json!({
            "swarmnet.return": "dsr", "swarmnet.affinity": "client-ip",
            "swarmnet.weight": "node.labels.w", "swarmnet.prefer": "local",
            "swarmnet.affinity.timeout": "30m",
        });
        assert_eq!(spec["Labels"], all);
        let alone = edit(&["web", "--affinity", "none"], spec.clone()).unwrap_err();
        let sentence = "no affinity that could time out";
        assert!(alone.to_string().contains(sentence), "{alone}");
        let args = [
            "web",
            "--affinity-timeout",
            "",
            "--weight",
            "",
            "--affinity",
            "none",
            "--prefer",
            "spread",
        ];
        let spec = edit(&args, spec).unwrap();
        let rest = json!({
            "swarmnet.return": "dsr", "swarmnet.affinity": "none", "swarmnet.prefer": "spread",
        });
        assert_eq!(spec["Labels"], rest);
        let error = edit(&["web", "--return", "direct"], web()).unwrap_err();
        assert!(error.to_string().contains("dsr or tunnel"), "{error}");
    }

    #[test]
    fn address_of_a_port_comes_and_goes_with_it() {
        let spec = edit(&["web", "--publish-add", "192.0.2.1:53:53/udp"], web()).unwrap();
        assert_eq!(
            spec["Labels"],
            json!({"swarmnet.publish.53/udp": "192.0.2.1"})
        );
        let spec = edit(&["web", "--publish-rm", "53/udp"], spec).unwrap();
        assert_eq!(spec["Labels"], json!({}));
    }

    #[test]
    fn container_is_edited() {
        let args = [
            "web",
            "--args",
            "ping -c '1 2' www",
            "--env-rm=A",
            "--env-add=B=3",
            "--force",
            "--image=x:1",
        ];
        let spec = edit(&args, web()).unwrap();
        assert_eq!(
            spec["TaskTemplate"],
            json!({
                "ContainerSpec": {"Image": "x:1", "Args": ["ping", "-c", "1 2", "www"], "Env": ["B=3"]},
                "ForceUpdate": 2,
            })
        );
        let spec = edit(&["web", "--args", "-x -y"], web()).unwrap();
        assert_eq!(
            spec["TaskTemplate"]["ContainerSpec"]["Args"],
            json!(["-x", "-y"])
        );
    }

    #[test]
    fn lists_are_edited() {
        let args = [
            "web",
            "--dns-add",
            "1.1.1.1",
            "--host-add",
            "db:10.0.0.9",
            "--constraint-add",
            "node.role==worker",
            "--label-add",
            "a=b",
        ];
        let spec = edit(&args, web()).unwrap();
        let container = &spec["TaskTemplate"]["ContainerSpec"];
        assert_eq!(container["DNSConfig"], json!({"Nameservers": ["1.1.1.1"]}));
        assert_eq!(container["Hosts"], json!(["10.0.0.9 db"]));
        assert_eq!(
            spec["TaskTemplate"]["Placement"]["Constraints"],
            json!(["node.role==worker"])
        );
        assert_eq!(spec["Labels"], json!({"a": "b"}));
        let back = edit(
            &[
                "web",
                "--dns-rm",
                "1.1.1.1",
                "--constraint-rm",
                "node.role==worker",
            ],
            spec,
        )
        .unwrap();
        assert_eq!(
            back["TaskTemplate"]["ContainerSpec"]["DNSConfig"],
            json!({"Nameservers": []})
        );
        assert_eq!(back["TaskTemplate"]["Placement"]["Constraints"], json!([]));
    }
}
