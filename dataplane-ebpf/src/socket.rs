//! What the socket hooks share: which frontend a destination is, which backend a socket gets, and
//! what the application is told afterwards.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use dataplane_abi::{
    BackendValue, Be16, Be32, CLIENT_IS_NETNS, DropReason, NETNS_NODE, NETNS_VNIS_MAX, NetnsValue,
    ProgramId, SERVICE_AFFINITY, SIDE_SOCKETS, ServiceValue, SockKey, SockOrigin,
    hash::client_hash,
};

use crate::{
    client, count, doubt, entry,
    maps::{NETNS, SOCK_ORIGINS},
    packet::{PROTO_TCP, PROTO_UDP},
    service, vip,
};

/// Verdicts of the hooks: let the call go on, or refuse it.
pub const ALLOW: i32 = 1;
pub const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// The call's address, port and socket.
#[derive(Clone, Copy)]
pub struct Call(*mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    pub fn addr(self) -> Be32 {
        // SAFETY: the context is valid while the program runs. Volatile: the verifier wants plain
        // loads of single fields, so the compiler must not merge them.
        Be32::from_raw(unsafe { (&raw const (*self.0).user_ip4).read_volatile() })
    }

    #[inline(always)]
    pub fn port(self) -> Be16 {
        // SAFETY: as above.
        Be16::from_raw(unsafe { (&raw const (*self.0).user_port).read_volatile() } as u16)
    }

    #[inline(always)]
    pub fn proto(self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u8 }
    }

    #[inline(always)]
    pub fn set(self, addr: Be32, port: Be16) {
        // SAFETY: as above; the hooks may write these two fields.
        unsafe {
            (&raw mut (*self.0).user_ip4).write_volatile(addr.raw());
            (&raw mut (*self.0).user_port).write_volatile(port.raw().into());
        }
    }

    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// As what affinity takes the caller: its network namespace, since the socket has no address yet.
    #[inline(always)]
    fn client_hash(self) -> u32 {
        let cookie = self.netns_cookie();
        client_hash(Be32::from_host(cookie as u32), cookie >> 32)
    }

    #[inline(always)]
    fn netns_cookie(self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn netns(self) -> Option<&'static NetnsValue> {
        // SAFETY: see `entry::published`.
        unsafe { NETNS.get(self.netns_cookie()) }
    }

    /// The socket's name for its talk with a backend.
    #[inline(always)]
    fn key(self, addr: Be32, port: Be16) -> SockKey {
        SockKey {
            cookie: self.cookie(),
            addr,
            port,
            proto: self.proto(),
            _pad: 0,
        }
    }
}

/// Sends the call, which `program` sees, to a backend when its destination is a frontend. `hash`
/// picks among the backends.
#[inline(always)]
pub fn translate(program: ProgramId, call: Call, hash: impl FnOnce() -> u32) -> i32 {
    let Some(netns) = call.netns() else {
        return ALLOW;
    };
    let (addr, port, proto) = (call.addr(), call.port(), call.proto());
    if !matches!(proto, PROTO_TCP | PROTO_UDP) {
        return ALLOW;
    }
    let Some(frontend) = frontend(netns, addr, port, proto) else {
        return ALLOW;
    };
    let hash = match frontend.service.flags & SERVICE_AFFINITY {
        0 => hash(),
        _ => call.client_hash(),
    };
    match choose(call, frontend.service, hash) {
        // What a connected socket sends meets no hook, so it would keep a backend beyond its death.
        // With the VIP on them, its packets find one each by themselves (`vip::outbound`).
        Ok(_) if program == ProgramId::Connect4 && proto == PROTO_UDP && !frontend.published => {
            ALLOW
        }
        Ok(backend) => {
            let to_port = frontend.port_at(backend, port);
            remember(
                call,
                backend.addr,
                to_port,
                addr,
                port,
                frontend.service.stats,
            );
            call.set(backend.addr, to_port);
            ALLOW
        }
        Err(reason) => {
            count::socket_refused(program, reason);
            // SAFETY: sets the result of the system call; without it that were EPERM.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            REFUSE
        }
    }
}

struct Frontend {
    service: &'static ServiceValue,
    published: bool,
}

impl Frontend {
    /// A published port is left to the backend's node unless that is this one.
    #[inline(always)]
    fn port_at(&self, backend: &BackendValue, port: Be16) -> Be16 {
        let remote = self.published && !backend.vtep.is_zero();
        if remote {
            port
        } else {
            self.service.target(port)
        }
    }
}

#[inline(always)]
fn frontend(netns: &NetnsValue, addr: Be32, port: Be16, proto: u8) -> Option<Frontend> {
    for (index, vni) in netns.vnis.iter().enumerate().take(NETNS_VNIS_MAX) {
        if index as u32 >= netns.vni_count {
            break;
        }
        if let Some(service) = vip::service_at(*vni, addr) {
            return Some(Frontend {
                service,
                published: false,
            });
        }
    }
    let loopback = addr.to_host() >> 24 == 127 && netns.kind == NETNS_NODE;
    let service = entry::published(addr, port, proto, SIDE_SOCKETS)?;
    (loopback || entry::is_node_addr(addr)).then_some(Frontend {
        service,
        published: true,
    })
}

#[inline(always)]
fn choose(
    call: Call,
    service: &ServiceValue,
    hash: u32,
) -> Result<&'static BackendValue, DropReason> {
    let slot = service::entry_slot(service, hash, false)?;
    let choice = match service::config() {
        Ok(config) => doubt::choice(config, service, hash, slot, false),
        Err(_) => slot.now,
    };
    let client = call.netns_cookie() | CLIENT_IS_NETNS;
    let index = client::index(service, client, choice, false);
    let backend = service::backend(service, index)?;
    if !service::takes_new_flows(backend) {
        return Err(DropReason::NoBackend);
    }
    Ok(backend)
}

/// Notes what the application asked for, and counts the flow when it is new.
#[inline(always)]
fn remember(call: Call, backend: Be32, backend_port: Be16, addr: Be32, port: Be16, stats: u32) {
    let key = call.key(backend, backend_port);
    let origin = SockOrigin {
        addr,
        port,
        _pad: 0,
    };
    if let Some(known) = SOCK_ORIGINS.get_ptr(key) {
        // SAFETY: an entry evicted meanwhile reads as another one and is written again.
        let known = unsafe { &*known };
        if known.addr == addr && known.port == port {
            return;
        }
    }
    // Without the entry only the name of the peer is the backend's: the call goes on.
    let _ = SOCK_ORIGINS.insert(key, origin, 0);
    count::socket_flow(stats);
}

/// Gives the application back the name it knows, when the call's address is a backend it was
/// sent to.
#[inline(always)]
pub fn restore(call: Call) {
    let key = call.key(call.addr(), call.port());
    if let Some(origin) = SOCK_ORIGINS.get_ptr(key) {
        // SAFETY: see `remember`.
        let (addr, port) = unsafe { ((*origin).addr, (*origin).port) };
        call.set(addr, port);
    }
}
