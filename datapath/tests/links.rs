//! Programs on their hooks: exactly once, over restarts, upgrades and vanished devices.

mod node;

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::PerCpuArray;
use dataplane_abi::{DropCounter, DropReason, ProgramId, drops::drop_index};
use node::{
    Pins, by_each_ingress, by_filters, by_tcx, ifindex, in_namespace, ip, on_ingress, tc, veth,
};
use swarmnet_datapath::{Datapath, DatapathError, UplinkMode};

fn open(pins: &Pins, mode: UplinkMode) -> Datapath {
    Datapath::open(&pins.config(mode)).expect("the data plane opens")
}

/// Attaches to everything, as an agent does at each start.
fn attach_all(datapath: &mut Datapath) {
    datapath.attach_uplink(ifindex("uplink")).unwrap();
    datapath.attach_vxlan(ifindex("vx")).unwrap();
    datapath.attach_task(ifindex("task")).unwrap();
    datapath.attach_gateway(ifindex("gw.1")).unwrap();
    datapath.attach_reassembly(ifindex("order")).unwrap();
}

const DEVICES: [&str; 5] = ["uplink", "vx", "task", "gw.1", "order"];

fn attached() -> Vec<Vec<(String, u32)>> {
    DEVICES.map(on_ingress).to_vec()
}

fn names(attached: &[Vec<(String, u32)>]) -> Vec<Vec<&str>> {
    let of_one = attached.iter();
    of_one
        .map(|one| one.iter().map(|p| p.0.as_str()).collect())
        .collect()
}

fn devices() {
    for name in DEVICES {
        veth(name);
    }
}

const ONCE_EACH: [[&str; 1]; 5] = [
    ["sn_tc_uplink"],
    ["sn_tc_vxlan"],
    ["sn_tc_task"],
    ["sn_tc_gateway"],
    ["sn_tc_ordered"],
];

#[test]
fn restart_keeps_links_and_programs() {
    by_each_ingress(|pins| {
        devices();
        let mut datapath = pins.open();
        attach_all(&mut datapath);
        let (links, programs) = (pins.links(), attached());
        assert_eq!(names(&programs), ONCE_EACH);
        let on_interfaces = if pins.has_tc_links() { 5 } else { 0 };
        assert_eq!(
            links.len(),
            on_interfaces + 4,
            "interfaces, and four socket hooks: {links:?}"
        );
        for _ in 0..3 {
            drop(datapath);
            assert_eq!(attached(), programs, "they stay without an agent");
            datapath = pins.open();
            attach_all(&mut datapath);
            assert_eq!(pins.links(), links);
            assert_eq!(attached(), programs);
        }
    });
}

/// The pinned programs of an earlier build are replaced in their links, not beside them.
#[test]
fn other_build_takes_over_the_links() {
    by_each_ingress(|pins| {
        devices();
        let mut datapath = pins.open();
        attach_all(&mut datapath);
        let (links, programs) = (pins.links(), attached());
        drop(datapath);
        let builds = pins.layout().join("programs");
        let ours = fs::read_dir(&builds)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        fs::rename(&ours, builds.join("0123456789abcdef")).unwrap();

        let mut datapath = pins.open();
        assert_eq!(pins.links(), links, "the links are the same");
        let replaced = attached();
        assert_eq!(names(&replaced), ONCE_EACH);
        assert!(
            replaced
                .iter()
                .zip(&programs)
                .all(|(new, old)| new[0].1 != old[0].1)
        );
        attach_all(&mut datapath);
        assert_eq!(attached(), replaced);
        let left: Vec<_> = fs::read_dir(&builds)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(left, [ours]);
    });
}

/// Someone deleted a map's pin: a new map, and programs that work on it, in the same links.
#[test]
fn lost_map_pin_brings_new_programs() {
    by_each_ingress(|pins| {
        devices();
        let mut datapath = pins.open();
        attach_all(&mut datapath);
        let (links, programs) = (pins.links(), attached());
        drop(datapath);
        fs::remove_file(pins.layout().join("maps/PEERS")).unwrap();
        let mut datapath = pins.open();
        assert_eq!(pins.links(), links);
        let replaced = attached();
        assert_eq!(names(&replaced), ONCE_EACH);
        assert_ne!(replaced, programs);
        assert!(
            !datapath
                .sync(&node::view(), &node::local(&[]))
                .unwrap()
                .is_unchanged()
        );
    });
}

