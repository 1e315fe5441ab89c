//! The flow tables of a backend's node: one entry a flow, both directions.
//!
//! A TCP connection enters FLOWS only once its handshake is over, as the task's socket tells: floods
//! stay in tables of their own. An entry that is gone comes back as long as the socket lives.

use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, maps::LruHashMap};
use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_ACKED, FLOW_CLIENT_FIN, FLOW_DIRECT, FLOW_RESET, FLOW_TASK_FIN,
    FLOW_TOUCH_NS, FlowKey, FlowValue, LocalEndpoint, SERVICE_DIRECT_RETURN, ServiceValue,
};

use crate::{
    maps::{FLOWS, SYN_FLOWS, UDP_FLOWS},
    owner,
    packet::{PROTO_TCP, Packet, TCP_FIN, TCP_RST},
    skb::Skb,
    task_socket::{self, TaskSocket},
};

type Table = LruHashMap<FlowKey, FlowValue>;

/// Whether an endpoint takes a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Of a flow that it has.
    Known,
    /// Of one that begins.
    Opened,
    /// In the middle of a TCP connection that it does not have.
    Unknown,
}

/// A packet at an endpoint of this node.
pub struct Visit<'a> {
    pub packet: &'a Packet,
    pub endpoint: u32,
    pub local: &'static LocalEndpoint,
    pub target_port: Be16,
    /// Tunnel address of the entry node; zero when that is this node.
    pub entry: Be32,
    /// Of the flow, if it opens.
    flags: u16,
}

impl<'a> Visit<'a> {
    #[inline(always)]
    pub fn new(
        packet: &'a Packet,
        published: &ServiceValue,
        endpoint: u32,
        local: &'static LocalEndpoint,
        entry: Be32,
    ) -> Self {
        Self {
            packet,
            endpoint,
            local,
            target_port: published.target(packet.dst_port),
            entry,
            flags: match published.flags & SERVICE_DIRECT_RETURN {
                0 => 0,
                _ => FLOW_DIRECT,
            },
        }
    }

    /// Looks for the packet's flow, opens it when the packet may, and notes what the packet says.
    #[inline(always)]
    pub fn admit(&self, skb: Skb) -> Result<Admission, DropReason> {
        let key = self.key();
        if self.packet.proto != PROTO_TCP {
            return self.enter(&UDP_FLOWS, &key);
        }
        if let Some(flow) = get(&FLOWS, &key) {
            let is_syn = self.packet.is_syn();
            let is_old = if is_syn {
                self.succeeds(flow)
            } else {
                has_ended(flow)
            };
            if self.is_live(flow) && !is_old {
                self.renew(flow)?;
                return Ok(Admission::Known);
            }
            if is_syn {
                // In the place of the old one: the table does not grow.
                self.open(&FLOWS, &key)?;
                return Ok(Admission::Opened);
            }
        }
        if self.packet.is_syn() {
            return self.enter(&SYN_FLOWS, &key);
        }
        self.resume(skb, &key)
    }

    /// Whether the endpoint has the packet's flow, and by what the packet was sent to.
    #[inline(always)]
    pub fn is_known(&self, skb: Skb) -> bool {
        let key = self.key();
        let is_tcp = self.packet.proto == PROTO_TCP;
        let flow = match is_tcp {
            true => get(&FLOWS, &key).or_else(|| get(&SYN_FLOWS, &key)),
            false => get(&UDP_FLOWS, &key),
        };
        if let Some(flow) = flow {
            return self.is_live(flow) && self.is_same_frontend(flow);
        }
        is_tcp
            && matches!(
                task_socket::find(skb, self.local, &key),
                TaskSocket::Connected | TaskSocket::Closing | TaskSocket::HalfOpen
            )
    }

    /// The flow as the task's replies name it.
    #[inline(always)]
    fn key(&self) -> FlowKey {
        FlowKey {
            client: self.packet.src,
            task: self.local.addr,
            client_port: self.packet.src_port,
            task_port: self.target_port,
            proto: self.packet.proto,
            _pad: 0,
            _pad2: 0,
        }
    }

    /// A packet that may open a flow, in the table for that.
    #[inline(always)]
    fn enter(&self, table: &Table, key: &FlowKey) -> Result<Admission, DropReason> {
        if let Some(flow) = get(table, key)
            && self.is_live(flow)
            && !(self.packet.is_syn() && self.succeeds(flow))
        {
            self.renew(flow)?;
            return Ok(Admission::Known);
        }
        self.open(table, key)?;
        Ok(Admission::Opened)
    }

