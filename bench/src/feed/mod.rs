//! What a cluster of many nodes costs its managers: one manager, the real daemon, and a [`Fleet`] of
//! agents that hold sessions with it and run nothing; then networks, services and tasks. How long it
//! takes until the agents hear of a change, what the manager's memory and disk hold, and how it comes
//! back from a crash.
//!
//! All of it is on one machine: the figures hold the agents' work, too.

mod fleet;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Wiring, progress::step};
use model::ServiceId;
use serde_json::{Value, json};

use self::fleet::Fleet;
use crate::{
    Parts,
    api::{Api, Connection},
    managers::door::Door,
    report::{Figure, Goal, Report, quantile},
    way::cluster,
};

const PART: &str = "feed of one manager";
/// For each wait.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(2);
/// Between looks that cost the manager something.
const RARE_LOOK: Duration = Duration::from_millis(100);
const PORT: u16 = 8080;

struct Size {
    agents: usize,
    networks: usize,
    services: usize,
    replicas: usize,
    /// Changes of each kind.
    changes: usize,
}

impl Size {
    fn of(parts: &Parts) -> Self {
        if parts.quick {
            Self {
                agents: 100,
                networks: 20,
                services: 100,
                replicas: 10,
                changes: 5,
            }
        } else {
            Self {
                agents: 1000,
                networks: 200,
                services: 1000,
                replicas: 10,
                changes: 20,
            }
        }
    }

    fn tasks(&self) -> usize {
        self.services * self.replicas
    }
}

/// # Errors
/// When the cluster does not come to where it was sent.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let size = Size::of(parts);
    let mut lab = cluster(parts, 1, 1, Wiring::Switch, "tc")?;
    let api = Api::at(&lab.node(1).socket());
    drain_manager(&api)?;
    let world = World {
        fleet: grow(&lab, &api, &size, report)?,
        api,
        size,
    };
    let services = world.populate(&lab, report)?;
    world.change(&services, report)?;
    world.weigh(&lab, report)?;
    world.restart(&mut lab, report)
}

fn seconds(name: &str, since: Instant) -> Figure {
    Figure::new(PART, format!("{name}, s"), since.elapsed().as_secs_f64())
}

/// Only the simulated agents are to have tasks.
fn drain_manager(api: &Api) -> Result<()> {
    let nodes = api.get("/nodes")?;
    let (id, version) = (text(&nodes[0]["ID"])?, &nodes[0]["Version"]["Index"]);
    let mut spec = nodes[0]["Spec"].clone();
    spec["Availability"] = "drain".into();
    api.post(&format!("/nodes/{id}/update?version={version}"), &spec)?;
    Ok(())
}

fn grow(lab: &Lab, api: &Api, size: &Size, report: &mut Report) -> Result<Fleet> {
    let agents = size.agents;
    let begun = Instant::now();
    let door = Door::of(lab, api)?;
    let mut fleet = step(&format!("{agents} nodes join"), || {
        Fleet::join(lab, &door, agents)
    })?;
    report.add(seconds(&format!("{agents} joins"), begun));
    let begun = Instant::now();
    step("their sessions begin", || {
        fleet.begin();
        settle(api, agents)
    })?;
    report.add(seconds("all sessions begun, nothing behind", begun));
    Ok(fleet)
}

struct World {
    fleet: Fleet,
    api: Api,
    size: Size,
}

/// Two of the services.
struct Services {
    /// Published on the mesh: every node hears of its tasks.
    front: String,
    /// Neither published nor on a network: only a task's own node hears of it.
    alone: String,
}

impl World {
    fn populate(&self, lab: &Lab, report: &mut Report) -> Result<Services> {
        let Size {
            networks, services, ..
        } = self.size;
        let mut api = Connection::open(&lab.node(1).socket())?;
        let begun = Instant::now();
        let named = step(&format!("{networks} networks, {services} services"), || {
            for number in 0..networks {
                let network = json!({"Name": format!("n{number}"), "Driver": "overlay"});
                api.post("/networks/create", &network)?;
            }
            let front = api.post("/services/create", &self.service("front", None, true))?;
            let alone = api.post("/services/create", &self.service("alone", None, false))?;
            for number in 2..services {
                let spec = self.service(&format!("s{number}"), Some(number % networks), false);
                api.post("/services/create", &spec)?;
            }
            Ok(Services {
                front: text(&front["ID"])?,
                alone: text(&alone["ID"])?,
            })
        })?;
        let name = format!("{networks} networks and {services} services created");
        report.add(seconds(&name, begun));
        let tasks = self.size.tasks();
        step(&format!("{tasks} tasks run"), || {
            until("tasks to run", RARE_LOOK, || {
                Ok(self.fleet.running() >= tasks)
            })?;
            until("the managers to know", RARE_LOOK, || {
                Ok(self.tasks()?.running == tasks)
            })?;
            settle(&self.api, self.size.agents)
        })?;
        let name = format!("{tasks} tasks run, from the first request on");
        report.add(seconds(&name, begun));
        Ok(named)
    }

