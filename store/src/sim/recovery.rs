//! The last act: the majority is lost for good, and one survivor goes on alone with everything. The
//! others take part again, with nothing of their own.

use rand::{RngExt, seq::IndexedRandom};

use super::{
    Shared,
    net::addr,
    world::{World, member, start},
};
use crate::{State, Store};

/// Operations on the survivor's disk until its power fails while its log is rewritten.
const LAST_OPERATIONS: std::ops::Range<u64> = 0..100;
/// So much later in the next attempt.
const FURTHER: u64 = 37;

/// All hosts lose power. Returns the survivor, which leads a group of all hosts.
pub(super) async fn go_on_alone(world: &Shared<World>, leader: &Store) -> Store {
    let (agreed, members) = (leader.state(), leader.members());
    let survivor = {
        let mut world = world.borrow_mut();
        let hosts = world.numbers();
        for number in hosts.clone() {
            world.disk(number).fail_after(0);
        }
        let votes = |number: &u8| {
            let store = world.store(*number);
            store.is_some_and(|store| members.voters.contains_key(&store.id()))
        };
        let voters: Vec<_> = hosts.clone().filter(votes).collect();
        let survivor = *voters
            .choose(&mut world.random)
            .expect("a leader has a vote");
        world.step();
        for other in hosts.filter(|number| *number != survivor) {
            world.wipe(other);
        }
        survivor
    };
    detach(world, survivor);
    start(world, survivor).await;
    let store = world
        .borrow()
        .store(survivor)
        .cloned()
        .expect("it was started");
    check(&store, &agreed);
    let others = world
        .borrow()
        .numbers()
        .filter(|number| *number != survivor);
    for number in others {
        start(world, number).await;
        let id = world.borrow().store(number).expect("it was started").id();
        let added = store.add_member(id, member(number)).await;
        added.expect("nothing is in the way any more");
    }
    store
}

/// As often as it takes: the power may fail meanwhile.
fn detach(world: &Shared<World>, survivor: u8) {
    let mut world = world.borrow_mut();
    let mut left = world.random.random_range(LAST_OPERATIONS);
    loop {
        let kept = world.draw_kept();
        let disk = world.found_later(survivor, kept);
        disk.fail_after(left);
        let forced = world.simulated(&disk).force_new(addr(survivor));
        if !disk.has_failed() {
            forced.expect("what was synced can be read");
            return disk.endure();
        }
        left += FURTHER;
    }
}

/// # Panics
/// When the survivor does not go on from what all had agreed on, at a version that none of them had.
fn check(survivor: &Store, agreed: &State) {
    let state = survivor.state();
    assert!(state.version() > agreed.version(), "{survivor:?} stays");
    let mut wanted = agreed.clone();
    // Once for each attempt that got so far.
    while wanted.version() < state.version() {
        wanted.leap();
    }
    assert_eq!(*state, wanted, "{survivor:?} lost something");
    assert!(
        survivor.standing().borrow().leads(),
        "{survivor:?} is alone"
    );
}