    /// A packet in the middle of a TCP connection that is not in FLOWS: its handshake ends just now,
    /// its entry was evicted, or tells of an end, and then the packet may be of another connection from
    /// the same port, which went elsewhere.
    #[inline(always)]
    fn resume(&self, skb: Skb, key: &FlowKey) -> Result<Admission, DropReason> {
        let socket = task_socket::find(skb, self.local, key);
        if let Some(flow) = get(&SYN_FLOWS, key)
            && self.is_live(flow)
            && !has_ended(flow)
            && socket != TaskSocket::TimeWait
        {
            self.renew(flow)?;
            // A task that only forwards has no socket, a listener alone is none of this connection.
            let is_over = !matches!(socket, TaskSocket::HalfOpen | TaskSocket::Listening);
            flow.flags |= FLOW_ACKED;
            if is_over {
                let flow = FlowValue {
                    flags: flow.flags & !FLOW_ACKED,
                    ..*flow
                };
                insert(&FLOWS, key, &flow)?;
                // The entry is of no use now; if it is not there any more, so much the better.
                let _ = SYN_FLOWS.remove(key);
            }
            return Ok(Admission::Known);
        }
        match socket {
            TaskSocket::Connected => self.open(&FLOWS, key)?,
            // An entry that tells of the end stays as it is: opened anew, it would seem to live.
            TaskSocket::Closing if get(&FLOWS, key).is_some() => {}
            TaskSocket::Closing => self.open(&SYN_FLOWS, key)?,
            TaskSocket::HalfOpen => self.open(&SYN_FLOWS, key)?,
            TaskSocket::TimeWait => {
                if owner::is_pinned_elsewhere(self.packet, self.endpoint) {
                    return Ok(Admission::Unknown);
                }
                self.open(&SYN_FLOWS, key)?;
            }
            TaskSocket::Listening | TaskSocket::Absent => return Ok(Admission::Unknown),
        }
        Ok(Admission::Known)
    }

    #[inline(always)]
    fn open(&self, table: &Table, key: &FlowKey) -> Result<(), DropReason> {
        let now = now();
        let flow = FlowValue {
            last_seen: now,
            entry_vtep: self.entry,
            node_addr: self.packet.dst,
            published: self.packet.dst_port,
            flags: self.flags,
            endpoint: self.endpoint,
            generation: self.local.generation,
            stats: self.local.stats,
            opened: now,
        };
        insert(table, key, &flow)
    }

    /// Whether the entry belongs to the endpoint, and that has not stopped serving since.
    #[inline(always)]
    fn is_live(&self, flow: &FlowValue) -> bool {
        flow.endpoint == self.endpoint && flow.generation == self.local.generation
    }

    /// Whether a SYN starts a new connection where an earlier one of the same ports was, and is not
    /// just sent again.
    #[inline(always)]
    fn succeeds(&self, flow: &FlowValue) -> bool {
        flow.flags & !FLOW_DIRECT != 0 || !self.is_same_frontend(flow)
    }

    #[inline(always)]
    fn is_same_frontend(&self, flow: &FlowValue) -> bool {
        flow.node_addr == self.packet.dst && flow.published == self.packet.dst_port
    }

    #[inline(always)]
    fn renew(&self, flow: &mut FlowValue) -> Result<(), DropReason> {
        if !self.is_same_frontend(flow) {
            return Err(DropReason::SourceCollision);
        }
        if flow.entry_vtep != self.entry {
            // The client's packets now come through another node: replies follow.
            flow.entry_vtep = self.entry;
        }
        touch(flow, self.packet, FLOW_CLIENT_FIN);
        Ok(())
    }
}

/// Whether both sides have closed the connection, or one has reset it.
#[inline(always)]
fn has_ended(flow: &FlowValue) -> bool {
    const BOTH: u16 = FLOW_CLIENT_FIN | FLOW_TASK_FIN;
    flow.flags & FLOW_RESET != 0 || flow.flags & BOTH == BOTH
}

/// The mesh flow that a packet from a task belongs to.
#[inline(always)]
pub fn of_reply(packet: &Packet) -> Option<&'static mut FlowValue> {
    let key = FlowKey {
        client: packet.dst,
        task: packet.src,
        client_port: packet.dst_port,
        task_port: packet.src_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    };
    if packet.proto != PROTO_TCP {
        return get(&UDP_FLOWS, &key);
    }
    get(&FLOWS, &key).or_else(|| get(&SYN_FLOWS, &key))
}

#[inline(always)]
pub fn get(table: &Table, key: &FlowKey) -> Option<&'static mut FlowValue> {
    let flow = table.get_ptr_mut(key)?;
    // SAFETY: an entry evicted meanwhile may become another flow's; what is written through the
    // reference are single words, and the flow concerned is gone from the table anyway.
    Some(unsafe { &mut *flow })
}

#[inline(always)]
pub fn insert(table: &Table, key: &FlowKey, flow: &FlowValue) -> Result<(), DropReason> {
    table
        .insert(key, flow, 0)
        .map_err(|_| DropReason::FlowTableFull)
}

/// Keeps the entry's line clean while there is nothing new to say.
#[inline(always)]
pub fn touch(flow: &mut FlowValue, packet: &Packet, fin: u16) {
    let now = now();
    if now.wrapping_sub(flow.last_seen) > FLOW_TOUCH_NS {
        flow.last_seen = now;
    }
    if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        let reset = if packet.tcp_flags & TCP_RST != 0 {
            FLOW_RESET
        } else {
            0
        };
        let fin = if packet.tcp_flags & TCP_FIN != 0 {
            fin
        } else {
            0
        };
        flow.flags |= fin | reset;
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
