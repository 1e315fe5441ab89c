//! The hosts: what runs on them, and what is left of it when it ends.

use std::sync::{Arc, LazyLock};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinHandle;
use vault::DataKey;

use super::{
    Shared,
    invariants::Invariants,
    net::{Net, Port, addr},
};
use crate::{
    Members, Start, Store, StoreConfig,
    disk::failing::Failing,
    raft::{Member, RaftId},
    store::simulated::Simulated,
};

/// Hosts beside those of the first members.
const SPARE: u8 = 1;

/// Entries kept behind a snapshot: few, so that who was away for a while has to take the snapshot.
const LOG_KEPT: u64 = 5;

/// Chance that a client asks one that takes itself for the leader: there may be more than one.
const TO_LEADER: f64 = 0.5;

struct Host {
    disk: Failing,
    /// `None` while it is down.
    store: Option<Store>,
    is_starting: bool,
}

pub(super) struct World {
    pub(super) random: StdRng,
    pub(super) net: Net,
    hosts: Vec<Host>,
    pub(super) invariants: Invariants,
    /// A voter whose power fails with its next vote, and the leader from before.
    pub(super) tempted: Option<(u8, u8)>,
    /// A leader whose power fails while it writes.
    pub(super) recalled: Option<u8>,
    /// A change of the members that goes on.
    pub(super) change: Option<JoinHandle<()>>,
}

impl World {
    /// A group of three or five, and one more host.
    pub(super) async fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let size = if random.random() { 3 } else { 5 };
        let net = Net::new(StdRng::from_rng(&mut random));
        let mut world = Self {
            random,
            net,
            hosts: Vec::new(),
            invariants: Invariants::default(),
            tempted: None,
            recalled: None,
            change: None,
        };
        for number in 1..=size + SPARE {
            let disk = blank();
            let start = match number {
                1 => Start::Found,
                _ => Start::Join,
            };
            let simulated = world.simulated(&disk);
            let opened = open(&world.net, number, start, simulated).await;
            world.hosts.push(Host {
                disk,
                store: None,
                is_starting: false,
            });
            world.came_up(number, opened);
        }
        let mut stores = world.up().into_iter().take(size.into());
        let first = stores.next().expect("there is one");
        for (other, number) in stores.zip(2..) {
            let added = first.add_member(other.id(), member(number)).await;
            added.expect("nothing is in the way yet");
        }
        world
    }

    pub(super) fn simulated(&mut self, disk: &Failing) -> Simulated {
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
        host.is_starting = false;
        let disk = host.disk.clone();
        self.net.plug(number, store, disk);
    }

    fn host(&mut self, number: u8) -> &mut Host {
        &mut self.hosts[usize::from(number) - 1]
    }

    /// `None` while it is down.
    pub(super) fn store(&self, number: u8) -> Option<&Store> {
        self.hosts[usize::from(number) - 1].store.as_ref()
    }

    pub(super) fn disk(&self, number: u8) -> &Failing {
        &self.hosts[usize::from(number) - 1].disk
    }

    pub(super) fn numbers(&self) -> std::ops::RangeInclusive<u8> {
        1..=u8::try_from(self.hosts.len()).expect("a few")
    }

    /// Of the hosts that are up, in order.
    pub(super) fn up(&self) -> Vec<Store> {
        self.hosts.iter().filter_map(|h| h.store.clone()).collect()
    }

    /// Those of them that are among `members`.
    pub(super) fn up_among(&self, members: &Members) -> Vec<Store> {
        let mut up = self.up();
        up.retain(|store| is_among(members, store.id()));
        up
    }

    /// Who take themselves for the leader.
    pub(super) fn leaders(&self) -> Vec<u8> {
        let leads = |store: &Store| store.standing().borrow().leads();
        let is_leader = |number: &u8| self.store(*number).is_some_and(leads);
        self.numbers().filter(is_leader).collect()
    }

    pub(super) fn leader(&self) -> Option<Store> {
        let leader = *self.leaders().first()?;
        self.store(leader).cloned()
    }

    /// Of a host that takes itself for the leader, or of any, unless it is down.
    pub(super) fn asked(&mut self) -> Option<Store> {
        let number = match self.random.random_bool(TO_LEADER) {
            true => *self.leaders().choose(&mut self.random)?,
            false => self.any(),
        };
        self.store(number).cloned()
    }

    pub(super) fn any(&mut self) -> u8 {
        let numbers = self.numbers();
        self.random.random_range(numbers)
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
    pub(super) fn check_acknowledged(&self, leader: &Store) {
        let members = self.up_among(&leader.members());
        self.invariants.check_acknowledged(&members);
    }

    /// How likely a sector that was not synced is there: all are, none, or any.
    pub(super) fn draw_kept(&mut self) -> f64 {
        *[0.0, 0.5, 1.0].choose(&mut self.random).expect("three")
    }

    /// What the power's failure left of a host's disk.
    pub(super) fn found_later(&mut self, number: u8, kept: f64) -> Failing {
        let disk = self.host(number).disk.clone();
        let image = disk.after_failure(&mut self.random, kept);
        let disk = Failing::with(image, u64::MAX);
        self.host(number).disk = disk.clone();
        disk
    }

    /// Takes a host down, and everything from its disk.
    pub(super) fn wipe(&mut self, number: u8) {
        let host = self.host(number);
        host.disk = blank();
        if let Some(store) = host.store.take() {
            tokio::spawn(async move { store.shutdown().await });
        }
    }
}

fn blank() -> Failing {
    Failing::with(Vec::new(), u64::MAX)
}

pub(super) fn member(number: u8) -> Member {
    Member { addr: addr(number) }
}

pub(super) fn is_among(members: &Members, id: RaftId) -> bool {
    members.voters.contains_key(&id) || members.learners.contains_key(&id)
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

/// Starts a host, with what its disk kept, unless it is up.
pub(super) async fn start(world: &Shared<World>, number: u8) {
    let kept = world.borrow_mut().draw_kept();
    start_with(world, number, kept).await;
}

/// As [`start`]; `kept` is how likely a sector that was not synced is there.
pub(super) async fn start_with(world: &Shared<World>, number: u8, kept: f64) {
    let (net, simulated) = {
        let mut world = world.borrow_mut();
        let host = world.host(number);
        if host.store.is_some() || host.is_starting {
            return;
        }
        host.is_starting = true;
        let disk = world.found_later(number, kept);
        (world.net.clone(), world.simulated(&disk))
    };
    let store = open(&net, number, Start::Join, simulated).await;
    world.borrow_mut().came_up(number, store);
}
