//! The flow tables of a backend's node: one entry a flow, both directions.
//!
//! A TCP connection enters FLOWS only once its handshake is over, as the task's socket tells: floods
//! stay in tables of their own. An entry that is gone comes back as long as the socket lives.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop},
    maps::LruHashMap,
};
use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_ACKED, FLOW_CLIENT_FIN, FLOW_DIRECT, FLOW_RESET, FLOW_TOUCH_NS,
    FlowKey, FlowValue, LocalEndpoint, SERVICE_DIRECT_RETURN, ServiceValue,
    seat::{Claim, SEATS, Search, Seat, seat_port},
};

use crate::{
    maps::{FLOWS, SYN_FLOWS, UDP_FLOWS},
    owner,
    packet::{PROTO_TCP, Packet, TCP_FIN, TCP_RST},
    skb::Skb,
    source_port,
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
    /// By which the task knows the client's port: itself, unless another flow has that there
    /// ([`dataplane_abi::seat`]). Final once the flow was looked for.
    pub client_port: Be16,
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
            client_port: packet.src_port,
            flags: match published.flags & SERVICE_DIRECT_RETURN {
                0 => 0,
                _ => FLOW_DIRECT,
            },
        }
    }

    /// Looks for the packet's flow, opens it when the packet may, and notes what the packet says.
    #[inline(always)]
    pub fn admit(&mut self, skb: Skb) -> Result<Admission, DropReason> {
        if self.packet.is_established() {
            return self.admit_established(skb);
        }
        let mut key = self.key();
        if self.packet.proto != PROTO_TCP {
            if get(&UDP_FLOWS, &key).is_some_and(|flow| !self.is_own(flow)) {
                self.find_seat(&mut key, true);
            }
            return self.enter(&UDP_FLOWS, &key);
        }
        let known = get(&FLOWS, &key).or_else(|| get(&SYN_FLOWS, &key));
        if known.is_some_and(|flow| !self.is_own(flow)) {
            self.find_seat(&mut key, true);
        }
        let Some(flow) = get(&FLOWS, &key) else {
            return self.enter(&SYN_FLOWS, &key);
        };
        if self.is_live(flow) && !self.succeeds(flow) {
            self.renew(flow)?;
            return Ok(Admission::Known);
        }
        // In the place of the old one: the table does not grow.
        self.open(&FLOWS, &key)?;
        Ok(Admission::Opened)
    }

    /// As [`Self::admit`], for packets in the middle of a TCP connection.
    #[inline(always)]
    pub fn admit_established(&mut self, skb: Skb) -> Result<Admission, DropReason> {
        let mut key = self.key();
        let known = get(&FLOWS, &key).or_else(|| get(&SYN_FLOWS, &key));
        if !known.is_some_and(|flow| self.is_own(flow)) {
            self.find_seat(&mut key, false);
        }
        if let Some(flow) = get(&FLOWS, &key)
            && self.is_live(flow)
            && !flow.has_ended()
        {
            self.renew(flow)?;
            return Ok(Admission::Known);
        }
        self.resume(skb, &key)
    }

    /// Whether the endpoint has the packet's flow, and by what the packet was sent to.
    #[inline(always)]
    pub fn is_known(&mut self, skb: Skb) -> bool {
        let mut key = self.key();
        self.find_seat(&mut key, !self.packet.is_established());
        let is_tcp = self.packet.proto == PROTO_TCP;
        let flow = match is_tcp {
            true => get(&FLOWS, &key).or_else(|| get(&SYN_FLOWS, &key)),
            false => get(&UDP_FLOWS, &key),
        };
        if let Some(flow) = flow {
            return self.is_live(flow) && self.is_own(flow);
        }
        is_tcp
            && matches!(
                task_socket::find(skb, self.local, &key),
                TaskSocket::Connected | TaskSocket::Closing | TaskSocket::HalfOpen
            )
    }

    /// Finds the flow's port at the task, or one for it if it may begin.
    #[inline(always)]
    fn find_seat(&mut self, key: &mut FlowKey, may_begin: bool) {
        let (addr, port) = (self.packet.dst.raw(), self.packet.dst_port.raw());
        let frontend = u64::from(addr) << 16 | u64::from(port);
        let generation = self.local.generation;
        let port = find_seat(key, frontend, self.endpoint, generation, may_begin.into());
        self.client_port = Be16::from_raw(port as u16);
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
        if let Some(flow) = get(table, key) {
            match self.claim().seat(key, flow, now) {
                Seat::Own if !(self.packet.is_syn() && self.succeeds(flow)) => {
                    self.renew(flow)?;
                    return Ok(Admission::Known);
                }
                Seat::Other if !self.packet.is_syn() => return Err(DropReason::SourceCollision),
                // The later SYN wins.
                Seat::Own | Seat::Other | Seat::Nobody => {}
            }
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
            && !flow.has_ended()
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
            own_port: match key.client_port == self.packet.src_port {
                true => Be16::ZERO,
                false => self.packet.src_port,
            },
            _pad: 0,
            _pad2: 0,
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
        flow.flags & !FLOW_DIRECT != 0 || !self.is_own(flow)
    }

    /// Whether an entry at `client_port` is of the client's own port, and of what it sends to.
    #[inline(always)]
    fn is_own(&self, flow: &FlowValue) -> bool {
        flow.node_addr == self.packet.dst
            && flow.published == self.packet.dst_port
            && flow.client_port(self.client_port) == self.packet.src_port
    }

    #[inline(always)]
    fn claim(&self) -> Claim {
        Claim {
            node_addr: self.packet.dst,
            published: self.packet.dst_port,
            client_port: self.packet.src_port,
            endpoint: self.endpoint,
            generation: self.local.generation,
        }
    }

    #[inline(always)]
    fn renew(&self, flow: &mut FlowValue) -> Result<(), DropReason> {
        if !self.is_own(flow) {
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

/// Makes `key` that of a flow with such a frontend, given as 16 bits of port below 32 of address. Not
/// inlined, so that the verifier forgets how it got here, and what is on the stack here is off it
/// again; therefore few numbers and no `Claim`.
#[inline(never)]
fn find_seat(
    key: &mut FlowKey,
    frontend: u64,
    endpoint: u32,
    generation: u32,
    may_begin: u32,
) -> u32 {
    let own = key.client_port;
    let none = source_port::none(&key.client);
    let mut look = Look {
        key,
        claim: Claim {
            node_addr: Be32::from_raw((frontend >> 16) as u32),
            published: Be16::from_raw(frontend as u16),
            client_port: own,
            endpoint,
            generation,
        },
        search: Search::new(none),
    };
    // SAFETY: the callback takes a `Look`, which outlives the call.
    unsafe {
        bpf_loop(
            SEATS.into(),
            look_at as *mut c_void,
            (&raw mut look).cast(),
            0,
        )
    };
    let port = look.search.outcome(own, may_begin != 0);
    look.key.client_port = port;
    port.raw().into()
}

struct Look<'a> {
    key: &'a mut FlowKey,
    claim: Claim,
    search: Search,
}

/// Looks at one port; 1 ends the search.
unsafe extern "C" fn look_at(nth: u32, look: *mut c_void) -> i64 {
    // SAFETY: `find_seat` passes its own.
    let look = unsafe { &mut *look.cast::<Look>() };
    let port = seat_port(look.claim.client_port, nth as u16);
    look.key.client_port = port;
    let seat = if look.key.proto == PROTO_TCP {
        match claim_of(&FLOWS, look.key, &look.claim) {
            Seat::Nobody => claim_of(&SYN_FLOWS, look.key, &look.claim),
            seat => seat,
        }
    } else {
        claim_of(&UDP_FLOWS, look.key, &look.claim)
    };
    look.search.note(port, seat).into()
}

#[inline(always)]
fn claim_of(table: &Table, key: &FlowKey, claim: &Claim) -> Seat {
    match get(table, key) {
        Some(flow) => claim.seat(key, flow, now),
        None => Seat::Nobody,
    }
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
