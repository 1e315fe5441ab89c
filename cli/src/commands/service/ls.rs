//! `service ls`.

use anyhow::Result;
use bollard_stubs::models::Service;
use clap::Args;
use serde::Serialize;

use crate::{
    client::{Client, Filters},
    output::{Listing, Row, image_name, short_id},
    publish,
};

#[derive(Debug, Args)]
pub struct Ls {
    /// Only services that match: id, label, mode, name
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Ls {
    pub async fn run(self, client: &Client) -> Result<()> {
        let services = client.services(&Filters::parse(&self.filter)?).await?;
        self.listing.print(&rows(&services))
    }
}

fn rows(services: &[Service]) -> Vec<ServiceRow> {
    let mut rows: Vec<ServiceRow> = services.iter().map(ServiceRow::new).collect();
    rows.sort_by(|a, b| alphanumeric_sort::compare_str(&a.name, &b.name));
    rows
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceRow {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    mode: String,
    name: String,
    ports: String,
    replicas: String,
}

impl ServiceRow {
    fn new(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let mode = spec.mode.unwrap_or_default();
        let task = spec.task_template.unwrap_or_default();
        let image = task.container_spec.and_then(|container| container.image);
        let most = task.placement.and_then(|placement| placement.max_replicas);
        let most = most.filter(|most| *most > 0 && mode.replicated.is_some());
        let ports = service
            .endpoint
            .as_ref()
            .and_then(|endpoint| endpoint.ports.as_deref());
        let status = service.service_status.clone().unwrap_or_default();
        let running = status.running_tasks.unwrap_or_default();
        let desired = status.desired_tasks.unwrap_or_default();
        Self {
            id: short_id(service.id.as_deref().unwrap_or_default()).to_owned(),
            image: image_name(image.as_deref().unwrap_or_default()).to_owned(),
            mode: if mode.global.is_some() {
                "global"
            } else {
                "replicated"
            }
            .to_owned(),
            name: spec.name.unwrap_or_default(),
            ports: publish::show(ports.unwrap_or_default()),
            replicas: match most {
                Some(most) => format!("{running}/{desired} (max {most} per node)"),
                None => format!("{running}/{desired}"),
            },
        }
    }
}

impl Row for ServiceRow {
    const HEADERS: &'static [&'static str] = &["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"];

    fn cells(&self) -> Vec<String> {
        [
            &self.id,
            &self.name,
            &self.mode,
            &self.replicas,
            &self.image,
            &self.ports,
        ]
        .map(Clone::clone)
        .into()
    }

    fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::{Format, render};

    fn services() -> Vec<Service> {
        serde_json::from_value(json!([
            {
                "ID": "bbbbbbbbbbbbbbbbbbbbbbbbb",
                "Spec": {
                    "Name": "web", "Mode": {"Replicated": {"Replicas": 3}},
                    "TaskTemplate": {
                        "ContainerSpec": {"Image": "nginx:1.12@sha256:00"},
                        "Placement": {"MaxReplicas": 2},
                    },
                },
                "Endpoint": {"Ports": [{
                    "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress",
                }]},
                "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 3},
            },
            {
                "ID": "aaaaaaaaaaaaaaaaaaaaaaaaa",
                "Spec": {
                    "Name": "agent", "Mode": {"Global": {}},
                    "TaskTemplate": {"ContainerSpec": {"Image": "host"}},
                },
                "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 2},
            },
        ]))
        .unwrap()
    }

    #[test]
    fn table_is_dockers() {
        assert_eq!(
            render(&Format::Table, &rows(&services())).unwrap(),
            concat!(
                "ID             NAME      MODE         REPLICAS               IMAGE        PORTS\n",
                "aaaaaaaaaaaa   agent     global       2/2                    host         \n",
                "bbbbbbbbbbbb   web       replicated   1/3 (max 2 per node)   nginx:1.12   *:8080->80/tcp\n",
            )
        );
    }

    #[test]
    fn json_has_dockers_fields() {
        let json = render(&Format::Json, &rows(&services())).unwrap();
        assert_eq!(
            json.lines().next().unwrap(),
            r#"{"ID":"aaaaaaaaaaaa","Image":"host","Mode":"global","Name":"agent","Ports":"","Replicas":"2/2"}"#
        );
    }
}
