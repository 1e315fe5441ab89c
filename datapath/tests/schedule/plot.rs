//! One schedule: from a seed to changes, who hears of them when, and what must hold after each.

use std::{net::SocketAddr, time::Duration};

use model::{
    NodeId,
    feed::{BackendState, Pin},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    common::cluster::at,
    traffic::{Connection, Traffic},
    world::{PORTS, World},
};

const MACHINES: u8 = 3;
const SLOTS: u8 = 18;
/// Backends that each service has at the beginning, at least, and at most. The larger one's ring has
/// several lengths in between.
const BEGINNING: [usize; 3] = [3, 24, 4];
const FEWEST: [usize; 3] = [1, 6, 1];
const MOST: [usize; 3] = [5, 40, 6];
/// For all connections to have an answer after a step; a packet sent in vain is sent again after 200,
/// 400, 800 milliseconds.
const PATIENCE: Duration = Duration::from_secs(8);

pub struct Plot {
    seed: u64,
    dice: StdRng,
    traffic: Traffic,
    world: World,
    connections: Vec<Connection>,
    /// Said and not heard by all yet: who said it, and to which machine.
    pins_on_their_way: Vec<(usize, NodeId, Vec<Pin>)>,
    pinned_most: usize,
    ended: usize,
}

impl Plot {
    pub fn new(seed: u64, connections: usize) -> Self {
        let traffic = Traffic::new();
        let world = World::new(MACHINES, SLOTS, &traffic);
        let mut plot = Self {
            seed,
            dice: StdRng::seed_from_u64(seed),
            traffic,
            world,
            connections: Vec::new(),
            pins_on_their_way: Vec::new(),
            pinned_most: 0,
            ended: 0,
        };
        for (service, count) in BEGINNING.into_iter().enumerate() {
            for nth in 0..count {
                let machine = nth % usize::from(MACHINES);
                plot.world.add(service, machine).expect("there is room");
            }
        }
        plot.all_apply();
        plot.connect(connections);
        plot
    }

    /// A few changes, each heard of by the nodes one after the other, or not yet.
    pub fn step(&mut self, step: usize) {
        for _ in 0..self.dice.random_range(1..=3) {
            self.change();
            self.some_apply();
        }
        self.check(step);
        if self.dice.random_bool(0.5) {
            self.all_apply();
            self.check(step);
            self.connect(60);
            // Flows that only their owner knew of are told before anything else happens.
            self.all_apply();
            self.fail_over(step);
        }
    }

    /// What clients send to one node comes in by another for a while, which never heard of them.
    fn fail_over(&mut self, step: usize) {
        let machines = usize::from(MACHINES);
        let failed = self.dice.random_range(0..machines);
        let other = (failed + self.dice.random_range(1..machines)) % machines;
        println!("node {} stands in for node {}", other + 1, failed + 1);
        self.world.enter_by(failed, other);
        self.check(step);
        self.world.enter_by(failed, failed);
    }

    pub fn summary(&self) -> String {
        let slowest = self.connections.iter().map(Connection::slowest).max();
        let drops: Vec<_> = self.world.machines.iter().map(|m| m.drops()).collect();
        format!(
            "{} connections live, {} ended with their tasks, at most {} pins, slowest answer {:?}, drops {drops:?}",
            self.connections.len(),
            self.ended,
            self.pinned_most,
            slowest.unwrap_or_default(),
        )
    }

    fn change(&mut self) {
        let service = self.dice.random_range(0..PORTS.len());
        let active = self.world.backends(service, BackendState::Active);
        let draining = self.world.backends(service, BackendState::Draining);
        match self.dice.random_range(0..10) {
            0..4 if active.len() < MOST[service] => self.grow(service),
            4..7 if active.len() > FEWEST[service] => {
                let id = self.pick(&active);
                self.world.drain(id);
            }
            // Moved: another one elsewhere, and this one drains.
            7 if active.len() > FEWEST[service] => {
                self.grow(service);
                let id = self.pick(&active);
                self.world.drain(id);
            }
            8 if !draining.is_empty() => {
                // Every node knows that it drains, as in real life, before it ends.
                self.all_apply();
                let id = self.pick(&draining);
                self.remove(id);
            }
            // Died.
            9 if active.len() > FEWEST[service] => {
                let id = self.pick(&active);
                self.remove(id);
            }
            _ => self.grow(service),
        }
    }

