//! Histories by seed: whatever happens, once it stops happening the cluster is as it was wanted.

use std::{collections::BTreeSet, time::Duration};

use model::{
    NetworkId, ServiceId, TaskState,
    object::UpdateState,
    spec::{Availability, FailureAction, RestartPolicy, ServiceMode, UpdateConfig, UpdateOrder},
};
use rand::RngExt;

use crate::{fixture, ops, sim::Sim, sim_agents::Agents};

/// What networks are called that no service uses.
const SPARE: &str = "spare";

/// More with `SWARMNET_SIM_SEEDS`.
const SEEDS: u64 = 15;

/// They cost less there.
const SEEDS_WITH_AGENTS: u64 = 100;

fn seeds() -> std::ops::Range<u64> {
    seeds_or(SEEDS)
}

fn seeds_or(few: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("SWARMNET_SIM_SEEDS").ok();
    0..wanted.map_or(few, |seeds| seeds.parse().expect("a number of seeds"))
}

fn network(sim: &mut Sim, name: &str) -> NetworkId {
    network_in(sim, name, None)
}

fn network_in(sim: &mut Sim, name: &str, subnet: Option<&str>) -> NetworkId {
    let spec = model::spec::NetworkSpec {
        name: name.to_owned(),
        subnet: subnet.map(|subnet| subnet.parse().expect("a subnet")),
        ..Default::default()
    };
    sim.world
        .try_write(|tx| ops::network::create(tx, spec))
        .unwrap()
}

fn quick_restarts() -> Option<RestartPolicy> {
    Some(RestartPolicy {
        delay: Some(Duration::from_millis(300)),
        ..RestartPolicy::default()
    })
}

/// One random event in the life of a cluster.
fn disturb(sim: &mut Sim, services: &[ServiceId]) {
    let nodes = sim.nodes();
    let node = nodes[sim.rng.random_range(0..nodes.len())];
    match sim.rng.random_range(0..12) {
        0 => sim.set_down(node, true),
        1 => sim.set_down(node, false),
        2 => sim.restart_manager(),
        _ => wish(sim, services),
    }
}

/// One random event in what users want of it.
fn wish(sim: &mut Sim, services: &[ServiceId]) {
    let nodes = sim.nodes();
    let node = nodes[sim.rng.random_range(0..nodes.len())];
    let service = services[sim.rng.random_range(0..services.len())];
    match sim.rng.random_range(2..11) {
        2 => sim.set_availability(node, Availability::Drain),
        3 => sim.set_availability(node, Availability::Active),
        4 => sim.set_availability(node, Availability::Pause),
        5 => {
            let replicas = sim.rng.random_range(0..12);
            sim.update(service, |spec| {
                if let ServiceMode::Replicated { replicas: wanted } = &mut spec.mode {
                    *wanted = replicas;
                }
            });
        }
        6 => {
            let word = format!("v{}", sim.rng.random_range(0..4));
            sim.update(service, |spec| spec.task.container.args = vec![word]);
        }
        7 => {
            sim.world.add_nodes(1);
        }
        8 if nodes.len() > 3 => {
            let removed = sim.world.try_write(|tx| ops::node::remove(tx, node, true));
            removed.unwrap();
        }
        9 => {
            let broken = format!("v{}", sim.rng.random_range(0..8));
            sim.broken = Some(broken);
        }
        _ => {
            let order = [UpdateOrder::StopFirst, UpdateOrder::StartFirst];
            let action = [FailureAction::Continue, FailureAction::Rollback];
            let update = UpdateConfig {
                parallelism: sim.rng.random_range(0..3),
                order: order[sim.rng.random_range(0..2)],
                failure_action: action[sim.rng.random_range(0..2)],
                ..UpdateConfig::default()
            };
            sim.update(service, |spec| spec.update = Some(update));
        }
    }
}

/// How many tasks the service is to have.
fn replicas(sim: &Sim, id: ServiceId) -> usize {
    match sim.service(id).spec.mode {
        ServiceMode::Replicated { replicas } => replicas as usize,
        ServiceMode::Global => sim.nodes().len(),
    }
}

fn is_at_rest(sim: &Sim, id: ServiceId) -> bool {
    let service = sim.service(id);
    let status = service.update_status.as_ref().map(|status| status.state);
    let wanted = sim.wanted(id).len();
    !matches!(
        status,
        Some(UpdateState::Updating | UpdateState::RollbackStarted)
    ) && wanted == replicas(sim, id)
        && sim.running(id).len() == wanted
        && sim
            .tasks(id)
            .iter()
            .all(|task| task.desired <= TaskState::Running || task.status.state.is_terminal())
}

