//! Syncs against the kernel's own maps.

mod node;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use aya::maps::Array;
use dataplane_abi::{
    Be16, Be32, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue, FLOW_RESET, FlowKey, FlowValue,
    LocalEndpoint, NodeConfig, PeerValue, PinKey, PinValue, PortWord, RING_CHUNK_WORDS, RingChunk,
    RingForm, RingPlace, RingSlot, ServiceValue, TargetKey, TargetValue, VethValue, VipFlowKey,
    VipFlowValue, VipKey,
};
use model::{
    EndpointId,
    feed::{
        BackendState::{Active, Draining, Starting},
        NodeView, PublishedPort,
    },
    spec::Protocol,
};
use node::{
    OTHER, Pins, SELF, SERVICE, VNI, endpoint, endpoint_addr, in_namespace, local, view, vtep,
};
use swarmnet_datapath::{Datapath, DatapathError, Doubt, HostPort, LocalState};

/// Of TCP 8080, in `PORTS`.
const PORT: u32 = 8080;

fn flow(client: u32, endpoint: u32) -> (FlowKey, FlowValue) {
    let key = FlowKey {
        client: Be32::from_host(0x0a09_0000 + client),
        task: Be32::from(Ipv4Addr::new(172, 18, 0, 10 + endpoint as u8)),
        client_port: Be16::from_host(40_000),
        task_port: Be16::from_host(80),
        proto: 6,
        ..FlowKey::default()
    };
    let value = FlowValue {
        node_addr: node::vtep(SELF).into(),
        published: Be16::from_host(8080),
        endpoint,
        generation: 1,
        entry_vtep: node::vtep(OTHER).into(),
        ..FlowValue::default()
    };
    (key, value)
}

/// Whether a look at everything finds nothing to do.
fn is_in_step(datapath: &mut Datapath, view: &NodeView, local: &LocalState) -> bool {
    let is_altered = looks_altered(datapath);
    let (report, found) = datapath.repair(view, local).unwrap();
    report.is_unchanged() && found.is_empty() && !is_altered
}

/// What a look from beside says.
fn looks_altered(datapath: &mut Datapath) -> bool {
    let sight = datapath.look().unwrap().take().unwrap();
    datapath.is_altered(&sight)
}

/// Open, sync; then nothing to do, for this process and for the next one.
#[test]
fn second_sync_and_restarted_agent_change_nothing() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        view.put(endpoint(3, OTHER, Active));
        let mut datapath = pins.open();
        let report = datapath.sync(&view, &local(&[1])).unwrap();
        assert_eq!(report.services_written, 2, "{report:?}");
        assert_eq!(report.rings_written, 1, "VIP and port share it: {report:?}");
        assert_eq!(report.skipped, []);
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));

        // A change, so that the rings have owners before.
        view.put(endpoint(2, OTHER, Draining));
        datapath.sync(&view, &local(&[1])).unwrap();
        let before = datapath.inspect_services(&view).unwrap();
        drop(datapath);
        let mut datapath = pins.open();
        assert!(datapath.sync(&view, &local(&[1])).unwrap().is_unchanged());
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
        assert_eq!(datapath.inspect_services(&view).unwrap(), before);
    });
}

/// Flags of nodes outlive the agent that set them, and tell the next one.
#[test]
fn what_an_agent_doubted_is_known_to_the_next_one() {
    in_namespace(|pins| {
        let view = view();
        for doubt in [Doubt::Suspected, Doubt::Returning] {
            let mut doubting = local(&[]);
            doubting.doubts.insert(OTHER, doubt);
            pins.open().sync(&view, &doubting).unwrap();
            let mut datapath = pins.open();
            assert_eq!(datapath.doubts(&view).unwrap(), doubting.doubts);
            let report = datapath.sync(&view, &doubting).unwrap();
            assert!(report.is_unchanged(), "{report:?}");
        }
        pins.open().sync(&view, &local(&[])).unwrap();
        assert_eq!(pins.open().doubts(&view).unwrap(), BTreeMap::new());
    });
}

