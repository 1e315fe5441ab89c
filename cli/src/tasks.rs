//! Listings of tasks: `service ps` and `node ps`.

use std::cmp::Ordering;

use anyhow::Result;
use bollard_stubs::models::Task;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    names::Names,
    output::{Format, Listing, Row, capitalized, ellipsis, image_name, short_id},
    publish,
    units::human_duration,
};

const ERROR_WIDTH: usize = 30;

#[derive(Debug, Clone, Args)]
pub struct TaskListing {
    /// Only tasks that match: desired-state, id, name, node, label
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Do not shorten IDs and errors
    #[arg(long)]
    pub no_trunc: bool,
    /// Show IDs of services and nodes, not their names
    #[arg(long)]
    pub no_resolve: bool,
    #[command(flatten)]
    pub listing: Listing,
}

impl TaskListing {
    /// # Errors
    /// A template that names an unknown field.
    pub fn print(&self, tasks: Vec<Task>, names: &Names, now: Timestamp) -> Result<()> {
        let indent = self.listing.format == Format::Table && !self.listing.quiet;
        // Ids alone are for other commands.
        let shorten = !self.no_trunc && !self.listing.quiet;
        self.listing
            .print(&rows(tasks, names, shorten, indent, now))
    }
}

/// Newest first in each slot, with what came before it marked when `indent` is set.
fn rows(
    tasks: Vec<Task>,
    names: &Names,
    shorten: bool,
    indent: bool,
    now: Timestamp,
) -> Vec<TaskRow> {
    let mut tasks: Vec<(String, Task)> = tasks
        .into_iter()
        .map(|task| (task_name(&task, names), task))
        .collect();
    tasks.sort_by(by_name_then_newest);
    let mut before: Option<String> = None;
    let mut rows = Vec::with_capacity(tasks.len());
    for (name, task) in tasks {
        let is_history = before.as_deref() == Some(&name);
        let mut row = TaskRow::new(&task, name.clone(), names, shorten, now);
        if is_history && indent {
            row.name.insert_str(0, " \\_ ");
        }
        rows.push(row);
        before = Some(name);
    }
    rows
}

fn by_name_then_newest((a_name, a): &(String, Task), (b_name, b): &(String, Task)) -> Ordering {
    alphanumeric_sort::compare_str(a_name, b_name).then_with(|| created(b).cmp(&created(a)))
}

fn created(task: &Task) -> Option<Timestamp> {
    task.created_at.as_deref()?.parse().ok()
}

