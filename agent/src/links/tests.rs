//! Links made in namespaces of the test's own. Needs root.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use ipnet::Ipv4Net;
use model::EndpointId;

use super::{
    HostVeths, NodeLinksSpec, TaskLinksSpec, ensure_node_links, ensure_task_links, find_host_veths,
    remove_node_links, remove_task_links,
};
use crate::netns::Netns;

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
        gateway_addr: Ipv4Addr::new(172, 18, 0, 1),
        gateway_prefix_len: 16,
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

#[test]
fn second_ensure_changes_nothing() {
    on_a_node(|task| async move {
        let links = ensure_node_links(&node_spec()).await.unwrap();
        assert_eq!(ensure_node_links(&node_spec()).await.unwrap(), links);
        let veths = ensure_task_links(&task_spec(), &task).await.unwrap();
        assert_eq!(ensure_task_links(&task_spec(), &task).await.unwrap(), veths);
        assert_eq!(
            find_host_veths(EndpointId(0xfeed), 2).await.unwrap(),
            Some(veths)
        );
    });
}

#[test]
fn mtus_follow_the_underlays() {
    on_a_node(|task| async move {
        let links = ensure_node_links(&node_spec()).await.unwrap();
        assert_eq!(links.underlay_mtu, 65_535, "the loopback device's");
        ensure_task_links(&task_spec(), &task).await.unwrap();
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
            let shown = std::process::Command::new("ip")
                .args(["-o", "link", "show", "dev", "sn_gwbridge"])
                .output();
            String::from_utf8(shown.unwrap().stdout).unwrap()
        };
        ensure_node_links(&node_spec()).await.unwrap();
        assert!(mac().contains("link/ether 02:42:ac:12:00:01"), "{}", mac());
        ensure_task_links(&task_spec(), &task).await.unwrap();
        ensure_node_links(&node_spec()).await.unwrap();
        assert!(mac().contains("link/ether 02:42:ac:12:00:01"), "{}", mac());
    });
}

#[test]
fn another_port_makes_another_tunnel_device() {
    on_a_node(|_| async {
        let first = ensure_node_links(&node_spec()).await.unwrap();
        let spec = NodeLinksSpec {
            data_port: 4790,
            ..node_spec()
        };
        let second = ensure_node_links(&spec).await.unwrap();
        assert_ne!(first.vxlan_ifindex, second.vxlan_ifindex);
        assert_eq!(first.gateway_ifindex, second.gateway_ifindex);
    });
}

#[test]
fn interface_deleted_by_hand_is_made_again() {
    on_a_node(|task| async move {
        ensure_node_links(&node_spec()).await.unwrap();
        let HostVeths { gateway, .. } = ensure_task_links(&task_spec(), &task).await.unwrap();
        let netlink = super::Netlink::here().unwrap();
        netlink.handle.link().del(gateway).execute().await.unwrap();
        assert_eq!(find_host_veths(EndpointId(0xfeed), 2).await.unwrap(), None);
        ensure_task_links(&task_spec(), &task).await.unwrap();
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
        ensure_node_links(&node_spec()).await.unwrap();
        ensure_task_links(&task_spec(), &task).await.unwrap();
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
            ensure_node_links(&spec)
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
            ensure_node_links(&spec)
                .await
                .unwrap_err()
                .to_string()
                .contains("192.0.2.9")
        );
    });
}