/// A sync costs what it changes: it leaves what others altered to a repair.
#[test]
fn change_is_planned_from_the_record() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1])).unwrap();
        let mut endpoints = pins.table::<EndpointKey, EndpointValue>("ENDPOINTS");
        endpoints.remove(&remote(2)).unwrap();

        view.put(endpoint(3, OTHER, Active));
        let report = datapath.sync(&view, &local(&[1])).unwrap();
        assert_eq!((report.entries_written, report.services_written), (1, 2));
        assert!(endpoints.get(&remote(3), 0).is_ok());
        assert!(endpoints.get(&remote(2), 0).is_err(), "all was read");

        let (_, found) = datapath.repair(&view, &local(&[1])).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(endpoints.get(&remote(2), 0).is_ok());
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
    });
}

/// A look is taken on its own thread: changes go on, and are not taken for alterations, whichever part
/// of them it saw.
#[test]
fn changes_go_on_beside_a_look() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let mut datapath = pins.open();
        assert!(datapath.look().is_none(), "nothing is known yet");
        datapath.sync(&view, &local(&[1])).unwrap();

        // Before the change and with it, as far as it had come: here all of it, ...
        let look = datapath.look().unwrap();
        view.put(endpoint(3, OTHER, Active));
        datapath.sync(&view, &local(&[1])).unwrap();
        let sight = std::thread::spawn(|| look.take()).join().unwrap().unwrap();
        assert!(!datapath.is_altered(&sight));
        // ... and here nothing.
        let sight = datapath.look().unwrap().take().unwrap();
        view.put(endpoint(2, OTHER, Draining));
        datapath.sync(&view, &local(&[1])).unwrap();
        assert!(!datapath.is_altered(&sight));

        // What is altered meanwhile is seen all the same.
        let look = datapath.look().unwrap();
        view.put(endpoint(4, OTHER, Active));
        datapath.sync(&view, &local(&[1])).unwrap();
        let mut endpoints = pins.table::<EndpointKey, EndpointValue>("ENDPOINTS");
        endpoints.remove(&remote(1)).unwrap();
        let sight = look.take().unwrap();
        assert!(datapath.is_altered(&sight));
        let (_, found) = datapath.repair(&view, &local(&[1])).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
    });
}

/// What the maps hold after a write that failed is not known: the next sync reads all of it.
#[test]
fn failed_write_makes_the_next_sync_look_at_everything() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1])).unwrap();
        let mut endpoints = pins.table::<EndpointKey, EndpointValue>("ENDPOINTS");
        endpoints.remove(&remote(2)).unwrap();

        let too_many = (0..=dataplane_abi::NODE_ADDRS_MAX).map(|n| Ipv4Addr::from(0x0a00_0000 + n));
        let unwritable = LocalState {
            node_addrs: too_many.collect(),
            ..local(&[1])
        };
        view.put(endpoint(3, OTHER, Active));
        let error = datapath.sync(&view, &unwritable).unwrap_err();
        assert!(error.to_string().contains("NODE_ADDRS"), "{error}");

        datapath.sync(&view, &local(&[1])).unwrap();
        assert!(endpoints.get(&remote(2), 0).is_ok());
        assert!(endpoints.get(&remote(3), 0).is_ok());
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
    });
}

fn remote(id: u32) -> EndpointKey {
    EndpointKey {
        vni: VNI,
        addr: endpoint_addr(id).into(),
    }
}

type Harm<'a> = Box<dyn FnMut() + 'a>;