    fn service(&self, name: &str, network: Option<usize>, published: bool) -> Value {
        let networks = network.map(|number| json!({"Target": format!("n{number}")}));
        let networks: Vec<_> = networks.into_iter().collect();
        let port = json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT});
        let ports = if published { vec![port] } else { Vec::new() };
        json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": "host", "Command": ["sleep", "infinity"]},
                "Networks": networks,
            },
            "Mode": {"Replicated": {"Replicas": self.size.replicas}},
            "EndpointSpec": {"Ports": ports},
        })
    }

    fn change(&self, services: &Services, report: &mut Report) -> Result<()> {
        let Size {
            agents, changes, ..
        } = self.size;
        for (service, hearers, what) in [
            (&services.front, agents, "all agents hear of"),
            (&services.alone, 1, "one agent hears of"),
        ] {
            let mut samples = Vec::new();
            let label = format!("{changes} changes that {what}");
            step(&label, || {
                for _ in 0..changes {
                    samples.extend(self.scale(service, self.size.replicas + 1, hearers)?);
                    self.scale(service, self.size.replicas, hearers)?;
                }
                Ok(())
            })?;
            let name = format!("a change that {what}, from the request on, ms");
            let detail = json!({"samples": samples.len()});
            for (which, share) in [("p50", 0.5), ("p99", 0.99), ("last", 1.0)] {
                let value = quantile(&samples, share);
                report.add(
                    Figure::new(PART, format!("{name}: {which}"), value).detail(detail.clone()),
                );
            }
        }
        Ok(())
    }

    /// Milliseconds until each of so many agents heard of the service's scaling.
    fn scale(&self, id: &str, replicas: usize, hearers: usize) -> Result<Vec<f64>> {
        let mut service = self.api.get(&format!("/services/{id}"))?;
        let version = service["Version"]["Index"].as_u64().context("a version")?;
        service["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas.into();
        self.fleet.watch(id.parse::<ServiceId>()?);
        let begun = Instant::now();
        self.api.post(
            &format!("/services/{id}/update?version={version}"),
            &service["Spec"],
        )?;
        until("the agents to hear of a change", LOOK, || {
            Ok(self.fleet.heard().len() >= hearers)
        })?;
        let heard = self.fleet.heard();
        ensure!(heard.len() == hearers, "{} agents heard of it", heard.len());
        until("the tasks", RARE_LOOK, || {
            let there = self.size.tasks() - self.size.replicas + replicas;
            Ok(self.fleet.running() == there)
        })?;
        settle(&self.api, self.size.agents)?;
        let after = |at: &Instant| (*at - begun).as_secs_f64() * 1e3;
        Ok(heard.iter().map(after).collect())
    }

    fn weigh(&self, lab: &Lab, report: &mut Report) -> Result<()> {
        let node = lab.node(1);
        let pid = node.agent_pid().context("the daemon runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let lines: BTreeMap<_, _> = status.lines().filter_map(|l| l.split_once(':')).collect();
        for (field, name) in [
            ("VmRSS", "resident memory of the daemon, MiB"),
            ("VmHWM", "resident memory at most, MiB"),
        ] {
            let kib = lines.get(field).context("a size")?.trim();
            let kib: f64 = kib.trim_end_matches(" kB").parse()?;
            report.add(Figure::new(PART, name, kib / 1024.0));
        }
        let bytes = size_of_dir(&node.state_dir())?;
        report.add(Figure::new(
            PART,
            "its state directory, MiB",
            bytes as f64 / f64::from(1 << 20),
        ));
        Ok(())
    }

    fn restart(&self, lab: &mut Lab, report: &mut Report) -> Result<()> {
        let agents = self.size.agents;
        let before = self.tasks()?.all;
        lab.node_mut(1).kill()?;
        let killed = Instant::now();
        let took = |at: Instant| (at - killed).as_secs_f64();
        let (leads, sessions, settled) = step("the manager is killed and starts again", || {
            lab.node_mut(1).start()?;
            until("the manager to lead", LOOK, || {
                // Refused for as long as it does not.
                let nodes = self.api.get("/nodes").unwrap_or_default();
                let mut nodes = nodes.as_array().into_iter().flatten();
                Ok(nodes.any(|node| node["ManagerStatus"]["Leader"] == true))
            })?;
            let leads = Instant::now();
            until("all sessions", RARE_LOOK, || {
                Ok(self.fleet.welcomed_since(killed).len() == agents)
            })?;
            let sessions = self.fleet.welcomed_since(killed);
            settle(&self.api, agents)?;
            Ok((leads, sessions, Instant::now()))
        })?;
        let last = sessions.into_iter().max().context("a session")?;
        for (name, at) in [
            ("killed, until it leads again", leads),
            ("until all sessions are back", last),
            ("until nothing is behind", settled),
        ] {
            report.add(Figure::new(PART, format!("{name}, s"), took(at)));
        }
        let replaced = self.tasks()?.all - before;
        let figure = Figure::new(PART, "tasks that the crash had replaced", replaced as f64);
        report.add(figure.goal(Goal::AtMost(0.0)));
        Ok(())
    }

    fn tasks(&self) -> Result<Tasks> {
        let tasks = self.api.get("/tasks")?;
        let tasks = tasks.as_array().context("a list of tasks")?;
        let runs = |task: &&Value| {
            task["Status"]["State"] == "running" && task["DesiredState"] == "running"
        };
        Ok(Tasks {
            all: tasks.len(),
            running: tasks.iter().filter(runs).count(),
        })
    }
}

struct Tasks {
    all: usize,
    running: usize,
}

/// Waits until so many agents and the manager's own are READY, and have what there is.
fn settle(api: &Api, agents: usize) -> Result<()> {
    until("every node to follow", RARE_LOOK, || {
        let rows = api.get("/swarmnet/inspect/nodes")?;
        let rows = rows.as_array().context("a list of nodes")?;
        let follows = |row: &&Value| row["state"] == "ready" && row["applied"] == row["current"];
        Ok(rows.iter().filter(follows).count() == agents + 1)
    })
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).context("a text")
}

fn size_of_dir(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            size_of_dir(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}

fn until(what: &str, every: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !look()? {
        ensure!(
            begun.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        thread::sleep(every);
    }
    Ok(())
}
