//! A trace in words, with the names that the view has.

use dataplane_abi::{Be32, DropReason};
use model::{
    feed::NodeView,
    inspect::{TraceAnswer, TraceStep},
};

use super::{Outcome, Probe, Return, Sent, Step, Trace};
use crate::inspect::Names;

impl Trace {
    /// As `swarmnet trace` shows it. `node` is this node's hostname, `interfaces` tells whose an
    /// interface is.
    pub fn explain(
        &self,
        probe: &Probe,
        view: &NodeView,
        node: &str,
        interface: impl Fn(u32) -> Option<u32>,
    ) -> TraceAnswer {
        let names = Names(view);
        let mut steps: Vec<TraceStep> = vec![step("packet", format!("{probe}, at node {node}"))];
        steps.extend(self.steps.iter().map(|at| at.explain(&names)));
        let (outcome, to, reason, detail) = match self.outcome {
            Outcome::Stack => {
                let detail = "no program takes it: the node's own stack goes on".to_owned();
                ("stack", None, None, detail)
            }
            Outcome::Dropped(reason) => {
                let detail = reason.explanation().to_owned();
                ("dropped", None, Some(reason), detail)
            }
            Outcome::Chosen { backends } => {
                let detail =
                    format!("the socket gets one of {backends} active backends, by chance");
                ("socket", None, None, detail)
            }
            Outcome::Task { ifindex, sent } => {
                let task = interface(ifindex).map(|endpoint| names.task(endpoint));
                let who = task
                    .clone()
                    .unwrap_or_else(|| format!("interface {ifindex}"));
                let detail = format!("into {who} of this node as {}", show(&sent));
                ("task", task, None, detail)
            }
            Outcome::Tunnel { vtep, vni, sent } => {
                let to = names.node_at(vtep);
                let detail = format!(
                    "through the tunnel to {to} ({vtep}), VNI {vni}, as {}",
                    show(&sent)
                );
                ("tunnel", Some(to), None, detail)
            }
        };
        steps.push(step(outcome, detail));
        TraceAnswer {
            steps,
            outcome: outcome.to_owned(),
            to,
            reason: reason.map(|reason: DropReason| reason.label().to_owned()),
        }
    }
}

impl Step {
    fn explain(self, names: &Names<'_>) -> TraceStep {
        let task = |endpoint| names.task(endpoint);
        let place = |vtep: Be32| match vtep.is_zero() {
            true => "on this node".to_owned(),
            false => format!(
                "at {} ({})",
                names.node_at(vtep.into()),
                std::net::Ipv4Addr::from(vtep)
            ),
        };
        match self {
            Self::Published { of_node: true, .. } => {
                step("port", "published on this node alone, by a task of its own")
            }
            Self::Published { backends, .. } => step(
                "port",
                format!("published, by a service of {backends} backends"),
            ),
            Self::NotPublished => step("port", "not published"),
            Self::Ordered { ifindex } => step(
                "fragment",
                format!(
                    "by interface {ifindex} to where the kernel puts the packet together; back in \
                     order, it goes where the first one goes:"
                ),
            ),
            Self::NotOfNode => step("address", "not one of this node's"),
            Self::Endpoint { endpoint, vtep } => {
                step("address", format!("of {}, {}", task(endpoint), place(vtep)))
            }
            Self::Vip { backends } => step(
                "address",
                format!("the VIP of a service of {backends} backends"),
            ),
            Self::Slot {
                index,
                len,
                now,
                before,
            } => {
                let text = format!(
                    "{index} of {len}: now {}, before {}",
                    task(now),
                    task(before)
                );
                step("ring slot", text)
            }
            Self::Doubted { vtep } => step(
                "doubt",
                format!(
                    "{} does not answer this node's probes, or has not for long: another slot is taken",
                    names.node_at(vtep.into())
                ),
            ),
            Self::Near { now, before } => {
                let text = format!(
                    "own tasks first: now {}, before {}",
                    task(now),
                    task(before)
                );
                step("near slot", text)
            }
            Self::Client { endpoint } => step("client", format!("keeps {}", task(endpoint))),
            Self::Backend {
                endpoint,
                vtep,
                is_active,
            } => {
                let state = if is_active { "active" } else { "draining" };
                step(
                    "backend",
                    format!("{}, {state}, {}", task(endpoint), place(vtep)),
                )
            }
            Self::Flow { endpoint, .. } => step("flow", format!("known to {}", task(endpoint))),
            Self::Opens { endpoint } => step("flow", format!("new, of {}", task(endpoint))),
            Self::UnknownTo { endpoint } => {
                let text = format!(
                    "not in the tables of {}; a connected socket there would have it",
                    task(endpoint)
                );
                step("flow", text)
            }
            Self::Owner {
                endpoint,
                is_pinned,
            } => {
                let why = if is_pinned {
                    "a pin names it"
                } else {
                    "the slot's other owner"
                };
                step("owner", format!("{}, {why}", task(endpoint)))
            }
            Self::Translated { addr, port } => {
                let addr = std::net::Ipv4Addr::from(addr);
                step("translation", format!("{addr}:{}", port.to_host()))
            }
            Self::ClientPort { port } => step(
                "client port",
                format!(
                    "taken by another flow to the task, which gets {}",
                    port.to_host()
                ),
            ),
            Self::Reply(way) => step(
                "return",
                match way {
                    Return::Here => "out of this node by its routes",
                    Return::Tunnel => "through the tunnel to this node, and out by its routes",
                    Return::Direct => "out of that node by its own routes",
                },
            ),
            Self::Gateway => step("way", "by the gateway bridge, out under the node's address"),
            Self::PerPacket => step(
                "socket",
                "gets an active backend by chance; packets that come without the hook:",
            ),
            Self::Hairpin => step("backend", "the task itself, which sees the VIP as its peer"),
        }
    }
}

fn step(at: &str, found: impl Into<String>) -> TraceStep {
    TraceStep {
        at: at.to_owned(),
        found: found.into(),
    }
}

fn show(sent: &Sent) -> String {
    let ((src, sport), (dst, dport)) = (sent.src, sent.dst);
    format!("{src}:{sport} -> {dst}:{dport}")
}
