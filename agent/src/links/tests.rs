//! Links made in namespaces of the test's own. Needs root.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use ipnet::Ipv4Net;
use model::EndpointId;

use super::{
    HostVeths, NodeLinks, NodeLinksSpec, TaskLinksSpec, Watch, ensure_node_links,
    ensure_task_links, find_host_veths, namespace_id, remove_node_links, remove_task_links,
};
use crate::{netns::Netns, reassembly::Reassembly, repair::Repairs};

/// Runs `test` in a namespace of its own, with another one for a task.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Netns) -> F + Send) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = tempfile::tempdir().unwrap();
    let nth = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = |name: &str| -> PathBuf { dir.path().join(format!("{name}{nth}")) };
    let (node, task) = (path("node"), path("task"));
    let node = Netns::ensure(&node).unwrap();
    let inside = Netns::ensure(&task).unwrap();
    let outcome = node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(test(inside));
        Ok(())
    });
    node.remove().unwrap();
    Netns::open(&task).unwrap().remove().unwrap();
    outcome.unwrap();
}

fn node_spec() -> NodeLinksSpec {
    NodeLinksSpec {
        data_port: 4789,
        vtep: Ipv4Addr::LOCALHOST,
        uplink: Some("lo".to_owned()),
        gateway: "172.18.0.1/16".parse().unwrap(),
    }
}

fn task_spec() -> TaskLinksSpec {
    let net = |octets: [u8; 4], len| Ipv4Net::new(octets.into(), len).unwrap();
    TaskLinksSpec {
        endpoint: EndpointId(0xfeed),
        overlays: vec![net([10, 0, 1, 3], 24), net([10, 0, 2, 3], 24)],
        gateway: net([172, 18, 0, 2], 16),
        gateway_addr: Ipv4Addr::new(172, 18, 0, 1),
        underlay_mtu: 9000,
    }
}

/// What `ensure_node_links` returns, and whether it had to do anything is left aside.
async fn node_links(spec: &NodeLinksSpec) -> super::Result<NodeLinks> {
    ensure_node_links(spec, &mut Repairs::default()).await
}

async fn task_links(netns: &Netns) -> super::Result<HostVeths> {
    ensure_task_links(&task_spec(), netns, &mut Repairs::default()).await
}

/// Runs a command in the calling thread's namespace.
fn run(line: &str) {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let status = command.args(words).status();
    assert!(status.unwrap().success(), "{line}");
}

/// Runs `ip` in the test's node.
fn ip(arguments: &str) {
    run(&format!("ip {arguments}"));
}

fn ip_inside(task: &Netns, arguments: &str) {
    let run = || {
        ip(arguments);
        Ok(())
    };
    task.run(run).unwrap();
}

#[test]
fn second_ensure_changes_nothing() {
    on_a_node(|task| async move {
        let links = node_links(&node_spec()).await.unwrap();
        assert_eq!(node_links(&node_spec()).await.unwrap(), links);
        let veths = task_links(&task).await.unwrap();
        assert_eq!(task_links(&task).await.unwrap(), veths);
        assert_eq!(
            find_host_veths(EndpointId(0xfeed), 2).await.unwrap(),
            Some(veths)
        );
    });
}

#[test]
fn mtus_follow_the_underlays() {
    on_a_node(|task| async move {
        let links = node_links(&node_spec()).await.unwrap();
        assert_eq!(links.underlay_mtu, 65_535, "the loopback device's");
        task_links(&task).await.unwrap();
        let shown = task
            .run(|| {
                let ip = |args: &[&str]| std::process::Command::new("ip").args(args).output();
                let [links, routes] = [ip(&["-o", "link"])?, ip(&["route"])?];
                Ok(String::from_utf8([links.stdout, routes.stdout].concat()).unwrap())
            })
            .unwrap();
        for expected in ["eth0", "eth1"] {
            let line = shown.lines().find(|line| line.contains(expected)).unwrap();
            assert!(line.contains("mtu 8950"), "{shown}");
        }
        let line = shown.lines().find(|line| line.contains("eth2")).unwrap();
        assert!(line.contains("mtu 9000"), "{shown}");
        let line = shown
            .lines()
            .find(|line| line.starts_with("default"))
            .unwrap();
        assert!(
            line.contains("mtu 8950") && line.contains("advmss 8910"),
            "{shown}"
        );
    });
}