fn runs_newest(sim: &Sim, id: ServiceId) -> bool {
    let newest = sim.service(id).spec_version;
    let mut running = sim.running(id).into_iter();
    running.all(|task| task.spec_version == newest)
}

/// As many tasks run as are wanted, each in its slot, all of the newest spec, on willing nodes.
fn assert_converged(sim: &mut Sim, id: ServiceId, seed: u64) {
    let service = sim.service(id);
    let running = sim.running(id);
    let places: BTreeSet<_> = running
        .iter()
        .map(|task| (task.slot, task.node.filter(|_| task.slot.is_none())))
        .collect();
    let replicas = replicas(sim, id);
    assert_eq!(places.len(), replicas, "seed {seed}: {places:?}");
    assert_eq!(running.len(), replicas, "seed {seed}");
    assert_eq!(sim.wanted(id).len(), replicas, "seed {seed}");
    for task in running {
        assert_eq!(task.spec, service.spec.task, "seed {seed}");
        assert_eq!(task.spec_version, service.spec_version, "seed {seed}");
        let node = sim.world.state.node(task.node.unwrap()).unwrap();
        assert_ne!(node.spec.availability, Availability::Drain, "seed {seed}");
    }
}

fn services(sim: &mut Sim, [a, b]: [NetworkId; 2]) -> Vec<ServiceId> {
    let replicated = ServiceMode::Replicated { replicas: 4 };
    let wanted = [
        ("web", replicated, vec![a]),
        ("db", replicated, vec![a, b]),
        ("agent", ServiceMode::Global, vec![b]),
    ];
    let created = wanted.into_iter().map(|(name, mode, networks)| {
        let mut spec = fixture::service(name, 4, &networks);
        spec.mode = mode;
        spec.task.restart = quick_restarts();
        spec.endpoint.ports = vec![fixture::port(None, 80), fixture::port(None, 81)];
        sim.create(spec)
    });
    created.collect()
}

fn stop_disturbing(sim: &mut Sim, services: &[ServiceId]) {
    sim.broken = None;
    for service in services {
        // What was paused goes on.
        sim.update(*service, |_| {});
    }
    for node in sim.nodes() {
        sim.set_availability(node, Availability::Active);
    }
}

#[test]
fn random_histories_end_as_wanted() {
    for seed in seeds() {
        let mut sim = Sim::new(seed, 5);
        let networks = [network(&mut sim, "a"), network(&mut sim, "b")];
        let services = services(&mut sim, networks);
        sim.failure = 0.02;
        for _ in 0..60 {
            disturb(&mut sim, &services);
            let pause = sim.rng.random_range(0..3000);
            sim.run_for(Duration::from_millis(pause));
        }
        sim.failure = 0.0;
        stop_disturbing(&mut sim, &services);
        for node in sim.nodes() {
            sim.set_down(node, false);
        }
        let healed = sim.run_until(Duration::from_secs(240), |sim| {
            services.iter().all(|service| is_at_rest(sim, *service))
        });
        assert!(healed, "seed {seed}");
        for service in &services {
            assert_converged(&mut sim, *service, seed);
        }
        sim.assert_quiet();

        for service in services {
            let removed = sim.world.try_write(|tx| ops::service::remove(tx, service));
            removed.unwrap();
        }
        sim.run_for(Duration::from_secs(30));
        assert_eq!(sim.world.state.task_count(), 0, "seed {seed}");
        for network in networks {
            let removed = sim.world.try_write(|tx| ops::network::remove(tx, network));
            removed.unwrap();
        }
    }
}

/// A cluster whose agents act on their views, cut off and connected anew.
struct Connected {
    sim: Sim,
    agents: Agents,
    /// A service whose ports change.
    front: ServiceId,
}

impl Connected {
    fn step(&mut self) {
        let round = Duration::from_millis(self.sim.rng.random_range(20..200));
        self.sim.world.now += round;
        self.agents.join(&mut self.sim);
        let now = self.sim.world.clock();
        self.agents.step(&mut self.sim, now);
        self.sim.settle();
    }

    fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.sim.world.now + time;
        self.step();
        while self.sim.world.now < end && !done(self) {
            self.step();
        }
        done(self)
    }

    fn disturb(&mut self, services: &[ServiceId]) {
        let nodes = self.sim.nodes();
        let node = nodes[self.sim.rng.random_range(0..nodes.len())];
        let now = self.sim.world.clock();
        let Self { sim, agents, .. } = self;
        match sim.rng.random_range(0..12) {
            0..2 => agents.cut(node, now),
            2..4 => agents.connect(sim, node),
            4 => agents.reboot(sim, node),
            5 => agents.change_leader(sim, now),
            6 => change_networks(sim),
            7 => {
                let target = sim.rng.random_range(81..90);
                let ports = vec![fixture::port(None, 80), fixture::port(None, target)];
                sim.update(self.front, |spec| spec.endpoint.ports = ports);
            }
            _ => wish(sim, services),
        }
    }
}

