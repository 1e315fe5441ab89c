//! Managers in one process, with virtual time, disks whose power fails and a network that loses,
//! delays and repeats. One seed gives the size of the group, who comes and goes, the faults and what
//! clients do; the invariants are looked at after each step; then the faults stop, and the group must
//! heal. At last all but one are lost for good, and that one goes on alone.
//!
//! * [`world`]: the hosts.
//! * [`net`]: their network.
//! * [`faults`]: what goes wrong with them.
//! * [`members`]: who takes part.
//! * [`recovery`]: the last act.
//! * [`elections`]: how long a group is without a leader.
//! * [`clients`]: who writes and reads.
//! * [`history`]: what clients heard, which some order must explain.
//! * [`invariants`]: what holds between managers.
//!
//! `SWARMNET_SIM_SEED=n` runs one seed, `SWARMNET_SIM_SEEDS=n` so many.

mod clients;
mod elections;
mod faults;
mod history;
mod invariants;
mod members;
mod net;
mod recovery;
mod world;

use std::{cell::RefCell, collections::BTreeMap, panic::catch_unwind, rc::Rc, time::Duration};

use tokio::{
    task::LocalSet,
    time::{Instant, sleep, timeout},
};

use self::{clients::client, history::History, net::Link, world::World};
use crate::{Store, raft::DISK_TAKES};

const SEEDS: u64 = 100;
/// Of virtual time.
const FAULTS: Duration = Duration::from_secs(8);
/// Between two looks at the invariants.
const STEP: Duration = Duration::from_millis(50);
/// For the group to be whole again once the faults have stopped.
const HEALING: Duration = Duration::from_secs(60);
const CLIENTS: usize = 3;

type Shared<T> = Rc<RefCell<T>>;

#[test]
fn managers_keep_their_word_through_faults() {
    let seeds: Vec<u64> = match from_environment("SWARMNET_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..from_environment("SWARMNET_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let failed = on_threads(seeds, failure);
    let failed: BTreeMap<_, _> = failed
        .into_iter()
        .filter_map(|(seed, failure)| Some((seed, failure?)))
        .collect();
    assert!(
        failed.is_empty(),
        "seeds that fail, to be run with SWARMNET_SIM_SEED=n each: {failed:#?}"
    );
}

#[test]
fn a_seed_gives_the_same_history_again() {
    let history = run(1);
    assert!(history.len() > 100, "little happened: {history:?}");
    assert_eq!(history, run(1));
}

/// A disk that one after the other waits for: the leader's and a follower's for the entry, and the leader's to
/// read it again, for the others and to apply it.
#[test]
fn followers_write_an_entry_down_while_the_leader_does() {
    let took = simulate(async {
        let world = World::new(1).await;
        for from in world.numbers() {
            for to in world.numbers() {
                world.net.set(from, to, Link::INSTANT);
            }
        }
        let leader = world.leader().expect("it has taken the others in");
        let mut shortest = Duration::MAX;
        for act in 0..10 {
            let begun = Instant::now();
            clients::write_last(&leader, act).await;
            shortest = shortest.min(begun.elapsed());
        }
        shortest
    });
    assert!(took < 4 * DISK_TAKES, "a write took {took:?}");
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")))
}

/// What `of` gives for each seed, on all cores.
fn on_threads<T: Send>(
    seeds: impl IntoIterator<Item = u64>,
    of: impl Fn(u64) -> T + Sync,
) -> BTreeMap<u64, T> {
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = seeds.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let of = &of;
        let shares = seeds.chunks(share);
        let threads: Vec<_> = shares
            .map(|seeds| scope.spawn(move || seeds.iter().map(|seed| (*seed, of(*seed))).collect()))
            .collect();
        let done = threads.into_iter().map(|thread| thread.join());
        done.flat_map(|done: Result<Vec<_>, _>| done.expect("a thread"))
            .collect()
    })
}

/// What the seed panics with, if it fails.
fn failure(seed: u64) -> Option<String> {
    let panic = catch_unwind(|| run(seed)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let literal = || panic.downcast_ref::<&str>().map(ToString::to_string);
    Some(text.or_else(literal).unwrap_or_default())
}

fn run(seed: u64) -> History {
    simulate(scenario(seed))
}

fn simulate<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, scenario)
}

/// What clients heard.
async fn scenario(seed: u64) -> History {
    let world = Rc::new(RefCell::new(World::new(seed).await));
    let history = Shared::<History>::default();
    let until = Instant::now() + FAULTS;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::task::spawn_local(client(world.clone(), history.clone(), until)))
        .collect();
    go_wrong(&world, until).await;
    faults::repair(&world).await;
    let change = world.borrow_mut().change.take();
    for task in clients.into_iter().chain(change) {
        let ended = timeout(HEALING, task).await;
        ended.expect("no operation hangs").expect("no panic");
    }
    let leader = agree(&world, 1).await;
    world.borrow().check_acknowledged(&leader);
    history.borrow().check();
    recovery::go_on_alone(&world, &leader).await;
    agree(&world, 2).await;
    history.take()
}

async fn go_wrong(world: &Shared<World>, until: Instant) {
    let mut next = Instant::now();
    while Instant::now() < until {
        sleep(STEP).await;
        world.borrow_mut().step();
        faults::bring_back(world).await;
        if Instant::now() >= next {
            next = Instant::now() + faults::meddle(world).await;
        }
    }
}

/// Without faults, a write comes through, and all members agree. Returns who leads them.
async fn agree(world: &Shared<World>, act: u8) -> Store {
    let agreed = async {
        loop {
            sleep(STEP).await;
            world.borrow_mut().step();
            let Some(leader) = world.borrow().leader() else {
                continue;
            };
            let newest = leader.state();
            let members = world.borrow().up_among(&leader.members());
            if !clients::is_last_written(&newest, act) {
                clients::write_last(&leader, act).await;
            } else if members.iter().all(|store| *store.state() == *newest) {
                return leader;
            }
        }
    };
    timeout(HEALING, agreed).await.expect("the group heals")
}