#[test]
fn deleted_and_altered_entries_are_repaired() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1])).unwrap();

        let mut endpoints = pins.table::<EndpointKey, EndpointValue>("ENDPOINTS");
        let mut locals = pins.table::<u32, LocalEndpoint>("LOCAL");
        let mut veths = pins.table::<u32, VethValue>("VETHS");
        let mut more_veths = pins.table::<u32, VethValue>("VETHS");
        let mut vips = pins.table::<VipKey, ServiceValue>("VIPS");
        let mut ports = Array::<_, u32>::try_from(pins.map("PORTS")).unwrap();
        let mut frontends = Array::<_, ServiceValue>::try_from(pins.map("FRONTENDS")).unwrap();
        let place = ports.get(&PORT, 0).unwrap();
        let mut rings = Array::<_, RingChunk>::try_from(pins.map("RINGS")).unwrap();
        let mut config = Array::<_, NodeConfig>::try_from(pins.map("CONFIG")).unwrap();
        let remote = remote(2);
        let vip = VipKey {
            vni: VNI,
            addr: Ipv4Addr::new(10, 0, 1, 2).into(),
        };
        let sound = (
            endpoints.get(&remote, 0).unwrap(),
            locals.get(&1, 0).unwrap(),
            vips.get(&vip, 0).unwrap(),
            frontends.get(&place, 0).unwrap(),
        );

        let mut harms: Vec<(&str, Harm<'_>)> = vec![
            (
                "endpoint deleted",
                Box::new(|| endpoints.remove(&remote).unwrap()),
            ),
            ("local deleted", Box::new(|| locals.remove(&1).unwrap())),
            (
                "interface altered",
                Box::new(|| {
                    veths.insert(201, VethValue::default(), 0).unwrap();
                }),
            ),
            (
                "interface of nobody",
                Box::new(|| {
                    more_veths.insert(777, VethValue::default(), 0).unwrap();
                }),
            ),
            ("VIP deleted", Box::new(|| vips.remove(&vip).unwrap())),
            (
                "frontend altered",
                Box::new(|| {
                    let wrong = ServiceValue {
                        ring: RingPlace::from_raw(u32::MAX),
                        ..ServiceValue::default()
                    };
                    frontends.set(place, wrong, 0).unwrap();
                }),
            ),
            (
                "port withdrawn",
                Box::new(|| ports.set(PORT, 0, 0).unwrap()),
            ),
            (
                "ring overwritten",
                Box::new(|| {
                    let words = [u32::MAX; RING_CHUNK_WORDS as usize];
                    rings.set(0, RingChunk { words }, 0).unwrap();
                }),
            ),
            (
                "configuration zeroed",
                Box::new(|| {
                    config.set(0, NodeConfig::default(), 0).unwrap();
                }),
            ),
        ];
        for (harm, apply) in &mut harms {
            apply();
            assert!(
                looks_altered(&mut datapath),
                "{harm} was not seen from beside"
            );
            let (report, _) = datapath.repair(&view, &local(&[1])).unwrap();
            assert!(!report.is_unchanged(), "{harm} was not seen");
            let again = is_in_step(&mut datapath, &view, &local(&[1]));
            assert!(again, "{harm}");
        }
        drop(harms);

        assert_eq!(endpoints.get(&remote, 0).unwrap(), sound.0);
        assert_eq!(locals.get(&1, 0).unwrap().addr, sound.1.addr);
        assert_eq!(vips.get(&vip, 0).unwrap().ring_len, sound.2.ring_len);
        let place = PortWord::from_raw(ports.get(&PORT, 0).unwrap()).frontend();
        let value = frontends.get(&place.unwrap(), 0).unwrap();
        assert_eq!(value.port_shift, sound.3.port_shift);
        assert_eq!(config.get(&0, 0).unwrap().mesh_vni, 4096);
        let rows = datapath.inspect_services(&view).unwrap();
        assert_eq!(rows[0].ring_digest, rows[1].ring_digest);
    });
}

#[test]
fn flag_that_programs_set_is_left_alone() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1])).unwrap();
        let mut endpoints = pins.table::<EndpointKey, EndpointValue>("ENDPOINTS");
        let (key, value) = endpoints.iter().next().unwrap().unwrap();
        let flags = ENDPOINT_HAS_VIP_FLOWS;
        endpoints
            .insert(key, EndpointValue { flags, ..value }, 0)
            .unwrap();
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
        let rewired = {
            let mut local = local(&[1]);
            local
                .tasks
                .values_mut()
                .for_each(|task| task.overlays[0].1.ifindex = 301);
            local
        };
        assert!(!datapath.sync(&view, &rewired).unwrap().is_unchanged());
        let value = endpoints.get(&key, 0).unwrap();
        assert_eq!((value.ifindex, value.flags), (301, ENDPOINT_HAS_VIP_FLOWS));
    });
}