/// One more network, or one less.
fn change_networks(sim: &mut Sim) {
    let networks = sim.world.state.networks();
    let mut spare = networks.filter(|network| network.spec.name.starts_with(SPARE));
    let last = spare.next().map(|network| network.id);
    drop(spare);
    match last.filter(|_| sim.rng.random()) {
        Some(id) => {
            let removed = sim.world.try_write(|tx| ops::network::remove(tx, id));
            removed.expect("nobody uses it");
        }
        None => {
            let name = format!("{SPARE}{}", sim.world.state.version());
            network(sim, &name);
        }
    }
}

/// Whatever becomes of links, nodes and leaders: what [`Agents`] names holds at any time, and when all
/// are connected again, each agent has what the managers have for it, and runs what they want.
#[test]
fn agents_run_nothing_twice_and_come_to_what_the_managers_have() {
    for seed in seeds_or(SEEDS_WITH_AGENTS) {
        let mut sim = Sim::new(seed, 5);
        // So small that addresses are handed out again.
        let small = [("a", "10.9.0.0/27"), ("b", "10.9.1.0/27")];
        let networks = small.map(|(name, subnet)| network_in(&mut sim, name, Some(subnet)));
        let services = services(&mut sim, networks);
        let front = sim.create(fixture::service("front", 1, &networks));
        let mut cluster = Connected {
            sim,
            agents: Agents::default(),
            front,
        };
        for _ in 0..60 {
            cluster.disturb(&services);
            let pause = Duration::from_millis(cluster.sim.rng.random_range(0..3000));
            cluster.run_until(pause, |_| false);
        }
        cluster.agents.connect_all(&mut cluster.sim);
        // For what failed while nobody heard of it: an update may be paused for that.
        cluster.run_until(Duration::from_secs(30), |_| false);
        for service in &services[..2] {
            // As many as there are addresses for.
            cluster.sim.scale(*service, 4);
        }
        stop_disturbing(&mut cluster.sim, &services);
        let healed = cluster.run_until(Duration::from_secs(240), |cluster| {
            let is_done = |service: &ServiceId| {
                is_at_rest(&cluster.sim, *service) && runs_newest(&cluster.sim, *service)
            };
            services.iter().all(is_done) && cluster.agents.have_converged(&cluster.sim.world.state)
        });
        assert!(healed, "seed {seed}");
        for service in services {
            assert_converged(&mut cluster.sim, service, seed);
        }
    }
}

/// The lowest number of serving tasks seen while an update goes through, without failures.
fn lowest_while_updating(seed: u64, update: UpdateConfig) -> usize {
    let mut sim = Sim::new(seed, 4);
    let net = network(&mut sim, "net");
    let mut spec = fixture::service("web", 6, &[net]);
    spec.update = Some(update);
    let id = sim.create(spec);
    assert!(sim.run_until(Duration::from_secs(30), |sim| sim.running(id).len() == 6));
    sim.update(id, |spec| spec.task.container.args = vec!["new".into()]);
    let mut lowest = usize::MAX;
    let completed = sim.run_until(Duration::from_secs(600), |sim| {
        lowest = lowest.min(sim.running(id).len());
        let status = sim.service(id).update_status.clone();
        status.is_some_and(|status| status.state == UpdateState::Completed)
    });
    assert!(completed, "seed {seed}");
    assert_converged(&mut sim, id, seed);
    lowest
}

#[test]
fn start_first_never_serves_with_less() {
    for seed in seeds() {
        let update = UpdateConfig {
            parallelism: seed % 4,
            order: UpdateOrder::StartFirst,
            ..UpdateConfig::default()
        };
        assert_eq!(lowest_while_updating(seed, update), 6, "seed {seed}");
    }
}

#[test]
fn stop_first_takes_away_no_more_than_its_parallelism() {
    for seed in seeds() {
        let parallelism = 1 + seed % 3;
        let update = UpdateConfig {
            parallelism,
            ..UpdateConfig::default()
        };
        let lowest = lowest_while_updating(seed, update) as u64;
        assert!(lowest >= 6 - parallelism, "seed {seed}: {lowest}");
    }
}
