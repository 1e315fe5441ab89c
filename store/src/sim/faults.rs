//! What goes wrong, and how it is set right.

use std::time::Duration;

use rand::{RngExt, seq::SliceRandom};

use super::{
    Shared, members,
    net::Link,
    world::{World, start, start_with},
};
use crate::Store;

/// Operations on a disk until its power fails, once it is to fail: some commits.
const LAST_OPERATIONS: std::ops::Range<u64> = 0..60;
/// Until the power fails in the next commit.
const WRITE_OPERATIONS: std::ops::Range<u64> = 0..6;
/// Chance that a host takes a snapshot before something goes wrong.
const SNAPSHOT: f64 = 0.5;
/// Until the next thing goes wrong.
const PAUSE_MILLIS: std::ops::Range<u64> = 100..1500;
/// For an election, and for writes after it.
const TEMPTATION: Duration = Duration::from_millis(3500);

/// One thing goes wrong, or right again. Returns for how long it is to be left at that.
pub(super) async fn meddle(world: &Shared<World>) -> Duration {
    let what = world.borrow_mut().random.random_range(0..100);
    snapshot(world).await;
    match what {
        0..18 => world.borrow().net.heal(),
        18..26 => world.borrow_mut().split(),
        26..32 => world.borrow_mut().spoil(Link::CUT),
        32..39 => world.borrow_mut().spoil(Link::BAD),
        39..45 => world.borrow_mut().fail_power(0),
        45..56 => {
            let after = world.borrow_mut().random.random_range(LAST_OPERATIONS);
            world.borrow_mut().fail_power(after);
        }
        56..65 => world.borrow_mut().isolate_leader(),
        65..72 => {
            world.borrow_mut().tempt_a_voter();
            return TEMPTATION;
        }
        72..78 => world.borrow_mut().tempt_the_leader(),
        78..85 => members::change(world),
        _ => {
            let number = world.borrow_mut().any();
            start(world, number).await;
        }
    }
    Duration::from_millis(world.borrow_mut().random.random_range(PAUSE_MILLIS))
}

impl World {
    /// Two parts that hear nothing of each other.
    fn split(&mut self) {
        let hosts = self.numbers();
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
        for leader in self.leaders() {
            for other in self.numbers().filter(|other| *other != leader) {
                self.cut(leader, other);
            }
        }
    }

    /// The leader loses power, and so does a voter with the first vote that it gives to another: were that
    /// vote forgotten, the two could go on as before, while the other leads the next term. Those who
    /// would be led by it are cut off from the rest.
    fn tempt_a_voter(&mut self) {
        let Some(leader) = self.leaders().first().copied() else {
            return;
        };
        let members = self.store(leader).map(Store::members).unwrap_or_default();
        let votes = |number: &u8| {
            let store = self.store(*number);
            store.is_some_and(|store| members.voters.contains_key(&store.id()))
        };
        let mut others: Vec<_> = self.numbers().filter(votes).collect();
        others.retain(|other| *other != leader);
        others.shuffle(&mut self.random);
        let Some(voter) = others.pop() else {
            return;
        };
        self.net.heal();
        let (new, old) = others.split_at(others.len().div_ceil(2));
        for new in new {
            for old in old.iter().chain(&[leader]) {
                self.cut(*new, *old);
            }
        }
        self.disk(leader).fail_after(0);
        self.net.fail_with_next_vote(voter);
        self.tempted = Some((voter, leader));
    }

    /// The leader loses power while it writes, and is back before the others look for another: what it sent
    /// them and has lost, it could now make anew, and differently.
    fn tempt_the_leader(&mut self) {
        if let Some(leader) = self.leaders().first().copied() {
            let after = self.random.random_range(WRITE_OPERATIONS);
            self.disk(leader).fail_after(after);
            self.recalled = Some(leader);
        }
    }

    fn cut(&self, a: u8, b: u8) {
        self.net.set(a, b, Link::CUT);
        self.net.set(b, a, Link::CUT);
    }

    /// In one direction.
    fn spoil(&mut self, link: Link) {
        let (from, to) = (self.any(), self.any());
        self.net.set(from, to, link);
    }

    fn fail_power(&mut self, after: u64) {
        let number = self.any();
        self.disk(number).fail_after(after);
    }
}

/// Some host takes one, or not.
async fn snapshot(world: &Shared<World>) {
    let store = {
        let mut world = world.borrow_mut();
        let takes = world.random.random_bool(SNAPSHOT);
        let number = world.any();
        world.store(number).filter(|_| takes).cloned()
    };
    if let Some(store) = store {
        // One whose power has failed takes none.
        let _ = store.snapshot().await;
    }
}

/// Once a voter has given the vote with which its power fails, it is up again at once, with nothing that was
/// not synced, and so is the former leader. So is a leader whose power failed while it wrote.
pub(super) async fn bring_back(world: &Shared<World>) {
    let recalled = world.borrow().recalled;
    if let Some(leader) = recalled
        && world.borrow().disk(leader).has_failed()
    {
        world.borrow_mut().recalled = None;
        start_with(world, leader, 0.0).await;
    }
    let tempted = world.borrow().tempted;
    let Some((voter, leader)) = tempted else {
        return;
    };
    if world.borrow().net.has_voted() {
        world.borrow_mut().tempted = None;
        start_with(world, voter, 0.0).await;
        start(world, leader).await;
    }
}

/// Takes all faults away, and starts who is down.
pub(super) async fn repair(world: &Shared<World>) {
    world.borrow().net.heal();
    let hosts = world.borrow().numbers();
    for number in hosts.clone() {
        world.borrow().disk(number).endure();
    }
    world.borrow_mut().step();
    for number in hosts {
        start(world, number).await;
    }
}
