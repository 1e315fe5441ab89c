//! Managers in one process, with virtual time, disks whose power fails and a network that loses,
//! delays and repeats. One seed gives the size of the group, the faults and what clients do; the
//! invariants are looked at after each step; then the faults stop, and the group must heal.
//!
//! * [`world`]: the hosts, and what goes wrong with them.
//! * [`net`]: their network.
//! * [`clients`]: who writes and reads.
//! * [`history`]: what clients heard, which some order must explain.
//! * [`invariants`]: what holds between managers.
//!
//! `SWARMNET_SIM_SEED=n` runs one seed, `SWARMNET_SIM_SEEDS=n` so many.

mod clients;
mod history;
mod invariants;
mod net;
mod world;

use std::{cell::RefCell, collections::BTreeMap, panic::catch_unwind, rc::Rc, time::Duration};

use rand::RngExt;
use tokio::{
    task::LocalSet,
    time::{Instant, sleep, timeout},
};

use self::{clients::client, history::History, world::World};

const SEEDS: u64 = 100;
/// Of virtual time.
const FAULTS: Duration = Duration::from_secs(10);
/// Between two looks at the invariants.
const STEP: Duration = Duration::from_millis(50);
/// Between two things that go wrong.
const PAUSE_MILLIS: std::ops::Range<u64> = 100..1500;
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
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = seeds.len().div_ceil(threads).max(1);
    let failed: BTreeMap<u64, String> = std::thread::scope(|scope| {
        let shares = seeds.chunks(share);
        let threads: Vec<_> = shares
            .map(|seeds| scope.spawn(move || failures(seeds)))
            .collect();
        let failed = threads.into_iter().map(|thread| thread.join());
        failed
            .flat_map(|failed| failed.expect("a thread"))
            .collect()
    });
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

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")))
}

/// What each of the seeds that fail panics with.
fn failures(seeds: &[u64]) -> Vec<(u64, String)> {
    let failure = |seed: &u64| {
        let panic = catch_unwind(|| run(*seed)).err()?;
        let text = panic.downcast_ref::<String>().cloned();
        let literal = || panic.downcast_ref::<&str>().map(ToString::to_string);
        Some((*seed, text.or_else(literal).unwrap_or_default()))
    };
    seeds.iter().filter_map(failure).collect()
}

fn run(seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, scenario(seed))
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
    heal(&world).await;
    for client in clients {
        let ended = timeout(HEALING, client).await;
        ended.expect("no operation hangs").expect("a client");
    }
    world.borrow_mut().check_at_end();
    history.borrow().check();
    history.take()
}

async fn go_wrong(world: &Shared<World>, until: Instant) {
    let mut next = Instant::now();
    while Instant::now() < until {
        sleep(STEP).await;
        world.borrow_mut().step();
        if Instant::now() >= next {
            world::meddle(world).await;
            let pause = world.borrow_mut().random.random_range(PAUSE_MILLIS);
            next = Instant::now() + Duration::from_millis(pause);
        }
    }
}

/// Without faults, with all up, a write comes through, and all agree.
async fn heal(world: &Shared<World>) {
    world::repair(world).await;
    let healed = async {
        loop {
            sleep(STEP).await;
            world.borrow_mut().step();
            let hosts = world.borrow().up();
            let Some(leader) = hosts.iter().find(|store| store.standing().borrow().leads()) else {
                continue;
            };
            let newest = leader.state();
            if !clients::is_last_written(&newest) {
                clients::write_last(leader).await;
            } else if hosts.iter().all(|store| *store.state() == *newest) {
                return;
            }
        }
    };
    timeout(HEALING, healed).await.expect("the group heals");
}
