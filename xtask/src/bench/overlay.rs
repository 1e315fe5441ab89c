//! Task to task on two nodes, against the veth pair between the nodes and against what one builds
//! by hand: a bridge, a VXLAN device and static forwarding entries.

use std::{net::Ipv4Addr, process::Child, time::Duration};

use anyhow::{Context, Result};
use lab::{Host, Lab, Wiring};

use super::{Way, cluster, only_task, report::Report};
use crate::{build::Binaries, progress::step};

const RAW: &str = "raw veth";
const BRIDGE: &str = "bridge+VXLAN+FDB";
const OVERLAY: &str = "overlay";
const VIP: &str = "VIP";
const PORT: u16 = 5001;

pub fn measure(
    binaries: &Binaries,
    rounds: usize,
    length: Duration,
    report: &mut Report,
) -> Result<()> {
    let lab = cluster(binaries, 2, Wiring::BackToBack)?;
    let meter = binaries
        .meter
        .to_str()
        .context("the path of the build is no UTF-8")?;
    let port = PORT.to_string();
    let raw = Meter(lab.node(2).host().spawn(meter, &[&port])?);
    let bridged = Bridged::build(&lab)?;
    let bridged_meter = Meter(bridged.far.spawn(meter, &[&port])?);
    let manager = lab.node(1);
    manager.cli(&["network", "create", "-d", "overlay", "net"])?;
    let on = |node: usize| format!("node.hostname=={}", lab.node(node).name());
    let create = [
        "service",
        "create",
        "--detach",
        "--network",
        "net",
        "--constraint",
    ];
    manager.cli(&[&create[..], &[&on(2), "--name", "far", "--", meter, &port]].concat())?;
    manager.cli(
        &[
            &create[..],
            &[&on(1), "--name", "near", "--", "sleep", "infinity"],
        ]
        .concat(),
    )?;
    let far = lab.inside(&only_task(&lab, "far")?);
    let near = lab.inside(&only_task(&lab, "near")?);

    let ways = [
        Way {
            name: RAW,
            from: manager.host(),
            to: (lab.node(2).addr(), PORT),
        },
        Way {
            name: BRIDGE,
            from: &bridged.near,
            to: (Bridged::addr(2), PORT),
        },
        Way {
            name: OVERLAY,
            from: &near,
            to: (eth0(&far)?, PORT),
        },
        Way {
            name: VIP,
            from: &near,
            to: (vip(&lab, "far")?, PORT),
        },
    ];
    for round in 1..=rounds {
        step(&format!("overlay, round {round} of {rounds}"), || {
            ways.iter().try_for_each(|way| way.measure(length, report))
        })?;
    }
    report.compare(OVERLAY, RAW);
    report.compare(OVERLAY, BRIDGE);
    report.compare(VIP, OVERLAY);
    drop((raw, bridged_meter));
    Ok(())
}

/// The far end outside of any service.
struct Meter(Child);

impl Drop for Meter {
    fn drop(&mut self) {
        // It may have ended with its namespace.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The peer: what `ip` and `bridge` build of stock parts.
struct Bridged {
    near: Host,
    far: Host,
}

impl Bridged {
    fn build(lab: &Lab) -> Result<Self> {
        let near = Host::create("snbench-br1")?;
        let far = Host::create("snbench-br2")?;
        for (number, task) in [(1, &near), (2, &far)] {
            let node = lab.node(number);
            let (other, local) = (3 - number, node.addr().to_string());
            node.host()
                .ip(&["link", "add", "br9", "mtu", "1450", "type", "bridge"])?;
            node.host().ip(&[
                "link",
                "add",
                "vx9",
                "mtu",
                "1450",
                "type",
                "vxlan",
                "id",
                "9",
                "dstport",
                "14789",
                "local",
                &local,
                "nolearning",
            ])?;
            node.host().ip(&[
                "link",
                "add",
                "veth9",
                "mtu",
                "1450",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "mtu",
                "1450",
                "address",
                &Self::mac(number),
                "netns",
                task.name(),
            ])?;
            for port in ["vx9", "veth9"] {
                node.host()
                    .ip(&["link", "set", port, "master", "br9", "up"])?;
            }
            node.host().ip(&["link", "set", "br9", "up"])?;
            let peer = lab.node(other).addr().to_string();
            node.host().run(
                "bridge",
                &[
                    "fdb",
                    "append",
                    &Self::mac(other),
                    "dev",
                    "vx9",
                    "dst",
                    &peer,
                    "self",
                ],
            )?;
            task.ip(&[
                "address",
                "add",
                &format!("{}/24", Self::addr(number)),
                "dev",
                "eth0",
            ])?;
            task.ip(&["link", "set", "lo", "up"])?;
            task.ip(&["link", "set", "eth0", "up"])?;
            let (addr, mac) = (Self::addr(other).to_string(), Self::mac(other));
            task.ip(&["neighbour", "replace", &addr, "lladdr", &mac, "dev", "eth0"])?;
        }
        Ok(Self { near, far })
    }

    fn addr(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 99, number as u8)
    }

    fn mac(number: usize) -> String {
        format!("02:99:00:00:00:0{number}")
    }
}

fn eth0(task: &Host) -> Result<Ipv4Addr> {
    let shown = task.ip(&["-4", "-o", "address", "show", "dev", "eth0"])?;
    let cidr = shown
        .split_whitespace()
        .nth(3)
        .context("eth0 has an address")?;
    Ok(cidr.split('/').next().context("an address")?.parse()?)
}

fn vip(lab: &Lab, service: &str) -> Result<Ipv4Addr> {
    let rows = lab.node(1).cli_json(&["inspect", "vips"])?;
    let row = rows
        .iter()
        .find(|row| row["service"] == service)
        .context("the service has a VIP")?;
    Ok(row["vip"].as_str().context("an address")?.parse()?)
}
