//! What is altered by hand on a node is as it was soon after, while traffic runs; what others have
//! there is left alone.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use lab::{Node, wait_for};
use swarmnet_tests::{Cluster, Task, Traffic};

const OPTIONS: &[&str] = &["--network", "net", "--publish", "8080:80"];

type Inflict = Box<dyn Fn(&Node) -> Result<()>>;

/// What is done on the node, and the line of its log that tells of the repair.
struct Injury {
    inflict: Inflict,
    log: String,
}

fn injury(log: impl Into<String>, inflict: impl Fn(&Node) -> Result<()> + 'static) -> Injury {
    Injury {
        inflict: Box::new(inflict),
        log: log.into(),
    }
}

/// `ip …` on the node.
fn ip(log: impl Into<String>, arguments: &'static [&str]) -> Injury {
    injury(log, |node| node.host().ip(arguments).map(drop))
}

/// Removes the first pinned link whose name begins so: with the pin the program is off its hook.
fn unpin(log: &str, link: &'static str) -> Injury {
    injury(log, move |node| {
        let links = pins(node)?.join("links");
        let mut names = fs::read_dir(&links)?.map(|entry| Ok(entry?.file_name()));
        let found = names.find(|name: &Result<_>| {
            name.as_ref()
                .is_ok_and(|name| name.to_string_lossy().starts_with(link))
        });
        let name = found.context("the link is not pinned")??;
        Ok(fs::remove_file(links.join(name))?)
    })
}

/// The node's pins of this build's map layout.
fn pins(node: &Node) -> Result<PathBuf> {
    let layouts = fs::read_dir(node.pin_dir())?;
    let layouts: Vec<_> = layouts.collect::<Result<_, _>>()?;
    Ok(layouts.first().context("nothing is pinned")?.path())
}

fn nft(node: &Node, arguments: &[&str]) -> Result<String> {
    node.host().run("nft", arguments)
}

/// Host side of a task's interface, such as `n0` or `g`.
fn veth(node: &Node, end: &str) -> Result<String> {
    let links = node.host().ip(&["-br", "link"])?;
    let names = links.lines().filter_map(|line| line.split('@').next());
    let mut ours = names.filter(|name| name.starts_with("sn0") && name.ends_with(end));
    Ok(ours.next().context("no task here has a veth")?.to_owned())
}

/// One after the other would take a comparison each; these do not hide each other.
fn rounds(task: &Task) -> Vec<Vec<Injury>> {
    let inside = |task: &Task, arguments: &'static [&str]| {
        let id = task.id.clone();
        move |node: &Node| node.task_host(&id).ip(arguments).map(drop)
    };
    vec![
        vec![
            ip("link sn_vxlan was missing", &["link", "del", "sn_vxlan"]),
            ip(
                "veth pair sn_reassembly and eth0 for fragments was missing",
                &["link", "del", "sn_reassembly"],
            ),
            unpin("program sn_tc_uplink on eth0 was not attached", "uplink_tc"),
            unpin(
                "program sn_connect4 on the cgroup was not attached",
                "connect4",
            ),
            injury(
                "address 10.0.",
                inside(task, &["address", "flush", "dev", "eth0"]),
            ),
            injury("sysctl net/ipv4/ip_forward was 0", |node| {
                let off = || Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "0")?);
                node.host().within(off)
            }),
            injury("nft table ip swarmnet was altered", |node| {
                nft(node, &["flush", "chain", "ip", "swarmnet", "postrouting"]).map(drop)
            }),
        ],
        vec![
            ip(
                "link sn_gwbridge was missing",
                &["link", "del", "sn_gwbridge"],
            ),
            injury("g was off its bridge", |_| Ok(())), /* by the same */
            injury("of the task was missing", |node| {
                let veth = veth(node, "n0")?;
                node.host().ip(&["link", "del", &veth]).map(drop)
            }),
            injury("nft table ip swarmnet was missing", |node| {
                nft(node, &["delete", "table", "ip", "swarmnet"]).map(drop)
            }),
            injury("pin ", |node| {
                Ok(fs::remove_file(pins(node)?.join("maps/FLOWS"))?)
            }),
        ],
        vec![
            injury("of the task was missing", |node| {
                let veth = veth(node, "g")?;
                node.host().ip(&["link", "del", &veth]).map(drop)
            }),
            injury(
                "link eth0 was down",
                inside(task, &["link", "set", "eth0", "down"]),
            ),
            unpin("program sn_tc_task on sn", "task-"),
            unpin(
                "program sn_tc_ordered on sn_reassembly was not attached",
                "ordered",
            ),
        ],
    ]
}