#[test]
fn vanished_device_leaves_no_trap_for_its_successor() {
    by_each_ingress(|pins| {
        let index = veth("task");
        let mut datapath = pins.open();
        datapath.attach_task(index).unwrap();
        ip("link del task");
        // Same index, other name: the pin is there, its link is dead.
        ip(&format!(
            "link add task2 index {index} type veth peer name task2p"
        ));
        datapath.attach_task(index).unwrap();
        assert_eq!(on_ingress("task2").len(), 1);
        if pins.has_tc_links() {
            let links = pins.links();
            assert!(
                links
                    .iter()
                    .any(|(name, _)| *name == format!("task-{index}-task2")),
                "{links:?}"
            );
            assert_eq!(links.len(), 5, "{links:?}");
        }
        ip("link del task2");
        drop(datapath);
        let mut datapath = pins.open();
        assert_eq!(pins.links().len(), 4, "the dead link's pin is gone");
        datapath.detach_veth(index).unwrap();
        let error = datapath.attach_task(index).unwrap_err();
        assert!(
            matches!(error, DatapathError::NoInterface { .. }),
            "{error}"
        );
    });
}

#[test]
fn detached_veth_has_no_program() {
    by_each_ingress(|pins| {
        let index = veth("task");
        let mut datapath = pins.open();
        datapath.attach_task(index).unwrap();
        datapath.detach_veth(index).unwrap();
        datapath.detach_veth(index).unwrap();
        assert_eq!(on_ingress("task"), []);
    });
}

fn has_xdp(interface: &str) -> bool {
    let shown = Command::new("ip")
        .args(["link", "show", interface])
        .output()
        .unwrap();
    String::from_utf8_lossy(&shown.stdout).contains("xdp")
}

#[test]
fn uplink_mode_decides_about_xdp() {
    by_each_ingress(|pins| {
        let index = veth("uplink");
        for (mode, xdp) in [
            (UplinkMode::Auto, false),
            (UplinkMode::Xdp, true),
            (UplinkMode::Xdp, true),
            (UplinkMode::Tc, false),
        ] {
            let mut datapath = open(pins, mode);
            datapath.attach_uplink(index).unwrap();
            datapath.attach_uplink(index).unwrap();
            assert_eq!(has_xdp("uplink"), xdp, "{mode:?}");
            assert_eq!(on_ingress("uplink").len(), 1);
        }
    });
}

/// Also when it is an agent before this one that had another uplink, and went before it could leave it.
#[test]
fn what_is_the_uplink_no_longer_keeps_no_program() {
    by_each_ingress(|pins| {
        let (former, uplink) = (veth("former"), veth("uplink"));
        let is_entry = |name| (on_ingress(name).len(), has_xdp(name));
        let mut datapath = open(pins, UplinkMode::Xdp);
        datapath.attach_uplink(former).unwrap();
        drop(datapath);
        let mut datapath = open(pins, UplinkMode::Xdp);
        assert_eq!(is_entry("former"), (1, true), "until it is known");
        datapath.attach_uplink(uplink).unwrap();
        assert_eq!(is_entry("uplink"), (1, true));
        assert_eq!(is_entry("former"), (0, false));
        datapath.attach_uplink(former).unwrap();
        assert_eq!(is_entry("former"), (1, true));
        assert_eq!(is_entry("uplink"), (0, false));
    });
}

fn puts_packets_together(interface: &str) -> bool {
    let shown = Command::new("ethtool").args(["-k", interface]).output();
    let features = String::from_utf8(shown.unwrap().stdout).unwrap();
    features.contains("generic-receive-offload: on")
}