/// FLOWS of the endpoint that left go, those of the other stay; VIP flows likewise.
#[test]
fn flows_of_a_gone_endpoint_go_at_once() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, SELF, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1, 2])).unwrap();
        let mut flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        for client in 0..5_000 {
            let (key, value) = flow(client, 1 + client % 2);
            flows.insert(key, value, 0).unwrap();
        }
        let mut vip_flows = pins.table::<VipFlowKey, VipFlowValue>("VIP_FLOWS");
        for endpoint in [1, 2] {
            let key = VipFlowKey {
                vni: VNI,
                backend: endpoint_addr(endpoint).into(),
                ..VipFlowKey::default()
            };
            vip_flows.insert(key, VipFlowValue::default(), 0).unwrap();
        }
        assert_eq!(
            datapath.live_flows().unwrap(),
            [(1, 2_500), (2, 2_500)].into()
        );

        // The task still runs: what counts is the view.
        view.remove(model::feed::ViewKey::Endpoint(model::EndpointId(1)));
        let report = datapath.sync(&view, &local(&[1, 2])).unwrap();
        assert_eq!(report.flows_dropped, 2_501);
        assert_eq!(datapath.live_flows().unwrap(), [(2, 2_500)].into());
        assert_eq!(vip_flows.keys().count(), 1);
    });
}

/// A flow is pinned when its slot belongs to another endpoint, and until it ends.
#[test]
fn flows_that_changes_displaced_are_found_and_pinned() {
    in_namespace(|pins| {
        let mut view = view();
        (1..=3).for_each(|id| view.put(endpoint(id, SELF, Active)));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1, 2, 3])).unwrap();
        assert!(unsettled_until(pins) == 0, "nothing was moved");
        let mut flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        for client in 0..3_000 {
            let (key, value) = flow(client, 1);
            flows.insert(key, value, 0).unwrap();
        }
        // Flows of the first at slots that it does not own.
        let displaced = datapath.flow_search(vec![]).make().unwrap();
        assert!(
            (1_500..2_500).contains(&displaced.len()),
            "{}",
            displaced.len()
        );
        assert!(
            displaced
                .iter()
                .all(|pin| pin.endpoint == model::EndpointId(1))
        );

        // Drained, it owns none.
        view.put(endpoint(1, SELF, Draining));
        datapath.sync(&view, &local(&[1, 2, 3])).unwrap();
        assert!(unsettled_until(pins) > 0);
        let more = datapath.flow_search(vec![]).make().unwrap();
        assert_eq!(more.len(), 3_000);
        // It has its own again; other nodes may not know that yet.
        view.put(endpoint(1, SELF, Active));
        datapath.sync(&view, &local(&[1, 2, 3])).unwrap();
        assert_eq!(datapath.flow_search(more.clone()).make().unwrap(), more);
        assert_eq!(datapath.flow_search(vec![]).make().unwrap(), displaced);

        let others = model::feed::Pin {
            endpoint: model::EndpointId(9),
            client: "10.1.2.3:4567".parse().unwrap(),
            ..more[0]
        };
        let all = [(SELF, more.clone()), (OTHER, vec![others])].into();
        datapath.pin(&all, &view, SELF).unwrap();
        assert_eq!(datapath.pins(&view, SELF).unwrap()[&OTHER], [others]);
        let pinned = pins.table::<PinKey, PinValue>("PINS");
        assert_eq!(pinned.keys().count(), more.len() + 1);
        let vteps: Vec<_> = pinned.iter().map(|pin| pin.unwrap().1.vtep).collect();
        let far = vteps.iter().filter(|at| **at == vtep(OTHER).into()).count();
        assert_eq!(
            (far, vteps.iter().filter(|at| at.is_zero()).count()),
            (1, more.len())
        );

        // Ended flows are no flows.
        for entry in flows.iter().collect::<Vec<_>>() {
            let (key, mut value) = entry.unwrap();
            value.flags = FLOW_RESET;
            flows.insert(key, value, 0).unwrap();
        }
        assert_eq!(datapath.flow_search(vec![]).make().unwrap(), []);
        let left = [(OTHER, vec![others])].into();
        datapath.pin(&left, &view, SELF).unwrap();
        assert_eq!(pinned.keys().count(), 1);

        // They are planned from what was last written, so what others altered waits for a look.
        let mut pinned = pinned;
        let (key, value) = pinned.iter().next().unwrap().unwrap();
        pinned.remove(&key).unwrap();
        datapath.pin(&left, &view, SELF).unwrap();
        assert!(pinned.get(&key, 0).is_err(), "the map was read");
        looks_altered(&mut datapath);
        datapath.pin(&left, &view, SELF).unwrap();
        assert_eq!(pinned.get(&key, 0).unwrap().endpoint, value.endpoint);
    });
}

