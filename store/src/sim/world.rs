//! The hosts, and what goes wrong with them.

use std::sync::{Arc, LazyLock};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use vault::DataKey;

use super::{
    Shared,
    invariants::Invariants,
    net::{Link, Net, Port, addr},
};
use crate::{
    Start, Store, StoreConfig, disk::failing::Failing, raft::Member, store::simulated::Simulated,
};

/// Entries kept behind a snapshot: few, so that who was away for a while has to take the snapshot.
const LOG_KEPT: u64 = 5;
/// Operations on a disk until its power fails, once it is to fail: some commits.
const LAST_OPERATIONS: std::ops::Range<u64> = 0..60;

/// Chance that a client asks one that takes itself for the leader: there may be more than one.
const TO_LEADER: f64 = 0.5;

/// Chance that a host takes a snapshot before something goes wrong.
const SNAPSHOT: f64 = 0.5;

struct Host {
    disk: Failing,
    /// `None` while it is down.
    store: Option<Store>,
}

pub(super) struct World {
    pub(super) random: StdRng,
    net: Net,
    hosts: Vec<Host>,
    pub(super) invariants: Invariants,
}

impl World {
    /// A group of three or five.
    pub(super) async fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let size = if random.random() { 3 } else { 5 };
        let net = Net::new(StdRng::from_rng(&mut random));
        let mut world = Self {
            random,
            net,
            hosts: Vec::new(),
            invariants: Invariants::default(),
        };
        for number in 1..=size {
            let disk = Failing::with(Vec::new(), u64::MAX);
            let start = match number {
                1 => Start::Found,
                _ => Start::Join,
            };
            let simulated = world.simulated(&disk);
            let opened = open(&world.net, number, start, simulated).await;
            world.hosts.push(Host { disk, store: None });
            world.came_up(number, opened);
        }
        let mut stores = world.up().into_iter();
        let first = stores.next().expect("there is one");
        for (other, number) in stores.zip(2..) {
            let member = Member { addr: addr(number) };
            let added = first.add_member(other.id(), member).await;
            added.expect("nothing is in the way yet");
        }
        world
    }

    fn simulated(&mut self, disk: &Failing) -> Simulated {
        // One for all disks: what is sealed is not what is tried here.
        static KEY: LazyLock<DataKey> = LazyLock::new(DataKey::generate);
        Simulated {
            disk: disk.clone(),
            key: KEY.clone(),
            random: StdRng::from_rng(&mut self.random),
            log_kept: LOG_KEPT,
        }
    }

    fn came_up(&mut self, number: u8, store: Store) {
        self.invariants.began(&store);
        let host = self.host(number);
        host.store = Some(store.clone());
        let disk = host.disk.clone();
        self.net.plug(number, store, disk);
    }

    fn host(&mut self, number: u8) -> &mut Host {
        &mut self.hosts[usize::from(number) - 1]
    }

    /// Of the hosts that are up, in order.
    pub(super) fn up(&self) -> Vec<Store> {
        self.hosts.iter().filter_map(|h| h.store.clone()).collect()
    }

    /// Of a host that takes itself for the leader, or of any, unless it is down.
    pub(super) fn asked(&mut self) -> Option<Store> {
        let mut leaders = self.up();
        leaders.retain(|store| store.standing().borrow().leads());
        if self.random.random_bool(TO_LEADER) {
            return leaders.choose(&mut self.random).cloned();
        }
        self.any_store()
    }

    fn any_store(&mut self) -> Option<Store> {
        let number = self.any();
        self.host(number).store.clone()
    }

    fn any(&mut self) -> u8 {
        self.random.random_range(1..=self.size())
    }

    fn size(&self) -> u8 {
        u8::try_from(self.hosts.len()).expect("a few")
    }

    /// Looks at the invariants, and takes those down whose power has failed.
    pub(super) fn step(&mut self) {
        self.invariants.check(&self.up());
        for host in &mut self.hosts {
            if host.disk.has_failed()
                && let Some(store) = host.store.take()
            {
                tokio::spawn(async move { store.shutdown().await });
            }
        }
    }

    /// When the group has healed.
    pub(super) fn check_at_end(&mut self) {
        self.step();
        self.invariants.check_acknowledged(&self.up());
    }

    /// What the power's failure left of a host's disk.
    fn found_later(&mut self, number: u8) -> Failing {
        let kept = *[0.0, 0.5, 1.0].choose(&mut self.random).expect("three");
        let disk = self.host(number).disk.clone();
        let image = disk.after_failure(&mut self.random, kept);
        let disk = Failing::with(image, u64::MAX);
        self.host(number).disk = disk.clone();
        disk
    }

    /// Two parts that hear nothing of each other.
    fn split(&mut self) {
        let hosts = 1..=self.size();
        let sides: Vec<bool> = hosts.clone().map(|_| self.random.random()).collect();
        let side = |host: u8| sides[usize::from(host) - 1];
        for from in hosts.clone() {
            for to in hosts.clone().filter(|to| side(*to) != side(from)) {
                self.net.set(from, to, Link::CUT);
            }
        }
    }

    /// Those who lead hear nothing of the others, nor these of them; all others hear each other.
    fn isolate_leader(&mut self) {
        self.net.heal();
        for leader in 1..=self.size() {
            let store = self.host(leader).store.as_ref();
            if store.is_some_and(|store| store.standing().borrow().leads()) {
                for other in (1..=self.size()).filter(|other| *other != leader) {
                    self.net.set(leader, other, Link::CUT);
                    self.net.set(other, leader, Link::CUT);
                }
            }
        }
    }

    fn spoil(&mut self, link: Link) {
        let (from, to) = (self.any(), self.any());
        self.net.set(from, to, link);
    }

    fn fail_power(&mut self, after: u64) {
        let number = self.any();
        self.host(number).disk.fail_after(after);
    }
}

