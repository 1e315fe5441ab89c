//! What the fuzz target `dns` looks at: queries of tasks, and what upstreams answer.

use crate::{
    forward,
    names::{
        Names,
        tests::{NET_A, NET_B, view},
    },
    query::{Transport, Verdict, handle},
};

/// The first byte says by which transport, the next two how long the query is; the rest is what an
/// upstream answers to it.
pub fn check(data: &[u8]) {
    let Some(([by_tcp, high, low], rest)) = data.split_first_chunk() else {
        return;
    };
    let (transport, limit) = match by_tcp & 1 {
        0 => (Transport::Udp, 4096),
        _ => (Transport::Tcp, 65_535),
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    let (query, upstream) = rest.split_at(len.min(rest.len()));
    match handle(query, transport, &Names::new(&view(), &[NET_A, NET_B])) {
        Verdict::Reply(reply) => assert_answers(query, &reply, limit),
        Verdict::Forward(forward) => {
            assert_answers(query, &forward.failure(), limit);
            forward::answers(query, upstream);
        }
        Verdict::Ignore => {}
    }
}

fn assert_answers(query: &[u8], reply: &[u8], limit: usize) {
    assert!(reply.len() <= limit, "{} bytes", reply.len());
    assert_eq!(reply[..2], query[..2], "of another query");
    assert_ne!(reply[2] & 0x80, 0, "no response");
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("dns", check);
}
