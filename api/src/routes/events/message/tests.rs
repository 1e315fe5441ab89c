use std::sync::Arc;

use jiff::Timestamp;
use model::{
    ServiceId,
    object::{Meta, ServiceEndpoint},
    spec::ServiceSpec,
};
use serde_json::Value;
use store::Transaction;

use super::*;

/// Applies what `write` writes, and gives the events of it.
fn step(state: &mut State, write: impl FnOnce(&mut Transaction)) -> Vec<Message> {
    let mut tx = Transaction::new(Arc::new(state.clone()), Timestamp::UNIX_EPOCH);
    write(&mut tx);
    let before = state.clone();
    let commit = state.apply(tx.finish().unwrap()).unwrap();
    messages(&before, &commit).collect()
}

fn web() -> Service {
    let mut spec = ServiceSpec {
        name: "web".into(),
        ..ServiceSpec::default()
    };
    spec.labels.insert("tier".into(), "front".into());
    Service {
        id: ServiceId::from_raw(7),
        meta: Meta::new(Timestamp::UNIX_EPOCH),
        spec,
        previous_spec: None,
        spec_version: Default::default(),
        endpoint: ServiceEndpoint::default(),
        update_status: None,
    }
}

fn stored(state: &State) -> Service {
    Service::clone(state.service(ServiceId::from_raw(7)).unwrap())
}

#[test]
fn a_services_life_is_told_and_the_managers_own_work_is_not() {
    let mut state = State::default();
    let created = step(&mut state, |tx| tx.put(web()).unwrap());
    assert_eq!(created.len(), 1);
    assert_eq!(created[0].action, "create");

    let mut service = stored(&state);
    service.endpoint.mode = model::spec::EndpointMode::Dnsrr;
    assert_eq!(step(&mut state, |tx| tx.put(service).unwrap()), []);

    let mut service = stored(&state);
    service.spec.mode = ServiceMode::Replicated { replicas: 5 };
    let updated = step(&mut state, |tx| tx.put(service).unwrap());
    let line: Value = serde_json::from_slice(&updated[0].line()).unwrap();
    assert_eq!(line["Type"], "service");
    assert_eq!(line["Action"], "update");
    assert_eq!(line["scope"], "swarm");
    assert_eq!(line["Actor"]["Attributes"]["replicas.old"], "1");
    assert_eq!(line["Actor"]["Attributes"]["replicas.new"], "5");

    let removed = step(&mut state, |tx| {
        tx.remove(Key::Service(ServiceId::from_raw(7)))
    });
    assert_eq!(
        (removed[0].action, removed[0].name.as_str()),
        ("remove", "web")
    );
}

#[test]
fn filters_choose_by_kind_action_object_and_label() {
    let message = service(&web(), "create", Vec::new());
    let matches = |text: &str| {
        let keys = ["type", "event", "service", "node", "label", "scope"];
        message.matches(&Filters::parse(Some(text), &keys).unwrap())
    };
    for wanted in [
        r#"{}"#,
        r#"{"type":["service"],"event":["create"],"scope":["swarm"]}"#,
        r#"{"service":["web"]}"#,
        r#"{"label":["tier=front"]}"#,
    ] {
        assert!(matches(wanted), "{wanted}");
    }
    for unwanted in [
        r#"{"type":["network"]}"#,
        r#"{"event":["remove"]}"#,
        r#"{"service":["db"]}"#,
        r#"{"node":["web"]}"#,
        r#"{"label":["tier=back"]}"#,
    ] {
        assert!(!matches(unwanted), "{unwanted}");
    }
}