fn unsettled_until(pins: &Pins) -> u64 {
    let config: aya::maps::Array<_, NodeConfig> = pins.map("CONFIG").try_into().unwrap();
    config.get(&0, 0).unwrap().unsettled_until
}

#[test]
fn inspection_names_what_the_maps_hold() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let mut datapath = pins.open();
        datapath.sync(&view, &local(&[1])).unwrap();
        view.put(endpoint(2, OTHER, Draining));
        datapath.sync(&view, &local(&[1])).unwrap();
        let (key, value) = flow(7, 1);
        pins.table::<FlowKey, FlowValue>("FLOWS")
            .insert(key, value, 0)
            .unwrap();

        let vips = datapath.inspect_vips(&view).unwrap();
        assert_eq!(vips.len(), 1);
        assert_eq!(
            (vips[0].service.as_str(), vips[0].network.as_str()),
            ("web", "net")
        );
        assert_eq!((vips[0].active, vips[0].draining), (1, 1));

        let services = datapath.inspect_services(&view).unwrap();
        let frontends: Vec<_> = services.iter().map(|row| row.frontend.as_str()).collect();
        assert_eq!(frontends, ["10.0.1.2 (net)", "*:8080/tcp -> 80"]);
        assert_eq!(
            services[0].ring_len, 1_024,
            "kept for the flows of the drained"
        );

        let endpoints = datapath.inspect_endpoints(&view).unwrap();
        let via: Vec<_> = endpoints
            .iter()
            .map(|row| (row.node.as_str(), row.via.as_str()))
            .collect();
        assert_eq!(via, [("n1", "local"), ("n2", "192.168.0.2")]);
        assert_eq!(endpoints[1].mac, "02:42:0a:00:01:0c");

        let backends = datapath.inspect_backends(&view).unwrap();
        let rows: Vec<_> = backends
            .iter()
            .map(|row| {
                (
                    row.task.as_str(),
                    row.state.as_str(),
                    row.share,
                    row.live_flows,
                )
            })
            .collect();
        assert_eq!(
            rows,
            [("web.1", "active", 100.0, 1), ("web.2", "draining", 0.0, 0)]
        );

        let flows = datapath.inspect_flows(&view).unwrap();
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].client, "10.9.0.7:40000");
        assert_eq!(flows[0].frontend, "192.168.0.1:8080");
        assert_eq!(flows[0].backend, "172.18.0.11:80");
        assert_eq!(
            (flows[0].task.as_str(), flows[0].entry.as_str()),
            ("web.1", "n2")
        );
        assert_eq!(datapath.inspect_drops().unwrap(), []);
    });
}

/// It leads to the one task, while that is in the view; the others of the service are elsewhere.
#[test]
fn ports_of_this_node_alone_lead_to_its_task() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Starting));
        view.put(endpoint(2, OTHER, Active));
        let mut local = local(&[1]);
        let task = local.tasks.values_mut().next().unwrap();
        let port = |proto, published, target| HostPort {
            proto,
            published,
            target,
        };
        // The last one is the mesh's.
        task.host_ports = vec![port(6, 9080, 80), port(17, 9053, 53), port(6, 8080, 8)];
        let mut datapath = pins.open();
        datapath.sync(&view, &local).unwrap();
        let rows = |datapath: &Datapath, view: &NodeView| {
            let rows = datapath.inspect_services(view).unwrap();
            let rows = rows.into_iter().filter(|row| row.frontend.contains("9080"));
            rows.map(|row| (row.service, row.frontend, row.backends))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows(&datapath, &view), [], "not before it serves");

        view.put(endpoint(1, SELF, Active));
        let report = datapath.sync(&view, &local).unwrap();
        let skipped: Vec<_> = report.skipped.iter().map(ToString::to_string).collect();
        assert_eq!(skipped.len(), 1, "{skipped:?}");
        assert!(skipped[0].contains("*:8080/tcp belongs to"), "{skipped:?}");
        let frontend = "*:9080/tcp -> 80 (this node)".to_owned();
        assert_eq!(rows(&datapath, &view), [("web".to_owned(), frontend, 1)]);
        assert!(is_in_step(&mut datapath, &view, &local));
        let targets = pins.table::<TargetKey, TargetValue>("TARGETS");
        let target = TargetKey {
            addr: Ipv4Addr::new(172, 18, 0, 11).into(),
            port: Be16::from_host(53),
            proto: 17,
            _pad: 0,
        };
        assert_eq!(targets.get(&target, 0).unwrap().endpoint, 1);

        view.put(endpoint(1, SELF, Draining));
        datapath.sync(&view, &local).unwrap();
        assert_eq!(
            rows(&datapath, &view).len(),
            1,
            "what drains keeps its flows"
        );
        view.endpoints.remove(&EndpointId(1));
        datapath.sync(&view, &local).unwrap();
        assert_eq!(rows(&datapath, &view), []);
    });
}