#[test]
fn bridge_keeps_its_mac_whatever_hangs_on_it() {
    on_a_node(|task| async move {
        let mac = || {
            let shown = Command::new("ip")
                .args(["-o", "link", "show", "dev", "sn_gwbridge"])
                .output();
            String::from_utf8(shown.unwrap().stdout).unwrap()
        };
        node_links(&node_spec()).await.unwrap();
        assert!(mac().contains("link/ether 02:42:ac:12:00:01"), "{}", mac());
        task_links(&task).await.unwrap();
        node_links(&node_spec()).await.unwrap();
        assert!(mac().contains("link/ether 02:42:ac:12:00:01"), "{}", mac());
    });
}

#[test]
fn another_port_makes_another_tunnel_device() {
    on_a_node(|_| async {
        let first = node_links(&node_spec()).await.unwrap();
        let spec = NodeLinksSpec {
            data_port: 4790,
            ..node_spec()
        };
        let second = node_links(&spec).await.unwrap();
        assert_ne!(first.vxlan_ifindex, second.vxlan_ifindex);
        assert_eq!(first.gateway_ifindex, second.gateway_ifindex);
    });
}

/// What `ip` can do to the links of a node, or inside of its task, and what the repair says about it.
const INJURIES: &[(&str, &str)] = &[
    ("link del sn_vxlan", "link sn_vxlan was missing"),
    ("link set sn_vxlan down", "link sn_vxlan was down"),
    ("link del sn_gwbridge", "link sn_gwbridge was missing"),
    ("link set sn_gwbridge down", "link sn_gwbridge was down"),
    (
        "link set sn_gwbridge address 02:00:00:00:00:01",
        "link sn_gwbridge was under another MAC",
    ),
    (
        "addr del 172.18.0.1/16 dev sn_gwbridge",
        "address 172.18.0.1/16 on sn_gwbridge was missing",
    ),
    (
        "route del 172.18.0.0/16 dev sn_gwbridge",
        "route 172.18.0.0/16 by sn_gwbridge was missing",
    ),
    (
        "link del sn0000feedn0",
        "veth pair sn0000feedn0 and eth0 of the task was missing",
    ),
    ("link set sn0000feedn1 down", "link sn0000feedn1 was down"),
    (
        "link set sn0000feedg nomaster",
        "link sn0000feedg was off its bridge",
    ),
    (
        "link set sn0000feedn0 mtu 1300",
        "link sn0000feedn0 was of an MTU other than 8950",
    ),
    ("task: link set eth0 down", "link eth0 was down"),
    (
        "task: link set eth0 address 02:00:00:00:00:02",
        "link eth0 was under another MAC",
    ),
    (
        "task: link set eth2 mtu 576",
        "link eth2 was of an MTU other than 9000",
    ),
    (
        "task: link del eth1",
        "veth pair sn0000feedn1 and eth1 of the task was missing",
    ),
    (
        "task: addr del 10.0.1.3/24 dev eth0",
        "address 10.0.1.3/24 on eth0 was missing",
    ),
    (
        "task: route del default",
        "route default by eth2 was missing",
    ),
    (
        "task: route replace default via 172.18.0.9 dev eth2",
        "route default by eth2 was altered",
    ),
    (
        "task: route replace default via 172.18.0.1 dev eth2 mtu 9000",
        "route default by eth2 was altered",
    ),
    (
        "task: route del 10.0.2.0/24",
        "route 10.0.2.0/24 by eth1 was missing",
    ),
    (
        "task: neigh replace 172.18.0.1 lladdr 02:00:00:00:00:03 dev eth2 nud permanent",
        "neighbour 172.18.0.1 on eth2 was set to another MAC",
    ),
];

#[test]
fn each_injury_is_found_named_and_mended() {
    on_a_node(|task| async move {
        let ensure = async || {
            let mut repairs = Repairs::default();
            ensure_node_links(&node_spec(), &mut repairs).await.unwrap();
            let links = ensure_task_links(&task_spec(), &task, &mut repairs).await;
            links.unwrap();
            repairs.said()
        };
        ensure().await;
        assert_eq!(ensure().await, [""; 0], "all is well");
        for (injury, said) in INJURIES {
            match injury.strip_prefix("task: ") {
                Some(injury) => ip_inside(&task, injury),
                None => ip(injury),
            }
            let mended = ensure().await;
            assert!(
                mended.iter().any(|line| line == said),
                "`ip {injury}`: {mended:?}"
            );
            // An address takes its routes along, a bridge its ports.
            assert!(mended.len() <= 3, "`ip {injury}`: {mended:?}");
            assert_eq!(ensure().await, [""; 0], "`ip {injury}` is not mended");
        }
    });
}