#[test]
fn what_is_altered_by_hand_is_back_soon_and_the_log_says_so() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&["network", "create", "net"])?;
    let tasks = cluster.serve("web", 3, OPTIONS)?;
    cluster.settle()?;
    let task = tasks.iter().find(|task| task.node == 2);
    let task = task.context("each node has a task")?;
    let node = cluster.node(2);
    let foreign = foreign_state(node)?;

    // Each connection may end here or there: all must work for the traffic to go on.
    let entries = cluster.entries(8080)?;
    let traffic = Traffic::of_connections(cluster.client(), &entries);
    traffic.go_on()?;
    for injuries in rounds(task) {
        let before = log(node)?.len();
        for injury in &injuries {
            (injury.inflict)(node).with_context(|| injury.log.clone())?;
        }
        for injury in &injuries {
            wait_for(&format!("the log to say `{}`", injury.log), || {
                let log = log(node)?;
                let said = log[before..].lines().any(|line| line.contains(&injury.log));
                Ok(said.then_some(()))
            })?;
        }
        wait_for("every task to answer through every node", || {
            let asked = || entries.iter().cycle().take(12);
            let answered = |to: &_| swarmnet_tests::ask_tcp(cluster.client(), *to).is_ok();
            Ok(asked().all(answered).then_some(()))
        })?;
        traffic.go_on()?;
    }
    assert_eq!(
        foreign_state(node)?,
        foreign,
        "what others had there changed"
    );
    Ok(())
}

/// A comparison that was due may come first, by chance: then it is tried again.
#[test]
fn what_the_kernel_tells_of_is_changed_back_before_a_comparison_is_due() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.node(1).cli(&["network", "create", "net"])?;
    let tasks = cluster.serve("web", 1, OPTIONS)?;
    cluster.settle()?;
    let (node, id) = (cluster.node(tasks[0].node), tasks[0].id.clone());
    let injuries = [
        ip(
            "link sn_vxlan was down",
            &["link", "set", "sn_vxlan", "down"],
        ),
        injury("address 10.0.", move |node| {
            let flush = ["address", "flush", "dev", "eth0"];
            node.task_host(&id).ip(&flush).map(drop)
        }),
    ];
    for injury in injuries {
        let before = log(node)?.len();
        let mut inflicted = 0;
        wait_for(&format!("`{}` changed back at once", injury.log), || {
            let log = log(node)?;
            let lines = log[before..].lines();
            let repairs: Vec<_> = lines.filter(|line| line.contains(&injury.log)).collect();
            if repairs.iter().any(|line| line.contains("at once")) {
                return Ok(Some(()));
            }
            if repairs.len() == inflicted {
                (injury.inflict)(node)?;
                inflicted += 1;
            }
            Ok(None)
        })?;
    }
    Ok(())
}

fn log(node: &Node) -> Result<String> {
    Ok(fs::read_to_string(node.log_path())?)
}

/// Makes, at the first call, a table, a bridge, a route and an address of someone else; tells what
/// there is of them.
fn foreign_state(node: &Node) -> Result<String> {
    let host = node.host();
    if host.ip(&["link", "show", "foreign"]).is_err() {
        host.ip(&["link", "add", "foreign", "type", "bridge"])?;
        host.ip(&["address", "add", "198.51.100.1/24", "dev", "foreign"])?;
        host.ip(&["link", "set", "foreign", "up"])?;
        host.ip(&["route", "add", "203.0.113.0/24", "via", "198.51.100.9"])?;
        let chain = "add table ip theirs; \
                     add chain ip theirs post { type nat hook postrouting priority 90; }; \
                     add rule ip theirs post ip saddr 198.51.100.0/24 masquerade";
        nft(node, &[chain])?;
    }
    let link = host.ip(&["-4", "-o", "address", "show", "dev", "foreign"])?;
    let route = host.ip(&["route", "show", "203.0.113.0/24"])?;
    Ok(link + &route + &nft(node, &["list", "table", "ip", "theirs"])?)
}