/// By the second ring, which has the node's own alone, while one of them is active.
#[test]
fn new_flows_go_to_the_nodes_own_tasks_where_the_service_prefers_them() {
    in_namespace(|pins| {
        let mut view = view();
        view.services.get_mut(&SERVICE).unwrap().policy.near_first = true;
        for (id, node) in [(1, SELF), (2, SELF), (3, OTHER), (4, OTHER)] {
            view.put(endpoint(id, node, Active));
        }
        let mut datapath = pins.open();
        let shares = |datapath: &Datapath, view: &NodeView| -> Vec<f64> {
            let rows = datapath.inspect_backends(view).unwrap();
            rows.iter().map(|row| row.share.round()).collect()
        };
        let choices = |datapath: &Datapath, view: &NodeView| -> Vec<String> {
            let services = datapath.inspect_services(view).unwrap();
            let vips = datapath.inspect_vips(view).unwrap();
            let services = services.into_iter().map(|row| row.choice);
            services
                .chain(vips.into_iter().map(|row| row.choice))
                .collect()
        };
        let local = local(&[1, 2]);
        datapath.sync(&view, &local).unwrap();
        assert_eq!(shares(&datapath, &view), [50.0, 50.0, 0.0, 0.0]);
        assert_eq!(choices(&datapath, &view), ["local"; 3]);
        assert!(datapath.sync(&view, &local).unwrap().is_unchanged());
        view.put(endpoint(1, SELF, Draining));
        datapath.sync(&view, &local).unwrap();
        assert_eq!(shares(&datapath, &view), [0.0, 100.0, 0.0, 0.0]);
        view.put(endpoint(2, SELF, Draining));
        datapath.sync(&view, &local).unwrap();
        assert_eq!(shares(&datapath, &view), [0.0, 0.0, 50.0, 50.0]);
        assert_eq!(choices(&datapath, &view), ["spread"; 3]);
        drop(datapath);
        let mut datapath = pins.open();
        assert!(datapath.sync(&view, &local).unwrap().is_unchanged());
    });
}

#[test]
fn view_without_cluster_is_refused_and_harms_nothing() {
    in_namespace(|pins| {
        let mut full = view();
        full.put(endpoint(1, OTHER, Active));
        let mut datapath = pins.open();
        datapath.sync(&full, &local(&[])).unwrap();
        let error = datapath.sync(&Default::default(), &local(&[])).unwrap_err();
        assert!(matches!(error, DatapathError::Desired(_)), "{error}");
        assert!(is_in_step(&mut datapath, &full, &local(&[])));
    });
}

/// Timing informs: the figures go to the output.
#[test]
fn large_views_are_synced() {
    in_namespace(|pins| {
        let mut datapath = pins.open();
        let mut view = view();
        for id in 1..=1_000 {
            view.put(endpoint(id, OTHER, Active));
        }
        let report = datapath.sync(&view, &local(&[])).unwrap();
        println!("1 service x 1000 backends: {:?}", report.duration);
        assert_eq!(report.rings_written, 1);
        let begun = Instant::now();
        assert!(is_in_step(&mut datapath, &view, &local(&[])));
        println!("compared: {:?}", begun.elapsed());
    });
}

/// Of the published port, as the kernel has it.
fn ring(pins: &Pins) -> (ServiceValue, Vec<RingSlot>) {
    let ports = Array::<_, u32>::try_from(pins.map("PORTS")).unwrap();
    let frontends = Array::<_, ServiceValue>::try_from(pins.map("FRONTENDS")).unwrap();
    let rings = Array::<_, RingChunk>::try_from(pins.map("RINGS")).unwrap();
    let service = frontends.get(&ports.get(&PORT, 0).unwrap(), 0).unwrap();
    let slots = service.ring.chunks(service.ring_len).flat_map(|chunk| {
        let chunk = rings.get(&chunk, 0).unwrap();
        service.ring.slots(&chunk).collect::<Vec<_>>()
    });
    (service, slots.take(service.ring_len as usize).collect())
}