/// `web.1`, or `web.<node id>` for a global service.
fn task_name(task: &Task, names: &Names) -> String {
    let service = names.get(task.service_id.as_deref().unwrap_or_default());
    match task.slot.filter(|slot| *slot != 0) {
        Some(slot) => format!("{service}.{slot}"),
        None => format!("{service}.{}", task.node_id.as_deref().unwrap_or_default()),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskRow {
    current_state: String,
    desired_state: String,
    error: String,
    #[serde(rename = "ID")]
    id: String,
    image: String,
    name: String,
    node: String,
    ports: String,
}

impl TaskRow {
    fn new(task: &Task, name: String, names: &Names, shorten: bool, now: Timestamp) -> Self {
        let id = task.id.as_deref().unwrap_or_default();
        let container = task
            .spec
            .as_ref()
            .and_then(|spec| spec.container_spec.as_ref());
        let image = container.and_then(|container| container.image.as_deref());
        let image = image.unwrap_or_default();
        let error = task.status.as_ref().and_then(|status| status.err.clone());
        let mut error = error.unwrap_or_default();
        if shorten {
            error = ellipsis(&error, ERROR_WIDTH);
        }
        if !error.is_empty() {
            error = format!("\"{error}\"");
        }
        Self {
            current_state: current_state(task, now),
            desired_state: task
                .desired_state
                .map(|state| capitalized(&state.to_string()))
                .unwrap_or_default(),
            error,
            id: if shorten { short_id(id) } else { id }.to_owned(),
            image: if shorten { image_name(image) } else { image }.to_owned(),
            name,
            node: names
                .get(task.node_id.as_deref().unwrap_or_default())
                .to_owned(),
            ports: ports(task),
        }
    }
}

impl Row for TaskRow {
    const HEADERS: &'static [&'static str] = &[
        "ID",
        "NAME",
        "IMAGE",
        "NODE",
        "DESIRED STATE",
        "CURRENT STATE",
        "ERROR",
        "PORTS",
    ];

    fn cells(&self) -> Vec<String> {
        [
            &self.id,
            &self.name,
            &self.image,
            &self.node,
            &self.desired_state,
            &self.current_state,
            &self.error,
            &self.ports,
        ]
        .map(Clone::clone)
        .into()
    }

    fn id(&self) -> &str {
        &self.id
    }
}

/// `Running 5 minutes ago`.
fn current_state(task: &Task, now: Timestamp) -> String {
    let Some(status) = &task.status else {
        return String::new();
    };
    let state = status.state.map(|state| capitalized(&state.to_string()));
    let since = status
        .timestamp
        .as_deref()
        .and_then(|time| time.parse::<Timestamp>().ok());
    let since = since.map(|since| human_duration(now.duration_since(since)).to_lowercase());
    match (state, since) {
        (Some(state), Some(since)) => format!("{state} {since} ago"),
        (state, _) => state.unwrap_or_default(),
    }
}

/// Ports that the task itself has on its node.
fn ports(task: &Task) -> String {
    let status = task
        .status
        .as_ref()
        .and_then(|status| status.port_status.as_ref());
    let ports = status.and_then(|status| status.ports.as_deref());
    publish::show_each(ports.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::render;

    fn task(id: &str, slot: u64, created: &str, state: &str, err: &str) -> Task {
        serde_json::from_value(json!({
            "ID": id, "ServiceID": "svc", "NodeID": "n1", "Slot": slot, "CreatedAt": created,
            "DesiredState": if state == "running" { "running" } else { "shutdown" },
            "Spec": {"ContainerSpec": {"Image": "host"}},
            "Status": {"Timestamp": created, "State": state, "Err": err},
        }))
        .unwrap()
    }

    fn names() -> Names {
        let node = json!({"ID": "n1", "Description": {"Hostname": "alpha"}});
        let service = json!({"ID": "svc", "Spec": {"Name": "web"}});
        Names::of(
            &[serde_json::from_value(node).unwrap()],
            &[serde_json::from_value(service).unwrap()],
        )
    }

    fn tasks() -> Vec<Task> {
        vec![
            task(
                "ccccccccccccccccccccccccc",
                10,
                "2026-11-21T10:00:00Z",
                "running",
                "",
            ),
            task(
                "aaaaaaaaaaaaaaaaaaaaaaaaa",
                2,
                "2026-11-21T09:00:00Z",
                "failed",
                "task: non-zero exit (1) and much more",
            ),
            task(
                "bbbbbbbbbbbbbbbbbbbbbbbbb",
                2,
                "2026-11-21T10:04:00Z",
                "running",
                "",
            ),
        ]
    }

    #[test]
    fn history_stands_below_the_task_that_runs() {
        let now = "2026-11-21T10:05:00Z".parse().unwrap();
        let table = render(&Format::Table, &rows(tasks(), &names(), true, true, now)).unwrap();
        let want = concat!(
            "ID             NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE                ERROR                              PORTS\n",
            "bbbbbbbbbbbb   web.2       host      alpha     Running         Running about a minute ago                                      \n",
            "aaaaaaaaaaaa    \\_ web.2   host      alpha     Shutdown        Failed about an hour ago     \"task: non-zero exit (1) and m…\"   \n",
            "cccccccccccc   web.10      host      alpha     Running         Running 5 minutes ago                                           \n",
        );
        assert_eq!(table, want);
    }

    #[test]
    fn json_has_dockers_fields_and_no_marks() {
        let now = "2026-11-21T10:05:00Z".parse().unwrap();
        let json = render(&Format::Json, &rows(tasks(), &names(), true, false, now)).unwrap();
        let row: serde_json::Value = serde_json::from_str(json.lines().nth(1).unwrap()).unwrap();
        assert_eq!(
            row,
            json!({
                "CurrentState": "Failed about an hour ago", "DesiredState": "Shutdown",
                "Error": "\"task: non-zero exit (1) and m…\"", "ID": "aaaaaaaaaaaa",
                "Image": "host", "Name": "web.2", "Node": "alpha", "Ports": "",
            })
        );
    }

    #[test]
    fn unknown_names_are_shown_as_ids() {
        let now = Timestamp::UNIX_EPOCH;
        let rows = rows(tasks(), &Names::default(), false, false, now);
        assert_eq!(
            (rows[0].name.as_str(), rows[0].node.as_str()),
            ("svc.2", "n1")
        );
        assert_eq!(rows[0].id.len(), 25);
    }
}
