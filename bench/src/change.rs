//! From the desired state to all maps, by the agent's own data plane on the kernel's own maps; and
//! what the maps cost.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use datapath::{Datapath, DatapathConfig, UplinkMode};
use dataplane_abi::{BackendValue, LAYOUT_VERSION, RingChunk, RingForm, RingSlot, ServiceValue};
use lab::progress::step;
use model::{
    ServiceId,
    feed::{BackendState, NodeView, PublishedPort, ViewObject},
    spec::Protocol,
};
use serde_json::json;

use crate::{
    Parts,
    programs::world::{backend, cgroup, cluster, local, service},
    report::{Figure, Goal, Report, median},
};

const CHANGE: &str = "change: desired state to all maps, ms";
const WAITS: &str = "change: waits for RCU, of one transaction";
const MEMORY: &str = "memory";
const PINS: &str = "/sys/fs/bpf/snbench-change";
const NODES: u32 = 100;

/// Services, ports of each, backends of each.
struct Size {
    services: u32,
    ports: u32,
    backends: u32,
}

/// # Errors
/// When a sync fails, or leaves something to do.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let rounds = if parts.quick { 3 } else { 10 };
    let many = if parts.quick { 1 } else { 3 };
    let cases = [
        (
            "1 service x 1000 backends",
            Size {
                services: 1,
                ports: 1,
                backends: 1_000,
            },
            rounds,
            5.0,
        ),
        (
            "400 ports x 4 replicas",
            Size {
                services: 400,
                ports: 1,
                backends: 4,
            },
            rounds,
            50.0,
        ),
        (
            "10000 services x 10 backends",
            Size {
                services: 10_000,
                ports: 1,
                backends: 10,
            },
            many,
            2e3,
        ),
    ];
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            for (name, size, rounds, goal) in cases {
                step(&format!("change: {name}, {rounds} rounds"), || {
                    let mut took = Vec::new();
                    for round in 0..rounds {
                        let is_last = round + 1 == rounds;
                        took.push(from_empty(name, &size, is_last, report)?);
                    }
                    let figure = Figure::new(CHANGE, format!("{name}, from empty"), median(&took));
                    report.add(
                        figure
                            .goal(Goal::AtMost(goal))
                            .detail(json!({"samples": took})),
                    );
                    Ok(())
                })?;
            }
            per_service(report);
            Ok(())
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Milliseconds of the sync that fills empty tables; after the last one, what one task's change
/// costs among them, and their memory.
fn from_empty(name: &str, size: &Size, is_last: bool, report: &mut Report) -> Result<f64> {
    let pins = Path::new(PINS);
    // What a run before left when it was killed.
    let _ = fs::remove_dir_all(pins);
    let mut datapath = Datapath::open(&DatapathConfig {
        pin_dir: pins.to_owned(),
        cgroup: cgroup()?,
        uplink_mode: UplinkMode::Tc,
        ingress: None,
    })?;
    let mut view = cluster(NODES + 1);
    let node = local(1);
    datapath.sync(&view, &node)?;
    populate(&mut view, size);
    let report_of = datapath.sync(&view, &node)?;
    let took = report_of.duration.as_secs_f64() * 1e3;
    anyhow::ensure!(
        report_of.skipped.is_empty(),
        "left out: {}",
        report_of.skipped[0]
    );
    anyhow::ensure!(
        datapath.repair(&view, &node)?.0.is_unchanged(),
        "{name}: not all was done"
    );
    if is_last {
        add_waits(report, &format!("{name}, from empty"), report_of.rcu_waits);
    }
    if is_last && size.services > 1_000 {
        one_task(&mut datapath, &mut view, report)?;
        maps(report)?;
    }
    datapath.detach_all()?;
    Ok(took)
}

fn populate(view: &mut NodeView, size: &Size) {
    const FIRST_PORT: u32 = 10_000;
    let mut endpoint = 1;
    for number in 0..size.services {
        let id = ServiceId::from_raw(u128::from(number) + 1);
        let ports: Vec<_> = (0..size.ports)
            .map(|port| PublishedPort {
                protocol: Protocol::Tcp,
                published: (FIRST_PORT + number * size.ports + port) as u16,
                target: 80,
                addresses: Vec::new(),
            })
            .collect();
        view.put(ViewObject::Service(service(id, ports)));
        for nth in 0..size.backends {
            view.put(ViewObject::Endpoint(backend(id, endpoint, 2 + nth % NODES)));
            endpoint += 1;
        }
    }
}