async fn open(net: &Net, number: u8, start: Start, simulated: Simulated) -> Store {
    let config = StoreConfig {
        addr: addr(number),
        start,
        transport: Arc::new(Port {
            net: net.clone(),
            host: number,
            disk: simulated.disk.clone(),
        }),
        unlock: None,
    };
    let opened = simulated.open(config).await;
    opened.expect("what was synced can be read")
}

/// One thing goes wrong, or right again.
pub(super) async fn meddle(world: &Shared<World>) {
    let what = world.borrow_mut().random.random_range(0..100);
    snapshot(world).await;
    match what {
        0..20 => world.borrow().net.heal(),
        20..30 => world.borrow_mut().split(),
        30..37 => world.borrow_mut().spoil(Link::CUT),
        37..45 => world.borrow_mut().spoil(Link::BAD),
        45..52 => world.borrow_mut().fail_power(0),
        52..65 => {
            let after = world.borrow_mut().random.random_range(LAST_OPERATIONS);
            world.borrow_mut().fail_power(after);
        }
        65..77 => world.borrow_mut().isolate_leader(),
        _ => {
            let number = world.borrow_mut().any();
            start(world, number).await;
        }
    }
}

/// Some host takes one, or not.
async fn snapshot(world: &Shared<World>) {
    let store = {
        let mut world = world.borrow_mut();
        let takes = world.random.random_bool(SNAPSHOT);
        takes.then(|| world.any_store()).flatten()
    };
    if let Some(store) = store {
        // One whose power has failed takes none.
        let _ = store.snapshot().await;
    }
}

/// Takes all faults away, and starts who is down.
pub(super) async fn repair(world: &Shared<World>) {
    world.borrow().net.heal();
    let hosts = 1..=world.borrow().size();
    for number in hosts.clone() {
        world.borrow_mut().host(number).disk.endure();
    }
    world.borrow_mut().step();
    for number in hosts {
        start(world, number).await;
    }
}

/// Starts a host that is down, with what its disk kept.
async fn start(world: &Shared<World>, number: u8) {
    let (net, simulated) = {
        let mut world = world.borrow_mut();
        if world.host(number).store.is_some() {
            return;
        }
        let disk = world.found_later(number);
        (world.net.clone(), world.simulated(&disk))
    };
    let store = open(&net, number, Start::Join, simulated).await;
    world.borrow_mut().came_up(number, store);
}
