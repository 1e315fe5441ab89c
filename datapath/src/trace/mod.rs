//! Where would this packet go, and why: the programs' decisions once more, by the kernel's own maps
//! as they are now and the hash that the programs share (`dataplane_abi::hash`). `tests/trace.rs`
//! holds these answers against the programs'.

mod entry;
mod explain;
mod overlay;
mod socket;
mod tables;

use std::{fmt, net::Ipv4Addr};

use dataplane_abi::{Be16, Be32, DropReason, hash::FlowTuple};
use model::{
    TaskId,
    feed::NodeView,
    inspect::{TraceAnswer, TraceFrom, TraceQuery},
    spec::Protocol,
};

pub use tables::{Lookup, PinnedMaps};

use crate::{Datapath, LocalState, sys::monotonic, tables::protocol_name};

/// A packet in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// IANA protocol number; TCP or UDP.
    pub proto: u8,
    pub src: (Ipv4Addr, u16),
    pub dst: (Ipv4Addr, u16),
    /// Of TCP: whether it is in the middle of a connection, not its SYN.
    pub established: bool,
    /// Whether it is one of the fragments that the packet comes in.
    pub fragment: bool,
}

impl Probe {
    fn is_tcp(&self) -> bool {
        self.proto == Protocol::Tcp.number()
    }

    fn is_syn(&self) -> bool {
        self.is_tcp() && !self.established
    }

    fn is_established(&self) -> bool {
        self.is_tcp() && self.established
    }

    fn src_addr(&self) -> Be32 {
        self.src.0.into()
    }

    fn dst_addr(&self) -> Be32 {
        self.dst.0.into()
    }

    fn src_port(&self) -> Be16 {
        Be16::from_host(self.src.1)
    }

    fn dst_port(&self) -> Be16 {
        Be16::from_host(self.dst.1)
    }

    /// The sender, as affinity knows it (`ClientKey::client`).
    fn client(&self) -> u64 {
        self.src_addr().to_host().into()
    }

    fn tuple(&self) -> FlowTuple {
        FlowTuple {
            src: self.src_addr(),
            src_port: self.src_port(),
            dst_port: self.dst_port(),
            proto: self.proto,
        }
    }
}

/// The way of a reply, seen from the node of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Through the tunnel from the backend's node.
    Tunnel,
    /// Out by this node's routes: it is the backend's.
    Here,
    /// Out by those of the backend's node, which is another one.
    Direct,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((src, sport), (dst, dport)) = (self.src, self.dst);
        let kind = match (self.is_tcp(), self.established) {
            (true, true) => " (established)",
            (true, false) => " (SYN)",
            _ => "",
        };
        let proto = protocol_name(self.proto);
        let part = if self.fragment { " (in fragments)" } else { "" };
        write!(f, "{proto} {src}:{sport} -> {dst}:{dport}{kind}{part}")
    }
}

/// The packet as it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub src: (Ipv4Addr, u16),
    pub dst: (Ipv4Addr, u16),
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// Whether its time to live is one less.
    pub routed: bool,
}

/// What becomes of the packet on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No program takes it: the node's own stack goes on.
    Stack,
    Dropped(DropReason),
    /// A socket gets one of so many backends.
    Chosen {
        backends: u32,
    },
    /// Into the task behind an interface of this node.
    Task {
        ifindex: u32,
        sent: Sent,
    },
    /// To the node at `vtep`, for an endpoint there.
    Tunnel {
        vtep: Ipv4Addr,
        vni: u32,
        sent: Sent,
    },
}

/// The way to an outcome, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub steps: Vec<Step>,
    pub outcome: Outcome,
}

