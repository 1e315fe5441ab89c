//! From a build with another map layout to this one. The former build is this one under another
//! layout's name, with maps of another shape where the test says so.

mod node;

use std::{fs, path::PathBuf};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapInfo},
};
use dataplane_abi::{Be16, Be32, FLOW_CLIENT_FIN, FlowKey, FlowValue, LocalEndpoint, NodeConfig};
use model::feed::{BackendState::Active, NodeView};
use node::{OTHER, Pins, SELF, by_each_ingress, endpoint, local, on_ingress, veth, view};
use swarmnet_datapath::{Datapath, LocalState};

const DEVICES: [&str; 5] = ["uplink", "vx", "task", "gw.1", "order"];

/// As an agent does at each start.
fn attach_all(datapath: &mut Datapath) {
    let [uplink, vxlan, task, gateway, order] = DEVICES.map(node::ifindex);
    datapath.attach_uplink(uplink).unwrap();
    datapath.attach_vxlan(vxlan).unwrap();
    datapath.attach_task(task).unwrap();
    datapath.attach_gateway(gateway).unwrap();
    datapath.attach_reassembly(order).unwrap();
}

fn attached() -> Vec<Vec<(String, u32)>> {
    DEVICES.map(on_ingress).to_vec()
}

fn names(attached: &[Vec<(String, u32)>]) -> Vec<Vec<&str>> {
    attached
        .iter()
        .map(|one| one.iter().map(|p| p.0.as_str()).collect())
        .collect()
}

const ONCE_EACH: [[&str; 1]; 5] = [
    ["sn_tc_uplink"],
    ["sn_tc_vxlan"],
    ["sn_tc_task"],
    ["sn_tc_gateway"],
    ["sn_tc_ordered"],
];

fn wanted() -> (NodeView, LocalState) {
    let mut view = view();
    view.put(endpoint(1, SELF, Active));
    view.put(endpoint(2, OTHER, Active));
    (view, local(&[1]))
}

/// A node whose former agent ran another layout, and has ended.
struct Former<'a> {
    pins: &'a Pins,
    directory: PathBuf,
    programs: Vec<Vec<(String, u32)>>,
    links: Vec<(String, u32)>,
}

impl<'a> Former<'a> {
    fn new(pins: &'a Pins) -> Self {
        for name in DEVICES {
            veth(name);
        }
        let mut datapath = pins.open();
        attach_all(&mut datapath);
        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        drop(datapath);
        let (key, value) = flow();
        let mut flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        flows.insert(key, value, 0).unwrap();
        let (programs, links) = (attached(), pins.links());
        let directory = pins.root().join("v65535");
        fs::rename(pins.layout(), &directory).unwrap();
        Self {
            pins,
            directory,
            programs,
            links,
        }
    }

    fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    fn map_id(&self, name: &str) -> u32 {
        MapInfo::from_pin(self.map(name)).unwrap().id()
    }

    /// Puts a hash map with other values in the place of one.
    fn replace<K: Pod, V: Pod>(&self, name: &str, entries: &[(K, V)]) {
        let mut map = HashMap::<MapData, K, V>::create(1024, 0).unwrap();
        for (key, value) in entries {
            map.insert(key, value, 0).unwrap();
        }
        fs::remove_file(self.map(name)).unwrap();
        map.pin(self.map(name)).unwrap();
    }

    /// All that the agent does at its start but for the sync.
    fn open(&self) -> Datapath {
        let mut datapath = self.pins.open();
        attach_all(&mut datapath);
        datapath
    }

    /// The former programs run, and nothing else.
    fn assert_at_work(&self) {
        assert_eq!(attached(), self.programs);
        assert!(self.directory.join("links").exists());
    }

    /// This build's programs run, in the same links, and nothing of the former build is left.
    fn assert_succeeded(&self) {
        let now = attached();
        assert_eq!(names(&now), ONCE_EACH);
        assert_ne!(now, self.programs);
        assert_eq!(self.pins.links(), self.links, "the links are the same");
        assert!(!self.directory.exists());
    }
}

fn flow() -> (FlowKey, FlowValue) {
    let key = FlowKey {
        client: Be32::from_host(0x0a09_0001),
        task: Be32::from(std::net::Ipv4Addr::new(172, 18, 0, 11)),
        client_port: Be16::from_host(40_000),
        task_port: Be16::from_host(80),
        proto: 6,
        ..FlowKey::default()
    };
    let value = FlowValue {
        node_addr: node::vtep(SELF).into(),
        published: Be16::from_host(8080),
        entry_vtep: node::vtep(OTHER).into(),
        endpoint: 1,
        generation: 1,
        ..FlowValue::default()
    };
    (key, value)
}