/// A task drains, and serves again.
fn one_task(datapath: &mut Datapath, view: &mut NodeView, report: &mut Report) -> Result<()> {
    let node = local(1);
    let mut took = Vec::new();
    let mut waits = 0;
    for state in [BackendState::Draining, BackendState::Active].repeat(5) {
        let mut one = view
            .endpoints
            .values()
            .next()
            .context("an endpoint")?
            .clone();
        one.state = state;
        view.put(ViewObject::Endpoint(one));
        let synced = datapath.sync(view, &node)?;
        anyhow::ensure!(synced.services_written > 0, "the change was not seen");
        took.push(synced.duration.as_secs_f64() * 1e3);
        waits = waits.max(synced.rcu_waits);
    }
    let figure = Figure::new(CHANGE, "one task among 10000 services", median(&took));
    report.add(
        figure
            .goal(Goal::AtMost(5.0))
            .detail(json!({"samples": took})),
    );
    add_waits(report, "one task among 10000 services", waits);
    compare(datapath, report)
}

/// The look at all maps goes on beside changes; they wait while it begins, and while what it saw is
/// held against the record.
fn compare(datapath: &mut Datapath, report: &mut Report) -> Result<()> {
    let millis = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let look = datapath.look().context("nothing is recorded")?;
    let begins = millis(begun);
    let sight = look.take()?;
    let seen = Instant::now();
    anyhow::ensure!(
        !datapath.is_altered(&sight),
        "the comparison found something"
    );
    let waits = begins + millis(seen);
    report.add(
        Figure::new(CHANGE, "comparing all maps then", millis(begun))
            .note("once in five seconds, beside the changes"),
    );
    report.add(Figure::new(CHANGE, "of which changes wait", waits));
    Ok(())
}

fn add_waits(report: &mut Report, name: &str, waits: usize) {
    let figure = Figure::new(WAITS, name, waits as f64);
    report.add(
        figure
            .goal(Goal::AtMost(1.0))
            .note("counted by the writer; the most of one transaction"),
    );
}

/// The kernel's own numbers (`memlock` of each map), with 10 000 services of 10 backends.
fn maps(report: &mut Report) -> Result<()> {
    let dir = Path::new(PINS)
        .join(format!("v{LAYOUT_VERSION}"))
        .join("maps");
    let mut sizes = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let map = MapData::from_pin(&path)?;
        let fd = map.fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
        let bytes = info
            .lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        sizes.push((name, bytes.unwrap_or(0u64)));
    }
    sizes.sort();
    let of_services = [
        "RINGS",
        "BACKENDS",
        "FRONTENDS",
        "VIPS",
        "PORTS",
        "ADDRESSED",
    ];
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let services: u64 = sizes
        .iter()
        .filter(|(name, _)| of_services.contains(&name.as_str()))
        .map(|(_, bytes)| bytes)
        .sum();
    let all: u64 = sizes.iter().map(|(_, bytes)| bytes).sum();
    let detail = json!({"memlock_bytes": sizes.iter().cloned().collect::<std::collections::BTreeMap<_, _>>()});
    report.add(
        Figure::new(
            MEMORY,
            "10000 services x 10 backends, their maps, MiB",
            mib(services),
        )
        .goal(Goal::AtMost(64.0))
        .note("the kernel's memlock; arrays are allocated whole")
        .detail(detail),
    );
    report.add(Figure::new(MEMORY, "all maps of a node then, MiB", mib(all)).note("memlock"));
    Ok(())
}

/// What one service takes of the maps, by the sizes of what it holds there.
fn per_service(report: &mut Report) {
    // The last has a ring of the wide form, and the longest.
    for (backends, goal) in [(1, 4.0), (160, 40.0), (1_000, 256.0 + 40.0)] {
        add_service(report, backends, goal);
    }
    let flow = Figure::new(MEMORY, "a flow at the entry node, bytes", 0.0);
    report.add(
        flow.goal(Goal::AtMost(0.0))
            .note("by construction: the program writes no table"),
    );
}

fn add_service(report: &mut Report, backends: u32, goal: f64) {
    let ring = ::datapath::maglev::ring_len(backends as usize);
    let last = RingSlot {
        now: (backends - 1) as u16,
        before: 0,
    };
    let chunks = match ring {
        1 => 0,
        slots => RingForm::of(&[last.to_raw()]).chunks(slots),
    };
    let bytes = size_of::<ServiceValue>()
        + backends as usize * size_of::<BackendValue>()
        + chunks as usize * size_of::<RingChunk>();
    let name = format!("a service with {backends} backends, ring {ring}, KiB");
    let figure = Figure::new(MEMORY, name, bytes as f64 / 1024.0);
    report.add(
        figure
            .goal(Goal::AtMost(goal))
            .note("computed from the sizes of its entries"),
    );
}
