//! What the loss of a leader costs, and what others may not cost.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep};

use super::{
    Shared,
    clients::client,
    from_environment,
    history::History,
    net::Link,
    on_threads, simulate,
    world::{World, start_with},
};
use crate::Store;

const SEEDS: u64 = 40;
const LOSSES: usize = 3;
/// For a leader to be replaced.
const GOAL: Duration = Duration::from_secs(3);
/// A network that is fast, before managers whose disks and processors are busy with other things.
const BUSY: Link = Link {
    loss: 0.0,
    repeats: 0.0,
    delay_max: Duration::from_millis(60),
};
const CLIENTS: usize = 3;
/// Writes before a loss.
const SETTLED_MILLIS: std::ops::Range<u64> = 1500..3000;
/// Until who was lost is back.
const BACK_MILLIS: std::ops::Range<u64> = 0..3000;
const LOOK: Duration = Duration::from_millis(5);

#[test]
fn a_lost_leader_is_replaced_within_three_seconds() {
    let seeds = from_environment("SWARMNET_SIM_SEEDS").unwrap_or(SEEDS);
    let took = on_threads(0..seeds, |seed| simulate(losses(seed)));
    let mut all: Vec<_> = took.values().flatten().copied().collect();
    all.sort();
    let (median, longest) = (all[all.len() / 2], all[all.len() - 1]);
    println!(
        "{} losses, median {median:?}, longest {longest:?}",
        all.len()
    );
    let longer: BTreeMap<_, _> = took
        .iter()
        .filter(|(_, took)| took.iter().any(|took| *took > GOAL))
        .collect();
    assert!(longer.is_empty(), "seeds that take longer: {longer:?}");
}

/// How long the group was without a leader each time that it lost one, under writes.
async fn losses(seed: u64) -> Vec<Duration> {
    let world = busy(seed).await;
    let history = Shared::<History>::default();
    let until = Instant::now() + Duration::from_secs(3600);
    for _ in 0..CLIENTS {
        tokio::task::spawn_local(client(world.clone(), history.clone(), until));
    }
    let mut took = Vec::new();
    for _ in 0..LOSSES {
        let lost = settle(&world).await;
        let began = Instant::now();
        world.borrow().disk(lost).fail_after(0);
        world.borrow_mut().step();
        let back = draw(&world, BACK_MILLIS);
        let returning = {
            let world = world.clone();
            tokio::task::spawn_local(async move {
                sleep(back).await;
                start_with(&world, lost, 1.0).await;
            })
        };
        leader(&world).await;
        took.push(began.elapsed());
        returning.await.expect("it does not panic");
    }
    took
}

/// Who does not hear of the leader does not stand against it.
#[test]
fn a_follower_that_was_cut_off_unseats_nobody() {
    let terms = on_threads(0..SEEDS / 4, |seed| {
        simulate(async move {
            let world = busy(seed).await;
            let leader = settle(&world).await;
            let term = led(&world, leader);
            let cut = if leader == 1 { 2 } else { 1 };
            for other in world.borrow().numbers() {
                world.borrow().net.set(other, cut, Link::CUT);
                world.borrow().net.set(cut, other, Link::CUT);
            }
            sleep(Duration::from_secs(10)).await;
            for other in world.borrow().numbers() {
                world.borrow().net.set(other, cut, BUSY);
                world.borrow().net.set(cut, other, BUSY);
            }
            sleep(Duration::from_secs(10)).await;
            (term, led(&world, leader))
        })
    });
    for (seed, (before, after)) in terms {
        assert!(before.is_some(), "seed {seed}: nobody led");
        assert_eq!(before, after, "seed {seed}");
    }
}

fn led(world: &RefCell<World>, number: u8) -> Option<u64> {
    let world = world.borrow();
    world.store(number).and_then(Store::term_led)
}

async fn busy(seed: u64) -> Shared<World> {
    let world = World::new(seed).await;
    for from in world.numbers() {
        for to in world.numbers() {
            world.net.set(from, to, BUSY);
        }
    }
    Rc::new(RefCell::new(world))
}

/// Waits for a leader, and then for writes. Who leads by then.
async fn settle(world: &Shared<World>) -> u8 {
    let pause = draw(world, SETTLED_MILLIS);
    sleep(pause).await;
    leader(world).await
}

async fn leader(world: &Shared<World>) -> u8 {
    loop {
        if let Some(leader) = world.borrow().leaders().first() {
            return *leader;
        }
        sleep(LOOK).await;
        world.borrow_mut().step();
    }
}

fn draw(world: &RefCell<World>, millis: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(world.borrow_mut().random.random_range(millis))
}