#[test]
fn tunnel_leaves_packets_apart_where_generic_xdp_may_run() {
    by_each_ingress(|pins| {
        ip("link add vx type vxlan external dstport 4789");
        let index = ifindex("vx");
        for mode in [UplinkMode::Auto, UplinkMode::Tc] {
            open(pins, mode).attach_vxlan(index).unwrap();
            assert!(puts_packets_together("vx"), "{mode:?}");
        }
        let mut datapath = open(pins, UplinkMode::Xdp);
        let found = datapath.attach_vxlan(index).unwrap();
        assert_eq!(found.len(), 1);
        // The program was there before.
        assert_eq!(found[0].what, "link vx");
        assert!(!puts_packets_together("vx"));
        assert_eq!(datapath.attach_vxlan(index).unwrap(), []);
    });
}

/// A program that was there first stays, behind ours. Among filters it may even have our priority.
#[test]
fn foreign_programs_are_left_alone() {
    by_each_ingress(|pins| {
        let index = veth("uplink");
        let foreign = Pins::another();
        let mut other = foreign.open();
        if pins.has_tc_links() {
            other.attach_vxlan(index).unwrap();
        } else {
            let program = foreign.program("sn_tc_vxlan").display().to_string();
            tc("qdisc add dev uplink clsact");
            for place in ["pref 1 handle 7", "pref 9 handle 0x736e0001"] {
                let filter = format!("bpf da object-pinned {program}");
                tc(&format!("filter add dev uplink ingress {place} {filter}"));
            }
        }
        let foreign = on_ingress("uplink");
        assert!(!foreign.is_empty());
        let mut datapath = pins.open();
        for _ in 0..2 {
            datapath.attach_uplink(index).unwrap();
            let programs = on_ingress("uplink");
            assert_eq!(programs[0].0, "sn_tc_uplink");
            assert_eq!(programs[1..], foreign);
        }
        datapath.detach_all().unwrap();
        assert_eq!(on_ingress("uplink"), foreign);
    });
}

/// Who took the place of our filter is named, with the way out.
#[test]
fn place_that_is_taken_is_named() {
    let names_it = |filter: &'static str, hint: &'static str| {
        by_filters(move |pins| {
            let index = veth("task");
            let mut datapath = pins.open();
            let program = pins.program("sn_tc_gateway").display().to_string();
            tc("qdisc add dev task clsact");
            tc(&format!("filter add dev task ingress {filter}").replace("PROGRAM", &program));
            let before = on_ingress("task");
            let error = datapath.attach_task(index).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert_eq!(on_ingress("task"), before);
        });
    };
    names_it(
        "pref 1 handle 0x736e0003 bpf da object-pinned PROGRAM",
        "our handle",
    );
    names_it(
        "pref 1 protocol all u32 match u32 0 0 classid 1:1",
        "of another kind",
    );
}

#[test]
fn leaving_unpins_and_detaches_everything() {
    by_each_ingress(|pins| {
        devices();
        let mut datapath = open(pins, UplinkMode::Xdp);
        attach_all(&mut datapath);
        datapath.sync(&node::view(), &node::local(&[])).unwrap();
        datapath.detach_all().unwrap();
        assert!(attached().iter().all(Vec::is_empty), "{:?}", attached());
        assert!(!has_xdp("uplink"));
        assert!(!pins.root().exists());
    });
}

#[test]
fn second_agent_on_one_pin_directory_is_refused() {
    in_namespace(|pins| {
        let datapath = pins.open();
        let error = Datapath::open(&pins.config(UplinkMode::Auto)).unwrap_err();
        assert!(matches!(error, DatapathError::Busy { .. }), "{error}");
        drop(datapath);
        pins.open();
    });
}

#[test]
fn missing_cgroup_is_named() {
    in_namespace(|pins| {
        let mut config = pins.config(UplinkMode::Auto);
        config.cgroup = "/no/such/cgroup".into();
        let error = Datapath::open(&config).unwrap_err();
        assert!(error.to_string().contains("/no/such/cgroup"), "{error}");
    });
}

/// Without programs of others.
fn attach_task(datapath: &mut Datapath, index: u32) -> Option<String> {
    let mut found = datapath.attach_task(index).unwrap().into_iter();
    found
        .next()
        .map(|found| format!("{} was {}", found.what, found.found))
}