/// Every slot that changed its owner names the one before. Endpoints only came or went at the end, so
/// that all others have the same indexes.
fn assert_owner_before_is_known(old: &[RingSlot], new: &[RingSlot]) {
    assert_eq!(old.len(), new.len());
    let moved = old.iter().zip(new).filter(|(old, new)| old.now != new.now);
    let mut count = 0;
    for (old, new) in moved {
        assert_eq!(old.now, new.before);
        count += 1;
    }
    assert!(count > 0, "no slot moved");
}

#[test]
fn slots_take_two_bytes_up_to_256_backends_and_know_the_owner_before_beyond() {
    in_namespace(|pins| {
        let mut datapath = pins.open();
        let mut view = view();
        for id in 1..=256 {
            view.put(endpoint(id, OTHER, Active));
        }
        datapath.sync(&view, &local(&[])).unwrap();
        let (service, narrow) = ring(pins);
        assert_eq!(service.ring.form(), RingForm::Narrow);

        view.put(endpoint(257, OTHER, Active));
        datapath.sync(&view, &local(&[])).unwrap();
        assert!(is_in_step(&mut datapath, &view, &local(&[])));
        let (service, wide) = ring(pins);
        assert_eq!(service.ring.form(), RingForm::Wide);
        assert_owner_before_is_known(&narrow, &wide);

        // As long as it drains, slots name it as the owner before.
        view.put(endpoint(257, OTHER, Draining));
        datapath.sync(&view, &local(&[])).unwrap();
        assert!(is_in_step(&mut datapath, &view, &local(&[])));
        let (service, draining) = ring(pins);
        assert_eq!(service.ring.form(), RingForm::Wide);
        assert_owner_before_is_known(&wide, &draining);

        view.endpoints.remove(&EndpointId(257));
        datapath.sync(&view, &local(&[])).unwrap();
        assert!(is_in_step(&mut datapath, &view, &local(&[])));
        let (service, after) = ring(pins);
        assert_eq!(service.ring.form(), RingForm::Narrow);
        let owners = |slots: &[RingSlot]| slots.iter().map(|slot| slot.now).collect::<Vec<_>>();
        assert_eq!(owners(&after), owners(&narrow));
    });
}

/// Builds before layout 10 wrote four bytes a slot, however few backends there were.
#[test]
fn ring_that_a_former_build_wrote_stays_until_it_changes() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let local = local(&[1]);
        pins.open().sync(&view, &local).unwrap();
        let (service, slots) = ring(pins);
        widen(pins, service, &slots);

        let mut datapath = pins.open();
        let report = datapath.sync(&view, &local).unwrap();
        assert!(report.is_unchanged(), "{report:?}");
        assert_eq!(ring(pins).0.ring.form(), RingForm::Wide);

        view.put(endpoint(3, OTHER, Active));
        let report = datapath.sync(&view, &local).unwrap();
        assert_eq!(report.rings_written, 1, "VIP and port share it");
        assert!(is_in_step(&mut datapath, &view, &local));
        let (service, after) = ring(pins);
        assert_eq!(service.ring.form(), RingForm::Narrow);
        assert_owner_before_is_known(&slots, &after);
    });
}

/// Moves the ring that port and VIP share to where nothing is, in the wide form.
fn widen(pins: &Pins, service: ServiceValue, slots: &[RingSlot]) {
    const FREE: u32 = 100;
    let form = RingForm::Wide;
    let mut rings = Array::<_, RingChunk>::try_from(pins.map("RINGS")).unwrap();
    let raw: Vec<u32> = slots.iter().map(|slot| slot.to_raw()).collect();
    let runs = raw.chunks(form.slots_per_chunk() as usize);
    for (at, run) in (FREE..).zip(runs) {
        rings.set(at, form.pack(run), 0).unwrap();
    }
    let ring = RingPlace::new(FREE, form);
    let ports = Array::<_, u32>::try_from(pins.map("PORTS")).unwrap();
    let mut frontends = Array::<_, ServiceValue>::try_from(pins.map("FRONTENDS")).unwrap();
    let place = ports.get(&PORT, 0).unwrap();
    frontends
        .set(place, ServiceValue { ring, ..service }, 0)
        .unwrap();
    let mut vips = pins.table::<VipKey, ServiceValue>("VIPS");
    for (key, vip) in vips.iter().map(Result::unwrap).collect::<Vec<_>>() {
        vips.insert(key, ServiceValue { ring, ..vip }, 0).unwrap();
    }
}