/// One look of a program at its tables, and what it found there. Numbers, for which
/// [`Trace::explain`] has names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The port is published; with the number of backends.
    Published {
        backends: u32,
        /// On this node alone.
        of_node: bool,
    },
    NotPublished,
    NotOfNode,
    /// A fragment goes where the kernel puts it in order with the others, and comes back.
    Ordered {
        /// Node's side of the way there.
        ifindex: u32,
    },
    /// The destination is the address of an endpoint.
    Endpoint {
        endpoint: u32,
        vtep: Be32,
    },
    /// The destination is a VIP.
    Vip {
        backends: u32,
    },
    /// The ring's slot, and the endpoints that it names.
    Slot {
        index: u32,
        len: u32,
        now: u32,
        before: u32,
    },
    /// The node of the slot's owner does not answer, or has not for long; the flow's other choices are
    /// looked at.
    Doubted {
        vtep: Be32,
    },
    /// The service prefers the node's own backends: whom their slot names.
    Near {
        now: u32,
        before: u32,
    },
    /// The client keeps the backend that it had.
    Client {
        endpoint: u32,
    },
    /// The backend that was chosen.
    Backend {
        endpoint: u32,
        vtep: Be32,
        is_active: bool,
    },
    /// The flow is known to the endpoint, since its entry or its VIP's.
    Flow {
        endpoint: u32,
        entry: Be32,
    },
    /// It begins one.
    Opens {
        endpoint: u32,
    },
    /// The endpoint has no such flow: whether its task has a socket, only the kernel knows.
    UnknownTo {
        endpoint: u32,
    },
    /// Who is asked instead.
    Owner {
        endpoint: u32,
        is_pinned: bool,
    },
    /// The destination is translated.
    Translated {
        addr: Be32,
        port: Be16,
    },
    /// Another flow has the client's port at the task, which knows it by this one.
    ClientPort {
        port: Be16,
    },
    /// Where the reply goes.
    Reply(Return),
    /// It leaves the task by the gateway bridge.
    Gateway,
    /// A socket that connects hears no more of the VIP; what follows is packet by packet.
    PerPacket,
    /// The task is its own backend and sees the VIP as its peer.
    Hairpin,
}

/// A trace in the making.
struct Trail<'a, L> {
    tables: &'a L,
    probe: Probe,
    steps: Vec<Step>,
}

impl<'a, L: Lookup> Trail<'a, L> {
    fn new(tables: &'a L, probe: Probe) -> Self {
        Self {
            tables,
            probe,
            steps: Vec::new(),
        }
    }