fn pin_of(pins: &Pins, hook: &str) -> std::path::PathBuf {
    let links = pins.links();
    let name = &links.iter().find(|(name, _)| name.starts_with(hook));
    pins.layout()
        .join("links")
        .join(&name.expect("a pinned link").0)
}

/// A program of someone else runs behind ours all the while, and stays.
#[test]
fn program_that_was_taken_off_or_changed_is_put_back_once_and_named() {
    by_tcx(|pins| {
        let index = veth("task");
        let foreign = Pins::another();
        let mut other = foreign.open();
        other.attach_vxlan(index).unwrap();
        let mut datapath = pins.open();
        attach_task(&mut datapath, index);
        let foreign_program = on_ingress("task")[1].clone();
        let well = |datapath: &mut Datapath| {
            let programs = on_ingress("task");
            assert_eq!(programs.len(), 2, "{programs:?}");
            assert_eq!(programs[0].0, "sn_tc_task");
            assert_eq!(programs[1], foreign_program);
            assert_eq!(attach_task(datapath, index), None);
        };
        well(&mut datapath);

        fs::remove_file(pin_of(pins, "task")).unwrap();
        // The kernel takes it off a little after the last reference went.
        let deadline = Instant::now() + Duration::from_secs(5);
        while on_ingress("task").len() > 1 {
            assert!(Instant::now() < deadline, "still attached");
        }
        assert_eq!(
            attach_task(&mut datapath, index).unwrap(),
            "program sn_tc_task on task was not attached"
        );
        well(&mut datapath);

        node::detach_link(&pin_of(pins, "task"));
        assert_eq!(on_ingress("task").len(), 1);
        assert_eq!(
            attach_task(&mut datapath, index).unwrap(),
            "program sn_tc_task on task was detached"
        );
        well(&mut datapath);

        node::update_link(&pin_of(pins, "task"), &pins.program("sn_tc_gateway"));
        assert_eq!(on_ingress("task")[0].0, "sn_tc_gateway");
        let said = attach_task(&mut datapath, index).unwrap();
        assert!(said.contains("was replaced by program"), "{said}");
        well(&mut datapath);

        // Another process still holds the link.
        let held = node::hold(&pin_of(pins, "task"));
        fs::remove_file(pin_of(pins, "task")).unwrap();
        assert_eq!(
            attach_task(&mut datapath, index).unwrap(),
            "program sn_tc_task on task was attached without a pin"
        );
        well(&mut datapath);
        drop(held);
        well(&mut datapath);

        let _twice = node::attach_of_another_build(pins, "sn_tc_task", "task");
        assert_eq!(on_ingress("task").len(), 3);
        assert_eq!(
            attach_task(&mut datapath, index).unwrap(),
            "program sn_tc_task on task was attached more than once"
        );
        well(&mut datapath);
    });
}

/// The same for filters, which have no pins to lose.
#[test]
fn filter_that_was_deleted_is_put_back_once_and_named() {
    by_filters(|pins| {
        let index = veth("task");
        let mut datapath = pins.open();
        attach_task(&mut datapath, index);
        let program = pins.program("sn_tc_vxlan").display().to_string();
        let filter = format!("bpf da object-pinned {program}");
        tc(&format!(
            "filter add dev task ingress pref 1 handle 7 {filter}"
        ));
        let foreign_filter = on_ingress("task")[0].clone();
        let well = |datapath: &mut Datapath| {
            let filters = on_ingress("task");
            assert_eq!(filters.len(), 2, "{filters:?}");
            assert!(filters.contains(&foreign_filter));
            assert_eq!(attach_task(datapath, index), None);
        };
        well(&mut datapath);

        tc("filter del dev task ingress pref 1 handle 0x736e0003 bpf");
        assert_eq!(on_ingress("task"), std::slice::from_ref(&foreign_filter));
        assert_eq!(
            attach_task(&mut datapath, index).unwrap(),
            "program sn_tc_task on task was not attached"
        );
        well(&mut datapath);

        tc("qdisc del dev task clsact");
        assert_eq!(on_ingress("task"), []);
        attach_task(&mut datapath, index).unwrap();
        assert_eq!(on_ingress("task").len(), 1);
    });
}

