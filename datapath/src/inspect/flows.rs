//! Live flows, one by one and counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use dataplane_abi::{FLOW_CLIENT_FIN, FLOW_RESET, FLOW_TASK_FIN, FlowKey, FlowValue};
use model::{feed::NodeView, inspect::FlowRow, spec::Protocol};

use super::{Names, Result, is_live, since, socket};
use crate::{
    datapath::Datapath,
    sys,
    tables::{Frontend, OverlayAddr, Port, protocol_name},
};

/// What a flow is known by, for comparisons.
type Id = (u32, u32, u16, u16, u8);

fn id(key: &FlowKey) -> Id {
    let (client, task) = (key.client.raw(), key.task.raw());
    (
        client,
        task,
        key.client_port.raw(),
        key.task_port.raw(),
        key.proto,
    )
}

impl Datapath {
    /// Live flows of the mesh whose backend is here, and of VIPs, translated packet by packet, whose
    /// client is here. (Sockets translated at `connect` are not flows of the data plane.)
    pub fn inspect_flows(&self, view: &NodeView) -> Result<Vec<FlowRow>> {
        let (tables, names, now) = (self.maps.observe()?, Names(view), sys::monotonic());
        let answered: BTreeSet<Id> = self
            .maps
            .connections()?
            .iter()
            .map(|(key, _)| id(key))
            .collect();
        let flows = self.maps.flows()?;
        let flows = flows
            .iter()
            .filter(|(key, flow)| is_live(key.proto, flow, now));
        let mut rows: Vec<FlowRow> = flows
            .map(|(key, flow)| FlowRow {
                service: names.service_of(flow.endpoint),
                protocol: protocol_name(key.proto).to_owned(),
                state: state(key, flow, answered.contains(&id(key))).to_owned(),
                client: socket(
                    key.client.into(),
                    flow.client_port(key.client_port).to_host(),
                ),
                frontend: socket(flow.node_addr.into(), flow.published.to_host()),
                task: names.task(flow.endpoint),
                backend: socket(key.task.into(), key.task_port.to_host()),
                entry: match flow.entry_vtep.is_zero() {
                    true => "local".to_owned(),
                    false => names.node_at(flow.entry_vtep.into()),
                },
                age_ms: age_ms(flow.opened, now),
                idle_ms: since_ms(flow.last_seen, now),
            })
            .collect();
        rows.extend(self.maps.vip_flows()?.iter().map(|(key, flow)| {
            let backend = OverlayAddr {
                vni: key.vni,
                addr: key.backend.into(),
            };
            let vip = OverlayAddr {
                vni: key.vni,
                addr: flow.vip.into(),
            };
            let endpoint = tables.endpoints.get(&backend).map(|value| value.endpoint);
            FlowRow {
                service: names.service(Frontend::Vip(vip), &[]),
                protocol: protocol_name(key.proto).to_owned(),
                // The other end's packets do not pass here.
                state: "open".to_owned(),
                client: socket(
                    key.client.into(),
                    flow.client_port(key.client_port).to_host(),
                ),
                frontend: socket(vip.addr, key.backend_port.to_host()),
                task: endpoint.map_or_else(|| "?".to_owned(), |id| names.task(id)),
                backend: socket(backend.addr, key.backend_port.to_host()),
                entry: "local".to_owned(),
                age_ms: age_ms(flow.opened, now),
                idle_ms: since_ms(flow.last_seen, now),
            }
        }));
        rows.sort_by(|a, b| (&a.frontend, &a.client).cmp(&(&b.frontend, &b.client)));
        Ok(rows)
    }

    pub(super) fn live_by_frontend(&self) -> Result<LiveFlows> {
        let now = sys::monotonic();
        let mut live = LiveFlows::default();
        for (key, flow) in self.maps.flows()? {
            if is_live(key.proto, &flow, now) {
                let at = (key.proto, flow.published.to_host(), flow.node_addr.into());
                *live.published.entry(at).or_default() += 1;
            }
        }
        for (key, flow) in self.maps.vip_flows()? {
            let vip = OverlayAddr {
                vni: key.vni,
                addr: flow.vip.into(),
            };
            *live.vips.entry(vip).or_default() += 1;
        }
        Ok(live)
    }
}

/// How many flows there are to what clients send to.
#[derive(Debug, Default)]
pub(super) struct LiveFlows {
    /// By protocol, port and address.
    published: BTreeMap<(u8, u16, Ipv4Addr), u64>,
    vips: BTreeMap<OverlayAddr, u64>,
}

impl LiveFlows {
    /// Of a frontend, and for `count` ports from its own on.
    pub fn of(&self, frontend: Frontend, count: u16) -> u64 {
        let at = match frontend {
            Frontend::Vip(at) => return self.vips.get(&at).copied().unwrap_or(0),
            Frontend::Published(at) => at,
        };
        let Port { proto, number } = at.port;
        let last = number.saturating_add(count.saturating_sub(1));
        let ports = (proto, number, Ipv4Addr::UNSPECIFIED)..=(proto, last, Ipv4Addr::BROADCAST);
        let flows = self.published.range(ports);
        flows
            .filter(|((_, _, addr), _)| at.addr.is_unspecified() || at.addr == *addr)
            .map(|(_, live)| live)
            .sum()
    }
}

fn state(key: &FlowKey, flow: &FlowValue, is_answered: bool) -> &'static str {
    let ends = FLOW_CLIENT_FIN | FLOW_TASK_FIN | FLOW_RESET;
    if key.proto != Protocol::Tcp.number() {
        "open"
    } else if flow.flags & ends != 0 {
        "closing"
    } else if is_answered {
        "established"
    } else {
        "syn"
    }
}

fn age_ms(opened: u64, now: Duration) -> Option<u64> {
    (opened != 0).then(|| since_ms(opened, now))
}

fn since_ms(then: u64, now: Duration) -> u64 {
    since(then, now).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Published;

    #[test]
    fn age_is_told_where_it_is_known() {
        let now = Duration::from_millis(5_000);
        assert_eq!(age_ms(2_000_000_000, now), Some(3_000));
        assert_eq!(age_ms(0, now), None);
    }

    #[test]
    fn live_flows_are_those_of_the_ports_and_the_address() {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let mut live = LiveFlows::default();
        for (proto, port, addr, flows) in
            [(6, 80, a, 1), (6, 80, b, 2), (6, 81, a, 4), (17, 80, a, 8)]
        {
            live.published.insert((proto, port, addr), flows);
        }
        let of = |addr, port, count| {
            let port = Port {
                proto: 6,
                number: port,
            };
            let at = Published {
                addr,
                own: false,
                port,
            };
            live.of(Frontend::Published(at), count)
        };
        assert_eq!(of(Ipv4Addr::UNSPECIFIED, 80, 1), 3);
        assert_eq!(of(Ipv4Addr::UNSPECIFIED, 80, 2), 7);
        assert_eq!(of(a, 80, 2), 5);
        assert_eq!(of(b, 81, 1), 0);
    }
}