    fn note(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn note_client_port(&mut self, port: Be16) {
        if port != self.probe.src_port() {
            self.note(Step::ClientPort { port });
        }
    }

    fn end(self, outcome: Result<Outcome, DropReason>) -> Trace {
        Trace {
            steps: self.steps,
            outcome: outcome.unwrap_or_else(Outcome::Dropped),
        }
    }
}

/// A packet that comes in by the uplink: `sn_tc_uplink`, and `sn_xdp_uplink` where that sends it into
/// the tunnel. `now` is the monotonic clock, in nanoseconds.
pub fn from_outside(tables: &impl Lookup, probe: Probe, now: u64) -> Trace {
    let mut trail = Trail::new(tables, probe);
    let outcome = trail.uplink(now);
    trail.end(outcome)
}

/// A packet that the task behind the host-side interface `ifindex` sends into an overlay network:
/// `sn_tc_task`. What a socket hook translated comes with its backend's address.
pub fn from_task(tables: &impl Lookup, probe: Probe, ifindex: u32, now: u64) -> Trace {
    let mut trail = Trail::new(tables, probe);
    let outcome = trail.task(ifindex, now);
    trail.end(outcome)
}

/// What a socket of the node itself, or of a task, connects or sends to.
#[derive(Debug, Clone)]
pub struct Sender {
    /// Of its network namespace.
    pub cookie: u64,
    /// Of a task: VNI of each of its networks, and the interface there.
    pub overlays: Vec<(u32, u32)>,
    pub is_task: bool,
}

/// A packet of a socket: the socket hooks first, then the programs of the way that it takes.
pub fn from_socket(tables: &impl Lookup, probe: Probe, sender: &Sender, now: u64) -> Trace {
    let mut trail = Trail::new(tables, probe);
    let chosen = trail.socket(sender.cookie, now);
    let network = sender.overlays.iter().find(|(vni, _)| trail.is_in(*vni));
    let outcome = match (chosen, network) {
        (Some(Ok(_)), Some((_, ifindex))) => {
            trail.note(Step::PerPacket);
            trail.task(*ifindex, now)
        }
        (Some(outcome), _) => outcome,
        (None, Some((_, ifindex))) => trail.task(*ifindex, now),
        (None, None) if sender.is_task => trail.gateway(),
        (None, None) => Ok(Outcome::Stack),
    };
    trail.end(outcome)
}

impl Datapath {
    /// Answers `swarmnet trace` by the maps as they are.
    ///
    /// # Errors
    /// Says what of the question makes no sense on this node.
    pub fn trace(
        &self,
        view: &NodeView,
        local: &LocalState,
        query: &TraceQuery,
    ) -> Result<TraceAnswer, TraceError> {
        let probe = Probe::of(query)?;
        let tables = PinnedMaps::new(self.map_pins());
        let now = monotonic().as_nanos() as u64;
        let trace = match &query.from {
            TraceFrom::Outside => from_outside(&tables, probe, now),
            TraceFrom::Node => {
                let node = Sender {
                    cookie: local.netns_cookie,
                    overlays: Vec::new(),
                    is_task: false,
                };
                from_socket(&tables, probe, &node, now)
            }
            TraceFrom::Task(name) => from_socket(&tables, probe, &sender(view, local, name)?, now),
        };
        let endpoint_of = |ifindex| {
            let mut tasks = local.tasks.values();
            let owner = tasks.find(|task| task.ifindexes().any(|index| index == ifindex));
            owner.map(|task| task.endpoint.0)
        };
        let node = view.peers.get(&local.node);
        let node = node.map_or("?", |peer| peer.hostname.as_str());
        Ok(trace.explain(&probe, view, node, endpoint_of))
    }
}

impl Probe {
    fn of(query: &TraceQuery) -> Result<Self, TraceError> {
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let proto = protocols
            .into_iter()
            .find(|protocol| protocol.as_str() == query.proto)
            .ok_or_else(|| TraceError::Protocol(query.proto.clone()))?;
        Ok(Self {
            proto: proto.number(),
            src: (query.src, query.src_port),
            dst: (query.dst, query.dst_port),
            established: query.established,
            fragment: query.fragment,
        })
    }
}

/// A task of this node by its name, or the beginning of its name or id.
fn sender(view: &NodeView, local: &LocalState, name: &str) -> Result<Sender, TraceError> {
    let named = |id: &TaskId| {
        let known = view
            .tasks
            .get(id)
            .is_some_and(|task| task.name == name || task.name.starts_with(&format!("{name}.")));
        known || id.to_string().starts_with(name)
    };
    let mut found = local.tasks.iter().filter(|(id, _)| named(id));
    let (_, task) = found
        .next()
        .ok_or_else(|| TraceError::NoTask(name.into()))?;
    if found.next().is_some() {
        return Err(TraceError::ManyTasks(name.into()));
    }
    let vni = |network| view.networks.get(network).map(|network| network.vni.get());
    let overlays = task.overlays.iter();
    Ok(Sender {
        cookie: task.netns_cookie,
        overlays: overlays
            .filter_map(|(network, veth)| Some((vni(network)?, veth.ifindex)))
            .collect(),
        is_task: true,
    })
}

/// A question that has no answer here.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("no protocol `{0}` can be traced: want tcp or udp")]
    Protocol(String),
    #[error("no task `{0}` runs on this node; ask the node that `swarmnet service ps` names")]
    NoTask(String),
    #[error("`{0}` names several tasks of this node; give more of the name or id")]
    ManyTasks(String),
}
