//! Task to task on two nodes, against the veth pair between the nodes and against what one builds
//! by hand: a bridge, a VXLAN device and static forwarding entries; and VIPs against the task's own
//! address and against nftables' destination NAT.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab, Wiring};

use crate::{
    Parts,
    report::Report,
    way::{
        CONNECTIONS, DATAGRAMS, Effort, REQUESTS, STREAM, STREAMS, Samples, Way, cluster, only_task,
    },
};

const RAW: &str = "raw veth";
const BRIDGE: &str = "bridge+VXLAN+FDB";
const OVERLAY: &str = "overlay";
const VIP: &str = "VIP";
const DNAT: &str = "nftables DNAT";
const PORT: u16 = 5001;
/// What the peer translates.
const DNAT_ADDR: Ipv4Addr = Ipv4Addr::new(10, 99, 99, 99);

/// # Errors
/// When a path carries nothing.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let lab = cluster(parts, 2, 1, Wiring::BackToBack, "tc")?;
    let meter = parts
        .objects
        .meter
        .to_str()
        .context("the path of the build is no UTF-8")?;
    let port = PORT.to_string();
    let raw = Meter(lab.node(2).host().spawn(meter, &[&port])?);
    let bridged = Bridged::build(&lab)?;
    let bridged_meter = Meter(bridged.far.spawn(meter, &[&port])?);
    lab.node(1)
        .cli(&["network", "create", "-d", "overlay", "net"])?;
    let far = lab.inside(&task(&lab, 2, "far", &[meter, &port])?);
    let near = lab.inside(&task(&lab, 1, "near", &["sleep", "infinity"])?);
    // A task of its own: connection tracking costs all that its namespace sends.
    let translated = lab.inside(&task(&lab, 1, "near-dnat", &["sleep", "infinity"])?);
    let far_addr = eth0(&far)?;
    translate(&translated, far_addr)?;
    let way = |name, from, addr| Way {
        name,
        from,
        to: (addr, PORT),
    };
    let ways = [
        way(RAW, lab.node(1).host(), lab.node(2).addr()),
        way(BRIDGE, &bridged.near, Bridged::addr(2)),
        way(OVERLAY, &near, far_addr),
        way(VIP, &near, vip(&lab, "far")?),
        way(DNAT, &translated, DNAT_ADDR),
    ];
    let samples = Samples::measure("overlay", &ways, Effort::of(parts))?;
    let of_raw = [(STREAM, 0.90), (REQUESTS, 0.90), (DATAGRAMS, 0.90)];
    samples.compare(report, "overlay", OVERLAY, RAW, &of_raw);
    let of_bridge = [(STREAM, 1.10), (REQUESTS, 1.25), (DATAGRAMS, 1.25)];
    samples.compare(report, "overlay", OVERLAY, BRIDGE, &of_bridge);
    let of_direct = [
        (STREAM, 0.99),
        (STREAMS, 0.99),
        (REQUESTS, 0.99),
        (DATAGRAMS, 0.99),
        (CONNECTIONS, 0.95),
    ];
    samples.compare(report, "VIP", VIP, OVERLAY, &of_direct);
    samples.compare(report, "VIP", VIP, DNAT, &[]);
    drop((raw, bridged_meter));
    Ok(())
}

/// A service with one task on that node.
fn task(lab: &Lab, node: usize, name: &str, command: &[&str]) -> Result<lab::RunningTask> {
    let at = format!("node.hostname=={}", lab.node(node).name());
    let create = [
        "service",
        "create",
        "--detach",
        "--network",
        "net",
        "--constraint",
        &at,
    ];
    lab.node(1)
        .cli(&[&create[..], &["--name", name, "--"], command].concat())?;
    only_task(lab, name)
}

/// The peer of VIPs: a rule for connections that the host opens.
fn translate(host: &Host, to: Ipv4Addr) -> Result<()> {
    // The route to it decides the source address, before the translation.
    host.ip(&["route", "add", &DNAT_ADDR.to_string(), "dev", "eth0"])?;
    let rules = format!(
        "table ip swarmnet_bench {{\n chain output {{\n type nat hook output priority -100;\n \
         ip daddr {DNAT_ADDR} dnat to {to}\n }}\n }}\n"
    );
    let mut nft = host.command("nft")?;
    let mut nft = nft
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft")?;
    nft.stdin
        .take()
        .context("stdin is piped")?
        .write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refused the peer's rule");
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
