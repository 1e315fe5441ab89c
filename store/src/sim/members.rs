//! Managers come and go, also while things go wrong: whoever leads takes one in or out. One that is out
//! begins anew, as a node that is no manager any more removes its log.

use rand::{RngExt, seq::IndexedRandom};

use super::{
    Shared,
    world::{World, is_among, member, start},
};
use crate::{Store, raft::RaftId};

/// Members that the group keeps.
const VOTERS_MIN: usize = 2;
const REMOVES: f64 = 0.5;

enum Change {
    Add(u8, RaftId),
    Remove(u8, RaftId),
}

/// Begins a change, unless one goes on. It may fail, or its outcome be open, as any write.
pub(super) fn change(world: &Shared<World>) {
    let mut now = world.borrow_mut();
    if now
        .change
        .as_ref()
        .is_some_and(|change| !change.is_finished())
    {
        return;
    }
    if let Some((leader, change)) = now.draw_change() {
        let making = make(world.clone(), leader, change);
        now.change = Some(tokio::task::spawn_local(making));
    }
}

impl World {
    fn draw_change(&mut self) -> Option<(Store, Change)> {
        let leader = *self.leaders().choose(&mut self.random)?;
        let leader = self.store(leader).cloned()?;
        let members = leader.members();
        let hosts = self.numbers();
        let hosts: Vec<_> = hosts
            .filter_map(|number| Some((number, self.store(number)?.id())))
            .collect();
        let removes = self.random.random_bool(REMOVES);
        let candidates: Vec<_> = match removes {
            true if members.voters.len() <= VOTERS_MIN => return None,
            true => hosts
                .into_iter()
                .filter(|(_, id)| is_among(&members, *id))
                .collect(),
            false => hosts
                .into_iter()
                .filter(|(_, id)| !members.voters.contains_key(id))
                .collect(),
        };
        let (number, id) = *candidates.choose(&mut self.random)?;
        let change = match removes {
            true => Change::Remove(number, id),
            false => Change::Add(number, id),
        };
        Some((leader, change))
    }
}

async fn make(world: Shared<World>, leader: Store, change: Change) {
    match change {
        Change::Add(number, id) => {
            let _ = leader.add_member(id, member(number)).await;
        }
        Change::Remove(number, id) => {
            let removed = leader.remove_member(id).await;
            let is_up = |up: &Store| up.id() == id;
            if removed.is_ok() && world.borrow().store(number).is_some_and(is_up) {
                world.borrow_mut().wipe(number);
                start(&world, number).await;
            }
        }
    }
}