const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// What can be done to where fragments are put in order, on the node or inside, and what the repair says
/// about it.
const REASSEMBLY_INJURIES: &[(&str, &str)] = &[
    (
        "ip link del sn_reassembly",
        "veth pair sn_reassembly and eth0 for fragments was missing",
    ),
    (
        "ip link set sn_reassembly down",
        "link sn_reassembly was down",
    ),
    (
        "inside: ip link del eth0",
        "veth pair sn_reassembly and eth0 for fragments was missing",
    ),
    (
        "inside: ip link set eth0 mtu 1400",
        "link eth0 was of an MTU other than 65535",
    ),
    (
        "inside: ip link set eth0 arp on",
        "link eth0 was with ARP on",
    ),
    (
        "inside: ip link set eth0 address 02:00:00:00:00:02",
        "link eth0 was under another MAC",
    ),
    (
        "inside: ip route del default",
        "route default by eth0 was missing",
    ),
    (
        "inside: sysctl -qw net.ipv4.ip_forward=0",
        "sysctl net/ipv4/ip_forward was 0",
    ),
    ("inside: nft flush ruleset", "nft table ip swarmnet in"),
    (
        "inside: nft flush chain ip swarmnet forward",
        "nft table ip swarmnet in",
    ),
    ("umount", "network namespace"),
];

#[test]
fn where_fragments_are_put_in_order_is_mended() {
    on_a_node(|_| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reassembly");
        let mut reassembly = Reassembly::new(dir.path());
        let mut ensure = async || {
            let mut repairs = Repairs::default();
            let ifindex = reassembly.ensure(Some(UPLINK_MAC), &mut repairs).await;
            assert_ne!(ifindex.unwrap(), 0);
            repairs.said()
        };
        ensure().await;
        assert_eq!(ensure().await, [""; 0], "all is well");
        for (injury, said) in REASSEMBLY_INJURIES {
            match injury.strip_prefix("inside: ") {
                Some(injury) => {
                    let inside = Netns::open(&path).unwrap();
                    let inflict = || {
                        run(injury);
                        Ok(())
                    };
                    inside.run(inflict).unwrap();
                }
                None if *injury == "umount" => Netns::open(&path).unwrap().remove().unwrap(),
                None => run(injury),
            }
            let mended = ensure().await;
            assert!(
                mended.len() == 1 && mended[0].starts_with(said),
                "`{injury}`: {mended:?}"
            );
            assert_eq!(ensure().await, [""; 0], "`{injury}` is not mended");
        }
        let (mut other, mut repairs) = (Reassembly::new(dir.path()), Repairs::default());
        let without_mac = other.ensure(None, &mut repairs).await;
        assert_eq!(without_mac.unwrap(), 0);
        for _ in 0..2 {
            Reassembly::new(dir.path()).remove().await.unwrap();
        }
        assert!(Netns::open(&path).is_err());
        assert_eq!(
            ensure().await.len(),
            1,
            "the namespace, and what it never had"
        );
        reassembly.remove().await.unwrap();
    });
}

#[test]
fn what_others_put_beside_ours_stays() {
    on_a_node(|task| async move {
        node_links(&node_spec()).await.unwrap();
        task_links(&task).await.unwrap();
        ip("link add foreign type bridge");
        ip("addr add 172.18.9.9/32 dev sn_gwbridge");
        ip("route add 198.51.100.0/24 dev sn_gwbridge");
        ip_inside(&task, "addr add 10.9.9.9/24 dev eth0");
        ip_inside(&task, "route add 198.51.100.0/24 via 10.0.1.1");
        let mut repairs = Repairs::default();
        ensure_node_links(&node_spec(), &mut repairs).await.unwrap();
        ensure_task_links(&task_spec(), &task, &mut repairs)
            .await
            .unwrap();
        assert_eq!(repairs.said(), [""; 0]);
        ip("link show foreign");
        ip("addr del 172.18.9.9/32 dev sn_gwbridge");
        ip("route del 198.51.100.0/24 dev sn_gwbridge");
        ip_inside(&task, "route del 198.51.100.0/24 via 10.0.1.1");
        ip_inside(&task, "addr del 10.9.9.9/24 dev eth0");
    });
}

