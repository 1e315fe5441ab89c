//! Whatever comes from the network is a message or an error: random bytes, and messages of ours with
//! bytes changed, left out and added.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use swarmnet_model::{
    ClusterId, NodeId, Version,
    codec::{decode, encode},
    feed::{AgentMessage, Hello, ManagerMessage, NodeView, Pin, Update, ViewKey},
    object::{EndpointId, NodeDescription, RaftId},
    rpc::{
        ApiRequest, ApiResponse, Certified, EnrolRequest, JoinRequest, JoinResponse, LeaveRequest,
        LeaveResponse, RaftMessage, RenewRequest, RootRequest, RootResponse,
    },
    spec::Availability,
};

/// What is done to a message on its way.
#[derive(Debug, Clone)]
struct Damage {
    flips: Vec<(prop::sample::Index, u8)>,
    cut: Option<prop::sample::Index>,
    /// In place of a length or a marker: claims that much more follows.
    claim: Option<(prop::sample::Index, [u8; 5])>,
}

fn damage() -> impl Strategy<Value = Damage> {
    // Arrays, maps, strings and byte strings with a length of 32 bits.
    let marker = prop::sample::select(vec![0xdd_u8, 0xdf, 0xdb, 0xc6]);
    let claim = (any::<prop::sample::Index>(), marker, any::<[u8; 4]>());
    let claim = claim.prop_map(|(at, marker, [a, b, c, d])| (at, [marker, a, b, c, d]));
    (
        prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        prop::option::of(any::<prop::sample::Index>()),
        prop::option::of(claim),
    )
        .prop_map(|(flips, cut, claim)| Damage { flips, cut, claim })
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (at, flip) in &self.flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Some((at, claim)) = &self.claim {
            let at = at.index(bytes.len());
            bytes.splice(at..=at, *claim);
        }
        if let Some(cut) = &self.cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }
}

/// Decodes a damaged message; what it still is reads back.
fn survives<T>(message: &T, damage: &Damage, junk: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let whole = encode(message);
    assert_eq!(&decode::<T>(&whole).unwrap(), message);
    for bytes in [&damage.apply(whole)[..], junk] {
        if let Ok(read) = decode::<T>(bytes) {
            assert_eq!(decode::<T>(&encode(&read)).unwrap(), read);
        }
    }
}

fn hello() -> Hello {
    Hello {
        description: NodeDescription::default(),
        vtep: Ipv4Addr::LOCALHOST,
        applied: Version(7),
        known: vec![
            (ViewKey::Cluster, 1),
            (ViewKey::Peer(NodeId::generate()), 2),
        ],
    }
}

fn certified() -> Certified {
    Certified {
        chain_pem: "chain".to_owned(),
        roots_pem: "roots".to_owned(),
    }
}

proptest! {
    #[test]
    fn calls_are_decoded_or_refused(damage in damage(), junk: Vec<u8>) {
        let text = || "SWMTKN-1-x".to_owned();
        survives(&RootRequest {}, &damage, &junk);
        survives(&RootResponse { certificate_pem: text() }, &damage, &junk);
        survives(&RenewRequest { request_pem: text() }, &damage, &junk);
        survives(&certified(), &damage, &junk);
        survives(&LeaveRequest {}, &damage, &junk);
        survives(&LeaveResponse {}, &damage, &junk);
        let join = JoinRequest {
            token: text(),
            request_pem: text(),
            description: NodeDescription::default(),
            advertise_addr: Some(Ipv4Addr::LOCALHOST),
            data_path_addr: None,
            availability: Availability::Active,
        };
        survives(&join, &damage, &junk);
        let joined = JoinResponse {
            node: NodeId::generate(),
            cluster: ClusterId::generate(),
            certified: certified(),
            addr: Ipv4Addr::LOCALHOST,
            vtep: Ipv4Addr::LOCALHOST,
        };
        survives(&joined, &damage, &junk);
        let enrol = EnrolRequest { raft: RaftId(7), addr: "192.0.2.1:2377".parse().unwrap() };
        survives(&enrol, &damage, &junk);
        survives(&RaftMessage { bytes: text().into() }, &damage, &junk);
        let request = ApiRequest {
            method: text(),
            uri: text(),
            content_type: Some(text()),
            body: text().into(),
        };
        survives(&request, &damage, &junk);
        let response = ApiResponse {
            status: 200,
            content_type: None,
            warning: Some(text()),
            body: text().into(),
        };
        survives(&response, &damage, &junk);
    }

    #[test]
    fn what_agents_and_managers_say_is_decoded_or_refused(damage in damage(), junk: Vec<u8>) {
        let pin = Pin {
            client: "192.0.2.9:1".parse().unwrap(),
            frontend: "192.0.2.1:80".parse().unwrap(),
            endpoint: EndpointId(1),
        };
        for message in [
            AgentMessage::Hello(Box::new(hello())),
            AgentMessage::Ack { version: Version(1) },
            AgentMessage::Heartbeat { applied: Version(1), digest: 9 },
            AgentMessage::Pins(vec![pin]),
        ] {
            survives(&message, &damage, &junk);
        }
        let update = Update {
            version: Version(1),
            removed: vec![ViewKey::Cluster],
            put: NodeView::default().objects().collect(),
        };
        for message in [
            ManagerMessage::Update(update),
            ManagerMessage::StatusAck { seq: 1 },
            ManagerMessage::Trust { roots_pem: "roots".to_owned() },
            ManagerMessage::Pins { node: NodeId::generate(), pins: vec![pin] },
        ] {
            survives(&message, &damage, &junk);
        }
    }
}
