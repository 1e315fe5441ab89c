//! The port by which a task knows a client's flow.
//!
//! A task tells flows apart by its peer's address and port alone. Where two flows from one port of a
//! client come to one port of one task by different ways (two addresses or published ports of the
//! mesh, two VIPs), the later one gets another port there: one of a few, by a rule, so that it is
//! found again without a table.

use crate::{
    maps::{FlowKey, FlowValue, VipFlowKey, VipFlowValue},
    net::{Be16, Be32},
};

/// Ports by which a flow may be known to its task, its client's own one among them.
pub const SEATS: u16 = 5;
/// Never below: a client would pass for a privileged process.
const FIRST_PORT: u16 = 1024;
const PORTS: u32 = (1 << 16) - FIRST_PORT as u32;
const STEP: u32 = PORTS / (SEATS as u32 - 1);

/// An entry of a flow that has ended is in nobody's way after so long, nor one of UDP that was not
/// used meanwhile: Linux's TIME_WAIT, and what `last_seen` may lag behind.
pub const SEAT_LINGER_NS: u64 = 62_000_000_000;

/// IANA protocol number.
const UDP: u8 = 17;

/// Who is known to the task by a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seat {
    /// The flow in question.
    Own,
    Other,
    Nobody,
}

/// The first is the client's own.
#[inline(always)]
pub const fn seat_port(own: Be16, nth: u16) -> Be16 {
    if nth == 0 {
        return own;
    }
    let place = (own.to_host() as u32 + nth as u32 * STEP) % PORTS;
    Be16::from_host(FIRST_PORT + place as u16)
}

/// The look at a flow's ports, one a round.
pub struct Search {
    /// Zero: none so far.
    found: Be16,
    free: Be16,
}

impl Search {
    /// `none` is zero. (Of which the verifier may want to know nothing: docs/verifier.md.)
    #[inline(always)]
    pub const fn new(none: u16) -> Self {
        Self {
            found: Be16::from_raw(none),
            free: Be16::from_raw(none),
        }
    }

    /// Notes who has a port; whether the search is over.
    #[inline(always)]
    pub fn note(&mut self, port: Be16, seat: Seat) -> bool {
        match seat {
            Seat::Own => self.found = port,
            Seat::Nobody if self.free.is_zero() => self.free = port,
            Seat::Nobody | Seat::Other => {}
        }
        matches!(seat, Seat::Own)
    }

    /// The port of the flow if it has one; of a flow that may begin, the first that is free; else, or
    /// when none is, the client's own.
    #[inline(always)]
    pub fn outcome(&self, own: Be16, may_begin: bool) -> Be16 {
        if !self.found.is_zero() {
            self.found
        } else if may_begin && !self.free.is_zero() {
            self.free
        } else {
            own
        }
    }
}

/// A whole [`Search`].
pub fn choose_port(own: Be16, may_begin: bool, mut look: impl FnMut(Be16) -> Seat) -> Be16 {
    let mut search = Search::new(0);
    for nth in 0..SEATS {
        let port = seat_port(own, nth);
        if search.note(port, look(port)) {
            break;
        }
    }
    search.outcome(own, may_begin)
}

/// A flow of the mesh as its packets tell it.
#[derive(Clone, Copy)]
pub struct Claim {
    /// What the client sends to.
    pub node_addr: Be32,
    pub published: Be16,
    /// The client's own.
    pub client_port: Be16,
    pub endpoint: u32,
    /// The endpoint's of now.
    pub generation: u32,
}

impl Claim {
    /// Whether an entry is this flow's. `now` is the monotonic clock, in nanoseconds.
    #[inline(always)]
    pub fn seat(&self, key: &FlowKey, flow: &FlowValue, now: impl FnOnce() -> u64) -> Seat {
        if flow.endpoint != self.endpoint || flow.generation != self.generation {
            return Seat::Nobody;
        }
        let is_own = flow.node_addr == self.node_addr
            && flow.published == self.published
            && flow.client_port(key.client_port) == self.client_port;
        if is_own {
            return Seat::Own;
        }
        let may_be_over = key.proto == UDP || flow.has_ended();
        match may_be_over && now().wrapping_sub(flow.last_seen) > SEAT_LINGER_NS {
            true => Seat::Nobody,
            false => Seat::Other,
        }
    }
}

/// A flow to a VIP, packet by packet, as its packets tell it.
#[derive(Clone, Copy)]
pub struct VipClaim {
    pub vip: Be32,
    /// The client's own.
    pub client_port: Be16,
}

impl VipClaim {
    /// As [`Claim::seat`]. Of ends of connections these entries say nothing.
    #[inline(always)]
    pub fn seat(&self, key: &VipFlowKey, flow: &VipFlowValue, now: impl FnOnce() -> u64) -> Seat {
        if flow.vip == self.vip && flow.client_port(key.client_port) == self.client_port {
            return Seat::Own;
        }
        match key.proto == UDP && now().wrapping_sub(flow.last_seen) > SEAT_LINGER_NS {
            true => Seat::Nobody,
            false => Seat::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, vec::Vec};

    use super::*;

    #[test]
    fn seats_of_a_port_differ_and_are_not_privileged() {
        for own in [1, 80, 1023, 1024, 17_152, 32_768, 49_152, 60_999, 65_535] {
            let ports = (0..SEATS).map(|nth| seat_port(Be16::from_host(own), nth).to_host());
            let ports: Vec<_> = ports.collect();
            assert_eq!(ports[0], own);
            assert!(
                ports[1..].iter().all(|port| *port >= FIRST_PORT),
                "{ports:?}"
            );
            assert_eq!(
                ports.iter().collect::<BTreeSet<_>>().len(),
                ports.len(),
                "{ports:?}"
            );
        }
    }

    #[test]
    fn flow_is_found_where_it_sits_and_else_gets_the_first_free_seat() {
        let own = Be16::from_host(40_000);
        let at = |nth| seat_port(own, nth);
        let choose = |may_begin, seats: [Seat; SEATS as usize]| {
            choose_port(own, may_begin, |port| {
                let nth = (0..SEATS).find(|nth| at(*nth) == port);
                seats[usize::from(nth.unwrap())]
            })
        };
        use Seat::{Nobody, Other, Own};
        assert_eq!(choose(true, [Nobody, Other, Own, Nobody, Nobody]), at(2));
        assert_eq!(choose(true, [Other, Other, Nobody, Nobody, Nobody]), at(2));
        assert_eq!(choose(false, [Other, Other, Nobody, Nobody, Nobody]), own);
        assert_eq!(choose(true, [Other; SEATS as usize]), own);
    }
}