#[test]
fn interface_deleted_by_hand_is_made_again() {
    on_a_node(|task| async move {
        node_links(&node_spec()).await.unwrap();
        let HostVeths { gateway, .. } = task_links(&task).await.unwrap();
        let netlink = super::Netlink::here().unwrap();
        netlink.handle.link().del(gateway).execute().await.unwrap();
        assert_eq!(find_host_veths(EndpointId(0xfeed), 2).await.unwrap(), None);
        task_links(&task).await.unwrap();
        assert!(
            find_host_veths(EndpointId(0xfeed), 2)
                .await
                .unwrap()
                .is_some()
        );
    });
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    on_a_node(|task| async move {
        node_links(&node_spec()).await.unwrap();
        task_links(&task).await.unwrap();
        for _ in 0..2 {
            remove_task_links(EndpointId(0xfeed), 2).await.unwrap();
            remove_node_links().await.unwrap();
        }
        assert_eq!(find_host_veths(EndpointId(0xfeed), 2).await.unwrap(), None);
    });
}

#[test]
fn unknown_uplink_and_address_are_named() {
    on_a_node(|_| async {
        let spec = NodeLinksSpec {
            uplink: Some("wan7".to_owned()),
            ..node_spec()
        };
        assert!(
            node_links(&spec)
                .await
                .unwrap_err()
                .to_string()
                .contains("wan7")
        );
        let spec = NodeLinksSpec {
            uplink: None,
            vtep: Ipv4Addr::new(192, 0, 2, 9),
            ..node_spec()
        };
        assert!(
            node_links(&spec)
                .await
                .unwrap_err()
                .to_string()
                .contains("192.0.2.9")
        );
    });
}

#[test]
fn namespace_keeps_its_number() {
    on_a_node(async |task| {
        let first = namespace_id(&task).await.unwrap();
        assert_eq!(namespace_id(&task).await.unwrap(), first);
        // The kernel gives one too when a link leads from one to the other.
        let mut repairs = Repairs::default();
        ensure_node_links(&node_spec(), &mut repairs).await.unwrap();
        let links = ensure_task_links(&task_spec(), &task, &mut repairs).await;
        links.unwrap();
        assert_eq!(namespace_id(&task).await.unwrap(), first);
    });
}

/// Runs `ip` somewhere.
type Run<'a> = &'a dyn Fn(&str);

/// Whether word comes, sooner or later.
async fn told(watch: &Watch) -> bool {
    let deadline = std::time::Duration::from_secs(10);
    tokio::time::timeout(deadline, watch.altered())
        .await
        .is_ok()
}

/// Takes in all that was told so far.
async fn hear_all(watch: &Watch) {
    let moment = std::time::Duration::from_millis(1);
    while tokio::time::timeout(moment, watch.altered()).await.is_ok() {}
}

#[test]
fn kernel_tells_of_what_is_altered_on_the_node_and_in_its_tasks() {
    on_a_node(|task| async move {
        let watch = Watch::open().unwrap();
        node_links(&node_spec()).await.unwrap();
        task_links(&task).await.unwrap();
        namespace_id(&task).await.unwrap();
        let alterations: [(&str, Run<'_>); 7] = [
            ("link set sn_gwbridge down", &ip),
            ("address add 198.51.100.1/32 dev lo", &ip),
            ("route add unreachable 203.0.113.0/24", &ip),
            ("link del sn_gwbridge", &ip),
            ("address flush dev eth0", &|line| ip_inside(&task, line)),
            ("route del default", &|line| ip_inside(&task, line)),
            (
                "neigh replace 172.18.0.1 lladdr 02:00:00:00:00:66 dev eth2 nud permanent",
                &|line| ip_inside(&task, line),
            ),
        ];
        for (line, run) in alterations {
            hear_all(&watch).await;
            run(line);
            assert!(told(&watch).await, "{line}");
        }
    });
}

/// Else each comparison would ask for the next one.
#[test]
fn ensuring_what_is_there_is_nothing_to_tell_of() {
    on_a_node(|task| async move {
        let watch = Watch::open().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut is_silent = false;
        while !is_silent {
            assert!(std::time::Instant::now() < deadline, "there is always word");
            // Devices that are new settle by and by, and that is told as well.
            hear_all(&watch).await;
            node_links(&node_spec()).await.unwrap();
            task_links(&task).await.unwrap();
            namespace_id(&task).await.unwrap();
            let moment = std::time::Duration::from_millis(1);
            let told = tokio::time::timeout(moment, watch.altered()).await;
            is_silent = told.is_err();
        }
    });
}
