//! Addresses within networks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
    sync::LazyLock,
};

use model::{
    NetworkId, TaskState,
    object::{Network, Task},
};
use store::{State, Transaction};

use super::AllocateError;
use crate::presence::{Presence, presence};

/// Whether the task's addresses are its own still. Those of one that ended are free, though it
/// shows them; unless the managers only gave it up, and its node may be back any moment with the task
/// as it was.
pub fn holds_addresses(state: &State, task: &Task) -> bool {
    let is_down = |node| presence(state, node) == Presence::Down;
    match task.status.state {
        TaskState::Orphaned => task.node.is_some_and(is_down),
        state => !state.is_terminal(),
    }
}

static NONE: LazyLock<HashSet<u32>> = LazyLock::new(HashSet::new);

/// Which addresses are in use, as derived from the state.
#[derive(Debug, Default)]
pub struct AddressBook {
    used: HashMap<NetworkId, HashSet<u32>>,
    /// The last address handed out by this book.
    cursors: BTreeMap<NetworkId, Ipv4Addr>,
}

impl AddressBook {
    /// Reads every service and task once.
    pub fn of(state: &State) -> Self {
        let mut book = Self::default();
        let vips = state.services().flat_map(|service| &service.endpoint.vips);
        vips.for_each(|vip| book.take(vip.network, vip.addr));
        let tasks = state.tasks().filter(|task| holds_addresses(state, task));
        tasks
            .flat_map(|task| &task.attachments)
            .for_each(|attachment| book.take(attachment.network, attachment.addr));
        book
    }

    fn take(&mut self, network: NetworkId, addr: Ipv4Addr) {
        self.used.entry(network).or_default().insert(addr.to_bits());
    }

    /// The next free address after the one handed out last. It stays free until [`Self::hand_out`].
    ///
    /// # Errors
    /// [`AllocateError::NetworkFull`], naming `wanted`.
    pub fn next(
        &self,
        network: &Network,
        wanted: impl FnOnce() -> String,
    ) -> Result<Ipv4Addr, AllocateError> {
        let last = self.cursors.get(&network.id).copied();
        let last = last.or(network.cursor.addr).unwrap_or(network.gateway);
        let used = self.used.get(&network.id).unwrap_or(&NONE);
        let gateway = network.gateway.to_bits();
        let free = |addr: u32| addr != gateway && !used.contains(&addr);
        next_free(hosts(network), last.to_bits(), used.len(), free)
            .map(Ipv4Addr::from_bits)
            .ok_or_else(|| AllocateError::NetworkFull {
                name: network.spec.name.clone(),
                subnet: network.subnet,
                wanted: wanted(),
            })
    }

    /// Marks what [`Self::next`] gave as in use.
    pub fn hand_out(&mut self, network: NetworkId, addr: Ipv4Addr) {
        self.take(network, addr);
        self.cursors.insert(network, addr);
    }

    /// Writes down where the next search begins.
    pub fn save_cursors(self, tx: &mut Transaction) {
        for (id, addr) in self.cursors {
            let Some(network) = tx.state().network(id) else {
                continue;
            };
            let mut network = Network::clone(network);
            network.cursor.addr = Some(addr);
            tx.put(network).expect("read in this transaction");
        }
    }
}

/// Host addresses that may be handed out; the gateway may be among them.
fn hosts(network: &Network) -> RangeInclusive<u32> {
    let subnet = network.subnet;
    let range = network.spec.ip_range.unwrap_or(subnet);
    let first = range
        .network()
        .to_bits()
        .max(subnet.network().to_bits() + 1);
    let last = range
        .broadcast()
        .to_bits()
        .min(subnet.broadcast().to_bits() - 1);
    first..=last
}

/// The first of `range` after `last` that is free, round the end to its beginning. `used` of the
/// range are not free, and perhaps one more: the gateway.
fn next_free(
    range: RangeInclusive<u32>,
    last: u32,
    used: usize,
    free: impl Fn(u32) -> bool,
) -> Option<u32> {
    let (first, end) = range.into_inner();
    // A full network is asked again and again, and may be large.
    if used > (end - first) as usize {
        return None;
    }
    let begin = match last {
        last if (first..end).contains(&last) => last + 1,
        _ => first,
    };
    (begin..=end).chain(first..begin).find(|addr| free(*addr))
}