fn bytes_of<V: Pod, const N: usize>(value: &V) -> [u8; N] {
    let mut bytes = [0; N];
    let len = size_of::<V>().min(N);
    // SAFETY: `Pod` values have no undefined bytes, and `len` is at most their size.
    let of_value = unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), len) };
    bytes[..len].copy_from_slice(of_value);
    bytes
}

fn config(pins: &Pins) -> NodeConfig {
    let Map::Array(map) = pins.map("CONFIG") else {
        panic!("CONFIG is no array")
    };
    let map = aya::maps::Array::<_, NodeConfig>::try_from(Map::Array(map)).unwrap();
    map.get(&0, 0).unwrap()
}

#[test]
fn former_programs_work_until_the_maps_are_filled() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        let flows = former.map_id("FLOWS");
        let config_before = MapInfo::from_pin(former.map("CONFIG")).unwrap().id();
        let mut datapath = former.open();
        former.assert_at_work();
        assert_ne!(config(pins).generation, 0, "what was there is copied");
        assert_ne!(
            MapInfo::from_pin(pins.layout().join("maps/CONFIG"))
                .unwrap()
                .id(),
            config_before,
            "what the agent writes is not shared: the former programs read it still"
        );

        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        former.assert_succeeded();
        let now = MapInfo::from_pin(pins.layout().join("maps/FLOWS")).unwrap();
        assert_eq!(now.id(), flows, "what the programs write is shared");
        let (key, value) = flow();
        let flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        assert_eq!(flows.get(&key, 0).unwrap(), value);
        assert!(datapath.repair(&view, &local).unwrap().0.is_unchanged());
    });
}

/// A later build's values are longer, an earlier one's shorter. What both know stays.
#[test]
fn maps_of_another_shape_are_carried_over() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        let (key, value) = flow();
        let mut longer: [u8; size_of::<FlowValue>() + 8] = bytes_of(&value);
        longer[size_of::<FlowValue>()..].fill(0xff);
        former.replace("FLOWS", &[(key, longer)]);
        let of_task = LocalEndpoint {
            ifindex: 101,
            generation: 1,
            ..LocalEndpoint::default()
        };
        const SHORTER: usize = 16;
        former.replace("LOCAL", &[(1u32, bytes_of::<_, SHORTER>(&of_task))]);

        let mut datapath = former.open();
        former.assert_at_work();
        let flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        assert_eq!(flows.get(&key, 0).unwrap(), value);
        let locals = pins.table::<u32, LocalEndpoint>("LOCAL");
        assert_eq!(locals.get(&1, 0).unwrap(), of_task);

        // A flow that begins, and one that ends, before the hooks change hands.
        let late = FlowKey {
            client_port: Be16::from_host(40_001),
            ..key
        };
        let ended = FlowValue {
            flags: FLOW_CLIENT_FIN,
            ..value
        };
        former.replace("FLOWS", &[(key, ended), (late, value)]);
        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        former.assert_succeeded();
        assert_eq!(flows.get(&key, 0).unwrap(), ended);
        assert_eq!(flows.get(&late, 0).unwrap(), value);
        assert_eq!(config(pins).unsettled_until, 0, "all flows are here");
        assert!(datapath.repair(&view, &local).unwrap().0.is_unchanged());
    });
}

/// A key of another size is another map; a map may be new. Both begin empty and are filled.
#[test]
fn maps_that_cannot_be_carried_over_begin_empty() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        former.replace("FLOWS", &[([1u8; 20], [2u8; 40])]);
        fs::remove_file(former.map("ENDPOINTS")).unwrap();
        let mut datapath = former.open();
        former.assert_at_work();
        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        former.assert_succeeded();
        let flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        assert_eq!(flows.iter().count(), 0);
        assert_eq!(datapath.inspect_endpoints(&view).unwrap().len(), 2);
    });
}

#[test]
fn take_over_that_was_cut_short_begins_anew() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        drop(former.open());
        former.assert_at_work();
        let mut datapath = former.open();
        former.assert_at_work();
        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        former.assert_succeeded();
        let (key, value) = flow();
        let flows = pins.table::<FlowKey, FlowValue>("FLOWS");
        assert_eq!(flows.get(&key, 0).unwrap(), value);
    });
}

/// A task whose end is noticed before the hooks have changed hands.
#[test]
fn veth_is_detached_while_the_former_programs_work() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        let mut datapath = former.open();
        datapath.detach_veth(node::ifindex("task")).unwrap();
        assert_eq!(on_ingress("task"), []);
        let (view, local) = wanted();
        datapath.sync(&view, &local).unwrap();
        assert_eq!(on_ingress("task"), []);
        assert_eq!(on_ingress("vx").len(), 1);
    });
}

#[test]
fn leaving_before_the_take_over_takes_everything_off() {
    by_each_ingress(|pins| {
        let former = Former::new(pins);
        former.open().detach_all().unwrap();
        assert!(attached().iter().all(Vec::is_empty), "{:?}", attached());
        assert!(!pins.root().exists());
    });
}
