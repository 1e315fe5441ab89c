//! What the fuzz target `raft` looks at.

use model::codec;
use openraft::EntryPayload;

use crate::{
    State,
    raft::{RaftCall, RaftReply, RaftRequest},
};

/// What other managers call and answer: messages, and the log entries and snapshots in them. What is
/// taken reads back as it was taken.
pub fn check(data: &[u8]) {
    if let Ok(reply) = codec::decode::<RaftReply>(data) {
        let written = codec::encode(&reply);
        codec::decode::<RaftReply>(&written)
            .expect("what was taken is written so that it is taken");
    }
    let Ok(call) = codec::decode::<RaftCall>(data) else {
        return;
    };
    codec::decode::<RaftCall>(&codec::encode(&call)).expect("as the reply");
    match call.request {
        RaftRequest::Append(append) => {
            let mut state = State::default();
            let batches = append.entries.into_iter().map(|entry| entry.payload);
            for payload in batches {
                if let EntryPayload::Normal(batch) = payload {
                    // One that was computed from another state changes nothing.
                    let _ = batch
                        .0
                        .into_iter()
                        .try_for_each(|set| state.apply(set).map(drop));
                }
            }
            assert_reads_back(&state);
        }
        RaftRequest::Snapshot(snapshot) => {
            if let Ok(state) = codec::decode(&snapshot.data) {
                assert_reads_back(&state);
            }
        }
        RaftRequest::Vote(_) | RaftRequest::WouldVote { .. } => {}
    }
}

/// Indexes as changes made them and as a snapshot's reader makes them are the same.
fn assert_reads_back(state: &State) {
    let again: State = codec::decode(&codec::encode(state)).expect("a snapshot is read");
    assert!(again == *state, "{again:?} is not {state:?}");
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("raft", check);
}
