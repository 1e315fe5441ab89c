//! XDP and the stack's knowledge of ways: what needs the stack is left to tc.

use std::time::{Duration, Instant};

use crate::{
    common::*,
    fate::{Fate, forwarded},
    pair::Pair,
    setup::*,
};

fn by_tc(frame: &Frame) -> Fate {
    Fate::ByTc(forwarded(frame).bytes())
}

#[test]
fn xdp_leaves_what_needs_the_stack_to_tc() {
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    // No neighbour: the stack resolves it.
    pair.netns.ip("neigh del 192.0.2.2 dev up0");
    pair.each("no neighbour", [syn()], by_tc);
    let neighbour = "lladdr 02:00:00:00:00:22 dev up0 nud permanent";
    pair.netns.ip(&format!("neigh add 192.0.2.2 {neighbour}"));
    // Wrapped, it would be longer than the link's 1500 bytes: the stack fragments.
    let longest = 1500 - (20 + 8 + 8 + 14) - (20 + 20);
    let large = ack().payload(&vec![5; longest + 1]);
    pair.each("too long", [large], by_tc);
    let fits = ack().payload(&vec![5; longest]);
    pair.each("fits", [fits], Fate::node_b);
}

#[test]
fn xdp_sees_a_neighbours_new_address_soon() {
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    pair.each("old address", [syn()], Fate::node_b);
    pair.netns
        .ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:44 dev up0 nud permanent");
    let deadline = Instant::now() + Duration::from_secs(2);
    while pair.run(&syn().bytes()).0.packet[..6] != [2, 0, 0, 0, 0, 0x44] {
        assert!(
            Instant::now() < deadline,
            "packets still go to the old address"
        );
        std::thread::yield_now();
    }
}