#[test]
fn pins_and_socket_hooks_that_were_removed_are_made_again() {
    in_namespace(|pins| {
        let mut datapath = pins.open();
        let ensure = |datapath: &mut Datapath| {
            let pins = datapath.ensure_pins().unwrap();
            let sockets = datapath.attach_sockets().unwrap();
            let found = pins.into_iter().chain(sockets);
            found.map(|found| found.what).collect::<Vec<_>>()
        };
        assert_eq!(ensure(&mut datapath), [""; 0]);
        let map = pins.layout().join("maps/PEERS");
        let program = pins.program("sn_tc_task");
        let id = pins.map_id("PEERS");
        for path in [&map, &program, &pin_of(pins, "connect4")] {
            fs::remove_file(path).unwrap();
        }
        let pin = |path: &std::path::Path| format!("pin {}", path.display());
        let expected = [
            pin(&map),
            pin(&program),
            "program sn_connect4 on the cgroup".to_owned(),
        ];
        assert_eq!(ensure(&mut datapath), expected);
        assert_eq!(pins.map_id("PEERS"), id, "the same map");
        assert_eq!(ensure(&mut datapath), [""; 0]);
        // The next agent has nothing to load.
        drop(datapath);
        let links = pins.links();
        let mut datapath = pins.open();
        assert_eq!(pins.links(), links);
        assert_eq!(ensure(&mut datapath), [""; 0]);
    });
}

/// A frame that the uplink's program drops and counts: it claims to come from the tasks' network.
fn marked_frame(to: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20];
    frame[..6].copy_from_slice(&to);
    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    frame[17] = 20;
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..30].copy_from_slice(&[172, 18, 0, 9]);
    frame[30..34].copy_from_slice(&[192, 168, 0, 1]);
    frame
}

/// Of the uplink's program.
fn drops(pins: &Pins, reason: DropReason) -> u64 {
    let drops = PerCpuArray::<_, DropCounter>::try_from(pins.map("DROPS")).unwrap();
    let values = drops
        .get(&drop_index(ProgramId::TcUplink, reason), 0)
        .unwrap();
    values.iter().map(|counter| counter.packets).sum()
}

/// Packets come without pause while one build after the other takes over: each meets one program.
#[test]
fn no_packet_meets_a_hook_without_a_program_or_with_two() {
    by_each_ingress(|pins| {
        let index = veth("uplink");
        for end in ["uplink", "uplinkp"] {
            ip(&format!("link set {end} up"));
        }
        let mut datapath = pins.open();
        datapath.sync(&node::view(), &node::local(&[])).unwrap();
        datapath.attach_uplink(index).unwrap();
        let (links, mut programs) = (pins.links(), vec![on_ingress("uplink")]);

        let (socket, frame) = (node::raw_socket("uplinkp"), marked_frame([2; 6]));
        let done = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let stream = scope.spawn(|| {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    sent += u64::from(node::send(&socket, &frame));
                }
                sent
            });
            for build in 0..5u64 {
                drop(datapath);
                let program = pins.program("sn_tc_uplink");
                let ours = program.parent().unwrap();
                fs::rename(ours, ours.with_file_name(format!("{build:016x}"))).unwrap();
                datapath = pins.open();
                datapath.attach_uplink(index).unwrap();
                assert_eq!(pins.links(), links, "the link is the same");
                programs.push(on_ingress("uplink"));
            }
            done.store(true, Ordering::Relaxed);
            stream.join().unwrap()
        });
        programs.dedup();
        assert_eq!(programs.len(), 6, "each build has a program of its own");
        let deadline = Instant::now() + Duration::from_secs(5);
        while drops(pins, DropReason::ForgedTaskAddress) != sent {
            let counted = drops(pins, DropReason::ForgedTaskAddress);
            assert!(
                Instant::now() < deadline,
                "{counted} of {sent} met a program"
            );
        }
        assert!(sent > 1000, "{sent} packets are no stream");
    });
}