/// By a repair, which names each entry; what a view brought about before is no deviation.
#[test]
fn entries_altered_by_hand_are_put_right_and_named() {
    in_namespace(|pins| {
        let mut view = view();
        view.put(endpoint(1, SELF, Active));
        view.put(endpoint(2, OTHER, Active));
        let (mut datapath, local) = (pins.open(), local(&[1]));
        datapath.sync(&view, &local).unwrap();
        let (report, found) = datapath.repair(&view, &local).unwrap();
        assert!(report.is_unchanged() && found.is_empty(), "{found:?}");

        let mut peers = pins.table::<Be32, PeerValue>("PEERS");
        peers.remove(&vtep(OTHER).into()).unwrap();
        let stranger = std::net::Ipv4Addr::new(198, 51, 100, 66);
        peers
            .insert(Be32::from(stranger), PeerValue::default(), 0)
            .unwrap();
        let ports = Array::<_, u32>::try_from(pins.map("PORTS")).unwrap();
        let mut frontends = Array::<_, ServiceValue>::try_from(pins.map("FRONTENDS")).unwrap();
        let place = ports.get(&PORT, 0).unwrap();
        let service = frontends.get(&place, 0).unwrap();
        let altered = ServiceValue {
            port_shift: 22,
            ..service
        };
        frontends.set(place, altered, 0).unwrap();
        let mut rings = Array::<_, RingChunk>::try_from(pins.map("RINGS")).unwrap();
        let chunk = RingChunk {
            words: [7; RING_CHUNK_WORDS as usize],
        };
        rings.set(service.ring.first_chunk(), chunk, 0).unwrap();

        let (_, found) = datapath.repair(&view, &local).unwrap();
        let said: Vec<_> = found
            .iter()
            .map(|found| format!("{} was {}", found.what, found.found))
            .collect();
        // The VIP has the same ring.
        assert_eq!(
            said,
            [
                "map entry PEERS 192.168.0.2 was missing",
                "map entry VIPS 10.0.1.2 in VNI 5001 was altered",
                "map entry PORTS 8080/tcp was altered",
                "map entry PEERS 198.51.100.66 was there and nobody's",
            ]
        );
        assert_eq!(
            frontends
                .get(&ports.get(&PORT, 0).unwrap(), 0)
                .unwrap()
                .port_shift,
            service.port_shift
        );
        let (report, found) = datapath.repair(&view, &local).unwrap();
        assert!(report.is_unchanged() && found.is_empty(), "{found:?}");
    });
}

/// A thousand ports are one frontend, and a change of their backends turns each by one store.
#[test]
fn thousand_ports_are_one_frontend() {
    in_namespace(|pins| {
        let mut datapath = pins.open();
        let mut view = view();
        let id = *view.services.keys().next().unwrap();
        view.services.get_mut(&id).unwrap().ports = (8000..9000)
            .map(|published| PublishedPort {
                protocol: Protocol::Tcp,
                published,
                target: published - 1000,
                addresses: Vec::new(),
            })
            .collect();
        view.put(endpoint(1, SELF, Active));
        let report = datapath.sync(&view, &local(&[1])).unwrap();
        println!("1000 ports: {:?}", report.duration);
        assert_eq!((report.services_written, report.ports_turned), (2, 1_000));
        let rows = datapath.inspect_services(&view).unwrap();
        assert_eq!(rows[1].frontend, "*:8000-8999/tcp -> 7000-7999");

        view.put(endpoint(2, OTHER, Active));
        let report = datapath.sync(&view, &local(&[1])).unwrap();
        println!("one more backend for them: {:?}", report.duration);
        assert_eq!((report.services_written, report.ports_turned), (2, 1_000));
        assert!(is_in_step(&mut datapath, &view, &local(&[1])));
    });
}
