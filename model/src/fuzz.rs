//! What the fuzz targets `probe`, `rpc` and `text` look at.

use serde::{Serialize, de::DeserializeOwned};
use vault::UnlockKey;

use crate::{
    codec,
    feed::{AgentMessage, ManagerMessage, NodeView, Update},
    id::NodeId,
    probe::{Message, ProbeKeys},
    rpc::{
        ApiRequest, ApiResponse, EnrolRequest, JoinRequest, JoinResponse, LeaveRequest,
        RaftMessage, RenewRequest, RootResponse,
    },
    spec::Labels,
    token::JoinToken,
    traffic::Traffic,
};

/// Packets of the probes between nodes: as they come, and what is in them once they are opened.
pub fn probe(data: &[u8]) {
    let keys = ProbeKeys::generate();
    assert!(keys.open(data).is_err(), "nobody sealed it");
    if let Some(message) = Message::decode(data) {
        let packet = keys.seal(&message).expect("there are keys");
        assert_eq!(keys.open(&packet), Ok(message));
    }
}

/// Bodies of the calls between nodes. The first byte says which call's. What is taken reads back as it
/// was taken.
pub fn rpc(data: &[u8]) {
    let Some((call, bytes)) = data.split_first() else {
        return;
    };
    match call % 11 {
        0 => body::<AgentMessage>(bytes),
        1 => body::<ManagerMessage>(bytes),
        2 => body::<JoinRequest>(bytes),
        3 => body::<RenewRequest>(bytes),
        4 => body::<EnrolRequest>(bytes),
        5 => body::<LeaveRequest>(bytes),
        6 => body::<ApiRequest>(bytes),
        7 => body::<RaftMessage>(bytes),
        8 => body::<RootResponse>(bytes),
        9 => body::<JoinResponse>(bytes),
        _ => body::<ApiResponse>(bytes),
    }
    if let Ok(ManagerMessage::Update(update)) = codec::decode(bytes) {
        view(update);
    }
}

fn body<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(taken) = codec::decode::<T>(bytes) else {
        return;
    };
    let written = codec::encode(&taken);
    let again: T = codec::decode(&written).expect("what was taken is written so that it is taken");
    assert_eq!(codec::encode(&again), written);
}

/// An update takes the view and its digest to the same.
fn view(update: Update) {
    let former = NodeView::default();
    let mut view = former.clone();
    view.apply(update);
    assert_eq!(
        view.digest_after(&former, former.digest()),
        view.digest(),
        "{view:?}"
    );
}

/// What people write by hand, or copy: tokens, keys, ids, and labels, as `LABEL=VALUE` line by line.
pub fn text(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string(), text);
    }
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string(), text);
    }
    if let Ok(key) = text.parse::<UnlockKey>() {
        assert_eq!(key.to_string(), text);
    }
    let labels: Labels = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect();
    if let Ok(traffic) = Traffic::of(&labels) {
        traffic.weight_on(&labels);
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("probe", probe);
    replay::seeds("rpc", rpc);
    replay::seeds("text", text);
}