    fn grow(&mut self, service: usize) {
        let machine = self.dice.random_range(0..usize::from(MACHINES));
        // No room is no change.
        let _ = self.world.add(service, machine);
    }

    fn remove(&mut self, id: u32) {
        println!("endpoint {id} ends");
        let before = self.connections.len();
        self.connections.retain(|at| at.endpoint != id);
        self.ended += before - self.connections.len();
        self.world.remove(id);
    }

    fn pick(&mut self, from: &[u32]) -> u32 {
        let picked = from[self.dice.random_range(0..from.len())];
        println!("picked endpoint {picked}");
        picked
    }

    /// Nodes hear of the truth in some order, after a while; a few not this time, a few start anew
    /// before.
    fn some_apply(&mut self) {
        let mut order: Vec<usize> = (0..usize::from(MACHINES)).collect();
        order.shuffle(&mut self.dice);
        for machine in order {
            if self.dice.random_bool(0.25) {
                continue;
            }
            if self.dice.random_bool(0.15) {
                println!("node {} starts anew", machine + 1);
                self.world.machines[machine].open();
            }
            self.apply(machine);
            self.pause(30);
            if self.dice.random_bool(0.5) {
                self.deliver_some();
            }
        }
        self.deliver_some();
    }

    fn apply(&mut self, machine: usize) {
        let truth = &self.world.truth;
        self.world.machines[machine].apply(truth);
        self.tell(machine, false);
    }

    fn tell(&mut self, machine: usize, is_settled: bool) {
        let pins = self.world.machines[machine].displaced(is_settled);
        self.pinned_most = self.pinned_most.max(pins.len());
        let node = self.world.machines[machine].node;
        // A newer message replaces what is still under way.
        self.pins_on_their_way.retain(|(_, from, _)| *from != node);
        self.world.machines[machine].hear(node, pins.clone());
        for to in (0..usize::from(MACHINES)).filter(|to| *to != machine) {
            self.pins_on_their_way.push((to, node, pins.clone()));
        }
    }

    fn deliver_some(&mut self) {
        self.pins_on_their_way.shuffle(&mut self.dice);
        let stay = self.dice.random_range(0..=self.pins_on_their_way.len());
        for (to, node, pins) in self.pins_on_their_way.split_off(stay) {
            self.world.machines[to].hear(node, pins);
        }
    }

    fn deliver(&mut self) {
        for (to, node, pins) in std::mem::take(&mut self.pins_on_their_way) {
            self.world.machines[to].hear(node, pins);
        }
    }

    /// Every node is where the managers are, and knows that the others are.
    fn all_apply(&mut self) {
        for machine in 0..usize::from(MACHINES) {
            self.apply(machine);
        }
        self.deliver();
        for machine in 0..usize::from(MACHINES) {
            self.tell(machine, true);
        }
        self.deliver();
        for machine in &mut self.world.machines {
            machine.settle();
        }
    }

    /// Pins arrive at last, and every connection whose task lives is answered.
    fn check(&mut self, step: usize) {
        self.deliver();
        if let Err(broken) = self.traffic.probe(&self.connections, PATIENCE) {
            let client = broken.split(' ').next().unwrap_or_default();
            for machine in &self.world.machines {
                println!("node {}: {:#?}", machine.node, machine.knows(client));
            }
            panic!(
                "seed {}, step {step}: {broken}; SWARMNET_SEEDS={}..{} runs it again; {}",
                self.seed,
                self.seed,
                self.seed + 1,
                self.summary()
            );
        }
    }

    fn connect(&mut self, count: usize) {
        let entries: Vec<SocketAddr> = (0..count)
            .map(|nth| {
                let machine = nth % usize::from(MACHINES);
                at(
                    self.world.machines[machine].addr,
                    PORTS[nth / 3 % PORTS.len()],
                )
            })
            .collect();
        let new = self.traffic.connect(&self.world.client, &entries);
        self.connections.extend(new);
    }

    fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.random_range(0..most_ms)));
    }
}
