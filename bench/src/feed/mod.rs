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
    wait::Wait,
    way::cluster,
};

const PART: &str = "feed of one manager";
/// What is seen without the manager.
const WAIT: Wait = Wait {
    most: Duration::from_secs(600),
    look: Duration::from_millis(2),
};
/// By looks that cost the manager something.
const WAIT_LOOKING: Wait = Wait {
    look: Duration::from_millis(100),
    ..WAIT
};
const PORT: u16 = 8080;
/// What `getconf CLK_TCK` says on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

struct Size {
    agents: usize,
    networks: usize,
    services: usize,
    replicas: usize,
    /// Changes of each kind.
    changes: usize,
    /// Without a change.
    idle: Duration,
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
                idle: Duration::from_secs(10),
            }
        } else {
            Self {
                agents: 1000,
                networks: 200,
                services: 1000,
                replicas: 10,
                changes: 20,
                idle: Duration::from_secs(30),
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
    world.idle(&lab, report)?;
    world.change(&lab, &services, report)?;
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
            WAIT_LOOKING.until("tasks to run", || Ok(self.fleet.running() >= tasks))?;
            WAIT_LOOKING.until(
                "the managers to know",
                || Ok(self.tasks()?.running == tasks),
            )?;
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

    /// Heartbeats alone.
    fn idle(&self, lab: &Lab, report: &mut Report) -> Result<()> {
        let idle = self.size.idle;
        let processor = step(&format!("nothing happens for {idle:?}"), || {
            let before = processor(lab)?;
            thread::sleep(idle);
            Ok(processor(lab)? - before)
        })?;
        let share = processor / idle.as_secs_f64() * 100.0;
        report.add(Figure::new(PART, "idle, percent of one processor", share));
        Ok(())
    }

    fn change(&self, lab: &Lab, services: &Services, report: &mut Report) -> Result<()> {
        let Size {
            agents, changes, ..
        } = self.size;
        for (service, hearers, what) in [
            (&services.front, agents, "all agents hear of"),
            (&services.alone, 1, "one agent hears of"),
        ] {
            let (mut samples, mut took) = (Vec::new(), Vec::new());
            let label = format!("{changes} changes that {what}");
            step(&label, || {
                for _ in 0..changes {
                    let scaled = self.scale(lab, service, self.size.replicas + 1, hearers)?;
                    samples.extend(scaled.heard);
                    took.push(scaled.processor * 1e3);
                    self.scale(lab, service, self.size.replicas, hearers)?;
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
            let mean = took.iter().sum::<f64>() / took.len() as f64;
            let name = format!("a change that {what}, of the daemon's processor time, ms: mean");
            report.add(Figure::new(PART, name, mean).detail(json!({"samples": took})));
        }
        Ok(())
    }

    /// Has so many agents hear of the service's scaling.
    fn scale(&self, lab: &Lab, id: &str, replicas: usize, hearers: usize) -> Result<Scaled> {
        let mut service = self.api.get(&format!("/services/{id}"))?;
        let version = service["Version"]["Index"].as_u64().context("a version")?;
        service["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas.into();
        self.fleet.watch(id.parse::<ServiceId>()?);
        let (begun, before) = (Instant::now(), processor(lab)?);
        self.api.post(
            &format!("/services/{id}/update?version={version}"),
            &service["Spec"],
        )?;
        WAIT.until("the agents to hear of a change", || {
            Ok(self.fleet.heard().len() >= hearers)
        })?;
        let processor = processor(lab)? - before;
        let heard = self.fleet.heard();
        ensure!(heard.len() == hearers, "{} agents heard of it", heard.len());
        WAIT_LOOKING.until("the tasks", || {
            let there = self.size.tasks() - self.size.replicas + replicas;
            Ok(self.fleet.running() == there)
        })?;
        settle(&self.api, self.size.agents)?;
        let after = |at: &Instant| (*at - begun).as_secs_f64() * 1e3;
        Ok(Scaled {
            heard: heard.iter().map(after).collect(),
            processor,
        })
    }

    fn weigh(&self, lab: &Lab, report: &mut Report) -> Result<()> {
        let status = of_daemon(lab, "status")?;
        let lines: BTreeMap<_, _> = status.lines().filter_map(|l| l.split_once(':')).collect();
        for (field, name) in [
            ("VmRSS", "resident memory of the daemon, MiB"),
            ("VmHWM", "resident memory at most, MiB"),
        ] {
            let kib = lines.get(field).context("a size")?.trim();
            let kib: f64 = kib.trim_end_matches(" kB").parse()?;
            report.add(Figure::new(PART, name, kib / 1024.0));
        }
        let bytes = size_of_dir(&lab.node(1).state_dir())?;
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
            WAIT.until("the manager to lead", || {
                // Refused for as long as it does not.
                let nodes = self.api.get("/nodes").unwrap_or_default();
                let mut nodes = nodes.as_array().into_iter().flatten();
                Ok(nodes.any(|node| node["ManagerStatus"]["Leader"] == true))
            })?;
            let leads = Instant::now();
            WAIT_LOOKING.until("all sessions", || {
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

struct Scaled {
    /// Milliseconds from the request on, of each agent.
    heard: Vec<f64>,
    /// Seconds of the daemon's, from the request until the last had heard.
    processor: f64,
}

struct Tasks {
    all: usize,
    running: usize,
}

/// Waits until so many agents and the manager's own are READY, and have what there is.
fn settle(api: &Api, agents: usize) -> Result<()> {
    WAIT_LOOKING.until("every node to follow", || {
        let rows = api.get("/swarmnet/inspect/nodes")?;
        let rows = rows.as_array().context("a list of nodes")?;
        let follows = |row: &&Value| row["state"] == "ready" && row["applied"] == row["current"];
        Ok(rows.iter().filter(follows).count() == agents + 1)
    })
}

/// A file that the kernel has of the manager's daemon.
fn of_daemon(lab: &Lab, name: &str) -> Result<String> {
    let pid = lab.node(1).agent_pid().context("the daemon runs")?;
    Ok(fs::read_to_string(format!("/proc/{pid}/{name}"))?)
}

/// Seconds that the manager's daemon has had (proc_pid_stat(5): utime and stime).
fn processor(lab: &Lab) -> Result<f64> {
    let stat = of_daemon(lab, "stat")?;
    // The name before may have blanks.
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: Vec<u64> = times.map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 2, "no times in {stat}");
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
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
